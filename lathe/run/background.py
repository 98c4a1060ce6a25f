"""Writing while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from lathe.run import ranks


class BackgroundWriter:
    """Does one piece of writing at a time in a thread, so that training goes on meanwhile.

    Leaving the context waits for the last one. Whether it failed is known from `failed`; wait()
    raises what it raised. A write that waits for other processes looks at `leaving`: it is set once
    this one ends by an error, of which the others may have died.
    """

    def __init__(self):
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.last: Future | None = None  # the write that was started last, until it is waited for
        self.leaving = Event()

    @property
    def failed(self) -> bool:
        if self.last is None or not self.last.done():
            return False
        return self.last.exception() is not None

    def start(self, write: Callable[[], None]):
        self.wait()
        self.last = self.pool.submit(write)

    def wait(self):
        """Return when the last write is on disk. Raises what it raised, once."""
        last = self.last
        self.last = None
        if last is not None:
            last.result()

    def wait_on_all(self):
        """wait() on every rank; what rank 0's write raised is raised on each of them.

        First on the others, then an exchange: there it shows if one of them has died, whose part
        rank 0's write would wait for without end.
        """
        if not ranks.is_main():
            self.wait()
        ranks.gather(None)
        ranks.on_main(self.wait)

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, failed: type | None, *_: object):
        if failed:
            self.leaving.set()
        self.pool.shutdown()
        if not failed:
            self.wait()
