"""Documents that change domain on the way: paragraphs of two or three domains in one context.

Routing a whole document to one expert cannot be right for them, so they show what routing by token is worth.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from common.data import Document, document
from common.errors import MalformedError

_PARAGRAPH_BYTES: Final = (200, 600)
"""A paragraph is cut to a length drawn from here."""
_DOMAINS: Final = (2, 3)
_ROUNDS: Final = 2
"""How often a document comes to each of its domains."""


def mixed_documents(domains: Mapping[str, Sequence[Document]], *, total_bytes: int, seed: int) -> list[Document]:
    """About `total_bytes` of documents, each of paragraphs of two or three domains in turn.

    No paragraph is used twice, and a document takes one domain's paragraphs from one of its documents, in order.

    Raises:
        MalformedError: fewer than two domains, or too little text in them.
    """
    if len(domains) < min(_DOMAINS):
        raise MalformedError(f"{len(domains)} domain(s) cannot be mixed; give two or more")
    random = Random(seed)  # noqa: S311 - a reproducible choice, not a secret
    names = sorted(domains)
    supplies = {name: _shuffled(domains[name], random) for name in names}
    mixed: list[Document] = []
    size = 0
    while size < total_bytes:
        chosen = random.sample(names, min(random.choice(_DOMAINS), len(names)))
        parts = [_take(supplies[name], random, name) for name in chosen]
        text = "\n\n".join(paragraph for paragraphs in zip(*parts, strict=True) for paragraph in paragraphs)
        mixed.append(document(text))
        size += len(text.encode())
    return mixed


def _shuffled(documents: Sequence[Document], random: Random) -> list[str]:
    """Texts long enough for all rounds, in random order."""
    texts = [d.text for d in documents if len(d.text.encode()) >= _ROUNDS * _PARAGRAPH_BYTES[1]]
    random.shuffle(texts)
    return texts


def _take(supply: list[str], random: Random, name: str) -> list[str]:
    """The next paragraphs of a domain, and the rest of their document goes back behind the others."""
    if not supply:
        raise MalformedError(f"{name}: too little text to mix; give longer documents or ask for fewer bytes")
    rest = supply.pop(0).encode()
    paragraphs = []
    for _ in range(_ROUNDS):
        length = random.randint(*_PARAGRAPH_BYTES)
        head = rest[:length].decode(errors="ignore")
        rest = rest[len(head.encode()) :]
        paragraphs.append(head.strip())
    if len(rest) >= _ROUNDS * _PARAGRAPH_BYTES[1]:
        supply.append(rest.decode())
    return paragraphs
