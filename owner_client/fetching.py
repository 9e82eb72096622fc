"""Fetching published files: one goes on where an earlier try ended, and is what its digest says before it has its name.

Files of one manifest come one after another: on one line a second stream only shares what the first one has.
"""

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from common.errors import VerificationError
from common.files import full_disk_is_unavailable, write_atomic
from common.part_file import PartFile, state_path
from common.rpc.channel import stream
from common.rpc.chunk_message import parse_fetched
from common.rpc.transfer import CHUNK_BYTES
from common.trust.manifest import FileEntry, digest_of
from owner_client.connection import Connection
from owner_client.pace import Pace
from owner_client.retry import Retry
from protos import transfer_pb2

OnBytes = Callable[[int, int], None]
"""(bytes done, bytes in all)."""
Count = Callable[[str, int], None]
"""(call, bytes of its request): what leaves is counted."""


def part_of(target: Path) -> Path:
    """Where what has come of a file is kept."""
    return target.with_name(target.name + ".part")


class _InMemory:
    """A small file while it comes."""

    def __init__(self) -> None:
        self.data = b""

    @property
    def position(self) -> int:
        """How much has come."""
        return len(self.data)

    def append(self, data: bytes | memoryview) -> None:
        """What comes next."""
        self.data += data


class Fetching:
    """Fetches files of one coordinator."""

    def __init__(self, connection: Connection, *, retry: Retry, pace: Pace, count: Count) -> None:
        self._connection, self._retry, self._pace, self._count = connection, retry, pace, count

    def fetch(self, entry: FileEntry, *, to: Path, on_bytes: OnBytes) -> None:
        """Fetch a published file, going on from what an earlier try left in `<to>.part`. A small one comes at once.

        Raises:
            VerificationError: what came is not that file; it is dropped.
        """
        part = part_of(to)
        if entry.size <= CHUNK_BYTES and not part.exists():
            write_atomic(to, self._retry(lambda: self._fetch_whole(entry, on_bytes)), mode=0o600)
            return
        with full_disk_is_unavailable(f"{to.name} ({entry.size} bytes)"):
            self._retry(
                lambda: self._fetch_rest(entry, part, on_bytes),
                progress=lambda: PartFile.received(part, size=entry.size),
            )
        part.replace(to)
        state_path(part).unlink()

    def _fetch_whole(self, entry: FileEntry, on_bytes: OnBytes) -> bytes:
        file = _InMemory()
        self._fetch_all(entry, file, on_bytes)
        if digest_of(file.data) != entry.digest:
            raise VerificationError(f"what arrived is not {entry.digest}; it was dropped, fetch it again")
        return file.data

    def _fetch_rest(self, entry: FileEntry, part: Path, on_bytes: OnBytes) -> None:
        with closing(PartFile(part, entry)) as file:
            self._fetch_all(entry, file, on_bytes)
            file.check(remedy="fetch it again")

    def _fetch_all(self, entry: FileEntry, file: PartFile | _InMemory, on_bytes: OnBytes) -> None:
        is_ended = False
        while file.position < entry.size and not is_ended:
            self._pace.wait_until_open()
            self._connection.refresh()
            is_ended = self._fetch_some(entry, file, on_bytes)

    def _fetch_some(self, entry: FileEntry, file: PartFile | _InMemory, on_bytes: OnBytes) -> bool:
        """Fetch until the end of what there is, and answer True, or until the connection may not be used any more."""
        request = transfer_pb2.FetchRequest(digest=entry.digest, offset=file.position)
        self._count("Fetch", request.ByteSize())
        with closing(stream(self._connection.fetch, request)) as replies:
            for reply in replies:
                data = parse_fetched(reply)
                if file.position + len(data) > entry.size:
                    raise VerificationError(f"more came than the {entry.size} bytes of {entry.digest}")
                file.append(data)
                sys.audit("concord.point", "chunk fetched")
                on_bytes(file.position, entry.size)
                self._pace.spend(len(data))
                if not self._pace.is_open or self._connection.is_due:
                    return False
        return True
