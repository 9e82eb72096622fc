"""The paper's tables in small: every way of combining owners' training, on the same tokens and the same public model.

`python -m benchmarks.method --preset smoke|cpu|gpu --sets 4|8 --data DIR`, or `--owners NAME NAME ...` instead of sets

Stopped anywhere, it goes on where it was (`--work`); seeds may be measured apart (`--seeds`) and put together
(`--join`). `--brief` measures the main rows alone: the public model, the release without and with router training,
owners' own models and dense experts, and with the first seed what is left when an owner leaves. The result goes to
`results/method-<preset>-<sets>.json` (and `.md`, `.png`) unless the preset is `smoke`; the last line is that JSON on
one line. `--try NAME=VALUE ...` measures other sizes (of `consortium.Sizes`) on validation text, for choosing them.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import method_report
from benchmarks.baselines import Baselines
from benchmarks.consortium import PUBLIC, UNSEEN, Consortium, Row
from benchmarks.machine import describe
from benchmarks.method_presets import ABLATIONS, MANY, PRESETS, PRESETS_OF_MANY, SETS, changed
from benchmarks.method_seeds import Stopwatch, check_apart, joined, recorded
from common import data
from common.data import Document
from common.errors import ConcordError, NotFoundError
from common.evaluate import prepare, score
from common.files import write_atomic
from common.job import use_cpu
from common.model import hf, partition
from common.model.expert import EXPERT_NAME
from common.model.router_rows import PublicRouter
from common.tokenizer import Tokenizer
from coordinator import router_sources, router_texts
from coordinator.combine.calibrate import calibrate
from coordinator.router_texts import RouterTexts
from owner_client import proxies
from owner_client.proxies import Proxies, ProxyJob

_HELD_BYTES: Final = 160_000
"""Of public validation text and of proxies that are not trained on, at most, rows are chosen on; as much of each."""


@dataclass
class Study:
    """All systems over one consortium."""

    world: Consortium
    say: Callable[[str], None] = lambda what: None
    table: dict[str, Row] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.baselines = Baselines(self.world)

    def row(self, model: Path) -> Row:
        """A model's bits per byte."""
        return {name: self.world.score(model, name).bits_per_byte for name in self.world.measured_on}

    def add(self, name: str, model: Path) -> None:
        """Measure a system that is one model."""
        self.table[name], self.cost[name] = self.row(model), self.world.cost([model])

    # The study, in the order of its rows

    def own_systems(self) -> tuple[list[Path], list[Path]]:
        """The public model, the release without and with router training; the experts and each owner's own model."""
        world = self.world
        self.say("public model, release, owners' own models")
        self.add("public", world.base())
        experts = world.experts()
        alone = self.alone(experts)
        self.add("release", world.release(experts))
        for owner, path in alone.items():
            self.add(f"own: {owner}", path)
        self.say("router training")
        self.add("release+rt", self.router_trained(experts))
        return experts, [world.base(), *alone.values()]

    def dense_systems(self) -> list[Path]:
        """The dense experts."""
        self.say("dense experts")
        dense = self.world.dense()
        for owner, path in zip(self.world.owners, dense, strict=True):
            self.add(f"dense: {owner}", path)
        return dense

    def train_others(
        self, dense: Sequence[Path], all_data: Sequence[int], ablated: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Train what `other_systems`, `all_data` and `ablations` measure in one go, the longest first."""
        self.say("mixtures that had all data, BTX, experts trained otherwise")
        jobs = [*map(self.baselines.unrestricted_job, all_data), self.baselines.btx_job(dense)]
        self.world.jobs(jobs + [job for options in ablated.values() for job in self.world.expert_jobs(**options)])

    def other_systems(self, dense: Sequence[Path], coordinated: Sequence[Path]) -> None:
        """Everything else a release is compared with, but training on all data."""
        world = self.world
        self.say("soups, ensembles")
        for name, path in self.baselines.soups(dense).items():
            self.add(name, path)
        for kind, models in (("dense", [world.base(), *dense]), ("coordinated", coordinated)):
            names = " ".join(path.name for path in models)
            rows = world.remembered(f"all ensembles {world.split} {names}", partial(self.baselines.ensembles, models))
            for system, row in rows.items():
                name = f"{system}, {kind}"
                # Which models weigh something is known once all have read the text; a classifier knows before.
                alone = system == "classifier"
                self.table[name], self.cost[name] = row, world.cost(models[1:2] if alone else models)
        self.say("BTX")
        self.add("BTX", world.run(self.baselines.btx_job(dense)))

    def all_data(self, times: int) -> None:
        """The mixture that had all data."""
        self.say(f"unrestricted mixture, {times}x")
        self.add(f"unrestricted {times}x", self.world.run(self.baselines.unrestricted_job(times)))

    def ablations(self, experts: Sequence[Path]) -> None:
        """The release with its rows calibrated, and releases of experts that were trained with something left out."""
        self.say("ablations")
        self.add("rows: calibrated", self.calibrated(experts))
        for name, options in self.ablated.items():
            self.add(name, self.world.release(self.world.experts(**options)))

    @property
    def ablated(self) -> dict[str, Mapping[str, Any]]:
        """The options of experts that are trained otherwise."""
        return {name: ABLATIONS[name] for name in self.world.sizes.ablations or ABLATIONS}

    def leaving(self, experts: Sequence[Path]) -> dict[str, Row]:
        """The release without each owner in turn; it is checked to be the rest of the release, bit by bit."""
        self.say("opt-outs")
        rows = {}
        for index, owner in enumerate(self.world.owners):
            left = self.world.release([expert for i, expert in enumerate(experts) if i != index])
            check_only_left(self.world.release(experts), left, expert=1 + index)
            rows[owner] = self.row(left)
        return rows

    # The consortium's own systems

    def alone(self, experts: Sequence[Path]) -> dict[str, Path]:
        """Each owner's own two-expert model."""
        return {o: self.world.release([e]) for o, e in zip(self.world.owners, experts, strict=True)}

    def router_trained(self, experts: Sequence[Path]) -> Path:
        """The release with its rows trained, half on public text and half on all proxies (section 3.3.3), as the
        coordinator does it: the best rows are those that are best on held-out text of both.

        The public row stays, and so does that of an owner without proxies; where nobody has any, the release does.
        """
        if not any(self._proxies.values()):
            return self.world.release(experts)
        world, sizes, texts = self.world, self.world.sizes, self._router_texts
        without = (1 + index for index, owner in enumerate(world.owners) if not self._proxies[owner])
        config = {
            "start": world.release(experts),
            "sources": router_sources.sources(texts, public_share=0.5, mixed_share=sizes.router_mixed_share),
            "trained": "routers",
            "steps": sizes.router_steps,
            "learning_rate": sizes.router_learning_rate,
            "held": router_sources.held(sizes.router_hold_public),
            "kept_rows": [partition.PUBLIC_EXPERT, *without],
            "validation": {
                "text": texts / router_sources.PROXIES,
                "every_steps": max(1, sizes.router_steps // 8),
                "max_bytes": self._held_bytes,
            },
        }
        return world.run(("common.tune", "release+rt", config))

    @cached_property
    def _proxies(self) -> dict[str, list[Document]]:
        owners = self.world.owners
        if not self.world.sizes.experts_choose:
            return {owner: self.proxies(owner) for owner in owners}
        threads = torch.get_num_threads()
        try:  # one owner's expert a core: side by side they use all cores better than one does
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return dict(zip(owners, pool.map(self.proxies, owners), strict=True))
        finally:
            torch.set_num_threads(threads)  # some libraries count threads for all who call them

    @property
    def _held_bytes(self) -> int:
        return min(_HELD_BYTES, self.world.sizes.evaluated_bytes)

    @cached_property
    def _router_texts(self) -> Path:
        """What `router_texts` makes of proxies and public text: what rows are trained on, and tried on while they are.

        Only where anybody has proxies.
        """
        unseen = self.world.corpora() / UNSEEN
        chosen = {owner: [d.digest for d in found] for owner, found in self._proxies.items() if found}
        alike = self.world.sizes.held_alike
        inputs = [chosen, self._held_bytes, router_sources.MIXED, *([] if alike else ["as much as there is"])]
        folder = self.world.place("router-texts", inputs)
        router_texts.run(
            RouterTexts(pool=unseen, chosen=chosen, held_bytes=self._held_bytes, held_alike=alike, output=folder)
        )
        return folder

    @property
    def _held_text(self) -> Path:
        """Whose validation split the whole of a release is tried on: public text alone where nobody has proxies."""
        return (
            self._router_texts / router_sources.PROXIES
            if any(self._proxies.values())
            else self.world.corpora() / UNSEEN
        )

    def calibrated(self, experts: Sequence[Path]) -> Path:
        """The release with one shift and one scale for all rows, the best on the text held out of proxies."""
        world, release = self.world, self.world.release(experts)
        chosen = self._held_text
        inputs = [release.name, chosen.parent.name, self._held_bytes]
        if (kept := world.place("calibrated", inputs)).exists():
            return kept
        config = hf.load(world.base()).config
        router = PublicRouter.load(
            world.base(), num_hidden_layers=config.num_hidden_layers, hidden_size=config.hidden_size
        )
        documents = data.sample(data.read_split(chosen, "validation"), self._held_bytes)
        held = prepare(documents, Tokenizer.load(release), sequence_length=world.sizes.context)
        model, _, _ = calibrate(
            lambda: hf.load(release, device=world.sizes.device),
            router,
            lambda tried: score(tried, held, batch_size=world.sizes.batch_size).bits_per_byte,
        )
        return world.keep("calibrated", inputs, model)

    def proxies(self, owner: str) -> list[Document]:
        """Public documents that look like the owner's, likeliest first."""
        corpora, sizes = self.world.corpora(), self.world.sizes
        public = list(data.read_split(corpora / UNSEEN, "train"))
        chooser: dict[str, Any] = {}
        if sizes.experts_choose:
            expert = self.world.experts()[self.world.owners.index(owner)] / EXPERT_NAME
            chooser = {"base": self.world.base(), "expert": expert, "sequence_length": sizes.context}
        job = ProxyJob(data=corpora / owner, public=corpora / UNSEEN, count=min(sizes.num_proxies, len(public)),
                       min_score=0.5, min_accuracy=sizes.min_accuracy, output=self.world.work / f"proxies-{owner}.json",
                       seed=self.world.seed, **chooser)  # fmt: skip
        inputs = [corpora.name, job.count, job.min_accuracy]
        if job.expert is not None:
            inputs = [*inputs, job.expert.parent.name]
        folder = self.world.place(f"chosen-{owner}", inputs)
        if not folder.exists():
            try:
                found = proxies.select(job)
            except NotFoundError:  # nothing public looks like this owner's text, or cannot be told to
                found = Proxies([], [], 0.0)
            write_atomic(folder, json.dumps(asdict(found)).encode())
        return proxies.chosen_documents(public, Proxies(**json.loads(folder.read_text())))


def trial(world: Consortium, *, say: Callable[[str], None]) -> dict[str, Any]:
    """What assembling keeps, and nothing that it is compared with."""
    it = Study(world, say)
    it.own_systems()
    return {**_of_table(it, world.owners), "opt_out": {}, "top_k": {}}


def study(world: Consortium, *, is_first: bool, brief: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures of one seed, or the main rows; what takes longest is measured with the first seed alone."""
    it, owners = Study(world, say), world.owners
    everything = len(owners) <= 3
    say("public model")
    world.base()
    # What does not wait for one another is trained in one go: no core waits for the last job of a kind.
    say("experts, dense experts")
    world.jobs([*world.expert_jobs(), *world.dense_jobs()])
    experts, coordinated = it.own_systems()
    dense = it.dense_systems()
    if brief:
        return {**_of_table(it, owners), "opt_out": it.leaving(experts) if is_first else {}, "top_k": {}}
    all_data = (2, 1) if everything and is_first else (1,) if everything or is_first else ()
    ablated = it.ablated if everything and is_first else {}
    it.train_others(dense, all_data, ablated)
    it.other_systems(dense, coordinated)
    for times in reversed(all_data):
        it.all_data(times)
    if ablated:
        it.ablations(experts)
    left = it.leaving(experts)
    release = world.release(experts)
    ks = sorted({k for k in (1, 2, 3, 4, len(owners) + 1) if k <= len(owners) + 1})
    return {
        **_of_table(it, owners),
        "opt_out": left,
        "shares_per_layer": {name: world.score(release, name).shares_per_layer for name in world.measured_on},
        "top_k": {
            str(k): {name: world.score(release, name, top_k=k).bits_per_byte for name in world.measured_on} for k in ks
        },
    }


def _of_table(it: Study, owners: Sequence[str]) -> dict[str, Any]:
    """The table, and what follows from it."""
    table = it.table
    own = {owner: table[f"own: {owner}"] for owner in owners}
    return {
        "table": table,
        "cost": it.cost,
        "merge_efficiency": {n: efficiency(table, own, n) for n in ("release", "release+rt")},
        "public_cost": {n: table[n][PUBLIC] / table["public"][PUBLIC] - 1 for n in ("release", "release+rt")},
        "share_of_dense_gain": {
            o: (table["public"][o] - own[o][o]) / (table["public"][o] - table[f"dense: {o}"][o])
            for o in owners
            if f"dense: {o}" in table
        },
    }


def check_only_left(before: Path, after: Path, *, expert: int) -> None:
    """Check that `after` is `before` without one expert and its router rows, bit by bit.

    Raises:
        AssertionError: something else differs.
    """
    old, new = hf.load(before), hf.load(after)
    kept = [index for index in range(old.config.num_experts) if index != expert]
    expected = {name: tensor for name, tensor in old.state_dict().items() if partition.owner_of(name) == "shared"}
    for layer in range(old.config.num_hidden_layers):
        for place, index in enumerate(kept):
            expected[partition.router_row(layer, place)] = old.state_dict()[partition.router_row(layer, index)]
            for projection in partition.PROJECTIONS:
                name = partition.feed_forward(layer, index, projection)
                expected[partition.feed_forward(layer, place, projection)] = old.state_dict()[name]
    found = new.state_dict()
    assert expected.keys() == found.keys(), f"{after}: other tensors than {before} without expert {expert}"
    different = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    assert not different, f"{after}: {different[0]} is not as in {before}"


def efficiency(table: Mapping[str, Row], own: Mapping[str, Row], system: str) -> Row:
    """(public - system) / (public - the owner's own model), by owner's domain."""
    public = table["public"]
    return {o: (public[o] - table[system][o]) / (public[o] - row[o]) for o, row in own.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument("--sets", type=int, choices=SETS, default=4)
    parser.add_argument("--owners", nargs="*", help="folders of the data directory, instead of a number of sets")
    parser.add_argument("--data", type=Path, required=True, help="one folder a domain, and `public`")
    parser.add_argument("--work", type=Path, help="where stages are kept (default: .work/method-<preset>-<sets>)")
    parser.add_argument("--brief", action="store_true", help="the main rows alone")
    parser.add_argument("--seeds", type=int, nargs="*", help="instead of the preset's")
    parser.add_argument(
        "--try", dest="tried", nargs="*", metavar="SIZE=VALUE",
        help="measure other sizes on validation text, the release and owners' own models alone; nothing is recorded",
    )  # fmt: skip
    parser.add_argument(
        "--join", type=Path, nargs="*", default=[], help="recorded results of other seeds, to report as one"
    )
    return parser.parse_args()


def main() -> None:
    """Run and print; what cannot be done is said in one line."""
    arguments = _arguments()
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    use_cpu(threads=len(os.sched_getaffinity(0)))
    try:
        _measure(arguments)
    except ConcordError as error:
        sys.exit(f"Error: {error}")


def _measure(arguments: argparse.Namespace) -> None:
    owners = tuple(arguments.owners or SETS[arguments.sets])
    sizes, name = PRESETS[arguments.preset], f"method-{arguments.preset}-{1 + len(owners)}"
    if len(owners) >= MANY:
        sizes = replace(sizes, **PRESETS_OF_MANY[arguments.preset])
    split: data.Split = "test" if arguments.tried is None else "validation"
    sizes = changed(sizes, arguments.tried or [])
    work = arguments.work or Path(".work") / name
    name += "-tried" if arguments.tried is not None else "-brief" if arguments.brief else ""
    before = [recorded(path, benchmark=name, owners=owners, sizes=vars(sizes)) for path in arguments.join]
    stopwatch = Stopwatch(work)
    numbers = arguments.seeds or sizes.seeds
    check_apart(before, numbers)

    def announce(seed: int, what: str) -> None:
        print(f"seed {seed}: {what} ({stopwatch.lap():.0f} s)", flush=True)

    seeds = {}
    for seed in numbers:
        world = Consortium(work.resolve() / f"seed-{seed}", arguments.data.resolve(), owners, sizes, seed, split)
        say, is_first = partial(announce, seed), not before and seed == numbers[0]
        if arguments.tried is None:
            seeds[str(seed)] = study(world, is_first=is_first, brief=arguments.brief, say=say)
        else:
            seeds[str(seed)] = trial(world, say=say)
    measured = {"benchmark": name, "machine": describe(), "sizes": vars(sizes), "seeds": seeds}
    result = joined([*before, {**measured, "seconds": round(stopwatch.lap(), 1)}])
    if arguments.preset != "smoke" and arguments.tried is None:
        method_report.write(result, Path(__file__).parent / "results" / name)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
