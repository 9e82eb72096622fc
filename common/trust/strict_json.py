"""JSON as it is used for anything that is signed, hashed or comes from outside: one spelling for each value.

`loads` refuses what Python's `json` accepts silently: duplicate keys, NaN and infinities, integers a double cannot
hold (RFC 8785 section 3.2.2.3), invalid UTF-8 and absurd nesting. `canonical` is RFC 8785.
"""

import json
import math
from typing import Final, NoReturn

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
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)


def loads(data: bytes, *, what: str = "JSON") -> JsonValue:
    """The value in `data`; `what` names it in the error.

    Raises:
        MalformedError: not UTF-8, not JSON, a duplicate key, half a surrogate pair, NaN, infinity or a number as large,
            or an integer of 2^53 or more.
    """
    try:
        value: JsonValue = _DECODER.decode(data.decode("utf-8"))
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # an escape may name half a character: that is no text
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what}: {error}") from error
    return value


def load_object(data: bytes, *, what: str = "JSON") -> dict[str, JsonValue]:
    """Like `loads`, for what must be an object."""
    value = loads(data, what=what)
    if not isinstance(value, dict):
        raise MalformedError(f"{what}: an object is wanted, not {type(value).__name__}")
    return value


def canonical(value: object) -> bytes:
    """RFC 8785 bytes of a JSON value; `ValueError` for what has no such form.

    In ASCII and without fractions the standard library's encoder spells every value as RFC 8785 does, several times
    faster; what differs from that is spelled out in full.
    """
    if _is_plain(value) and (text := _ENCODER.encode(value)).isascii():
        return text.encode()
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
