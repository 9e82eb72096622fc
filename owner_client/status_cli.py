"""`concord owner status`: where an owner stands, and what its daemon does now. Needs no connection."""

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from common.cli import JsonOption, existing, reporting
from common.console import size
from common.errors import ConcordError, ConflictError
from common.files import exclusive, read_required
from common.rpc.identity import TlsIdentity
from common.state_file import read_state
from common.trust.manifest import digest_of
from common.trust.pki import identity_of
from common.trust.root import TrustedRoot
from common.trust.statements import ConsentGrant, ExpertContribute, format_time, parse_time
from owner_client.campaign_folder import folders
from owner_client.config import OwnerHome, OwnerSettings
from owner_client.ledger import TRAFFIC, UPLOAD, ledger_at
from owner_client.options import HOME, HomeOption
from owner_client.review import Reviews

_FOLLOW_S = 1.0


def add_to(app: typer.Typer) -> None:
    """Put this command among the owner's."""
    app.command()(status)


def status(
    follow: Annotated[bool, typer.Option("--follow", help="Say it again every second, until ctrl-C.")] = False,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Where you stand, what the daemon does now, how far and how fast, and what is next. Needs no connection."""
    owner = OwnerHome(existing(home))
    with reporting(as_json) as reporter:
        while True:
            fields = standing(owner)
            reporter.result(fields if as_json else _readable(fields))
            if not follow:
                return
            time.sleep(_FOLLOW_S)


def standing(home: OwnerHome) -> dict[str, Any]:
    """Everything that can be said of an owner from its home."""
    settings = home.settings()
    root = TrustedRoot.parse(read_required(home.trusted_root, hint="restore it or enrol again"))
    return {
        "owner": settings.owner,
        "coordinator": settings.target,
        "trusted_root": digest_of(bytes(root)),
        **_certificate(home),
        **_consents(home, settings, root),
        "waiting_for_approval": _waiting(home, settings),
        "campaigns_waiting": [folder.id for folder in folders(home) if folder.waits],
        "sent_bytes": _sent(home),
        "daemon": state_of_daemon(home),
    }


def state_of_daemon(home: OwnerHome) -> Mapping[str, object]:
    """What the daemon said last; where none runs, that."""
    return {"running": is_running(home), **read_state(home.state)}


def is_running(home: OwnerHome) -> bool:
    """Whether a daemon runs in this home."""
    lock = home.path / "daemon.lock"
    if not lock.exists():
        return False
    try:
        with exclusive(lock, what="the daemon"):
            return False
    except ConflictError:
        return True


def _certificate(home: OwnerHome) -> dict[str, object]:
    from owner_client.membership import renewal_moment

    try:
        facts = identity_of(TlsIdentity.parse(home.tls.read_bytes(), authority=b"").certificate)
    except (OSError, ConcordError):
        return {"certificate_until": None, "renews_at": None}
    return {"certificate_until": format_time(facts.not_after), "renews_at": format_time(renewal_moment(facts))}


def _consents(home: OwnerHome, settings: OwnerSettings, root: TrustedRoot) -> dict[str, object]:
    from owner_client import participation
    from owner_client.chain import Chain

    chain, now = Chain(home.statements, party=settings.owner, key=None, root=root), datetime.now(UTC)
    grants = participation.grants_in_force(chain)
    grant: ConsentGrant | None = next((each for each in grants if parse_time(each.not_before) <= now), None)
    to_come = next((each for each in grants if parse_time(each.not_before) > now), None)
    said = chain.statements()
    contributed = any(isinstance(each.statement, ExpertContribute) and each.receipt for each in said)
    return {
        "consent_in_force": grant.record_id if grant else None,
        "consent_until": grant.not_after if grant else None,
        "consent_to_come": to_come.record_id if to_come else None,
        "consent_from": to_come.not_before if to_come else None,
        "expert_in_the_log": contributed,
        "statements": [each.statement.type for each in said if each.receipt],
        "not_in_the_log_yet": [each.statement.type for each in said if not each.receipt],
    }


def _waiting(home: OwnerHome, settings: OwnerSettings) -> list[str]:
    reviews = Reviews(home.reviews, settings=settings.egress, ledger=home.ledger)
    return [review.wanted.id for review in reviews.all() if review.answer == "waiting"]


def _sent(home: OwnerHome) -> int | None:
    """Bytes that left by calls, as the ledger has them; None where it cannot be believed."""
    with suppress(ConcordError):
        lines = ledger_at(home.ledger).lines()
        return sum(int(str(line["size_bytes"])) for line in lines if line["kind"] in (TRAFFIC, UPLOAD))
    return None


def _readable(fields: Mapping[str, Any]) -> dict[str, object]:
    """The same, the daemon's part as sentences."""
    said = {name: value for name, value in fields.items() if name != "daemon"}
    sent = fields["sent_bytes"]
    said["sent_bytes"] = "the ledger does not hold: concord owner ledger verify" if sent is None else size(sent)
    return {**said, **_sentences(fields["daemon"])}


def _sentences(daemon: Mapping[str, Any]) -> dict[str, object]:
    if not daemon["running"]:
        last = f"; it was last seen {daemon['updated_at']}: {daemon.get('doing', '')}" if "updated_at" in daemon else ""
        return {"daemon": f"none runs here: concord owner run{last}"}
    found: dict[str, object] = {"daemon": f"process {daemon.get('pid')}, since {daemon.get('started_at')}"}
    found["now"] = daemon.get("doing", "starting")
    if "task" in daemon:
        found["now"] = f"{daemon['task']}: {_how_far(daemon)}"
    found["log"] = (
        f"{daemon['log_entries']} entries, seen {daemon.get('contact_at')}" if "log_entries" in daemon else None
    )
    if "trouble" in daemon:
        found["trouble"] = f"{daemon['trouble']}; next try {daemon.get('next_try_at')}"
    if "warning" in daemon:
        found["warning"] = f"{daemon['warning']} ({daemon.get('warned_at')})"
    return found


def _how_far(daemon: Mapping[str, Any]) -> str:
    done, total, rate = daemon.get("done", 0), daemon.get("total", 0), daemon.get("mb_per_s")
    share = f"{100 * done / total:.0f}%" if total else "begun"
    return share + (f", {rate} MB/s" if rate is not None else "") + (f", {daemon['note']}" if "note" in daemon else "")
