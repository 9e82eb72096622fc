"""A witness: says of each checkpoint that is brought to it whether it continues all it has seen (C2SP tlog-witness).

Anybody can run one beside or instead of an owner's daemon. It also takes revocations straight from owners, for a timed
receipt (`common/trust/receipts.py`). What it has cosigned is on disk before it answers; two checkpoints that contradict
each other are kept as evidence.
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from threading import Lock
from typing import Final

from common.errors import (
    ConcordError,
    ConflictError,
    MalformedError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
    VerificationError,
)
from common.files import make_private_directory, read_required, write_atomic, write_into, write_secret
from common.http_server import BoundedServer, QuietHandler
from common.trust.cosignature import Witness, cosign, sign_receipt
from common.trust.evidence import Evidence
from common.trust.manifest import digest_of
from common.trust.note import Checkpoint, Note, SigningKey
from common.trust.receipts import MAX_RECEIPT_BYTES, parse_revocation
from common.trust.root import TrustedRoot
from common.trust.tlog_witness import (
    ADD_CHECKPOINT,
    MAX_REQUEST_BYTES,
    SIZE_TYPE,
    AddCheckpoint,
    format_cosignatures,
)
from common.trust.verify import StepFailed, check_checkpoint, check_growth

logger = logging.getLogger(__name__)

ADD_REVOCATION: Final = "add-revocation"
_KEY: Final = "witness.key"
_NAME: Final = "witness.name"
_LENGTH_DIGITS: Final = 12
_HINT: Final = "make a witness there with: concord witness init --home DIR --name NAME"


class StaleError(ConflictError):
    """The request starts from another size than the witness is at."""

    def __init__(self, size: int) -> None:
        super().__init__(f"this witness is at {size} entries")
        self.size = size


@dataclass(frozen=True, slots=True)
class WitnessHome:
    """The directory of one witness: its key, the trusted roots of the logs it watches, and what it has seen of them."""

    path: Path

    @classmethod
    def create(cls, path: Path, *, name: str) -> "WitnessHome":
        """A new witness with a new key.

        Raises:
            ConflictError: there is one already; nothing is changed.
            MalformedError: no key may be called so.
        """
        if (path / _KEY).exists():
            raise ConflictError(f"{path} is a witness's home already; choose another directory with --home")
        try:
            key = SigningKey.generate(name)
        except ValueError as error:
            raise MalformedError(str(error)) from error
        make_private_directory(path)
        (path / "roots").mkdir(exist_ok=True)
        write_atomic(path / _NAME, f"{name}\n".encode())
        write_secret(path / _KEY, key.to_pem())
        return cls(path)

    def key(self) -> SigningKey:
        """Its key; `NotFoundError` where this is no witness's home."""
        pem = read_required(self.path / _KEY, hint=_HINT)
        return SigningKey.from_pem(pem, name=read_required(self.path / _NAME, hint=_HINT).decode().strip())

    def watch(self, root: TrustedRoot) -> None:
        """Witness this log from now on.

        Raises:
            ConflictError: a log of that origin with other keys is watched already.
        """
        file = self.path / "roots" / f"{_place(root.origin)}.json"
        if file.exists() and file.read_bytes() != bytes(root):
            raise ConflictError(f"{root.origin} is watched already, by other keys; ask its admin which are right")
        write_atomic(file, bytes(root))

    def roots(self) -> list[TrustedRoot]:
        """The logs that it watches."""
        return [TrustedRoot.parse(file.read_bytes()) for file in sorted((self.path / "roots").glob("*.json"))]


def _place(origin: str) -> str:
    return digest_of(origin.encode()).removeprefix("sha256:")[:16]


class WitnessService:
    """What a witness does with what is brought to it. Thread-safe; one for a home."""

    def __init__(self, home: WitnessHome) -> None:
        self._home, self._key = home, home.key()
        self._roots = {root.origin: root for root in home.roots()}
        self._lock = Lock()

    @property
    def witness(self) -> Witness:
        """Its public half."""
        return Witness.of(self._key)

    def add_checkpoint(self, data: bytes) -> bytes:
        """Cosign a checkpoint that continues what was seen; returns the cosignature's line.

        Raises:
            MalformedError, TooLargeError: it is no request.
            NotFoundError: that log is not watched.
            VerificationError: it is not signed by the log, or contradicts what was cosigned; evidence is kept.
            StaleError: the proof starts elsewhere.
        """
        request = AddCheckpoint.parse(data)
        origin = Checkpoint.parse(Note.parse(request.checkpoint).text).origin
        if (root := self._roots.get(origin)) is None:
            raise NotFoundError(f"this witness does not watch {origin!r}")
        new = check_checkpoint(root, request.checkpoint)
        if request.old_size > new.size:
            raise MalformedError(f"a proof from {request.old_size} entries to {new.size}")
        with self._lock:
            self._check(root, request, new)
            line = cosign(Note.parse(request.checkpoint).text, self._key, at=datetime.now(UTC))
            write_atomic(self._seen(origin), request.checkpoint)
        return format_cosignatures([line])

    def _check(self, root: TrustedRoot, request: AddCheckpoint, new: Checkpoint) -> None:
        file = self._seen(root.origin)
        old = check_checkpoint(root, file.read_bytes()) if file.exists() else None
        at = old.size if old else 0
        if old is not None and old.size == new.size and old.root != new.root:
            self._keep(file.read_bytes(), request)
            raise StaleError(at)
        if request.old_size != at:
            raise StaleError(at)
        try:
            check_growth(old, new, proof=request.proof)
            if old is None and request.proof:
                raise VerificationError("a proof from no entries is empty")
        except VerificationError:
            if old is not None:
                self._keep(file.read_bytes(), request)
            raise

    def _keep(self, seen: bytes, request: AddCheckpoint) -> None:
        evidence = Evidence((seen, request.checkpoint), request.proof)
        target = write_into(self._home.path / "evidence", evidence.file_name, bytes(evidence))
        logger.critical("a checkpoint contradicts what this witness has cosigned; both are kept in %s", target)

    def _seen(self, origin: str) -> Path:
        return self._home.path / f"seen-{_place(origin)}"

    def add_revocation(self, data: bytes) -> bytes:
        """Take a revocation; returns its receipt. Nothing is kept: anybody may bring anything, at any length.

        The time is this moment's; an owner keeps its first receipt. Whether the owner signed it, an auditor sees.

        Raises:
            MalformedError, TooLargeError: it is none.
            NotFoundError: its log is not watched.
        """
        if len(data) > MAX_RECEIPT_BYTES:
            raise TooLargeError(f"a revocation of {len(data)} bytes; at most {MAX_RECEIPT_BYTES} are read")
        note, statement = parse_revocation(data)
        root = self._roots.get(statement.origin)
        if root is None or root.federation != statement.federation:
            raise NotFoundError(f"this witness does not watch {statement.origin!r} of {statement.federation!r}")
        line = sign_receipt(note.text, self._key, at=datetime.now(UTC))
        return bytes(Note(note.text, (*note.signatures, line)))


_STATUS: Final[dict[type[ConcordError], HTTPStatus]] = {
    NotFoundError: HTTPStatus.NOT_FOUND,
    TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    MalformedError: HTTPStatus.BAD_REQUEST,
}


def make_server(service: WitnessService, *, host: str, port: int) -> BoundedServer:
    """An HTTP server for a witness; the caller starts and stops it. TLS is a proxy's work: answers are signed."""
    calls = {f"/{ADD_CHECKPOINT}": service.add_checkpoint, f"/{ADD_REVOCATION}": service.add_revocation}

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            try:
                call = calls.get(self.path)
                if call is None:
                    raise NotFoundError(f"nothing is at {self.path[:80]!r}; POST to {' or '.join(calls)}")
                self._answer(HTTPStatus.OK, call(self._body()))
            except StaleError as error:
                self._answer(HTTPStatus.CONFLICT, f"{error.size}\n".encode(), SIZE_TYPE)
            except VerificationError as error:
                is_unsigned = isinstance(error, StepFailed) and error.step == 1
                self._refuse(HTTPStatus.FORBIDDEN if is_unsigned else HTTPStatus.UNPROCESSABLE_ENTITY, error)
            except ConcordError as error:
                self._refuse(_STATUS.get(type(error), HTTPStatus.BAD_REQUEST), error)

        def _body(self) -> bytes:
            length = self.headers.get("Content-Length", "")
            if not length.isascii() or not length.isdigit():
                raise MalformedError("a request says how long it is")
            if len(length) > _LENGTH_DIGITS or int(length) > MAX_REQUEST_BYTES:
                raise TooLargeError(f"a request of {length[:20]} bytes; at most {MAX_REQUEST_BYTES} are read")
            return self.rfile.read(int(length))

        def _refuse(self, status: HTTPStatus, error: Exception) -> None:
            self._answer(status, f"{error}\n".encode())

        def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    try:
        return BoundedServer((host, port), Handler)
    except OSError as error:
        raise UnavailableError(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port"
        ) from error
