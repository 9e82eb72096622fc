"""Streams live by progress, not by deadlines: one that moves may last for days, one that does not is ended."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread


class Liveness:
    """Ends streams in which nothing moved for `silence_s` seconds; one thread watches all of them."""

    def __init__(self, silence_s: Callable[[], float]) -> None:
        self._silence_s = silence_s
        self._watched: dict[int, tuple[float, Callable[[], object]]] = {}
        self._changed = Condition()
        self._next, self._is_running = 0, False

    @contextmanager
    def watching(self, end: Callable[[], object]) -> Iterator[Callable[[], None]]:
        """Call `end` when the function that this yields was not called for too long."""
        with self._changed:
            self._next += 1
            key = self._next
            self._watched[key] = time.monotonic(), end
            if not self._is_running:
                self._is_running = True
                Thread(target=self._watch, name="liveness", daemon=True).start()

        def moved() -> None:
            self._watched[key] = time.monotonic(), end

        try:
            yield moved
        finally:
            with self._changed:
                self._watched.pop(key, None)
                self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if not self._watched:
                    self._is_running = False
                    return
                silence_s, now = self._silence_s(), time.monotonic()
                late = [key for key, (at, _) in self._watched.items() if now - at >= silence_s]
                ends = [self._watched.pop(key)[1] for key in late]
                if not ends:
                    self._changed.wait(silence_s / 4)
            for end in ends:
                end()
