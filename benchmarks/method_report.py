"""What `benchmarks.method` found, for people: a Markdown table and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(result: Mapping[str, Any], place: Path) -> None:
    """Write `<place>.json`, `<place>.md` and, of more than the main rows, `<place>.png`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    place.with_suffix(".md").write_text(markdown(result))
    if result["top_k"]:
        _pictures(result, place.with_suffix(".png"))


def markdown(result: Mapping[str, Any]) -> str:
    """Bits per byte of every system, the mean over owners' domains first."""
    table = result["table"]
    owners = list(result["share_of_dense_gain"])
    domains = list(table["public"])
    seeds = result["seeds"]
    lines = [
        f"# {result['benchmark']}",
        "",
        f"Bits per byte, lower is better: the mean of {len(seeds)} seed(s), or as many as are given behind a system, ±",
        "half of what lies between them. Active parameters are in thousands, without embeddings that are not looked",
        "up; time per token is over the public model's.",
        "",
        f"| system | owners' mean | {' | '.join(domains)} | active, k | time |",
        "|---|" + "---:|" * (len(domains) + 3),
    ]
    for name, row in table.items():
        found = [each["table"][name] for each in seeds.values() if name in each["table"]]
        means = [sum(each[owner] for owner in owners) / len(owners) for each in found]
        cost = result["cost"][name]
        spread = f" ± {(max(means) - min(means)) / 2:.3f}" if len(found) > 1 else ""
        lines.append(
            f"| {name}{'' if len(found) == len(seeds) else f' ({len(found)} seed)'} "
            f"| {sum(means) / len(means):.3f}{spread} | "
            + " | ".join(f"{row[domain]:.3f}" for domain in domains)
            + f" | {cost['active_parameters'] / 1000:,.0f} | {cost['time_per_token']:.2f} |"
        )
    lines += ["", "| | " + " | ".join(owners) + " | public cost |", "|---|" + "---:|" * (len(owners) + 1)]
    for name, row in result["merge_efficiency"].items():
        cost = 100 * result["public_cost"][name]
        lines.append(
            f"| merge efficiency, {name} | " + " | ".join(f"{row[o]:.3f}" for o in owners) + f" | {cost:+.2f}% |"
        )
    shares = result["share_of_dense_gain"]
    lines.append("| share of a dense expert's gain | " + " | ".join(f"{shares[o]:.3f}" for o in owners) + " | |")
    return "\n".join([*lines, *_without(result)]) + "\n"


def _without(result: Mapping[str, Any]) -> list[str]:
    """What changes in each domain when an owner leaves, each seed's beside its own release; some have none."""
    left = [each for each in result["seeds"].values() if each["opt_out"]]
    if not left:
        return []
    domains = list(result["table"]["public"])
    lines = ["", f"| without | {' | '.join(domains)} |", "|---|" + "---:|" * len(domains)]
    for owner in left[0]["opt_out"]:
        ratios = [[each["opt_out"][owner][d] / each["table"]["release"][d] for each in left] for d in domains]
        lines.append(f"| {owner} | " + " | ".join(f"{100 * (sum(of) / len(of) - 1):+.2f}%" for of in ratios) + " |")
    return lines


def _pictures(result: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = next(iter(result["seeds"].values()))
    domains = list(first["shares_per_layer"])
    figure, (shares, curve, leaving) = pyplot.subplots(1, 3, figsize=(16, 4.5))
    experts = ["public", *result["opt_out"]]
    means = [[sum(layer[e] for layer in first["shares_per_layer"][d]) / len(first["shares_per_layer"][d])
              for e in range(len(experts))] for d in domains]  # fmt: skip
    _matrix(figure, shares, means, rows=domains, columns=experts, title="share of the routing, by expert")
    for domain in domains:
        curve.plot(
            [int(k) for k in first["top_k"]], [row[domain] for row in first["top_k"].values()], "o-", label=domain
        )
    curve.set(title="bits per byte by active experts", xlabel="experts a token")
    curve.legend(fontsize="small")
    table = result["table"]["release"]
    changes = [[100 * (row[d] / table[d] - 1) for d in domains] for row in result["opt_out"].values()]
    _matrix(
        figure, leaving, changes, rows=list(result["opt_out"]), columns=domains, title="% change when an owner leaves"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _matrix(
    figure: Any, axes: Any, values: list[list[float]], *, rows: list[str], columns: list[str], title: str
) -> None:
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set(title=title, xticks=range(len(columns)), yticks=range(len(rows)))
    axes.set_xticklabels(columns, rotation=40, ha="right")
    axes.set_yticklabels(rows)
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            color = "black" if value > middle else "white"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=color, fontsize="x-small")
    figure.colorbar(image, ax=axes)
