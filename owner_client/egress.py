"""Egress: the one place that makes what may leave this building.

An expert leaves as one file of exactly the tensors that an expert of its base has: names, shapes, dtypes, all finite.
The check remembers the file's digest at the end of every chunk, and only bytes that lead from one to the next are ever
sent. Statements and certificate requests leave too; everything that leaves is first written to the ledger.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.errors import ConcordError, EgressDeniedError
from common.files import taking_turns
from common.model import checkpoint
from common.model.expert import EXPERT_NAME, check_expert, expected_tensors, read_config
from common.model.partition import TensorSpec
from common.resumable_sha256 import ResumableSha256
from common.rpc.transfer import CHUNK_BYTES, ChunkPlan
from common.trust.manifest import FileEntry
from common.trust.statements import ContributedFile, ExpertContribute, format_time
from owner_client.chain import Chain, Said

_SEAL: Final = object()
TRAINING_NAME: Final = "training.json"


@dataclass(frozen=True, slots=True)
class EgressPlan:
    """What would leave: one file, the tensors it is made of, and the digest of the file up to each chunk's end. Made by
    `plan` alone.
    """

    path: Path
    entry: FileEntry
    tensors: Mapping[str, TensorSpec]
    running: tuple[ResumableSha256, ...]
    """What was taken in before each chunk, and last of the whole file."""
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise EgressDeniedError("only egress.plan() makes a plan of what may leave")

    @property
    def files(self) -> dict[str, ContributedFile]:
        """The files as a contribution names them."""
        return {EXPERT_NAME: ContributedFile(digest=self.entry.digest, size=self.entry.size)}


@dataclass(frozen=True, slots=True)
class Outbound:
    """An expert that was released: the only value the client will send. Made by `release` alone."""

    said: Said
    plan: EgressPlan
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise EgressDeniedError("only egress.release() makes what may leave")

    def read_chunk(self, index: int) -> tuple[bytes, bytes]:
        """A chunk, if it still holds the bytes that were released, and the digest of the file up to its end.

        Raises:
            EgressDeniedError: the file was changed since.
        """
        chunks = ChunkPlan(self.plan.entry.size)
        with self.plan.path.open("rb") as file:
            file.seek(chunks.offset(index))
            data = file.read(chunks.length(index))
        running = self.plan.running[index].copy()
        running.update(data)
        digest = running.digest()
        if digest != self.plan.running[index + 1].digest():
            raise EgressDeniedError(f"{self.plan.path} changed after it was checked; nothing more of it is sent")
        return data, digest


def plan(expert: Path, *, base: Path) -> EgressPlan:
    """What would leave of the expert directory `expert`, trained against `base`. Sends and records nothing.

    Raises:
        EgressDeniedError: the file is anything but an expert of this base.
    """
    path = expert / EXPERT_NAME
    if path.is_symlink() or not path.is_file():
        raise EgressDeniedError(f"{path} is not there; train first: concord owner train")
    config = read_config(base)
    try:
        check_expert(path, config=config)
    except ConcordError as error:
        raise EgressDeniedError(f"{path} must not leave: {error}") from error
    running, size = [ResumableSha256()], 0
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            running.append(running[-1].copy())
            running[-1].update(data)
            size += len(data)
    entry = FileEntry(f"sha256:{running[-1].hexdigest()}", size)
    return EgressPlan(path, entry, expected_tensors(config), tuple(running), _SEAL)


def release(
    planned: EgressPlan, *, grant_id: str, tokens_seen: int, config_digest: str, chain: Chain, ledger: Path
) -> Outbound:
    """Sign the contribution of a planned expert under a consent, write it to the ledger and let it go."""
    said = _contribution(planned, grant_id=grant_id, chain=chain) or chain.say(
        ExpertContribute,
        grant_id=grant_id,
        files=planned.files,
        tokens_seen=tokens_seen,
        training_config_digest=config_digest,
    )
    record(ledger, "expert", name=EXPERT_NAME, digest=planned.entry.digest, size_bytes=planned.entry.size)
    return Outbound(said, planned, _SEAL)


def _contribution(planned: EgressPlan, *, grant_id: str, chain: Chain) -> Said | None:
    """The contribution of exactly this expert under this consent, where it was signed before."""
    for said in chain.statements():
        statement = said.statement
        if (
            isinstance(statement, ExpertContribute)
            and statement.grant_id == grant_id
            and statement.files == planned.files
        ):
            return said
    return None


def record(ledger: Path, kind: str, *, name: str, digest: str, size_bytes: int) -> None:
    """Write one line to the ledger, on disk before this returns. The same thing sent again is not another line."""
    with taking_turns(ledger.with_name(f".{ledger.name}.lock")):
        _record(ledger, {"kind": kind, "name": name, "digest": digest, "size_bytes": size_bytes})


def _record(ledger: Path, line: dict[str, object]) -> None:
    if any({key: entry[key] for key in line} == line for entry in read_ledger(ledger)):
        return
    text = json.dumps({"at": format_time(datetime.now(UTC)), **line}) + "\n"
    descriptor = os.open(ledger, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        whole_lines = file.read().rfind(b"\n") + 1
        file.seek(whole_lines)
        file.truncate()
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_ledger(ledger: Path) -> list[dict[str, object]]:
    """Everything that has left, oldest first. A line cut off by a crash is what never left."""
    if not ledger.exists():
        return []
    lines = ledger.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def spec_lines(planned: EgressPlan) -> list[str]:
    """The tensors of a plan as a person reads them."""
    return [
        f"{name}  {spec.dtype} {'x'.join(map(str, spec.shape))}  {checkpoint.size_bytes(spec)} bytes"
        for name, spec in planned.tensors.items()
    ]
