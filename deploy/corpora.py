"""The demo's default text: four domains that any Python installation holds or that the demo writes, nothing downloaded.

- `code`: sources of the standard library's larger packages, without docstrings and comment lines: those are English.
- `legal`: licence texts of the installed distributions and of the interpreter, cut down to paragraphs that no other of
  them has (few are left), and agreements that `deploy.writing` makes up.
- `math`: arithmetic word problems with worked answers, made up likewise.
- `public`: the English of `pydoc_data.topics` and of long docstrings of installed packages, without their examples and
  tables, and about `PUBLIC_BYTES` of each other domain (by document hash; those are in no owner's set), as web text
  holds a little of everything.

Whole files go to one split, so no file is in two; near duplicates are dropped over all domains together. The same
installation and seed give the same bytes.
"""

import ast
import hashlib
import importlib.metadata
import pydoc_data.topics
import re
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from common.data import SPLITS, Document, Split, document, write_documents
from deploy import writing

OWNED_DOMAINS: Final = ("code", "legal", "math")
PUBLIC_DOMAIN: Final = "public"
PUBLIC_BYTES: Final[Mapping[str, int]] = {"code": 40_000, "legal": 80_000, "math": 80_000}
"""About so much of each owned domain's text is public instead, but at most a quarter of it. Code is the least like any
other, so that experts tell it apart from less."""

CODE_BYTES: Final = 1_200_000
MATH_BYTES: Final = 1_000_000
AGREEMENT_BYTES: Final = 500_000
DOCSTRING_BYTES: Final = 1_000_000
DOCSTRING_PACKAGES: Final = ("networkx", "numpy", "sqlalchemy")
CODE_PACKAGES: Final = (
    *("asyncio", "concurrent", "ctypes", "email", "html", "http", "importlib", "json", "logging", "multiprocessing"),
    *("unittest", "urllib", "wsgiref", "xml", "xmlrpc", "zoneinfo"),
)
"""Packages that every Python has, large enough for held-out files to have relatives among those trained on."""
HELD_OUT_SHARES: Final[Mapping[Split, float]] = {"test": 0.10, "validation": 0.05}
"""Share of the bytes of each kind of text that is set aside, up to `MAX_HELD_OUT_BYTES`, for evaluation takes time."""
MAX_HELD_OUT_BYTES: Final = 80_000

_PIECE_CHARS = 4_000
_PROBLEMS_PER_DOCUMENT = 6
_LICENCE_NAME = re.compile(r"(?i)(licen[sc]e|copying|notice).*")
_LICENCE_SUFFIXES = {"", ".txt", ".md", ".rst", ".apache", ".bsd", ".mit"}
_LEFT_OUT_SOURCES = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "__pycache__"}
_CODE_BREAK = re.compile(r"\n(?=class |def |async def |@)")
_MARKUP = re.compile(r"(?m)^[ \t]*(>>>|\.\.|\||\+-|==)")
_TEXT_BREAK = re.compile(r"\n(?=\n)")


@dataclass(frozen=True, slots=True)
class Amount:
    """How much text there is: documents, and bytes of UTF-8."""

    num_documents: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Source:
    """What must stay in one split: a file, or one written document; `name` decides which."""

    name: str
    documents: tuple[Document, ...]

    @property
    def size_bytes(self) -> int:
        return amount(self.documents).size_bytes


def write_default(directory: Path, *, seed: int) -> dict[str, dict[Split, Amount]]:
    """Write `<domain>/<split>.jsonl.gz` for the four domains below `directory`; returns how much of each there is.

    Sizes and sources are the constants of this module. Domains are `public` and `OWNED_DOMAINS`.
    """
    corpora = build(seed=seed)
    for domain, splits in corpora.items():
        (directory / domain).mkdir(parents=True, exist_ok=True)
        for split, documents in splits.items():
            write_documents(directory / domain / f"{split}.jsonl.gz", documents)
    return {
        domain: {split: amount(documents) for split, documents in splits.items()} for domain, splits in corpora.items()
    }


def build(*, seed: int) -> dict[str, dict[Split, list[Document]]]:
    """The documents of every domain and split."""
    seen = _Shingles()
    kinds = (
        ("legal", _licences(seen, seed)),
        ("legal", _agreements(seed)),
        ("code", _code(seen, seed)),
        ("math", _word_problems(seed)),
        (PUBLIC_DOMAIN, _topics(seen)),
        (PUBLIC_DOMAIN, _docstrings(seen, seed)),
    )
    sizes = {
        domain: sum(s.size_bytes for kind, sources in kinds if kind == domain for s in sources) for domain, _ in kinds
    }
    corpora = {domain: {split: list[Document]() for split in SPLITS} for domain in (PUBLIC_DOMAIN, *OWNED_DOMAINS)}
    for domain, sources in kinds:
        share = min(PUBLIC_BYTES.get(domain, 0) / sizes[domain], 0.25)
        for split, documents in _split(sources, seed).items():
            given, kept = _give(documents, share=share, seed=seed)
            corpora[PUBLIC_DOMAIN][split] += given
            corpora[domain][split] += kept
    return corpora


def _give(documents: list[Document], *, share: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Part documents in two: `share` of their bytes, in the order of their hashes, and the others."""
    ordered = sorted(documents, key=lambda each: _fraction(f"{seed} public {each.digest}"))
    room, num_given = share * amount(ordered).size_bytes, 0
    while num_given < len(ordered) and (room := room - amount(ordered[num_given : num_given + 1]).size_bytes) >= 0:
        num_given += 1
    return ordered[:num_given], ordered[num_given:]


def amount(documents: Iterable[Document]) -> Amount:
    """Count documents and their bytes."""
    sizes = [len(document.text.encode()) for document in documents]
    return Amount(len(sizes), sum(sizes))


def _fraction(text: str) -> float:
    """A number in [0, 1) that only the text decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _split(sources: list[_Source], seed: int) -> dict[Split, list[Document]]:
    """Whole sources to splits, in the order of their hashes; a source too large to be set aside is trained on."""
    ordered = sorted(sources, key=lambda source: _fraction(f"{seed} split {source.name}"))
    total = sum(source.size_bytes for source in sources)
    room: dict[Split, float] = {
        split: min(share * total, MAX_HELD_OUT_BYTES) for split, share in HELD_OUT_SHARES.items()
    }
    documents: dict[Split, list[Document]] = {split: [] for split in SPLITS}
    for source in ordered:
        split: Split = next((split for split, left in room.items() if source.size_bytes <= left), "train")
        if split in room:
            room[split] -= source.size_bytes
        documents[split].extend(source.documents)
    return documents


# ---- Near duplicates -------------------------------------------------------------------------------------------------


class _Shingles:
    """Runs of `length` words seen so far; text that mostly repeats them is a near duplicate."""

    def __init__(self, length: int = 6) -> None:
        self._length = length
        self._seen = set[int]()

    def is_new(self, text: str) -> bool:
        """Whether most of the text's shingles are new; remembers them either way."""
        words = re.findall(r"\w+", text.lower())
        runs = zip(*(words[i:] for i in range(self._length)), strict=False)
        # Hashes of strings differ from process to process; only equality within this one matters here.
        shingles = {hash(run) for run in runs} or {hash(tuple(words))}
        fresh = shingles - self._seen
        self._seen |= fresh
        return 2 * len(fresh) > len(shingles)


def _source(name: str, pieces: Iterable[str], seen: _Shingles) -> _Source:
    return _Source(name, tuple(document(piece.strip("\n")) for piece in pieces if piece.strip() and seen.is_new(piece)))


def _pieces(text: str, at: re.Pattern[str]) -> Iterator[str]:
    """Cut a long text at natural places into pieces of about `_PIECE_CHARS`."""
    piece = ""
    for part in at.split(text):
        if piece and len(piece) + len(part) > _PIECE_CHARS:
            yield piece
            piece = ""
        piece = f"{piece}\n{part}" if piece else part
    yield piece


def _read(path: Path) -> str:
    """A text file, or nothing when it is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return ""
    return "" if "\0" in text else text


def _shuffled(paths: Iterable[tuple[str, Path]], seed: int) -> list[tuple[str, Path]]:
    return sorted(paths, key=lambda named: _fraction(f"{seed} order {named[0]}"))


# ---- Sources ---------------------------------------------------------------------------------------------------------


def _code(seen: _Shingles, seed: int) -> list[_Source]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [(str(p.relative_to(root)), p) for package in CODE_PACKAGES for p in (root / package).rglob("*.py")]
    owned = [(name, path) for name, path in files if not _LEFT_OUT_SOURCES & set(Path(name).parts)]
    return _until(
        CODE_BYTES,
        (_source(n, _pieces(_without_prose(_read(p)), _CODE_BREAK), seen) for n, p in _shuffled(owned, seed)),
    )


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """A module and its statements, breadth first; expressions, most of a tree, hold no definitions."""
    waiting = deque([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        children = ast.iter_child_nodes(node)
        waiting.extend(n for n in children if isinstance(n, ast.stmt | ast.excepthandler | ast.match_case))


def _without_prose(text: str) -> str:
    """Python source without docstrings and lines that are comments alone; blank runs are closed up."""
    prose = set[int]()
    for node in _statements(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node, clean=False) is not None and isinstance(first, ast.Expr):
                prose.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(text.split("\n"), start=1)
    kept = (line for number, line in lines if number not in prose and not line.lstrip().startswith("#"))
    return re.sub(r"\n\s*\n(\s*\n)+", "\n\n\n", "\n".join(kept))


def _docstrings(seen: _Shingles, seed: int) -> list[_Source]:
    files = []
    for package in DOCSTRING_PACKAGES:
        root = Path(str(importlib.metadata.distribution(package).locate_file(package)))
        files += [
            (f"{package}/{path.relative_to(root)}", path) for path in root.rglob("*.py") if path.stat().st_size > 4096
        ]
    kept = [(name, path) for name, path in files if not _LEFT_OUT_SOURCES & set(Path(name).parts)]
    return _until(DOCSTRING_BYTES, (_source(n, _long_docstrings(_read(p)), seen) for n, p in _shuffled(kept, seed)))


def _long_docstrings(text: str, *, least_chars: int = 400) -> Iterator[str]:
    for node in _statements(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            found = _english(ast.get_docstring(node) or "")
            if len(found) >= least_chars:
                yield from _pieces(found, _TEXT_BREAK)


def _topics(seen: _Shingles) -> list[_Source]:
    topics: Mapping[str, str] = pydoc_data.topics.topics
    named = sorted((name, _english(text)) for name, text in topics.items())
    return [_source(f"topic {name}", _pieces(text, _TEXT_BREAK), seen) for name, text in named]


def _english(text: str, *, least_words: int = 12, least_letters: float = 0.9) -> str:
    """The paragraphs that are English: no examples, grammar, tables or directives."""
    return "\n\n".join(
        paragraph
        for paragraph in re.split(r"\n[ \t]*\n", text)
        if not _MARKUP.search(paragraph)
        and len(words := paragraph.split()) >= least_words
        and sum(map(str.isalpha, "".join(words))) + len(words) - 1 >= least_letters * len(" ".join(words))
    )


def _licences(seen: _Shingles, seed: int) -> list[_Source]:
    files = dict(_licence_files())
    return [
        _source(name, _new_paragraphs(_read(path), seen), _Shingles()) for name, path in _shuffled(files.items(), seed)
    ]


def _licence_files() -> Iterator[tuple[str, Path]]:
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or []:
            if _LICENCE_NAME.fullmatch(file.name) and file.suffix.lower() in _LICENCE_SUFFIXES:
                yield f"{distribution.name}/{file}", Path(str(distribution.locate_file(file)))
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("LICENSE*"):
        if path.is_file() and path.suffix.lower() in _LICENCE_SUFFIXES:
            yield f"stdlib/{path.relative_to(root)}", path


def _new_paragraphs(text: str, seen: _Shingles) -> Iterator[str]:
    """The paragraphs that no licence before had, in pieces: licences repeat each other, often word for word."""
    paragraphs = [p for p in re.split(r"\n[ \t]*\n", text) if len(p.split()) >= 8 and seen.is_new(p)]
    yield from (piece for piece in _pieces("\n\n".join(paragraphs), _TEXT_BREAK) if len(piece) > 200)


def _agreements(seed: int) -> list[_Source]:
    random = Random(f"agreements {seed}")  # noqa: S311
    return _until(AGREEMENT_BYTES, (_written(f"agreement {i}", writing.agreement(random)) for i in range(10_000)))


def _word_problems(seed: int) -> list[_Source]:
    """Worksheets of a few problems each; no problem is set twice."""
    random, seen = Random(f"word problems {seed}"), set[str]()  # noqa: S311
    return _until(MATH_BYTES, (_written(f"worksheet {i}", _worksheet(random, seen)) for i in range(10_000)))


def _worksheet(random: Random, seen: set[str]) -> str:
    problems = list[str]()
    while len(problems) < _PROBLEMS_PER_DOCUMENT:
        problem, answer = writing.word_problem(random)
        if problem not in seen:
            seen.add(problem)
            problems.append(f"{problem}\n{answer}")
    return "\n\n".join(problems)


def _written(name: str, text: str) -> _Source:
    return _Source(name, (document(text),))


def _until(size_bytes: int, sources: Iterable[_Source]) -> list[_Source]:
    """Take sources until they hold `size_bytes`."""
    taken, total = list[_Source](), 0
    for source in sources:
        if source.documents:
            taken.append(source)
            total += source.size_bytes
            if total >= size_bytes:
                break
    return taken
