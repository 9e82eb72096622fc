"""Egress: the one door out of an owner's building.

An expert leaves as one file of exactly the tensors that an expert of its base has: names, shapes, dtypes, all finite.
The check remembers the file's digest at the end of every chunk, and only bytes that lead from one to the next are ever
sent. Statements, certificate requests, cosignatures and results leave as messages. Both are values that only this
module makes, after the line in the ledger is on disk, and the client sends nothing else.
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Final

from common.errors import ConcordError, EgressDeniedError
from common.model import checkpoint
from common.model.expert import EXPERT_NAME, check_expert, expected_tensors, read_config
from common.model.partition import TensorSpec
from common.resumable_sha256 import ResumableSha256
from common.rpc.transfer import CHUNK_BYTES, ChunkPlan
from common.trust.manifest import FileEntry, digest_of
from common.trust.statements import ContributedFile, ExpertContribute
from owner_client.chain import Chain, Said
from owner_client.ledger import TRAFFIC, UPLOAD, Line, ledger_at
from owner_client.review import Reviews, Wanted

_MOST_SHOWN: Final = 4000
"""Characters of what goes beside an answer that a person is shown."""
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
    message: "Message"
    """The contribution's note."""
    plan: EgressPlan
    ledger: Path
    to: str
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise EgressDeniedError("only egress.release() makes what may leave")

    def record_upload(self, chunks: range) -> None:
        """Write to the ledger that these chunks are about to be sent."""
        plan = ChunkPlan(self.plan.entry.size)
        size_bytes = sum(plan.length(index) for index in chunks)
        ledger_at(self.ledger).record_upload(
            name=EXPERT_NAME, digest=self.plan.entry.digest, size_bytes=size_bytes, to=self.to
        )

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


@dataclass(frozen=True, slots=True)
class Message:
    """Something small that was released: what the client's calls take. Made by `message` alone."""

    data: bytes
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise EgressDeniedError("only egress.message() makes what may leave")


def message(ledger: Path, kind: str, *, name: str, data: bytes, to: str) -> Message:
    """Write to the ledger that `data` leaves for `to` (`host:port` or an address), and let it go. The same thing sent
    again is not another line."""
    ledger_at(ledger).record(kind, name=name, digest=digest_of(data), size_bytes=len(data), to=to)
    return Message(data, _SEAL)


def statement(ledger: Path, said: Said, *, to: str) -> Message:
    """Let a statement of this owner go."""
    return message(ledger, "statement", name=said.statement.type, data=said.note, to=to)


def let_answer_go(reviews: Reviews, *, name: str, content: bytes, attachment: bytes, to: str) -> None:
    """Return where an answer to a campaign may be signed and leave: `content` is what it says, before it is signed.

    Raises:
        EgressDeniedError: the owner's settings do not allow it, or a person rejected it.
        ApprovalNeededError: a person's word is needed first.
    """
    summary = {"says": content.decode(), **_beside(attachment)}
    reviews.let_go(Wanted("result", name, digest_of(content), len(content) + len(attachment), to, summary))


def _beside(attachment: bytes) -> dict[str, str]:
    """What goes beside an answer, for a person: all of it where it can be read, else how it begins."""
    if not attachment:
        return {}
    text = attachment.decode(errors="replace")
    if len(text) > _MOST_SHOWN:
        text = f"{text[:_MOST_SHOWN]}... (all of it is in the campaign's folder, as attachment)"
    return {"beside it": f"{len(attachment)} bytes, {digest_of(attachment)}", "which say": text}


def attachment(ledger: Path, data: bytes, *, name: str, to: str) -> Message:
    """Let what goes beside an answer go."""
    return message(ledger, "result", name=name, data=data, to=to)


def certificate_request(ledger: Path, csr: bytes, *, to: str) -> Message:
    """Let a request for a certificate go."""
    return message(ledger, "request", name="certificate request", data=csr, to=to)


def release(
    planned: EgressPlan,
    *,
    grant_id: str,
    tokens_seen: int,
    config_digest: str,
    chain: Chain,
    reviews: Reviews,
    ledger: Path,
    to: str,
) -> Outbound:
    """Sign the contribution of a planned expert under a consent, write both to the ledger and let them go.

    Raises:
        EgressDeniedError: the owner's settings do not allow it, or a person rejected it.
        ApprovalNeededError: a person's word is needed first; nothing is signed.
    """
    reviews.let_go(_wanted(planned, grant_id=grant_id, tokens_seen=tokens_seen, to=to))
    said = _contribution(planned, grant_id=grant_id, chain=chain) or chain.say(
        ExpertContribute,
        grant_id=grant_id,
        files=planned.files,
        tokens_seen=tokens_seen,
        training_config_digest=config_digest,
    )
    ledger_at(ledger).record(
        "expert", name=EXPERT_NAME, digest=planned.entry.digest, size_bytes=planned.entry.size, to=to
    )
    return Outbound(said, statement(ledger, said, to=to), planned, ledger, to, _SEAL)


def _wanted(planned: EgressPlan, *, grant_id: str, tokens_seen: int, to: str) -> Wanted:
    """What a person is asked about an expert."""
    groups: dict[str, tuple[int, int]] = {}
    for name, spec in planned.tensors.items():
        group = name.rsplit(".", 2)[-2] if "_proj" in name else "router row"
        count, size = groups.get(group, (0, 0))
        groups[group] = count + 1, size + checkpoint.size_bytes(spec)
    tensors = {group: f"{count} tensors, {size} bytes" for group, (count, size) in groups.items()}
    summary = {"consent": grant_id, "trained on": f"{tokens_seen} tokens", "file": str(planned.path), **tensors}
    return Wanted("expert", EXPERT_NAME, planned.entry.digest, planned.entry.size, to, summary)


def _contribution(planned: EgressPlan, *, grant_id: str, chain: Chain) -> Said | None:
    """The contribution of exactly this expert under this consent, where it was signed before."""
    for said in chain.statements():
        found = said.statement
        if isinstance(found, ExpertContribute) and found.grant_id == grant_id and found.files == planned.files:
            return said
    return None


def read_ledger(ledger: Path) -> list[Line]:
    """Every thing that has left, oldest first, each once; without tries of uploads and small calls.

    Raises:
        VerificationError: the ledger was changed.
    """
    return [line for line in ledger_at(ledger).lines() if line["kind"] not in (TRAFFIC, UPLOAD)]


def spec_lines(planned: EgressPlan) -> list[str]:
    """The tensors of a plan as a person reads them."""
    return [
        f"{name}  {spec.dtype} {'x'.join(map(str, spec.shape))}  {checkpoint.size_bytes(spec)} bytes"
        for name, spec in planned.tensors.items()
    ]
