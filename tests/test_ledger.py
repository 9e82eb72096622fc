"""The ledger: chained line by line, on disk first; whatever is done to it afterwards is found."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConcordError, MalformedError, VerificationError
from common.trust.note import SigningKey
from owner_client import egress
from owner_client.ledger import START, Ledger
from owner_client.ledger_export import export, read_export
from owner_client.traffic import Traffic
from tests.commands import concord
from tests.federation import Federation, expert_weights
from tests.raw_calls import key_of

NAME = "test.concord/owner/archive"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger of five lines."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in range(3):
        egress.message(tmp_path / "ledger.jsonl", "statement", name=f"said {number}", data=b"%d" % number, to="there:1")
    ledger.record_upload(name="expert", digest="sha256:" + "0" * 64, size_bytes=7, to="there:1")
    ledger.record_traffic({"GetCheckpoint": (4, 16)}, to="there:1")
    return ledger


def _edit(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return edit


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a size is changed": (_edit(lambda lines: [lines[0].replace(b'"size_bytes":1', b'"size_bytes":2'), *lines[1:]]),
                          "line 1 of the ledger does not follow line 0"),
    "the last one is changed": (_edit(lambda lines: [*lines[:-1], lines[-1].replace(b"16", b"15")]), "line 4"),
    "one is taken away": (_edit(lambda lines: lines[:1] + lines[2:]), "line 1"),
    "the last one is taken away": (_edit(lambda lines: lines[:-1]), "it had 5: the last ones are missing"),
    "all are taken away": (lambda path: path.unlink(), "it had 5"),
    "two change places": (_edit(lambda lines: [lines[1], lines[0], *lines[2:]]), "line 0"),
    "one is there twice": (_edit(lambda lines: [lines[0], lines[0], *lines[1:]]), "line 1"),
    "one is added": (_edit(lambda lines: [*lines, b'{"seq":5}\n']), "line 5 of the ledger is not one"),
    "no JSON": (_edit(lambda lines: [*lines[:2], b"hello\n", *lines[2:]]), "line 2 of the ledger is damaged"),
    "white space": (_edit(lambda lines: [lines[0].replace(b",", b", "), *lines[1:]]), "line 0"),
}  # fmt: skip


def test_a_ledger_that_was_left_alone_holds(ledger: Ledger) -> None:
    assert ledger.verify().size == 5
    assert [line["kind"] for line in ledger.lines()] == ["statement"] * 3 + ["upload", "traffic"]


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_done_to_it_is_found(case: str, ledger: Ledger, tmp_path: Path) -> None:
    tamper, problem = TAMPERED[case]
    tamper(tmp_path / "ledger.jsonl")
    with pytest.raises(VerificationError, match=problem):
        Ledger(tmp_path / "ledger.jsonl").verify()


def test_nothing_leaves_over_a_ledger_that_was_changed(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"said 1", b"said 9"))
    with pytest.raises(VerificationError, match="Nothing leaves before that is understood"):
        Ledger(path).record("statement", name="x", digest="sha256:0", size_bytes=1, to="there:1")


def test_a_line_that_a_crash_cut_off_is_written_anew(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at":"2026-')
    again = Ledger(path)
    assert again.verify().size == 5
    again.record_traffic({"Cosign": (1, 2)}, to="there:1")
    assert again.verify().size == 6


@pytest.mark.parametrize("change", ["one line less", "no head", "an empty head", "another head"])
def test_nothing_is_written_to_a_ledger_that_was_cut(change: str, ledger: Ledger, tmp_path: Path) -> None:
    """What was cut stays missing: the next line would give it a new end."""
    lines, head = tmp_path / "ledger.jsonl", tmp_path / "ledger.head"
    if change == "one line less":
        lines.write_bytes(b"".join(lines.read_bytes().splitlines(keepends=True)[:-1]))
    elif change == "no head":
        head.unlink()
    else:
        head.write_bytes(b"" if change == "an empty head" else b"junk\n")
    left = lines.read_bytes()
    for found in (Ledger(lines), ledger):  # another process, and one that wrote it
        with pytest.raises(VerificationError, match=r"Nothing leaves before that is understood"):
            found.record("statement", name="one more", digest=START, size_bytes=1, to="there:1")
    with pytest.raises(VerificationError):
        Ledger(lines).verify()
    assert lines.read_bytes() == left


def test_a_ledger_that_was_put_aside_is_begun_anew(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").rename(tmp_path / "aside")
    (tmp_path / "ledger.head").rename(tmp_path / "aside.head")
    for found in (ledger, Ledger(tmp_path / "ledger.jsonl")):
        found.record("statement", name="first", digest=START, size_bytes=1, to="there:1")
        assert found.verify().size == 1


def test_a_crash_between_a_line_and_its_head_is_no_cut(ledger: Ledger, tmp_path: Path) -> None:
    head = (tmp_path / "ledger.head").read_bytes()
    ledger.record("statement", name="one more", digest=START, size_bytes=1, to="there:1")
    (tmp_path / "ledger.head").write_bytes(head)
    again = Ledger(tmp_path / "ledger.jsonl")
    again.record("statement", name="and another", digest=START, size_bytes=1, to="there:1")
    assert again.verify().size == 7


_FULL = """
import resource, sys
from pathlib import Path
from owner_client.ledger import START, Ledger
path, room = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room,) * 2)
Ledger(path).record("statement", name="too much", digest=START, size_bytes=1, to="there:1")
"""


def test_a_line_that_the_disk_takes_half_of_is_not_written(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    left = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", _FULL, path, "60"], capture_output=True, text=True, check=False)
    assert "NoRoomError: no space left for the ledger" in done.stderr
    assert path.read_bytes() == left
    assert Ledger(path).verify() == ledger.verify()


_WRITER = """
import sys
from pathlib import Path
from owner_client import egress
path, name = Path(sys.argv[1]), sys.argv[2]
number = 0
while True:
    egress.message(path, "statement", name=name, data=f"{name} {number}".encode(), to="there:1")
    print(number, flush=True)
    number += 1
"""


def test_processes_write_in_turns_and_a_kill_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("one", "two")]
    told = []
    for writer in writers:
        assert writer.stdout is not None
        told.append([writer.stdout.readline() for _ in range(20)])
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    names = [str(line["name"]) for line in Ledger(path).lines()]
    assert min(names.count("one"), names.count("two")) >= 20
    assert Ledger(path).verify().size == len(names)


def test_threads_write_in_turns(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ledger.record_traffic({str(n): (1, n)}, to="there:1"), range(40)))
    assert sorted(int(str(line["name"])) for line in ledger.lines()) == list(range(40))


def test_small_calls_are_added_up_and_written_now_and_then(tmp_path: Path) -> None:
    ledger, now = Ledger(tmp_path / "ledger.jsonl"), [0.0]
    traffic = Traffic(ledger, to="there:1", now=lambda: now[0])
    for _ in range(3):
        traffic.sent("GetCheckpoint", 5)
    assert ledger.lines() == []
    now[0] = 61.0
    traffic.sent("Cosign", 100)
    sums = {str(line["name"]): (line["calls"], line["size_bytes"]) for line in ledger.lines()}
    assert sums == {"GetCheckpoint": (3, 15), "Cosign": (1, 100)}
    traffic.write()
    assert len(ledger.lines()) == 2


# Copies for others


def test_a_signed_copy_convinces_whoever_knows_the_key(ledger: Ledger) -> None:
    key, copy = SigningKey.generate(NAME), ledger.copy()
    found = read_export(export(copy.data, copy.head, name=NAME, key=key), key.verifier)
    assert (found.name, found.head, found.lines) == (NAME, ledger.verify(), ledger.lines())
    assert found.signed_by == f"{NAME}+{key.verifier.key_id}"


def test_a_copy_that_was_changed_convinces_nobody(ledger: Ledger) -> None:
    key, copy = SigningKey.generate(NAME), ledger.copy()
    data = export(copy.data, copy.head, name=NAME, key=key)
    for at in range(0, len(data), 3):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ConcordError):
            read_export(changed, key.verifier)


def test_a_copy_that_somebody_else_signed_is_refused(ledger: Ledger) -> None:
    copy, other = ledger.copy(), SigningKey.generate("test.concord/owner/other")
    data = export(copy.data, copy.head, name=NAME, key=other)
    with pytest.raises(VerificationError, match=r"signed by test\.concord/owner/other"):
        read_export(data, other.verifier)
    with pytest.raises(MalformedError, match="no ledger that"):
        read_export(copy.data, None)


def _do(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = concord(*arguments, "--json")
    assert done.returncode == code, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_commands_show_verify_and_export(consortium: Federation, tmp_path: Path) -> None:
    owner = consortium.enrol("archive")
    owner.consent()
    owner.put_expert(expert_weights(1))
    owner.submit()
    home, copy = ("--home", owner.home.path), tmp_path / "copy.ledger"
    sent = _do("owner", "ledger", *home)["sent"]
    assert {"statement", "request", "expert", "upload", "traffic"} == {line["kind"] for line in sent}
    assert {line["to"] for line in sent} == {f"127.0.0.1:{port}" for port in consortium.ports}
    assert _do("owner", "ledger", "verify", *home)["lines"] == len(sent)
    assert _do("owner", "ledger", "export", copy, *home)["lines"] == len(sent)
    key = str(key_of(owner).verifier)
    assert _do("owner", "ledger", "verify", copy, "--key", key)["holds"]
    owner.home.ledger.write_bytes(owner.home.ledger.read_bytes().replace(b'"expert"', b'"export"', 1))
    assert not _do("owner", "ledger", "verify", *home, code=1)["holds"]
