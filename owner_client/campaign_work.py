"""Doing what a campaign asks: fetch what it is about, run a job in a subprocess, make the answer of what that found."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import Any, Final

from common.errors import ConsentError, NotFoundError
from common.jobs import JobEvent, RunJob, run_job
from common.trust.campaign_statements import CampaignDefine, CampaignModel, Evaluate, Extraction, SelectProxy, Train
from common.trust.statement_fields import FileDigest
from owner_client.campaign_answer import Answer, make_answer
from owner_client.campaign_fetch import fetch_named
from owner_client.campaign_folder import CampaignFolder
from owner_client.commitment import commitment_key
from owner_client.fetching import OnBytes
from owner_client.membership import Membership
from owner_client.participation import fetch_base, has_left, trained_expert

_FOUND: Final = "found.json"
_JOB: Final = "job.json"


def find_answer(
    member: Membership,
    folder: CampaignFolder,
    *,
    train: Callable[[], object],
    on_bytes: OnBytes,
    on_event: Callable[[JobEvent], None],
    stop: Event,
    run: RunJob = run_job,
) -> Answer:
    """Do what is asked and keep the answer in its folder. Interrupted, it is done again; `train` has the daemon train.

    Raises:
        ConcordError: it cannot be done here; the message says why.
        KeyboardInterrupt: `stop` was set.
    """
    asked = folder.asked
    if isinstance(asked.parameters, Train):
        _check_trains(member)
        train()
        found: Mapping[str, Any] = {"figures": []}
    else:
        module, job = _job_for(member, asked, on_bytes=on_bytes)
        output = folder.path / _FOUND
        run(module, {**job, "output": output}, config_path=folder.path / _JOB, on_event=on_event, stop=stop)
        found = json.loads(output.read_bytes())
    answer = make_answer(found, asked, member.settings.campaigns)
    if answer.attachment:
        folder.write("attachment", answer.attachment)
    folder.write("answer.json", answer.content)
    for name in (_FOUND, _JOB):
        folder.forget(name)
    return answer


def _check_trains(member: Membership) -> None:
    """Whether the daemon would train and submit when it is told to: nobody may say that it was begun otherwise.

    Raises:
        ConsentError: it would not.
    """
    settings = member.settings
    if has_left(member.chain):
        raise ConsentError("this owner has opted out; nothing is trained")
    if settings.consent is None:
        raise ConsentError(
            f"the daemon trains where it may consent: set [consent] in {member.home.settings_file} and accept again, "
            "or train and submit yourself and decline"
        )
    if settings.data is None or settings.public is None:
        raise NotFoundError(f"no text to train on: set data and public in {member.home.settings_file}")


def _job_for(member: Membership, asked: CampaignDefine, *, on_bytes: OnBytes) -> tuple[str, dict[str, object]]:
    """The job's module and its configuration, everything it needs being here."""
    settings, key = member.settings.campaigns, commitment_key(member.home.commitment_key)
    match asked.parameters:
        case Evaluate(model=model, max_bytes=max_bytes):
            return "owner_client.campaign_evaluation", {
                "model": _model(member, model, on_bytes),
                "held_out": settings.held_out or {member.settings.owner: _own_text(member)},
                "choices": settings.choices,
                "max_bytes": max_bytes,
                "threads": settings.threads,
                "key": key,
            }
        case Extraction(model=model) as extraction:
            if member.settings.public is None:
                raise NotFoundError("no public text is here as a control: set public in owner.toml")
            return "owner_client.extraction", {
                "model": _model(member, model, on_bytes),
                "data": _own_text(member),
                "public": member.settings.public,
                "prefix_tokens": extraction.prefix_tokens,
                "continuation_tokens": extraction.continuation_tokens,
                "documents": extraction.documents,
                "threads": settings.threads,
                "key": key,
            }
        case SelectProxy(pool=pool) as wanted:
            return "owner_client.campaign_proxies", {
                "data": _own_text(member),
                "pool": _fetch(member, pool, member.home.pools, on_bytes),
                "count": wanted.count,
                "min_accuracy": wanted.min_accuracy,
                "threads": settings.threads,
                **_chooser(member, on_bytes),
            }
        case _:
            raise AssertionError(f"no job for {asked.kind}")


def _chooser(member: Membership, on_bytes: OnBytes) -> dict[str, object]:
    """What chooses proxies, by this owner's settings."""
    settings = member.settings.campaigns
    if not settings.expert_chooses:
        return {"encoder": settings.encoder}
    base = fetch_base(member, on_bytes=on_bytes)
    return {"base": base.directory, "expert": trained_expert(member, base=base)}


def _model(member: Membership, model: CampaignModel, on_bytes: OnBytes) -> Path:
    return _fetch(member, model.manifest, member.home.models, on_bytes)


def _fetch(member: Membership, named: FileDigest, parent: Path, on_bytes: OnBytes) -> Path:
    most = member.settings.campaigns.max_model_megabytes
    return fetch_named(member, named, parent, max_megabytes=most, on_bytes=on_bytes)


def _own_text(member: Membership) -> Path:
    if member.settings.data is None:
        raise NotFoundError(f"no text of this owner's is named: set data in {member.home.settings_file}")
    return member.settings.data
