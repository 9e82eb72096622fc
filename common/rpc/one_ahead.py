"""An iterator that is one item ahead of whoever asks: what comes next is received while this one is checked."""

from collections.abc import Generator, Iterable
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

_Item = TypeVar("_Item")


def one_ahead(items: Iterable[_Item]) -> Generator[_Item, None, None]:
    """The same items in the same order, each asked for on a thread of its own while the one before is in use.

    What `items` raises is raised here. Closed early, it asks for no more; one that was asked for may be lost.
    """
    ready: SimpleQueue[tuple[_Item] | BaseException | None] = SimpleQueue()
    taken = Semaphore(0)
    closed = False

    def run() -> None:
        try:
            for item in items:
                ready.put((item,))
                del item  # held here it would be one more in memory
                taken.acquire()
                if closed:
                    return
        except BaseException as error:
            ready.put(error)
        else:
            ready.put(None)

    Thread(target=run, name="ahead", daemon=True).start()
    try:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            taken.release()
            yield found[0]
    finally:
        closed = True
        taken.release()
