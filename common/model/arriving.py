"""An expert checked while it arrives: refused at the first byte that no expert of its base could have.

The header is judged as soon as it is here, long before gigabytes follow, and every value as it comes. What was fed and
not refused is an expert of the base once all of it was fed.
"""

from bisect import bisect_right
from pathlib import Path

from common.errors import MalformedError
from common.model import checkpoint
from common.model.checkpoint import TensorEntry
from common.model.config import ModelConfig
from common.model.expert import expected_tensors

_LENGTH_BYTES = 8


class ArrivingExpert:
    """Checks `size` bytes of an expert file of a base with this config, in order; `path` only names it.

    Where it goes on, `path` holds the first `position` bytes, which were checked before.
    """

    def __init__(self, path: Path, *, size: int, config: ModelConfig, position: int = 0) -> None:
        self._path, self._size, self._config = path, size, config
        self._position = 0
        self._start = b""
        self._data_start: int | None = None
        self._tensors: list[tuple[int, str, TensorEntry]] = []
        self._rest = b""
        if position:
            self._go_on(position)

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes.

        Raises:
            MalformedError: with them it is no expert of this base.
        """
        if self._data_start is None:
            self._start += data
            self._position += len(data)
            header_end = self._header_end()
            if header_end is None or len(self._start) < header_end:
                return
            self._judge(self._start[_LENGTH_BYTES:header_end])
            data, self._start, self._position = self._start[header_end:], b"", header_end
        self._check_values(data)

    def _header_end(self) -> int | None:
        if len(self._start) < min(_LENGTH_BYTES, self._size):
            return None
        start = self._start[:_LENGTH_BYTES]
        return _LENGTH_BYTES + checkpoint.header_length(start, path=self._path, file_size=self._size)

    def _judge(self, raw: bytes) -> None:
        entries = checkpoint.parse_header(raw, path=self._path, file_size=self._size)
        checkpoint.check_tensors(entries, expected=expected_tensors(self._config))
        checkpoint.check_nothing_beside_in(raw, path=self._path)
        self._data_start = _LENGTH_BYTES + len(raw)
        self._tensors = [(entry.location.offset, name, entry) for name, entry in entries.items()]

    def _check_values(self, data: bytes | memoryview) -> None:
        """Values of all tensors, which follow each other without gaps; one that is cut by the end of `data` waits."""
        view = memoryview(self._rest + bytes(data) if self._rest else data)
        at = self._position - len(self._rest)
        self._position += len(data)
        while view:
            index = bisect_right(self._tensors, at, key=lambda tensor: tensor[0]) - 1
            offset, name, entry = self._tensors[index]
            inside = view[: offset + entry.location.size - at]
            whole = len(inside) - len(inside) % checkpoint.DTYPE_BYTES[entry.spec.dtype]
            if not checkpoint.are_finite(inside[:whole], entry.spec.dtype):
                raise MalformedError(f"tensor {name} holds NaN or infinity; train again with a lower learning rate")
            if whole == 0:
                break
            view, at = view[whole:], at + whole
        self._rest = bytes(view)

    def _go_on(self, position: int) -> None:
        with self._path.open("rb") as file:
            self._start = file.read(min(position, _LENGTH_BYTES))
            header_end = self._header_end()
            if header_end is None or position < header_end:
                self._start += file.read(position - len(self._start))
                self._position = position
                return
            self._judge(file.read(header_end - _LENGTH_BYTES))
            self._start, self._position = b"", position
            # A value is at most four bytes and starts at a multiple of its own size after the header.
            width = checkpoint.DTYPE_BYTES[self._tensors[0][2].spec.dtype]
            cut = (position - header_end) % width
            file.seek(position - cut)
            self._rest = file.read(cut)
