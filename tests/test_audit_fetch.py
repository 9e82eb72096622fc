"""The audit of what a server carries: the same findings as from the directory, and every lie of the server found."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.audit_bundle import audit_bundle
from common.audit_fetch import MAX_BUNDLE_BYTES, fetch_log
from common.errors import MalformedError, NotFoundError, TooLargeError, UnavailableError
from common.trust.note import MAX_NOTE_BYTES, Checkpoint, SigningKey, sign
from tests.commands import concord
from tests.federation import free_ports
from tests.published import Published, publish


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The address of a file server for `directory`."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def original(tmp_path: Path) -> Published:
    """Two releases."""
    return publish(tmp_path / "published")


def latest_bundle(published: Published) -> Path:
    """The partial bundle that holds the log's last entries."""
    bundles = (published.path / "log" / "tile" / "entries").glob("*.p/*")
    return max(bundles, key=lambda path: int(path.name))


def test_an_address_is_audited_as_the_directory_is(original: Published) -> None:
    with served(original.path) as address:
        report = audit_bundle(address, root=original.root)
        done = concord("audit", "verify", f"{address}/")
        told = concord("audit", "release", "release-2", address)
    assert report.holds
    assert [f.found for f in report.findings[:6]] == [f.found for f in original.audit().findings[:6]]
    assert "no weights here" in report.findings[6].found
    assert done.returncode == told.returncode == 0, done.stderr + told.stderr
    assert "opted out" in told.stdout or "was revoked" in told.stdout


def test_what_was_changed_on_the_way_is_found(original: Published) -> None:
    entries = latest_bundle(original)
    data = entries.read_bytes()
    with served(original.path) as address:
        for at in range(0, len(data), 997):
            entries.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert not audit_bundle(address, root=original.root).holds
        entries.write_bytes(data)
        manifest = original.path / "releases" / "release-1" / "manifest.json"
        shutil.copy(original.path / "releases" / "release-2" / "manifest.json", manifest)
        report = audit_bundle(address, root=original.root)
    assert (report.findings[-1].step, report.findings[-1].holds) == (7, False)


def test_a_file_that_is_not_there_is_named(original: Published, tmp_path: Path) -> None:
    (original.path / "releases" / "release-1" / "manifest.json").unlink()
    with (
        served(original.path) as address,
        pytest.raises(NotFoundError, match=r"releases/release-1/manifest\.json is not"),
    ):
        audit_bundle(address)
    shutil.rmtree(original.path / "log")
    with served(original.path) as address, pytest.raises(NotFoundError, match="log/checkpoint is not there"):
        fetch_log(address, tmp_path / "x")


def test_a_full_bundle_stands_for_a_partial_one(original: Published, tmp_path: Path) -> None:
    """Another log of more entries may have replaced it: its first entries are the same."""
    partial = latest_bundle(original)
    data = partial.read_bytes()
    shutil.rmtree(partial.parent)
    partial.parent.with_suffix("").write_bytes(data)
    with served(original.path) as address:
        assert audit_bundle(address, root=original.root).holds


def test_a_server_that_sends_too_much_is_refused(original: Published, tmp_path: Path) -> None:
    (original.path / "log" / "checkpoint").write_bytes(b"x" * (MAX_NOTE_BYTES + 1))
    with served(original.path) as address, pytest.raises(TooLargeError, match="more than the 65536 bytes"):
        fetch_log(address, tmp_path / "x")


def test_nothing_is_fetched_for_a_checkpoint_that_the_log_did_not_sign(original: Published) -> None:
    """A server may say that the log has any number of entries."""
    text = str(Checkpoint(original.root.origin, 10**15, bytes(32)))
    forged = bytes(sign(text, SigningKey.generate(original.root.origin)))
    (original.path / "log" / "checkpoint").write_bytes(forged)
    with served(original.path) as address:
        report = audit_bundle(address, root=original.root)
        assert (report.findings[-1].step, report.findings[-1].holds) == (1, False)
        assert not audit_bundle(address).holds
        (original.path / "log" / "checkpoint").write_bytes(bytes(sign(text, original.log_key)))
        with pytest.raises(NotFoundError, match="is not there"):  # its own key may say so, and nothing is there
            audit_bundle(address, root=original.root)


def test_a_server_may_send_so_much_in_all(original: Published, tmp_path: Path) -> None:
    with served(original.path) as address:
        fetch_log(address, tmp_path / "whole")
        size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
        fetch_log(address, tmp_path / "again", most=size)
        with pytest.raises(TooLargeError, match=f"has sent more than {size - 1} bytes; audit a copy"):
            fetch_log(address, tmp_path / "x", most=size - 1)


def test_a_bundle_is_no_longer_than_its_entries_can_be(original: Published, tmp_path: Path) -> None:
    latest_bundle(original).write_bytes(bytes(MAX_BUNDLE_BYTES + 1))
    with (
        served(original.path) as address,
        pytest.raises(TooLargeError, match=f"more than the {MAX_BUNDLE_BYTES} bytes"),
    ):
        fetch_log(address, tmp_path / "x")


@pytest.mark.parametrize("address", ["http://", "https:///x", "http://a/?b", "http://a/#b"])
def test_what_is_no_address_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="is no address"):
        fetch_log(address, tmp_path)


def test_a_server_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(UnavailableError, match="cannot be fetched"):
        fetch_log(f"http://127.0.0.1:{port}", tmp_path)
    done = concord("audit", "verify", f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
