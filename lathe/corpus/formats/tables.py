"""CSV and TSV: a first row with the columns' names, and quotes around what needs them."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from lathe.corpus.rules import Rules, decode, missing_field
from lathe.corpus.source import Source
from lathe.corpus.units import Block, cut_stream

DELIMITERS = {"csv": ",", "tsv": "\t"}
LARGEST_FIELD = 2**31 - 1  # the largest limit that csv takes on every system


# -----------------------------------------------------------------------------
# The grammar: the cutter's side and the reader's


def last_row_end(data: bytes) -> int:
    """After the last line end outside quotes, or 0: one with an even number of quotes before it."""
    end = len(data)
    quotes_before = data.count(b'"')
    newline = data.rfind(b"\n")
    while newline >= 0:
        quotes_before -= data.count(b'"', newline, end)
        if quotes_before % 2 == 0:
            return newline + 1
        end = newline
        newline = data.rfind(b"\n", 0, end)
    return 0


def rows_of(text: str, format: str) -> Iterator[tuple[int, list[str]]]:
    """(lines before it, fields) of each row."""
    csv.field_size_limit(LARGEST_FIELD)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITERS[format])
    lines_before = 0
    for row in rows:
        yield lines_before, row
        lines_before = rows.line_num


# -----------------------------------------------------------------------------
# Blocks and rows


def cut(source: Source, file: BinaryIO, rules: Rules) -> Iterator[Block]:
    columns = []
    line = 1
    for offset, data in cut_stream(file, last_row_end):
        if offset == 0:
            text = decode(data, source.label, offset, rules, Counter())
            _, columns = next(rows_of(text, source.format), (0, []))
        yield Block(source.label, source.format, data, offset, line, columns)
        line += data.count(b"\n")


def read(block: Block, rules: Rules, counts: Counter) -> Iterator[tuple[str, Any]]:
    columns = block.columns
    if rules.template:
        needed = len(columns) - 1
    elif rules.field in columns:
        needed = columns.index(rules.field)
    else:
        raise ValueError(missing_field(f"{block.label}:1", "column", rules.field, columns))
    text = decode(block.data, block.label, block.offset, rules, counts)
    rows = rows_of(text, block.format)
    if block.offset == 0:
        next(rows, None)  # the columns' names
    for lines_before, row in rows:
        if not row:
            continue
        where = f"{block.label}:{block.line + lines_before}"
        if len(row) <= needed:
            raise ValueError(
                f"{where} has {len(row)} columns, {columns[needed]!r} is number {needed + 1}"
            )
        if rules.template:
            yield where, dict(zip(columns, row, strict=False))
        else:
            yield where, row[needed]
