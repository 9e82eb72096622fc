"""The published files over HTTP: what may be kept how long, and nothing but what is published."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from common.errors import UnavailableError
from coordinator.file_server import FileServer
from owner_client.membership import cosign_checkpoint
from tests.commands import concord
from tests.federation import Federation


@pytest.fixture
def address(consortium: Federation) -> Iterator[str]:
    """Where a consortium's files are, with a release."""
    for seed, name in enumerate(("archive", "hospital")):
        consortium.enrol(name).take_part(seed)
    consortium.release()
    with consortium.owner("archive").member() as member:
        assert cosign_checkpoint(member, member.client.watch()[0])
    with FileServer(consortium.public, host="127.0.0.1", port=0) as server:
        yield f"http://127.0.0.1:{server.port}"


def _get(address: str, *, method: str = "GET") -> tuple[str, str, bytes]:
    with urlopen(Request(address, method=method)) as reply:  # noqa: S310 - our own server
        return reply.headers["Cache-Control"], reply.headers["Content-Type"], reply.read()


def test_what_never_changes_is_kept_and_what_changes_is_asked_for(consortium: Federation, address: str) -> None:
    forever, soon = "public, max-age=31536000, immutable", "public, max-age=300"
    some = next(path for path in (consortium.public / "objects").iterdir())
    tile = next(path for path in (consortium.public / "log" / "tile" / "0" / "000.p").iterdir())
    for path, kept in {
        "log/checkpoint": "no-cache",
        "log/cosigned": "no-cache",
        f"log/tile/0/000.p/{tile.name}": forever,
        f"objects/{some.name}": soon,
        "trusted_root.json": soon,
        "releases/release-1/config.json": soon,
        "releases/release-1/manifest.json": soon,
        "base/0/manifest.json": soon,
    }.items():
        assert _get(f"{address}/{path}")[::2] == (kept, (consortium.public / path).read_bytes())
        assert _get(f"{address}/{path}", method="HEAD")[::2] == (kept, b"")
    assert _get(f"{address}/log/checkpoint")[1] == "text/plain; charset=utf-8"
    assert _get(f"{address}/log/tile/0/000.p/{tile.name}")[1] == "application/octet-stream"


def test_that_a_file_is_not_there_is_not_kept(consortium: Federation, address: str) -> None:
    """A cache that kept it would hide a tile when it comes; a kept object would outlive its withdrawal."""
    later = f"log/tile/entries/000.p/{consortium.coordinator.registry.head().size + 1}"
    for path in (later, "log/tile/1/000", f"objects/{64 * '0'}", "releases/release-2/config.json"):
        with pytest.raises(HTTPError) as refused:
            _get(f"{address}/{path}")
        assert (refused.value.code, refused.value.headers["Cache-Control"]) == (404, "no-store")
    consortium.enrol("publisher")
    assert consortium.public
    assert _get(f"{address}/{later}")[0] == "public, max-age=31536000, immutable"


def test_a_cache_that_asks_anew_gets_what_changed_within_the_second(consortium: Federation, address: str) -> None:
    checkpoint = f"{address}/log/checkpoint"
    with urlopen(checkpoint) as reply:  # noqa: S310 - our own server
        tag, modified = reply.headers["ETag"], reply.headers["Last-Modified"]
    kept = {"If-None-Match": tag, "If-Modified-Since": modified}
    with pytest.raises(HTTPError) as unchanged:
        urlopen(Request(checkpoint, headers=kept))  # noqa: S310 - our own server
    assert (unchanged.value.code, unchanged.value.headers["ETag"]) == (304, tag)
    before = (consortium.public / "log" / "checkpoint").read_bytes()
    consortium.enrol("publisher")
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    while (consortium.public / "log" / "checkpoint").read_bytes() == before:
        assert datetime.now(UTC) < deadline
    for headers in (kept, {"If-Modified-Since": modified}):
        with urlopen(Request(checkpoint, headers=headers)) as reply:  # noqa: S310 - our own server
            assert reply.read() == (consortium.public / "log" / "checkpoint").read_bytes()


@pytest.mark.parametrize(
    "request_bytes",
    [b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\xff\x00 / HTTP/1.1\r\n\r\n",
     b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_request_is_answered_or_dropped(
    consortium: Federation, address: str, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    assert answer[:10] in (b"", b"HTTP/1.1 4", b"HTTP/1.1 5") or b"Error response" in answer
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert _get(f"{address}/log/checkpoint")[2] == (consortium.public / "log" / "checkpoint").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "", "log", "log/", "log/tile/", "releases/", "releases/release-1/", "../coordinator.toml",
        "log/../trusted_root.json", "%2e%2e/keys/log.key", "log/checkpoint?x", "releases/release-1/.hidden",
        "objects/0", "log//checkpoint", ".x",
    ],
)  # fmt: skip
def test_nothing_else_is_served(consortium: Federation, address: str, path: str) -> None:
    (consortium.public / "releases" / "release-1" / ".hidden").write_text("x")
    with pytest.raises(HTTPError) as refused:
        _get(f"{address}/{path}")
    assert refused.value.code == 404
    assert refused.value.headers["Cache-Control"] == "no-store"


def test_an_audit_by_address_reads_from_it(address: str) -> None:
    audited = concord("audit", "verify", address)
    assert audited.returncode == 0, audited.stderr


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with FileServer(tmp_path, host="127.0.0.1", port=0) as server:
        with pytest.raises(UnavailableError, match="choose another files_port"):
            FileServer(tmp_path, host="127.0.0.1", port=server.port)
        assert FileServer(tmp_path, host="127.0.0.1", port=None).port is None
