"""Units of work: blocks of files, the same ones whatever the number of workers."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import BinaryIO, NamedTuple

# About so many bytes make a unit: seconds of work, and what a worker holds in memory.
UNIT_BYTES = 4_000_000
# One file must not fill the memory. So a line of JSON lines, an element of JSON or a value of
# Parquet has at most so many bytes (of JSON, characters), which holds any book; and a row of CSV or
# TSV so many, of which Python's reader takes eight times the size.
LARGEST_RECORD = 64_000_000
LARGEST_ROW = 12_000_000
# Beyond that size, JSON is looked at before it is read, since its values can take 24 times its own.
LARGEST_MEMORY = 420_000_000

CARRIAGE_RETURN = ord("\r")


class ParquetRows(NamedTuple):
    """Rows of a parquet file that a worker shall read."""

    path: str
    file_size: int
    group: int  # number of the row group
    first: int  # row in the group
    end: int  # the row after the last one
    figures: list[int | str]  # of the group: stand for its contents when an interrupted run goes on


class Table(NamedTuple):
    """What is known of a CSV or TSV file before its rows are read."""

    delimiter: str
    has_quotes: bool  # whether fields may stand in quotes
    row_end: str = "\n"  # or "\r\n" or "\r": what the first row ends with
    columns: tuple[str, ...] = ()  # in the first row


@dataclass(slots=True)
class Block:
    """A part of one file that can be turned into tokens on its own."""

    label: str  # how messages name the file
    format: str  # a key of formats.FORMATS
    data: bytes | list | ParquetRows  # bytes of whole lines or records; json: rows
    offset: int = 0  # of data in the (decompressed) file, in bytes; parquet: first row in the group
    line: int = 1  # number of data's first line; json: of its first element
    table: Table | None = None  # of csv and tsv
    counts: dict[str, int] = field(default_factory=dict)  # json: of what the cutter changed
    document_hash: int | None = None  # of the whole document, where this is a piece of one
    split: str = ""  # "train" or "val" where the user decided

    @property
    def size(self) -> int:
        """Bytes, for filling units. Rows of json and parquet are cut to a unit's size already."""
        return len(self.data) if isinstance(self.data, bytes) else UNIT_BYTES

    @property
    def begins_document(self) -> bool:
        """Whether its (first) document begins in it; the rest of a long text does not."""
        return self.format != "text" or self.offset == 0


@dataclass(slots=True)
class Unit:
    blocks: list[Block]
    done_bytes: int  # of all input files on disk, up to the end of this unit
    val_begins: int | None = None  # see split.py; None: hashes or the user's files decide

    def sha256(self) -> str:
        """Of all that is read from it: whether it is the same unit as in an interrupted run."""
        digest = sha256()
        for block in self.blocks:
            digest.update(f"{block.format} {len(block.data)}\n".encode())
            if isinstance(block.data, bytes):
                digest.update(block.data)
            else:
                digest.update(json.dumps(block.data).encode())
        return digest.hexdigest()


def cut_stream(file: BinaryIO, last_cut: Callable[[bytes], int]) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) pieces of about UNIT_BYTES; an empty file is one empty piece.

    `last_cut` finds the last good place to cut in a piece, or 0 to get to see more of the file.
    """
    buffer = b""
    offset = 0
    size = UNIT_BYTES
    while True:
        chunk = file.read(size)
        buffer += chunk
        if len(chunk) < size:
            break
        cut = last_cut(buffer)
        if cut:
            yield offset, buffer[:cut]
            offset += cut
            buffer = buffer[cut:]
        # Doubles while nothing is found, so that long lines take linear time.
        size = max(UNIT_BYTES, len(buffer))
    if buffer or offset == 0:
        yield offset, buffer


def cut_records(
    file: BinaryIO, last_cut: Callable[[bytes], int], where: Callable[[], str], largest: int
) -> Iterator[tuple[int, bytes]]:
    """cut_stream of what consists of records. ValueError that begins with where(), asked for the
    record which comes next, if that is of more than `largest` bytes."""

    def refuse_large(data: bytes):
        # A piece grows only while its first record has no end: all others in it are smaller.
        if len(data) > largest and not last_cut(data[:largest]):
            raise ValueError(too_large(where(), largest))

    def last_cut_of_small(data: bytes) -> int:
        refuse_large(data)
        return last_cut(data)

    for offset, data in cut_stream(file, last_cut_of_small):
        refuse_large(data)
        yield offset, data


def too_large(where: str, largest: int) -> str:
    """What is told of a record that begins there."""
    return (
        f"{where} begins a record of more than {largest / 1e6:.1f} MB: {OTHER_WAYS} "
        "(is a quote or bracket never closed, or a line end missing?)"
    )


OTHER_WAYS = "cut it into several, or store its text as a file of its own"


def takes_too_much(text: str, begin: int = 0) -> bool:
    """Whether a large record of JSON, the text from `begin` on, would take more than LARGEST_MEMORY
    with all its values. Counted too high where a text is full of brackets."""
    size = len(text) - begin
    if size <= LARGEST_ROW:
        return False
    per_character = sys.getsizeof(text) // len(text)
    of_values = 0
    for mark, n_bytes in BYTES_OF_VALUES.items():
        of_values += n_bytes * text.count(mark, begin)
    return 2 * per_character * size + of_values > LARGEST_MEMORY


# What Python takes for a value that this begins or follows
BYTES_OF_VALUES = {"[": 64, "{": 200, ",": 72}


def too_many_values(where: str) -> str:
    """What is told of such a record."""
    megabytes = f"{LARGEST_MEMORY / 1e6:.0f} MB"
    return f"{where} begins a record that would take more than {megabytes} of memory: {OTHER_WAYS}"


def last_character_end(data: bytes) -> int:
    """Where to cut if any place will do: not inside a UTF-8 character, nor between \\r and \\n."""
    end = len(data) - 1
    while end > 1 and (data[end] & 0xC0 == 0x80 or data[end - 1] == CARRIAGE_RETURN):
        end -= 1
    return end
