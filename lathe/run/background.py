"""Writing while training goes on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class BackgroundWriter:
    """Does one piece of writing at a time in a thread, so that training goes on meanwhile. Leaving the context waits
    for the last one; whether it failed is known from `failed`, and wait() raises what it raised."""

    def __init__(self):
        self.pool, self.last = ThreadPoolExecutor(1, "checkpoint"), None

    @property
    def failed(self) -> bool:
        return self.last is not None and self.last.done() and self.last.exception() is not None

    def start(self, write: Callable[[], None]):
        self.wait()
        self.last = self.pool.submit(write)

    def wait(self):
        """Return when the last write is on disk. Raises what it raised, once."""
        last, self.last = self.last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, failed, *_):
        self.pool.shutdown()
        if not failed:
            self.wait()
