"""A terminal of a width of its own for a process, and what its reader sees there."""

import os
import re
import select
import signal
import struct
import subprocess
import time
import unicodedata
from pathlib import Path

from lathe import ROOT

# What is printed moves the cursor by these alone: newline, return, up a line, and colours, if any.
PARTS = re.compile(r"\x1b\[(\d*)([A-Za-z])|([\n\r])|([^\x1b\n\r]+)")
LONGEST_SILENCE = 120.0  # seconds; whoever waits so long is stuck


class Screen:
    """Lines as a terminal of so many columns shows them; those that did not fit are noted."""

    def __init__(self, columns: int):
        self.columns = columns
        self.lines: list[list[str]] = [[]]
        self.row = 0
        self.column = 0
        self.wrapped: list[str] = []

    def feed(self, text: str):
        for number, command, move, plain in PARTS.findall(text):
            if command == "A":
                self.row = max(0, self.row - int(number or 1))
            elif move == "\r":
                self.column = 0
            elif move == "\n":
                self.row += 1
                self.lines += [[] for _ in range(self.row + 1 - len(self.lines))]
            for char in plain:
                self._put(char)

    def _put(self, char: str):
        width = 2 if unicodedata.east_asian_width(char) in "FW" else 1
        if self.column + width > self.columns:
            self.wrapped.append("".join(self.lines[self.row]))
            self.feed("\r\n")
        line = self.lines[self.row]
        line += [" "] * (self.column + width - len(line))
        line[self.column] = char
        self.column += width

    def text(self) -> list[str]:
        """What is on it, without empty lines at the end."""
        lines = ["".join(line).rstrip() for line in self.lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def seen_on_terminal(
    words: list[str],
    columns: int,
    folder: Path = ROOT,
    environment: dict[str, str] | None = None,
    seconds: float = float("inf"),
) -> tuple[int, str]:
    """(exit code, what a process writes to a terminal that is its stdin, stdout and stderr).

    After `seconds` the terminal is left to itself and the process interrupted, as by Ctrl-C.
    """
    import fcntl  # not on Windows, where there is no such terminal
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    child = subprocess.Popen(
        words,
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", **(environment or {})},
        start_new_session=True,
    )
    os.close(theirs)
    ends = time.monotonic() + seconds
    written = b""
    while time.monotonic() < ends:
        wait = min(LONGEST_SILENCE, max(0.0, ends - time.monotonic()))
        if not select.select([ours], [], [], wait)[0]:
            break
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        written += chunk
    if child.poll() is None and seconds != float("inf"):
        os.killpg(child.pid, signal.SIGINT)
    os.close(ours)
    return child.wait(timeout=LONGEST_SILENCE), written.decode(errors="replace")
