"""Documents that change domain on the way: paragraphs of two or three domains in one context.

Routing a whole document to one expert cannot be right for them, so they show what routing by token is worth, and rows
that are trained on some (`coordinator.router_texts`) learn it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
    mixed: list[Document] = []
    size = 0
    for each in _until_used_up(domains, Random(seed)):  # noqa: S311 - a reproducible choice, not a secret
        mixed.append(each)
        size += len(each.text.encode())
        if size >= total_bytes:
            break
    return mixed


def mixed_rounds(domains: Mapping[str, Sequence[Document]], *, rounds: int, seed: int) -> list[Document]:
    """As `mixed_documents`, as many as there is text for: in each of `rounds`, which put other paragraphs together,
    until one domain has no text left.

    Domains without a document that is long enough are left out; where fewer than two are left, there are none.
    """
    usable = {name: long for name, documents in domains.items() if (long := [d for d in documents if _is_long(d)])}
    mixed: list[Document] = []
    for turn in range(rounds if len(usable) >= min(_DOMAINS) else 0):
        random = Random(f"{seed} {turn}")  # noqa: S311 - as above
        with suppress(_UsedUpError):
            for each in _until_used_up(usable, random):
                mixed.append(each)
    return mixed


class _UsedUpError(MalformedError):
    """A domain has no text left."""


def _until_used_up(domains: Mapping[str, Sequence[Document]], random: Random) -> Iterator[Document]:
    """Mixed documents, until `_UsedUpError`."""
    names = sorted(domains)
    supplies = {name: _shuffled(domains[name], random) for name in names}
    while True:
        chosen = random.sample(names, min(random.choice(_DOMAINS), len(names)))
        parts = [_take(supplies[name], random, name) for name in chosen]
        text = "\n\n".join(paragraph for paragraphs in zip(*parts, strict=True) for paragraph in paragraphs)
        yield document(text)


def _is_long(each: Document) -> bool:
    """Whether there are paragraphs for all rounds in it."""
    return len(each.text.encode()) >= _ROUNDS * _PARAGRAPH_BYTES[1]


def _shuffled(documents: Sequence[Document], random: Random) -> list[str]:
    """Texts long enough for all rounds, in random order."""
    texts = [d.text for d in documents if _is_long(d)]
    random.shuffle(texts)
    return texts


def _take(supply: list[str], random: Random, name: str) -> list[str]:
    """The next paragraphs of a domain, and the rest of their document goes back behind the others."""
    if not supply:
        raise _UsedUpError(f"{name}: too little text to mix; give longer documents or ask for fewer bytes")
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
