"""`concord witness`: a witness that is no owner's daemon. Needs neither torch nor grpc."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from common.cli import JsonOption, existing, new_app, reporting
from common.files import exclusive, read_required
from common.signals import stop_on_signals
from common.trust.cosignature import Witness
from common.trust.root import TrustedRoot
from common.witness import WitnessHome, WitnessService, make_server

HomeOption = Annotated[Path, typer.Option(envvar="CONCORD_HOME", help="The witness's directory.")]
_HOME = Path("witness")

app = new_app("Watch consortiums' logs: cosign what continues what was seen, take revocations.")


@app.callback()
def group() -> None:
    """Watch consortiums' logs: cosign what continues what was seen, take revocations."""


@app.command()
def init(
    name: Annotated[str, typer.Option(help="What the witness is called in cosignatures: witness.example/w1.")],
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Make a witness: a key of its own. Its line is what coordinators, owners and auditors know it by."""
    with reporting(as_json) as reporter:
        line = str(Witness.of(WitnessHome.create(existing(home), name=name).key()))
        reporter.step(f"witness {name}; its key's line, to be given to all who trust it:")
        reporter.step(line)
        reporter.result({"home": str(existing(home)), "key": line})


@app.command()
def watch(
    root: Annotated[Path, typer.Argument(help="A log's trusted root, got from its admin out of band.")],
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Watch a log; a serving witness does once it is started again."""
    with reporting(as_json) as reporter:
        place, trusted = (
            WitnessHome(existing(home)),
            TrustedRoot.parse(read_required(existing(root), hint="name a file")),
        )
        place.key()
        place.watch(trusted)
        reporter.step(f"watching {trusted.origin}")
        reporter.result({"origin": trusted.origin})


@app.command()
def serve(
    home: HomeOption = _HOME,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7445,
    as_json: JsonOption = False,
) -> None:
    """Answer over HTTP (C2SP tlog-witness) until stopped; put a proxy with TLS before it. Everything is signed."""
    place = WitnessHome(existing(home))
    place.key()
    with (
        reporting(as_json) as reporter,
        exclusive(place.path / "serve.lock", what=f"the witness in {place.path}"),
        stop_on_signals() as stop,
    ):
        server = make_server(WitnessService(place), host=host, port=port)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        watched = ", ".join(root.origin for root in place.roots()) or "no log yet: concord witness watch ROOT"
        reporter.step(f"serving at http://{host}:{port}; watching {watched}")
        stop.wait()
        server.shutdown()
        thread.join()
        server.server_close()
        reporter.step("stopped; everything cosigned is on disk")
