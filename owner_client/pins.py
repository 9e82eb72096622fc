"""The checkpoint this owner trusts: every one it sees must continue it. An owner is a witness of the log.

Two checkpoints of one log that contradict each other are proof against whoever signed them; both are kept.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import ConcordError, UnavailableError, VerificationError
from common.files import taking_turns, write_atomic, write_into
from common.trust.evidence import Evidence
from common.trust.note import Checkpoint
from common.trust.root import TrustedRoot
from common.trust.verify import check_checkpoint, check_growth

FetchProof = Callable[[int, int], Sequence[bytes]]
"""(old size, new size) -> consistency proof."""


class Pins:
    """Remembers the largest verified checkpoint, in one file."""

    def __init__(self, path: Path, *, evidence: Path, root: TrustedRoot) -> None:
        self._path = path
        self._evidence = evidence
        self._root = root

    def pinned(self) -> Checkpoint | None:
        """The largest checkpoint verified so far."""
        return check_checkpoint(self._root, self._path.read_bytes()) if self._path.exists() else None

    def observe(self, note: bytes, *, fetch_proof: FetchProof) -> Checkpoint:
        """Verify a checkpoint against the pinned one and pin it where it is larger.

        Raises:
            VerificationError: not signed by the log, or it contradicts the pinned one; both are then in `evidence`.
        """
        seen = check_checkpoint(self._root, note)
        while True:
            pinned = self.pinned()
            self._compare(seen, pinned, note, fetch_proof)
            with taking_turns(self._path.with_name(f".{self._path.name}.lock")):
                if self.pinned() != pinned:
                    continue  # another process pinned meanwhile: what was compared is not what must be continued
                if pinned is None or seen.size > pinned.size:
                    write_atomic(self._path, note)
                return seen

    def _compare(self, seen: Checkpoint, pinned: Checkpoint | None, note: bytes, fetch_proof: FetchProof) -> None:
        if pinned is None or pinned == seen:
            return
        older, newer = sorted((pinned, seen), key=lambda checkpoint: checkpoint.size)
        proof: Sequence[bytes] = ()
        try:
            proof = () if older.size in (0, newer.size) else fetch_proof(older.size, newer.size)
            check_growth(older, newer, proof=proof)
        except UnavailableError:
            raise
        except ConcordError as error:  # also where the log will not prove it: it has forgotten what it signed
            kept = self._keep_evidence(note, proof)
            raise VerificationError(f"{error}; both checkpoints are kept in {kept}") from error

    def _keep_evidence(self, note: bytes, proof: Sequence[bytes]) -> Path:
        evidence = Evidence((self._path.read_bytes(), note), tuple(proof))
        return write_into(self._evidence, evidence.file_name, bytes(evidence))
