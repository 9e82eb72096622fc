"""JSON with one spelling for each value: what Python's parser takes silently is refused."""

import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MalformedError
from common.trust.strict_json import MAX_SAFE_INTEGER, canonical, is_canonical, load_object, load_spelled, loads


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b'{"a":1,"a":1}', "duplicate key 'a'"),
        (b'{"b":{"a":1,"a":2}}', "duplicate key 'a'"),
        (b'{"a":1,"\\u0061":2}', "duplicate key 'a'"),
        (b"NaN", "NaN is not JSON"),
        (b"[Infinity]", "Infinity is not JSON"),
        (b"-Infinity", "Infinity is not JSON"),
        (b"1e999", "more than a double can hold"),
        (b"-1e400", "more than a double can hold"),
        (b"9007199254740992", r"2\^53 or more"),
        (b"-9007199254740992", r"2\^53 or more"),
        (b"1" * 100_000, r"2\^53 or more"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b'{"\\udfff":1}', "surrogates not allowed"),
        (b'"\xed\xa0\x80"', "utf-8"),
        (b'"\xff"', "utf-8"),
        (b"\xef\xbb\xbf1", "BOM|Expecting"),
        (b"1 2", "Extra data"),
        (b"", "Expecting value"),
        (b"'a'", "Expecting value"),
        (b'"\n"', "control character"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_what_is_not_one_value_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(MalformedError, match=f"what it is: .*({match})"):
        loads(data, what="what it is")


@pytest.mark.parametrize("number", [MAX_SAFE_INTEGER, -MAX_SAFE_INTEGER, 0, 1.5, -2.5e300])
def test_numbers_a_double_holds_are_taken(number: float) -> None:
    assert loads(json.dumps(number).encode()) == number


def test_whole_characters_may_be_escaped() -> None:
    assert loads(b'"\\ud83d\\ude00\\u00e9"') == "😀é"


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"{}"'])
def test_what_is_no_object_is_refused_where_one_is_wanted(data: bytes) -> None:
    with pytest.raises(MalformedError, match="an object is wanted, not"):
        load_object(data)


def test_canonical_json_is_that_of_the_specification() -> None:
    """The example of RFC 8785 section 3.2.2, and its sorting by UTF-16 code units."""
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert canonical(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical({"\ufb33": 1, "😀": 2, "é": 3}).decode() == '{"é":3,"😀":2,"\ufb33":1}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, "\ud800", {1: 2}, object()])
def test_what_has_no_canonical_form_is_a_mistake(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical(value)


_SAFE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@given(_SAFE)
def test_canonical_json_comes_back_as_it_went(value: object) -> None:
    data = canonical(value)
    again = loads(data)
    assert canonical(again) == data == rfc8785.dumps(again)  # type: ignore[arg-type]


@given(st.binary())
def test_any_bytes_give_a_value_or_a_malformed_error(data: bytes) -> None:
    try:
        value = loads(data)
    except MalformedError:
        return
    assert json.loads(data) == value


def _strictly(data: bytes) -> object:
    """What `load_spelled` says by its definition."""
    value = load_object(data)
    return value, is_canonical(data, value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"b":[-5,{"c":null,"d":true}]}',
        b'{"a":"1.5","b":",2.5"}',
        b'{"a":1.0}',
        b'{"a":1e2}',
        b'{"a":[1,-1.5]}',
        b'{"a":-0}',
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":"\\/"}',
        b'{"a":"\\u001f\\n\\u007f"}',
        b'{"a":"\\u001F"}',
        b'{"a":"\x7f\\b\\f\\r\\t\\"\\\\"}',
        b'{"a":9007199254740991}',
        '{"\ufb33":1,"😀":2}'.encode(),
        '{"😀":1,"\ufb33":2}'.encode(),
    ],
)
def test_the_quick_way_says_what_the_strict_way_says(data: bytes) -> None:
    assert load_spelled(data) == _strictly(data)
    assert [type(value) for value in load_spelled(data)[0].values()] == [type(v) for v in load_object(data).values()]


@pytest.mark.parametrize(
    "data", [b'{"a":1,"a":1}', b'{"a":NaN}', b'{"a":9007199254740992}', b"[]", b"1", b'{"a":1}x', b'{"a":"\\ud800"}']
)
def test_the_quick_way_takes_nothing_that_the_strict_way_refuses(data: bytes) -> None:
    with pytest.raises(MalformedError):
        load_spelled(data)


@given(st.dictionaries(st.text(max_size=4), _SAFE, max_size=4), st.data())
def test_both_ways_agree_on_objects_and_on_what_is_nearly_one(value: dict[str, object], draw: st.DataObject) -> None:
    data = bytearray(canonical(value))
    for _ in range(draw.draw(st.integers(0, 2))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 127))
    try:
        expected = _strictly(bytes(data))
    except MalformedError:
        with pytest.raises(MalformedError):
            load_spelled(bytes(data))
        return
    assert load_spelled(bytes(data)) == expected
