"""A byte-level BPE tokenizer: trained on the public text, saved as files that `transformers` loads.

Every string round-trips, since the alphabet is bytes. Digits are single tokens, which keeps arithmetic learnable. Text
is never read as a special token: a document that spells out `<|endoftext|>` is encoded as those characters.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Self

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from common.data import Document
from common.errors import MalformedError

END_OF_TEXT: Final = "<|endoftext|>"
TOKENIZER_FILE: Final = "tokenizer.json"
CONFIG_FILE: Final = "tokenizer_config.json"
FILES: Final = (TOKENIZER_FILE, CONFIG_FILE)
MIN_VOCAB_SIZE: Final = 257
"""All bytes and the end-of-text token."""


class Tokenizer:
    """Text to token ids and back; ids are whole numbers below `vocab_size`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap a tokenizer of the `tokenizers` library; MalformedError when it has no end-of-text token."""
        eos_token_id = backend.token_to_id(END_OF_TEXT)
        if eos_token_id is None:
            raise MalformedError(f"tokenizer: no {END_OF_TEXT} among its {backend.get_vocab_size()} tokens")
        backend.encode_special_tokens = True
        self._backend = backend
        self.eos_token_id: Final[int] = eos_token_id
        self.vocab_size: Final[int] = backend.get_vocab_size()

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `tokenizer.json` of a model directory; MalformedError when it is missing or not a tokenizer."""
        path = directory / TOKENIZER_FILE
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text()))
        except FileNotFoundError as error:
            raise MalformedError(f"{directory}: no {TOKENIZER_FILE}; is this a model directory?") from error
        except MalformedError:
            raise
        except Exception as error:  # the library raises bare Exception for anything it cannot parse
            raise MalformedError(f"{path}: not a tokenizer ({error})") from error

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and the `tokenizer_config.json` that `AutoTokenizer` needs."""
        (directory / TOKENIZER_FILE).write_text(self._backend.to_str(pretty=True) + "\n")
        config = {
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without end-of-text."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, faster than one by one."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; end-of-text is spelt out."""
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        return text


def train(documents: Iterable[Document], *, vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of exactly `vocab_size` tokens; the same documents give the same tokenizer.

    Raises:
        ValueError: `vocab_size` has no room for all bytes.
        MalformedError: the documents hold too little for that many tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {vocab_size}; {MIN_VOCAB_SIZE} is the least")
    backend = tokenizers.Tokenizer(models.BPE())
    digits, pieces = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((document.text for document in documents), trainer)
    if backend.get_vocab_size() != vocab_size:
        raise MalformedError(
            f"the public text has enough variety for {backend.get_vocab_size()} tokens, not {vocab_size}; "
            "add public documents or choose a smaller vocab_size"
        )
    return Tokenizer(backend)
