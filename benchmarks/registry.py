"""How fast does the registry append, prove and verify, and how fast is a whole audit, at a million entries?

    python -m benchmarks.registry --entries 100000            # the last line is one JSON object
    python -m benchmarks.registry --entries 100000 --postgresql     # in a PostgreSQL server of its own

Owners join, consent, contribute and revoke over and over, through the coordinator's own registry: 64 a commit to
fill the log, then one at a time, each on disk and answered with its receipt before the next. Releases of tiny models
are made, logged and published for real, and the audit is the command that auditors run. Beside it stands a limit that
was measured in the same run: rows of the same size in the same kind of database, one commit each, with the two
signatures that an append cannot do without. Every stage is a process of its own, so that its memory is its own.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil

from benchmarks.machine import describe
from common.trust.note import Note, SigningKey
from common.trust.root import TrustedRoot
from common.trust.rules import owner_key_name
from common.trust.statements import (
    ConsentExpert,
    ConsentGrant,
    ConsentRevoke,
    ContributedFile,
    ExpertContribute,
    LineScope,
    OwnerEnrol,
    Statement,
    Terms,
    format_time,
    new_record_id,
    sign_statement,
)
from common.trust.verify import check_receipt
from coordinator.config import CoordinatorSettings
from coordinator.home import Coordinator, create, open_home

FEDERATION: Final = "bench.example"
TOGETHER: Final = 64
"""Statements in one commit while the log is filled, as many as callers that wait at once."""
SINGLE: Final = 3000
PROOFS: Final = 2000
OWNERS_A_RELEASE: Final = 10
TERMS: Final = Terms(uri="https://bench.example/terms", digest="sha256:" + "0" * 64)


class Party:
    """An owner that says the next statement of its life each time it is asked."""

    def __init__(self, number: int, *, root: TrustedRoot, base_digest: str, files: dict[str, ContributedFile]) -> None:
        self.name, self.line = f"owner-{number}", f"line-{number // OWNERS_A_RELEASE}"
        self._root, self._base, self._files = root, base_digest, files
        self._key = SigningKey.generate(owner_key_name(FEDERATION, self.name))
        self._prev: str | None = None
        self._seq, self._grant = 0, ""

    def joins(self) -> bytes:
        """Its first statement."""
        return self._say(OwnerEnrol, public_key=str(self._key.verifier))

    def next(self) -> bytes:
        """A consent, an expert under it, its revocation, a consent, and so on."""
        match self._seq % 3:
            case 1:
                note = self._say(ConsentGrant, **self._consent())
                self._grant = self._last.record_id
                return note
            case 2:
                return self._say(ExpertContribute, grant_id=self._grant, files=self._files, tokens_seen=10**9,
                                 training_config_digest=self._base)  # fmt: skip
            case _:
                return self._say(ConsentRevoke, grant_id=self._grant, effect="future", deadline_s=0)

    @property
    def is_in(self) -> bool:
        """Whether its latest consent stands, with an expert under it."""
        return self._seq > 1 and self._seq % 3 == 0

    def _consent(self) -> dict[str, object]:
        now = datetime.now(UTC)
        return {
            "expert": ConsentExpert(name="expert", base_digest=self._base, kind="full"),
            "scope": LineScope(line=self.line),
            "purposes": ["research"],
            "terms": TERMS,
            "not_before": format_time(now - timedelta(hours=1)),
            "not_after": format_time(now + timedelta(days=365)),
        }

    def _say(self, kind: type[Statement], **fields: object) -> bytes:
        now = datetime.now(UTC)
        self._last = kind(federation=FEDERATION, origin=self._root.origin, party=self.name,
                          key_id=self._key.verifier.key_id, record_id=new_record_id(now), seq=self._seq,
                          prev=self._prev, issued_at=format_time(now), **fields)  # fmt: skip
        self._seq, self._prev = self._seq + 1, self._last.digest
        return sign_statement(self._last, self._key)


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    work: Path
    entries: int
    owners: int
    releases: int
    database: str | None

    @property
    def home(self) -> Path:
        """The coordinator's."""
        return self.work / "coordinator"


# Stages, each a process


def fill(plan: Plan) -> dict[str, Any]:
    """Owners join and speak, many at a time, until the log is nearly full; then one at a time."""
    with open_home(plan.home) as coordinator:
        registry, parties = coordinator.registry, _parties(plan, coordinator)
        for party in parties:
            registry.admit(party.joins(), claim=lambda connection: None)
        last = [party for party in parties for _ in range(2)]
        many = max(0, plan.entries - registry.size() - SINGLE - len(last) - plan.releases)
        started = time.perf_counter()
        for begin in range(0, many, TOGETHER):
            speaking = (parties[number % len(parties)] for number in range(begin, min(many, begin + TOGETHER)))
            registry.record_together([(party.next(), party.name) for party in speaking], arrived=True)
        together_s = time.perf_counter() - started
        limit = _limit(plan, coordinator)
        seconds = []
        for turn in range(SINGLE):
            party = parties[turn % len(parties)]
            note = party.next()
            begun = time.perf_counter()
            registry.record(note, caller=party.name, arrived=True)
            seconds.append(time.perf_counter() - begun)
        for party in last:
            if not party.is_in:
                registry.record(party.next(), caller=party.name, arrived=True)
    return {
        "appends_per_s": round(SINGLE / sum(seconds)),
        "append_p99_ms": _p99(seconds),
        "limit_per_s": limit,
        "ratio_to_limit": round(SINGLE / sum(seconds) / limit, 2),
        "appends_together_per_s": round(many / together_s) if many else None,
        "append_peak_rss_mb": _own_peak_mb(),
    }


_LIMIT_TABLE: Final = "CREATE TABLE bench_limit (note BYTEA)"


def _limit(plan: Plan, coordinator: Coordinator) -> int:
    """Durable commits a second of as many bytes, with a signature checked and one made for each, and nothing else."""
    from sqlalchemy import text

    key, entry = SigningKey.generate("limit"), coordinator.log.entry(coordinator.registry.size() - 1)
    note = Note.parse(sign_statement_like(entry, key))
    store = coordinator.store
    if plan.database is None:  # in PostgreSQL the coordinators' role makes no tables; there it is made before
        with store.transaction() as connection:
            connection.execute(text(_LIMIT_TABLE))
    statement = text("INSERT INTO bench_limit VALUES (:note)")
    started = time.perf_counter()
    for _ in range(SINGLE // 3):
        note.verify(key.verifier)
        key.sign(note.text)
        with store.transaction() as connection:
            connection.execute(statement, {"note": entry})
    return round(SINGLE // 3 / (time.perf_counter() - started))


def sign_statement_like(entry: bytes, key: SigningKey) -> bytes:
    """The text of an entry, signed by another key."""
    from common.trust.note import sign

    return bytes(sign(Note.parse(entry).text, key))


def prove(plan: Plan) -> dict[str, Any]:
    """Receipts of entries anywhere in the log, and their verification."""
    with open_home(plan.home) as coordinator:
        size, random, root = coordinator.registry.size(), Random(0), coordinator.registry.root
        proofs, checks = [], []
        for index in (random.randrange(size) for _ in range(PROOFS)):
            entry, begun = coordinator.log.entry(index), time.perf_counter()
            receipt = coordinator.log.receipt(index)
            proved = time.perf_counter()
            check_receipt(root, receipt, entry=entry)
            proofs.append(proved - begun)
            checks.append(time.perf_counter() - proved)
    return {
        "proof_ms": _ms(statistics.median(proofs)),
        "proof_p99_ms": _p99(proofs),
        "verify_ms": _ms(statistics.median(checks)),
    }


def models(plan: Plan) -> dict[str, Any]:
    """A public checkpoint and an expert an owner, all tiny, where the coordinator has them after intake."""
    from common.model.expert import EXPERT_NAME
    from coordinator.releases import publish_base
    from tests.federation import expert_weights, write_base, write_expert

    with open_home(plan.home) as coordinator:
        publish_base(coordinator, write_base(plan.work / "base"))
        found = {}
        for number in range(plan.owners):
            file = write_expert(plan.work / "expert", expert_weights(number)) / EXPERT_NAME
            data = file.read_bytes()
            digest = f"sha256:{sha256(data).hexdigest()}"
            file.replace(coordinator.publication.object_path(digest))
            found[number] = {"digest": digest, "size": len(data)}
    (plan.work / "experts.json").write_text(json.dumps(found))
    return {}


def release(plan: Plan) -> dict[str, Any]:
    """As many releases as asked for, each with the experts of one line's owners."""
    from coordinator.releases import make_release

    started = time.perf_counter()
    with open_home(plan.home) as coordinator:
        lines = -(-plan.owners // OWNERS_A_RELEASE)
        for number in range(plan.releases):
            settings = coordinator.settings.model_copy(update={"line": f"line-{number % lines}"})
            made = make_release(replace(coordinator, settings=settings), evaluate=None)
            assert made.owners, "a release with nobody in it shows nothing"
    return {"releases_s": round(time.perf_counter() - started, 1)}


STAGES: Final = {stage.__name__: stage for stage in (models, fill, release, prove)}


def _parties(plan: Plan, coordinator: Coordinator) -> list[Party]:
    experts = json.loads((plan.work / "experts.json").read_text())
    history = coordinator.registry.head()
    base = next(iter(history.bases))
    return [
        Party(number, root=history.root, base_digest=base,
              files={"expert.safetensors": ContributedFile(**experts[str(number)])})
        for number in range(plan.owners)
    ]  # fmt: skip


# The audit, and what orchestrates


def audit(plan: Plan) -> dict[str, Any]:
    """The auditor's own command over everything that is published, with the memory of all its processes."""
    command = [sys.executable, "-m", "concord", "audit", "verify", str(plan.home / "public"), "--json"]
    started, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _tree_mb(watched))
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        assert process.stdout is not None
        assert process.returncode == 0, process.stdout.read().decode()
    return {"audit_s": round(time.perf_counter() - started, 2), "audit_peak_mb": round(peak)}


def _tree_mb(process: psutil.Process) -> float:
    """Memory of a process and its children, what they share counted once."""
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
    return total / 2**20


def _own_peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _p99(seconds: list[float]) -> float:
    return _ms(sorted(seconds)[int(0.99 * len(seconds))])


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        shutil.rmtree(keep, ignore_errors=True)
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="concord-registry-") as folder:
        yield Path(folder)


@contextmanager
def _database(is_asked: bool) -> Iterator[str | None]:
    """The coordinators' URL of a migrated, empty database in a server that is gone afterwards."""
    if not is_asked:
        yield None
        return
    import psycopg

    from coordinator import postgresql
    from tests.postgres import ADMIN, WRITER, running_server

    with running_server() as server:
        server.new_database("bench")
        postgresql.migrate(server.url(ADMIN, "bench"), writer=WRITER)
        with psycopg.connect(host=str(server.socket), user=ADMIN, dbname="bench") as connection:
            connection.execute(_LIMIT_TABLE)
            connection.execute(f"GRANT INSERT ON bench_limit TO {WRITER}")
        yield server.url(WRITER, "bench")


def _run_stage(plan: Plan, stage: str) -> dict[str, Any]:
    arguments = {**vars(plan), "work": str(plan.work)}
    code = f"import sys; from benchmarks import registry; registry.run_stage({stage!r}, sys.argv[1])"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return dict(json.loads(found.stdout.splitlines()[-1]))


def run_stage(name: str, arguments: str) -> None:
    """One stage, in this process."""
    fields = json.loads(arguments)
    print(json.dumps(STAGES[name](Plan(**{**fields, "work": Path(fields["work"])}))))


def main() -> None:
    """Run all stages and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--owners", type=int, help="by default one for 100 entries, at most 1,000")
    parser.add_argument("--releases", type=int, help="by default one for 500 entries, at most 200")
    parser.add_argument("--postgresql", action="store_true", help="in a server of its own; SQLite by default")
    parser.add_argument("--work", type=Path, help="where everything is kept afterwards")
    asked = parser.parse_args()
    owners = asked.owners or min(1000, max(16, asked.entries // 100))
    releases = asked.releases if asked.releases is not None else min(200, asked.entries // 500)
    with _folder(asked.work) as work, _database(asked.postgresql) as database:
        plan = Plan(work, asked.entries, owners, releases, database)
        settings = CoordinatorSettings(federation=FEDERATION, origin=f"{FEDERATION}/log", database=database)
        create(plan.home, settings)
        figures: dict[str, Any] = {}
        for stage in STAGES:
            print(stage, flush=True)
            figures |= _run_stage(plan, stage)
        print("audit", flush=True)
        figures |= audit(plan)
        backend = "postgresql" if asked.postgresql else "sqlite"
    print(
        json.dumps(
            {
                "benchmark": "registry",
                "machine": describe(),
                "entries": asked.entries,
                "owners": owners,
                "releases": releases,
                "backend": backend,
                **figures,
                "peak_rss_mb": max(figures["append_peak_rss_mb"], figures["audit_peak_mb"]),
            }
        )
    )


if __name__ == "__main__":
    main()
