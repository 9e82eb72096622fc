"""A PostgreSQL server of our own for tests: real, on a Unix socket alone, gone afterwards."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

ADMIN, WRITER = "concord_admin", "concord_writer"


@dataclass(frozen=True)
class Server:
    """A running server."""

    socket: Path

    def url(self, user: str, database: str) -> str:
        """How `user` reaches a database."""
        return f"postgresql://{user}@/{database}?host={self.socket}"

    def new_database(self, name: str) -> None:
        """An empty database that the administrator owns, and the coordinators' role."""
        with psycopg.connect(host=str(self.socket), user=ADMIN, dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER {ADMIN}")
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [WRITER]).fetchone():
                connection.execute(f"CREATE ROLE {WRITER} LOGIN")


def is_installed() -> bool:
    """Whether this machine has PostgreSQL's server."""
    return _find("initdb") is not None


def _find(name: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(places[-1]) if places else None)


def _program(name: str) -> str:
    found = _find(name)
    assert found is not None, f"{name} is not there"
    return found


@contextmanager
def running_server() -> Iterator[Server]:
    """A server while the block runs. It refuses to run as root, so then it runs as `postgres`."""
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="concord-pg-", dir="/tmp"))
    try:
        if user:
            shutil.chown(folder, user, pwd.getpwnam(user).pw_gid)
        cluster = ["-D", str(folder / "data")]
        init = [_program("initdb"), *cluster, "-U", ADMIN, "-A", "trust", "--no-sync"]
        subprocess.run(init, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)
        options = f"-k {folder} -c listen_addresses='' -c max_connections=60"
        start = [_program("pg_ctl"), *cluster, "-w", "-l", str(folder / "log"), "-o", options, "start"]
        subprocess.run(start, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)
        try:
            yield Server(folder)
        finally:
            stop = [_program("pg_ctl"), *cluster, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)
    finally:
        shutil.rmtree(folder)
