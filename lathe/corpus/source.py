"""A source: one file of the input, and how its bytes are reached."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lathe.corpus.archives import COMPRESSIONS, ArchiveError, open_archive
from lathe.terminal import printable


@dataclass(frozen=True, slots=True)
class Source:
    path: str  # a file, or a URL that fsspec opens
    format: str  # a key of formats.FORMATS
    compression: str  # "" or one of COMPRESSIONS
    size: int  # bytes on disk
    label: str  # how messages name it
    split: str = ""  # "train" or "val" where the user decided, else ""
    version: str = ""  # another one once the file has changed; "" where nobody can tell

    def identity(self) -> list:
        """What a dataset remembers of a file, to know whether it was made from this one."""
        name = self.path if self.label == printable(self.path) else self.label
        return [name, self.size, self.split]

    def is_older_than(self, seconds: float) -> bool:
        """Whether it was last written before that time; of a URL nobody knows, and it is."""
        return is_url(self.path) or Path(self.path).stat().st_mtime < seconds


# Nanoseconds after which a file that changes gets another time, on any file system.
SETTLED_AFTER = 2 * 10**9
COMMIT = re.compile(r"@[0-9a-f]{40}/")


def is_url(path: str) -> bool:
    return "://" in path


def compression_and_suffix(name: str) -> tuple[str, str]:
    """What a file's name says: a.jsonl.zst -> (".zst", ".jsonl")."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    compression = ""
    if suffixes and suffixes[-1] in COMPRESSIONS:
        compression = suffixes.pop()
    return compression, suffixes[-1] if suffixes else ""


def size_and_version(path: str) -> tuple[int, str]:
    """Bytes of a file or URL, and its version. OSError if it cannot be reached."""
    if is_url(path):
        return _of_url(path)
    status = os.stat(path)
    times = (status.st_mtime_ns, status.st_ctime_ns)
    if time.time_ns() - max(times) < SETTLED_AFTER:
        return status.st_size, ""
    return status.st_size, f"{status.st_ino} {times}"


def _of_url(path: str) -> tuple[int, str]:
    import fsspec

    try:
        file_system, _ = fsspec.url_to_fs(path)
        size = file_system.size(path) or 0
    except Exception as error:  # each file system has its own kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise OSError(f"--input {path}: cannot be opened ({reason})") from error
    if COMMIT.search(path):  # names its content itself
        return size, path
    try:
        return size, str(file_system.ukey(path))
    except Exception:  # not every file system has versions
        return size, ""


# -----------------------------------------------------------------------------
# Opening


@dataclass(slots=True)
class OpenFile:
    content: BinaryIO  # decompressed
    stored: BinaryIO  # as it lies on the disk: its position tells how much was read


def open_stored(path: str) -> BinaryIO:
    """A file or URL as it is, compressed or not."""
    if is_url(path):
        import fsspec

        return fsspec.open(path, "rb").open()
    return open(path, "rb")


@contextmanager
def open_source(source: Source) -> Iterator[OpenFile]:
    """The bytes of a source, for as long as the context lasts.

    A damaged archive shows while it is read: inside the context that is a ValueError which names
    the file.
    """
    with open_stored(source.path) as stored:
        content = stored
        if source.compression:
            content = open_archive(stored, source.compression, source.size)
        try:
            yield OpenFile(content, stored)
        except ArchiveError as error:
            raise ValueError(f"{source.label} {error}") from error
