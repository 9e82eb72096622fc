"""Callers that hold what others need: silent calls keep no member waiting, and do not last."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from common.rpc import channel
from common.rpc.channel import open_channel
from coordinator import streams
from protos import transfer_pb2
from tests.federation import Federation, expert_weights, running_federation
from tests.raw_calls import calling_as

SILENT_CALLS = 40
"""More than there are threads, and than calls may wait."""


class Silence:
    """A stream of messages that never has one, until it is over."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        self.over.wait(60)
        yield from ()


def _hold(stack: ExitStack, federation: Federation, count: int) -> list[grpc.Future]:
    """Silent calls to the port that is open to all, each over a connection of its own."""
    silence = Silence()
    stack.callback(silence.over.set)
    calls = []
    for _ in range(count):
        authority = federation.coordinator.authority.certificate_pem
        connection = open_channel(f"127.0.0.1:{federation.ports[1]}", authority=authority, tls=None)
        stack.callback(connection.close)
        redeem = connection.stream_unary("/concord.v1.Enrolment/Redeem")
        calls.append(redeem.future(iter(silence), timeout=60))
    return calls


def test_strangers_who_say_nothing_keep_no_member_waiting(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    with ExitStack() as stack:
        _hold(stack, consortium, SILENT_CALLS)
        owner.take_part(1)
        assert consortium.release().owners == {1: "archive"}


def test_a_silent_stranger_is_cut_off_and_others_join_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_ANONYMOUS_AGE_MS", 300)
    monkeypatch.setattr(channel, "_ANONYMOUS_GRACE_MS", 300)
    with running_federation(tmp_path) as federation, ExitStack() as stack:
        held = _hold(stack, federation, 8)
        for call in held:
            assert isinstance(call.exception(timeout=30), grpc.RpcError)
        federation.enrol("archive", patience_s=30)


def test_an_upload_that_falls_silent_ends_and_goes_on_in_another_call(
    consortium: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "SILENCE_S", 0.3)
    owner = consortium.enrol("archive")
    owner.consent()
    owner.put_expert(expert_weights(1))
    silence = Silence()
    with calling_as(owner) as calls:

        def chunks() -> Iterator[transfer_pb2.Chunk]:
            yield from iter(silence)  # type: ignore[misc]

        with pytest.raises(grpc.RpcError):
            list(calls.transfer.PutChunks(chunks(), timeout=30))
        silence.over.set()
    assert owner.submit().receipt is not None
