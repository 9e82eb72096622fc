"""Intake: what comes in is stored in chunks, and believed only after everything about it was checked.

An upload is named by the record id of its signed `expert.contribute` statement and kept in `incoming/<record id>/`: the
note and a growing `.part` file for each file. What is missing is computed from those files, so a restart needs no
other memory. Nothing is parsed before digest and size are right; nothing is kept outside `incoming` before all is. Of
several streams for one upload the latest alone may write, and none while it is checked: what was checked stays so.
"""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from common.errors import (
    ConflictError,
    ConsentError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    TooLargeError,
    UnavailableError,
    VerificationError,
)
from common.files import full_disk_is_unavailable, sync_directory, write_atomic
from common.model.config import ModelConfig
from common.model.expert import CONFIG_NAME, EXPERT_NAME, check_expert, largest_size
from common.rpc.transfer import ChunkPlan
from common.trust.manifest import FileEntry, digest_of_file
from common.trust.statements import ExpertContribute, Statement, parse_note
from coordinator.publication import Publication
from coordinator.registry import Registry

_NOTE_NAME: Final = "note"
_UPLOAD_ID = re.compile(r"[0-9a-f-]{36}")
_TURN_TIMEOUT_S: Final = 2.0
_SPARE_BYTES: Final = 64 * 1024 * 1024
"""Disk space that an upload must leave free: the registry must stay able to record revocations."""


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How much of a file is stored: the first `received_chunks` of it."""

    digest: str
    size_bytes: int
    received_chunks: int


@dataclass(frozen=True, slots=True)
class ReceivedChunk:
    """A chunk as it came: `sha256` is what the sender says of `data`."""

    upload_id: str
    file: str
    index: int
    data: bytes
    sha256: bytes


class Intake:
    """Receives experts for one registry."""

    def __init__(self, incoming: Path, registry: Registry, publication: Publication) -> None:
        self._incoming = incoming
        self._registry = registry
        self._publication = publication
        self._turns: dict[str, _Turn] = {}
        self._publishing = Lock()
        incoming.mkdir(parents=True, exist_ok=True)

    def open(self, note: bytes, *, caller: str) -> tuple[str, list[FileProgress]]:
        """Begin or go on with the upload that `note` announces; answers its id and what is stored already.

        A party has one upload at a time: of two statements that may come next, one can be recorded. An earlier one that
        was not finished is dropped.

        Raises:
            ConcordError: the statement would not be accepted, or its files cannot be those of an expert of its base.
            ConflictError: another statement has the same record id.
            UnavailableError: there is no room for it on the disk.
        """
        statement = _contribution(self._registry.check(note, caller=caller))
        self._check_not_taken(statement)
        if self._registry.receipt_of(statement) is None:
            self._check_announced(statement)
            self._drop_earlier(statement)
            self._check_room(statement)
        directory = self._directory(statement.record_id)
        with full_disk_is_unavailable("this upload"):
            directory.mkdir(exist_ok=True)
            write_atomic(directory / _NOTE_NAME, note)
        return statement.record_id, self._progress(statement)

    def put(self, chunks: Iterable[ReceivedChunk], *, caller: str) -> list[FileProgress]:
        """Store chunks; all of them are on disk when this returns.

        Raises:
            VerificationError: a chunk's bytes are not what its digest says.
            ConflictError: a chunk that is not the next one, or a later stream sends the same upload.
            MalformedError: chunks of two uploads in one stream.
            UnavailableError: the upload is being checked.
        """
        statement: ExpertContribute | None = None
        writers: dict[str, _PartWriter] = {}
        stream = object()
        try:
            with full_disk_is_unavailable("this upload"):
                for chunk in chunks:
                    if statement is None:
                        statement = self._opened(chunk.upload_id, caller=caller)
                        turn = self._turns.setdefault(statement.record_id, _Turn())
                        turn.give_to(stream)
                    if statement.record_id != chunk.upload_id:
                        raise MalformedError("one stream of chunks belongs to one upload; send the other in its own")
                    with turn.held_by(stream):
                        if chunk.file not in writers:
                            writers[chunk.file] = self._writer(statement, chunk.file)
                        writers[chunk.file].put(chunk)
                for writer in writers.values():
                    writer.sync()
        finally:
            for writer in writers.values():
                writer.close()
        return [] if statement is None else self._progress(statement)

    def finish(self, upload_id: str, *, caller: str) -> bytes:
        """Check everything that was sent, publish it and record the contribution; returns the receipt. Repeatable.

        Raises:
            ConflictError: chunks are missing.
            VerificationError: a file's digest is not the announced one; its bytes are dropped, send them again.
            MalformedError: not an expert of this base, or not finite; the upload is dropped.
            UnavailableError: another call checks it at the moment.
        """
        self._opened(upload_id, caller=caller)
        directory = self._directory(upload_id)
        with self._turns.setdefault(upload_id, _Turn()).alone():
            statement = self._opened(upload_id, caller=caller)
            note = (directory / _NOTE_NAME).read_bytes()
            receipt = self._registry.receipt_of(statement)
            if receipt is None:
                self._check_arrived(statement)
                receipt = self._publish(statement, note, caller=caller)
            shutil.rmtree(directory, ignore_errors=True)
        self._turns.pop(upload_id, None)
        return receipt

    def _publish(self, statement: ExpertContribute, note: bytes, *, caller: str) -> bytes:
        """Publish the files and record the contribution, both or neither; returns the receipt."""
        self._registry.check(note, caller=caller)
        added: list[FileEntry] = []
        with self._publishing:  # two owners may send the same bytes: none takes back what the other has recorded
            self._check_complete(statement)
            try:
                for file in statement.manifest.files.values():
                    part = self._part(statement.record_id, file.digest)
                    if part.exists() and self._publication.add_file(part, entry=file):
                        added.append(file)
                return self._registry.record(note, caller=caller, arrived=True)
            except BaseException:
                if not self._registry.holds(statement):
                    for file in added:
                        self._publication.take_back(file, to=self._part(statement.record_id, file.digest))
                raise

    # What was announced

    def _check_announced(self, statement: ExpertContribute) -> None:
        if set(statement.files) != {EXPERT_NAME}:
            raise MalformedError(f"an expert is one file, {EXPERT_NAME}, not {', '.join(sorted(statement.files))}")
        largest = largest_size(self._config(statement))
        size = statement.files[EXPERT_NAME].size
        if size == 0:
            raise MalformedError(f"{EXPERT_NAME} of 0 bytes is not a safetensors file; train again")
        if size > largest:
            raise TooLargeError(f"{EXPERT_NAME} of {size} bytes; an expert of this base has at most {largest}")

    def _config(self, statement: ExpertContribute) -> ModelConfig:
        history = self._registry.head()
        grant = history.grants.get(statement.grant_id)
        if grant is None or grant.revoked_index is not None:
            raise ConsentError(f"there is no consent {statement.grant_id} in force; sign one first")
        manifest = self._publication.manifest(grant.statement.expert.base_digest)
        return ModelConfig.parse(self._publication.find(manifest.files[CONFIG_NAME].digest).read_bytes())

    def _check_room(self, statement: ExpertContribute) -> None:
        stored = sum(
            file.received_chunks * ChunkPlan(file.size_bytes).chunk_bytes for file in self._progress(statement)
        )
        needed = statement.manifest.size_bytes - stored + _SPARE_BYTES
        free = shutil.disk_usage(self._incoming).free
        if free < needed:
            raise UnavailableError(
                f"the coordinator has {free} bytes free and this upload needs {needed}; try again later"
            )

    # What is stored

    def _directory(self, upload_id: str) -> Path:
        return self._incoming / upload_id

    def _part(self, upload_id: str, digest: str) -> Path:
        return self._directory(upload_id) / f"{digest.removeprefix('sha256:')}.part"

    def _check_not_taken(self, statement: ExpertContribute) -> None:
        path = self._directory(statement.record_id) / _NOTE_NAME
        if path.is_file() and parse_note(path.read_bytes())[1] != statement:
            raise ConflictError(
                f"upload {statement.record_id} is of another statement; announce yours under a new record id"
            )

    def _drop_earlier(self, statement: ExpertContribute) -> None:
        for path in self._incoming.glob(f"*/{_NOTE_NAME}"):
            upload_id, earlier = path.parent.name, parse_note(path.read_bytes())[1]
            if earlier.party == statement.party and upload_id != statement.record_id:
                with self._turns.setdefault(upload_id, _Turn()).alone():
                    shutil.rmtree(path.parent, ignore_errors=True)
                self._turns.pop(upload_id, None)

    def _opened(self, upload_id: str, *, caller: str) -> ExpertContribute:
        """The statement of an upload of the caller that was opened before."""
        path = self._directory(upload_id) / _NOTE_NAME if _UPLOAD_ID.fullmatch(upload_id) else None
        if path is None or not path.is_file():
            raise NotFoundError(f"no upload {upload_id[:80]!r} is open; open it first")
        _, statement = parse_note(path.read_bytes())
        if statement.party != caller:
            raise NotPermittedError(f"upload {upload_id} is not of {caller}")
        return _contribution(statement)

    def _progress(self, statement: ExpertContribute) -> list[FileProgress]:
        return [
            FileProgress(file.digest, file.size, self._received(statement.record_id, file))
            for file in statement.manifest.files.values()
        ]

    def _received(self, upload_id: str, file: FileEntry) -> int:
        plan = ChunkPlan(file.size)
        if self._publication.object_path(file.digest).exists():
            return plan.num_chunks
        part = self._part(upload_id, file.digest)
        return plan.received_chunks(part.stat().st_size) if part.exists() else 0

    def _writer(self, statement: ExpertContribute, digest: str) -> "_PartWriter":
        for file in statement.manifest.files.values():
            if file.digest == digest:
                received = self._received(statement.record_id, file)
                return _PartWriter(self._part(statement.record_id, digest), ChunkPlan(file.size), received=received)
        raise MalformedError(f"upload {statement.record_id} announced no file {digest[:80]!r}")

    # What has arrived

    def _check_complete(self, statement: ExpertContribute) -> None:
        for file in self._progress(statement):
            missing = ChunkPlan(file.size_bytes).num_chunks - file.received_chunks
            if missing:
                raise ConflictError(f"{missing} chunks of {file.digest} are missing; send them, then finish")

    def _check_arrived(self, statement: ExpertContribute) -> None:
        self._check_complete(statement)
        for digest in (file.digest for file in statement.manifest.files.values()):
            part = self._part(statement.record_id, digest)
            if part.exists() and digest_of_file(part) != digest:
                part.unlink()
                raise VerificationError(f"what arrived is not {digest}; it was dropped, send it again")
        try:
            self._check_expert(statement)
        except MalformedError:
            shutil.rmtree(self._directory(statement.record_id), ignore_errors=True)
            raise

    def _check_expert(self, statement: ExpertContribute) -> None:
        digest = statement.files[EXPERT_NAME].digest
        part = self._part(statement.record_id, digest)
        check_expert(part if part.exists() else self._publication.find(digest), config=self._config(statement))


class _Turn:
    """Who may write to one upload: the stream that came last, and nobody while it is checked."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._latest: object | None = None

    def give_to(self, stream: object) -> None:
        """From now on `stream` alone writes."""
        with self._held():
            self._latest = stream

    @contextmanager
    def held_by(self, stream: object) -> Iterator[None]:
        """Let `stream` write, if no later one came."""
        with self._held():
            if self._latest is not stream:
                raise ConflictError("another call took this upload over; open it again")
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no stream write meanwhile, nor one that is open now ever again."""
        with self._held():
            self._latest = None
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=_TURN_TIMEOUT_S):
            raise UnavailableError("this upload is being checked; try again soon")
        try:
            yield
        finally:
            self._lock.release()


class _PartWriter:
    """Appends chunks to one `.part` file, in order, each checked before it is written."""

    def __init__(self, path: Path, plan: ChunkPlan, *, received: int) -> None:
        self._plan = plan
        self._next = received
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        sync_directory(path.parent)

    def put(self, chunk: ReceivedChunk) -> None:
        if chunk.index < self._next:
            return  # sent again after a lost reply: it is stored
        if chunk.index > self._next:
            raise ConflictError(f"chunk {chunk.index} came where {self._next} is next; open the upload again")
        try:
            length = self._plan.length(chunk.index)
        except ValueError as error:
            raise TooLargeError(f"more bytes than announced: {error}") from error
        if len(chunk.data) != length:
            raise MalformedError(f"chunk {chunk.index} has {len(chunk.data)} bytes, not {length}")
        if hashlib.sha256(chunk.data).digest() != chunk.sha256:
            raise VerificationError(f"chunk {chunk.index} was damaged on the way; send it again")
        written = 0
        while written < length:
            offset = self._plan.offset(chunk.index) + written
            written += os.pwrite(self._descriptor, memoryview(chunk.data)[written:], offset)
        self._next += 1
        sys.audit("concord.point", "chunk stored")

    def sync(self) -> None:
        """Return when all that was put is on disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _contribution(statement: Statement) -> ExpertContribute:
    if not isinstance(statement, ExpertContribute):
        raise MalformedError(f"an upload is announced by expert.contribute, not {statement.type}")
    return statement
