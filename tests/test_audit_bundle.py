"""A bundle carries the log to an audit without a connection; anything else in it is refused before it is unpacked."""

import io
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from common.audit_bundle import MAX_MEMBER_BYTES, audit_bundle, export
from common.errors import MalformedError, NotFoundError, TooLargeError
from common.trust.evidence import Evidence
from common.trust.note import Checkpoint, sign
from common.trust.tiles import BUNDLE_ENTRIES, bundle_path, format_bundle
from tests.commands import concord
from tests.published import Published, publish

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def bundle(original: Published, tmp_path: Path) -> Path:
    export(original.path, tmp_path / "b.zip")
    return tmp_path / "b.zip"


def _members(bundle: Path) -> Members:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(bundle: Path, members: Members) -> None:
    with zipfile.ZipFile(bundle, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_bundle_is_audited_as_the_log_is(original: Published, bundle: Path) -> None:
    report = audit_bundle(bundle, root=original.root, last_seen=original.first_checkpoint)
    assert report.holds, report.findings[-1]
    assert [finding.step for finding in report.findings] == [1, 2, 3, 4, 5, 6, 7]
    assert report.releases == original.audit().releases
    assert not any(name.endswith(".safetensors") for name in _members(bundle))


def test_a_release_that_the_log_does_not_name_is_found_in_a_bundle_too(original: Published, bundle: Path) -> None:
    members = _members(bundle)
    manifest = next(data for name, data in members.items() if name.startswith("releases/"))
    _write(bundle, {**members, "releases/release-9/manifest.json": manifest})
    found = audit_bundle(bundle, root=original.root).findings[-1]
    assert (found.step, found.holds) == (7, False)
    assert "releases/release-9 is published but the log does not name it" in found.found


def test_evidence_is_judged_by_a_bundle(original: Published, bundle: Path, tmp_path: Path) -> None:
    root, evidence = tmp_path / "root.json", tmp_path / "evidence.json"
    root.write_bytes(bytes(original.root))
    head = (original.path / "log" / "checkpoint").read_bytes()
    evidence.write_bytes(bytes(Evidence((original.first_checkpoint, head))))
    for public in (bundle, original.path):
        judged = concord("audit", "evidence", evidence, "--root", root, "--public", public)
        assert judged.returncode == 1
        assert "that proves nothing" in " ".join(judged.stderr.split())


@pytest.mark.parametrize("command", [("removal", "release-1", "release-2"), ("rebuild", "release-1"), ("export",)])
def test_what_needs_weights_says_so(bundle: Path, command: tuple[str, ...]) -> None:
    for public, why in (("http://127.0.0.1:9/public", "is an address"), (bundle, "a bundle holds no weights")):
        refused = concord("audit", *command, public)
        assert (refused.returncode, f"{public}" in refused.stderr) == (1, True)
        assert why in " ".join(refused.stderr.split())


def test_the_same_log_exports_to_the_same_bytes(original: Published, bundle: Path, tmp_path: Path) -> None:
    export(original.path, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def _flip(name_part: str) -> Callable[[Members], Members]:
    def act(members: Members) -> Members:
        name = next(name for name in members if name_part in name)
        data = bytearray(members[name])
        data[len(data) // 2] ^= 1
        return {**members, name: bytes(data)}

    return act


def _without(name_part: str) -> Callable[[Members], Members]:
    return lambda members: {name: data for name, data in members.items() if name_part not in name}


@pytest.mark.parametrize(
    ("step", "act"),
    [(1, _flip("log/checkpoint")), (3, _flip("tile/entries")), (7, _flip("release-2")), (7, _without("base/0"))],
)
def test_what_was_done_to_a_bundle_is_found(
    original: Published, bundle: Path, step: int, act: Callable[[Members], Members]
) -> None:
    _write(bundle, act(_members(bundle)))
    report = audit_bundle(bundle, root=original.root)
    assert not report.holds
    assert report.findings[-1].step == step
    assert report.findings[-1].found.startswith(f"step {step} (")


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "log/../../outside",
        "releases/release-1/model.safetensors",
        "log/tile/entries/0",
        "a\\b",
    ],
)
def test_a_member_that_does_not_belong_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    _write(bundle, {**_members(bundle), name: b"x"})
    with pytest.raises(MalformedError, match="does not belong into a bundle"):
        audit_bundle(bundle)
    assert not (tmp_path.parent / "outside").exists()


def test_a_member_given_twice_is_refused(bundle: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr("log/checkpoint", b"another")
    with pytest.raises(MalformedError, match="twice"):
        audit_bundle(bundle)


def test_a_small_file_cannot_fill_the_disk(bundle: Path) -> None:
    members = _members(bundle)
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, bytes(MAX_MEMBER_BYTES + 1) if name == "trusted_root.json" else data)
    assert bundle.stat().st_size < 2**20
    with pytest.raises(TooLargeError, match="more than a bundle may hold"):
        audit_bundle(bundle)


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_what_is_no_archive_is_refused(bundle: Path, cut: int) -> None:
    bundle.write_bytes(bundle.read_bytes()[:cut])
    with pytest.raises(MalformedError, match="cannot be read as a bundle"):
        audit_bundle(bundle)


def test_a_damaged_member_is_refused(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        member = archive.infolist()[-1]
    raw = bytearray(bundle.read_bytes())
    raw[member.header_offset + 30 + len(member.filename)] |= 0b111  # a kind of block that deflate does not have
    bundle.write_bytes(bytes(raw))
    with pytest.raises(MalformedError, match="cannot be read as a bundle"):
        audit_bundle(bundle)


def test_a_lie_about_a_members_length_is_found(bundle: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for name, content in _members(bundle).items():
            archive.writestr(name, content)
    raw = bytearray(data.getvalue())
    directory = raw.rindex(b"PK\x01\x02")
    raw[directory + 24] ^= 1  # the uncompressed size of the last member
    bundle.write_bytes(bytes(raw))
    with pytest.raises(MalformedError, match=r"cannot be read as a bundle|not as long"):
        audit_bundle(bundle)


def test_commands_export_check_and_answer(original: Published, tmp_path: Path) -> None:
    bundle = tmp_path / "b.zip"
    assert concord("audit", "export", original.path, "--output", bundle).returncode == 0
    verified = concord("audit", "verify", bundle)
    assert verified.returncode == 0, verified.stderr
    assert "there are no weights here" in " ".join((verified.stdout + verified.stderr).split())
    assert concord("audit", "owner", "archive", bundle).returncode == 0
    refused = concord("audit", "removal", "release-1", "release-2", bundle)
    assert refused.returncode != 0
    assert "give the public directory" in " ".join(refused.stderr.split())


def test_an_export_holds_no_log_in_memory(original: Published, tmp_path: Path) -> None:
    """16 MB of entries that no compression makes smaller."""
    public, bundles, each = tmp_path / "public", 256, 256
    shutil.copytree(original.path, public)
    for index in range(bundles):
        path = public / "log" / bundle_path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(format_bundle([os.urandom(each) for _ in range(BUNDLE_ENTRIES)]))
    head = str(Checkpoint(original.root.origin, bundles * BUNDLE_ENTRIES, bytes(32)))
    (public / "log" / "checkpoint").write_bytes(bytes(sign(head, original.log_key)))
    tracemalloc.start()
    try:
        assert export(public, tmp_path / "b.zip") == bundles * BUNDLE_ENTRIES
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "b.zip").stat().st_size > bundles * BUNDLE_ENTRIES * each > 8 * most


def test_an_export_that_fails_leaves_nothing(original: Published, tmp_path: Path) -> None:
    shutil.copytree(original.path, tmp_path / "public")
    shutil.rmtree(tmp_path / "public" / "log" / "tile")
    with pytest.raises(NotFoundError, match="is not there"):
        export(tmp_path / "public", tmp_path / "b.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["public"]


def test_an_export_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a coordinator's public directory"):
        export(tmp_path, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()
