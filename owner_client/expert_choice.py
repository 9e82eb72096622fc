"""Which public documents an owner's expert knows: those that it predicts better than the public model does.

An expert has learned what sets its owner's text apart, to predict it: how much better it predicts a document is a surer
sign of its kind than what a classifier makes of both texts (DECISIONS), and nothing else is needed to tell.

Shapes: N documents.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from common.data import Document
from common.ensemble import document_losses
from common.errors import MalformedError, NotFoundError
from common.evaluate import prepare, token_nats
from common.files import read_required
from common.model import hf
from common.model.assembly import assemble
from common.tokenizer import Tokenizer
from common.training_job import RESULT_FILE

_READ_CHARACTERS: Final = 4000
"""How much of a document is looked at."""


def trained_length(directory: Path) -> int:
    """How many tokens a sequence had that the expert in `directory` was trained on.

    Raises:
        NotFoundError: nothing there says so.
        MalformedError: what is there does not.
    """
    path = directory / RESULT_FILE
    record = read_required(path, hint="give sequence_length, what the expert was trained on")
    try:
        length = json.loads(record)["config"]["sequence_length"]
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError(f"{path}: no config with a sequence_length; give sequence_length") from error
    if not isinstance(length, int) or length < 2:
        raise MalformedError(f"{path}: sequence_length is {length}; give sequence_length")
    return length


class ExpertChoice:
    """The public model and the owner's own two-expert model, side by side."""

    def __init__(self, base: Path, expert: Path, *, sequence_length: int, batch_size: int, scratch: Path) -> None:
        """Load both.

        Args:
            base: The public model's directory.
            expert: The expert's file.
            sequence_length: Tokens of a window, or as many as the model takes.
            batch_size: Rows at a time.
            scratch: Existing folder on whose disk the two-expert model finds room while it is loaded.

        Raises:
            MalformedError: the public model cannot be read, or the expert is not one of it.
        """
        self._tokens, self._batch_size = Tokenizer.load(base), batch_size
        public = hf.load(base, dtype=torch.float32)
        with TemporaryDirectory(dir=scratch, prefix="two-expert-") as made:
            output = Path(made) / "model"
            assemble(base, [expert], num_experts_per_tok=2, output=output)
            self._models = public, hf.load(output, dtype=torch.float32)
        self._sequence_length = min(sequence_length, public.config.max_position_embeddings)

    def gains(self, documents: Sequence[Document]) -> NDArray[np.float64]:
        """How much better the owner's model predicts the beginning of each document, in nats a token: [N]."""
        beginnings = [Document(each.id, each.text[:_READ_CHARACTERS]) for each in documents]
        domain = prepare(beginnings, self._tokens, sequence_length=self._sequence_length)
        nats = [token_nats(model, domain, batch_size=self._batch_size) for model in self._models]
        public_N, own_N = document_losses(domain, nats)
        return np.asarray(public_N - own_N)


class GainScale:
    """How likely a gain makes a document the owner's kind, each kind counting half: a logistic fit."""

    def __init__(self, own_N: NDArray[np.float64], public_N: NDArray[np.float64]) -> None:
        """Fit to gains on documents that are the owner's and on public ones.

        Raises:
            NotFoundError: scikit-learn is not installed, or own documents gain no more than public ones.
        """
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise NotFoundError("scikit-learn is not installed; pip install 'concord-moe[classify]'") from error
        if own_N.mean() <= public_N.mean():
            raise NotFoundError(
                "the expert predicts own text no better than public text, so it cannot choose: train it longer, or go "
                "without proxies: your router row then stays as it is"
            )
        gains = np.concatenate([own_N, public_N])
        self._unit = max(float(gains.std()), np.finfo(np.float64).tiny)
        self._model = LogisticRegression(C=100.0, class_weight="balanced")
        self._model.fit(gains[:, None] / self._unit, np.repeat([True, False], [len(own_N), len(public_N)]))

    def probabilities(self, gains_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each gain: [N]."""
        return np.asarray(self._model.predict_proba(gains_N[:, None] / self._unit)[:, 1], np.float64)
