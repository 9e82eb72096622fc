"""Evaluating a model before it is released: bits per byte and routing shares by domain, kept beside its weights."""

import json
from pathlib import Path

from common.console import Reporter, job_progress
from common.errors import NotFoundError
from common.files import write_atomic
from common.jobs import run_job
from common.model.expert import EVALUATION_NAME, read_config
from coordinator.releases import Evaluate


def domains_in(folder: Path) -> dict[str, list[Path]]:
    """The held-out files of every domain in a folder: `<domain>/test.jsonl` and the like, or `<domain>/test/`.

    Raises:
        NotFoundError: there is none.
    """
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    domains = {path.name: sorted([*path.glob("test.*"), *path.glob("test/*")]) for path in subfolders}
    if not domains or not all(domains.values()):
        empty = ", ".join(name for name, files in domains.items() if not files) or "it"
        raise NotFoundError(
            f"{folder}: {empty} has no held-out text; put test.jsonl or test.txt into a folder a domain"
        )
    return domains


def evaluation_job(folder: Path, *, threads: int, max_bytes: int | None, reporter: Reporter) -> Evaluate:
    """Evaluates a release on the `test` split of every domain in `folder`, in a subprocess."""
    domains = domains_in(folder)

    def evaluate(directory: Path) -> None:
        output = directory.with_name(f"{directory.name}.evaluation.json")
        job = {
            "models": {directory.name: directory},
            "domains": domains,
            "sequence_length": read_config(directory).max_position_embeddings,
            "threads": threads,
            "max_bytes": max_bytes,
            "output": output,
        }
        run_job(
            "common.evaluate",
            job,
            config_path=directory.with_name(f"{directory.name}.job.json"),
            on_event=job_progress(reporter, f"evaluating {directory.name}"),
        )
        found = json.loads(output.read_text())["models"][directory.name]
        write_atomic(directory / EVALUATION_NAME, json.dumps(found, indent=2, sort_keys=True).encode() + b"\n")
        output.unlink()

    return evaluate
