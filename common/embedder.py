"""A local embedder of text, in the layout of sentence-transformers; read without network and without code of its own.

The paper starts router rows from an off-the-shelf embedder as wide as the model (arXiv 2507.07024, section 3.3.2). One
of another width is projected by a matrix that is the same for every owner and is stated here: entry (i, j) is
1/sqrt(D) or -1/sqrt(D) as bit i*D + j (most significant first) of SHAKE-256 over `PROJECTION_NAME` is 1 or 0. Random
signs keep lengths and angles nearly (Achlioptas, 2003).

Shapes: D hidden_size, W the embedder's width.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from common.errors import MalformedError, NotFoundError

PROJECTION_NAME: Final = "concord/embedder-projection/v1"

_MODULES_FILE: Final = "modules.json"
_PICKLED: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_KNOWN_TYPES: Final = "sentence_transformers."


class Embedder:
    """An embedder on the CPU."""

    def __init__(self, directory: Path) -> None:
        """Load.

        Raises:
            MalformedError: it is no such directory, holds pickled tensors, or names code that is not the library's.
            NotFoundError: sentence-transformers is not installed.
        """
        check_encoder_files(directory)
        _check_modules(directory)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise NotFoundError("sentence-transformers is not installed; pip install 'concord-moe[embed]'") from error
        try:
            self._model = SentenceTransformer(
                str(directory),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
            width = self._model.get_embedding_dimension()
        except Exception as error:  # the library raises whatever its parts raise
            raise MalformedError(f"{directory}: sentence-transformers cannot load it ({error})") from error
        if width is None:
            raise MalformedError(f"{directory}: does not say how wide its embeddings are; add a pooling module")
        self.width: Final[int] = width

    def mean(self, texts: Sequence[str]) -> Tensor:
        """The mean embedding [W], float32."""
        vectors = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False, batch_size=32)
        return torch.from_numpy(np.asarray(vectors, np.float64).mean(axis=0)).float()


def embedded_difference(
    embedder: Embedder, own: Sequence[str], public: Sequence[str], *, hidden_size: int, project: bool
) -> Tensor:
    """How the mean embedding of own texts differs from that of public ones, [D].

    Args:
        embedder: What embeds.
        own: The owner's texts.
        public: Public texts.
        hidden_size: D.
        project: Whether an embedder of another width may be projected.

    Raises:
        MalformedError: the widths differ and `project` is off.
    """
    if embedder.width != hidden_size and not project:
        raise MalformedError(
            f"the embedder makes {embedder.width} numbers and the model's hidden_size is {hidden_size}; "
            "choose an embedder of that width, or set embedder_projection to true"
        )
    difference_W = embedder.mean(own) - embedder.mean(public)
    return difference_W if embedder.width == hidden_size else difference_W @ projection(embedder.width, hidden_size)


def projection(width: int, hidden_size: int) -> Tensor:
    """The fixed projection [W, D], float32."""
    count = width * hidden_size
    drawn = np.frombuffer(hashlib.shake_256(PROJECTION_NAME.encode()).digest(-(-count // 8)), np.uint8)
    signs = np.unpackbits(drawn)[:count].reshape(width, hidden_size).astype(np.float32) * 2 - 1
    return torch.from_numpy(signs / np.float32(np.sqrt(hidden_size)))


def directory_digest(directory: Path) -> str:
    """SHA-256 over the names and contents of all its files: what decides the embeddings."""
    total = hashlib.sha256()
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{digest} {file.relative_to(directory)}\n".encode())
    return total.hexdigest()


def check_encoder_files(directory: Path) -> None:
    """Refuse what is no directory of tensors that can be read without running anything.

    Raises:
        MalformedError: no directory, pickled files in it, or no safetensors.
    """
    if not directory.is_dir():
        raise MalformedError(f"{directory}: no such directory; give one with an encoder's files")
    files = [path for path in directory.rglob("*") if path.is_file()]
    if pickled := next((path for path in files if path.suffix in _PICKLED), None):
        raise MalformedError(f"{pickled}: pickled tensors are not read; keep the model's .safetensors only")
    if not any(path.suffix == ".safetensors" for path in files):
        raise MalformedError(f"{directory}: no .safetensors file in it")


def _check_modules(directory: Path) -> None:
    path = directory / _MODULES_FILE
    try:
        types = [module["type"] for module in json.loads(path.read_text())]
    except FileNotFoundError as error:
        raise MalformedError(f"{path}: not there; give a directory that sentence-transformers saved") from error
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise MalformedError(f"{path}: not a list of modules ({error})") from error
    if strange := next((t for t in types if not isinstance(t, str) or not t.startswith(_KNOWN_TYPES)), None):
        raise MalformedError(f"{path}: {strange!r} is not a module of sentence-transformers; it is not run")
