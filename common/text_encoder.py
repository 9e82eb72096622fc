"""Which kind of text is this, told by a small encoder that is fine-tuned for it (arXiv 2507.07024, section 3.3.3).

The encoder is a local directory in Hugging Face's layout; the paper's is of 22 M parameters. Same use as the linear
`TextClassifier`, for whoever has an encoder and the time.

Shapes: B batch, K kinds, T tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from common.embedder import check_encoder_files
from common.errors import MalformedError, NotFoundError

_BATCH: Final = 16
_MOST_TOKENS: Final = 256
"""How much of a document is looked at."""
_WARM_UP: Final = 0.1
"""Share of the steps."""


class TextEncoder:
    """Fine-tuned on documents of two kinds or more."""

    def __init__(
        self,
        directory: Path,
        texts: Mapping[str, Sequence[str]],
        *,
        seed: int,
        epochs: int = 1,
        learning_rate: float = 5e-5,
    ) -> None:
        """Load and fine-tune.

        Args:
            directory: The encoder's.
            texts: Documents of each kind.
            seed: Of the order and the new head.
            epochs: How often every document of the larger kind is seen; smaller kinds are repeated to be as many.
            learning_rate: At its highest. The paper's 3e-6 is for 500,000 documents.

        Raises:
            MalformedError: no readable encoder, fewer than two kinds, or one without documents.
            NotFoundError: transformers is not installed.
        """
        if len(texts) < 2 or not all(texts.values()):
            raise MalformedError("a classifier needs documents of two kinds or more; one of these has none")
        self.kinds = sorted(texts)
        check_encoder_files(directory)
        torch.manual_seed(seed)
        self._tokens, self._model = _load(directory, num_kinds=len(self.kinds))
        self._fit(texts, seed=seed, epochs=epochs, learning_rate=learning_rate)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Of each kind (in order of `kinds`) for each text: [texts, kinds]."""
        self._model.eval()
        with torch.inference_mode():
            parts = [self._logits(texts[i : i + _BATCH]).softmax(dim=-1).double() for i in range(0, len(texts), _BATCH)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, len(self.kinds)))

    def _fit(self, texts: Mapping[str, Sequence[str]], *, seed: int, epochs: int, learning_rate: float) -> None:
        batches = list(_balanced([texts[kind] for kind in self.kinds], seed=seed, epochs=epochs))
        optimizer = torch.optim.AdamW(self._model.parameters(), lr=learning_rate)
        warm_up = max(1, round(_WARM_UP * len(batches)))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm_up, (len(batches) - step) / len(batches))
        )
        self._model.train()
        for chosen, labels in batches:
            loss = torch.nn.functional.cross_entropy(self._logits(chosen), torch.tensor(labels))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    def _logits(self, texts: Sequence[str]) -> torch.Tensor:
        """[B, K]."""
        encoded = self._tokens(list(texts), truncation=True, max_length=self._room, padding=True, return_tensors="pt")
        logits: torch.Tensor = self._model(**encoded).logits
        return logits

    @property
    def _room(self) -> int:
        return min(_MOST_TOKENS, getattr(self._model.config, "max_position_embeddings", _MOST_TOKENS))


def _load(directory: Path, *, num_kinds: int):  # type: ignore[no-untyped-def]
    """Tokenizer and encoder with a new head."""
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise NotFoundError("transformers is not installed; pip install 'concord-moe[embed]'") from error
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokens = AutoTokenizer.from_pretrained(str(directory), **local)
        model = AutoModelForSequenceClassification.from_pretrained(
            str(directory), num_labels=num_kinds, use_safetensors=True, dtype=torch.float32, **local
        )
    except Exception as error:  # the library raises whatever its parts raise
        raise MalformedError(f"{directory}: transformers cannot load an encoder from it ({error})") from error
    return tokens, model


def _balanced(texts: Sequence[Sequence[str]], *, seed: int, epochs: int) -> Iterator[tuple[list[str], list[int]]]:
    """Batches in which every kind is as frequent as the largest one, each epoch in another order."""
    generator = np.random.default_rng(seed)
    most = max(map(len, texts))
    for _ in range(epochs):
        pairs = [
            (kind_texts[i % len(kind_texts)], kind)
            for kind, kind_texts in enumerate(texts)
            for i in generator.permutation(most)
        ]
        order = generator.permutation(len(pairs))
        for start in range(0, len(order), _BATCH):
            chosen = [pairs[i] for i in order[start : start + _BATCH]]
            yield [text for text, _ in chosen], [kind for _, kind in chosen]
