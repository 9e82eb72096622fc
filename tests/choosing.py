"""A consortium whose owners chose documents of a public pool, for tests of what router rows are trained on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.data import read_split
from common.model.expert import read_config
from common.trust import strict_json
from common.trust.campaign_statements import CampaignDefine, CampaignResult, SelectProxy, Train
from common.trust.manifest import digest_of
from coordinator.campaign_subjects import base_digest_of, pool_of
from coordinator.releases import publish_base
from tests.federation import THREE, Federation, expert_weights, running_federation
from tests.training.small_jobs import write_text

OPTIONS = ("--sequence-length", "32", "--batch-size", "4", "--steps", "12", "--every-steps", "4", "--lr", "0.05",
           "--threads", "1")  # fmt: skip
"""A training that is over in a moment, and helps: experts of noise do best where they are asked least."""
UNKNOWN = "f" * 64


@contextmanager
def released(path: Path, base: Path) -> Iterator[Federation]:
    """Three owners over that base, and a release that holds an expert of each."""
    with running_federation(path) as federation:
        publish_base(federation.coordinator, base)
        for seed, name in enumerate(THREE, start=1):
            owner = federation.enrol(name)
            owner.consent()
            owner.put_expert(expert_weights(seed, sizes=read_config(base)))
            owner.submit()
        federation.release()
        yield federation


def write_pool(path: Path) -> Path:
    """Public text of two kinds."""
    write_text(path, "public")
    with (path / "train.jsonl").open("a") as file:
        more = write_text(path.with_name(f"{path.name}-own"), "own", seed=77)
        file.write((more / "train.jsonl").read_text())
    return path


def ask_for_documents(federation: Federation, pool: Path) -> CampaignDefine:
    """Ask everybody."""
    wanted = SelectProxy(kind="select-proxy", pool=pool_of(federation.coordinator, pool), count=40, min_accuracy=0.5)
    asked = federation.coordinator.campaigns.define(wanted, min_documents=2).statement
    assert isinstance(asked, CampaignDefine)
    return asked


def ask_to_train(federation: Federation) -> CampaignDefine:
    """Ask everybody for something else."""
    wanted = Train(kind="train", base_digest=base_digest_of(federation.coordinator))
    asked = federation.coordinator.campaigns.define(wanted).statement
    assert isinstance(asked, CampaignDefine)
    return asked


def ids_of(pool: Path, word: str) -> list[str]:
    """Documents of the pool with that word, as owners name them."""
    return [document.digest for document in read_split(pool, "train") if word in document.text]


def choose(federation: Federation, name: str, asked: CampaignDefine, ids: Sequence[str]) -> None:
    """An owner's answer, as its worker would send it."""
    scores = [round(1 - place / 1000, 6) for place in range(len(ids))]
    data = strict_json.canonical({"ids": list(ids), "scores": scores})
    with federation.owner(name).member() as member, member.chain.turn():
        said = member.chain.say(
            CampaignResult,
            campaign_id=asked.record_id,
            subject=asked.subject,
            figures=[{"name": "classifier", "measure": "told_apart", "value": 0.99, "documents": 9}],
            attachment={"digest": digest_of(data), "size": len(data)},
        )
        receipt = federation.coordinator.campaigns.receive(name, said.note, data)
        member.chain.acknowledge(said, receipt=receipt)
