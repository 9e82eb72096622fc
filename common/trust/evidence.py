"""Evidence against a log: two checkpoints that it signed and that cannot both be true, in one file for a third person.

Of one size with two root hashes they speak for themselves. Of two sizes they do once the entries of the larger one are
at hand, which everybody may ask for: replayed, they lead to another root at the smaller size, or nobody has them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from common.errors import MalformedError, VerificationError
from common.trust import merkle, strict_json
from common.trust.manifest import digest_of
from common.trust.note import Checkpoint, Note
from common.trust.root import TrustedRoot
from common.trust.verify import check_checkpoint

_KIND: Final = "concord/v1 evidence"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two signed checkpoints of one log, and the proof, if any, that was given that one continues the other."""

    checkpoints: tuple[bytes, bytes]
    proof: tuple[bytes, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a file of evidence strictly; nothing is judged.

        Raises:
            MalformedError: it is none.
        """
        value = strict_json.load_object(data, what="evidence")
        match value:
            case {"kind": kind, "checkpoints": [str(first), str(second)], "proof": [*hashes]} if (
                kind == _KIND and len(value) == 3 and all(isinstance(each, str) for each in hashes)
            ):
                try:
                    proof = tuple(bytes.fromhex(str(each)) for each in hashes)
                except ValueError as error:
                    raise MalformedError(f"evidence: {error}") from error
                found = cls((first.encode(), second.encode()), proof)
            case _:
                raise MalformedError("this is no evidence: two checkpoints and a proof are wanted")
        for checkpoint in found.checkpoints:
            Checkpoint.parse(Note.parse(checkpoint).text)
        if bytes(found) != data:
            raise MalformedError("evidence is not canonical: one line of RFC 8785 JSON and a newline are wanted")
        return found

    def __bytes__(self) -> bytes:
        value = {
            "kind": _KIND,
            "checkpoints": [each.decode() for each in self.checkpoints],
            "proof": [each.hex() for each in self.proof],
        }
        return strict_json.canonical(value) + b"\n"

    @property
    def file_name(self) -> str:
        """A name of its own."""
        return f"{digest_of(bytes(self)).removeprefix('sha256:')}.json"


def judge(evidence: Evidence, root: TrustedRoot, *, entries: Iterable[bytes] | None = None) -> str:
    """What the evidence proves against the log of `root`, in a sentence.

    Args:
        evidence: What somebody kept.
        root: The keys that the judge knows the log by.
        entries: The log's entries, as many as the larger checkpoint says, where the sizes differ.

    Raises:
        VerificationError: it proves nothing: not signed by that log, or no contradiction.
    """
    older, newer = sorted((check_checkpoint(root, each) for each in evidence.checkpoints), key=lambda each: each.size)
    if older.size == newer.size:
        if older.root == newer.root:
            raise VerificationError("both are the same checkpoint; that proves nothing")
        return f"{root.origin} signed two different logs of {older.size} entries"
    if entries is None:
        raise VerificationError(
            f"checkpoints of {older.size} and {newer.size} entries: whether they contradict each other is seen from "
            "the log's entries; give the published log as well"
        )
    running, at_older = merkle.RunningRoot(), merkle.EMPTY_ROOT
    for entry in entries:
        if running.size == newer.size:
            break
        running.append(merkle.leaf_hash(entry))
        if running.size == older.size:
            at_older = running.root
    if running.size < newer.size or running.root != newer.root:
        raise VerificationError(f"the entries given are not those of the checkpoint of {newer.size} entries")
    if at_older == older.root:
        raise VerificationError(f"the log of {newer.size} entries continues that of {older.size}; that proves nothing")
    return f"{root.origin} signed a log of {older.size} entries, and one of {newer.size} that does not continue it"
