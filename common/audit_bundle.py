"""The log, the trusted root and all manifests in one file: what an auditor needs who cannot reach the coordinator.

A ZIP archive of the public directory's own paths, without weights. It proves everything about consents and who is in
which release (steps 1 to 6), and which files each release is made of; the bytes of models need the files themselves.
The same log exports to the same bytes. Reading is strict: names, number and sizes of members are checked before any is
unpacked, and nothing but the expected paths is.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Final

from common.audit import Finding, Report, audit
from common.audit_fetch import fetch_log, fetch_manifests
from common.audit_files import ROOT_NAME, check_manifests, logged_manifests, withdrawn_directories
from common.errors import ConcordError, MalformedError, TooLargeError
from common.files import read_required
from common.trust.cosignature import Witness
from common.trust.manifest import MANIFEST_NAME
from common.trust.note import Checkpoint, Note
from common.trust.root import TrustedRoot
from common.trust.tiles import BUNDLE_ENTRIES, CHECKPOINT_NAME, COSIGNED_NAME, LogEntries, bundle_path, format_bundle
from common.trust.verify import StepFailed

SUFFIX: Final = ".zip"
MAX_MEMBER_BYTES: Final = 64 * 2**20
MAX_TOTAL_BYTES: Final = 8 * 2**30

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_HINT: Final = "this is not a coordinator's public directory, or not a whole copy of one"
_ALLOWED: Final = re.compile(
    rf"{re.escape(ROOT_NAME)}|log/(?:{CHECKPOINT_NAME}|{COSIGNED_NAME})|log/tile/entries/(?:x[0-9]{{3}}/)*[0-9]{{3}}(?:\.p/[0-9]{{1,3}})?|"
    rf"(?:base|releases)/[a-z0-9][a-z0-9._-]{{0,63}}/{re.escape(MANIFEST_NAME)}"
)


def export(public: Path, output: Path) -> int:
    """Write what `public` says now as one file; returns the number of log entries in it.

    Raises:
        NotFoundError: `public` is no public directory.
    """
    # The checkpoint before entries, which may land meanwhile; after what is cosigned, which is of it or an earlier one.
    cosigned = _read_if_there(public / "log" / COSIGNED_NAME)
    checkpoint = read_required(public / "log" / CHECKPOINT_NAME, hint=_HINT)
    partial = output.with_name(f".{output.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in _members(public, checkpoint, cosigned):  # one by one: a log may be larger than memory
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return _size(checkpoint)


def _read_if_there(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _members(public: Path, checkpoint: bytes, cosigned: bytes | None) -> Iterator[tuple[str, bytes]]:
    if cosigned is not None:
        yield f"log/{COSIGNED_NAME}", cosigned
    yield f"log/{CHECKPOINT_NAME}", checkpoint
    yield ROOT_NAME, read_required(public / ROOT_NAME, hint=_HINT)
    entries = LogEntries(lambda path: read_required(public / "log" / path, hint=_HINT), size=_size(checkpoint))
    for start in range(0, len(entries), BUNDLE_ENTRIES):
        bundle = entries[start : start + BUNDLE_ENTRIES]
        yield f"log/{bundle_path(start // BUNDLE_ENTRIES, width=len(bundle))}", format_bundle(bundle)
    for manifest in sorted([*public.glob(f"base/*/{MANIFEST_NAME}"), *public.glob(f"releases/*/{MANIFEST_NAME}")]):
        yield str(manifest.relative_to(public)), manifest.read_bytes()


def _size(checkpoint: bytes) -> int:
    return Checkpoint.parse(Note.parse(checkpoint).text).size


def unpack(bundle: Path, directory: Path) -> None:
    """Unpack a bundle into an empty directory, where it is audited as a public directory without weights is.

    Raises:
        MalformedError: no bundle, or one with members that do not belong into it.
        TooLargeError: it would unpack to more than a bundle may hold.
    """
    try:
        with zipfile.ZipFile(bundle) as archive:
            _check(bundle, archive.infolist())
            for member in archive.infolist():
                target = directory / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as stream:
                    data = stream.read(member.file_size + 1)
                if len(data) != member.file_size:
                    raise MalformedError(f"{bundle}: {member.filename} is not as long as the archive says")
                target.write_bytes(data)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise MalformedError(f"{bundle}: cannot be read as a bundle ({error}); export it again") from error


def audit_bundle(
    bundle: Path | str,
    *,
    root: TrustedRoot | None = None,
    last_seen: bytes | None = None,
    was_audited: bool = False,
    quorum: int = 0,
    witnesses: Sequence[Witness] | None = None,
    receipts: Mapping[str, bytes] = MappingProxyType({}),
) -> Report:
    """Steps 1 to 6 over a bundle, and of step 7 that its manifests are those that the log names.

    The same of what is published at an address. Arguments and errors are those of `common.audit.audit`, `unpack` and
    `common.audit_fetch.fetch_log`.
    """
    folder = TemporaryDirectory(prefix="concord-audit-")  # gone with the report that reads from it
    public = Path(folder.name)
    if isinstance(bundle, str):
        fetch_log(bundle, public, root=root)
    else:
        unpack(bundle, public)
    report = audit(
        public,
        root=root,
        last_seen=last_seen,
        was_audited=was_audited,
        log_alone=True,
        quorum=quorum,
        witnesses=witnesses,
        receipts=receipts,
    )
    report.keeps = folder
    if report.holds and isinstance(bundle, str):
        fetch_manifests(bundle, public, logged_manifests(public, report.history))
    if report.holds:
        _check_manifests(public, report)
    return report


def _check_manifests(public: Path, report: Report) -> None:
    try:
        logged = check_manifests(public, report.history)
        shown = {path.parent for kind in ("base", "releases") for path in public.glob(f"{kind}/*/{MANIFEST_NAME}")}
        if unknown := sorted(shown - logged.keys() - withdrawn_directories(public, report.history)):
            raise StepFailed(7, f"{unknown[0].relative_to(public)} is published but the log does not name it")
    except ConcordError as error:
        found = str(error if isinstance(error, StepFailed) else StepFailed(7, str(error)))
        report.findings.append(Finding(7, holds=False, found=found))
    else:
        report.found(7, f"{len(logged)} manifests as logged; there are no weights here to compare with them")


def _check(bundle: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if strange := next((name for name in names if not _ALLOWED.fullmatch(name)), None):
        raise MalformedError(f"{bundle}: {strange[:80]!r} does not belong into a bundle; export it again")
    if len(set(names)) != len(names):
        raise MalformedError(f"{bundle}: names a member twice; export it again")
    if any(member.file_size > MAX_MEMBER_BYTES for member in members) or (
        sum(member.file_size for member in members) > MAX_TOTAL_BYTES
    ):
        raise TooLargeError(f"{bundle}: unpacks to more than a bundle may hold")
