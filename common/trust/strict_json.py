"""JSON as it is used for anything that is signed, hashed or comes from outside: one spelling for each value.

`loads` refuses what Python's `json` accepts silently: duplicate keys, NaN and infinities, integers a double cannot
hold (RFC 8785 section 3.2.2.3), invalid UTF-8 and absurd nesting. `canonical` is RFC 8785.

Nearly all that is read was spelled canonically, in ASCII and without fractions. Such bytes are what orjson writes for
what it read from them, which takes a tenth of the time: whatever else they may be, they hold no key twice, no number
that is not as it should be, and nothing in another order. Everything else goes the strict way.
"""

import json
import math
import re
from typing import Final, NoReturn, cast

import orjson
import rfc8785

from common.errors import MalformedError

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]

MAX_SAFE_INTEGER = 2**53 - 1


def _no_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _safe_integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_SAFE_INTEGER:
        raise ValueError(f"integer {text[:24]} is 2^53 or more")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:24]} is more than a double can hold")
    return value


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_safe_integer, parse_float=_finite
)


def loads(data: bytes, *, what: str = "JSON") -> JsonValue:
    """The value in `data`; `what` names it in the error.

    Raises:
        MalformedError: not UTF-8, not JSON, a duplicate key, half a surrogate pair, NaN, infinity or a number as large,
            or an integer of 2^53 or more.
    """
    if (compact := _compact(data)) is not None:
        return compact
    try:
        value: JsonValue = _DECODER.decode(data.decode("utf-8"))
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # an escape may name half a character: that is no text
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what}: {error}") from error
    return value


def _compact(data: bytes) -> JsonValue:
    """The object in `data` where it is compact JSON without anything that `loads` would have to look at twice; or None.

    What orjson writes for what it read is what it read: no key was there twice.
    """
    compact = data.rstrip(b" ")
    if not (compact.startswith(b"{") and compact.isascii()) or _may_have_fractions(compact):
        return None
    try:
        value = orjson.loads(compact)
        if orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER) == compact:
            return cast(JsonValue, value)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass  # the strict way says what is wrong
    return None


_FRACTION_OF_KEY: Final = re.compile(rb'":-?[0-9]+[.eE]')
_FRACTION_IN_LIST: Final = re.compile(rb"[,[]-?[0-9]+[.eE]")
"""What a number with a fraction or an exponent has before it; text may have it too. Two, since the first is found far
quicker and most objects have no list."""

_SAME_SPELLING: Final = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER


def load_spelled(data: bytes, *, what: str = "JSON") -> tuple[dict[str, JsonValue], bool]:
    """The object in `data`, and whether that is its RFC 8785 form; errors as `load_object`."""
    if data.startswith(b"{") and data.isascii() and not _may_have_fractions(data):
        try:
            value = orjson.loads(data)
            if orjson.dumps(value, option=_SAME_SPELLING) == data:
                return value, True
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            pass  # the strict way says what is wrong
    value = load_object(data, what=what)
    return value, is_canonical(data, value)


def _may_have_fractions(data: bytes) -> bool:
    return bool(_FRACTION_OF_KEY.search(data) or (b"[" in data and _FRACTION_IN_LIST.search(data)))


def load_object(data: bytes, *, what: str = "JSON") -> dict[str, JsonValue]:
    """Like `loads`, for what must be an object."""
    value = loads(data, what=what)
    if not isinstance(value, dict):
        raise MalformedError(f"{what}: an object is wanted, not {type(value).__name__}")
    return value


def canonical(value: object) -> bytes:
    """RFC 8785 bytes of a JSON value; `ValueError` for what has no such form.

    In ASCII and without fractions orjson spells every value as RFC 8785 does, many times faster; what differs from that
    is spelled out in full.
    """
    if _is_plain(value):
        try:
            if (data := orjson.dumps(value, option=_SAME_SPELLING)).isascii():
                return data
        except orjson.JSONEncodeError:
            pass  # such as half a character: the long way says what is wrong
    try:
        return bytes(rfc8785.dumps(value))  # type: ignore[arg-type]
    except rfc8785.CanonicalizationError as error:
        raise ValueError(f"no canonical JSON: {error}") from error


def is_canonical(data: bytes, value: JsonValue) -> bool:
    """Whether `data`, which parsed to `value`, is its RFC 8785 form."""
    return canonical(value) == data


def _is_plain(value: object) -> bool:
    """Whether a value holds nothing but text, names that are text, whole numbers that a double can hold, and lists."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER  # type: ignore[operator]
    if kind is dict:
        for key, inner in value.items():  # type: ignore[attr-defined]
            if type(key) is not str or (type(inner) is not str and not _is_plain(inner)):
                return False
        return True
    return kind is list and all(map(_is_plain, value))  # type: ignore[call-overload]
