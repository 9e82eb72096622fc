"""Options that the owner's commands share."""

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[Path, typer.Option(envvar="CONCORD_HOME", help="This owner's directory: keys, settings, state.")]
HOME = Path("owner")
