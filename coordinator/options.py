"""Options that the coordinator's commands share."""

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[Path, typer.Option(envvar="CONCORD_HOME", help="The coordinator's directory.")]
HOME = Path("coordinator")
