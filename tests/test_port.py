"""Strangers at the ports: connections that are never finished, bytes that are no TLS, calls that say nothing. The
coordinator goes on serving an owner meanwhile, and its memory stays bounded.
"""

import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from common.rpc import channel
from tests.commands import stop, wait_for_step
from tests.federation import Federation, Owner, running_federation

CONNECTIONS = 1500
MOST_MB = 600


@dataclass(frozen=True)
class Service:
    """A coordinator that is a process of its own, and an owner of it."""

    federation: Federation
    owner: Owner
    process: psutil.Process

    def answers(self) -> None:
        """An owner's call over a new connection is answered."""
        self.owner.patience_s = 60
        with self.owner.member() as member:
            member.client.watch()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Running."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with running_federation(tmp_path_factory.mktemp("port")) as federation:
            federation.publish_base()
            owner = federation.enrol("archive")
            federation.stop()
            home = federation.coordinator.home.path
            line = [sys.executable, "-m", "concord", "coordinator", "serve", "--home", str(home), "--json"]
            with (federation.path / "logging").open("w") as logging:
                daemon = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=logging, text=True)
                try:
                    wait_for_step(daemon, "serving")
                    yield Service(federation, owner, psutil.Process(daemon.pid))
                finally:
                    stop(daemon, signal.SIGTERM)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _connections(port: int, count: int, *, first: Callable[[int], bytes]) -> Iterator[list[socket.socket]]:
    """So many that say `first` and nothing more."""
    with ExitStack() as held:
        found = []
        for number in range(count):
            made = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            with suppress(OSError):
                made.sendall(first(number))
            found.append(made)
        yield found


def _hello() -> bytes:
    """The beginning of a handshake as a client would make it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(arriving, leaving).do_handshake()
    return leaving.read()


FIRST: dict[str, Callable[[int], bytes]] = {
    "nothing": lambda _: b"",
    "half a handshake": lambda _: _hello()[:100],
    "a handshake and nothing more": lambda _: _hello(),
    "HTTP": lambda _: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2 without TLS": lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "random bytes": lambda number: random.Random(number).randbytes(700),
    "a megabyte": lambda number: random.Random(number).randbytes(2**20),
}


@pytest.mark.parametrize("what", FIRST)
@pytest.mark.parametrize("port", [0, 1], ids=["members", "enrolment"])
def test_a_few_dozen_that_say_odd_things_keep_nobody_out(what: str, port: int, service: Service) -> None:
    with _connections(service.federation.ports[port], 40, first=FIRST[what]):
        service.answers()
    service.answers()


def test_very_many_half_open_connections_keep_nobody_out(service: Service) -> None:
    hello = _hello()
    with _connections(service.federation.ports[0], CONNECTIONS, first=lambda _: hello[:50]):
        service.answers()
        assert service.process.memory_info().rss < MOST_MB * 2**20
    service.answers()


def test_a_handshake_that_does_not_go_on_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE_MS", 1000)
    hello = _hello()
    with running_federation(tmp_path) as federation:
        for port in federation.ports:
            with _connections(port, 3, first=lambda _: hello[:50]) as strangers:
                assert [_ended(each) for each in strangers] == [True] * 3


def test_when_every_place_is_taken_whoever_is_in_goes_on_and_places_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE_MS", 3000)
    monkeypatch.setattr(channel, "most_connections", lambda anonymous: 5)
    hello = _hello()
    with running_federation(tmp_path) as federation:
        owner = federation.enrol("archive")
        with owner.member() as member, ExitStack() as stack:
            member.client.watch()
            held = stack.enter_context(_connections(federation.ports[0], 4, first=lambda _: hello[:50]))
            late = stack.enter_context(_connections(federation.ports[0], 1, first=lambda _: hello[:50]))
            assert _ended(late[0])
            member.client.watch()
            owner.patience_s = 60
            with owner.member() as another:
                another.client.watch()  # once the strangers' time is over
            assert all(_ended(each) for each in held)


def _ended(connection: socket.socket) -> bool:
    """Whether the other end closes it; `TimeoutError` where it does not."""
    with suppress(ConnectionResetError):
        return connection.recv(100) == b""
    return True


def test_the_daemon_opens_more_files_than_a_shell_gives_it(tmp_path: Path) -> None:
    with running_federation(tmp_path) as federation:
        home = federation.coordinator.home.path
    line = f"ulimit -Sn 256; exec {sys.executable} -m concord coordinator serve --home {home} --json"
    daemon = subprocess.Popen(["/bin/sh", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_step(daemon, "serving")
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        assert soft == min(hard, 65_536)
    finally:
        assert stop(daemon, signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(("files", "members", "strangers"), [(256, 96, 32), (4096, 2688, 896), (65_536, 12_288, 4096)])
def test_connections_leave_files_to_the_registry(
    files: int, members: int, strangers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel.resource, "getrlimit", lambda _: (files, files))
    assert channel.most_connections(anonymous=False) == members
    assert channel.most_connections(anonymous=True) == strangers


def test_tls_of_before_is_not_spoken(service: Service) -> None:
    for port in service.federation.ports:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
            pytest.raises(ssl.SSLError),
            context.wrap_socket(plain),
        ):
            pass


def test_invitations_are_not_guessed_and_guessing_keeps_nobody_out(service: Service) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from common.errors import NotPermittedError, UnavailableError
    from common.trust.pki import make_csr, new_key
    from tests.raw_calls import calling

    csr, authority = make_csr(new_key()), service.federation.coordinator.authority.certificate_pem

    def guess(number: int) -> int:
        refused = 0
        with calling(f"127.0.0.1:{service.federation.ports[1]}", authority=authority, tls=None) as calls:
            for _ in range(25):
                with pytest.raises((NotPermittedError, UnavailableError)):
                    calls.redeem(os.urandom(32).hex()[:43], csr=csr, note=b"")
                refused += 1
        return refused

    with ThreadPoolExecutor(8) as pool:
        guessing = [pool.submit(guess, number) for number in range(8)]
        service.answers()
        assert [each.result(120) for each in guessing] == [25] * 8
