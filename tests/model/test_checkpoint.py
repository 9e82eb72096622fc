"""safetensors files as bytes: equal to the safetensors library on real files, and every malformed header refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from common.errors import MalformedError, NotFoundError
from common.model import checkpoint
from common.model.checkpoint import ALIGNMENT, INDEX_NAME, MAX_HEADER_BYTES, ByteRange, Placed
from common.model.partition import TensorSpec

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"b": (3, 5), "a": (7,), "scalar": (), "empty": (0, 4), "c": (2, 3, 4)}
    return {
        f"{name}.{dtype}": torch.randn(shape, generator=generator).to(DTYPES[dtype])
        for name, shape in shapes.items()
        for dtype in DTYPES
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file as the library writes it."""
    path = tmp_path / "x.safetensors"
    save_file(_tensors(), path, metadata={"format": "pt"})
    return path


def test_what_the_library_wrote_is_read_as_the_library_reads_it(file: Path) -> None:
    entries, theirs = checkpoint.read_header(file), load_file(file)
    assert entries.keys() == theirs.keys()
    for name, entry in entries.items():
        assert DTYPES[entry.spec.dtype] == theirs[name].dtype
        assert entry.spec.shape == tuple(theirs[name].shape)
        assert checkpoint.size_bytes(entry.spec) == entry.location.size
        assert checkpoint.tensor_bytes(entry) == _bytes(theirs[name])


def _placed(file: Path) -> dict[str, Placed]:
    return {name: Placed(entry.spec, (entry.location,)) for name, entry in checkpoint.read_header(file).items()}


def test_what_is_written_is_read_by_the_library(file: Path, tmp_path: Path) -> None:
    written = tmp_path / "y.safetensors"
    checkpoint.write(written, _placed(file))
    ours, theirs = load_file(written), load_file(file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with safe_open(written, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_the_same_tensors_give_the_same_file_on_a_block_boundary(file: Path, tmp_path: Path) -> None:
    for name in ("y", "z"):
        checkpoint.write(tmp_path / name, _placed(file))
    assert (tmp_path / "y").read_bytes() == (tmp_path / "z").read_bytes()
    length = int.from_bytes((tmp_path / "y").read_bytes()[:8], "little")
    assert (8 + length) % ALIGNMENT == 0
    assert {path.name for path in tmp_path.iterdir()} == {"x.safetensors", "y", "z"}


def test_pieces_are_put_together_in_order(file: Path, tmp_path: Path) -> None:
    entries = checkpoint.read_header(file)
    rows = [entries["a.F32"].location] * 3
    checkpoint.write(tmp_path / "y", {"rows": Placed(TensorSpec("F32", (3, 7)), tuple(rows))})
    assert torch.equal(load_file(tmp_path / "y")["rows"], _tensors()["a.F32"].expand(3, 7))


def test_pieces_that_do_not_make_the_tensor_are_a_mistake(file: Path, tmp_path: Path) -> None:
    location = checkpoint.read_header(file)["a.F32"].location
    with pytest.raises(ValueError, match="do not make its 56 bytes"):
        checkpoint.write(tmp_path / "y", {"rows": Placed(TensorSpec("F32", (2, 7)), (location,))})


def test_a_piece_that_ends_early_leaves_no_file(file: Path, tmp_path: Path) -> None:
    piece = ByteRange(file, file.stat().st_size - 4, 28)
    with pytest.raises(MalformedError, match="ended 24 bytes early"):
        checkpoint.write(tmp_path / "y", {"rows": Placed(TensorSpec("F32", (7,)), (piece,))})
    assert not (tmp_path / "y").exists()


# Headers.


def _file(tmp_path: Path, header: bytes, data: bytes = b"") -> Path:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def _header(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _tensor(start: object = 0, end: object = 8, *, dtype: object = "F32", shape: object = (2,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = _header(x=_tensor())
EIGHT = bytes(8)
BAD: dict[str, tuple[bytes, bytes]] = {
    "no JSON": (b"hello, world", EIGHT),
    "a list": (b"[]      ", b""),
    "white space first": (b" " + GOOD, EIGHT),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, EIGHT),
    "not UTF-8": (GOOD.replace(b'"x"', b'"\xff"'), EIGHT),
    "a name twice": (GOOD[:-1] + b"," + GOOD[1:], EIGHT),
    "two values": (GOOD + GOOD, EIGHT),
    "a deep nest": (b'{"x":' + b"[" * 100_000, EIGHT),
    "no dtype": (_header(x={"shape": [2], "data_offsets": [0, 8]}), EIGHT),
    "no shape": (_header(x={"dtype": "F32", "data_offsets": [0, 8]}), EIGHT),
    "no offsets": (_header(x={"dtype": "F32", "shape": [2]}), EIGHT),
    "a field more": (_header(x={**_tensor(), "y": 1}), EIGHT),
    "a tensor that is none": (_header(x=3), EIGHT),
    "three offsets": (_header(x={**_tensor(), "data_offsets": [0, 4, 8]}), EIGHT),
    "offsets as text": (_header(x=_tensor("0", "8")), EIGHT),
    "offsets as fractions": (_header(x=_tensor(0.0, 8.0)), EIGHT),
    "an offset that is false": (_header(x=_tensor(False, 8)), EIGHT),
    "an offset of 2^63": (_header(x=_tensor(0, 2**63)), EIGHT),
    "a negative offset": (_header(x=_tensor(-8, 0)), EIGHT),
    "offsets the wrong way round": (_header(x=_tensor(8, 0)), EIGHT),
    "an unknown dtype": (_header(x=_tensor(dtype="F33")), EIGHT),
    "a dtype of no parameter": (_header(x=_tensor(dtype="I32")), EIGHT),
    "a dtype in small letters": (_header(x=_tensor(dtype="f32")), EIGHT),
    "a dtype that is none": (_header(x=_tensor(dtype=None)), EIGHT),
    "a shape of text": (_header(x=_tensor(shape=["2"])), EIGHT),
    "a shape of fractions": (_header(x=_tensor(shape=[2.0])), EIGHT),
    "a shape of truths": (_header(x=_tensor(shape=[True, 2])), EIGHT),
    "a negative shape": (_header(x=_tensor(shape=[-1, -2])), EIGHT),
    "too many dimensions": (_header(x=_tensor(shape=[1] * 8 + [2])), EIGHT),
    "a shape too large": (_header(x=_tensor(shape=[2**40, 2**40])), EIGHT),
    "a shape of another size": (_header(x=_tensor(shape=[3])), EIGHT),
    "a gap at the start": (_header(x=_tensor(8, 16)), bytes(16)),
    "a gap between": (_header(x=_tensor(), y=_tensor(12, 20)), bytes(20)),
    "an overlap": (_header(x=_tensor(), y=_tensor(4, 12)), bytes(12)),
    "the same bytes twice": (_header(x=_tensor(), y=_tensor()), EIGHT),
    "a byte too many": (GOOD, bytes(9)),
    "a byte too few": (GOOD, bytes(7)),
    "no data": (GOOD, b""),
    "metadata that is a number": (_header(__metadata__=3, x=_tensor()), EIGHT),
    "metadata that is a list": (_header(__metadata__=["x"], x=_tensor()), EIGHT),
    "metadata of numbers": (_header(__metadata__={"x": 1}, x=_tensor()), EIGHT),
}


def test_the_good_header_is_good(tmp_path: Path) -> None:
    assert checkpoint.read_header(_file(tmp_path, GOOD, EIGHT))["x"].spec == TensorSpec("F32", (2,))


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_header_is_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedError):
        checkpoint.read_header(_file(tmp_path, *BAD[case]))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x02", bytes(8), b"\x02" + bytes(7), b"\xff" * 8, b"\xff" * 8 + b"{}", b"\x01" + bytes(7) + b"{}"],
)
def test_a_file_without_room_for_its_header_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_bytes(data)
    with pytest.raises(MalformedError, match="is not a safetensors file: header length"):
        checkpoint.read_header(path)


def test_a_header_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 9)
    with pytest.raises(MalformedError, match="header length 16777217"):
        checkpoint.read_header(path)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir])
def test_a_file_that_is_not_there_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(NotFoundError, match="is not there or no plain file"):
        checkpoint.read_header(tmp_path / "x")


_OFFSETS = st.integers(-2, 20) | st.booleans() | st.none()
_FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I8", ""]),
        "shape": st.lists(st.integers(-1, 4) | st.booleans(), max_size=3),
        "data_offsets": st.lists(_OFFSETS, min_size=1, max_size=3),
    }
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(max_size=3), _FIELDS, max_size=3), st.integers(0, 24))
def test_no_header_is_read_that_the_library_refuses(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], size: int
) -> None:
    path = _file(tmp_path_factory.getbasetemp(), _header(**fields), bytes(size))
    try:
        entries = checkpoint.read_header(path)
    except MalformedError:
        return
    try:
        with safe_open(path, "pt") as theirs:
            assert set(theirs.keys()) == entries.keys()
    except SafetensorError as error:
        raise AssertionError(f"the library refuses what was read: {error}") from error


# What an expert's header may not carry.


def test_a_header_with_nothing_beside_its_tensors_is_taken(file: Path, tmp_path: Path) -> None:
    checkpoint.check_nothing_beside(file)
    checkpoint.write(tmp_path / "y", _placed(file))
    checkpoint.check_nothing_beside(tmp_path / "y")
    save_file(_tensors(), file)
    checkpoint.check_nothing_beside(file)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (_header(__metadata__={"format": "pt", "y": "z"}, x=_tensor()), "metadata of its own"),
        (_header(__metadata__={"format": "np"}, x=_tensor()), "metadata of its own"),
        (GOOD + b" " * ALIGNMENT, "bytes of padding"),
        (GOOD.replace(b",", b", "), "not compact JSON"),
        (GOOD + b"\n", "not compact JSON"),
        (GOOD.replace(b'"x"', b'"\\u0078"'), "not compact JSON"),
        (GOOD.replace(b"[0,", b"[-0,"), "not compact JSON"),
    ],
)
def test_a_header_that_could_carry_words_is_refused(header: bytes, match: str, tmp_path: Path) -> None:
    path = _file(tmp_path, header, EIGHT)
    checkpoint.read_header(path)
    with pytest.raises(MalformedError, match=match):
        checkpoint.check_nothing_beside(path)


# Directories of shards.


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards and their index."""
    directory = tmp_path / "model"
    directory.mkdir()
    save_file({"x": torch.ones(2)}, directory / "1.safetensors")
    save_file({"y": torch.ones(3), "z": torch.ones(1)}, directory / "2.safetensors")
    checkpoint.write_index(directory, {"1.safetensors": ["x"], "2.safetensors": ["y", "z"]}, total_size=24)
    return directory


def test_all_shards_are_read(sharded: Path) -> None:
    entries = checkpoint.read_checkpoint(sharded)
    assert {name: entry.location.path.name for name, entry in entries.items()} == {
        "x": "1.safetensors", "y": "2.safetensors", "z": "2.safetensors",
    }  # fmt: skip
    assert json.loads((sharded / INDEX_NAME).read_text())["metadata"] == {"total_size": 24}


def test_one_file_needs_no_index(file: Path) -> None:
    file.rename(file.with_name("model.safetensors"))
    assert checkpoint.read_checkpoint(file.parent).keys() == _tensors().keys()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match=r"holds no model\.safetensors"):
        checkpoint.read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "match"),
    [
        ({"x": "../1.safetensors"}, "names a shard"),
        ({"x": "/etc/passwd"}, "names a shard"),
        ({"x": "1.bin"}, "names a shard"),
        ({"x": 3}, "names a shard"),
        ({"x": ["1.safetensors"]}, "names a shard"),
        ({"x": None}, "names a shard"),
        ({"x": "1.safetensors", "y": "2.safetensors"}, "disagree about"),
        ({"x": "1.safetensors", "w": "1.safetensors"}, "disagree about"),
        ({"x": "2.safetensors", "y": "1.safetensors"}, "disagree about"),
        ([], "has no weight_map"),
        (None, "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(weight_map: object, match: str, sharded: Path) -> None:
    (sharded / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(MalformedError, match=match):
        checkpoint.read_checkpoint(sharded)


@pytest.mark.parametrize("shard", ["3.safetensors", "\0.safetensors"])
def test_a_shard_that_is_not_there_is_named(shard: str, sharded: Path) -> None:
    (sharded / INDEX_NAME).write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(NotFoundError, match="is not there or no plain file; get a whole copy"):
        checkpoint.read_checkpoint(sharded)


# Values.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found(dtype: str, value: float, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(1000, dtype=DTYPES[dtype]), "b": torch.ones(1000, dtype=DTYPES[dtype])}
    tensors["b"][-1] = value
    save_file(tensors, tmp_path / "x")
    assert checkpoint.first_not_finite(checkpoint.read_header(tmp_path / "x")) == "b"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_finite_value_is_finite(dtype: str, tmp_path: Path) -> None:
    info = torch.finfo(DTYPES[dtype])
    values = torch.tensor([info.max, info.min, info.tiny, -info.tiny, 0.0, -0.0], dtype=DTYPES[dtype])
    save_file({"a": values, "empty": values[:0]}, tmp_path / "x")
    assert checkpoint.first_not_finite(checkpoint.read_header(tmp_path / "x")) is None


def test_all_sixteen_bit_values_are_judged_as_torch_judges_them(tmp_path: Path) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        values = bits.view(dtype)
        finite = torch.isfinite(values)
        for part, expected in ((values[finite], None), (values[~finite][:1], "a")):
            save_file({"a": part.contiguous()}, tmp_path / "x")
            assert checkpoint.first_not_finite(checkpoint.read_header(tmp_path / "x")) == expected
