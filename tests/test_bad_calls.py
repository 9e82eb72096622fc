"""Every call of every .proto, made wrongly: each comes back as an error that Concord names, in words that say what to
do, and leaves registry, log, incoming uploads and published files as they were. Whoever may call makes them: who may
not is `test_permissions.py`, experts that are none `test_hostile.py`, strangers at the ports `test_port.py`.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final

import grpc
import pytest
from google.protobuf.message import Message
from safetensors.torch import save

from common.errors import (
    ConflictError,
    ConsentError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    TooLargeError,
    UnavailableError,
    VerificationError,
)
from common.rpc.channel import error_of, open_channel
from common.rpc.identity import TlsIdentity
from common.rpc.transfer import CHUNK_BYTES
from common.trust.campaign_statements import Train
from common.trust.cosignature import cosign
from common.trust.manifest import digest_of
from common.trust.note import Note, SigningKey
from common.trust.pki import make_csr, new_key, public_key
from common.trust.rules import owner_key_name, witness_key_name
from common.trust.statements import format_time, new_record_id
from coordinator.campaign_subjects import base_digest_of
from coordinator.log_files import LogFiles
from coordinator.releases import publish_base
from coordinator.streams import A_PARTY
from protos import campaign_pb2, enrolment_pb2, registry_pb2, transfer_pb2
from tests.bad_calls import METHODS, UNKNOWN_DIGEST, UNKNOWN_ID, BadCall, bad_calls, bad_notes
from tests.federation import FEDERATION, SIZES, Federation, Owner, expert_weights, running_federation, write_base
from tests.raw_calls import calling, calling_as, chunk, contribution, key_of, next_fields, note_of, tls_of

WIDER = replace(SIZES, hidden_size=64, intermediate_size=1024)
"""Its expert is two chunks."""
NAMED: Final = (
    MalformedError, VerificationError, NotFoundError, ConflictError, NotPermittedError, ConsentError, TooLargeError,
)  # fmt: skip
TIMEOUT_S = 20
WHAT_TO_DO: Final = re.compile(
    r"\b(ask|announce|begin|call|check|enrol|fetch|give|invitations?|keep|list|make|name|open|publish|report|say|see|send"
    r"|set|sign|take|train|update|upload|use|wait|at most|expected|there are|needs?|not here|only|may be|may not)\b"
    # or it says what is wrong with a field so that what is right is plain
    r"|: (Field required|Extra|Input should|Dictionary should|Value error|duplicate key|NaN is not|it does not end in)"
    r"|does not hold|is next|is one file|is about|wanted|utf-8|the log has|base64|canonical|names sha256:|64 hex digits"
    r"|a node's key is"
)
READ, OPEN, PUT, FINISH = (
    f"/concord.v1.Transfer/{name}" for name in ("ReadPublished", "OpenUpload", "PutChunks", "FinishUpload")
)
RECORD, REPORT, REDEEM = "/concord.v1.Registry/Record", "/concord.v1.Campaigns/Report", "/concord.v1.Enrolment/Redeem"
NODE = "/concord.v1.Campaigns/RegisterNode"
HARMLESS: Final = {
    ("/concord.v1.Registry/GetRelease", "name: absent"),  # the latest
    (REPORT, "attachment: absent"),
}
"""What looks wrong and is a right call."""


@dataclass
class Consortium:
    """A base of two chunks; owners who may each call something; an upload of which one chunk of two is there."""

    federation: Federation
    owners: dict[str, Owner]
    auditor: TlsIdentity
    token: str
    campaign_id: str
    subject: str
    upload: bytes
    """The note that announced it."""
    upload_id: str
    others_upload_id: str

    def tls(self, method: str) -> TlsIdentity | None:
        """Who makes a call."""
        if method == REDEEM:
            return None
        return self.auditor if "Published" in method else tls_of(self.owner(method))

    def owner(self, method: str) -> Owner:
        """The owner who makes it: none needs the number that another call's statement has."""
        return self.owners[{RECORD: "archive", REPORT: "hospital"}.get(method, "library")]

    @cached_property
    def data(self) -> bytes:
        """The expert that is being sent."""
        return bytes(save(expert_weights(3, sizes=WIDER), metadata={"format": "pt"}))

    @cached_property
    def newcomer(self) -> SigningKey:
        """Whose invitation waits."""
        return SigningKey.generate(owner_key_name(FEDERATION, "newcomer"))

    @cached_property
    def good(self) -> dict[str, Message]:
        """Every call as it should be made."""
        base = self.federation.coordinator.registry.head()
        digest = base_digest_of(self.federation.coordinator)
        return {
            REDEEM: enrolment_pb2.RedeemRequest(token=self.token, csr=make_csr(new_key()), note=self.note(REDEEM)),
            "/concord.v1.Enrolment/Renew": enrolment_pb2.RenewRequest(csr=make_csr(new_key())),
            RECORD: registry_pb2.RecordRequest(note=self.note(RECORD)),
            "/concord.v1.Registry/GetCheckpoint": registry_pb2.GetCheckpointRequest(with_cosigned=True),
            "/concord.v1.Registry/Cosign": registry_pb2.CosignRequest(checkpoint=self._cosigned()),
            "/concord.v1.Registry/GetConsistency": registry_pb2.GetConsistencyRequest(old_size=1, new_size=base.size),
            "/concord.v1.Registry/GetChain": registry_pb2.GetChainRequest(),
            "/concord.v1.Registry/GetBase": registry_pb2.GetBaseRequest(),
            "/concord.v1.Registry/GetRelease": registry_pb2.GetReleaseRequest(name="release-1"),
            OPEN: transfer_pb2.OpenUploadRequest(note=self.upload),
            PUT: self.chunk(1),
            FINISH: transfer_pb2.FinishUploadRequest(upload_id=self.upload_id),
            "/concord.v1.Transfer/Fetch": transfer_pb2.FetchRequest(digest=digest, offset=3),
            "/concord.v1.Transfer/ListPublished": transfer_pb2.ListPublishedRequest(),
            READ: transfer_pb2.ReadPublishedRequest(path="trusted_root.json", offset=3),
            "/concord.v1.Campaigns/Poll": campaign_pb2.PollRequest(),
            "/concord.v1.Campaigns/Acknowledge": campaign_pb2.AcknowledgeRequest(
                campaign_id=self.campaign_id, state="offered"
            ),
            REPORT: campaign_pb2.ReportRequest(note=self.note(REPORT)),
            NODE: campaign_pb2.RegisterNodeRequest(public_key=public_key(new_key())),
        }

    def chunk(self, number: int, **changes: object) -> transfer_pb2.Chunk:
        """A chunk of the expert, as it should be but for the changes."""
        start = number * CHUNK_BYTES
        found = chunk(self.upload_id, digest_of(self.data), index=number,
                      data=self.data[start : start + CHUNK_BYTES], before=self.data[:start])  # fmt: skip
        for name, value in changes.items():
            setattr(found, name, value)
        return found

    def statement(self, method: str) -> tuple[str, dict[str, object], SigningKey]:
        """Kind, fields and key of what this call would take."""
        if method == REDEEM:
            now, key = datetime.now(UTC), self.newcomer
            common = {"federation": FEDERATION, "origin": f"{FEDERATION}/log", "party": "newcomer", "seq": 0,
                      "key_id": key.verifier.key_id, "record_id": new_record_id(now), "prev": None}  # fmt: skip
            more = {"issued_at": format_time(now), "public_key": str(key.verifier)}
            return "owner.enrol", {**common, **more}, key
        owner = self.owner(method)
        common = next_fields(owner)
        if method == RECORD:
            base = base_digest_of(self.federation.coordinator)
            more = {"expert": {"name": "expert", "base_digest": base, "kind": "full"}, "scope": {"line": "main"},
                    "purposes": ["research"], "terms": {"uri": "terms.txt", "digest": UNKNOWN_DIGEST},
                    "not_before": "2026-01-01T00:00:00Z", "not_after": "2999-01-01T00:00:00Z"}  # fmt: skip
            return "consent.grant", {**common, **more}, key_of(owner)
        if method == REPORT:
            answer = {"campaign_id": self.campaign_id, "subject": self.subject, "figures": []}
            return "campaign.result", {**common, **answer}, key_of(owner)
        files = {"expert.safetensors": {"digest": digest_of(self.data), "size": len(self.data)}}
        grant = next(name for name, grant in self.federation.coordinator.registry.head().grants.items()
                     if grant.party == owner.name)  # fmt: skip
        more = {"grant_id": grant, "files": files, "tokens_seen": 1, "training_config_digest": UNKNOWN_DIGEST}
        return "expert.contribute", {**common, **more}, key_of(owner)

    def note(self, method: str) -> bytes:
        """A statement that this call would take."""
        kind, fields, key = self.statement(method)
        return note_of(kind, fields, key)

    def _cosigned(self, *, by: SigningKey | None = None, checkpoint: bytes | None = None) -> bytes:
        library = self.owners["library"]
        key = by or SigningKey.from_pem(
            library.home.witness_key.read_bytes(), name=witness_key_name(FEDERATION, "library")
        )
        note = Note.parse(checkpoint or self.federation.coordinator.log.checkpoint())
        return bytes(Note(note.text, (*note.signatures, cosign(note.text, key, at=datetime.now(UTC)))))

    def by_hand(self, method: str) -> Iterator[BadCall]:
        """What no field alone says: wrong statements, wrong orders, others' things."""
        name = METHODS[method].input_type.fields[0].name if METHODS[method].input_type.fields else ""
        if method in (RECORD, OPEN, REPORT, REDEEM):
            for what, note in bad_notes(*self.statement(method)).items():
                yield self._changed(method, f"statement: {what}", note=note)
        match method.rpartition("/")[2]:
            case "OpenUpload":
                yield from self._bad_announcements()
            case "PutChunks":
                yield from self._bad_streams()
            case "FinishUpload":
                yield self._changed(method, "before all is there")
                yield self._changed(method, "another's upload", upload_id=self.others_upload_id)
            case "Cosign":
                yield from self._bad_cosignatures()
            case "GetConsistency":
                yield self._changed(method, "backwards", old_size=2, new_size=1)
                yield self._changed(method, "from more than there is", old_size=10**6, new_size=10**6)
            case "GetRelease":
                for release in ("release-0", "release-2", "RELEASE-1", "release-1 ", "base-0", "latest"):
                    yield self._changed(method, f"{release!r}", name=release)
            case "ReadPublished":
                for path in (
                    "..",
                    ".",
                    "log",
                    "log/",
                    "log//checkpoint",
                    "./log/checkpoint",
                    "log/checkpoint/",
                    ".lock",
                    "objects",
                    "../coordinator.toml",
                    "..\\keys\\log.key",
                    "log/checkpoint\0",
                    "~",
                    "%2e%2e",
                ):
                    yield self._changed(method, f"{path!r}", path=path)
            case "Report":
                yield from self._bad_answers()
            case "Redeem":
                yield from self._bad_invitations()
            case "Acknowledge":
                for state in ("reported", "Offered", "offered ", "closed"):
                    yield self._changed(method, f"{state!r}", state=state)
        assert name or not METHODS[method].input_type.fields

    def _changed(self, method: str, what: str, **changes: object) -> BadCall:
        request = type(self.good[method])()
        request.CopyFrom(self.good[method])
        for name, value in changes.items():
            setattr(request, name, value)
        return BadCall(what, (request.SerializeToString(),))

    def _bad_announcements(self) -> Iterator[BadCall]:
        kind, fields, key = self.statement(OPEN)
        for what, changes in {
            "no consent of that id": {"grant_id": UNKNOWN_ID},
            "no file": {"files": {}},
            "another file": {"files": {"model.safetensors": {"digest": UNKNOWN_DIGEST, "size": 100}}},
            "a path for a name": {"files": {"../expert.safetensors": {"digest": UNKNOWN_DIGEST, "size": 100}}},
            "larger than any expert": {"files": {"expert.safetensors": {"digest": UNKNOWN_DIGEST, "size": 2**40}}},
            "of less than nothing": {"files": {"expert.safetensors": {"digest": UNKNOWN_DIGEST, "size": -1}}},
            "of nothing": {"files": {"expert.safetensors": {"digest": UNKNOWN_DIGEST, "size": 0}}},
        }.items():
            yield self._changed(OPEN, what, note=note_of(kind, {**fields, **changes}, key))
        same_id = {**fields, "record_id": self.upload_id, "tokens_seen": 2}
        yield self._changed(OPEN, "the id of the upload under way", note=note_of(kind, same_id, key))
        yield self._changed(
            OPEN, "a consent", note=self.owners["archive"].home.statements.joinpath("00000.note").read_bytes()
        )

    def _bad_streams(self) -> Iterator[BadCall]:
        other = self.chunk(1, upload_id=self.others_upload_id).SerializeToString()
        right = self.chunk(0).SerializeToString()  # is there already: sent again it changes nothing
        for what, *messages in (
            ("another's upload", other),
            ("two uploads in one stream", right, other),
            ("two openings, the second unknown", right, self.chunk(1, upload_id=UNKNOWN_ID).SerializeToString()),
            ("one that cannot be read after a right one", right, b"\xff" * 40),
            ("one that is not the next", self.chunk(1, index=2).SerializeToString()),
            ("backwards", self.chunk(1, index=3).SerializeToString(), right),
            ("one byte less", self.chunk(1, data=self.data[CHUNK_BYTES:-1]).SerializeToString()),
            ("one byte more", self.chunk(1, data=self.data[CHUNK_BYTES:] + b"\0").SerializeToString()),
            ("other bytes", self.chunk(1, data=bytes(len(self.data) - CHUNK_BYTES)).SerializeToString()),
            ("a digest that is cut off", self.chunk(1, sha256=b"\0" * 31).SerializeToString()),
            ("an empty message after a right one", right, b""),
            ("a field twice", self.chunk(1).SerializeToString() + b"\x18\x01"),
            ("a field that there is not", self.chunk(1).SerializeToString() + b"\x38\x01"),
        ):
            yield BadCall(what, tuple(messages))

    def _bad_cosignatures(self) -> Iterator[BadCall]:
        method = "/concord.v1.Registry/Cosign"
        plain = self.federation.coordinator.log.checkpoint()
        name = witness_key_name(FEDERATION, "library")
        stranger = SigningKey.generate(name)
        lines = plain.decode().split("\n")
        longer = "\n".join([lines[0], "999999", *lines[2:]]).encode()
        for what, note in {
            "no cosignature": plain,
            "by a stranger of that name": self._cosigned(by=stranger),
            "by another witness": self._cosigned(by=SigningKey.generate("other.example/witness")),
            "of a log that is longer": self._cosigned(checkpoint=longer),
            "of no checkpoint": self.note(RECORD),
            "cut off": self._cosigned()[:-20],
        }.items():
            yield self._changed(method, what, checkpoint=note)

    def _bad_answers(self) -> Iterator[BadCall]:
        kind, fields, key = self.statement(REPORT)
        figure = {"name": "own", "measure": "accuracy", "value": 0.5, "documents": 100}
        for what, changes in {
            "of a campaign that there is not": {"campaign_id": UNKNOWN_ID},
            "about something else": {"subject": UNKNOWN_DIGEST},
            "a figure that was not asked for": {"figures": [figure]},
            "a file that does not come": {"attachment": {"digest": UNKNOWN_DIGEST, "size": 10}},
        }.items():
            yield self._changed(REPORT, what, note=note_of(kind, {**fields, **changes}, key))
        yield self._changed(REPORT, "a consent", note=self.note(RECORD))
        declined = {name: value for name, value in fields.items() if name not in ("subject", "figures")}
        yield self._changed(
            REPORT, "a refusal with a file", note=note_of("campaign.decline", declined, key), attachment=b"x"
        )
        yield self._changed(REPORT, "a file that no figure names", attachment=b"x" * 100)

    def _bad_invitations(self) -> Iterator[BadCall]:
        enrolment = self.federation.coordinator.enrolment
        yield self._changed(REDEEM, "another's", token=enrolment.invite("somebody", lifetime=timedelta(minutes=5)))
        yield self._changed(
            REDEEM, "that has expired", token=enrolment.invite("newcomer", lifetime=timedelta(seconds=-1))
        )
        yield self._changed(
            REDEEM, "an auditor's", token=enrolment.invite("auditor/eve", lifetime=timedelta(minutes=5))
        )
        yield self._changed(REDEEM, "made up", token="A" * 43)
        yield self._changed(REDEEM, "one letter more", token=self.token + "A")
        yield self._changed(REDEEM, "an enrolment of somebody who has joined", note=self.note(RECORD))

    def state(self) -> object:
        """All that a bad call must not change, once what was recorded is published too, which may come later."""
        coordinator = self.federation.coordinator
        home = coordinator.home
        LogFiles(coordinator.store, log=coordinator.registry.root.log, directory=coordinator.publication.log).update()
        return (
            coordinator.registry.size(), bytes(coordinator.log.checkpoint()), _files(home.incoming),
            _files(home.quarantine), _files(home.public), _files(home.campaigns), _files(home.keys),
            sorted(coordinator.enrolment.latest_certificates()),
        )  # fmt: skip


def _files(place: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in place.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Running."""
    with running_federation(tmp_path_factory.mktemp("bad-calls")) as federation:
        publish_base(federation.coordinator, write_base(federation.path / "base", sizes=WIDER))
        owners = {name: federation.enrol(name) for name in ("archive", "hospital", "library", "museum")}
        owners["museum"].consent()
        owners["museum"].put_expert(expert_weights(7, sizes=WIDER))
        owners["museum"].submit()
        federation.release()
        grants = {name: owners[name].consent().record_id for name in ("library",)}
        digest = base_digest_of(federation.coordinator)
        asked = federation.coordinator.campaigns.define(
            Train(kind="train", base_digest=digest), owners=["hospital", "library"]
        ).statement
        auditor, key = "auditor/kim", new_key()
        token = federation.coordinator.enrolment.invite(auditor, lifetime=timedelta(minutes=5))
        authority = federation.coordinator.authority.certificate_pem
        with calling(f"127.0.0.1:{federation.ports[1]}", authority=authority, tls=None) as calls:
            certificate = calls.redeem(token, csr=make_csr(key), note=b"").certificate
        data = bytes(save(expert_weights(3, sizes=WIDER), metadata={"format": "pt"}))
        note = contribution(owners["library"], grants["library"], data)
        with calling_as(owners["library"]) as calls:
            upload_id = calls.open(note).upload_id
            calls.put(chunk(upload_id, digest_of(data), index=0, data=data[:CHUNK_BYTES]))
        others = _another_upload(federation)
        yield Consortium(
            federation, owners, TlsIdentity(key, certificate, authority),
            federation.coordinator.enrolment.invite("newcomer", lifetime=timedelta(hours=1)),
            asked.record_id, digest, note, upload_id, others,
        )  # fmt: skip


def _another_upload(federation: Federation) -> str:
    owner = federation.enrol("theatre")
    grant = owner.consent().record_id
    data = bytes(save(expert_weights(9, sizes=WIDER), metadata={"format": "pt"}))
    with calling_as(owner) as calls:
        return calls.open(contribution(owner, grant, data)).upload_id


def _outcome(channel: grpc.Channel, method: str, messages: tuple[bytes, ...]) -> list[bytes] | grpc.RpcError:
    """The replies, or how it fails. What takes one message may be sent several on the wire all the same."""
    descriptor = METHODS[method]
    many = descriptor.client_streaming or len(messages) != 1
    kind = "_".join("stream" if each else "unary" for each in (many, descriptor.server_streaming))
    stub = getattr(channel, kind)(method, request_serializer=None, response_deserializer=None)
    try:
        found = stub(iter(messages) if many else messages[0], timeout=TIMEOUT_S)
        return list(found) if descriptor.server_streaming else [found]
    except grpc.RpcError as error:
        return error


def _channel(consortium: Consortium, method: str, stack: ExitStack) -> grpc.Channel:
    tls, ports = consortium.tls(method), consortium.federation.ports
    target = f"127.0.0.1:{ports[0] if tls else ports[1]}"
    authority = consortium.federation.coordinator.authority.certificate_pem
    return stack.enter_context(open_channel(target, authority=authority, tls=tls))


def test_every_call_is_made_rightly_here_and_so_wrongly(consortium: Consortium) -> None:
    assert consortium.good.keys() == METHODS.keys(), "say in `good` how a new call is made: bad ones are made from it"
    calls = {method: _all(consortium, method) for method in METHODS}
    assert all(len(found) >= 6 for found in calls.values())
    assert sum(map(len, calls.values())) >= 400


def _all(consortium: Consortium, method: str) -> list[BadCall]:
    generated = bad_calls(METHODS[method], consortium.good[method])
    found = [*generated, *consortium.by_hand(method)]
    return [each for each in found if (method, each.what) not in HARMLESS]


@pytest.mark.parametrize("method", METHODS)
def test_each_bad_call_is_refused_with_what_to_do(
    method: str, consortium: Consortium, caplog: pytest.LogCaptureFixture
) -> None:
    calls = _all(consortium, method)
    before, wrong = consortium.state(), []
    with ExitStack() as stack, caplog.at_level(logging.ERROR):
        channel = _channel(consortium, method, stack)
        for bad in calls:
            found = _outcome(channel, method, bad.messages)
            if (why := _what_is_wrong_with(found)) or consortium.state() != before:
                wrong.append((bad.what, why or "it changed something"))
                before = consortium.state()
    assert not wrong, "\n".join(f"{what}: {why}" for what, why in wrong)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def _what_is_wrong_with(found: list[bytes] | grpc.RpcError) -> str:
    """Why this is no good answer to a bad call; empty where it is one."""
    if isinstance(found, list):
        return "it was answered"
    error = error_of(found)
    if type(error) not in NAMED:
        return f"{found.code().name}: {type(error).__name__}: {error}"
    if not WHAT_TO_DO.search(str(error)):
        return f"it does not say what to do: {type(error).__name__}: {error}"
    return "" if len(str(error)) < 1000 else f"it says {len(str(error))} characters"


# Streams and calls that end early


def test_streams_that_end_early_leave_what_was_there_and_their_places(consortium: Consortium) -> None:
    before = consortium.state()
    with ExitStack() as stack:
        channel = _channel(consortium, PUT, stack)
        put = channel.stream_stream(PUT, request_serializer=None, response_deserializer=None)
        for _ in range(2 * A_PARTY):
            sent, hold = Event(), Event()

            def messages(sent: Event = sent, hold: Event = hold) -> Iterator[bytes]:
                yield consortium.chunk(0).SerializeToString()
                sent.set()
                hold.wait(TIMEOUT_S)

            replies = put(messages(), timeout=TIMEOUT_S)
            assert sent.wait(TIMEOUT_S)
            replies.cancel()
            hold.set()
        assert _outcome(channel, PUT, ()) == [], "a stream of nothing is no harm"
        again = _until(lambda: _outcome(channel, PUT, (consortium.chunk(0).SerializeToString(),)))
        replies = [transfer_pb2.PutChunksReply.FromString(data) for data in again]
        assert [file.received_chunks for file in replies[-1].files] == [1], "sent again, stored once"
    assert consortium.state() == before


def _until(attempt: Callable[[], list[bytes] | grpc.RpcError]) -> list[bytes]:
    """Until the places of the streams that were cancelled are free again."""
    deadline = monotonic() + TIMEOUT_S
    while isinstance(found := attempt(), grpc.RpcError):
        assert isinstance(error_of(found), UnavailableError), found
        assert monotonic() < deadline
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_call_without_a_message_ends(method: str, consortium: Consortium) -> None:
    before = consortium.state()
    with ExitStack() as stack:
        found = _outcome(_channel(consortium, method, stack), method, ())
    if not METHODS[method].client_streaming:
        assert isinstance(found, grpc.RpcError)
        assert found.code() == grpc.StatusCode.UNIMPLEMENTED
        assert "use versions that fit together" in str(error_of(found))
    assert consortium.state() == before


# And every call as it should be, at last: so nothing above was refused for another reason than it was made for.


def test_then_every_right_call_is_answered(consortium: Consortium) -> None:
    for method, request in consortium.good.items():
        with ExitStack() as stack:
            found = _outcome(_channel(consortium, method, stack), method, (request.SerializeToString(),))
            if method == NODE:  # where Flower is off
                assert isinstance(found, grpc.RpcError)
                assert isinstance(error_of(found), ConflictError)
                continue
            assert isinstance(found, list), f"{method}: {found}"
            assert found or method == PUT
