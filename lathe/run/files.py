"""Files that are on the disk when they are said to be, with checksums."""

import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def replace_folder(new: Path, folder: Path):
    """Rename `new` to `folder`; what was there is removed once that is on the disk, or stays if it fails."""
    old = folder.with_name(f".{folder.name}.old")
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


class CheckedFile:
    """A new file whose size and checksum, of the bytes as they were in memory, are in files[name] once it is closed and
    on the disk. A context manager with the methods that torch.save asks for. A thread adds up while bytes are written.
    """

    def __init__(self, path: Path, files: dict):
        self.name, self.files, self.size, self.crc32 = path.name, files, 0, 0
        self.file, self.adder = open(path, "wb", buffering=0), ThreadPoolExecutor(1)  # noqa: SIM115 - see __exit__

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        summed = self.adder.submit(zlib.crc32, view, self.crc32)
        rest = view
        while rest:  # the system may take less than all: 2 GB at most, or what fits on a disk that is nearly full
            rest = rest[self.file.write(rest) :]
        self.size, self.crc32 = self.size + len(view), summed.result()
        return len(view)

    def flush(self):
        pass

    def __enter__(self) -> "CheckedFile":
        return self

    def __exit__(self, failed, *_):
        try:
            if not failed:
                os.fsync(self.file.fileno())
                self.files[self.name] = {"size": self.size, "crc32": self.crc32}
        finally:
            self.adder.shutdown()
            self.file.close()


def crc32(path: Path) -> int:
    """Checksum of a file's bytes: finds every flipped bit, at 4 GB/s."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def flush_to_disk(path: Path):
    """Return only when the file's (or folder's) content is on the disk itself."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json_with_checksum(path: Path, value: dict):
    """JSON for people, with a last key that holds the checksum of the rest."""
    text = json.dumps(value, sort_keys=True)
    value = {**value, "checksum": zlib.crc32(text.encode())}
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    flush_to_disk(path)
