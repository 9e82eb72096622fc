"""What a coordinator published, and what it holds besides: for tests that change it and let it lie."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from common.audit import Report, audit
from common.trust import merkle, strict_json
from common.trust.manifest import Manifest
from common.trust.note import Checkpoint, SigningKey, open_checkpoint, sign
from common.trust.root import TrustedRoot
from common.trust.statements import TYPE_PREFIX, parse_note
from common.trust.tiles import bundle_path, format_bundle, read_entries, tile_path
from tests.federation import running_federation

LAST = "releases/release-2"


@dataclass(frozen=True)
class Published:
    """A public directory and what its coordinator holds besides."""

    path: Path
    root: TrustedRoot
    log_key: SigningKey
    own_key: SigningKey
    first_checkpoint: bytes

    def audit(self, *, last_seen: bytes | None = None) -> Report:
        """Audit it by the true root."""
        return audit(self.path, root=self.root, last_seen=last_seen)

    @property
    def checkpoint(self) -> bytes:
        """The signed checkpoint."""
        return (self.path / "log" / "checkpoint").read_bytes()

    def entries(self) -> list[bytes]:
        """The log."""
        size = open_checkpoint(self.checkpoint, log=self.root.log, origin=self.root.origin).size
        return read_entries(lambda path: (self.path / "log" / path).read_bytes(), size=size)

    def write_log(self, entries: list[bytes], *, key: SigningKey | None = None, origin: str | None = None) -> None:
        """Publish another log, signed as the log signs."""
        shutil.rmtree(self.path / "log" / "tile")
        leaves = b"".join(merkle.leaf_hash(entry) for entry in entries)
        for name, data in ((bundle_path, format_bundle(entries)), (partial(tile_path, 0), leaves)):
            tile = self.path / "log" / name(0, width=len(entries))
            tile.parent.mkdir(parents=True)
            tile.write_bytes(data)
        (self.path / "log" / "checkpoint").write_bytes(
            self.sign_checkpoint(entries, key=key or self.log_key, origin=origin or self.root.origin)
        )

    def sign_checkpoint(self, entries: list[bytes], *, key: SigningKey, origin: str) -> bytes:
        """A checkpoint over any entries."""
        running = merkle.RunningRoot()
        for entry in entries:
            running.append(merkle.leaf_hash(entry))
        return bytes(sign(str(Checkpoint(origin, len(entries), running.root)), key))

    def resign(self, entry: bytes, **changes: Any) -> bytes:
        """A statement of the coordinator with other fields, signed by it."""
        _, statement = parse_note(entry)
        fields = {**statement.model_dump(mode="json", exclude_unset=True), **changes}
        text = f"{TYPE_PREFIX}{statement.type}\n{strict_json.canonical(fields).decode()}\n"
        return bytes(sign(text, self.own_key))

    def relist(self) -> None:
        """Let the log name the second release as it lies there now."""
        directory = self.path / LAST
        before = _digests(Manifest.parse((directory / "manifest.json").read_bytes()))
        manifest = Manifest.of_directory(directory)
        (directory / "manifest.json").write_bytes(bytes(manifest))
        shown = [Manifest.parse(path.read_bytes()) for path in self.path.glob("*/*/manifest.json")]
        for digest in before.difference(*map(_digests, shown)):
            (self.path / "objects" / digest.removeprefix("sha256:")).unlink()
        entries = self.entries()
        self.write_log([*entries[:-1], self.resign(entries[-1], manifest_digest=manifest.digest)])

    def copy(self, path: Path) -> Self:
        """The same with a public directory of its own."""
        shutil.copytree(self.path, path)
        return type(self)(path, self.root, self.log_key, self.own_key, self.first_checkpoint)


def _digests(manifest: Manifest) -> set[str]:
    return {manifest.digest, *(entry.digest for entry in manifest.files.values())}


def publish(path: Path) -> Published:
    """Two owners, a release, one opts out, another release."""
    with running_federation(path) as federation:
        federation.publish_base()
        for seed, name in enumerate(("archive", "hospital"), start=1):
            federation.enrol(name).take_part(seed)
        federation.release()
        first = (federation.public / "log" / "checkpoint").read_bytes()
        federation.owners["archive"].opt_out()
        federation.release()
        keys, root = federation.coordinator.home.keys, federation.coordinator.registry.root
        log_key = SigningKey.from_pem((keys / "log.key").read_bytes(), name=root.log.name)
        own_key = SigningKey.from_pem((keys / "coordinator.key").read_bytes(), name=root.coordinator.name)
        return Published(federation.public, root, log_key, own_key, first)
