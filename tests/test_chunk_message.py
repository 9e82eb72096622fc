"""Chunks on the wire: what Protocol Buffers writes is read, and the other way round; anything else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MalformedError
from common.rpc.chunk_message import ChunkMessage, format_fetched, parse_chunk, parse_fetched
from protos import transfer_pb2

_TEXT = st.text(max_size=60)


@given(_TEXT, _TEXT, st.integers(0, 2**64 - 1), st.binary(max_size=300), st.binary(max_size=40))
def test_both_ways_it_is_the_message_of_the_proto(upload: str, file: str, index: int, data: bytes, sha: bytes) -> None:
    theirs = transfer_pb2.Chunk(upload_id=upload, file=file, index=index, data=data, sha256=sha)
    assert parse_chunk(theirs.SerializeToString()) == ChunkMessage(upload, file, index, data, sha)
    assert transfer_pb2.Chunk.FromString(ChunkMessage(upload, file, index, data, sha).format()) == theirs


@given(st.binary(max_size=200))
def test_any_bytes_are_a_chunk_or_malformed(message: bytes) -> None:
    try:
        chunk = parse_chunk(message)
    except MalformedError:
        return
    theirs = transfer_pb2.Chunk.FromString(message)
    assert (chunk.upload_id, chunk.file, chunk.index % 2**64) == (theirs.upload_id, theirs.file, theirs.index)
    assert (chunk.data, chunk.sha256) == (theirs.data, theirs.sha256)


WHOLE = ChunkMessage("upload", "sha256:0", 3, b"data", b"digest").format()


def test_every_cut_is_refused_or_is_a_whole_message_before_it() -> None:
    for length in range(len(WHOLE)):
        try:
            found = parse_chunk(WHOLE[:length])
        except MalformedError:
            continue
        assert found.data == b""
        assert found.format() != WHOLE


@pytest.mark.parametrize(
    "message",
    [
        WHOLE + WHOLE,
        WHOLE + b"\x32\x01x",  # field 6
        WHOLE[:-6] + b"\x21" + bytes(8),  # data as a fixed number
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # longer than anything
        b"\x18" + b"\xff" * 12,  # a number without an end
        b"\x0a\x02\xff\xfe",  # no UTF-8
    ],
)
def test_other_messages_are_refused(message: bytes) -> None:
    with pytest.raises(MalformedError, match="chunk"):
        parse_chunk(message)


@given(st.binary(max_size=300))
def test_what_is_fetched_is_the_message_of_the_proto_both_ways(data: bytes) -> None:
    assert transfer_pb2.FetchReply.FromString(format_fetched(data)).data == data
    assert parse_fetched(transfer_pb2.FetchReply(data=data).SerializeToString()) == data


@pytest.mark.parametrize(
    "message", [b"\x0a", b"\x0a\x05data", b"\x0a\x03data", b"\x12\x04data", b"\x0a" + b"\xff" * 12]
)
def test_what_is_no_part_of_a_file_is_refused(message: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_fetched(message)
