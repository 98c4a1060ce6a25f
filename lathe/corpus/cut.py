"""Sources cut into units of work, the same ones whatever the number of workers."""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from itertools import chain, islice

from lathe.corpus.find import _open
from lathe.corpus.read import DELIMITERS, _decode, _no_field, _normalize, _value_of

UNIT_BYTES = 4_000_000


@dataclass(slots=True)
class Block:
    """A part of one file that can be turned into tokens on its own."""

    label: str
    format: str
    data: bytes | list  # bytes of whole lines or records; json: values; parquet: what _parquet_blocks puts there
    offset: int = 0  # of data in the (decompressed) file, in bytes
    line: int = 1  # number of data's first line; json: of its first element
    columns: list = field(default_factory=list)  # of csv and tsv
    hash: int | None = None  # of the whole document, where this is a piece of one
    split: str = ""


@dataclass(slots=True)
class Unit:
    blocks: list
    done_bytes: int  # of all input files on disk, up to the end of this unit
    cut: int | None = None  # character of this unit with which validation begins, where the split is by position

    def sha256(self) -> str:
        digest = sha256()
        for block in self.blocks:
            digest.update(f"{block.format} {len(block.data)}\n".encode())
            digest.update(block.data if isinstance(block.data, bytes) else json.dumps(block.data).encode())
        return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- cutting into units


def units(sources, rules):
    """The units of all sources, in order. Small files share a unit; large ones are cut at places that cost no token."""
    blocks, size, done = [], 0, 0
    for source in sources:
        if rules.template and source.format == "text":
            raise ValueError(f"{source.label} has no rows: say with --format which kind of file it is, such as jsonl")
        for block, raw_position in _blocks(source, rules):
            blocks.append(block)
            size += len(block.data) if isinstance(block.data, bytes) else UNIT_BYTES
            if size >= UNIT_BYTES * 0.9:
                yield Unit(blocks, done + raw_position)
                blocks, size = [], 0
        done += source.size
    if blocks:
        yield Unit(blocks, done)


def _blocks(source, rules):
    """(block, bytes of the file read so far) for each block of a source."""
    raw, file = _open(source)
    with raw:
        try:
            cutters = {"parquet": _parquet_blocks, "json": _json_blocks}
            for block in cutters.get(source.format, _byte_blocks)(source, file, rules):
                block.split = source.split
                yield block, min(raw.tell(), source.size)
        except Exception as error:
            if isinstance(error, (EOFError, gzip.BadGzipFile, zlib.error)) or type(error).__name__ == "ZstdError":
                raise ValueError(f"{source.label} is damaged or cut short: {error}") from error
            raise


def _byte_blocks(source, file, rules):
    cutters = {"text": _cut_text, "jsonl": lambda data: data.rfind(b"\n") + 1}
    pieces = _cut_file(file, cutters.get(source.format, _cut_records))
    begin = list(islice(pieces, 2))
    if not begin:
        yield Block(source.label, source.format, b"")  # an empty file is an empty document, and counted
        return
    columns, line, whole_hash = [], 1, None
    if source.format == "text" and len(begin) > 1 and rules.needs_hashes:
        whole_hash = _hash_of_file(source, rules)
    if source.format in DELIMITERS:
        text = _decode(Block(source.label, source.format, begin[0][1]), rules, Counter())
        columns = next(csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITERS[source.format]), [])
    for offset, data in chain(begin, pieces):
        yield Block(source.label, source.format, data, offset, line, columns, whole_hash)
        line += data.count(b"\n")


def _cut_file(file, cut):
    """(offset, bytes) pieces; `cut` finds the last good place in a piece, or 0 to get to see more of the file."""
    buffer, offset, size = b"", 0, UNIT_BYTES
    while True:
        chunk = file.read(size)
        buffer += chunk
        if len(chunk) < size:
            break
        if at := cut(buffer):
            yield offset, buffer[:at]
            offset, buffer = offset + at, buffer[at:]
        size = max(UNIT_BYTES, len(buffer))  # doubles while nothing is found, so that long lines take linear time
    if buffer:
        yield offset, buffer


def _cut_text(data):
    """The last place that no tokenizer's pattern lets a token cross: a letter or digit and a line end, or, where
    there is none, a letter and one space before another letter."""
    newline = len(data)
    while (newline := data.rfind(b"\n", 0, newline)) > 0:
        end = newline - (data[newline - 1] == 13)  # before \r\n
        if data[max(0, end - 4) : end].decode("utf-8", "ignore")[-1:].isalnum():
            return end
    space = len(data)
    while (space := data.rfind(b" ", 0, space)) > 0:
        if data[space - 1 : space].isalpha() and data[space + 1 : space + 2].isalpha():
            return space
    if len(data) < 4 * UNIT_BYTES:
        return 0
    print(f"prepare: no words in {len(data) / 1e6:.1f} MB: cutting anywhere, a token may differ", file=sys.stderr)
    return _cut_characters(data)


def _cut_characters(data):
    end = len(data) - 1
    while end > 1 and (data[end] & 0xC0 == 0x80 or data[end - 1] == 13):  # inside a character, or after \r
        end -= 1
    return end


def _cut_records(data):
    """Behind the last line end outside quotes: one with an even number of quotation marks before it."""
    before, end = data.count(b'"'), len(data)
    while (newline := data.rfind(b"\n", 0, end)) >= 0:
        before -= data.count(b'"', newline, end)
        if before % 2 == 0:
            return newline + 1
        end = newline
    return 0


def _hash_of_file(source, rules) -> int:
    """`document_hash` of a text too large for one block."""
    digest = blake2b(digest_size=8)
    raw, file = _open(source)
    with raw:
        for offset, data in _cut_file(file, _cut_text):
            text = _decode(Block(source.label, "text", data, offset), rules, Counter())
            digest.update(_normalize(text, rules, Counter()).encode())
    return int.from_bytes(digest.digest(), "little")


def _json_blocks(source, file, rules):
    """Texts of a JSON array, or of JSON values one after the other, without holding the whole file."""
    pieces = _cut_file(file, _cut_characters)
    chunks = (_decode(Block(source.label, "json", data, offset), rules, Counter()) for offset, data in pieces)
    decode, between, text = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*"), next(chunks, "")
    is_array = text.lstrip().startswith("[")
    position, values, size, number = text.find("[") + 1 if is_array else 0, [], 0, 1
    while True:
        position, problem = between.match(text, position).end(), None
        if is_array and text[position : position + 1] == "]":
            break
        try:
            value, end = decode(text, position)
            goes_on = end == len(text)  # as a number might
        except json.JSONDecodeError as error:
            problem, goes_on = error, error.pos >= len(text) - 10 or error.msg.startswith("Unterminated")
        if goes_on and (more := next(chunks, "")):
            text, position = text[position:] + more, 0
            continue
        if position == len(text) and not is_array:
            break
        where = f"{source.label}: element {number + len(values)}"
        if problem:
            raise ValueError(f"{where} is not JSON: {problem.msg}") from problem
        values.append(_value_of(value, where, rules))
        size, position = size + end - position, end
        if size >= UNIT_BYTES:
            yield Block(source.label, "json", values, line=number)
            number, values, size = number + len(values), [], 0
    if values or number == 1:
        yield Block(source.label, "json", values, line=number)


def _parquet_blocks(source, file, rules):
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{source.label} is not a parquet file, or damaged: {error}") from error
    names = table.schema_arrow.names
    if not rules.template and rules.field not in names:
        raise ValueError(_no_field(source.label, "column", rules.field, names))
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        size = sum(
            about.column(c).total_uncompressed_size
            for c in range(about.num_columns)
            if rules.template or about.column(c).path_in_schema == rules.field
        )
        step = max(1, about.num_rows * UNIT_BYTES // max(size, UNIT_BYTES))
        # The contents are read by the workers; these figures stand for them when an interrupted run goes on.
        figures = [about.num_rows, about.total_byte_size, size]
        for first in range(0, about.num_rows, step):
            rows = [source.path, source.size, group, first, min(first + step, about.num_rows), figures]
            yield Block(source.label, "parquet", rows, offset=first, line=group)
