"""A release with trained router rows: its parent's files and other rows, signed and logged like any release."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from common.errors import ConcordError
from common.files import write_atomic
from common.model.assembly import replace_rows
from common.model.expert import ROUTER_TRAINING_NAME
from common.trust.history import History
from common.trust.manifest import digest_of
from common.trust.statements import ReleasePublish, RouterTraining
from coordinator.home import Coordinator
from coordinator.releases import (
    Evaluate,
    PublishedRelease,
    clear_work,
    one_at_a_time,
    record_release,
    show_logged,
    take_back,
)
from coordinator.router_plan import RouterPlan, check_still, next_name
from coordinator.withdrawal import take_down


def training_of(plan: RouterPlan, documents: Mapping[str, int]) -> RouterTraining:
    """What the log is told; `documents` of each owner were used."""
    proxies = [plan.chosen[owner].proxies for owner in plan.owners.values() if owner in documents]
    return RouterTraining(
        version=1,
        parent=plan.parent.release,
        parent_digest=plan.parent.manifest_digest,
        campaign_id=plan.campaign_id,
        proxies=proxies,
        settings_digest=digest_of(plan.described(documents)),
    )


def find_trained(coordinator: Coordinator, plan: RouterPlan, training: RouterTraining) -> PublishedRelease | None:
    """The release that came of this very training, shown if a crash kept it from that; None where there is none."""
    with one_at_a_time(coordinator):
        show_logged(coordinator)
        coordinator.registry.publish()  # a crash may have come before a checkpoint shows it
        with coordinator.registry.history() as history:
            found = _logged(history, training)
    return None if found is None else _published(coordinator, plan, found, is_new=False)


def _logged(history: History, training: RouterTraining) -> ReleasePublish | None:
    standing = (each.statement for each in history.releases.values() if each.withdrawn_index is None)
    return next((statement for statement in standing if statement.router_training == training), None)


def publish_trained(
    coordinator: Coordinator,
    plan: RouterPlan,
    documents: Mapping[str, int],
    *,
    trained: Path,
    evaluate: Evaluate | None,
) -> PublishedRelease:
    """Make, sign and log the release whose rows are those of the model in `trained`, or find that it was.

    Raises:
        ConflictError: another release is being made, or was assembled meanwhile.
        ConsentError: an owner opted out while rows were trained.
    """
    with one_at_a_time(coordinator):
        show_logged(coordinator)
        try:
            return _publish(coordinator, plan, documents, trained, evaluate)
        finally:
            take_down(coordinator)  # what was withdrawn meanwhile


def _publish(
    coordinator: Coordinator, plan: RouterPlan, documents: Mapping[str, int], trained: Path, evaluate: Evaluate | None
) -> PublishedRelease:
    training, parent, publication = training_of(plan, documents), plan.parent, coordinator.publication
    with coordinator.registry.history() as history:
        name, earlier = next_name(history), _logged(history, training)
    if earlier is not None:
        return _published(coordinator, plan, earlier, is_new=False)
    check_still(coordinator, plan)
    staging = clear_work(coordinator) / name
    slots = {each.slot for each in training.proxies}
    replace_rows(publication.release(parent.release), trained, slots=slots, output=staging)
    write_atomic(staging / ROUTER_TRAINING_NAME, plan.described(documents))
    if evaluate is not None:
        evaluate(staging)
    check_still(coordinator, plan)  # before anything of it is published
    manifest = publication.add_objects(staging, ours=True)
    try:
        statement = record_release(
            coordinator,
            lambda: check_still(coordinator, plan),
            release=name,
            line=parent.line,
            base_digest=parent.base_digest,
            manifest_digest=manifest.digest,
            experts=parent.experts,
            num_experts_per_tok=parent.num_experts_per_tok,
            not_after=parent.not_after,
            router_training=training,
        )
    except ConcordError:
        take_back(coordinator, staging)
        raise
    publication.show(publication.release(name), manifest_digest=manifest.digest)
    shutil.rmtree(coordinator.home.work, ignore_errors=True)
    return _published(coordinator, plan, statement, is_new=True)


def _published(
    coordinator: Coordinator, plan: RouterPlan, statement: ReleasePublish, *, is_new: bool
) -> PublishedRelease:
    directory = coordinator.publication.release(statement.release)
    return PublishedRelease(statement, directory, plan.owners, {}, is_new)
