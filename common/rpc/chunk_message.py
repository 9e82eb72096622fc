"""Chunks on the wire, without copies of what they carry.

The messages are `concord.v1.Chunk` and `FetchReply` of protos/transfer.proto, in Protocol Buffers' own encoding. A
general parser copies a field of a megabyte twice before anybody sees it; here it is read where it lies. What is not in
the .proto is refused.
"""

from dataclasses import dataclass
from typing import Final

from common.errors import MalformedError

_UPLOAD_ID: Final = 1
_FILE: Final = 2
_INDEX: Final = 3
_DATA: Final = 4
_SHA256: Final = 5
_FETCHED: Final = 1
_VARINT: Final = 0
_BYTES: Final = 2
_MOST_VARINT_BYTES: Final = 10


@dataclass(frozen=True, slots=True)
class ChunkMessage:
    """A chunk: `data` is a part of the message that it came in, or of whatever holds what is sent."""

    upload_id: str
    file: str
    index: int
    data: bytes | memoryview
    sha256: bytes

    def format(self) -> bytes:
        """The message, its data last."""
        return b"".join(
            (
                _field(_UPLOAD_ID, self.upload_id.encode()),
                _field(_FILE, self.file.encode()),
                _number(_INDEX << 3 | _VARINT) + _number(self.index),
                _field(_SHA256, self.sha256),
                _number(_DATA << 3 | _BYTES) + _number(len(self.data)),
                self.data,
            )
        )


def parse_chunk(message: bytes) -> ChunkMessage:
    """The chunk in `message`; a field that is absent is empty, one that is there twice is refused.

    Raises:
        MalformedError: it is no such message.
    """
    view, at = memoryview(message), 0
    found: dict[int, int | memoryview] = {}
    while at < len(view):
        tag, at = _read_number(view, at)
        number, kind = tag >> 3, tag & 7
        value, at = _read_number(view, at)
        if (kind == _VARINT) != (number == _INDEX) or kind not in (_VARINT, _BYTES) or number in found:
            raise MalformedError(
                f"a chunk has no field {number} of wire type {kind}, or not twice; use a client of this version"
            )
        if kind == _VARINT:
            found[number] = value
            continue
        if at + value > len(view):
            raise MalformedError(f"field {number} of a chunk is cut off; send the chunk again")
        found[number], at = view[at : at + value], at + value
    if odd := found.keys() - {_UPLOAD_ID, _FILE, _INDEX, _DATA, _SHA256}:
        raise MalformedError(f"a chunk has no field {min(odd)}")
    index = found.get(_INDEX, 0)
    assert isinstance(index, int), "told by its wire type"
    return ChunkMessage(
        _text(found.get(_UPLOAD_ID, b"")), _text(found.get(_FILE, b"")), index,
        _bytes(found.get(_DATA, b"")), bytes(_bytes(found.get(_SHA256, b""))),
    )  # fmt: skip


def format_fetched(data: bytes) -> bytes:
    """`concord.v1.FetchReply` with this data."""
    return b"".join((_number(_FETCHED << 3 | _BYTES), _number(len(data)), data))


def parse_fetched(message: bytes) -> memoryview:
    """The data of a `concord.v1.FetchReply`, a part of the message.

    Raises:
        MalformedError: it is no such message.
    """
    view = memoryview(message)
    if not view:
        return view
    tag, at = _read_number(view, 0)
    length, at = _read_number(view, at)
    if tag != _FETCHED << 3 | _BYTES or len(view) != at + length:
        raise MalformedError(f"{len(view)} bytes came that are no part of a file")
    return view[at:]


def _bytes(value: int | bytes | memoryview) -> bytes | memoryview:
    assert not isinstance(value, int), "told by its wire type"
    return value


def _text(value: int | bytes | memoryview) -> str:
    data = bytes(_bytes(value))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"a chunk names {data[:80]!r}, which is no id and no digest; use those that the upload was opened with"
        ) from error


def _field(number: int, data: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(data)) + data


def _number(value: int) -> bytes:
    """A base-128 varint."""
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _read_number(view: memoryview, at: int) -> tuple[int, int]:
    """A varint, and where what follows begins."""
    value = 0
    for place in range(_MOST_VARINT_BYTES):
        if at + place >= len(view):
            break
        byte = view[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise MalformedError("a chunk is cut off, or has a number without an end; send it again")
