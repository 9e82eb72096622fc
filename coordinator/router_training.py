"""Training the router rows of a release on what its owners chose of a public pool, as a new release.

Texts and rows are made by jobs of their own in `router-training/RELEASE/KEY` of the home, without the release lock:
that may take hours, and what an owner takes back meanwhile is taken down at once. Only publishing holds it. Cut off
anywhere, the same command goes on.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.console import Reporter, job_progress
from common.errors import ConcordError, ConflictError, ConsentError, NotFoundError, TooLargeError
from common.files import exclusive, make_private_directory
from common.jobs import run_job
from common.model.expert import read_config
from common.model.partition import PUBLIC_EXPERT
from common.trust import strict_json
from common.trust.statements import MAX_LIST_BYTES, RouterTraining
from coordinator.home import Coordinator
from coordinator.releases import Evaluate, PublishedRelease
from coordinator.router_plan import RouterPlan
from coordinator.router_release import find_trained, publish_trained, training_of
from coordinator.router_sources import PROXIES, held, sources

_RECORD: Final = "training.json"
_ROOM_BYTES: Final = 100
"""For what is longer in the next statement than in the parent's: numbers and the name."""


@dataclass(frozen=True, slots=True)
class TrainedRelease:
    """A release whose rows were trained: for whom, on how many documents, and whose rows stayed."""

    published: PublishedRelease
    documents: Mapping[str, int]
    missing: Mapping[str, int]
    """By owner: documents that it named and the pool has not."""
    kept: tuple[str, ...]


def train_routers(
    coordinator: Coordinator, plan: RouterPlan, *, evaluate: Evaluate | None, reporter: Reporter
) -> TrainedRelease:
    """Train, sign, log and publish; again, it is found again.

    Raises:
        NotFoundError: the pool is not in this home, or nothing that was chosen is in it.
        ConflictError: no rows were better than the release's own, or another training or release is being made.
        ConsentError: an owner opted out meanwhile.
        JobFailedError: a job failed; the message is what it said.
    """
    home = coordinator.home.router_training
    make_private_directory(home)
    with exclusive(home / "lock", what=f"{home} (training router rows)"):
        _clear_others(home, plan)
        folder = home / plan.parent.release / plan.key
        folder.mkdir(parents=True, exist_ok=True)
        try:
            documents, missing = _texts(coordinator, plan, folder)
            training = training_of(plan, documents)
            _check_fits(plan, training)
            published = find_trained(coordinator, plan, training)
            if published is None:
                trained = _train(coordinator, plan, folder, documents, reporter)
                published = publish_trained(coordinator, plan, documents, trained=trained, evaluate=evaluate)
        except ConsentError:
            shutil.rmtree(folder, ignore_errors=True)  # it can come to nothing any more, and holds others' experts
            raise
        except ConcordError:
            _check_stands(coordinator, plan.parent.release, folder)
            raise
        shutil.rmtree(folder)
    kept = tuple(owner for owner in plan.owners.values() if owner not in documents)
    return TrainedRelease(published, documents, missing, kept)


def _clear_others(home: Path, plan: RouterPlan) -> None:
    """What was begun over earlier releases can come to nothing any more, and what was begun otherwise is given up: each
    holds a whole model."""
    for path in home.iterdir():
        if path.is_dir() and path.name != plan.parent.release:
            shutil.rmtree(path)
    for path in (home / plan.parent.release).glob("*"):
        if path.name != plan.key:
            shutil.rmtree(path)


def _check_stands(coordinator: Coordinator, release: str, folder: Path) -> None:
    """Whether the release whose rows are trained stands; else what was made of it goes at once.

    Raises:
        ConflictError: it was withdrawn.
    """
    with coordinator.registry.history() as history:
        withdrawn = history.releases[release].withdrawn_index
    if withdrawn is not None:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConflictError(
            f"{release} was withdrawn by entry {withdrawn} of the log while its rows were trained, and all that was "
            "made of it here is gone; make the next release first: concord coordinator release"
        )


def _check_fits(plan: RouterPlan, training: RouterTraining) -> None:
    """All of it can be said in one statement; else that would be found out once rows are trained."""
    size = len(plan.parent.text) + len(strict_json.canonical(training.model_dump(mode="json"))) + _ROOM_BYTES
    if size > MAX_LIST_BYTES:
        raise TooLargeError(
            f"the statement of a release with rows of {len(training.proxies)} of {len(plan.owners)} owners would take "
            f"{size} bytes; at most {MAX_LIST_BYTES} are allowed: ask fewer owners with --owner"
        )


def _texts(coordinator: Coordinator, plan: RouterPlan, folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The texts in `folder`; by owner, how many documents are used, where any are, and how many are not in the pool."""
    try:
        coordinator.campaigns.files.lay_out(plan.pool, folder / "pool")
    except NotFoundError as error:
        raise NotFoundError(
            f"the pool of campaign {plan.campaign_id} is not in this home any more ({error}); bring "
            f"{coordinator.home.campaigns} back from a backup, or ask anew: concord coordinator campaign define "
            "select-proxy"
        ) from error
    job = {
        "pool": folder / "pool",
        "public": plan.public,
        "chosen": {owner: list(chosen.ids) for owner, chosen in plan.chosen.items()},
        "max_documents": plan.settings.max_documents,
        "held_bytes": plan.settings.validation_bytes,
        "output": folder / "texts",
    }
    run_job("coordinator.router_texts", job, config_path=folder / "texts.job.json", on_event=lambda event: None)
    counts = json.loads((folder / "texts" / "texts.json").read_text())["owners"]
    used = {owner: count["documents"] for owner, count in counts.items() if count["documents"]}
    return used, {owner: count["missing"] for owner, count in counts.items() if count["missing"]}


def _train(
    coordinator: Coordinator, plan: RouterPlan, folder: Path, documents: Mapping[str, int], reporter: Reporter
) -> Path:
    """A model with the rows trained; nothing else of it is used."""
    settings, texts, output = plan.settings, folder / "texts", folder / "trained"
    start = coordinator.publication.release(plan.parent.release)
    longest = read_config(start).max_position_embeddings
    if settings.sequence_length > longest:
        raise ConflictError(
            f"{plan.parent.release} reads {longest} tokens, not {settings.sequence_length}; choose --sequence-length"
        )
    kept = [PUBLIC_EXPERT, *(slot for slot, owner in plan.owners.items() if owner not in documents)]
    job = {
        **settings.model_dump(include={"steps", "learning_rate", "batch_size", "sequence_length", "seed", "threads",
                                       "device"}),
        "start": start,
        "output": output,
        "trained": "routers",
        "kept_rows": kept,
        "sources": sources(texts, public_share=settings.public_share, mixed_share=settings.mixed_share),
        "held": held(settings.hold_public),
        "validation": {
            "text": texts / PROXIES,
            "every_steps": settings.every_steps,
            "patience": settings.patience,
            "max_bytes": settings.validation_bytes,
        },
    }  # fmt: skip
    chosen = ", ".join(f"{count} of {owner}" for owner, count in documents.items())
    reporter.step(f"training router rows for up to {settings.steps} steps; documents chosen: {chosen}")
    run_job("common.tune", job, config_path=folder / "train.job.json", on_event=job_progress(reporter, "router rows"))
    best = json.loads((output / _RECORD).read_text())["best"]
    if not best["step"]:
        shutil.rmtree(folder)
        raise ConflictError(
            f"no rows were better on held-out public text than those of {plan.parent.release}, so there is nothing to "
            "release; try another --lr or more --steps, or ask for more documents"
        )
    reporter.step(f"best after {best['step']} steps: {best['bits_per_byte']:.4f} bits per byte on held-out public text")
    return output
