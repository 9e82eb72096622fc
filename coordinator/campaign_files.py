"""Files of campaigns: what owners fetch for one and is published nowhere (a candidate, a pool of public text), and what
came beside their answers."""

from pathlib import Path
from typing import Final

from common.errors import NotFoundError
from common.files import link_or_copy, make_private_directory, read_required, write_atomic
from common.trust.manifest import Manifest, digest_of
from common.trust.statement_fields import FileDigest
from coordinator.publication import Publication

_HANDED_OUT: Final = "handed-out"
_ANSWERS: Final = "answers"


class CampaignFiles:
    """In one coordinator's home."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers = path / _ANSWERS

    def hand_out(self, directory: Path) -> FileDigest:
        """Keep a copy of a directory's files for owners to fetch by digest; its manifest, by digest and size.

        Raises:
            MalformedError: it holds something else than plain files.
        """
        make_private_directory(self._path)
        manifest = bytes(Publication(self._path / _HANDED_OUT).add_objects(directory, ours=False))
        return FileDigest(digest=digest_of(manifest), size=len(manifest))

    def find(self, digest: str) -> Path:
        """A file that is handed out; `NotFoundError` where it is not."""
        if not (self._path / _HANDED_OUT).is_dir():
            raise NotFoundError(
                f"no published file has digest {digest}; what may be fetched is named by manifests and campaigns"
            )
        return Publication(self._path / _HANDED_OUT).find(digest)

    def manifest(self, digest: str) -> Manifest:
        """A manifest that is handed out."""
        return Manifest.parse(self.find(digest).read_bytes())

    def lay_out(self, digest: str, directory: Path) -> None:
        """Make a directory of files that are handed out, by the digest of its manifest; `NotFoundError` where one is
        not here any more."""
        files = self.manifest(digest).files
        directory.mkdir(parents=True, exist_ok=True)
        for name, entry in files.items():
            if not (directory / name).exists():
                link_or_copy(self.find(entry.digest), directory / name)

    def keep(self, data: bytes, *, campaign_id: str, party: str) -> None:
        """Keep what came beside an owner's answer, on disk before this returns."""
        path = self._answer(campaign_id, party)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, data, mode=0o600)

    def answer(self, *, campaign_id: str, party: str) -> bytes:
        """What came beside an owner's answer; `NotFoundError` where nothing did."""
        return read_required(self._answer(campaign_id, party), hint=f"nothing came beside the answer of {party}")

    def _answer(self, campaign_id: str, party: str) -> Path:
        return self._answers / campaign_id / f"{party}.json"
