"""Do owners find public documents that are like their own, and does training router rows on them help the release?

    python -m benchmarks.campaign_proxies --data DIR [--work DIR]       # the last line is one JSON object

`DIR` holds a folder of text a domain, one of them called public. A share of each owner's documents counts as public, as
web text holds a little of everything, and is in no owner's text. The public model is trained on six in ten of the
public documents; the others are the pool. A campaign asks each owner which documents of the pool look like its own.
Which are is known here: precision is the share of the chosen ones that are of the owner's domain; beside it stands what
the owner said of its classifier, tried on text held out at home. Then router rows are trained on what was chosen. What
left each owner meanwhile is its ledger's word.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.campaigns import ask, consortium, daemons, set_owner
from benchmarks.machine import describe
from common.data import SPLITS, Document, read_split, set_public_aside, set_unseen_aside, write_documents
from common.trust.campaign_statements import SelectProxy
from coordinator.attachments import parse_proxies
from coordinator.campaign_subjects import pool_of
from coordinator.home import open_home
from deploy.demo import PUBLIC, Stage
from deploy.recipe import EXPERT, PRETRAIN
from owner_client.config import OwnerHome
from owner_client.ledger import ledger_at

PUBLIC_SHARE: Final = 0.1
UNSEEN_SHARE: Final = 0.4
MIN_ACCURACY: Final = 0.8
"""Of owners' classifiers. Their negatives are the pool, which holds some of each owner's own kind: they are right less
often than against text that holds none."""
PRETRAINING: Final[Mapping[str, float]] = {
    **PRETRAIN, "steps": 1600, "batch_size": 16, "sequence_length": 128, "learning_rate": 4e-3,
    "unseen_share": UNSEEN_SHARE,
}  # fmt: skip
TRAINING: Final[Mapping[str, float]] = {
    **EXPERT, "steps": 500, "batch_size": 16, "sequence_length": 128, "learning_rate": 6e-3, "router_prior": 0.4,
}  # fmt: skip


def write_text(source: Path, folder: Path, owners: Sequence[str]) -> dict[str, str]:
    """Every owner's own text, the public text with a share of all domains, and the pool; by document, its domain."""
    public: dict[str, list[Document]] = {split: list(read_split(source / PUBLIC, split)) for split in SPLITS}
    domains = {each.digest: PUBLIC for split in SPLITS for each in public[split]}
    for owner in owners:
        (folder / owner).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            documents: Sequence[Document] = read_split(source / owner, split)
            if split == "train":
                shared, documents = set_public_aside(documents, share=PUBLIC_SHARE)
                public["train"] += shared
                domains |= {each.digest: owner for each in shared}
            write_documents(folder / owner / f"{split}.jsonl", documents)
    (folder / PUBLIC).mkdir(parents=True, exist_ok=True)
    for name, found in public.items():
        write_documents(folder / PUBLIC / f"{name}.jsonl", _by_digest(found))
    return domains


def _by_digest(documents: Iterable[Document]) -> list[Document]:
    """In an order that has nothing to do with domains."""
    return sorted(documents, key=lambda each: each.digest)


def write_pool(text: Path, folder: Path) -> dict[str, Document]:
    """The public documents that the public model was not trained on."""
    unseen, _ = set_unseen_aside(read_split(text / PUBLIC, "train"), share=UNSEEN_SHARE)
    folder.mkdir(exist_ok=True)
    write_documents(folder / "train.jsonl", unseen)
    for split in ("validation", "test"):  # what a classifier is tried on holds nothing of the owners' domains
        shutil.copyfile(text / PUBLIC / f"{split}.jsonl", folder / f"{split}.jsonl")
    return {each.digest: each for each in unseen}


def choose(stage: Stage, pool: Path, *, count: int) -> tuple[str, dict[str, Any]]:
    """Ask owners for documents of the pool; the campaign's id, and by owner its choice and its classifier's figure."""
    for owner in stage.owners:
        set_owner(stage, owner, accept="select-proxy", flower=False)
    with daemons(stage, flower=False), open_home(stage.home) as coordinator:
        wanted = SelectProxy(
            kind="select-proxy", pool=pool_of(coordinator, pool), count=count, min_accuracy=MIN_ACCURACY
        )  # fmt: skip
        campaign_id, seconds = ask(coordinator, wanted)
        print(f"owners chose in {seconds:.0f} s", flush=True)
        found = {}
        for owner, result in coordinator.campaigns.results(campaign_id).items():
            chosen = parse_proxies(coordinator.campaigns.files.answer(campaign_id=campaign_id, party=owner))
            found[owner] = {"ids": chosen.ids, "told_apart": result.figures[0].value}
    return campaign_id, found


def precision(chosen: Mapping[str, Any], domains: Mapping[str, str], pool: Iterable[str]) -> dict[str, Any]:
    """By owner: how many documents of its domain the pool has, how many it chose, and the share of its domain."""
    there = [domains[each] for each in pool]
    return {
        owner: {
            "in_pool": there.count(owner),
            "chosen": len(each["ids"]),
            "precision": round(sum(domains[one] == owner for one in each["ids"]) / len(each["ids"]), 4),
            "classifier_held_out": round(each["told_apart"], 4),
        }
        for owner, each in chosen.items()
    }


def left(stage: Stage) -> dict[str, dict[str, int]]:
    """By owner, bytes of each kind of thing that its ledger says have left."""
    found: dict[str, dict[str, int]] = {}
    for owner in stage.owners:
        sums = found.setdefault(owner, {})
        for line in ledger_at(OwnerHome(stage.owner_home(owner)).ledger).lines():
            name = f"{line['kind']} {line['name']}"
            sums[name] = sums.get(name, 0) + int(str(line["size_bytes"]))
    return found


def gained(stage: Stage, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Bits per byte of both releases, on every domain and on average over owners'."""
    rows = {"release": _scores(before), "release+rt": _scores(after)}
    average = {name: sum(row[owner] for owner in stage.owners) / len(stage.owners) for name, row in rows.items()}
    return {
        "bits_per_byte": rows,
        "average": {name: round(value, 5) for name, value in average.items()},
        "gain_percent": round(100 * (1 - average["release+rt"] / average["release"]), 3),
    }


def _scores(made: Mapping[str, Any]) -> dict[str, float]:
    found = json.loads((Path(str(made["directory"])) / "evaluation.json").read_text())
    return {domain: round(value, 4) for domain, value in found["bits_per_byte"].items()}


def _more(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return {name: size - before.get(name, 0) for name, size in now.items() if size != before.get(name)}


def measure(stage: Stage, domains: Mapping[str, str]) -> dict[str, Any]:
    """Choose, judge the choice, train rows, and compare."""
    pool_folder = stage.plan.workdir / "pool"
    pool = write_pool(stage.text, pool_folder)
    there = [domains[each] for each in pool]
    sent = left(stage)
    count = 3 * min(there.count(owner) for owner in stage.owners) // 4
    campaign_id, chosen = choose(stage, pool_folder, count=count)
    now = left(stage)
    before = {"directory": stage.public / "releases" / "release-1"}
    after = stage.do(
        "train-routers", "coordinator", "train-routers", "release-1", "--campaign", campaign_id, "--home", stage.home,
        "--sequence-length", "128", "--evaluate", stage.plan.workdir / "held-out", "--max-bytes", "50000",
    )  # fmt: skip
    return {
        "pool_documents": len(pool),
        "proxies": precision(chosen, domains, pool),
        **gained(stage, before, after),
        "left_owners_meanwhile_bytes": {owner: _more(sent[owner], now[owner]) for owner in stage.owners},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--owners", nargs="+", default=["code", "math", "news"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="an earlier run in the same place goes on; by default nowhere after")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = (asked.work or Path(scratch) / "work").absolute()
        domains = write_text(asked.data, work / "text", asked.owners)
        recipe = {"pretraining": PRETRAINING, "training": TRAINING}
        stage = consortium(work / "consortium", text=work / "text", owners=asked.owners, seed=asked.seed, **recipe)
        found = measure(stage, domains)
    print(json.dumps({"benchmark": "campaign_proxies", "machine": describe(), **found}))


if __name__ == "__main__":
    main()
