"""The rules of releases whose router rows were trained: what they may be made from, and on whose word."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.errors import ConflictError, ConsentError, MalformedError, NotFoundError
from common.trust.campaign_statements import SelectProxy
from common.trust.state import Release
from common.trust.statements import ProxySet, ReleasePublish, RouterTraining

if TYPE_CHECKING:
    from common.trust.history import History


def check_training(statement: ReleasePublish, history: "History", *, owners: Sequence[str]) -> None:
    """A release with trained rows holds what its parent holds, and rows are trained for owners who chose documents.

    `owners` are those of its experts, by slot from 1; that each consents is checked before.
    """
    training = statement.router_training
    if training is None:
        return
    parent = check_parent(history, training.parent).statement
    if training.parent_digest != parent.manifest_digest:
        raise ConflictError(
            f"{statement.release} names {training.parent} as {training.parent_digest}; the log names it "
            f"{parent.manifest_digest}"
        )
    _check_same(statement, parent)
    check_campaign(history, training.campaign_id)
    slots = [proxies.slot for proxies in training.proxies]
    if slots != sorted(set(slots)):
        raise MalformedError(f"{statement.release} names the owners of trained rows out of order, or one twice")
    for proxies in training.proxies:
        if proxies.slot > len(owners):
            raise MalformedError(f"{statement.release} has a trained row for slot {proxies.slot}, where no expert is")
        _check_proxies(proxies, owners[proxies.slot - 1], training, history)


def check_parent(history: "History", name: str) -> Release:
    """The release of that name, if its rows may be trained now: rows are trained from what owners contributed, over
    the newest release that stands.

    Raises:
        NotFoundError: there is none.
        ConflictError: it was withdrawn, its own rows are trained ones, or a newer one was assembled since.
    """
    parent = history.releases.get(name)
    if parent is None:
        raise NotFoundError(f"there is no release {name[:80]!r} whose rows could be trained")
    if parent.withdrawn_index is not None:
        raise ConflictError(
            f"{name} was withdrawn by entry {parent.withdrawn_index}; train the rows of the newest release that stands"
        )
    if parent.statement.router_training is not None:
        earlier = parent.statement.router_training.parent
        raise ConflictError(
            f"the rows of {name} were trained already; train those of {earlier}, which it was made from"
        )
    newest = [
        each.statement.release
        for each in history.releases.values()
        if each.withdrawn_index is None and each.statement.router_training is None
    ][-1]
    if newest != name:
        raise ConflictError(f"{name} is not the newest release; train the rows of {newest}")
    return parent


def _check_same(statement: ReleasePublish, parent: ReleasePublish) -> None:
    """It is over the parent's base, with the parent's experts in the parent's slots."""
    for field in ("line", "base_digest", "num_experts_per_tok"):
        if getattr(statement, field) != getattr(parent, field):
            raise ConflictError(
                f"{statement.release} has {field} {getattr(statement, field)}; {parent.release}, which it was trained "
                f"from, has {getattr(parent, field)}"
            )
    if statement.experts != parent.experts:
        raise ConflictError(
            f"{statement.release} does not hold the same experts in the same slots as {parent.release}, which it was "
            "trained from"
        )


def check_campaign(history: "History", campaign_id: str) -> SelectProxy:
    """What was asked, if it was which public documents look like an owner's.

    Raises:
        NotFoundError: there is no such campaign.
        ConflictError: it asked something else.
    """
    campaign = history.campaigns.get(campaign_id)
    if campaign is None:
        raise NotFoundError(f"campaign {campaign_id} is not in the log")
    asked = campaign.statement.parameters
    if not isinstance(asked, SelectProxy):
        raise ConflictError(
            f"campaign {campaign_id} is of kind {asked.kind}, not select-proxy; ask for documents with: concord "
            "coordinator campaign define select-proxy"
        )
    return asked


def _check_proxies(proxies: ProxySet, owner: str, training: RouterTraining, history: "History") -> None:
    """An owner chose these documents itself: its own answer names them."""
    answer = history.answers.get((training.campaign_id, owner))
    if answer is None or not answer.is_result:
        raise ConsentError(f"{owner} chose no documents in campaign {training.campaign_id}; its row stays as it is")
    if (answer.index, answer.attachment) != (proxies.answer_index, proxies.digest):
        raise ConsentError(f"{proxies.digest} (entry {proxies.answer_index}) is not what {owner} chose in campaign "
                           f"{training.campaign_id}")  # fmt: skip
