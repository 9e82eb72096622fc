"""Pauses between tries that grow and differ by chance: after a restart not everybody comes back in the same second."""

import random
from typing import Final

_JITTER: Final = 0.3


class Pauses:
    """Each is twice the last one, up to `longest_s`, and up to three tenths longer or shorter."""

    def __init__(self, *, longest_s: float) -> None:
        self._longest_s = longest_s
        self._last_s: float | None = None

    def next_s(self, first_s: float) -> float:
        """The next pause; the first one takes about `first_s`."""
        self._last_s = min(self._longest_s, first_s if self._last_s is None else 2 * self._last_s)
        return self._last_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311

    def begin_again(self) -> None:
        """It worked."""
        self._last_s = None
