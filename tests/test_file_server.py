"""The published files over HTTP: what may be kept how long, and nothing but what is published."""

from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from common.errors import UnavailableError
from coordinator.file_server import FileServer
from tests.commands import concord
from tests.federation import Federation


@pytest.fixture
def address(consortium: Federation) -> Iterator[str]:
    """Where a consortium's files are, with a release."""
    for seed, name in enumerate(("archive", "hospital")):
        consortium.enrol(name).take_part(seed)
    consortium.release()
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
        f"log/tile/0/000.p/{tile.name}": forever,
        f"objects/{some.name}": forever,
        "trusted_root.json": soon,
        "releases/release-1/config.json": soon,
        "releases/release-1/manifest.json": soon,
        "base/0/manifest.json": soon,
    }.items():
        assert _get(f"{address}/{path}")[::2] == (kept, (consortium.public / path).read_bytes())
        assert _get(f"{address}/{path}", method="HEAD")[::2] == (kept, b"")
    assert _get(f"{address}/log/checkpoint")[1] == "text/plain; charset=utf-8"
    assert _get(f"{address}/log/tile/0/000.p/{tile.name}")[1] == "application/octet-stream"


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
