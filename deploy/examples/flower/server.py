"""A ServerApp of your own: of whatever is open, one owner is asked first, and the others once it has answered."""

import time

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.flower_server import Carrier, opened

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for a campaign, and carry it."""
    first = str(context.run_config["first"])
    with opened() as coordinator:
        carrier = Carrier(grid, coordinator)
        while not carrier.dispatch.is_open():
            time.sleep(1)
        while carrier.dispatch.is_open() or carrier.dispatch.has_untold():
            is_answered = carrier.dispatch.ask(first) is None
            carrier.turn(owners=None if is_answered else {first})
            time.sleep(1)
