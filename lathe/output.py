"""Output that never holds its process up: for a run that must outlive its terminal and its log.

A pipe that nobody reads, a terminal stopped by Ctrl-S or closed, a full disk under a log: a plain
print waits there for ever, or raises. After never_wait() it does neither. A thread writes what was
printed; what cannot be written in time is left out, and that is said once there is a reader again.
"""

import faulthandler
import io
import logging
import os
import queue
import sys
import threading
import time
from typing import TextIO

MOST_WAITING = 10_000  # writes that wait for a reader; later ones are left out
LAST_SECONDS = 2.0  # how long a process that ends waits for a reader
LEFT_OUT = "[{} of what was printed here could not be written and is left out]\n"


class NonBlockingStream(io.TextIOBase):
    """A text stream whose write() only remembers; a thread of its own writes to the descriptor.

    It can be written to from signal handlers: SimpleQueue.put may interrupt itself.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream  # the one it stands for, to which nobody writes any more
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._refused = 0  # writes for which there was no place
        self._lost = 0  # writes that failed; refused ones that were told of are taken off
        self._accepted = 0  # writes that were put in the queue
        self._done = 0  # those that the thread has written or given up
        threading.Thread(target=self._write_on, name="output", daemon=True).start()

    @property
    def encoding(self) -> str:
        return self.stream.encoding

    @property
    def errors(self) -> str | None:
        return self.stream.errors

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._waiting.qsize() < MOST_WAITING:
            self._accepted += 1
            self._waiting.put(text)
        else:
            self._refused += 1
        return len(text)

    def flush(self):
        """Returns at once: who flushes wants a reader to see it soon, and the thread does that."""

    def finish(self, seconds: float):
        """Wait until all is written, for so long at most."""
        deadline = time.monotonic() + seconds
        while self._done < self._accepted and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write_on(self):
        while True:
            text = self._waiting.get()
            left_out = self._refused + self._lost
            if left_out:
                text = LEFT_OUT.format(count_of(left_out)) + text
            if self._written(text):
                self._lost -= left_out
            else:
                self._lost += 1
            self._done += 1

    def _written(self, text: str) -> bool:
        """Whether it could be written. It may wait for a reader."""
        data = text.encode(self.encoding, self.errors or "strict")
        try:
            while data:
                data = data[os.write(self.fileno(), data) :]
        except OSError:  # no reader, no terminal, a full disk: perhaps not for ever
            return False
        return True


def count_of(n: int) -> str:
    return "one piece" if n == 1 else f"{n:,} pieces"


def never_wait():
    """From now on, what this process prints never holds it up, and cannot end it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if has_descriptor(stream):
            replace_stream(name, NonBlockingStream(stream))
    faulthandler.enable(file=nonblocking_descriptor(sys.stderr))


def has_descriptor(stream: TextIO) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def replace_stream(name: str, stream: NonBlockingStream):
    """Also where a logger, torch's for one, has kept the old one."""
    setattr(sys, name, stream)
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if getattr(handler, "stream", None) is stream.stream:
                handler.setStream(stream)


def nonblocking_descriptor(stream: TextIO) -> int | TextIO:
    """Where C can write what leads to `stream` without waiting; `stream` where there is no such.

    The flag belongs to what is open, which others share: the file is opened once more.
    """
    try:
        path = f"/proc/self/fd/{stream.fileno()}"
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # not Linux, or a socket
        return stream


def finish_output(seconds: float = LAST_SECONDS):
    """Before this process ends: wait for readers, for so long at most."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, NonBlockingStream):
            stream.finish(seconds)
