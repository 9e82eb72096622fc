"""Files that arrive in order: committed for good, resumed without reading again what was committed."""

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import part_file, resumable_sha256
from common.errors import VerificationError
from common.part_file import PartFile, commit_bytes, drop, state_path
from common.resumable_sha256 import ResumableSha256
from common.trust.manifest import FileEntry, digest_of

DATA = Random(0).randbytes(5 * 1024 * 1024 + 77)
ENTRY = FileEntry(digest_of(DATA), len(DATA))


@given(st.binary(max_size=4096), st.integers(min_value=0, max_value=4096))
@settings(max_examples=200)
def test_a_digest_goes_on_from_its_state(data: bytes, cut: int) -> None:
    first = ResumableSha256()
    first.update(data[:cut])
    state = first.state()
    assert state is not None, "this machine's OpenSSL is not found"
    resumed = ResumableSha256.resume(state)
    for digest in (first, resumed):
        digest.update(data[cut:])
        assert digest.hexdigest() == hashlib.sha256(data).hexdigest() == digest.hexdigest()


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(ValueError, match="no state"):
        ResumableSha256.resume(b"too short")


def test_a_file_in_pieces_is_the_file(tmp_path: Path) -> None:
    with closing(PartFile(tmp_path / "file.part", ENTRY)) as part:
        for start in range(0, len(DATA), 300_000):
            part.append(DATA[start : start + 300_000])
        part.check(remedy="send it again")
        assert part.is_whole
    assert (tmp_path / "file.part").read_bytes() == DATA


@pytest.mark.parametrize("library", [True, False])
def test_it_is_taken_up_where_it_was_committed(library: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not library:
        monkeypatch.setattr(resumable_sha256, "_library", None)
    path = tmp_path / "file.part"
    with closing(PartFile(path, ENTRY)) as part:
        part.append(DATA[:3_000_000])
    with path.open("ab") as file:
        file.write(b"on its way when the process died")
    assert PartFile.received(path, size=len(DATA)) == 3_000_000
    with closing(PartFile(path, ENTRY)) as part:
        assert part.position == part.committed == 3_000_000
        part.append(DATA[3_000_000:])
        part.check(remedy="send it again")


def test_taking_up_reads_nothing_that_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "file.part"
    with closing(PartFile(path, ENTRY)) as part:
        part.append(DATA[:3_000_000])
    with path.open("r+b") as file:
        file.write(b"other bytes, which nobody will read")
    with closing(PartFile(path, ENTRY)) as part:
        part.append(DATA[3_000_000:])
        part.check(remedy="send it again")  # the digest is of what came, and every byte of it was checked then


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone", "more than the file", "more than is there"])
def test_a_state_that_cannot_be_believed_begins_anew(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "file.part"
    with closing(PartFile(path, ENTRY)) as part:
        part.append(DATA[:2_000_000])
    state = state_path(path)
    raw = state.read_bytes()
    if harm == "cut":
        state.write_bytes(raw[:100])
    elif harm == "flipped":
        state.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif harm == "gone":
        state.unlink()
    elif harm == "more than is there":
        os.truncate(path, 1_000_000)
    size = 1_999_999 if harm == "more than the file" else len(DATA)
    with closing(PartFile(path, FileEntry(ENTRY.digest, size))) as part:
        assert part.position == 0


def test_a_torn_state_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "file.part"
    with closing(PartFile(path, ENTRY)) as part:
        for start in (0, 1_000_000):
            part.append(DATA[start : start + 1_000_000])
            part.commit()
    raw = bytearray(state_path(path).read_bytes())
    raw[4096] ^= 1
    state_path(path).write_bytes(raw)
    with closing(PartFile(path, ENTRY)) as part:
        assert part.position == 1_000_000
        part.append(DATA[1_000_000:])
        part.check(remedy="send it again")


def test_other_bytes_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "file.part"
    with closing(PartFile(path, ENTRY)) as part:
        part.append(DATA[:-1] + bytes([DATA[-1] ^ 1]))
        with pytest.raises(VerificationError, match="dropped, send it again"):
            part.check(remedy="send it again")
    assert not list(tmp_path.iterdir())


def test_little_is_sent_again_whatever_the_size() -> None:
    for size in (1 << 30, 9 << 30, 100 << 30):
        assert 3 * commit_bytes(size) < size / 100


_WRITER = """
import sys
from pathlib import Path
from common.part_file import PartFile
from common.trust.manifest import FileEntry
data = Path(sys.argv[1]).read_bytes()
part = PartFile(Path(sys.argv[2]), FileEntry(sys.argv[3], len(data)))
print("from", part.position, flush=True)
for start in range(part.position, len(data), 65536):
    part.append(data[start : start + 65536])
    if start // 65536 == int(sys.argv[4]):
        print("there", flush=True)
        sys.stdin.read()
part.check(remedy="send it again")
print("whole", flush=True)
"""


def test_killed_again_and_again_it_ends_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_bytes(DATA)
    path = tmp_path / "file.part"
    random, begun_at = Random(1), []
    for turn in range(8):
        stop = -1 if turn == 7 else random.randrange(len(DATA) // 65536)
        command = [sys.executable, "-c", _WRITER, tmp_path / "data", path, ENTRY.digest, str(stop)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            begun_at.append(int(writer.stdout.readline().split()[1]))
            last = writer.stdout.readline().strip()
            if last != "whole":
                writer.send_signal(signal.SIGKILL)
        if last == "whole":
            break
    assert last == "whole"
    assert begun_at == sorted(begun_at)
    assert path.read_bytes() == DATA


def test_what_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    with closing(PartFile(tmp_path / "file.part", ENTRY)) as part:
        part.append(DATA[:100])
    drop(tmp_path / "file.part")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_a_commit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with closing(PartFile(tmp_path / "file.part", ENTRY)) as part:
        part.append(DATA[:100])
        monkeypatch.setattr(part_file.os, "fdatasync", full)
        with pytest.raises(OSError, match="No space"):
            part.commit()
        monkeypatch.undo()
        part.commit()
        assert part.committed == 100
