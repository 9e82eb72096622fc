"""Campaigns for tests: a consortium whose models read and write, three owners with text, and daemons of theirs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from common.job import StopSignal
from common.trust.campaign_statements import CampaignDefine, Evaluate
from coordinator import pretrain
from coordinator.campaign_subjects import model_of
from coordinator.releases import publish_base
from owner_client.campaign_worker import CampaignWorker
from tests.federation import THREE, Federation, Owner, running_federation
from tests.training.small_jobs import pretrain_config, write_text

LIMIT_S = 120
OWN = {"archive": 1, "hospital": 2, "library": 3}
"""By owner, the seed of its text."""


class Quiet:
    """Hears what is reported, and shows nothing."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, text: str) -> None:
        self.said.append(text)

    def warning(self, text: str) -> None:
        self.said.append(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...

    def progress(self, task: str, *, done: float, total: float, note: str = "") -> None: ...

    def result(self, fields: Any) -> None: ...


def write_small_base(path: Path, *, steps: int = 3) -> Path:
    """A public model with a tokenizer, trained for a moment; its text beside it."""
    write_text(path / "public", "public")
    config = pretrain_config(path, path / "base", steps=steps)
    pretrain.run(pretrain.PretrainJob.model_validate(config), StopSignal())
    return path / "base"


@contextmanager
def asking(path: Path, base: Path) -> Iterator[Federation]:
    """A consortium over that base; three owners with text of their own accept every kind of campaign."""
    with running_federation(path) as federation:
        publish_base(federation.coordinator, base)
        for name in THREE:
            enrol(federation, name, public=base.parent / "public")
        yield federation


def enrol(federation: Federation, name: str, *, public: Path, **settings: str) -> Owner:
    """An owner with text, and settings as TOML has them."""
    owner = federation.enrol(name)
    text = write_text(federation.path / "text" / name, "own", num_documents=80, seed=OWN.get(name, 9))
    lines = {"accept": '["evaluate", "select-proxy", "train", "extraction"]', "min_documents": "2", **settings}
    campaigns = "".join(f"{key} = {value}\n" for key, value in lines.items())
    file = owner.home.settings_file
    head = file.read_text() + f'data = "{text}"\npublic = "{public}"\npoll_s = 0.1\n'
    file.write_text(f"{head}[campaigns]\n{campaigns}")
    return owner


def ask_evaluation(
    federation: Federation, *, model: str = "base-0", max_bytes: int | None = None, **changes: Any
) -> CampaignDefine:
    """Ask how good a model is."""
    optional = {} if max_bytes is None else {"max_bytes": max_bytes}
    parameters = Evaluate(kind="evaluate", model=model_of(federation.coordinator, model), **optional)
    recorded = federation.coordinator.campaigns.define(parameters, **{"min_documents": 2, **changes})
    assert isinstance(recorded.statement, CampaignDefine)
    return recorded.statement


@contextmanager
def working(*owners: Owner) -> Iterator[list[Quiet]]:
    """These owners' workers while the block runs."""
    reporters = [Quiet() for _ in owners]
    with ExitStack() as stack:
        for owner, reporter in zip(owners, reporters, strict=True):
            stack.enter_context(CampaignWorker(owner.home, reporter=reporter, train=lambda: None))
        yield reporters


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Wait until it does."""
    end = monotonic() + LIMIT_S
    while not holds():
        assert monotonic() < end, f"waited {LIMIT_S} s for {what}"
        sleep(0.05)


def is_closed(federation: Federation, campaign_id: str) -> bool:
    """Whether a campaign is over."""
    return federation.coordinator.campaigns.find(campaign_id).closed_index is not None
