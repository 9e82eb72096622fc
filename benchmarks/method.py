"""The paper's tables in small: every way of combining owners' training, on the same tokens and the same public model.

`python -m benchmarks.method --preset smoke|cpu|gpu --sets 4|8 --data DIR`, or `--owners NAME NAME ...` instead of sets

Stopped anywhere, it goes on where it was (`--work`). The result goes to `results/method-<preset>-<sets>.json`
(and `.md`, `.png`) unless the preset is `smoke`; the last line is that JSON on one line.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import method_report
from benchmarks.consortium import MIXED, PUBLIC, Consortium, Sizes
from benchmarks.machine import describe
from common import data
from common.data import write_documents
from common.ensemble import document_losses, mixture_bits_per_byte, weigh
from common.model import hf
from common.text_classifier import TextClassifier
from coordinator.combine.soup import likelihood_weights, soup
from coordinator.combine.upcycle import upcycle
from owner_client import proxies
from owner_client.proxies import ProxyJob

SETS: Final = {
    4: ("math", "educational", "code"),
    8: ("math", "educational", "code", "news", "creative", "academic", "legal"),
}
"""Owners besides the public set."""

PRESETS: Final = {
    "smoke": Sizes(
        hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2, vocab_size=512,
        sequence_length=64, batch_size=8, pretrain_steps=60, pretrain_learning_rate=6e-3, expert_steps=30,
        expert_learning_rate=8e-3, dense_learning_rate=3e-3, tuning_steps=10, evaluated_bytes=8_000, seeds=(0,),
        num_proxies=4, train_bytes=200_000, ablations=("no coordination",),
    ),
    "cpu": Sizes(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, vocab_size=2048,
        sequence_length=256, batch_size=8, pretrain_steps=1600, pretrain_learning_rate=4e-3, expert_steps=600,
        expert_learning_rate=6e-3, dense_learning_rate=3e-3, tuning_steps=200, evaluated_bytes=150_000, seeds=(0, 1),
    ),
    "gpu": Sizes(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, vocab_size=16384,
        sequence_length=512, batch_size=64, pretrain_steps=1200, pretrain_learning_rate=1e-3, expert_steps=300,
        expert_learning_rate=6e-4, dense_learning_rate=3e-4, tuning_steps=60, evaluated_bytes=380_000, seeds=(0,),
        device="cuda", precision="bfloat16",
    ),
}  # fmt: skip

_TEMPERATURES: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

Row = dict[str, float]
"""Bits per byte by domain, `mixed` among them."""


@dataclass
class Study:
    """All systems over one consortium."""

    world: Consortium

    @property
    def domains(self) -> list[str]:
        """What every system is measured on."""
        return [PUBLIC, *self.world.owners, MIXED]

    def row(self, model: Path) -> Row:
        """A model's bits per byte."""
        return {name: self.world.score(model, name).bits_per_byte for name in self.domains}

    # The consortium's own systems

    def alone(self, experts: Sequence[Path]) -> dict[str, Path]:
        """Each owner's own two-expert model."""
        return {o: self.world.release([e]) for o, e in zip(self.world.owners, experts, strict=True)}

    def router_trained(self, experts: Sequence[Path]) -> Path:
        """The release with its rows trained on public text and the owners' proxies (section 3.3.3)."""
        world, public = self.world, self.world.corpora() / PUBLIC
        sources = {PUBLIC: public}
        documents = list(data.read_split(public, "train"))
        for owner in world.owners:
            job = ProxyJob(data=world.corpora() / owner, public=public, count=world.sizes.num_proxies,
                           output=world.work / f"proxies-{owner}.json", seed=world.seed)  # fmt: skip
            folder = world.place(f"proxies-{owner}", [world.corpora().name, job.count])
            if not folder.exists():
                chosen = proxies.chosen_documents(documents, proxies.select(job))
                partial = folder.with_name(folder.name + ".partial")
                partial.mkdir(exist_ok=True)
                write_documents(partial / "train.jsonl.gz", chosen)
                partial.rename(folder)
            sources[f"proxies of {owner}"] = folder / "train.jsonl.gz"
        validation = {
            "text": public,
            "every_steps": max(1, world.sizes.tuning_steps // 10),
            "max_bytes": world.sizes.evaluated_bytes,
        }
        return world.tuned("release+rt", world.release(experts), sources, trained="routers",
                           steps=world.sizes.tuning_steps, learning_rate=1e-3, validation=validation)  # fmt: skip

    # Other ways of combining

    def soups(self, dense: Sequence[Path]) -> dict[str, Path]:
        """The mean of the dense experts, and the mean weighted by how well each knows all validation text."""
        world = self.world
        models = [hf.load(path) for path in dense]
        losses = [
            np.mean([world.score(path, owner, split="validation").bits_per_byte for owner in world.owners])
            for path in dense
        ]
        weights = likelihood_weights([float(loss) for loss in losses], temperature=0.1)
        inputs = [path.name for path in dense]
        return {
            "soup": world.keep("soup", inputs, soup(models)),
            "weighted soup": world.keep("weighted-soup", [inputs, weights], soup(models, weights=weights)),
        }

    def btx(self, dense: Sequence[Path]) -> Path:
        """Dense experts side by side, then trained on public text."""
        world, public = self.world, self.world.corpora() / PUBLIC
        start = upcycle([hf.load(path) for path in (world.base(), *dense)], num_experts_per_tok=2, seed=world.seed)
        kept = world.keep("btx-start", [path.name for path in dense], start)
        return world.tuned("btx", kept, {PUBLIC: public}, steps=world.sizes.tuning_steps,
                           learning_rate=world.sizes.dense_learning_rate)  # fmt: skip

    def unrestricted(self, times: int) -> Path:
        """One mixture trained on everybody's text, on as many tokens as all owners together, or so many times more."""
        world = self.world
        count = 1 + len(world.owners)
        start = upcycle([hf.load(world.base())] * count, num_experts_per_tok=2, seed=world.seed)
        kept = world.keep("unrestricted-start", count, start)
        sources = {name: world.corpora() / name for name in (PUBLIC, *world.owners)}
        return world.tuned(f"unrestricted-{times}x", kept, sources, learning_rate=world.sizes.dense_learning_rate,
                           steps=times * len(world.owners) * world.sizes.expert_steps)  # fmt: skip

    def ensemble(self, models: Sequence[Path], *, top_k: int) -> tuple[Row, Row]:
        """Rows of BTM over `models`, and of one model a document chosen by a classifier of domains."""
        world = self.world
        temperature = self._temperature(models, top_k=top_k)
        best, chosen = Row(), Row()
        for name in self.domains:
            domain = world.domain(name)
            nats = [world.nats(path, domain) for path in models]
            weights = weigh(document_losses(domain, nats), temperature=temperature, top_k=top_k)
            best[name] = mixture_bits_per_byte(domain, nats, weights)
            chosen[name] = mixture_bits_per_byte(domain, nats, self._classified(name, len(models)))
        return best, chosen

    def _temperature(self, models: Sequence[Path], *, top_k: int) -> float:
        """The temperature that is best on the owners' validation text."""
        totals = dict.fromkeys(_TEMPERATURES, 0.0)
        for owner in self.world.owners:
            domain = self.world.domain(owner, split="validation")
            nats = [self.world.nats(path, domain) for path in models]
            losses = document_losses(domain, nats)
            for temperature in totals:
                weights = weigh(losses, temperature=temperature, top_k=top_k)
                totals[temperature] += mixture_bits_per_byte(domain, nats, weights)
        return min(totals, key=totals.__getitem__)

    def _classified(self, name: str, num_models: int) -> NDArray[np.float64]:
        """All weight of each document on the model of the domain that the classifier names."""
        texts = [document.text for document in self.world.documents(name)]
        order = [self._classifier.kinds.index(kind) for kind in (PUBLIC, *self.world.owners)]
        picked = self._classifier.probabilities(texts)[:, order].argmax(axis=1)
        weights = np.zeros((num_models, len(texts)))
        weights[picked, np.arange(len(texts))] = 1
        return weights

    @cached_property
    def _classifier(self) -> TextClassifier:
        corpora = self.world.corpora()
        kinds = (PUBLIC, *self.world.owners)
        texts = {kind: [d.text for d in data.read_split(corpora / kind, "train")] for kind in kinds}
        return TextClassifier(texts, seed=self.world.seed)


def study(world: Consortium, *, everything: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures of one seed."""
    sizes, owners, it = world.sizes, world.owners, Study(world)
    say("public model")
    base = world.base()
    say("experts")
    experts = world.experts()
    say("release")
    release = world.release(experts)
    alone = it.alone(experts)
    table: dict[str, Row] = {"public": it.row(base), "release": it.row(release)}
    own_rows = {owner: it.row(path) for owner, path in alone.items()}
    table |= {f"own: {owner}": row for owner, row in own_rows.items()}
    say("router training")
    tuned = it.router_trained(experts)
    table["release+rt"] = it.row(tuned)
    say("dense experts")
    dense = world.dense()
    table |= {f"dense: {owner}": it.row(path) for owner, path in zip(owners, dense, strict=True)}
    say("soups, ensembles")
    table |= {name: it.row(path) for name, path in it.soups(dense).items()}
    top_k = 2
    table["BTM, dense"], table["classifier, dense"] = it.ensemble([base, *dense], top_k=top_k)
    coordinated = [base, *alone.values()]
    table["BTM, coordinated"], table["classifier, coordinated"] = it.ensemble(coordinated, top_k=top_k)
    say("BTX")
    table["BTX"] = it.row(it.btx(dense))
    say("unrestricted mixture")
    table["unrestricted 1x"] = it.row(it.unrestricted(1))
    if everything:
        table["unrestricted 2x"] = it.row(it.unrestricted(2))
        say("ablations")
        for name in sizes.ablations or ABLATIONS:
            table[name] = it.row(world.release(world.experts(**ABLATIONS[name])))
    say("opt-outs")
    without = {
        owner: it.row(world.release([e for o, e in zip(owners, experts, strict=True) if o != owner]))
        for owner in owners
    }
    ks = sorted({k for k in (1, 2, 3, 4, len(owners) + 1) if k <= len(owners) + 1})
    return {
        "table": table,
        "merge_efficiency": {n: efficiency(table, own_rows, n) for n in ("release", "release+rt")},
        "public_cost": {n: table[n][PUBLIC] / table["public"][PUBLIC] - 1 for n in ("release", "release+rt")},
        "share_of_dense_gain": {
            o: (table["public"][o] - own_rows[o][o]) / (table["public"][o] - table[f"dense: {o}"][o]) for o in owners
        },
        "opt_out": without,
        "shares_per_layer": {name: world.score(release, name).shares_per_layer for name in it.domains},
        "top_k": {str(k): {name: world.score(release, name, top_k=k).bits_per_byte for name in it.domains} for k in ks},
        "sizes": {key: value for key, value in vars(sizes).items() if key != "seeds"},
    }


ABLATIONS: Final[Mapping[str, Mapping[str, object]]] = {
    "no bias": {"bias": False},
    "rows: mean hidden states": {"router_start": "mean", "router_learning_rate": 1e-3},
    "rows: random": {"router_start": "random", "router_learning_rate": 1e-3},
    "rows trained": {"router_learning_rate": 1e-3},
    "no public anchor": {"public_anchor": 0.0},
    "no negatives": {"negative_share": 0.0, "public_anchor": 0.0},
    "no coordination": {"coordinated": False, "public_anchor": 0.0},
}


def efficiency(table: Mapping[str, Row], own: Mapping[str, Row], system: str) -> Row:
    """(public - system) / (public - the owner's own model), by owner's domain."""
    public = table["public"]
    return {o: (public[o] - table[system][o]) / (public[o] - row[o]) for o, row in own.items()}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument("--sets", type=int, choices=SETS, default=4)
    parser.add_argument("--owners", nargs="*", help="folders of the data directory, instead of a number of sets")
    parser.add_argument("--data", type=Path, required=True, help="one folder a domain, and `public`")
    parser.add_argument("--work", type=Path, help="where stages are kept (default: .work/method-<preset>-<sets>)")
    parser.add_argument("--seeds", type=int, nargs="*", help="instead of the preset's")
    arguments = parser.parse_args()
    started = time.monotonic()
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    owners = tuple(arguments.owners or SETS[arguments.sets])
    sizes, name = PRESETS[arguments.preset], f"method-{arguments.preset}-{1 + len(owners)}"
    work = arguments.work or Path(".work") / name
    seeds = {}
    for seed in arguments.seeds or sizes.seeds:
        world = Consortium(work.resolve() / f"seed-{seed}", arguments.data.resolve(), owners, sizes, seed)
        seeds[str(seed)] = study(
            world,
            everything=len(owners) <= 3,
            say=lambda what, seed=seed: print(f"seed {seed}: {what} ({time.monotonic() - started:.0f} s)", flush=True),
        )
    first = seeds[str((arguments.seeds or sizes.seeds)[0])]
    result = {
        "benchmark": name,
        "machine": describe(),
        **{key: first[key] for key in ("table", "merge_efficiency", "public_cost", "opt_out")},
        "seeds": seeds,
        "seconds": round(time.monotonic() - started, 1),
    }
    if arguments.preset != "smoke":
        method_report.write(result, Path(__file__).parent / "results" / name)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
