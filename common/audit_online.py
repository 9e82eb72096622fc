"""An auditor who was invited: joins, looks at the log where it is kept, and fetches everything for an audit at home.

What comes is judged by the audit and nobody else. What is read is counted at the coordinator.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

from common.errors import ConflictError, MalformedError, NotFoundError, TooLargeError, VerificationError
from common.files import make_private_directory, read_required, write_atomic, write_secret
from common.rpc.auditor import AuditorCalls, redeem
from common.rpc.identity import TlsIdentity
from common.trust import strict_json
from common.trust.invitation import Invitation
from common.trust.note import Checkpoint
from common.trust.pki import check_roots, identity_of, make_csr, new_key
from common.trust.root import TrustedRoot
from common.trust.verify import check_checkpoint, check_growth

OnBytes = Callable[[int, int], None]
"""(bytes done, bytes in all)."""
_ROLES: Final = ("auditor", "admin")
_OBJECT: Final = re.compile(r"objects/[0-9a-f]{64}")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_MOST_FILES: Final = 10_000_000
_CHECKPOINT: Final = "checkpoint"


@dataclass(frozen=True, slots=True)
class AuditorHome:
    """Where an auditor keeps its certificate and what it saw last."""

    path: Path

    @property
    def member(self) -> Path:
        """Who this is, and where the coordinator is."""
        return self.path / "auditor.json"

    @property
    def tls(self) -> Path:
        return self.path / "tls.pem"

    @property
    def authority(self) -> Path:
        return self.path / "authority.pem"

    @property
    def trusted_root(self) -> Path:
        return self.path / "trusted_root.json"

    @property
    def seen(self) -> Path:
        """The latest checkpoint that was verified: `audit verify --checkpoint` takes it."""
        return self.path / _CHECKPOINT


def enrol(home: AuditorHome, invitation: Invitation) -> str:
    """Join with an invitation as an auditor or an admin; returns the party. Joined before, it gets a new certificate.

    Raises:
        ConflictError: this home is somebody else's.
        NotPermittedError: the invitation is used, expired or not of this coordinator.
    """
    role, _, _ = invitation.owner.partition("/")
    if role not in _ROLES:
        raise MalformedError(
            f"this invitation is for {invitation.owner}; an owner joins with: concord owner enrol --invitation FILE"
        )
    member = strict_json.canonical({"party": invitation.owner, "target": invitation.target}) + b"\n"
    if home.member.exists() and home.member.read_bytes() != member:
        raise ConflictError(f"{home.path} is another party's, or of another coordinator; use another --home")
    make_private_directory(home.path)
    key, authority = _pending_key(home), invitation.authority.encode()
    certificate = redeem(
        invitation.enrolment_target, authority=authority, token=invitation.token, csr=_csr_of(home, key)
    )
    write_atomic(home.authority, authority)
    write_atomic(home.trusted_root, bytes(invitation.root))
    write_secret(home.tls, bytes(TlsIdentity(key, certificate, authority)))
    write_atomic(home.member, member)
    for path in (_key_path(home), _csr_path(home)):
        path.unlink(missing_ok=True)
    return invitation.owner


def _key_path(home: AuditorHome) -> Path:
    return home.path / "tls.key.next"


def _csr_path(home: AuditorHome) -> Path:
    return home.path / "tls.csr.next"


def _pending_key(home: AuditorHome) -> bytes:
    """The key of a request that may have been sent before a crash, or a new one."""
    if not _key_path(home).exists():
        write_secret(_key_path(home), new_key())
        _csr_path(home).unlink(missing_ok=True)
    return _key_path(home).read_bytes()


def _csr_of(home: AuditorHome, key: bytes) -> bytes:
    """The request for that key, the same bytes each time: a reply that was lost is given again."""
    if not _csr_path(home).exists():
        write_secret(_csr_path(home), make_csr(key))
    return _csr_path(home).read_bytes()


def connect(home: AuditorHome) -> AuditorCalls:
    """A connection, the certificate renewed where half of its life is over.

    Raises:
        NotFoundError: nobody has joined here.
    """
    hint = f"join first: concord audit enrol --home {home.path} --invitation FILE"
    target = strict_json.load_object(read_required(home.member, hint=hint), what=home.member.name)["target"]
    authority = read_required(home.authority, hint=hint)
    tls = TlsIdentity.parse(read_required(home.tls, hint=hint), authority=authority)
    facts = identity_of(tls.certificate)
    if datetime.now(UTC) > facts.not_before + (facts.not_after - facts.not_before) / 2:
        tls = _renew(home, str(target), tls)
    return AuditorCalls(str(target), tls=tls)


def _renew(home: AuditorHome, target: str, tls: TlsIdentity) -> TlsIdentity:
    key = new_key()
    with AuditorCalls(target, tls=tls) as calls:
        certificate, roots = calls.renew(make_csr(key))
    check_roots(roots)
    write_atomic(home.authority, roots)
    renewed = TlsIdentity(key, certificate, roots)
    write_secret(home.tls, bytes(renewed))
    return renewed


def look(home: AuditorHome) -> tuple[Checkpoint, Checkpoint | None]:
    """The log's head, verified to continue what was seen last, and that; the head is remembered.

    Raises:
        VerificationError: it does not continue it; the checkpoint that was seen stays, the new one is kept beside it.
    """
    with connect(home) as calls:
        root = TrustedRoot.parse(read_required(home.trusted_root, hint="enrol again"))
        data = calls.checkpoint()
        head = check_checkpoint(root, data)
        seen = check_checkpoint(root, home.seen.read_bytes()) if home.seen.exists() else None
        if seen is not None and seen.size <= head.size:
            proof = calls.consistency(seen.size, head.size) if 0 < seen.size < head.size else ()
            try:
                check_growth(seen, head, proof=proof)
            except VerificationError:
                write_atomic(home.path / "contradiction", data)
                raise
        elif seen is not None:
            write_atomic(home.path / "contradiction", data)
            raise VerificationError(
                f"the log has {head.size} entries; it had {seen.size} before: both checkpoints are kept"
            )
    write_atomic(home.seen, data)
    return head, seen


def fetch(home: AuditorHome, directory: Path, *, most_bytes: int, on_bytes: OnBytes) -> int:
    """Copy everything that is published into `directory`, for an audit; returns the number of files.

    Objects that are here whole are not read again; what is here and is no longer published is an error, not removed.

    Raises:
        TooLargeError: there is more than `most_bytes`.
        MalformedError: a name that no published file has.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with connect(home) as calls:
        listed = calls.listed()
        total = sum(size for _, size in listed)
        if len(listed) > _MOST_FILES or total > most_bytes:
            raise TooLargeError(f"{len(listed)} files of {total} bytes are published; allow more with --most-gigabytes")
        done = 0
        for name, size in sorted(listed, key=lambda each: each[0] == f"log/{_CHECKPOINT}"):  # what it is about first
            _copy(calls, directory, name, size)
            done += size
            on_bytes(done, total)
    return len(listed)


def _copy(calls: AuditorCalls, directory: Path, name: str, size: int) -> None:
    if not _PLAIN.fullmatch(name) or str(PurePosixPath(name)) != name:
        raise MalformedError(f"the coordinator names a file {name[:120]!r}, which it cannot have")
    target = directory / name
    if not target.resolve().is_relative_to(directory.resolve()):
        raise MalformedError(f"{target} would lie outside {directory}")
    if target.is_file() and target.stat().st_size == size and _OBJECT.fullmatch(name):
        return  # what it holds is for the audit to say
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            left = size + 1
            for piece in calls.read(name):
                left -= len(piece)
                if left < 0:
                    break  # it grows: the audit takes what the checkpoint is about
                file.write(piece)
        partial.replace(target)
    except NotFoundError:
        partial.unlink(missing_ok=True)  # replaced by a wider one, or withdrawn, since it was listed
