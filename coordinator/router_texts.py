"""The texts that router rows are trained on: `python -m coordinator.router_texts JOB.json`.

Documents that owners chose are looked up in the campaign's pool by digest; what is not there is dropped. One in four of
each owner's is held out, beside public validation text, for telling which rows are best (arXiv 2507.07024, section
3.3.3, trains on the union of what owners chose and public text). Paragraphs of both are also put together to documents
that change their subject on the way (`common.mixed`): from whole documents alone, rows do not learn to follow that. All
of it is public text.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field

from common import data, job
from common.data import Corpus, Document
from common.errors import NotFoundError
from common.files import taking_turns
from common.mixed import mixed_rounds
from coordinator.router_sources import MIXED, PROXIES, PUBLIC

RECORD_NAME: Final = "texts.json"
_HELD_OUT: Final = 4
"""One in so many of an owner's documents."""
_MIXED_ROUNDS: Final = 8


class RouterTexts(BaseModel, frozen=True, extra="forbid"):
    """The job's JSON file."""

    pool: Path
    public: Path | None = None
    """Public text to mix in; the pool by default."""
    chosen: dict[str, list[str]] = Field(min_length=1)
    """By owner: digests of documents of the pool, the likeliest first."""
    max_documents: int | None = Field(default=None, ge=1)
    held_bytes: int = Field(ge=1)
    """Held-out text in all, at most."""
    held_alike: bool = True
    """Whether each owner's held-out documents count as much as every other's, however few they are; else as much as
    there is of them, and public text as much as all of them."""
    output: Path


def run(config: RouterTexts) -> dict[str, object]:
    """Write both corpora, once; returns how many documents of each owner are in them and were not in the pool.

    Raises:
        MalformedError: a text cannot be read or has too few documents.
        NotFoundError: nothing that was chosen is in the pool.
    """
    config.output.parent.mkdir(parents=True, exist_ok=True)
    with taking_turns(config.output.with_name(f"{config.output.name}.lock")):
        if not config.output.exists():
            _write(config)
    record: dict[str, object] = json.loads((config.output / RECORD_NAME).read_text())
    return record


def _write(config: RouterTexts) -> None:
    pool = data.read_corpus(config.pool)
    public = pool if config.public is None else data.read_corpus(config.public)
    known = {document.digest: document for document in pool.train}
    found = {owner: [known[name] for name in ids if name in known] for owner, ids in config.chosen.items()}
    used = {owner: documents[: config.max_documents] for owner, documents in found.items()}
    if not any(used.values()):
        raise NotFoundError(
            f"none of the {sum(map(len, config.chosen.values()))} documents that owners chose is in the pool's train "
            "split; ask anew with the pool as it is: concord coordinator campaign define select-proxy"
        )
    partial = config.output.with_name(f"{config.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    held = {owner: documents[_HELD_OUT - 1 :: _HELD_OUT] for owner, documents in used.items()}
    apart = {document.digest for documents in held.values() for document in documents}
    taught = {owner: [d for d in documents if d.digest not in apart] for owner, documents in used.items()}
    left = [document for document in public.train if document.digest not in apart]
    mixed, mixed_held = (
        mixed_rounds({**owners, "": documents}, rounds=_MIXED_ROUNDS, seed=0)
        for owners, documents in ((taught, left), (held, public.validation))
    )
    proxies_held = list(held.values())
    if not config.held_alike:
        proxies_held = [[document for documents in proxies_held for document in documents]]
    groups = [list(public.validation), *filter(None, proxies_held), *filter(None, [mixed_held])]
    validation = tuple(_held(groups, config.held_bytes))
    proxies = {d.digest: d for documents in taught.values() for d in documents}
    _keep(partial / PROXIES, Corpus(tuple(proxies.values()), validation, public.test[:1]))
    _keep(partial / PUBLIC, Corpus(tuple(left), public.validation, public.test))
    if mixed:
        _keep(partial / MIXED, Corpus(tuple(mixed), validation, public.test[:1]))
    counts = {
        owner: {"documents": len(used[owner]), "missing": len(ids) - len(found[owner])}
        for owner, ids in config.chosen.items()
    }
    (partial / RECORD_NAME).write_text(json.dumps({"task": "texts", "owners": counts, MIXED: len(mixed)}))
    partial.rename(config.output)


def _held(groups: Sequence[Sequence[Document]], max_bytes: int) -> list[Document]:
    """As much of each group as of every other."""
    sizes = [sum(len(document.text.encode()) for document in documents) for documents in groups]
    room = min(max_bytes // len(groups), *sizes)
    return [each for documents in groups for each in data.sample(documents, room)]


def _keep(folder: Path, corpus: Corpus) -> None:
    folder.mkdir(parents=True)
    for split in data.SPLITS:
        data.write_documents(folder / f"{split}.jsonl", corpus.split(split))


if __name__ == "__main__":
    sys.exit(job.run(sys.argv[1:], RouterTexts, run))
