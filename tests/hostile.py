"""Bundles that are no expert, by the ways in which they are none: what a hostile owner might send."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from common.model.expert import expected_tensors
from tests.federation import SIZES, expert_weights

Bundle = tuple[str, bytes]
"""What it is, and its bytes."""
NINES = "9" * 10_000
NAMES = list(expected_tensors(SIZES))


def good(seed: int = 1) -> bytes:
    """An expert as it should be."""
    return bytes(save(expert_weights(seed), metadata={"format": "pt"}))


def bundles() -> Iterator[Bundle]:
    """All of them; each has to be refused."""
    yield from _lengths()
    yield from _headers()
    yield from _offsets()
    yield from _specs()
    yield from _values()
    yield from _other_files()
    yield from _names()
    yield from _text()


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def _lengths() -> Iterator[Bundle]:
    """The first eight bytes lie."""
    data = good()
    said = int.from_bytes(data[:8], "little")
    for length in (0, 1, 2, said - 1, said + 1, said * 2, len(data), 2**24, 2**24 + 1, 10**8, 2**31, 2**32, 2**53,
                   2**63 - 1, 2**63, 2**64 - 1):  # fmt: skip
        yield f"a header said to be of {length} bytes", struct.pack("<Q", length) + data[8:]
    for size in (0, 1, 7, 8, 9, said // 2, 8 + said - 1, 8 + said, 8 + said + 1, len(data) - 1):
        if size:
            yield f"cut off after {size} bytes", data[:size]
    for more in (1, 2, 4096, 100_000):
        yield f"{more} bytes more", data + bytes(more)
    yield "a byte before it", b"\0" + data


def _headers() -> Iterator[Bundle]:
    """The header is no JSON object of tensors."""
    header, body = _split(good())
    text = json.dumps(header, separators=(",", ":"))
    raw = {
        "not JSON": b"{" * 200,
        "a list": b"[1,2,3]",
        "a number": b"12345678",
        "an empty object": b"{}",
        "no UTF-8": text.encode().replace(b"model", b"mod\xffl", 1),
        "overlong UTF-8": text.encode().replace(b"model", b"mod\xc0\xaf", 1),
        "a byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "a NUL inside": text.encode().replace(b"model", b"mod\0l", 1),
        "white space": text.replace(",", ", ").encode(),
        "a tab": text.replace(":", ":\t", 1).encode(),
        "a newline at its end": text.encode() + b"\n",
        "5,000 spaces at its end": text.encode() + b" " * 5000,
        "NaN": text.replace('"data_offsets":[0', '"data_offsets":[NaN', 1).encode(),
        "infinity": text.replace('"data_offsets":[0', '"data_offsets":[1e999', 1).encode(),
        "a fraction": text.replace('"data_offsets":[0', '"data_offsets":[0.0', 1).encode(),
        "an exponent": text.replace('"data_offsets":[0', '"data_offsets":[0e1', 1).encode(),
        "minus nothing": text.replace('"data_offsets":[0', '"data_offsets":[-0', 1).encode(),
        "a leading zero": text.replace('"data_offsets":[0', '"data_offsets":[00', 1).encode(),
        "a comment": b"/**/" + text.encode(),
        "a trailing comma": text.encode()[:-1] + b",}",
        "two objects": text.encode() + text.encode(),
        "half a surrogate pair": text.replace("model", "mo\\ud800del", 1).encode(),
        "an escape for a letter": text.replace("model", "\\u006dodel", 1).encode(),
        "nested a thousand deep": b'{"a":' * 1000 + b"1" + b"}" * 1000,
        "nested a hundred thousand deep": b"[" * 100_000 + b"]" * 100_000,
        "a number of ten thousand digits": text.replace(
            '"data_offsets":[0', f'"data_offsets":[{"9" * 10_000}', 1
        ).encode(),
        "a name of a megabyte": json.dumps({"x" * 2**20: 1}).encode(),
        "a hundred thousand tensors": json.dumps(
            {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
        ).encode(),
    }
    for what, each in raw.items():
        yield f"a header with {what}", _joined(each, body)
    for name in NAMES[:3]:
        again = text[:-1] + f",{json.dumps(name)}:{json.dumps(header[name], separators=(',', ':'))}}}"
        yield f"{name} twice", _joined(again.encode(), body)
    yield "metadata twice", _joined(text[:-1].encode() + b',"__metadata__":{"format":"pt"}}', body)


def _offsets() -> Iterator[Bundle]:
    """Tensors are not where they should be."""
    for number, change in enumerate(
        ([0, 0], [1, 0], [-1, 1], [0, 2**62], [2**53, 2**53 + 4], [2**63, 2**64], [0], [0, 1, 2], "0,1", None,
         [True, False], [[0], [1]], {"0": 1})
    ):  # fmt: skip
        for name in (NAMES[0], NAMES[-1]):
            header, body = _split(good())
            header[name]["data_offsets"] = change
            yield f"offsets {number} {change!r} of {name}", _joined(header, body)
    for move in (-4, 4, 8, 1):
        for name in NAMES[1:4]:
            header, body = _split(good())
            header[name]["data_offsets"] = [at + move for at in header[name]["data_offsets"]]
            yield f"{name} moved by {move}", _joined(header, body)
    header, body = _split(good())
    first, second = NAMES[0], NAMES[1]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    header[second]["shape"] = header[first]["shape"]
    yield "two tensors in one place", _joined(header, body)


def _specs() -> Iterator[Bundle]:
    """Types, shapes and names that no expert of this base has."""
    tensors = expert_weights(1)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.uint8, torch.bool):
        for name in (NAMES[0], NAMES[-1]):
            yield (
                f"{name} of {dtype}",
                bytes(save({**tensors, name: tensors[name].to(dtype)}, metadata={"format": "pt"})),
            )
    for word in ("F8_E4M3", "f32", "F32 ", "", "float32", "U64", 7, None, ["F32"]):
        header, body = _split(good())
        header[NAMES[0]]["dtype"] = word
        yield f"dtype {word!r}", _joined(header, body)
    for shape in (
        [],
        [0],
        [-1, -1],
        [2**62, 4],
        [24.0, 16],
        "24x16",
        None,
        [24, 16, 1],
        [16, 24],
        [384],
        [True, 384],
        [1] * 64,
    ):
        header, body = _split(good())
        header[NAMES[0]]["shape"] = shape
        yield f"shape {shape!r}"[:80], _joined(header, body)
    for field in ("dtype", "shape", "data_offsets"):
        header, body = _split(good())
        del header[NAMES[0]][field]
        yield f"no {field}", _joined(header, body)
    header, body = _split(good())
    header[NAMES[0]]["note"] = "patient 17"
    yield "a field more", _joined(header, body)
    for name in NAMES[:4]:
        left = {key: value for key, value in tensors.items() if key != name}
        yield f"without {name}", bytes(save(left, metadata={"format": "pt"}))
    transposed = {**tensors, NAMES[0]: tensors[NAMES[0]].T.contiguous()}
    yield "a tensor on its side", bytes(save(transposed, metadata={"format": "pt"}))
    other = {name: torch.zeros(*(size + 1 for size in value.shape)) for name, value in tensors.items()}
    yield "of a wider base", bytes(save(other, metadata={"format": "pt"}))


def _values() -> Iterator[Bundle]:
    """One value that is no number, anywhere."""
    header, body = _split(good())
    values = np.frombuffer(body, "<f4")
    places = (0, 1, len(values) // 3, len(values) // 2, len(values) - 2, len(values) - 1)
    bits = (0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0xFFFFFFFF)
    for place in places:
        for word in bits:
            changed = values.copy().view("<u4")
            changed[place] = word
            yield f"{word:08x} as value {place}", _joined(header, changed.tobytes())


def _other_files() -> Iterator[Bundle]:
    """Other formats altogether."""
    yield "a pickle", pickle.dumps({"weights": [1.0] * 1000})
    stream = io.BytesIO()
    torch.save(expert_weights(1), stream)
    yield "a torch file", stream.getvalue()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("expert.safetensors", bytes(20_000_000))
    yield "a zip that unfolds to 20 MB", stream.getvalue()
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(100))
    yield "an npz", stream.getvalue()
    yield "a script", b"#!/bin/sh\nrm -rf /\n" * 10
    yield "an ELF", b"\x7fELF" + bytes(2000)
    yield "GGUF", b"GGUF" + bytes(2000)
    yield "zeros", bytes(5000)
    yield "ones", b"\xff" * 5000
    yield "one byte", b"\0"
    yield "two experts", good(1) + good(2)


def _names() -> Iterator[Bundle]:
    """Tensors that are not the owner's to send, or whose names lead elsewhere."""
    tensors = expert_weights(1)
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "", " ", ".",
                 "../../keys/log.key", "/etc/passwd", "model.layers.0.mlp.experts.0.up_proj.weight", "x" * 4096,
                 "model.layers.0.mlp.experts.2.up_proj.weight", "model.layers.9.mlp.experts.1.up_proj.weight",
                 "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.gate.rows.0", "model.layers.00.mlp.gate.rows.1",
                 "MODEL.LAYERS.0.MLP.GATE.ROWS.1", "model.layers.0.mlp.gate.rows.1 ", "модель",
                 "\u202egnp.exe"):  # fmt: skip
        yield f"tensor {name!r}"[:60], bytes(save({**tensors, name: torch.zeros(16)}, metadata={"format": "pt"}))
        renamed = {name if key == NAMES[0] else key: value for key, value in tensors.items()}
        yield f"{NAMES[0]} called {name!r}"[:80], bytes(save(renamed, metadata={"format": "pt"}))


def _text() -> Iterator[Bundle]:
    """Words beside the weights."""
    tensors = expert_weights(1)
    for metadata in (
        {"note": "patient 17"},
        {"format": "tf"},
        {"format": "pt", "": ""},
        {"format": "pt", "x": "y" * 10_000},
    ):
        yield f"metadata {metadata!r}"[:80], bytes(save(tensors, metadata=metadata))
    header, body = _split(good())
    for metadata in ([], "pt", 7, {"format": 7}, {"format": ["pt"]}, None):
        yield f"metadata that is {metadata!r}", _joined({**header, "__metadata__": metadata}, body)
