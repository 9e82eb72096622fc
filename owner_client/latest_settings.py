"""An owner's settings as they were last without a mistake: one in a file that somebody is editing ends no daemon."""

from common.console import Reporter
from common.errors import MalformedError
from owner_client.config import OwnerHome, OwnerSettings


class LatestSettings:
    """Reads them again and again; a mistake is said once, and what held before holds on."""

    def __init__(self, home: OwnerHome, *, reporter: Reporter) -> None:
        self._home, self._reporter = home, reporter
        self._said = ""
        self._last = home.settings()

    def now(self) -> OwnerSettings:
        """What holds now."""
        try:
            self._last, self._said = self._home.settings(), ""
        except MalformedError as error:
            if str(error) != self._said:
                self._said = str(error)
                self._reporter.warning(f"{error}; what was set before holds on until that is mended")
        return self._last
