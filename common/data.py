"""Documents on disk and their splits.

Reads `.jsonl`, `.jsonl.gz` (one `{"text": ...}` a line, other fields ignored) and `.txt` (documents separated by two or
more blank lines), or a folder of them. A corpus is a folder with the splits train, validation and test, as files or
subfolders; splits that are missing are set aside from the rest by document hash, so that a document's split depends on
its text alone.
"""

import gzip
import hashlib
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast

from common.errors import MalformedError, TooLargeError

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
SUFFIXES: Final = (".jsonl.gz", ".jsonl", ".txt")
HELD_OUT_SHARE: Final = 0.05
"""Share of documents set aside for each of validation and test when a corpus comes without them."""

_DOCUMENT_BREAK = re.compile(r"\n(?:[ \t]*\n){2,}")
_REMEDY = "give a .jsonl, .jsonl.gz or .txt file, or a folder of such files"


@dataclass(frozen=True, slots=True)
class Limits:
    """What reading refuses: sizes in bytes of decompressed UTF-8 text, so a small archive cannot fill the memory."""

    document_bytes: int = 64 * 2**20
    total_bytes: int = 4 * 2**30


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Document:
    """One document: `id` as the source gives it, or the first 16 hex digits of the text's SHA-256."""

    id: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text without surrounding white space: equal digests are duplicates."""
        return hashlib.sha256(self.text.strip().encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Corpus:
    """A domain's documents; no text is twice in a corpus."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]

    def split(self, name: Split) -> tuple[Document, ...]:
        """The documents of one split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


# ---- Documents -------------------------------------------------------------------------------------------------------


def read_documents(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> list[Document]:
    """All documents of a file, or of a folder's files in order of their paths; duplicates and empty ones are dropped.

    Raises:
        MalformedError: nothing there, not text, a broken line (the message has file and line), or no text at all.
        TooLargeError: a document, or all of them, exceed `limits`.
    """
    files = _document_files(path)
    total, seen, documents = 0, set[str](), list[Document]()
    for file in files:
        for document in _read_file(file, limits):
            total += len(document.text.encode())
            if total > limits.total_bytes:
                raise TooLargeError(
                    f"{path}: more than {limits.total_bytes:,} bytes of text; split it into smaller sets"
                )
            if document.digest not in seen:
                seen.add(document.digest)
                documents.append(document)
    if not documents:
        raise MalformedError(f"{path}: no text in {len(files)} file(s); every document is empty")
    return documents


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write documents as JSON lines, gzip'd when the name ends in `.gz`; the same documents give the same bytes."""
    lines = "".join(json.dumps({"id": d.id, "text": d.text}, ensure_ascii=False) + "\n" for d in documents).encode()
    path.write_bytes(gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines)


def sample(documents: Iterable[Document], max_bytes: int) -> list[Document]:
    """At most so many bytes of UTF-8 text, of documents in the order of their hashes; the last one is cut."""
    chosen, room = [], max_bytes
    for document in sorted(documents, key=lambda document: document.digest):
        text = document.text.encode()[:room].decode(errors="ignore")
        if not text:
            break
        chosen.append(Document(document.id, text))
        room -= len(text.encode())
    return chosen


def document(text: str) -> Document:
    """A document named by its text."""
    return Document(hashlib.sha256(text.encode()).hexdigest()[:16], text)


def _document_files(path: Path) -> list[Path]:
    if not path.exists():
        raise MalformedError(f"{path}: no such file or folder; {_REMEDY}")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise MalformedError(f"{path}: not a kind of file that can be read; {_REMEDY}")
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path))
    files = [file for file in found if file.name.endswith(SUFFIXES)]
    if not files:
        others = f"only {found[0].name} and {len(found) - 1} more" if found else "it is empty"
        raise MalformedError(f"{path}: no documents in this folder ({others}); {_REMEDY}")
    if len(files) < len(found):
        logger.warning("%s: %d file(s) of other kinds are not read", path, len(found) - len(files))
    return files


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _read_file(file: Path, limits: Limits) -> Iterator[Document]:
    if file.name.endswith(".txt"):
        yield from _read_text(file, limits)
        return
    try:
        with _open(file) as stream:
            yield from _read_lines(file, stream, limits)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise MalformedError(f"{file}: a broken gzip file ({error}); compress it again") from error


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if file.name.endswith(".gz") else file.open("rb")


def _read_text(file: Path, limits: Limits) -> Iterator[Document]:
    if file.stat().st_size > limits.total_bytes:
        raise TooLargeError(f"{file}: more than {limits.total_bytes:,} bytes of text; split it into smaller sets")
    text = _decode(file.read_bytes(), str(file)).replace("\r\n", "\n")
    for part in _DOCUMENT_BREAK.split(text):
        if part.strip():
            if len(part.encode()) > limits.document_bytes:
                raise TooLargeError(f"{file}: a document over {limits.document_bytes:,} bytes; put blank lines between")
            yield document(part.strip("\n"))


def _read_lines(file: Path, stream: BinaryIO, limits: Limits) -> Iterator[Document]:
    number = 0
    while line := stream.readline(limits.document_bytes + 1):
        number += 1
        where = f"{file}, line {number}"
        if len(line) > limits.document_bytes:
            raise TooLargeError(f"{where}: longer than {limits.document_bytes:,} bytes; split the document")
        if line.strip() and (found := _parse_line(line, where)).text.strip():
            yield found


def _parse_line(line: bytes, where: str) -> Document:
    try:
        fields = json.loads(_decode(line, where))
    except (json.JSONDecodeError, RecursionError) as error:
        raise MalformedError(f"{where}: not JSON ({error}); each line is one object with a text") from error
    if not isinstance(fields, dict) or not isinstance(text := fields.get("text"), str):
        raise MalformedError(f'{where}: no "text" of characters; each line is {{"text": "..."}}')
    name = fields.get("id", "")
    if not isinstance(name, str | int):
        raise MalformedError(f'{where}: "id" is {name!r:.40}; leave it out, or give a string or a whole number')
    _check_characters(text, where)
    return Document(str(name), text) if name != "" else document(text)


def _decode(data: bytes, where: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedError(f"{where}: not UTF-8 text at byte {error.start:,}; convert it to UTF-8") from error
    _check_characters(text, where)
    return text


def _check_characters(text: str, where: str) -> None:
    if "\0" in text:
        raise MalformedError(f"{where}: a NUL character, so this looks like a binary file; {_REMEDY}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{where}: half a surrogate pair at character {error.start:,}; repair it") from error


# ---- Splits ----------------------------------------------------------------------------------------------------------


def read_corpus(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> Corpus:
    """Train, validation and test of a folder or file; missing splits are set aside from train by document hash.

    A text that is also in validation or test is dropped from train. Raises as `read_documents`, and MalformedError when
    there are too few documents to set any aside.
    """
    given = {name: place for name in SPLITS if (place := _split_place(path, name)) is not None}
    if given and "train" not in given:
        raise MalformedError(f"{path}: {' and '.join(sorted(given))} but no train; add train.jsonl or a folder train")
    parts = {name: read_documents(place, limits=limits) for name, place in given.items()}
    if not given:
        parts["train"] = read_documents(path, limits=limits)
    seen = set[str]()
    for name in ("test", "validation"):
        held = _without(parts[name], seen) if name in parts else _set_aside(name, _without(parts["train"], seen), path)
        parts[name] = held
        seen |= {document.digest for document in held}
    parts["train"] = _without(parts["train"], seen)
    if empty := [name for name in SPLITS if not parts[name]]:
        raise MalformedError(f"{path}: no text is left for {empty[0]} without duplicates; add more documents")
    return Corpus(train=tuple(parts["train"]), validation=tuple(parts["validation"]), test=tuple(parts["test"]))


def read_split(path: Path, name: Split, *, limits: Limits = DEFAULT_LIMITS) -> tuple[Document, ...]:
    """One split of a corpus; raises as `read_corpus`."""
    return read_corpus(path, limits=limits).split(name)


def set_public_aside(documents: Iterable[Document], *, share: float) -> tuple[list[Document], list[Document]]:
    """Documents as (public, own): about `share` of them, by the hash of their text, count as public.

    Real web text holds a little of everything. A document falls on the same side wherever it is found.
    """
    return by_hash("public", documents, share)


def set_unseen_aside(documents: Iterable[Document], *, share: float) -> tuple[list[Document], list[Document]]:
    """Public documents as (unseen, seen): about `share` of them, by the hash of their text, are not pretrained on.

    A model knows text that it was trained on better than other text of that kind. Where the public model is compared
    with an expert (negatives, proxies, router training) that is an advantage that it has nowhere else.
    """
    return by_hash("unseen", documents, share)


def by_hash(salt: str, documents: Iterable[Document], share: float) -> tuple[list[Document], list[Document]]:
    """About `share` of the documents, by a hash of `salt` and their text, and the others."""
    threshold = int(share * 16**8)
    chosen, others = list[Document](), list[Document]()
    for each in documents:
        key = int(hashlib.sha256(f"{salt} {each.digest}".encode()).hexdigest()[:8], 16)
        (chosen if key < threshold else others).append(each)
    return chosen, others


def _split_place(path: Path, name: Split) -> Path | None:
    places = [place for suffix in (*SUFFIXES, "") if (place := path / f"{name}{suffix}").exists()]
    if len(places) > 1:
        raise MalformedError(f"{path}: {places[0].name} and {places[1].name} are both there; keep one")
    return places[0] if places else None


def _without(documents: Iterable[Document], seen: set[str]) -> list[Document]:
    return [document for document in documents if document.digest not in seen]


def _set_aside(name: Split, documents: list[Document], path: Path) -> list[Document]:
    """About `HELD_OUT_SHARE` of the documents and at least one: those with the smallest salted hashes."""
    if len(documents) < 2:
        raise MalformedError(
            f"{path}: too few documents to set some aside for {name}; 3 or more are needed in all "
            "(in a .txt file, two or more blank lines stand between documents)"
        )
    hashed = ((hashlib.sha256(f"{name} {d.digest}".encode()).hexdigest(), d) for d in documents)
    ordered = sorted(hashed, key=lambda pair: pair[0])
    threshold = format(int(HELD_OUT_SHARE * 16**8), "08x")
    return [d for key, d in ordered if key[:8] < threshold] or [ordered[0][1]]
