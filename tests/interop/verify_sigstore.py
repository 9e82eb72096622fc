"""Verifies our proofs with sigstore's own merkle code, in its environment. Usage: verify_sigstore.py FOLDER COUNT"""

import json
import sys
from base64 import b64decode
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

from sigstore._internal.merkle import verify_merkle_inclusion  # type: ignore[import-not-found]
from sigstore.errors import VerificationError  # type: ignore[import-not-found]


def main(folder: Path, count: int) -> None:
    """Judge `count` proofs; whether their checkpoints are signed, this part of sigstore does not ask."""
    vectors = (json.loads(line) for line in (folder / "inclusion.jsonl").read_text().splitlines())
    lines = list(islice((vector for vector in vectors if vector["signed"]), count))
    for number, vector in enumerate(lines):
        _, size, root, *_ = vector["checkpoint"].split("\n")
        proof = SimpleNamespace(
            log_index=vector["index"],
            tree_size=int(size),
            root_hash=b64decode(root),
            hashes=[b64decode(each) for each in vector["proof"]],
        )
        inner = SimpleNamespace(inclusion_proof=proof, canonicalized_body=b64decode(vector["entry"]))
        try:
            verify_merkle_inclusion(SimpleNamespace(_inner=inner))
        except VerificationError:
            holds = False
        else:
            holds = True
        assert holds == vector["good"], f"line {number}: good is {vector['good']}"
    print(f"sigstore: {len(lines)} inclusion proofs, judged as they are")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
