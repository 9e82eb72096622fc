"""Proofs and checkpoints of a log that our coordinator kept, for others' verifiers.

`python -m tests.interop.make_vectors FOLDER` fills a real registry through its own calls and writes, a JSON object a
line: `inclusion.jsonl` (10,000), `consistency.jsonl` (10,000), each with the signed checkpoints as they stand in the
database, and `keys.json`. Every tenth proof is broken on purpose (`"good": false`), and so is every tenth checkpoint
(`"signed": false`): its origin, size, root hash or signature is another, so that who accepts all is noticed.
"""

import json
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

from sqlalchemy import select

from benchmarks.registry import FEDERATION, Party
from common.trust import merkle
from common.trust.statements import BasePublish, ContributedFile
from coordinator.config import CoordinatorSettings
from coordinator.home import Coordinator, create, open_home
from coordinator.store import read_hashes
from coordinator.tables import checkpoints

ENTRIES: Final = 1500
VECTORS: Final = 10_000
DIGEST: Final = "sha256:" + "b" * 64


def fill(coordinator: Coordinator) -> list[bytes]:
    """Say a few hundred things; returns the entries."""
    registry = coordinator.registry
    registry.issue(BasePublish, base_digest=DIGEST, config_digest=DIGEST, round=0)
    parties = []
    for number in range(20):
        files = {"expert.safetensors": ContributedFile(digest=f"sha256:{number:064x}", size=9)}
        parties.append(Party(number, root=registry.root, base_digest=DIGEST, files=files))
        registry.admit(parties[-1].joins(), claim=lambda connection: None)
    while (size := registry.size()) < ENTRIES:
        party = parties[size % len(parties)]
        registry.record(party.next(), caller=party.name, arrived=True)
    return [coordinator.log.entry(index) for index in range(size)]


def main(folder: Path) -> None:
    """Write everything."""
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(0)
    with TemporaryDirectory() as home:
        create(Path(home) / "home", CoordinatorSettings(federation=FEDERATION, origin=f"{FEDERATION}/log"))
        with open_home(Path(home) / "home") as coordinator:
            entries = fill(coordinator)
            with coordinator.store.reading() as connection:
                rows = connection.execute(select(checkpoints.c.tree_size, checkpoints.c.note))
                signed = {size: bytes(note).decode() for size, note in rows if size}
                read = read_hashes(connection)
                with (folder / "inclusion.jsonl").open("w") as file:
                    for number in range(VECTORS):
                        size = random.choice(list(signed))
                        index = random.randrange(size)
                        proof = merkle.inclusion_proof(index, size, read)
                        _write(file, number, random, proof, checkpoint=signed[size], index=index,
                               entry=b64encode(entries[index]).decode())  # fmt: skip
                with (folder / "consistency.jsonl").open("w") as file:
                    for number in range(VECTORS):
                        old, new = sorted(random.sample(list(signed), 2))
                        proof = merkle.consistency_proof(old, new, read)
                        _write(file, number, random, proof, old=signed[old], checkpoint=signed[new])
            root = coordinator.registry.root
    keys = {"origin": root.origin, "log": str(root.log), "key": b64encode(root.log.public_key).decode()}
    (folder / "keys.json").write_text(json.dumps(keys))


def _write(file: Any, number: int, random: Random, proof: tuple[bytes, ...], **fields: object) -> None:
    hashes, good = [bytearray(each) for each in proof], number % 10 != 9
    if not good:
        if hashes:
            hashes[random.randrange(len(hashes))][random.randrange(32)] ^= 1 << random.randrange(8)
        else:
            hashes.append(bytearray(32))
    signed = number % 10 != 4
    if not signed:
        name = random.choice([name for name in ("checkpoint", "old") if name in fields])
        fields = {**fields, name: _broken(str(fields[name]), random)}
    line = {"good": good, "signed": signed, "proof": [b64encode(each).decode() for each in hashes], **fields}
    file.write(json.dumps(line) + "\n")


def _broken(checkpoint: str, random: Random) -> str:
    """A checkpoint with something in it that was not signed so."""
    origin, size, root, empty, signature, end = checkpoint.split("\n")
    mark, name, encoded = signature.split(" ")
    match random.choice(("origin", "size", "root", "signature")):
        case "origin":
            origin += "x"
        case "size":
            size = str(int(size) + random.choice((-1, 1)))
        case "root":
            root = b64encode(_flipped(b64decode(root), random, first=0)).decode()
        case _:
            encoded = b64encode(_flipped(b64decode(encoded), random, first=4)).decode()  # after the key's id
    return "\n".join((origin, size, root, empty, f"{mark} {name} {encoded}", end))


def _flipped(data: bytes, random: Random, *, first: int) -> bytes:
    changed = bytearray(data)
    changed[random.randrange(first, len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
