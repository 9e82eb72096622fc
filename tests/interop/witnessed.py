"""A real C2SP witness of somebody else's (`aics-witness`) cosigns our log, and refuses a fork and a rollback.

`python -m tests.interop.witnessed PROGRAM`, with the program of its own environment.
"""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common.audit import audit
from common.errors import ConflictError, UnavailableError
from common.trust import merkle
from common.trust.cosignature import Witness
from common.trust.note import Checkpoint, SigningKey, sign
from common.trust.statements import BasePublish
from coordinator.config import CoordinatorSettings
from coordinator.home import Coordinator, create, open_home
from coordinator.outside_witnesses import OutsideWitness
from tests.federation import FEDERATION, free_ports
from tests.interop.make_vectors import DIGEST

NAME = "witness.example/w1"


def main(program: str) -> None:
    """Run it all."""
    with TemporaryDirectory() as name:
        folder, (port,) = Path(name), free_ports(1)
        create(folder / "home", CoordinatorSettings(federation=FEDERATION, origin=f"{FEDERATION}/log"))
        config = ["--config", str(folder / "witness.json")]
        listen = ["--listen", f"127.0.0.1:{port}"]
        made = _run(program, "init", *config, "--name", NAME, *listen)
        line = next(word for word in made.split() if word.startswith(f"{NAME}+"))
        with open_home(folder / "home") as coordinator:
            root = coordinator.registry.root
            _run(program, "add-log", *config, "--origin", root.origin, "--vkey", str(root.log))
            with subprocess.Popen([program, "serve", *config]) as serving:
                try:
                    _judge(coordinator, OutsideWitness(Witness.parse(line), f"http://127.0.0.1:{port}"))
                finally:
                    serving.terminate()
    print("aics-witness: cosigned our checkpoints, and refused a fork and a rollback")


def _run(program: str, *arguments: str) -> str:
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def _judge(coordinator: Coordinator, witness: OutsideWitness) -> None:
    registry, public = coordinator.registry, coordinator.home.public
    for number in range(3):
        registry.issue(BasePublish, base_digest=f"sha256:{number:064x}", config_digest=DIGEST, round=number)
        assert _when_it_answers(coordinator, witness)
        found = audit(public, log_alone=True, witnesses=[witness.witness], quorum=1)
        assert found.findings[0].holds, found.findings
    seen = registry.checkpoint()
    log_key = SigningKey.from_pem((coordinator.home.keys / "log.key").read_bytes(), name=registry.root.log.name)
    for size, leaves in ((3, 3), (4, 4), (2, 2)):
        running = merkle.RunningRoot()
        for number in range(leaves):
            running.append(merkle.leaf_hash(b"another history %d" % number))
        forged = bytes(sign(str(Checkpoint(registry.root.origin, size, running.root)), log_key))
        forgetful = OutsideWitness(witness.witness, witness.address)
        try:
            forgetful.bring(_Forger(forged))  # type: ignore[arg-type]
        except ConflictError as refused:
            print(f"  {size} entries of another history: {refused}")
        else:
            raise AssertionError(f"another history of {size} entries was cosigned")
    assert registry.checkpoint() == seen


class _Forger:
    """A registry that shows a forged checkpoint, and proves whatever it is asked to."""

    def __init__(self, forged: bytes) -> None:
        self._forged = forged

    def checkpoint(self) -> bytes:
        return self._forged

    def consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        return () if old_size == new_size else (bytes(32),) * 2

    def keep_cosignature(self, *_: object) -> None:
        raise AssertionError("a forged checkpoint was cosigned")


def _when_it_answers(coordinator: Coordinator, witness: OutsideWitness) -> bool:
    for _ in range(100):
        try:
            return witness.bring(coordinator.registry)
        except UnavailableError as error:
            if "cannot be reached" not in str(error):
                raise
            time.sleep(0.1)  # it is another's program: it does not say when it listens
    raise AssertionError("the witness does not answer")


if __name__ == "__main__":
    main(sys.argv[1])
