"""Files that are on the disk when they are said to be, with checksums."""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from lathe.json_text import read_json
from lathe.terminal import print_note

# What a file system answers to a call that it does not have.
NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF)


class CheckedFile:
    """A new file that adds up size and checksum of what it is given while the bytes are written.

    A context manager with the methods that torch.save asks for. When it is left, the bytes are on
    the disk, and `size` and `crc32` are those of the bytes as they were in memory.
    """

    def __init__(self, path: Path):
        self.size = 0
        self.crc32 = 0
        self._file = open(path, "wb", buffering=0)
        # Adds up while the system writes: with a core to spare, that saves 0.25 s a GB.
        self._adder = ThreadPoolExecutor(1)

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        checksum = self._adder.submit(zlib.crc32, view, self.crc32)
        rest = view
        while rest:  # the system may take less than all: 2 GB at most, or what fits on a full disk
            written = self._file.write(rest)
            rest = rest[written:]
        self.size += len(view)
        self.crc32 = checksum.result()
        return len(view)

    def flush(self):
        """Asked for by torch.save; nothing is buffered."""

    def __enter__(self) -> "CheckedFile":
        return self

    def __exit__(self, failed: type | None, *_: object):
        try:
            if not failed:
                os.fsync(self._file.fileno())
        finally:
            self._adder.shutdown()
            self._file.close()


def crc32(path: Path) -> int:
    """Checksum of a file's bytes: finds every flipped bit, at 4 GB/s."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def write_json_with_checksum(path: Path, value: dict):
    """JSON for people, with a last key that holds the checksum of the rest."""
    text = json.dumps(value, sort_keys=True)
    value = {**value, "checksum": zlib.crc32(text.encode())}
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    flush_to_disk(path)


def read_json_with_checksum(path: Path) -> dict:
    """Inverse of write_json_with_checksum. Raises ValueError, naming the file and its fault."""
    try:
        value = read_json(path)
        checksum = value.pop("checksum")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = type(error).__name__
        raise ValueError(f"{path.name} is missing or unreadable ({reason})") from None
    text = json.dumps(value, sort_keys=True)
    if zlib.crc32(text.encode()) != checksum:
        raise ValueError(f"{path.name} does not match its checksum")
    return value


def write_atomically(path: Path, text: str):
    """Write a text so that the file has its old content or all of the new one, whatever happens.

    A link of that name is replaced, and what it leads to is left alone.
    """
    temporary = hidden_beside(path, ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


class LineLog:
    """A file of lines that grows while a run goes on. Begins with `lines`, in place of what it had.

    Lines are written at once: a killed process loses none, a machine that loses power the last
    ones. That a line cannot be written, on a full disk for one, ends nothing: it is kept, and
    written with the next. say() is told once of each such time.
    """

    def __init__(self, path: Path, lines: list[str], say: Callable[[str], None] = print_note):
        self.path = path
        self.say = say
        self._waiting = b""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(lines))
        self._file = open(path, "ab", buffering=0)

    def write(self, lines: str):
        """Whole lines, each with its end."""
        had_waited = bool(self._waiting)
        self._waiting += lines.encode("utf-8", errors="backslashreplace")
        try:
            while self._waiting:  # the system may take less than all
                written = self._file.write(self._waiting)
                self._waiting = self._waiting[written:]
        except OSError as error:
            if not had_waited:
                self.say(f"{self.path} cannot be written now, its lines wait: {error.strerror}")
            return
        if had_waited:
            self.say(f"{self.path} is written again, and complete")

    def close(self):
        self.write("")
        if self._waiting:
            n_lines = self._waiting.count(b"\n")
            self.say(f"{self.path} lacks its last {n_lines} lines: they could not be written")
        self._file.close()


@contextmanager
def utf8_path(path: Path) -> Iterator[str]:
    """A name by which libraries can open a file that open names in UTF-8 alone: its own, or that of
    its number in this process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
        return
    yield str(path)


def flush_to_disk(path: Path):
    """Return only when the file's (or folder's) content is on the disk itself.

    Some file systems know no such thing of a folder: there a new name lasts as they see to it.
    """
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (is_folder and error.errno in NOT_OFFERED):
            raise
    finally:
        os.close(handle)


def hidden_beside(path: Path, suffix: str) -> Path:
    """A hidden name in the same folder for what comes before or after `path`; of a name that is as
    long as systems allow, 255 bytes, its beginning."""
    name = path.name
    while len(os.fsencode(f".{name}{suffix}")) > 255:
        name = name[:-1]
    return path.with_name(f".{name}{suffix}")


def replace_folder(new: Path, folder: Path):
    """Rename `new` to `folder`. What was there goes once that is on disk, or stays if it fails."""
    old = hidden_beside(folder, ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    flush_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
