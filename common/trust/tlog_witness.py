"""What a log says to a witness over HTTP, and what comes back (C2SP tlog-witness, `add-checkpoint`).

A request is the size that the witness knows, the consistency proof from there, and the checkpoint's note. It is
answered with cosignature lines, or with the size that the witness is at.
"""

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Final, Self

from common.errors import MalformedError, TooLargeError
from common.trust.merkle import HASH_BYTES, MAX_SIZE
from common.trust.note import MAX_NOTE_BYTES, Checkpoint, Note, Signature

ADD_CHECKPOINT: Final = "add-checkpoint"
"""Under the witness's submission prefix."""
SIZE_TYPE: Final = "text/x.tlog.size"
"""Content type of an answer that is the size that the witness is at."""
MAX_PROOF_HASHES: Final = 63
MAX_REQUEST_BYTES: Final = MAX_NOTE_BYTES + 64 * (MAX_PROOF_HASHES + 1)


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A request; `bytes()` is its body. Nothing is verified."""

    old_size: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a body strictly, down to the checkpoint's form.

        Raises:
            TooLargeError: it is longer than any that is needed.
            MalformedError: it is not exactly such a body.
        """
        if len(data) > MAX_REQUEST_BYTES:
            raise TooLargeError(f"request of {len(data)} bytes, at most {MAX_REQUEST_BYTES} are read")
        head, _, checkpoint = data.partition(b"\n\n")
        try:
            first, *lines = head.decode("ascii").split("\n")
            size = int(first.removeprefix("old "))
            request = cls(size, tuple(b64decode(line, validate=True) for line in lines), checkpoint)
        except ValueError as error:
            raise MalformedError(f"request {data[:80]!r}: {error}") from error
        hashes = request.proof
        if not 0 <= size <= MAX_SIZE or len(hashes) > MAX_PROOF_HASHES or {*map(len, hashes)} - {HASH_BYTES}:
            raise MalformedError(f"request {data[:80]!r} holds no size and proof that a log could have")
        Checkpoint.parse(Note.parse(checkpoint).text)
        if bytes(request) != data:
            raise MalformedError(f"request {data[:80]!r} is not canonical")
        return request

    def __bytes__(self) -> bytes:
        lines = [f"old {self.old_size}", *(b64encode(each).decode() for each in self.proof)]
        return "\n".join(lines).encode() + b"\n\n" + self.checkpoint


def parse_cosignatures(data: bytes, *, text: str) -> Note:
    """The note over a checkpoint's `text` that an answer's lines make; nothing is verified.

    Raises:
        MalformedError: they are not lines of signatures.
    """
    return Note.parse(f"{text}\n".encode() + data)


def format_cosignatures(lines: list[Signature]) -> bytes:
    """An answer's body."""
    return "".join(f"{line}\n" for line in lines).encode()
