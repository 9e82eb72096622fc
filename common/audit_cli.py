"""`concord audit`: what an auditor does. Needs no connection, no account and nobody's word."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Annotated

import typer

from common.audit import Report, audit
from common.audit_answers import ReleaseAnswer, about_owner, about_release, describe, removal
from common.audit_bundle import audit_bundle, export
from common.audit_fetch import is_address
from common.audit_rebuild import rebuild
from common.cli import EXIT_FAILED, JsonOption, existing, new_app, reporting
from common.console import Reporter
from common.errors import ConcordError, MalformedError, NotFoundError, VerificationError
from common.files import read_required, write_atomic
from common.trust.cosignature import Witness
from common.trust.evidence import Evidence, judge
from common.trust.manifest import digest_of
from common.trust.receipts import parse_revocation
from common.trust.root import TrustedRoot
from common.trust.statements import Statement, parse_note

PublicArgument = Annotated[
    str, typer.Argument(help="The coordinator's public directory or a copy, a bundle made by export, or an address.")
]
RootOption = Annotated[Path | None, typer.Option(help="The trusted root you were given out of band.")]

app = new_app("Check a consortium's published files and log, trusting nobody.")


@app.callback()
def group() -> None:
    """Check a consortium's published files and log, trusting nobody."""


@app.command()
def verify(
    public: PublicArgument,
    root: RootOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File with the last checkpoint you saw; kept up to date.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=0, help="How many witnesses must have cosigned.")] = 0,
    witnesses: Annotated[
        Path | None, typer.Option(help="File with the key lines of the witnesses you trust; by default the owners'.")
    ] = None,
    receipt: Annotated[
        list[Path] | None, typer.Option(help="A witness's receipt for a revocation: it has to be in the log.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay everything: signatures, proofs, consents, opt-outs, and every byte of every release. Exit 0 or 1."""
    trusted = _trusted(root)
    seen = _own_file(checkpoint) if checkpoint and checkpoint.exists() else None
    audited = _audited(checkpoint) if checkpoint else None
    was_audited = seen is not None and audited is not None and _is_record(audited, seen, trusted)
    known = None if witnesses is None else _witnesses(existing(witnesses))
    receipts = {str(path): _receipt(existing(path)) for path in receipt or ()}
    report = _audit(public, trusted, last_seen=seen, quorum=quorum, witnesses=known, receipts=receipts,
                    was_audited=was_audited)  # fmt: skip
    with reporting(as_json) as reporter:
        for finding in report.findings:
            if finding.holds:
                reporter.step(f"{finding.step}. {finding.title}: {finding.found}")
        _conclude(reporter, report)
        kept = _keep_evidence(checkpoint, seen, report) if checkpoint and seen else None
        if kept is not None:
            reporter.warning(
                f"both checkpoints are kept in {kept}; have it judged: concord audit evidence {kept} --root ROOT "
                f"--public {public}"
            )
        if trusted is None:
            reporter.warning("the trusted root was taken from the published files; give --root to check whose they are")
        reporter.result(_fields(report, as_json) | ({} if kept is None else {"evidence": str(kept)}))
    if report.holds and checkpoint:
        write_atomic(checkpoint, report.checkpoint)
        if trusted is not None:
            write_atomic(_audited(checkpoint), _record(report.checkpoint, trusted))
    if not report.holds:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def log(
    public: PublicArgument,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the log: who said what and when, entry by entry, as far as every signature and rule holds."""
    report = _audit(public, _trusted(root), log_alone=True)
    with reporting(as_json) as reporter:
        for line in report.log_lines:
            reporter.step(line)
        _conclude(reporter, report)
        entries = [_entry(index, statement) for index, statement in enumerate(report.statements)]
        reporter.result({"audit": report.holds, "entries": entries if as_json else len(entries)})
    if not report.holds:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def show(
    index: Annotated[int, typer.Argument(min=0, help="Number of the entry, as `audit log` lists it.")],
    public: PublicArgument,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """One entry of the log as it was signed: what it says, who signed it, and its digest."""
    with reporting(as_json) as reporter:
        report = _holding(_audit(public, _trusted(root), log_alone=True))
        if index >= len(report.entries):
            raise NotFoundError(f"the log has {len(report.entries)} entries, 0 to {len(report.entries) - 1}")
        note, statement = parse_note(report.entries[index])
        reporter.step(f"entry {index}, {statement.issued_at}: {statement.party} {describe(statement)}")
        for line in note.text.splitlines():
            reporter.step(line)
        signers = [f"{signature.name}+{signature.key_id}" for signature in note.signatures]
        reporter.step(f"signed by {', '.join(signers)}")
        reporter.result({**_entry(index, statement), "digest": statement.digest, "signed_by": signers})


@app.command()
def release(
    name: Annotated[str, typer.Argument(help="Name of the release, such as release-1.")],
    public: PublicArgument,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who is in a release, by which consents, under which terms and until when; and why everybody else is not."""
    with reporting(as_json) as reporter:
        found = about_release(_holding(_audit(public, _trusted(root), log_alone=True)), name)
        said = found.statement
        until = f", good until {said.not_after}" if said.not_after else ""
        reporter.step(
            f"{name} of line {said.line}, {said.issued_at} (entry {found.index}), over base {found.round}{until}"
        )
        if found.withdrawn is not None:
            when = found.withdrawn.statement.issued_at
            reporter.warning(f"{name} was withdrawn by entry {found.withdrawn.index}, {when}: its files are gone")
        for member in found.members:
            reporter.step(f"slot {member.slot}: {member.owner} {describe(member.grant)}")
            if member.revoked is not None:
                when, said_since = member.revoked.statement.issued_at, member.revoked.said
                reporter.warning(f"since then, {when} (entry {member.revoked.index}): {member.owner} {said_since}")
        for owner, reason in found.others.items():
            reporter.step(f"not in it: {owner}, {reason}")
        reporter.result(_release_fields(found) if as_json else {"release": name, "experts": len(found.members)})


def _release_fields(found: ReleaseAnswer) -> dict[str, object]:
    experts = [
        {
            "slot": member.slot,
            "owner": member.owner,
            "expert_digest": member.expert_digest,
            "grant_index": member.grant_index,
            "revoked_index": None if member.revoked is None else member.revoked.index,
            "grant": member.grant.model_dump(mode="json", exclude_none=True),
        }
        for member in found.members
    ]
    said = found.statement
    return {
        "release": said.release,
        "index": found.index,
        "manifest_digest": said.manifest_digest,
        "not_after": said.not_after,
        "withdrawn_index": None if found.withdrawn is None else found.withdrawn.index,
        "experts": experts,
        "others": found.others,
    }


@app.command()
def owner(
    name: Annotated[str, typer.Argument(help="Name of the owner.")],
    public: PublicArgument,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """All that an owner ever said, and the releases that hold its expert."""
    with reporting(as_json) as reporter:
        events, slots = about_owner(_holding(_audit(public, _trusted(root), log_alone=True)), name)
        for event in events:
            reporter.step(f"{event.index:>4}  {event.statement.issued_at}  {event.said}")
        for held, slot in slots.items():
            reporter.step(f"in {held}, slot {slot}")
        entries = [_entry(event.index, event.statement) for event in events]
        reporter.result(
            {
                "owner": name,
                "entries": entries if as_json else len(entries),
                "releases": slots if as_json else len(slots),
            }
        )


@app.command("removal")
def show_removal(
    before: Annotated[str, typer.Argument(help="The release with the owner.")],
    after: Annotated[str, typer.Argument(help="The release without.")],
    public: Annotated[Path, typer.Argument(help="The coordinator's public directory, or a copy of it.")],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that a release is another one without somebody's expert, and in nothing else different, byte by byte."""
    with reporting(as_json) as reporter:
        place = _with_weights(public)
        found = removal(place, _holding(audit(place, root=_trusted(root))), before, after)
        for left, digest in found.left.items():
            reporter.step(f"gone: {left}, expert {digest}")
        reporter.step(f"as before: {', '.join(found.kept) or 'nobody else'}; {found.num_tensors} tensors compared")
        reporter.result({"left": found.left, "kept": list(found.kept), "tensors": found.num_tensors})


@app.command("rebuild")
def rebuild_release(
    name: Annotated[str, typer.Argument(help="Name of the release, such as release-1.")],
    public: Annotated[Path, typer.Argument(help="The coordinator's public directory, or a copy of it.")],
    root: RootOption = None,
    output: Annotated[Path | None, typer.Option(help="Keep what is made in this new directory.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a release again from its inputs and compare: the same bytes, file by file. Keep it with --output."""
    with reporting(as_json) as reporter, TemporaryDirectory(prefix="concord-rebuild-") as folder:
        place = _with_weights(public)
        report = _holding(_audit(place, _trusted(root), log_alone=True))
        target = existing(output) if output else Path(folder) / name
        found = rebuild(place, report, name, target)
        reporter.step(f"{name} made again from its inputs: {len(found.made)} files, the same bytes as published")
        for file in found.taken_over:
            reporter.step(f"{file} is what the coordinator measured; it was taken over as it is")
        reporter.result({"release": name, "files": list(found.made), "taken_over": list(found.taken_over)})


@app.command("evidence")
def evidence(
    file: Annotated[Path, typer.Argument(help="What an owner or a witness kept when two checkpoints contradicted.")],
    root: Annotated[Path, typer.Option(help="The trusted root that you know the log by.")],
    public: Annotated[
        str | None, typer.Option(help="The published log, where the checkpoints are of different sizes.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge evidence against a log as a third person. Exit 0 if it proves that the log contradicts itself, else 1."""
    with reporting(as_json) as reporter:
        found = Evidence.parse(read_required(existing(file), hint="name a file of evidence"))
        trusted = TrustedRoot.parse(read_required(existing(root), hint="ask for it out of band"))
        report = None if public is None else _holding(_audit(public, trusted, log_alone=True))
        proven = judge(found, trusted, entries=None if report is None else report.entries)
        reporter.step(f"proven: {proven}")
        reporter.result({"proven": proven})


@app.command("export")
def export_bundle(
    public: Annotated[Path, typer.Argument(help="The coordinator's public directory, or a copy of it.")],
    output: Annotated[Path, typer.Option(help="The bundle to write.")] = Path("concord-audit.zip"),
    as_json: JsonOption = False,
) -> None:
    """Put the log, the trusted root and all manifests into one file, for an audit without a connection."""
    with reporting(as_json) as reporter:
        target = existing(output)
        size = export(_with_weights(public), target)
        reporter.step(
            f"{size} entries and every manifest are in {target}; check it with: concord audit verify {output}"
        )
        reporter.result({"bundle": str(target), "entries": size})


def _with_weights(public: Path) -> Path:
    """A public directory on this machine: neither an address nor a bundle has the weights."""
    if is_address(str(public).replace(":/", "://", 1)):
        raise MalformedError(f"{public} is an address; fetch the whole public directory and name where it is")
    place = existing(public)
    if place.is_file():
        raise MalformedError(f"{place}: a bundle holds no weights; give the public directory")
    return place


def _own_file(path: Path) -> bytes:
    """A file beside the audit, which a pipe or a device is not."""
    if not path.is_file():
        raise MalformedError(f"{path} is no plain file")
    return read_required(path, hint="name a file")


def _receipt(path: Path) -> bytes:
    """A receipt as far as it can be judged without the log."""
    if not path.exists():
        raise NotFoundError(f"{path} is not there; name a receipt that a witness gave")
    data = _own_file(path)
    try:
        parse_revocation(data)
    except ConcordError as error:
        raise MalformedError(f"{path} is no receipt: {error}") from error
    return data


def _witnesses(path: Path) -> list[Witness]:
    lines = read_required(path, hint="it holds a line a witness: NAME+KEY ID+BASE64").decode(errors="replace")
    found = [Witness.parse(line) for line in lines.splitlines() if line and not line.startswith("#")]
    if len({witness.public_key for witness in found}) < len(found):
        raise MalformedError(f"{path} names a witness twice; a quorum counts each key once")
    return found


def _audit(
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


def _keep_evidence(checkpoint: Path, seen: bytes, report: Report) -> Path | None:
    """Keep the checkpoint seen last and the published one, beside the former, where one does not continue the other."""
    if report.holds or report.findings[-1].step != 2:
        return None
    evidence = Evidence((seen, report.checkpoint))
    target = checkpoint.with_name(f"{checkpoint.name}.evidence-{evidence.file_name}")
    write_atomic(target, bytes(evidence))
    return target


def _audited(checkpoint: Path) -> Path:
    """Beside the last checkpoint: the record that an audit by us, of a root given to us, held up to it."""
    return checkpoint.with_name(f"{checkpoint.name}.audited")


def _record(checkpoint: bytes, root: TrustedRoot) -> bytes:
    return f"{digest_of(checkpoint)}\n{digest_of(bytes(root))}\n".encode()


def _is_record(path: Path, checkpoint: bytes, root: TrustedRoot | None) -> bool:
    return root is not None and path.exists() and path.read_bytes() == _record(checkpoint, root)


def _holding(report: Report) -> Report:
    """The report of an audit that holds; nothing is answered from another one."""
    if not report.holds:
        raise VerificationError(report.findings[-1].found)
    return report


def _conclude(reporter: Reporter, report: Report) -> None:
    for finding in report.findings:
        if not finding.holds:
            reporter.warning(f"FAILS: {finding.found}")
    if not report.holds:
        reporter.warning("the audit FAILED; the steps after it were not taken")


def _trusted(root: Path | None) -> TrustedRoot | None:
    return TrustedRoot.parse(read_required(root, hint="ask for it out of band")) if root else None


def _entry(index: int, statement: Statement) -> dict[str, object]:
    return {"index": index, "type": statement.type, **statement.model_dump(mode="json", exclude_none=True)}


def _fields(report: Report, as_json: bool) -> dict[str, object]:
    return {
        "audit": report.holds,
        "steps": {str(finding.step): finding.holds for finding in report.findings},
        "releases": report.releases if as_json else len(report.releases),  # step 5 says which
    }
