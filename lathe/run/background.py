"""Writing while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Does one piece of writing at a time in a thread, so that training goes on meanwhile.

    Leaving the context waits for the last one. Whether it failed is known from `failed`; wait()
    raises what it raised.
    """

    def __init__(self):
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.last: Future | None = None  # the write that was started last, until it is waited for

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

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, failed: type | None, *_: object):
        self.pool.shutdown()
        if not failed:
            self.wait()
