"""How a file is cut into chunks and what of it is still missing. Pure: both ends import it.

A file is sent in order, so what a receiver holds is a whole number of chunks and perhaps a torn one at the end, which
is sent again. What is missing is always computed from what is there, never remembered in a second place.
"""

from dataclasses import dataclass
from typing import Final

CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """`size_bytes` of file in chunks of `chunk_bytes`, the last one shorter; an empty file has no chunk."""

    size_bytes: int
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        if self.size_bytes < 0 or self.chunk_bytes < 1:
            raise ValueError(f"no chunks of {self.chunk_bytes} bytes in a file of {self.size_bytes}")

    @property
    def num_chunks(self) -> int:
        """Chunks in the file."""
        return -(-self.size_bytes // self.chunk_bytes)

    def offset(self, index: int) -> int:
        """Where chunk `index` starts, in bytes."""
        return index * self.chunk_bytes

    def length(self, index: int) -> int:
        """Bytes in chunk `index`; `ValueError` where there is no such chunk."""
        if not 0 <= index < self.num_chunks:
            raise ValueError(f"chunk {index} of a file of {self.num_chunks} chunks")
        return min(self.chunk_bytes, self.size_bytes - self.offset(index))

    def received_chunks(self, stored_bytes: int) -> int:
        """Whole chunks among the first `stored_bytes` of the file; a torn chunk does not count."""
        if stored_bytes >= self.size_bytes:
            return self.num_chunks
        return stored_bytes // self.chunk_bytes


def missing_chunks(plan: ChunkPlan, *, received: int) -> range:
    """The chunks still to be sent when the first `received` are stored."""
    return range(min(received, plan.num_chunks), plan.num_chunks)
