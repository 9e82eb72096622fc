"""What a campaign is about, as an admin names it: a release, a base, or a directory that is no release yet."""

import re
from pathlib import Path

from common.errors import NotFoundError
from common.model.expert import read_config
from common.trust.campaign_statements import CampaignModel
from common.trust.manifest import digest_of
from common.trust.statement_fields import FileDigest
from coordinator.home import Coordinator
from coordinator.releases import find_release, latest_base


def model_of(coordinator: Coordinator, named: str) -> CampaignModel:
    """A model: the name of a release, `base-0` for the base of round 0, or a directory, whose files are kept for owners
    to fetch.

    Raises:
        NotFoundError: there is none.
        MalformedError: the directory holds no model.
    """
    if re.fullmatch(r"base-[0-9]{1,6}", named):
        return CampaignModel(manifest=_base(coordinator, int(named[5:])), stands="base", name=named)
    directory = Path(named).expanduser().resolve()
    with coordinator.registry.history() as history:
        is_release = named in history.releases
    if is_release or not directory.is_dir():
        with coordinator.registry.history() as history:
            digest = find_release(history, named).manifest_digest
        return CampaignModel(manifest=_published(coordinator, digest), stands="release", name=named)
    read_config(directory)
    name = re.sub(r"[^a-z0-9._-]", "-", directory.name.lower())[:64].lstrip("._-") or "candidate"
    return CampaignModel(manifest=coordinator.campaigns.files.hand_out(directory), stands="candidate", name=name)


def pool_of(coordinator: Coordinator, directory: Path) -> FileDigest:
    """A pool of public text: a directory of document files, kept for owners to fetch.

    Raises:
        NotFoundError: it is not there.
    """
    if not directory.is_dir():
        raise NotFoundError(f"{directory} is no folder; a pool is a folder of .jsonl, .jsonl.gz or .txt files")
    return coordinator.campaigns.files.hand_out(directory)


def base_digest_of(coordinator: Coordinator) -> str:
    """The base that experts are trained over now."""
    with coordinator.registry.history() as history:
        return latest_base(history).base_digest


def _base(coordinator: Coordinator, round_number: int) -> FileDigest:
    with coordinator.registry.history() as history:
        found = [base.base_digest for base in history.bases.values() if base.round == round_number]
    if not found:
        raise NotFoundError(f"no base of round {round_number} is published")
    return _published(coordinator, found[0])


def _published(coordinator: Coordinator, digest: str) -> FileDigest:
    data = bytes(coordinator.publication.manifest(digest))
    assert digest_of(data) == digest, "what is published by a digest has it"
    return FileDigest(digest=digest, size=len(data))
