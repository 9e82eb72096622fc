"""Outside witnesses: the coordinator brings them each new checkpoint and keeps what they cosign (C2SP tlog-witness).

They remember what a restored backup has forgotten. So they are asked before anything is signed; and where one has seen
a log that this one does not continue, nothing is signed any more.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import Final

from common.errors import ConcordError, ConflictError, MalformedError, UnavailableError, VerificationError
from common.http import check_address, post
from common.trust.cosignature import Witness
from common.trust.note import MAX_NOTE_BYTES, Checkpoint, Note
from common.trust.tlog_witness import ADD_CHECKPOINT, SIZE_TYPE, AddCheckpoint, parse_cosignatures
from coordinator.registry import Registry

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 3600.0
"""A checkpoint that stays the newest one is brought again, so that it is known to be watched."""
_ROUNDS: Final = 3
"""A witness that is at another size says so; then it is asked again from there."""


@dataclass(slots=True)
class OutsideWitness:
    """A witness at an address, and how much of this log it says it has seen."""

    witness: Witness
    address: str
    size: int = 0
    cosigned: int = 0
    """How much of it is known to be cosigned."""
    cosigned_at: float = float("-inf")
    """Since when, in seconds by a clock that never goes back."""

    @classmethod
    def parse(cls, line: str) -> "OutsideWitness":
        """Read `KEY LINE ADDRESS`, as settings have it.

        Raises:
            MalformedError: it is not that.
        """
        key, _, address = line.partition(" ")
        return cls(Witness.parse(key), check_address(address))

    def bring(self, registry: Registry) -> bool:
        """Have the latest checkpoint cosigned; False where the witness has cosigned it before.

        Raises:
            UnavailableError: it cannot be reached, or gives no answer that says more.
            ConflictError: it has seen a log that this one does not continue.
            MalformedError, VerificationError: its answer is no cosignature of its own.
        """
        for _ in range(_ROUNDS):
            # Read after the witness said where it is: another coordinator may have brought it further meanwhile.
            parsed = Note.parse(registry.checkpoint())
            head = Checkpoint.parse(parsed.text)
            if head.size == self.cosigned and time.monotonic() < self.cosigned_at + _AGAIN_S:
                return False
            if self.size > head.size:
                raise ConflictError(_AHEAD.format(who=self.witness.name, seen=self.size, here=head.size))
            status, kind, body = self._add(registry, parsed, head)
            if status == 200:
                registry.keep_cosignature(parse_cosignatures(body, text=parsed.text), self.witness)
                self.size, self.cosigned, self.cosigned_at = head.size, head.size, time.monotonic()
                return True
            is_here = kind != SIZE_TYPE or _size(body) == self.size
            if status == 422 or (status == 409 and is_here and 0 < self.size == head.size):
                raise ConflictError(_OTHER.format(who=self.witness.name, here=head.size))
            if status != 409 or kind != SIZE_TYPE:
                raise UnavailableError(f"{self.witness.name} answers {status}: {body[:200]!r}")
            self.size = _size(body)
        raise UnavailableError(f"{self.witness.name} was elsewhere each time; it is asked again")

    def _add(self, registry: Registry, parsed: Note, head: Checkpoint) -> tuple[int, str, bytes]:
        proof = registry.consistency(self.size, head.size) if self.size else ()
        bare = bytes(Note(parsed.text, parsed.signatures[:1]))
        request = bytes(AddCheckpoint(self.size, tuple(proof), bare))
        return post(f"{self.address}/{ADD_CHECKPOINT}", request, most=MAX_NOTE_BYTES)


_WAY_OUT: Final = (
    "Restore the newest backup, or roll this one forward from a copy of the newest published files (concord "
    "coordinator recover --from DIR), and start again; where neither is to be had, start a new log under another name "
    "(concord coordinator init --origin "
    "NAME). A witness that is wrong is taken out of outside_witnesses"
)
_AHEAD: Final = f"{{who}} has cosigned {{seen}} entries, this log has {{here}}: it was rolled back. {_WAY_OUT}"
_OTHER: Final = f"{{who}} has seen a log that this one of {{here}} entries does not continue. {_WAY_OUT}"


def _size(body: bytes) -> int:
    text = body.strip()
    if not text.isdigit() or len(text) > 19:
        raise MalformedError(f"a witness says it is at {body[:40]!r} entries")
    return int(text)


def ask(registry: Registry, lines: Sequence[str]) -> str | None:
    """Why nothing may be signed, if a witness in the settings has seen a log that this one does not continue.

    One that cannot be reached is asked again later, and keeps nobody from working.
    """
    for each in [OutsideWitness.parse(line) for line in lines]:
        try:
            each.bring(registry)
        except ConflictError as error:
            return str(error)
        except ConcordError as error:
            logger.warning("%s: %s", each.address, error)
    return None


class Bringing:
    """A thread that brings every new checkpoint to all witnesses, until stopped."""

    def __init__(self, registry: Registry, witnesses: list[OutsideWitness], *, every_s: float) -> None:
        self._registry, self._witnesses, self._every_s = registry, witnesses, every_s
        self._stop = Event()
        self._said: dict[str, str] = {}
        self._thread = Thread(target=self._run, name="outside-witnesses", daemon=True)

    def __enter__(self) -> "Bringing":
        if self._witnesses:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._witnesses:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.bring_to_all()
            self._stop.wait(self._every_s)

    def bring_to_all(self) -> None:
        """Bring the checkpoint to each; what goes wrong with one is logged and stops no other."""
        for each in self._witnesses:
            self._bring(each)

    def _bring(self, each: OutsideWitness) -> None:
        try:
            if each.bring(self._registry):
                logger.info("%s has cosigned %d entries", each.witness.name, each.size)
                self._said.pop(each.address, None)
        except ConflictError as error:
            self._registry.stop_appending(str(error))
            self._say(each, logging.CRITICAL, f"{error}. Nothing is added to the log until then")
        except VerificationError as error:
            self._say(each, logging.ERROR, f"{error}; find out why before anything else")
        except ConcordError as error:
            self._say(each, logging.WARNING, str(error))

    def _say(self, each: OutsideWitness, level: int, problem: str) -> None:
        """Log a witness's trouble once, not at every try."""
        if self._said.get(each.address) != problem:
            self._said[each.address] = problem
            logger.log(level, "%s: %s", each.address, problem)
