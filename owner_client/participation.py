"""Taking part: fetch the base, consent, train, submit, opt out.

Every step may be run again, after a crash at any point or just so: it finds what is done and does the rest.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any, Final

from common.errors import ConflictError, ConsentError, NotFoundError, VerificationError
from common.files import exclusive, make_private_directory, read_required, taking_turns
from common.jobs import JobEvent, RunJob, run_job
from common.model.expert import EXPERT_NAME
from common.trust.describe import describe
from common.trust.manifest import MANIFEST_NAME, check_directory, digest_of, digest_of_file
from common.trust.statements import (
    CertRevoke,
    ConsentExpert,
    ConsentGrant,
    ConsentRevoke,
    ExpertContribute,
    LineScope,
    ReleaseScope,
    Terms,
    format_time,
    parse_time,
)
from owner_client import egress
from owner_client.chain import Chain, Said
from owner_client.config import ConsentSettings
from owner_client.egress import EgressPlan
from owner_client.fetching import OnBytes
from owner_client.manifests import fetch_files
from owner_client.membership import REFUSALS, Membership, send, wait_for_quorum

_BACKDATED: Final = timedelta(minutes=5)
_TRAINER: Final = "owner_client.train"
_MOST_TERMS_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Base:
    """A public checkpoint at home: proven to be in the log, every file checked."""

    digest: str
    directory: Path

    @property
    def short(self) -> str:
        """The start of the digest, for names of directories."""
        return self.digest.removeprefix("sha256:")[:16]


def fetch_base(member: Membership, *, on_bytes: OnBytes) -> Base:
    """The public checkpoint that the log names now: fetched, resuming where a try ended, and checked file by file."""
    statement, manifest = member.client.base()
    base = Base(statement.base_digest, member.home.bases / statement.base_digest.removeprefix("sha256:"))
    if not (base.directory / MANIFEST_NAME).exists():
        base.directory.mkdir(parents=True, exist_ok=True)
        with taking_turns(member.home.bases / ".lock"):
            fetch_files(member.client, manifest, base.directory, on_bytes=on_bytes)
            return base  # each file was checked as it came
    try:
        check_directory(base.directory, manifest=manifest)
    except (NotFoundError, VerificationError) as error:
        raise VerificationError(
            f"the base at home was changed since it was fetched: {error}. Find out how; remove {base.directory} and "
            "run this again to fetch it anew"
        ) from error
    return base


def consent(member: Membership, settings: ConsentSettings, *, base: Base) -> ConsentGrant:
    """Sign and record the consent for this owner's expert over `base`; the same one in force is found again.

    Raises:
        ConflictError: another one is given for this base.
        MalformedError: a name or date is none.
        NotFoundError: the terms' file is not there.
    """
    terms = read_required(
        settings.terms, hint="name the file with the terms that you agree to", max_bytes=_MOST_TERMS_BYTES
    )
    wait_for_quorum(member)
    now = datetime.now(UTC)
    start = now - _BACKDATED if settings.not_before is None else parse_time(settings.not_before)
    optional: dict[str, Any] = {} if settings.jurisdiction is None else {"jurisdiction": settings.jurisdiction}
    with member.chain.turn():
        send_unsent(member)
        grant = grant_in_force(member.chain, base_digest=base.digest)
        if grant is not None:
            _check_same(grant, settings, terms_digest=digest_of(terms))
            return grant
        withdraw_upload(member)
        said = member.chain.say(
            ConsentGrant,
            expert=ConsentExpert(name=member.settings.expert, base_digest=base.digest, kind="full"),
            scope=_scope(settings),
            purposes=settings.purposes,
            terms=Terms(uri=settings.terms.name, digest=digest_of(terms)),
            not_before=format_time(start),
            not_after=format_time(max(now, start) + timedelta(days=settings.days)),
            **optional,
        )
        send(member, said)
    assert isinstance(said.statement, ConsentGrant)
    return said.statement


def _scope(settings: ConsentSettings) -> LineScope | ReleaseScope:
    if settings.release is not None:
        return ReleaseScope(release=settings.release)
    return LineScope(line=settings.line)


def _check_same(grant: ConsentGrant, settings: ConsentSettings, *, terms_digest: str) -> None:
    asked = (settings.purposes, _scope(settings), terms_digest, settings.jurisdiction, settings.days)
    is_other = asked != (list(grant.purposes), grant.scope, grant.terms.digest, grant.jurisdiction, _days(grant))
    if is_other or settings.not_before not in (None, grant.not_before):
        raise ConflictError(
            f"another consent for this base is given until {grant.not_after}: it {describe(grant)}; opt out first, or "
            f"ask for the same, of {_days(grant)} days"
        )


def _days(grant: ConsentGrant) -> int:
    """How many days were asked for: they count from when it begins, or from its signature where that is later."""
    begins = max(parse_time(grant.not_before), parse_time(grant.issued_at))
    return round((parse_time(grant.not_after) - begins) / timedelta(days=1))


def unsent(chain: Chain) -> list[Said]:
    """What an earlier run signed and got no receipt for, but for uploads."""
    return [said for said in chain.pending() if not isinstance(said.statement, ExpertContribute)]


def send_unsent(member: Membership) -> None:
    """Send what an earlier run signed and got no receipt for, but leave uploads alone; within the chain's turn."""
    for said in unsent(member.chain):
        if isinstance(said.statement, CertRevoke):
            _send_last(member, said)
        else:
            send(member, said)


def withdraw_upload(member: Membership) -> None:
    """Take back an upload that was not finished; one that the log holds already is kept. Within the chain's turn."""
    for said in member.chain.pending():
        with suppress(ConflictError):  # set aside: it was never recorded
            send(member, said)


def grants_in_force(chain: Chain) -> list[ConsentGrant]:
    """This owner's consents that are neither revoked nor lapsed, the latest first; some may begin later."""
    said = [said.statement for said in chain.statements()]
    revoked = {statement.grant_id for statement in said if isinstance(statement, ConsentRevoke)}
    return [
        statement
        for statement in reversed(said)
        if isinstance(statement, ConsentGrant)
        and statement.record_id not in revoked
        and datetime.now(UTC) < parse_time(statement.not_after)
    ]


def _not_taken_back(chain: Chain) -> list[ConsentGrant]:
    """This owner's consents of which no revocation asks to withdraw what is published, the latest first."""
    said = [said.statement for said in chain.statements()]
    asked = {each.grant_id for each in said if isinstance(each, ConsentRevoke) and each.effect == "withdraw_published"}
    return [each for each in reversed(said) if isinstance(each, ConsentGrant) and each.record_id not in asked]


def grant_in_force(chain: Chain, *, base_digest: str | None = None) -> ConsentGrant | None:
    """This owner's latest consent that is neither revoked nor lapsed, for a base or for any."""
    return next((g for g in grants_in_force(chain) if base_digest in (None, g.expert.base_digest)), None)


def has_left(chain: Chain) -> bool:
    """Whether this owner revoked a consent and gave none since."""
    revoked = any(isinstance(said.statement, ConsentRevoke) for said in chain.statements())
    return revoked and grant_in_force(chain) is None


def train(
    member: Membership,
    *,
    base: Base,
    data: Path | None,
    public: Path | None,
    options: Mapping[str, object],
    on_event: Callable[[JobEvent], None],
    stop: Event,
    run: RunJob = run_job,
) -> Path:
    """Train this owner's expert at home, in a subprocess; returns its directory. An interrupted training goes on.

    Raises:
        NotFoundError: no folder of text was named.
        JobFailedError: the training failed; the message says why.
    """
    data, public = data or member.settings.data, public or member.settings.public
    if data is None or public is None:
        raise NotFoundError(
            f"no text to train on: give --data and --public, or set them in {member.home.settings_file}"
        )
    output = expert_directory(member, base)
    make_private_directory(output.parent)
    job = {**options, "base": base.directory, "data": data, "public": public, "output": output}
    with exclusive(output.parent / "training.lock", what="this owner's training"):
        run(_TRAINER, job, config_path=output.parent / "job.json", on_event=on_event, stop=stop)
    return output


def expert_directory(member: Membership, base: Base) -> Path:
    """Where the expert over `base` is or will be."""
    return member.home.experts / base.short


def trained_expert(member: Membership, *, base: Base) -> Path:
    """The file of the expert over `base`.

    Raises:
        NotFoundError: none is trained yet.
    """
    path = expert_directory(member, base) / EXPERT_NAME
    if not path.is_file():
        raise NotFoundError(
            f"no expert over base {base.short} is in {member.home.experts}; train it: concord owner train"
        )
    return path


def plan_submission(member: Membership, *, base: Base) -> EgressPlan:
    """What `submit` would send; sends nothing."""
    return egress.plan(expert_directory(member, base), base=base.directory)


def was_asked_about(member: Membership, *, base: Base) -> bool:
    """Whether the expert at home is one that a person was asked about, and did not reject."""
    asked = {
        review.wanted.digest
        for review in member.reviews.all()
        if review.wanted.kind == "expert" and review.answer != "rejected"
    }
    is_there = (expert_directory(member, base) / EXPERT_NAME).is_file()
    return bool(asked) and is_there and plan_submission(member, base=base).entry.digest in asked


def submit(member: Membership, *, base: Base, on_bytes: OnBytes) -> Said:
    """Release the trained expert under the consent in force and upload it. One that was submitted is found again.

    Raises:
        ConsentError: no consent is in force.
        EgressDeniedError: something other than an expert was about to leave.
    """
    planned = plan_submission(member, base=base)
    expert = expert_directory(member, base)
    summary = json.loads(read_required(expert / egress.TRAINING_NAME, hint="train again"))
    wait_for_quorum(member)
    with member.chain.turn():
        send_unsent(member)
        if any(is_other_upload(said, planned) for said in member.chain.pending()):
            withdraw_upload(member)
        grant = grant_in_force(member.chain, base_digest=base.digest)
        if grant is None:
            raise ConsentError("no consent is in force for this base; sign one first: concord owner consent")
        outbound = egress.release(
            planned,
            grant_id=grant.record_id,
            tokens_seen=int(summary["tokens"]),
            config_digest=digest_of_file(expert / egress.TRAINING_NAME),
            chain=member.chain,
            reviews=member.reviews,
            ledger=member.home.ledger,
            to=member.settings.target,
        )
        if outbound.said.receipt is not None:
            return outbound.said
        try:
            receipt = member.client.submit(outbound, on_bytes=on_bytes)
        except REFUSALS:
            member.chain.set_aside(outbound.said)
            raise
        return member.chain.acknowledge(outbound.said, receipt=receipt)


def revoke_certificates(member: Membership, *, reason: str | None) -> CertRevoke:
    """Say that none of this owner's TLS certificates is good any longer, this connection's included; consents and
    experts stay. An invitation and the signing key give a new one.
    """
    optional: dict[str, Any] = {} if reason is None else {"reason": reason}
    with member.chain.turn():
        member.client.watch()  # else it would wait here, and end the certificate that comes next
        said = next((each for each in member.chain.pending() if isinstance(each.statement, CertRevoke)), None)
        if said is None:
            send_unsent(member)
            withdraw_upload(member)
            said = member.chain.say(CertRevoke, owner=member.settings.owner, **optional)
        _send_last(member, said)
    assert isinstance(said.statement, CertRevoke)
    return said.statement


def _send_last(member: Membership, said: Said) -> None:
    """Send a statement after which this connection's certificate is good no longer."""
    try:
        message = egress.statement(member.home.ledger, said, to=member.settings.target)
        receipt = member.client.record(message, is_last=True)
    except REFUSALS:
        member.chain.set_aside(said)
        raise
    member.chain.acknowledge(said, receipt=receipt)


def is_other_upload(said: Said, planned: EgressPlan) -> bool:
    """Whether a statement announces another expert than the planned one."""
    return isinstance(said.statement, ExpertContribute) and said.statement.files != planned.files


def _give_up_late(member: Membership) -> None:
    """A revocation whose hours were over before it was recorded is to be signed anew, unless the log has it by now."""
    for said in member.chain.pending():
        match said.statement:
            case ConsentRevoke(effect="withdraw_published", deadline=deadline) if deadline < datetime.now(UTC):
                try:
                    send(member, said)
                except REFUSALS:
                    member.chain.set_aside(said)


def opt_out(member: Membership, *, reason: str | None, withdraw_within: timedelta | None = None) -> list[ConsentRevoke]:
    """Revoke every consent of this owner: no later release may hold its experts. Needs no training and no upload.

    With `withdraw_within`, releases that hold them already are to be withdrawn within that time; also those of
    consents that lapsed or were revoked before, for which that was not asked yet.

    One whose hours were over when it came to the registry is signed anew.

    Raises:
        ConsentError: there is no consent to revoke.
    """
    wanted: dict[str, Any] = {"effect": "future", "deadline_s": 0}
    if withdraw_within is not None:
        wanted = {"effect": "withdraw_published", "deadline_s": int(withdraw_within.total_seconds())}
    if reason is not None:
        wanted["reason"] = reason
    with member.chain.turn():
        _give_up_late(member)
        revoked = [said.statement for said in member.chain.pending() if isinstance(said.statement, ConsentRevoke)]
        send_unsent(member)
        withdraw_upload(member)
        if withdraw_within is None:
            grants, problem = grants_in_force(member.chain), "there is no consent to revoke: none is in force"
        else:
            grants, problem = (
                _not_taken_back(member.chain),
                "there is nothing to withdraw that was not asked for before",
            )
        if not grants and not revoked:
            raise ConsentError(problem)
        for grant in grants:
            said = member.chain.say(ConsentRevoke, grant_id=grant.record_id, **wanted)
            send(member, said)
            assert isinstance(said.statement, ConsentRevoke)
            revoked.append(said.statement)
    return revoked
