"""The coordinator's daemon: build, start, run until a signal, drain, stop. It needs no torch, and dials out to nobody
but the outside witnesses in its settings."""

import logging
import resource
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

from common.allocator import share_freed_memory
from common.console import Reporter
from common.files import exclusive
from common.rpc.channel import listen, make_server
from common.service import being_watched
from common.signals import stop_on_signals
from common.state_file import StatedReporter, StateFile
from coordinator.file_server import FileServer
from coordinator.home import Coordinator, open_home
from coordinator.outside_witnesses import Bringing, OutsideWitness
from coordinator.releases import show_logged
from coordinator.server_identity import ServerIdentity
from coordinator.servicers import add_services
from coordinator.state import Serving
from coordinator.upkeep import Upkeep
from coordinator.withdrawal import carry_out

logger = logging.getLogger(__name__)

_DRAIN_S: Final = 10.0
_MOST_FILES: Final = 65_536


def _open_many_files() -> None:
    """As many as the system allows: each connection is one, and shells often give a process 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def serve(path: Path, *, reporter: Reporter) -> None:
    """Serve the coordinator whose home is `path` until SIGINT or SIGTERM.

    Raises:
        NotFoundError: it is no coordinator's home.
        ConflictError: another daemon serves this home, or Flower is enabled and another version of it installed.
        UnavailableError: a port is in use, or an outside witness has seen a log that this one does not continue.
    """
    share_freed_memory()
    _open_many_files()
    with (
        open_home(path) as coordinator,
        exclusive(path / "daemon.lock", what=f"the coordinator in {path}"),
        stop_on_signals() as stop,
    ):
        state = StateFile(coordinator.home.state)
        reporter = StatedReporter(reporter, state)
        coordinator.registry.check_may_append()
        show_logged(coordinator)
        carry_out(coordinator, in_background=True)
        coordinator.intake.put_back()
        coordinator.registry.publish()
        settings, tls = coordinator.settings, ServerIdentity(coordinator)
        # Threads of their own: whoever holds those of the port that is open to all keeps no member waiting.
        servers = [
            make_server(coordinator.enrolment.authenticate, threads=settings.threads, anonymous=anonymous)
            for anonymous in (False, True)
        ]
        for server, port in zip(servers, (settings.port, settings.enrolment_port), strict=True):
            add_services(server, coordinator)
            listen(server, f"{settings.host}:{port}", tls=tls, require_client=port == settings.port)
        witnesses = [OutsideWitness.parse(line) for line in settings.outside_witnesses]
        files = FileServer(coordinator.home.public, host=settings.host, port=settings.files_port)
        for server in servers:
            server.start()
        reporter.step(f"serving {settings.federation} at {settings.host}:{settings.port}")
        if settings.files_port is not None:
            reporter.step(f"published files are at http://{settings.host}:{settings.files_port}")
        serving = Serving(coordinator, state)
        serving.write()
        with (
            Bringing(coordinator.registry, witnesses, every_s=settings.witness_poll_s),
            Upkeep(coordinator, also=serving.write),
            files,
            _flower(coordinator, reporter),
            being_watched(),
        ):
            stop.wait()
        for stopped in [server.stop(_DRAIN_S) for server in servers]:
            stopped.wait()
        coordinator.enrolment.reads.write()
        reporter.step("stopped; everything acknowledged is on disk")


def _flower(coordinator: Coordinator, reporter: Reporter) -> AbstractContextManager[object]:
    """Flower's processes, where campaigns are to run over it, too."""
    if not coordinator.settings.flower.enabled:
        return nullcontext()
    from coordinator.flower import FlowerEngine

    return FlowerEngine(coordinator, reporter=reporter)
