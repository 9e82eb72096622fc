"""Flower as an engine for campaigns: what both ends must agree on, without importing it (that takes over a second).

One version of it is known to work as these adapters use it; any other is refused. Its processes get an environment of
their own: no telemetry, no look for updates, nothing installed while they run, and a home that is ours.

The app is a shim over the installed package: it holds no code, only the names of ours. It is stored, not compressed,
so that every machine with this version of Concord makes the same bytes and knows their digest.
"""

import hashlib
import os
import sys
import zipfile
from collections.abc import Mapping
from importlib import metadata
from io import BytesIO
from pathlib import Path
from threading import RLock
from typing import Final

from common.errors import ConflictError, NotFoundError

VERSION: Final = "1.41.0"
DAEMON, DAEMON_AUTHORITY, DAEMON_WORD = "CONCORD_DAEMON", "CONCORD_DAEMON_AUTHORITY", "CONCORD_DAEMON_WORD"
"""By these names an owner's app finds its daemon, the file of whom to trust, and the word that it is known by."""
IMPORTING: Final = RLock()
"""Held while Flower is imported: its modules import each other in circles, which two threads at once get caught in."""
EXCHANGE: Final = "/exchange"
"""Where a daemon takes messages."""
_INSTALL: Final = "pip install 'concord-moe[flower]'"
_FAB_DATE: Final = (1980, 1, 1, 0, 0, 0)
_QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_PROJECT: Final = f"""\
[project]
name = "concord"
version = "1.0.0"
description = "Concord's campaigns, carried by Flower: the code is that of the installed package"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={VERSION},<1.42"]

[tool.flwr.app]
publisher = "concord"
fab-format-version = 1
flwr-version-target = "{VERSION}"

[tool.flwr.app.components]
serverapp = "coordinator.flower_server:app"
clientapp = "owner_client.flower_client:app"

[tool.flwr.app.config]
"""
_LICENSE: Final = "Apache-2.0; see https://www.apache.org/licenses/LICENSE-2.0\n"


def check_version() -> None:
    """Raise unless the one version of Flower is installed that these adapters were made for.

    Raises:
        NotFoundError: it is not installed.
        ConflictError: another version is.
    """
    try:
        found = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        raise NotFoundError(f"Flower is enabled and not installed; {_INSTALL}, or leave it off") from None
    if found != VERSION:
        raise ConflictError(f"flwr {found} is installed; campaigns run over flwr {VERSION} and no other: {_INSTALL}")


def environment(home: Path, also: Mapping[str, str] | None = None) -> dict[str, str]:
    """What Flower's processes are given; `home` is where they may write. They start each other by name."""
    programs = str(Path(sys.executable).parent)
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, **_QUIET, "FLWR_HOME": str(home), "PATH": path, **(also or {})}


def program(name: str) -> str:
    """One of Flower's commands, of the environment that this runs in."""
    return str(Path(sys.executable).parent / name)


def app() -> bytes:
    """The app (a Flower App Bundle), the same bytes everywhere."""
    files = {"pyproject.toml": _PROJECT.encode(), "LICENSE": _LICENSE.encode()}
    content = "\n".join(f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for name, data in files.items())
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in {**files, ".info/CONTENT": content.encode()}.items():
            entry = zipfile.ZipInfo(name, date_time=_FAB_DATE)
            entry.create_system = 3
            bundle.writestr(entry, data)
    return archive.getvalue()


def app_hash(bundle: bytes) -> str:
    """What an app is allowed by: SHA-256 of its bundle, 64 hex digits."""
    return hashlib.sha256(bundle).hexdigest()
