"""safetensors files as bytes: read headers strictly, place tensor bytes into new files, never compute. No torch.

Format: safetensors (8-byte little-endian header length, JSON header, data section). What this writes starts its data
section on a 4096-byte boundary (the header is padded with spaces, which the format allows), so that file systems with
reflinks can share blocks between releases.
"""

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import MalformedError, NotFoundError
from common.model.partition import TensorSpec
from common.trust import strict_json

MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
ALIGNMENT: Final = 4096
INDEX_NAME: Final = "model.safetensors.index.json"
DTYPE_BYTES: Final = {"F32": 4, "BF16": 2, "F16": 2}
"""The dtypes of model parameters; nothing else is accepted from anybody."""

_COPY_BYTES = 16 * 1024 * 1024
_SHOWN = 120
_METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`size` bytes of `path` from `offset`."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: its spec and where its bytes are."""

    spec: TensorSpec
    location: ByteRange


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor to be written: its spec and the bytes, in order, that make it up."""

    spec: TensorSpec
    pieces: tuple[ByteRange, ...]


def size_bytes(spec: TensorSpec) -> int:
    """Bytes a tensor of this spec takes."""
    size = DTYPE_BYTES[spec.dtype]
    for length in spec.shape:
        size *= length
    return size


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file in the order of their bytes.

    Raises:
        NotFoundError: it is not there.
        MalformedError: not a safetensors file, or its tensors overlap, leave gaps, exceed or fall short of the file.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} is not there or no plain file; get a whole copy")
    file_size = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(header_length(file.read(8), path=path, file_size=file_size))
    return parse_header(raw, path=path, file_size=file_size)


def header_length(start: bytes, *, path: Path, file_size: int) -> int:
    """The length of the header that the first 8 bytes of a file announce; it is at most `MAX_HEADER_BYTES`.

    Raises:
        MalformedError: none that this file could have.
    """
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, file_size - 8):
        raise MalformedError(f"{path.name} is not a safetensors file: header length {length}, file size {file_size}")
    return length


def parse_header(raw: bytes, *, path: Path, file_size: int) -> dict[str, TensorEntry]:
    """Like `read_header`, of a header at hand; the file may still be arriving."""
    length = len(raw)
    if not raw.startswith(b"{"):
        raise MalformedError(f"{path.name} is not a safetensors file: its header is not JSON")
    fields = strict_json.load_object(raw, what=f"{path.name} header")
    _check_metadata(path, fields.pop("__metadata__", {}))
    tensors = [(name, *_parse_entry(path, name, field)) for name, field in fields.items()]
    tensors.sort(key=lambda tensor: tensor[2])
    position, data_start = 0, 8 + length
    entries = {}
    for name, spec, start, end in tensors:
        if start != position:
            raise MalformedError(f"{path.name}: tensor {name[:_SHOWN]!r} starts at {start}, not at {position}")
        entries[name] = TensorEntry(spec, ByteRange(path, data_start + start, end - start))
        position = end
    if data_start + position != file_size:
        raise MalformedError(f"{path.name} has {file_size} bytes where its header says {data_start + position}")
    return entries


def _check_metadata(path: Path, metadata: strict_json.JsonValue) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError(f"{path.name}: its metadata is not text by name")


def check_nothing_beside(path: Path) -> None:
    """Raise `MalformedError` where the header of a safetensors file could carry more than the specs of its tensors:
    metadata of its own, or anything in the white space of its JSON or in its padding."""
    with path.open("rb") as file:
        check_nothing_beside_in(file.read(int.from_bytes(file.read(8), "little")), path=path)


def check_nothing_beside_in(raw: bytes, *, path: Path) -> None:
    """The same of a header at hand."""
    fields = strict_json.load_object(raw, what=f"{path.name} header")
    if fields.get("__metadata__", _METADATA) != _METADATA:
        raise MalformedError(f"{path.name} carries metadata of its own; save it with {_METADATA} alone")
    compact = raw.rstrip(b" ")
    if len(raw) - len(compact) >= ALIGNMENT:
        raise MalformedError(f"{path.name} has {len(raw) - len(compact)} bytes of padding; fewer than {ALIGNMENT} do")
    if compact != json.dumps(fields, separators=(",", ":")).encode():
        raise MalformedError(f"{path.name}: its header is not compact JSON; save it again with safetensors")


def _parse_entry(path: Path, name: str, field: strict_json.JsonValue) -> tuple[TensorSpec, int, int]:
    match field:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)], **rest} if not (
            rest or isinstance(start, bool) or isinstance(end, bool)
        ):
            pass
        case _:
            raise MalformedError(f"{path.name}: tensor {name[:_SHOWN]!r} has no dtype, shape and data_offsets")
    if dtype not in DTYPE_BYTES:
        raise MalformedError(
            f"{path.name}: tensor {name[:_SHOWN]!r} has dtype {dtype[:_SHOWN]!r}; allowed: {', '.join(DTYPE_BYTES)}"
        )
    dimensions = tuple(length for length in shape if type(length) is int and length >= 0)
    if len(dimensions) != len(shape) or len(dimensions) > 8:
        raise MalformedError(f"{path.name}: tensor {name[:_SHOWN]!r} has shape {str(shape)[:_SHOWN]}")
    spec = TensorSpec(dtype, dimensions)
    if start < 0 or end - start != size_bytes(spec):
        raise MalformedError(
            f"{path.name}: tensor {name[:_SHOWN]!r} of {spec} needs {size_bytes(spec)} bytes, has {end - start}"
        )
    return spec, start, end


def read_checkpoint(directory: Path) -> dict[str, TensorEntry]:
    """All tensors of a Hugging Face model directory: `model.safetensors`, or the shards its index names.

    Raises:
        NotFoundError: a shard is not there.
        MalformedError: no weights, an index that names a file outside the directory, or files and index disagree.
    """
    single, index = directory / "model.safetensors", directory / INDEX_NAME
    if single.is_file() and not index.exists():
        return read_header(single)
    if not index.is_file():
        raise MalformedError(f"{directory} holds no model.safetensors and no {INDEX_NAME}")
    weight_map = strict_json.load_object(index.read_bytes(), what=index.name).get("weight_map")
    if not isinstance(weight_map, dict):
        raise MalformedError(f"{index.name} has no weight_map")
    entries: dict[str, TensorEntry] = {}
    for shard in dict.fromkeys(str(shard) for shard in weight_map.values()):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise MalformedError(f"{index.name} names a shard {shard!r}")
        held = read_header(directory / shard)
        listed = {name for name, where in weight_map.items() if where == shard}
        if listed != held.keys():
            raise MalformedError(f"{index.name} and {shard} disagree about {sorted(listed ^ held.keys())[:3]}")
        entries.update(held)
    return entries


def write(path: Path, tensors: Mapping[str, Placed]) -> None:
    """Write a safetensors file whose tensors are the given bytes, in the order given; durable when this returns.

    The file appears whole or not at all. Same tensors and bytes in, same file out.

    Raises:
        ValueError: the pieces of a tensor do not add up to its size.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(_header(tensors))
        file.flush()
        for placed in tensors.values():
            for piece in placed.pieces:
                _copy(piece, file.fileno())
        os.fsync(file.fileno())
    temporary.replace(path)


def _header(tensors: Mapping[str, Placed]) -> bytes:
    fields: dict[str, object] = {"__metadata__": _METADATA}
    position = 0
    for name, placed in tensors.items():
        size = size_bytes(placed.spec)
        if sum(piece.size for piece in placed.pieces) != size:
            raise ValueError(f"the pieces of {name} do not make its {size} bytes")
        fields[name] = {
            "dtype": placed.spec.dtype,
            "shape": list(placed.spec.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    header = json.dumps(fields, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _copy(piece: ByteRange, target: int) -> None:
    """Append `piece` to the file descriptor `target`, inside the kernel where it can."""
    with piece.path.open("rb") as source:
        offset, left = piece.offset, piece.size
        while left:
            moved = _copy_some(source.fileno(), target, offset=offset, count=min(left, _COPY_BYTES))
            if moved == 0:
                raise MalformedError(f"{piece.path} ended {left} bytes early")
            offset, left = offset + moved, left - moved


def _copy_some(source: int, target: int, *, offset: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, offset_src=offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
    return os.write(target, os.pread(source, count, offset))


def write_index(directory: Path, shards: Mapping[str, Iterable[str]], *, total_size: int) -> None:
    """Write `model.safetensors.index.json`: which shard holds which tensors, and their bytes together."""
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def tensor_bytes(entry: TensorEntry) -> bytes:
    """The bytes of one tensor; for small ones such as router rows."""
    with entry.location.path.open("rb") as file:
        file.seek(entry.location.offset)
        return file.read(entry.location.size)


_FIRST_NOT_FINITE: Final = {"F32": (4, 0x7F800000), "BF16": (2, 0x7F80), "F16": (2, 0x7C00)}
"""Bytes of a value, and positive infinity's bits: beyond them up to the sign bit lie all that are not finite."""


def first_not_finite(entries: Mapping[str, TensorEntry]) -> str | None:
    """Name of the first tensor that holds NaN or infinity, by exponent bits alone; None where all is finite.

    A value is not finite exactly when every exponent bit is set (IEEE 754; bfloat16 is float32's upper half).
    """
    return next((name for name, entry in entries.items() if not _is_finite(entry)), None)


def are_finite(data: bytes | memoryview, dtype: str) -> bool:
    """Whether no value in `data` is NaN or infinity; whole values only."""
    import numpy as np  # a daemon that never checks an expert does not load it

    width, infinity = _FIRST_NOT_FINITE[dtype]
    if not len(data):
        return True
    signed, unsigned = np.frombuffer(data, f"<i{width}"), np.frombuffer(data, f"<u{width}")
    # Read as signed, negative values are small; read as unsigned, they are the largest. So two maxima, no temporaries.
    return bool(signed.max() < infinity and unsigned.max() < infinity + (1 << 8 * width - 1))


def _is_finite(entry: TensorEntry) -> bool:
    with entry.location.path.open("rb") as file:
        file.seek(entry.location.offset)
        for start in range(0, entry.location.size, _COPY_BYTES):
            if not are_finite(file.read(min(entry.location.size - start, _COPY_BYTES)), entry.spec.dtype):
                return False
    return True


def check_tensors(
    entries: Mapping[str, TensorEntry],
    *,
    expected: Mapping[str, TensorSpec],
    whole: str = "an expert of this base",
    remedy: str = "send only its expert's tensors",
) -> None:
    """Raise `MalformedError` unless exactly the expected tensors are there, each of the expected dtype and shape.

    Messages call what they belong to `whole`, and say `remedy` where there are others.
    """
    if extra := sorted(entries.keys() - expected.keys()):
        raise MalformedError(f"{_some(extra)} must not be in {whole}; {remedy}")
    if absent := sorted(expected.keys() - entries.keys()):
        raise MalformedError(f"{_some(absent)} is missing from {whole}")
    for name, spec in expected.items():
        if entries[name].spec != spec:
            raise MalformedError(f"tensor {name} is {entries[name].spec}; {whole} needs {spec}")


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor {', '.join(map(_shown, names[:3]))}{rest}"


def _shown(name: str) -> str:
    """A stranger's name of a tensor as it may stand in a message: short, and without what moves a cursor."""
    return name if name.isascii() and name.isprintable() and 0 < len(name) <= _SHOWN else ascii(name[:_SHOWN])
