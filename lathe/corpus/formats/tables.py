"""CSV and TSV: a first row with the columns' names, and as many fields in each row after it.

Rows end at line ends, as the first one does. In CSV a field may stand in quotes, which then hold
delimiters, line ends and doubled quotes; a quote elsewhere in a field is a character like others.
TSV has no quotes, unless the user says so.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from lathe.corpus import units
from lathe.corpus.rules import (
    BYTE_ORDER_MARK,
    Rules,
    decode,
    missing_field,
    refuse_same_names,
)
from lathe.corpus.source import Source, open_source
from lathe.corpus.units import Block, Table, cut_records, too_large

DELIMITERS = {"csv": ",", "tsv": "\t"}
HEADER_BYTES = 2**16  # are read at first to find the first row


# -----------------------------------------------------------------------------
# The grammar, the cutter's side: where rows end

QUOTED_FIELD = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')
FIRST_LINE_END = re.compile(rb"\r*\n|\r+")


def last_row_end(data: bytes, table: Table, begin: int = 0) -> int:
    """After the last row that ends in `data`, or 0; a row begins at `begin`."""
    row_end = 0
    line_end = table.row_end[-1].encode()
    for first, last in _outside_quotes(data, table, begin):
        row_end = max(row_end, data.rfind(line_end, first, last) + 1)
    return row_end


def first_row_end(data: bytes, table: Table, begin: int = 0) -> str:
    """What the first row ends with: "\\n", "\\r\\n" or "\\r"; "" if `data` does not tell."""
    for first, last in _outside_quotes(data, table, begin):
        line_end = FIRST_LINE_END.search(data, first, last)
        if line_end is None:
            continue
        if line_end[0] == b"\n":
            return "\n"
        if line_end[0].endswith(b"\n"):
            return "\r\n"
        return "\r" if line_end.end() < len(data) else ""
    return ""


def _outside_quotes(data: bytes, table: Table, begin: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of what lies outside of quoted fields, up to a quote that is not closed."""
    before_field = (table.delimiter + table.row_end[-1]).encode()
    quote = -1
    if table.has_quotes:
        quote = data.find(b'"', begin)
    first = begin
    while quote >= 0:
        if quote > begin and data[quote - 1] not in before_field:
            quote = data.find(b'"', quote + 1)
            continue
        yield first, quote
        field = QUOTED_FIELD.match(data, quote)
        if field is None:
            return
        first = field.end()
        quote = data.find(b'"', first)
    yield first, len(data)


# -----------------------------------------------------------------------------
# The grammar, the reader's side: the rows

LONE_RETURN = "\udc0d"  # stands for a \r that ends no row: decoded text has no surrogates
LONE_RETURNS = {
    "\n": re.compile(r'(?<!")\r|\r(?!\n)'),  # after a closing quote it belongs to the row's end
    "\r\n": re.compile(r"\r(?!\r*\n)"),
}
OLD_MAC = str.maketrans("\r\n", "\n\r")  # its line ends to ours, and back


def rows_of(text: str, table: Table, label: str, line: int) -> Iterator[tuple[str, list[str]]]:
    """(where it stands, fields) of each row, of an empty line no field. ValueError where quotes do
    not come in pairs. `line`: number of the first."""
    if table.row_end == "\r":
        text = text.translate(OLD_MAC)
        for where, fields in rows_of(text, table._replace(row_end="\n"), label, line):
            yield where, [field.translate(OLD_MAC) for field in fields]
    elif table.has_quotes:
        yield from _rows_with_quotes(text, table, label, line)
    else:
        yield from _rows_without_quotes(text, table, label, line)


def _rows_without_quotes(
    text: str, table: Table, label: str, line: int
) -> Iterator[tuple[str, list[str]]]:
    lines = text.split("\n")
    if not lines[-1]:  # after the last line end
        lines.pop()
    for number, row in enumerate(lines, line):
        if table.row_end == "\r\n":
            row = row.rstrip("\r")
        yield f"{label}:{number}", row.split(table.delimiter) if row else []


def _rows_with_quotes(
    text: str, table: Table, label: str, line: int
) -> Iterator[tuple[str, list[str]]]:
    csv.field_size_limit(units.LARGEST_ROW)
    n_lone_returns = 0
    if "\r" in text:
        text, n_lone_returns = LONE_RETURNS[table.row_end].subn(LONE_RETURN, text)
    rows = csv.reader(io.StringIO(text, newline="\n"), delimiter=table.delimiter, strict=True)
    while True:
        where = f"{label}:{line + rows.line_num}"
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{where} {_what_is_wrong(error)}") from error
        if n_lone_returns:
            fields = [field.replace(LONE_RETURN, "\r") for field in fields]
        yield where, fields


def _what_is_wrong(error: csv.Error) -> str:
    advice = "double the quotes inside of a field, or add --quotes=false if quotes are text"
    if "end of data" in str(error):
        return f"begins a row with a quote that is never closed: {advice}"
    if "expected after" in str(error):
        return f"begins a row with text after a closing quote: {advice}"
    return f"begins a row that is none: {error}"


# -----------------------------------------------------------------------------
# Blocks and rows


def cut(source: Source, file: BinaryIO, rules: Rules) -> Iterator[Block]:
    table = table_of(source, rules)
    line = 1

    def last_cut(data: bytes) -> int:
        return last_row_end(data, table, begin=_begin(data) if line == 1 else 0)

    def where() -> str:
        return f"{source.label}:{line}"

    for offset, data in cut_records(file, last_cut, where, units.LARGEST_ROW):
        yield Block(source.label, source.format, data, offset, line, table)
        line += data.count(table.row_end[-1].encode())


def table_of(source: Source, rules: Rules) -> Table:
    """What a file's first row says of the others."""
    has_quotes = rules.quotes == "true" or (rules.quotes == "auto" and source.format == "csv")
    table = Table(DELIMITERS[source.format], has_quotes)
    data = b""
    with open_source(source) as file:
        while True:
            if len(data) > units.LARGEST_ROW:
                raise ValueError(too_large(f"{source.label}:1", units.LARGEST_ROW))
            chunk = file.content.read(max(HEADER_BYTES, len(data)))
            data += chunk
            begin = _begin(data)
            row_end = first_row_end(data, table, begin)
            if not row_end:
                row_end = "\r" if data.endswith(b"\r") and not chunk else "\n"
            table = table._replace(row_end=row_end)
            end = last_row_end(data, table, begin) if chunk else len(data)
            text = decode(data[:end], source.label, 0, rules, Counter())
            for _, fields in rows_of(text, table, source.label, 1):
                if fields:
                    return table._replace(columns=tuple(fields))
            if not chunk:
                return table


def _begin(data: bytes) -> int:
    """Where the first row of a file begins."""
    return len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0


def read(block: Block, rules: Rules, counts: Counter) -> Iterator[tuple[str, Any]]:
    table = block.table
    columns = table.columns
    wanted = _wanted_columns(f"{block.label}:1", table, rules)
    text = decode(block.data, block.label, block.offset, rules, counts)
    awaits_header = block.offset == 0
    for where, fields in rows_of(text, table, block.label, block.line):
        if awaits_header:
            awaits_header = not fields
            continue
        if not fields:
            if len(columns) > 1:
                continue  # an empty line, which says nothing
            fields = [""]
        if len(fields) != len(columns):
            raise ValueError(_wrong_number(where, fields, table))
        if not table.has_quotes:
            counts[KEPT_QUOTES] += sum(_stands_in_quotes(fields[i]) for i in wanted)
        elif any(SPACED_QUOTE.match(fields[i]) for i in wanted):
            counts[SPACES_BEFORE_QUOTES] += 1
        if rules.template:
            yield where, dict(zip(columns, fields, strict=True))
        else:
            yield where, fields[wanted[0]]


KEPT_QUOTES = "fields in quotes, which are kept as text (--quotes=true takes them off)"
SPACES_BEFORE_QUOTES = "fields with a space before a quote, which both are kept as text"
SPACED_QUOTE = re.compile(r'[ \t]+"')


def _stands_in_quotes(field: str) -> bool:
    return len(field) > 1 and field[0] == '"' == field[-1]


def _wanted_columns(where: str, table: Table, rules: Rules) -> list[int]:
    """Numbers of the columns with what is asked for. ValueError if that is not clear."""
    names = [rules.field]
    if rules.template:
        names += [rules.prompt_field, rules.completion_field]
    elif rules.field not in table.columns:
        message = missing_field(where, "column", rules.field, table.columns)
        if not table.columns:
            message = f"{where} is no table but empty: its first row has the columns' names"
        elif other := _other_delimiter(table, rules.field):
            message += (
                f"; its fields seem to lie between {other!r}, which only {table.delimiter!r} does "
                f"here: save it so"
            )
        if not table.has_quotes and any(map(_stands_in_quotes, table.columns)):
            message += ", or add --quotes=true"
        raise ValueError(message)
    for name in names:
        refuse_same_names(where, name, table.columns)
    return [table.columns.index(name) for name in names if name in table.columns]


def _other_delimiter(table: Table, name: str) -> str:
    """What else lies between the columns' names, if the column asked for is there then; or ""."""
    for delimiter in {",", "\t", ";", "|"} - {table.delimiter}:
        for column in table.columns:
            names = [part.strip(' "') for part in column.split(delimiter)]
            if len(names) > 1 and name in names:
                return delimiter
    return ""


def _wrong_number(where: str, fields: list[str], table: Table) -> str:
    if table.has_quotes and len(fields) < len(table.columns):
        advice = "complete the row, or take it out"
    elif table.has_quotes:
        advice = f"put quotes around a field that has {table.delimiter!r} in it"
    else:
        advice = "if fields stand in quotes, add --quotes=true"
    return f"{where} has {len(fields)} fields, the first row {len(table.columns)}: {advice}"
