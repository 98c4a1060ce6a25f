"""Units of work: blocks of files, the same ones whatever the number of workers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import BinaryIO, NamedTuple

# About so many bytes make a unit: seconds of work, and what a worker holds in memory.
UNIT_BYTES = 4_000_000
# A row of a table, a line of JSON lines or an element of JSON has at most so many bytes (of JSON,
# characters): one file must not fill the memory, and JSON takes up to 24 times its size there.
LARGEST_RECORD = 12_000_000

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
    file: BinaryIO, last_cut: Callable[[bytes], int], where: Callable[[], str]
) -> Iterator[tuple[int, bytes]]:
    """cut_stream of what consists of records. ValueError that begins with where(), asked for the
    record which comes next, if that is larger than LARGEST_RECORD."""

    def refuse_large(data: bytes):
        # A piece grows only while its first record has no end: all others in it are smaller.
        if len(data) > LARGEST_RECORD and not last_cut(data[:LARGEST_RECORD]):
            raise ValueError(too_large(where()))

    def last_cut_of_small(data: bytes) -> int:
        refuse_large(data)
        return last_cut(data)

    for offset, data in cut_stream(file, last_cut_of_small):
        refuse_large(data)
        yield offset, data


def too_large(where: str) -> str:
    """What is told of a record that begins there."""
    return (
        f"{where} begins a record of more than {LARGEST_RECORD / 1e6:.1f} MB: cut it into several, "
        f"or store its text as a file of its own (is a quote or bracket never closed, or a line "
        f"end missing?)"
    )


def last_character_end(data: bytes) -> int:
    """Where to cut if any place will do: not inside a UTF-8 character, nor between \\r and \\n."""
    end = len(data) - 1
    while end > 1 and (data[end] & 0xC0 == 0x80 or data[end - 1] == CARRIAGE_RETURN):
        end -= 1
    return end
