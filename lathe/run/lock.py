"""A folder that one process at a time may write to."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lathe.terminal import print_note

HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)  # by another process


class InUseError(OSError):
    """Another process has the folder."""


@dataclass
class HeldFolder:
    """A folder that this process has locked, by its open file `lock`."""

    setting: str
    path: Path
    file: TextIO

    def check(self):
        """Raises OSError if the folder is no longer there, or is another one by now."""
        ours = os.fstat(self.file.fileno())
        try:
            there = os.stat(self.path / "lock")
        except OSError:
            fate = "is gone: it was moved or deleted while this process wrote to it"
        else:
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
            fate = "has another file lock than this process holds: others may write there, too"
        raise OSError(f"{self.setting} {self.path} {fate}")


@contextmanager
def lock_folder(setting: str, folder: Path) -> Iterator[HeldFolder]:
    """Hold the folder that a setting names, inside the context or until the process ends.

    OSError, naming the holder, if another process has it, or if it cannot be written. On a file
    system without locks it is not held, and that is said. The file `lock` stays: if each holder
    removed its own, a second and a third could hold two other ones.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+", encoding="utf-8", opener=open_unless_link)
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        if error.errno == errno.ELOOP:
            reason = "has a link in place of its file lock"
        raise OSError(f"{setting} {folder} {reason}: choose another --{setting}") from None
    with file:
        try:
            lock(file)
        except OSError as error:
            if error.errno not in HELD:
                reason = f"its file system has no locks ({error.strerror})"
                print_note(f"{setting} {folder}: {reason}, so take care that one process uses it")
                yield HeldFolder(setting, folder, file)
                return
            file.seek(0)
            holder = file.read().strip() or "another process"
            fix = f"wait, stop it, or choose another --{setting}"
            raise InUseError(f"{setting} {folder} is in use by {holder}: {fix}") from None
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {started}\n")
        file.flush()
        yield HeldFolder(setting, folder, file)


def open_unless_link(path: str, flags: int) -> int:
    """What open() asks the system for; a link, which may lead anywhere, is not written through."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def lock(file: TextIO):
    """Lock an open file until it is closed; OSError if another process has."""
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 30)  # a byte far after the text, so that others can still read who holds it
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
