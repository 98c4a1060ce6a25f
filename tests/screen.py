"""A terminal of a width of its own for a process of the project, and what its reader sees there."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import unicodedata

from tiny_run import ONE_THREAD, ROOT

# What is printed moves the cursor by these alone: newline, return, up a line, and colours, if any.
PARTS = re.compile(r"\x1b\[(\d*)([A-Za-z])|([\n\r])|([^\x1b\n\r]+)")


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
                self.put(char)

    def put(self, char: str):
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
    *words, columns: int, folder=ROOT, environment: dict | None = None
) -> tuple[int, str]:
    """(exit code, all that a process writes to a terminal that is its stdin, stdout and stderr)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **ONE_THREAD, "TERM": "xterm", **(environment or {})},
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(ours)
    return child.wait(timeout=120), written.decode()
