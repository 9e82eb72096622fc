"""Intake: what comes in is stored in chunks, and believed only after everything about it was checked.

An upload is named by the record id of its signed `expert.contribute` statement and kept in `incoming/<record id>/`: the
note and a growing part (`common/part_file.py`). What is missing is computed from those files, so a restart needs no
other memory. Bytes are checked as they come, with no more trust than a stranger's, and nothing is kept outside
`incoming` before all is right; what is refused goes to `quarantine/<owner>/` with the reason. Of several streams for
one upload the latest alone may write, and none while it is finished: what was checked stays so.
"""

import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from common.errors import (
    ConflictError,
    ConsentError,
    MalformedError,
    NoRoomError,
    NotFoundError,
    NotPermittedError,
    TooLargeError,
)
from common.files import full_disk_is_unavailable, write_atomic
from common.model.arriving import ArrivingExpert
from common.model.config import ModelConfig
from common.model.expert import CONFIG_NAME, EXPERT_NAME, check_expert, largest_size
from common.part_file import PartFile
from common.rpc.chunk_message import ChunkMessage
from common.rpc.transfer import ChunkPlan
from common.trust.manifest import FileEntry
from common.trust.statements import ConsentGrant, ExpertContribute, Statement, parse_note
from coordinator.arrival import Arrival, RefusedBytesError, Stream, Turn
from coordinator.publication import Publication
from coordinator.registry import Registry

logger = logging.getLogger(__name__)

REASON_NAME: Final = "reason"
_NOTE_NAME: Final = "note"
_UPLOAD_ID = re.compile(r"[0-9a-f-]{36}")
SPARE_BYTES: Final = 64 * 1024 * 1024
"""Disk space that an upload or a release must leave free: the registry must stay able to record revocations."""


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How much of a file is stored: the first `received_chunks` of it."""

    digest: str
    size_bytes: int
    received_chunks: int


class Intake:
    """Receives experts for one registry."""

    def __init__(self, incoming: Path, quarantine: Path, registry: Registry, publication: Publication) -> None:
        self._incoming = incoming
        self._quarantine = quarantine
        self._registry = registry
        self._publication = publication
        self._turns: dict[str, Turn] = {}
        self._publishing = Lock()
        incoming.mkdir(parents=True, exist_ok=True)

    def open(self, note: bytes, *, caller: str) -> tuple[str, list[FileProgress]]:
        """Begin or go on with the upload that `note` announces; answers its id and what is stored already.

        A party has one upload at a time: of two statements that may come next, one can be recorded. An earlier one that
        was not finished is dropped.

        Raises:
            ConcordError: the statement would not be accepted, or its files cannot be those of an expert of its base.
            ConflictError: another statement has the same record id.
            NoRoomError: there is no room for it on the disk.
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

    def put(self, chunks: Iterable[ChunkMessage], *, caller: str) -> Iterator[list[FileProgress]]:
        """Store chunks; yields what is on disk whenever more is, at last when all is.

        Raises:
            VerificationError: a chunk's bytes are not what its digest says.
            ConflictError: a chunk that is not the next one, or a later stream sends the same upload.
            MalformedError: chunks of two uploads in one stream, or bytes that no expert of its base has; then the
                upload is in quarantine.
            UnavailableError: the upload is being finished.
        """
        statement: ExpertContribute | None = None
        stream = Stream()
        try:
            with full_disk_is_unavailable("this upload"):
                for chunk in chunks:
                    if statement is None:
                        statement = self._opened(chunk.upload_id, caller=caller)
                        turn = self._turns.setdefault(statement.record_id, Turn())
                        turn.give_to(stream)
                    if statement.record_id != chunk.upload_id:
                        raise MalformedError("one stream of chunks belongs to one upload; send the other in its own")
                    with turn.held_by(stream):
                        told = self._store(statement, chunk, stream)
                    if told:
                        yield self._progress(statement, stream)
                if statement is not None:
                    with turn.held_by(stream):
                        stream.commit()
                    yield self._progress(statement, stream)
        finally:
            if statement is not None:
                turn.end(stream)

    def _store(self, statement: ExpertContribute, chunk: ChunkMessage, stream: "Stream") -> bool:
        """Take one chunk; whether more is on disk than before."""
        try:
            if chunk.file not in stream.arrivals:
                stream.arrivals[chunk.file] = self._arrival(statement, chunk.file)
            return stream.arrivals[chunk.file].put(chunk)
        except RefusedBytesError as error:
            stream.close()
            self._to_quarantine(statement, str(error))
            raise MalformedError(str(error)) from error

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
        with self._turns.setdefault(upload_id, Turn()).alone():
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

    def put_back(self) -> None:
        """Take back what a crash left among the published files and the log does not name: an upload that was being
        finished. Its owner finishes it again.
        """
        for statement in self._announced():
            for file in statement.manifest.files.values():
                with self._registry.history() as history:
                    is_named = file.digest in history.contributors
                part = self._part(statement.record_id, file.digest)
                if not is_named and not part.exists() and self._publication.object_path(file.digest).exists():
                    self._publication.take_back(file, to=part)
                    logger.info("%s of upload %s was put back: it is not in the log", file.digest, statement.record_id)

    def under_way(self) -> dict[str, tuple[int, int]]:
        """Uploads by party: bytes that are stored, and bytes in all."""
        return {
            each.party: (each.manifest.size_bytes - self._missing_bytes(each), each.manifest.size_bytes)
            for each in self._announced()
        }

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

    def _grant(self, statement: ExpertContribute) -> ConsentGrant:
        with self._registry.history() as history:
            grant = history.grants.get(statement.grant_id)
        if grant is None or grant.revoked_index is not None:
            raise ConsentError(f"there is no consent {statement.grant_id} in force; sign one first")
        return grant.statement

    def _config(self, statement: ExpertContribute) -> ModelConfig:
        manifest = self._publication.manifest(self._grant(statement).expert.base_digest)
        return ModelConfig.parse(self._publication.find(manifest.files[CONFIG_NAME].digest).read_bytes())

    def _check_room(self, statement: ExpertContribute) -> None:
        others = (self._missing_bytes(each) for each in self._announced() if each.party != statement.party)
        needed = self._missing_bytes(statement) + sum(others) + SPARE_BYTES
        free = shutil.disk_usage(self._incoming).free
        if free < needed:
            logger.warning(
                "no room for upload %s of %s: free %d bytes in %s",
                statement.record_id, statement.party, needed - free, self._incoming,
            )  # fmt: skip
            raise NoRoomError(
                f"the coordinator has {free} bytes free; this upload and those under way need {needed}; ask its admin "
                f"to free {needed - free} bytes, and try again then"
            )

    def _missing_bytes(self, statement: ExpertContribute) -> int:
        chunks = (ChunkPlan(file.size_bytes) for file in self._progress(statement))
        stored = sum(
            min(file.received_chunks * plan.chunk_bytes, plan.size_bytes)
            for file, plan in zip(self._progress(statement), chunks, strict=True)
        )
        return statement.manifest.size_bytes - stored

    def _announced(self) -> Iterator[ExpertContribute]:
        """The uploads that are under way."""
        for path in self._incoming.glob(f"*/{_NOTE_NAME}"):
            with suppress(FileNotFoundError):  # finished meanwhile
                yield _contribution(parse_note(path.read_bytes())[1])

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
        for earlier in self._announced():
            if earlier.party == statement.party and earlier.record_id != statement.record_id:
                with self._turns.setdefault(earlier.record_id, Turn()).alone():
                    shutil.rmtree(self._directory(earlier.record_id), ignore_errors=True)
                self._turns.pop(earlier.record_id, None)

    def _opened(self, upload_id: str, *, caller: str) -> ExpertContribute:
        """The statement of an upload of the caller that was opened before."""
        path = self._directory(upload_id) / _NOTE_NAME if _UPLOAD_ID.fullmatch(upload_id) else None
        if path is None or not path.is_file():
            raise NotFoundError(f"no upload {upload_id[:80]!r} is open; open it first")
        _, statement = parse_note(path.read_bytes())
        if statement.party != caller:
            raise NotPermittedError(f"upload {upload_id} is not of {caller}")
        return _contribution(statement)

    def _progress(self, statement: ExpertContribute, stream: Stream | None = None) -> list[FileProgress]:
        """What is stored: a stream that writes knows it, else the files say it."""
        arrivals = {} if stream is None else stream.arrivals
        return [
            FileProgress(
                file.digest, file.size,
                arrivals[file.digest].received_chunks if file.digest in arrivals
                else self._received(statement.record_id, file),
            )
            for file in statement.manifest.files.values()
        ]  # fmt: skip

    def _received(self, upload_id: str, file: FileEntry) -> int:
        plan = ChunkPlan(file.size)
        if self._publication.object_path(file.digest).exists():
            return plan.num_chunks
        return plan.received_chunks(PartFile.received(self._part(upload_id, file.digest), size=file.size))

    def _arrival(self, statement: ExpertContribute, digest: str) -> "Arrival":
        for file in statement.manifest.files.values():
            if file.digest == digest:
                if self._publication.object_path(digest).exists():
                    return Arrival(None, None, ChunkPlan(file.size))
                part = PartFile(self._part(statement.record_id, digest), file)
                try:
                    config = self._config(statement)
                    expert = ArrivingExpert(part.path, size=file.size, config=config, position=part.position)
                except BaseException:
                    part.close()
                    raise
                return Arrival(part, expert, ChunkPlan(file.size))
        raise MalformedError(f"upload {statement.record_id} announced no file {digest[:80]!r}")

    def _to_quarantine(self, statement: ExpertContribute, reason: str) -> None:
        """Put what cannot be an expert aside, with the reason, in place of what this owner had there before."""
        place = self._quarantine / statement.party
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        directory = self._directory(statement.record_id)
        write_atomic(directory / REASON_NAME, f"{reason}\n".encode())
        directory.replace(place)
        logger.warning("upload %s of %s is in quarantine: %s", statement.record_id, statement.party, reason)

    # What has arrived

    def _check_complete(self, statement: ExpertContribute) -> None:
        for file in self._progress(statement):
            missing = ChunkPlan(file.size_bytes).num_chunks - file.received_chunks
            if missing:
                raise ConflictError(f"{missing} chunks of {file.digest} are missing; send them, then finish")

    def _check_arrived(self, statement: ExpertContribute) -> None:
        """Every byte in a part was checked when it came; what was here before under its digest may be anything."""
        self._check_complete(statement)
        self._grant(statement)
        for file in statement.manifest.files.values():
            path = self._part(statement.record_id, file.digest)
            if path.exists():
                part = PartFile(path, file)
                try:
                    part.check(remedy="send it again")
                finally:
                    part.close()
            else:
                self._check_found(statement, self._publication.find(file.digest))

    def _check_found(self, statement: ExpertContribute, path: Path) -> None:
        try:
            check_expert(path, config=self._config(statement))
        except MalformedError as error:
            self._to_quarantine(statement, str(error))
            raise


def _contribution(statement: Statement) -> ExpertContribute:
    if not isinstance(statement, ExpertContribute):
        raise MalformedError(f"an upload is announced by expert.contribute, not {statement.type}")
    return statement
