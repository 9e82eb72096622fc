"""`concord coordinator invite`, `owners`, `revoke` and `rotate`: who may call, and with what."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from common.cli import JsonOption, existing, reporting
from common.errors import ConflictError, MalformedError
from common.files import write_secret
from common.trust.identity import INVITED, OWNER
from common.trust.manifest import digest_of
from common.trust.pki import fingerprint
from common.trust.statements import COORDINATOR, CertRevoke, format_time
from coordinator.authority import Authorities, finish_root, rotate_issuing, rotate_root
from coordinator.home import Coordinator, open_home
from coordinator.invitations import invitation_for
from coordinator.options import HOME, HomeOption
from coordinator.server_identity import rotate_server, server_identity

_SHOWN = 16
_COLUMNS = ("party", "role", "certificate", "since", "root", "reads")

rotate_app = typer.Typer(
    help="Change keys while owners go on: the server's, the issuing authority's, the root's.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
RootKeyOption = Annotated[
    Path | None, typer.Option("--root-key", help="File with the root's key; by default in the home.")
]


def add_to(app: typer.Typer) -> None:
    """Put these commands among the coordinator's."""
    app.command()(invite)
    app.command()(owners)
    app.command()(revoke)
    app.add_typer(rotate_app, name="rotate")


def invite(
    owner: Annotated[str, typer.Argument(help="The owner's name: small letters, digits and '-'.")],
    output: Annotated[Path, typer.Option(help="File for the invitation, or - for standard output; it is a secret.")],
    role: Annotated[str, typer.Option(help=f"What they are invited as: {', '.join(INVITED)}.")] = OWNER,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Write an invitation with which one party may join, or get a new certificate if it has joined, once and soon."""
    if role not in INVITED:
        raise MalformedError(f"nobody is invited as {role[:40]!r}; choose one of {', '.join(INVITED)}")
    to_stdout = str(output) == "-"
    path = output if to_stdout else existing(output)
    if not to_stdout and path.exists():
        raise ConflictError(f"{path} exists already; choose another --output")
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        invitation = invitation_for(coordinator, owner if role == OWNER else f"{role}/{owner}")
        if to_stdout:
            sys.stdout.buffer.write(bytes(invitation))
            return
        write_secret(path, bytes(invitation))
        minutes = coordinator.settings.invitation_minutes
        if role == OWNER and coordinator.enrolment.has_joined(owner):
            reporter.step(f"{owner} has joined: redeemed in its own home, this gives it a new certificate")
        reporter.step(f"invitation for {owner} in {path}: good once, for {minutes:g} minutes; keep it secret")
        said = digest_of(bytes(invitation.root))
        reporter.step(f"tell them by another way what `concord owner status` must show as trusted_root: {said}")
        reporter.result({"invitation": str(path), "owner": owner})


def owners(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Everybody who may call: in what role, by which certificate and until when, and what auditors read."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        rows = _rows(coordinator, datetime.now(UTC))
        reporter.table("parties", _COLUMNS, rows)
        found = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        reporter.result({"parties": found if as_json else len(found)})


def _rows(coordinator: Coordinator, now: datetime) -> list[tuple[str, ...]]:
    latest, reads = coordinator.enrolment.latest_certificates(), coordinator.enrolment.reads.by_party()
    joined = coordinator.registry.head().parties.keys() - {COORDINATOR}
    roots = [fingerprint(root) for root in coordinator.authority.now.roots]
    names = {fingerprint: ("present", "old")[place] for place, fingerprint in enumerate(roots)}
    rows: list[tuple[str, ...]] = []
    for party in sorted(joined | latest.keys()):
        role, _, name = party.rpartition("/")
        each = latest.get(party)
        certificate = ("none", "", "") if each is None else (
            each.describe(at=now), format_time(each.issued_at), f"{names.get(each.root, 'gone')} {each.root[:_SHOWN]}"
        )  # fmt: skip
        rows.append((name, role or OWNER, *certificate, str(reads.get(party, "")) if role == "auditor" else ""))
    return rows


def revoke(
    owner: Annotated[str, typer.Argument(help="Whose certificates are good no longer; auditor/NAME for an auditor.")],
    reason: Annotated[str | None, typer.Option(help="Why, for the log; everybody can read it.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Revoke a party's certificates, from its next call on. Consents and experts stay; an invitation lets it back."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        latest = coordinator.enrolment.latest_certificates().get(owner)
        if latest is not None and latest.is_revoked:
            raise ConflictError(f"the certificates of {owner} are revoked already; an invitation lets it back")
        if "/" in owner:
            coordinator.enrolment.revoke(owner)
            reporter.step(f"the certificates of {owner} are revoked; those of an owner are by a statement in the log")
            reporter.result({"owner": owner, "entry": None})
            return
        fields = {"owner": owner} | ({} if reason is None else {"reason": reason})
        recorded = coordinator.registry.issue(CertRevoke, **fields)
        reporter.step(f"the certificates of {owner} are revoked: entry {recorded.leaf_index} of the log")
        reporter.result({"owner": owner, "entry": recorded.leaf_index})


@rotate_app.command()
def server(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """A new key and certificate for the coordinator itself, shown from the next handshake on."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        shown = fingerprint(rotate_server(coordinator).certificate)
        reporter.step(f"the coordinator shows a new certificate from now on: {shown}")
        reporter.result({"server": shown})


@rotate_app.command()
def intermediate(root_key: RootKeyOption = None, home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """A new issuing authority under the same root. What the old one issued stays good until it lapses."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        changed = rotate_issuing(coordinator.home.keys, root_key=root_key and existing(root_key))
        rotate_server(coordinator)
        reporter.step("certificates are issued by a new authority from now on; owners get theirs when they renew")
        reporter.result(_fields(changed))


@rotate_app.command()
def root(
    finish: Annotated[bool, typer.Option("--finish", help="Trust the old root no longer.")] = False,
    at_once: Annotated[
        bool,
        typer.Option("--at-once", help="With --finish: also where somebody has not renewed; they need invitations."),
    ] = False,
    root_key: RootKeyOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """A new root: both are trusted until everybody has renewed under the new one and `--finish` ends the old one."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        if not finish:
            changed = rotate_root(coordinator.home.keys, root_key=root_key and existing(root_key))
            server_identity(coordinator)
            reporter.step("new certificates are under a new root from now on; its key is root.key: take it away")
            reporter.step("when everybody has renewed (concord coordinator owners): rotate root --finish")
        else:
            behind = _behind(coordinator, datetime.now(UTC)) if coordinator.authority.now.is_changing else []
            if behind and not at_once:
                raise ConflictError(
                    f"still under the old root: {', '.join(behind)}; owners' daemons renew by themselves, auditors at "
                    "`audit look`; or give them invitations and use --at-once"
                )
            changed = finish_root(coordinator.home.keys)
            rotate_server(coordinator)
            reporter.step("the old root is trusted no longer")
            for party in behind:
                reporter.warning(f"{party} needs an invitation")
        reporter.result(_fields(changed))


def _behind(coordinator: Coordinator, now: datetime) -> list[str]:
    """Who has a good certificate that is not under the present root."""
    present = coordinator.authority.root_fingerprint
    latest = coordinator.enrolment.latest_certificates().items()
    return sorted(
        party for party, each in latest if not each.is_revoked and now < each.not_after and each.root != present
    )


def _fields(changed: Authorities) -> dict[str, object]:
    return {
        "issuing": fingerprint(changed.issuing.certificate_pem),
        "roots": [fingerprint(root) for root in changed.roots],
    }
