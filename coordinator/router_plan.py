"""What a training of router rows is made of: a release, what its owners chose in a campaign, and settings.

All that decides the result is told before anything is trained, so that the same command is the same training: it goes
on where an earlier one ended, or finds the release that came of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from common.config import Settings
from common.errors import ConsentError, NotFoundError, VerificationError
from common.trust import strict_json
from common.trust.history import History
from common.trust.manifest import Manifest, digest_of
from common.trust.router_rules import check_campaign, check_parent
from common.trust.rules import check_released
from common.trust.statements import ProxySet, ReleasePublish
from coordinator.attachments import parse_proxies
from coordinator.home import Coordinator
from coordinator.releases import find_release

_AGAIN = "make a new release and train that one's rows: concord coordinator release"


class RouterSettings(Settings):
    """How rows are trained. Defaults are for small models with rows that are log density ratios; the paper's 7B, with
    smaller rows, took 5B tokens at 2e-3."""

    steps: Annotated[int, Field(ge=1)] = 200
    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 2e-2
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 16
    sequence_length: Annotated[int, Field(ge=2)] = 256
    public_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of the sequences that are whole documents; the others of these are of documents that owners chose."""
    mixed_share: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """Of all sequences: documents made of paragraphs of chosen and public ones, where there are any."""
    hold_public: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.1
    """How firmly the routing of whole public documents stays what it is: weight of a nat of divergence from it."""
    max_documents: Annotated[int, Field(ge=1)] | None = None
    """Of each owner, the likeliest ones; all by default."""
    every_steps: Annotated[int, Field(ge=1)] = 20
    """How often rows are tried on held-out public text."""
    patience: Annotated[int, Field(ge=1)] = 5
    """After so many tries in a row that were no better, training ends."""
    validation_bytes: Annotated[int, Field(ge=1)] = 200_000
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 2
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one owner chose: where the log says so, and the documents, the likeliest first."""

    proxies: ProxySet
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """A training that may be done."""

    parent: ReleasePublish
    owners: Mapping[int, str]
    """By slot, everybody in the release."""
    campaign_id: str
    pool: str
    chosen: Mapping[str, Chosen]
    """By owner in the release that chose documents."""
    settings: RouterSettings
    public: Path | None
    public_digest: str | None
    """Of the text that is mixed in, where it is not the pool."""

    @property
    def key(self) -> str:
        """What all of it is known by in this home."""
        lists = {owner: chosen.proxies.digest for owner, chosen in self.chosen.items()}
        parts = [self.parent.manifest_digest, self.campaign_id, lists, self.public_digest, self.settings.model_dump()]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def described(self, documents: Mapping[str, int]) -> bytes:
        """The file that a release says all of this in; `documents` were used of each owner."""
        return strict_json.canonical(
            {
                "parent": self.parent.release,
                "parent_digest": self.parent.manifest_digest,
                "campaign_id": self.campaign_id,
                "pool": self.pool,
                "public": self.public_digest,
                "proxies": {
                    owner: {"digest": self.chosen[owner].proxies.digest, "documents": count}
                    for owner, count in documents.items()
                },
                "settings": self.settings.model_dump(mode="json"),
            }
        )


def plan_training(
    coordinator: Coordinator, *, release: str, campaign_id: str, settings: RouterSettings, public: Path | None
) -> RouterPlan:
    """What is trained on what, if it may be.

    Raises:
        NotFoundError: no such release or campaign, it was withdrawn, or nobody in the release chose documents.
        ConflictError: a newer release stands, or the campaign asked something else.
        ConsentError: an owner in the release left since, or its consent lapsed.
    """
    with coordinator.registry.history() as history:
        find_release(history, release)
        parent = check_parent(history, release).statement
        pool = check_campaign(history, campaign_id).pool.digest
        check_consents(history, parent)
        grants = history.grants_at(expert.grant_index for expert in parent.experts)
        owners = {slot: grant.party for slot, grant in enumerate(grants, start=1)}
        chosen = {
            owner: _chosen(coordinator, history, campaign_id, slot, owner)
            for slot, owner in owners.items()
            if (answer := history.answers.get((campaign_id, owner))) is not None and answer.is_result
        }
    if not chosen:
        raise NotFoundError(
            f"nobody in {release} chose documents in campaign {campaign_id}, so there is no row to train: wait for "
            f"answers (concord coordinator campaign show {campaign_id}) or ask anew"
        )
    digest = None if public is None else Manifest.of_directory(public).digest
    return RouterPlan(parent, owners, campaign_id, pool, chosen, settings, public, digest)


def _chosen(coordinator: Coordinator, history: History, campaign_id: str, slot: int, owner: str) -> Chosen:
    answer = history.answers[campaign_id, owner]
    assert answer.attachment is not None, "an answer to select-proxy names one"
    data = coordinator.campaigns.files.answer(campaign_id=campaign_id, party=owner)
    if digest_of(data) != answer.attachment:
        raise VerificationError(
            f"what is kept of the answer of {owner} is not {answer.attachment}, which the log names; bring "
            f"{coordinator.home.campaigns} back from a backup"
        )
    found = parse_proxies(data)
    ranked = sorted(zip(found.scores, found.ids, strict=True), key=lambda pair: -pair[0])
    proxies = ProxySet(slot=slot, answer_index=answer.index, digest=answer.attachment)
    return Chosen(proxies, tuple(name for _, name in ranked))


def next_name(history: History) -> str:
    """What the next release is called."""
    return f"release-{len(history.releases) + 1}"


def check_consents(history: History, parent: ReleasePublish) -> int:
    """The log's size, if everybody in a release may be in the next one, too, with the same expert.

    Raises:
        ConsentError: one may not.
    """
    try:
        for expert in parent.experts:
            check_released(
                history,
                expert,
                release=next_name(history),
                line=parent.line,
                base_digest=parent.base_digest,
                at=datetime.now(UTC),
            )
    except ConsentError as error:
        raise ConsentError(f"the rows of {parent.release} may not be trained: {error}; {_AGAIN}") from error
    return history.size


def check_still(coordinator: Coordinator, plan: RouterPlan) -> int:
    """The log's size, if the training may still be published. Raises as `plan_training`."""
    with coordinator.registry.history() as history:
        check_parent(history, plan.parent.release)
        return check_consents(history, plan.parent)
