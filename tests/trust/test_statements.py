"""Statements: each kind comes back as it went, and everything else is one error."""

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConcordError, MalformedError, TooLargeError
from common.trust import strict_json
from common.trust.invitation import Invitation
from common.trust.note import SigningKey
from common.trust.root import TrustedRoot
from common.trust.statements import (
    KINDS,
    MAX_LIST_BYTES,
    MAX_STATEMENT_BYTES,
    TYPE_PREFIX,
    ConsentRevoke,
    new_record_id,
    parse,
    parse_note,
    parse_time,
    sign_statement,
)
from common.trust.tiles import MAX_ENTRY_BYTES, format_bundle, parse_bundle

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
RECORD = "0190c0a0-0000-7000-8000-000000000001"
KEY = SigningKey("health.example/owner/archive", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))

COMMON: dict[str, Any] = {
    "federation": "health.example",
    "origin": "health.example/log",
    "party": "archive",
    "key_id": KEY.verifier.key_id,
    "record_id": RECORD,
    "seq": 1,
    "prev": DIGEST,
    "issued_at": "2026-11-23T09:00:00Z",
}
GRANT: dict[str, Any] = {
    "expert": {"name": "expert", "base_digest": DIGEST, "kind": "full"},
    "scope": {"line": "main"},
    "purposes": ["research", "teaching"],
    "terms": {"uri": "terms.txt", "digest": DIGEST},
    "not_before": "2026-11-23T09:00:00Z",
    "not_after": "2027-11-23T09:00:00Z",
}
EXPERT = {"digest": DIGEST, "grant_index": 2, "contribute_index": 3, "slot": 1}
TRAINING: dict[str, Any] = {
    "version": 1,
    "parent": "release-1",
    "parent_digest": DIGEST,
    "campaign_id": RECORD,
    "proxies": [{"slot": 1, "answer_index": 7, "digest": OTHER}],
    "settings_digest": OTHER,
}
MODEL: dict[str, Any] = {"manifest": {"digest": DIGEST, "size": 900}, "stands": "release", "name": "release-1"}
VALID: dict[str, tuple[str, dict[str, Any]]] = {
    "owner.enrol": ("owner.enrol", {"public_key": str(KEY.verifier), "seq": 0, "prev": None}),
    "owner.key.add": ("owner.key.add", {"public_key": str(KEY.verifier)}),
    "owner.key.revoke": ("owner.key.revoke", {"revoked_key_id": KEY.verifier.key_id}),
    "cert.revoke": ("cert.revoke", {"owner": "archive", "reason": "laptop stolen"}),
    "base.publish": ("base.publish", {"base_digest": DIGEST, "config_digest": OTHER, "round": 0}),
    "consent.grant": ("consent.grant", GRANT),
    "consent.grant to one release": ("consent.grant", {**GRANT, "scope": {"release": "release-1"}}),
    "consent.grant with all there is": (
        "consent.grant",
        {
            **GRANT,
            "expert": {**GRANT["expert"], "manifest_digest": OTHER},
            "jurisdiction": "eu",
            "privacy": {"epsilon": 1.5, "delta": 1e-6, "mechanism": "dp-sgd"},
        },
    ),
    "consent.revoke": ("consent.revoke", {"grant_id": RECORD, "effect": "future", "deadline_s": 0}),
    "consent.revoke with a reason": (
        "consent.revoke",
        {"grant_id": RECORD, "effect": "future", "deadline_s": 0, "reason": "wir hören auf — 終わり"},
    ),
    "consent.revoke that takes back": (
        "consent.revoke",
        {"grant_id": RECORD, "effect": "withdraw_published", "deadline_s": 86_400},
    ),
    **{
        f"campaign.define of {parameters['kind']}": (
            "campaign.define",
            {
                "parameters": parameters,
                "owners": ["archive", "hospital"],
                "quorum": 2,
                "min_documents": 10,
                "opens_at": "2026-11-23T09:00:00Z",
                "closes_at": "2026-11-24T09:00:00Z",
            },
        )
        for parameters in (
            {"kind": "evaluate", "max_bytes": 1000, "model": MODEL},
            {"kind": "select-proxy", "pool": {"digest": DIGEST, "size": 9}, "count": 7, "min_accuracy": 0.95},
            {"kind": "train", "base_digest": DIGEST},
            {"kind": "extraction", "model": MODEL, "prefix_tokens": 32, "continuation_tokens": 16, "documents": 100},
        )
    },
    "campaign.decline": ("campaign.decline", {"campaign_id": RECORD, "reason": "not this year"}),
    "campaign.result": (
        "campaign.result",
        {
            "campaign_id": RECORD,
            "subject": DIGEST,
            "held_out": OTHER,
            "attachment": {"digest": OTHER, "size": 1},
            "figures": [
                {"name": "archive", "measure": "bits_per_byte", "value": 1.25, "documents": 12, "size_bytes": 5}
            ],
        },
    ),
    "campaign.close": (
        "campaign.close",
        {"campaign_id": RECORD, "by": "date", "reported": ["archive"], "declined": [], "absent": ["hospital"]},
    ),
    "release.withdraw": ("release.withdraw", {"release": "release-1", "cause_index": 5}),
    "release.publish of nobody's expert": (
        "release.publish",
        {
            "release": "release-1",
            "line": "main",
            "manifest_digest": DIGEST,
            "base_digest": DIGEST,
            "log_size": 1,
            "experts": [],
            "num_experts_per_tok": 1,
            "not_after": None,
        },
    ),
    "expert.contribute": (
        "expert.contribute",
        {
            "grant_id": RECORD,
            "files": {"expert.safetensors": {"digest": DIGEST, "size": 2**53 - 1}},
            "tokens_seen": 10**12,
            "training_config_digest": OTHER,
        },
    ),
    "release.publish of trained rows": (
        "release.publish",
        {
            "release": "release-2",
            "line": "main",
            "manifest_digest": OTHER,
            "base_digest": DIGEST,
            "log_size": 9,
            "experts": [EXPERT],
            "num_experts_per_tok": 2,
            "not_after": "2027-11-23T09:00:00Z",
            "router_training": TRAINING,
        },
    ),
    "release.publish": (
        "release.publish",
        {
            "release": "release-1",
            "line": "main",
            "manifest_digest": DIGEST,
            "base_digest": DIGEST,
            "log_size": 4,
            "experts": [EXPERT],
            "num_experts_per_tok": 2,
            "not_after": "2027-11-23T09:00:00Z",
        },
    ),
}


def text_of(case: str, **changes: object) -> str:
    """The text of a valid statement with some fields changed."""
    kind, fields = VALID[case]
    return f"{TYPE_PREFIX}{kind}\n{strict_json.canonical({**COMMON, **fields, **changes}).decode()}\n"


def test_every_kind_is_here() -> None:
    assert {kind for kind, _ in VALID.values()} == KINDS.keys()


@pytest.mark.parametrize("case", VALID)
def test_every_kind_comes_back_as_it_went(case: str) -> None:
    text = text_of(case)
    statement = parse(text)
    assert statement.text == text
    assert statement.type == VALID[case][0]
    _, again = parse_note(sign_statement(statement, KEY))
    assert again == statement


def test_the_text_of_a_statement_does_not_change() -> None:
    """Signed words are for good: this is what version 1 looks like."""
    assert parse(text_of("consent.revoke")).digest == GOLDEN


GOLDEN = "sha256:9dcc3f5d5c74f1a4de850fb66c04da29a7168ff400332518da42c35e2b86d8b6"

BAD_FIELDS: dict[str, tuple[str, dict[str, object]]] = {
    "an unknown field": ("consent.revoke", {"x": 1}),
    "an unknown field within": ("consent.grant", {"terms": {"uri": "x", "digest": DIGEST, "y": 1}}),
    "null for what may be left out": ("consent.revoke", {"reason": None, "x": None}),
    "a number as text": ("consent.revoke", {"seq": "1"}),
    "a truth for a number": ("consent.revoke", {"seq": True}),
    "a fraction": ("consent.revoke", {"seq": 1.5}),
    "a negative number": ("consent.revoke", {"seq": -1}),
    "a short digest": ("consent.revoke", {"prev": "sha256:ab"}),
    "a digest in capitals": ("consent.revoke", {"prev": DIGEST.upper()}),
    "a digest with a newline": ("consent.revoke", {"prev": DIGEST + "\n"}),
    "a time with an offset": ("consent.revoke", {"issued_at": "2026-11-23T09:00:00+00:00"}),
    "a time that is none": ("consent.revoke", {"issued_at": "2026-02-30T09:00:00Z"}),
    "a time of one digit": ("consent.revoke", {"issued_at": "2026-1-2T9:0:0Z"}),
    "a year that strftime shortens": ("consent.revoke", {"issued_at": "0026-11-23T09:00:00Z"}),
    "a record id of another version": ("consent.revoke", {"record_id": RECORD.replace("-7", "-4")}),
    "a record id in capitals": ("consent.revoke", {"record_id": RECORD.replace("c0a0", "C0A0")}),
    "a party with a path": ("consent.revoke", {"party": "../x"}),
    "an empty party": ("consent.revoke", {"party": ""}),
    "a party too long": ("consent.revoke", {"party": "a" * 64}),
    "two lines in a line": ("consent.revoke", {"reason": "a\nb"}),
    "two lines by another character": ("consent.revoke", {"reason": "a\x85b"}),
    "two lines by a separator": ("consent.revoke", {"reason": "a\u2028b"}),
    "a terminal's command": ("consent.revoke", {"reason": "\x9b2Ja"}),
    "letters in another order": ("consent.revoke", {"reason": "a\u202eb"}),
    "letters in an order of their own": ("consent.grant", {"terms": {"uri": "\u2066x", "digest": DIGEST}}),
    "an effect that is not kept": ("consent.revoke", {"effect": "at once"}),
    "no purpose": ("consent.grant", {"purposes": []}),
    "an unknown scope": ("consent.grant", {"scope": {"world": "all"}}),
    "two scopes": ("consent.grant", {"scope": {"line": "main", "release": "r"}}),
    "another kind of expert": ("consent.grant", {"expert": {**GRANT["expert"], "kind": "lowrank"}}),
    "privacy above one": ("consent.grant", {"privacy": {"epsilon": 1, "delta": 2, "mechanism": "x"}}),
    "no files": ("expert.contribute", {"files": {}}),
    "a path in a file name": ("expert.contribute", {"files": {"../x": {"digest": DIGEST, "size": 1}}}),
    "a hidden file": ("expert.contribute", {"files": {".x": {"digest": DIGEST, "size": 1}}}),
    "a manifest in itself": ("expert.contribute", {"files": {"manifest.json": {"digest": DIGEST, "size": 1}}}),
    "a release that does not say until when": ("release.publish", {"not_after": "never"}),
    "a withdrawal of nothing": ("release.withdraw", {"release": ""}),
    "a key id in capitals": ("owner.key.revoke", {"revoked_key_id": "ABCDEF01"}),
    "a release with a path": ("release.publish", {"release": "a/b"}),
    "slot 0": ("release.publish", {"experts": [{**EXPERT, "slot": 0}]}),
    "training of a version to come": ("release.publish", {"router_training": {**TRAINING, "version": 2}}),
    "training for nobody": ("release.publish", {"router_training": {**TRAINING, "proxies": []}}),
    "training by a campaign without an id": ("release.publish", {"router_training": {**TRAINING, "campaign_id": "x"}}),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_a_field_that_is_not_as_it_must_be_is_refused(case: str) -> None:
    kind, changes = BAD_FIELDS[case]
    with pytest.raises(MalformedError, match=kind):
        parse(text_of(kind, **changes))


@pytest.mark.parametrize("name", sorted(COMMON))
def test_every_common_field_is_needed(name: str) -> None:
    fields = {**COMMON, **VALID["consent.revoke"][1]}
    del fields[name]
    with pytest.raises(MalformedError, match=f"{name}: Field required"):
        parse(f"{TYPE_PREFIX}consent.revoke\n{strict_json.canonical(fields).decode()}\n")


@pytest.mark.parametrize(
    ("seconds", "deadline"),
    [
        (0, datetime(2026, 11, 23, 9, tzinfo=UTC)),
        (86_400, datetime(2026, 11, 24, 9, tzinfo=UTC)),
        (2**53 - 1, datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_a_deadline_is_counted_from_the_revocation(seconds: int, deadline: datetime) -> None:
    revocation = parse(text_of("consent.revoke", deadline_s=seconds))
    assert isinstance(revocation, ConsentRevoke)
    assert revocation.deadline == deadline


TEXT = text_of("consent.revoke")
BODY = TEXT.split("\n")[1]
BAD_TEXTS = {
    "a type that is not known": TEXT.replace("consent.revoke\n", "consent.forget\n"),
    "another version": TEXT.replace("concord/v1", "concord/v2"),
    "no type": BODY + "\n",
    "a type with a space": TEXT.replace("consent.revoke\n", "consent.revoke \n"),
    "another kind's type": TEXT.replace("consent.revoke\n", "base.publish\n"),
    "a carriage return": TEXT.replace("\n", "\r\n"),
    "no last newline": TEXT[:-1],
    "one newline more": TEXT + "\n",
    "white space within": TEXT.replace('":', '": '),
    "another order": f"{TYPE_PREFIX}consent.revoke\n{json.dumps({**COMMON, **VALID['consent.revoke'][1]})}\n",
    "a key twice": TEXT.replace('{"', '{"seq":1,"', 1),
    "the same key escaped": TEXT.replace('"seq"', '"s\\u0065q"'),
    "an escape that need not be": TEXT.replace('"archive"', '"\\u0061rchive"'),
    "NaN": TEXT.replace('"seq":1', '"seq":NaN'),
    "infinity": TEXT.replace('"seq":1', '"seq":-Infinity'),
    "an integer of 2^53": TEXT.replace('"seq":1', '"seq":9007199254740992'),
    "an integer of a thousand digits": TEXT.replace('"seq":1', f'"seq":1{"0" * 1000}'),
    "minus zero": TEXT.replace('"seq":1', '"seq":-0'),
    "a float that is whole": TEXT.replace('"seq":1', '"seq":1.0'),
    "a number in exponents": TEXT.replace('"seq":1', '"seq":1e0'),
    "half a surrogate pair": TEXT.replace('"archive"', '"\\ud800"'),
    "a list": f"{TYPE_PREFIX}consent.revoke\n[]\n",
    "no JSON": f"{TYPE_PREFIX}consent.revoke\nhello\n",
    "a deep nest": f"{TYPE_PREFIX}consent.revoke\n{'[' * 15_000}\n",
    "nothing": "",
    "more than 16 KiB": text_of("consent.revoke", reason="x" * MAX_STATEMENT_BYTES),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_every_other_spelling_is_refused(case: str) -> None:
    assert BAD_TEXTS[case] != TEXT
    with pytest.raises(MalformedError):
        parse(BAD_TEXTS[case])


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e400"])
def test_a_number_no_double_holds_is_refused(number: str) -> None:
    text = text_of("consent.grant with all there is").replace('"epsilon":1.5', f'"epsilon":{number}')
    with pytest.raises(MalformedError, match="more than a double can hold"):
        parse(text)


LONG: dict[str, tuple[int, Callable[[int], dict[str, Any]]]] = {
    "release.publish": (MAX_LIST_BYTES, lambda count: {"experts": [EXPERT] * count}),
    "campaign.close": (MAX_LIST_BYTES, lambda count: {"reported": [f"owner-{i:04}{'x' * 52}" for i in range(count)]}),
    "expert.contribute": (
        MAX_STATEMENT_BYTES,
        lambda count: {"files": {f"{i:03}{'x' * 120}": {"digest": DIGEST, "size": 2**53 - 1} for i in range(count)}},
    ),
}


def of_size(kind: str, size: int) -> str:
    """A statement that has so many bytes: it lists what it can, and its log has a long name."""
    _, fields = LONG[kind]
    number = next(count for count in range(1025) if len(text_of(kind, **fields(count))) > size - 900)
    room = size - len(text_of(kind, **fields(number)))
    return text_of(kind, **fields(number), origin=COMMON["origin"] + "x" * room)


@pytest.mark.parametrize("kind", LONG)
def test_a_statement_may_have_16_kib_a_list_of_owners_60_and_no_byte_more(kind: str) -> None:
    most, _ = LONG[kind]
    assert len(parse(of_size(kind, most)).text) == most
    with pytest.raises(MalformedError, match=f"statement of {most + 1} bytes; at most {most}"):
        parse(of_size(kind, most + 1))


def test_the_longest_release_fits_an_entry_of_the_log_once_it_is_signed() -> None:
    key = SigningKey.generate("archives.example/coordinator")
    statement = parse(of_size("release.publish", MAX_LIST_BYTES))
    entry = sign_statement(statement, key)
    assert parse_note(entry)[1] == statement
    assert parse_bundle(format_bundle([entry])) == [entry]


def test_signatures_may_not_take_more_room_than_a_statement() -> None:
    statement = parse(text_of("consent.revoke"))
    keys = [SigningKey.generate("a.example/" + f"{number:03}" + "x" * 900) for number in range(16)]
    assert parse_note(sign_statement(statement, *keys[:15]))[1] == statement
    many = sign_statement(statement, *[SigningKey.generate(key.name + "x" * 1200) for key in keys])
    assert 2 * MAX_STATEMENT_BYTES < len(many) <= MAX_ENTRY_BYTES
    with pytest.raises(MalformedError, match=f"with its signatures; at most {2 * MAX_STATEMENT_BYTES} are allowed"):
        parse_note(many)


def test_a_note_that_is_too_long_is_refused() -> None:
    with pytest.raises(TooLargeError, match="at most 65535"):
        parse_note(b"x" * 65_536)


def test_record_ids_are_in_the_order_of_time() -> None:
    early, late = (new_record_id(parse_time(f"2026-11-23T09:00:0{second}Z")) for second in (1, 2))
    assert early < late
    assert parse(text_of("consent.revoke", record_id=early)).record_id == early


# Parsers never raise anything but what they say.

MUTATED = st.builds(
    lambda text, start, length, middle: text[:start] + middle + text[start + length :],
    st.sampled_from([text_of(case) for case in VALID]),
    st.integers(0, 900),
    st.integers(0, 40),
    st.one_of(st.text(max_size=8), st.sampled_from(["1e999", "\\ud800", "[[", "{}", "null", "true", "-0", "9" * 400])),
)


@given(MUTATED)
def test_parsing_a_changed_statement_gives_a_statement_or_a_malformed_error(text: str) -> None:
    with suppress(MalformedError):
        assert parse(text).text == text


@given(st.text())
def test_parsing_any_text_gives_a_malformed_error(text: str) -> None:
    with pytest.raises(MalformedError):
        parse(text)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@given(
    st.sampled_from(sorted(VALID)), st.sampled_from([*COMMON, *GRANT, "files", "experts", "privacy", "reason"]), JSON
)
def test_any_value_in_any_field_gives_a_statement_or_a_malformed_error(case: str, name: str, value: object) -> None:
    kind, fields = VALID[case]
    body = json.dumps({**COMMON, **fields, name: value}, sort_keys=True, separators=(",", ":"))
    with suppress(MalformedError):
        parse(f"{TYPE_PREFIX}{kind}\n{body}\n")


@given(st.sampled_from([TrustedRoot.parse, Invitation.parse]), JSON | st.binary())
def test_roots_and_invitations_parse_or_are_malformed(parser: Any, value: object) -> None:
    names = ["federation", "origin", "log", "coordinator", "owner", "target", "enrolment_target", "authority", "token"]
    data = value if isinstance(value, bytes) else json.dumps({**dict.fromkeys(names, value), "root": {}}).encode()
    with pytest.raises(ConcordError):
        parser(data)


@pytest.mark.parametrize("parser", [TrustedRoot.parse, Invitation.parse])
def test_half_a_character_is_malformed(parser: Callable[[bytes], object]) -> None:
    root = f'{{"coordinator":"{KEY.verifier}","federation":"\\ud800","log":"{KEY.verifier}","origin":"x"}}'
    with pytest.raises(MalformedError, match="surrogates not allowed"):
        parser(root.encode())
