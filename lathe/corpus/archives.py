"""Compressed files: their whole content, or a word on what is wrong with them."""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Generator
from typing import Any, BinaryIO, NamedTuple

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
READ_BYTES = 128 * 1024  # of the compressed file at a time


class ArchiveError(Exception):
    """What is wrong with an archive, in words that follow the name of the file."""


def open_archive(stored: BinaryIO, compression: str, size: int = 2**63) -> BinaryIO:
    """The content of a file with this one of COMPRESSIONS; ArchiveError while it is read.

    size: bytes of the file. A small one is not given memory for a large window.
    """
    window = max(SMALL_WINDOW, min(LARGEST_WINDOW, WINDOW_PER_BYTE * size))
    if compression == ".zst":
        return io.BufferedReader(_ZstdContent(stored, window))
    return io.BufferedReader(_StreamContent(stored, compression, window))


MAGIC = {
    ".gz": rb"\x1f\x8b",
    ".bz2": rb"BZh[1-9]",
    ".xz": rb"\xfd7zXZ\0",
    ".zst": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
}


def refuse_other_content(begin: bytes, compression: str):
    """ArchiveError if a file that begins so is no archive of the kind that its name says."""
    if len(begin) < 6 or re.match(MAGIC[compression], begin):
        return  # what is cut short so soon is for its decompressor
    what = what_instead_of_text(begin)
    advice = f"it is {what}" if what else f"leave {compression} out of its name if it is text"
    raise ArchiveError(
        f"is damaged or cut short, or never was compressed: it does not begin as {compression} "
        f"does; {advice}"
    )


# How far back a compressed file refers, which whoever reads it holds in memory: 2 GB are what
# zstd --ultra --long=31 writes, 128 MB are zstandard's default, and xz -9 takes 64 MB.
LARGEST_WINDOW = 2**31
SMALL_WINDOW = 2**27
WINDOW_PER_BYTE = 32  # of the file: that text is compressed further than so is rare


def needs_too_much(window: int) -> ArchiveError:
    return ArchiveError(
        f"takes more than {window / 1e6:.0f} MB of memory to decompress, much for so small a file: "
        "decompress it (zstd -d --long=31, xz -d) and name what comes out"
    )


# -----------------------------------------------------------------------------
# .gz, .bz2, .xz: streams with an end that is marked, one after the other


class _GzipDecompressor:
    """zlib's decompressor with the names that those of bz2 and lzma have."""

    def __init__(self, window: int):
        self._zlib = zlib.decompressobj(wbits=31)  # with gzip's header and checksum
        self.needs_input = True

    def decompress(self, data: bytes, max_length: int) -> bytes:
        content = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = len(content) < max_length
        return content

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


def _bz2_decompressor(window: int) -> bz2.BZ2Decompressor:
    return bz2.BZ2Decompressor()


def _xz_decompressor(window: int) -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=window + XZ_OVERHEAD)


XZ_OVERHEAD = 2**20  # bytes that it takes beside its window


DECOMPRESSORS = {
    ".gz": _GzipDecompressor,
    ".bz2": _bz2_decompressor,
    ".xz": _xz_decompressor,
}


class _StreamContent(io.RawIOBase):
    """The content of all streams of a file. The library's own readers take what comes after the
    first stream and is damaged for the end of the file."""

    def __init__(self, stored: BinaryIO, compression: str, window: int):
        self._stored = stored
        self._compression = compression
        self._new_decompressor: Callable[[int], Any] = DECOMPRESSORS[compression]
        self._window = window
        self._decompressor = self._new_decompressor(window)
        self._is_begun = False
        self._unread = b""  # of what was taken from the file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        content = b""
        while not content:
            if self._decompressor.eof and not self._begin_next():
                return 0
            data = b""
            if self._decompressor.needs_input:
                data = self._unread or self._stored.read(READ_BYTES)
                self._unread = b""
                if not data:
                    raise ArchiveError("is damaged or cut short: its end is missing")
                if not self._is_begun:
                    refuse_other_content(data, self._compression)
                    self._is_begun = True
            try:
                content = self._decompressor.decompress(data, len(buffer))
            except (zlib.error, lzma.LZMAError, OSError) as error:
                if "Memory usage limit" in str(error):
                    raise needs_too_much(self._window) from error
                raise ArchiveError(f"is damaged or cut short: {error}") from error
        buffer[: len(content)] = content
        return len(content)

    def _begin_next(self) -> bool:
        """Whether there is another stream, which then is begun. Zeros may fill up a file."""
        self._unread = self._decompressor.unused_data.lstrip(b"\0")
        while not self._unread:
            data = self._stored.read(READ_BYTES)
            if not data:
                return False
            self._unread = data.lstrip(b"\0")
        self._decompressor = self._new_decompressor(self._window)
        return True


# -----------------------------------------------------------------------------
# .zst: frames, whose end zstandard does not miss

ZSTD_FRAME = bytes.fromhex("28b52ffd")
ZSTD_RLE_BLOCK = 1


class _ZstdContent(io.RawIOBase):
    """The content of all frames of a file."""

    def __init__(self, stored: BinaryIO, window: int):
        import zstandard

        self._window = window
        self._size = 0  # of the content so far: a window is filled by it
        self._frames = _WholeFrames(stored)
        decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        self._reader = decompressor.stream_reader(self._frames, read_across_frames=True)
        self._error = zstandard.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if self._frames.largest_window > self._window < self._size:
            raise needs_too_much(self._window)
        try:
            size = self._reader.readinto(buffer)
            self._size += size
            return size
        except self._error as error:
            reason = str(error)
            if "memory" in reason or "Dictionary" in reason:
                raise ArchiveError(f"cannot be decompressed: {reason}") from error
            raise ArchiveError(f"is damaged or cut short: {reason}") from error


class _WholeFrames:
    """A file of frames as it is read; ArchiveError if it ends inside of one.

    RFC 8878, section 3: https://www.rfc-editor.org/rfc/rfc8878
    """

    def __init__(self, stored: BinaryIO):
        self._stored = stored
        self.largest_window = 0  # of the frames so far, in bytes
        self._parts = _parts_of_frames(self)
        self._part = next(self._parts)
        self._seen = 0  # bytes of the part
        self._kept = b""  # of them, if it is wanted
        self._is_empty = True

    def read(self, size: int) -> bytes:
        data = self._stored.read(size)
        if data:
            if self._is_empty:
                refuse_other_content(data, ".zst")
            self._is_empty = False
            self._follow(data)
        elif self._is_empty or not self._part.begins_frame or self._seen:
            raise ArchiveError("is damaged or cut short: its end is missing")
        return data

    def _follow(self, data: bytes):
        position = 0
        while position < len(data):
            part = self._part
            end = min(position + part.size - self._seen, len(data))
            if part.wanted:
                self._kept += data[position:end]
            self._seen += end - position
            position = end
            while self._seen == self._part.size:
                self._part = self._parts.send(self._kept)
                self._seen = 0
                self._kept = b""


class _Part(NamedTuple):
    """What comes next in a file of frames."""

    size: int  # in bytes
    wanted: bool = False  # whether it decides on what comes after it
    begins_frame: bool = False


def _parts_of_frames(frames: _WholeFrames) -> Generator[_Part, bytes, None]:
    """All parts of a file of any number of frames; is sent those that it wants, and tells how large
    their windows are."""
    while True:
        magic = yield _Part(4, wanted=True, begins_frame=True)
        if magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5:  # to be skipped by its readers
            size = yield _Part(4, wanted=True)
            yield _Part(int.from_bytes(size, "little"))
            continue
        if magic != ZSTD_FRAME:
            yield _Part(2**63)  # zstandard says so
        (descriptor,) = yield _Part(1, wanted=True)
        has_window = not descriptor & 0b10_0000
        dictionary_bytes = (0, 1, 2, 4)[descriptor & 0b11]
        size_bytes = (0 if has_window else 1, 2, 4, 8)[descriptor >> 6]
        header = yield _Part(has_window + dictionary_bytes + size_bytes, wanted=True)
        if has_window:
            exponent = header[0] >> 3
            eighths = 8 + (header[0] & 0b111)
            window = eighths << (7 + exponent)
        else:  # all of the content
            window = int.from_bytes(header[dictionary_bytes:], "little")
        frames.largest_window = max(frames.largest_window, window)
        is_last = False
        while not is_last:
            header = int.from_bytes((yield _Part(3, wanted=True)), "little")
            is_last = header & 1
            is_rle = header >> 1 & 0b11 == ZSTD_RLE_BLOCK
            yield _Part(1 if is_rle else header >> 3)
        has_checksum = descriptor & 0b100
        yield _Part(4 if has_checksum else 0)


# -----------------------------------------------------------------------------
# Files that are taken for text and are none


# Bytes that begin no text in UTF-8, and what such a file is.
NO_TEXT = {
    rb"\x1f\x8b": "compressed: decompress it, or end its name in .gz",
    rb"BZh[1-9]1AY&SY": "compressed: decompress it, or end its name in .bz2",
    rb"\xfd7zXZ\0": "compressed: decompress it, or end its name in .xz",
    re.escape(ZSTD_FRAME): "compressed: decompress it, or end its name in .zst",
    rb"PAR1\x15": "a parquet file: end its name in .parquet, or add --format=parquet",
    rb"PK\x03\x04": "a zip archive: unpack it and name its folder",
    rb"7z\xbc\xaf": "a 7z archive: unpack it and name its folder",
    rb"Rar!\x1a\x07": "a rar archive: unpack it and name its folder",
    rb"(?s:.{257})ustar(?:\0|  \0)": "a tar archive: unpack it and name its folder",
    rb"\x04\x22\x4d\x18": "compressed with lz4: decompress it",
    rb"\x5d\0\0": "compressed with lzma: decompress it",
    rb"LZIP\x01": "compressed with lzip: decompress it",
    rb"\x1f\x9d": "compressed with compress: decompress it",
    # UTF-32 before UTF-16, whose mark begins its mark; both by their zeros where they have no mark
    rb"\xff\xfe\0\0|\0\0\xfe\xff|(?:[\t\n\r -~]\0\0\0){3}|(?:\0\0\0[\t\n\r -~]){3}": (
        "UTF-32: convert it to UTF-8, as iconv does"
    ),
    rb"\xff\xfe|\xfe\xff|(?:[\t\n\r -~]\0){4}|(?:\0[\t\n\r -~]){4}": (
        "UTF-16: convert it to UTF-8, as iconv does"
    ),
    rb"%PDF-[0-9]\.[0-9]\s": "a PDF: take its text out of it, as pdftotext does",
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a file of an office program: save it as text",
    rb"\x89PNG\r|\xff\xd8\xff|GIF8[79]a.{4}[\x80-\xff]": "an image, no text: leave it out",
    rb"\x7fELF[\1\2]": "a program, no text: leave it out",
    rb"SQLite format 3\0": "a database of SQLite: export its table as CSV",
    rb"ARROW1\0\0": "an Arrow file: save it as parquet",
    rb"\x93NUMPY": "an array of NumPy, no text: leave it out",
}
ANY_NO_TEXT = re.compile(b"|".join(b"(%b)" % mark for mark in NO_TEXT))


def what_instead_of_text(data: bytes) -> str:
    """What a file that begins so is, and what to do, if it is no text in UTF-8; else ""."""
    mark = ANY_NO_TEXT.match(data)
    if mark is None:
        return ""
    return list(NO_TEXT.values())[mark.lastindex - 1]
