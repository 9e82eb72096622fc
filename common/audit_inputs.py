"""What the commands of an audit are given: where the published files are, the root, receipts, witnesses, and what an
earlier audit left beside its last checkpoint.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from common.audit import Report, audit
from common.audit_bundle import audit_bundle
from common.audit_fetch import is_address
from common.cli import existing
from common.errors import ConcordError, MalformedError, NotFoundError, VerificationError
from common.files import read_required, write_atomic
from common.trust.cosignature import Witness
from common.trust.evidence import Evidence
from common.trust.manifest import digest_of
from common.trust.receipts import parse_revocation
from common.trust.root import TrustedRoot


def with_weights(public: str) -> Path:
    """A public directory on this machine: neither an address nor a bundle has the weights."""
    if is_address(public):
        raise MalformedError(f"{public} is an address; fetch the whole public directory and name where it is")
    place = existing(Path(public))
    if place.is_file():
        raise MalformedError(f"{place}: a bundle holds no weights; give the public directory")
    return place


def own_file(path: Path) -> bytes:
    """A file beside the audit, which a pipe or a device is not."""
    if not path.is_file():
        raise MalformedError(f"{path} is no plain file")
    return read_required(path, hint="name a file")


def receipt_in(path: Path) -> bytes:
    """A receipt as far as it can be judged without the log."""
    if not path.exists():
        raise NotFoundError(f"{path} is not there; name a receipt that a witness gave")
    data = own_file(path)
    try:
        parse_revocation(data)
    except ConcordError as error:
        raise MalformedError(f"{path} is no receipt: {error}") from error
    return data


def witnesses_in(path: Path) -> list[Witness]:
    """The witnesses in a file, a key line each."""
    lines = read_required(path, hint="it holds a line a witness: NAME+KEY ID+BASE64").decode(errors="replace")
    found = [Witness.parse(line) for line in lines.splitlines() if line and not line.startswith("#")]
    if len({witness.public_key for witness in found}) < len(found):
        raise MalformedError(f"{path} names a witness twice; a quorum counts each key once")
    return found


def audit_place(
    public: Path | str,
    root: TrustedRoot | None,
    *,
    last_seen: bytes | None = None,
    log_alone: bool = False,
    quorum: int = 0,
    witnesses: list[Witness] | None = None,
    receipts: Mapping[str, bytes] = MappingProxyType({}),
    was_audited: bool = False,
) -> Report:
    """Audit what is there: a public directory, a bundle or an address. Arguments are those of `audit`."""
    place = public if isinstance(public, str) and is_address(public) else existing(Path(public))
    if isinstance(place, str) or place.is_file():
        return audit_bundle(
            place,
            root=root,
            last_seen=last_seen,
            was_audited=was_audited,
            quorum=quorum,
            witnesses=witnesses,
            receipts=receipts,
        )
    return audit(
        place,
        root=root,
        last_seen=last_seen,
        was_audited=was_audited,
        log_alone=log_alone,
        quorum=quorum,
        witnesses=witnesses,
        receipts=receipts,
    )


def keep_evidence(checkpoint: Path, seen: bytes, report: Report) -> Path | None:
    """Keep the checkpoint seen last and the published one, beside the former, where one does not continue the other."""
    if report.holds or report.findings[-1].step != 2:
        return None
    evidence = Evidence((seen, report.checkpoint))
    target = checkpoint.with_name(f"{checkpoint.name}.evidence-{evidence.file_name}")
    write_atomic(target, bytes(evidence))
    return target


def audited_beside(checkpoint: Path) -> Path:
    """Beside the last checkpoint: the record that an audit by us, of a root given to us, held up to it."""
    return checkpoint.with_name(f"{checkpoint.name}.audited")


def record_of(checkpoint: bytes, root: TrustedRoot) -> bytes:
    """What that record says: up to which checkpoint, by which root."""
    return f"{digest_of(checkpoint)}\n{digest_of(bytes(root))}\n".encode()


def is_record(path: Path, checkpoint: bytes, root: TrustedRoot | None) -> bool:
    """Whether it is there and says this."""
    return root is not None and path.exists() and path.read_bytes() == record_of(checkpoint, root)


def holding(report: Report) -> Report:
    """The report of an audit that holds; nothing is answered from another one."""
    if not report.holds:
        raise VerificationError(report.findings[-1].found)
    return report


def trusted_root(root: Path | None) -> TrustedRoot | None:
    """The root in a file, if one is named."""
    return TrustedRoot.parse(read_required(root, hint="ask for it out of band")) if root else None
