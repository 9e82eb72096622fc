"""Documents cut up and put together anew, so that a model learns that its subject may change within a context.

A model that reads every document by itself learns in its first words what kind of text it reads, and hardly looks again
for the rest of a context. What people give a model is not like that: a question, then a page, then code. A share of the
public documents is therefore read in parts, those of two or three documents in turn, with nothing but a blank line
between them.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from random import Random
from typing import Final

from common.data import Document

_DOCUMENTS: Final = (2, 3)
"""How many documents a patchwork is made of."""

_PART_CHARACTERS: Final = (100, 800)
"""Parts have a length drawn from here, short ones as often as ones twice as long."""

_BREAK: Final = "\n\n"

_GAP = re.compile(r"\s+")


def patchworks(documents: Iterable[Document], *, seed: int) -> list[list[str]]:
    """Patchworks of all the documents, each a list of parts whose concatenation is its text.

    Args:
        documents: None of them blank.
        seed: Of which documents come together, and where they are cut.
    """
    random = Random(seed)  # noqa: S311 - a reproducible choice, not a secret
    texts = [document.text for document in documents]
    random.shuffle(texts)
    made = []
    while texts:
        count = random.choice(_DOCUMENTS)
        made.append(_interleaved([_cut(text, random) for text in texts[:count]]))
        del texts[:count]
    return made


def _cut(text: str, random: Random) -> list[str]:
    """`text` cut after gaps between words into lengths drawn at random; the last part is what is left."""
    shortest, longest = _PART_CHARACTERS
    parts, begin = list[str](), 0
    while begin < len(text):
        length = int(shortest * (longest / shortest) ** random.random())
        gap = _GAP.search(text, begin + length)
        end = len(text) if gap is None else gap.end()
        parts.append(text[begin:end])
        begin = end
    return parts


def _interleaved(documents: Sequence[list[str]]) -> list[str]:
    """Parts of the documents in turn; what is left of the longest one when the others have ended is one part."""
    ordered: list[str] = []
    newest = None
    for turn in zip_longest(*documents):
        for document, part in enumerate(turn):
            if part is None:
                continue
            if document == newest:
                ordered[-1] += part
            else:
                ordered.append(part)
            newest = document
    first, *others = (part.rstrip() for part in ordered)
    return [first, *(_BREAK + part for part in others)]
