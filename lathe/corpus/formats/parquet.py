"""Parquet: the cutter plans which rows to read, from the file's table of contents; workers read."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

from lathe.corpus import units
from lathe.corpus.rules import Rules, decode_utf8, missing_field, refuse_same_names
from lathe.corpus.source import Source, is_url, open_stored
from lathe.corpus.units import Block, ParquetRows, too_large

if TYPE_CHECKING:
    from pyarrow import Scalar
    from pyarrow.parquet import ColumnChunkMetaData, ParquetFile, RowGroupMetaData

BATCH_ROWS = 1000  # are in memory at a time, or fewer large ones
BATCH_BYTES = 2**25
# Of values that are stored once, in a dictionary, each row may be as large as all of them together.
LARGEST_BATCH = 2**28
MOST_TEXT = 100_000_000  # bytes of text in a block, which was meant to have units.UNIT_BYTES


def cut(source: Source, file: BinaryIO, rules: Rules) -> Iterator[Block]:
    import pyarrow
    import pyarrow.parquet

    if source.compression:
        raise ValueError(
            f"{source.label}: parquet files are read where they lie, and are compressed inside; "
            f"decompress it, so that its name ends in .parquet"
        )
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{source.label} is not a parquet file, or damaged: {_first_line(error)}"
        ) from error
    _wanted_columns(source.label, table.schema_arrow.names, rules)
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        n_rows = about.num_rows
        size = _size_of_what_is_read(about, rules)
        figures = [n_rows, about.total_byte_size, size]
        if not is_url(source.path):  # from elsewhere, all would be fetched twice
            figures.append(_sha256_of_what_is_read(file, about, rules))
        step = max(1, n_rows * units.UNIT_BYTES // max(size, units.UNIT_BYTES))
        for first in range(0, n_rows, step):
            end = min(first + step, n_rows)
            rows = ParquetRows(source.path, source.size, group, first, end, figures)
            yield Block(source.label, source.format, rows, offset=first, line=group)


def _columns_that_are_read(
    group: "RowGroupMetaData", rules: Rules
) -> Iterator["ColumnChunkMetaData"]:
    for number in range(group.num_columns):
        column = group.column(number)
        if rules.template or column.path_in_schema == rules.field:
            yield column


def _size_of_what_is_read(group: "RowGroupMetaData", rules: Rules) -> int:
    """Bytes, uncompressed, of the columns that the reader takes from a row group."""
    return sum(column.total_uncompressed_size for column in _columns_that_are_read(group, rules))


def _sha256_of_what_is_read(file: BinaryIO, group: "RowGroupMetaData", rules: Rules) -> str:
    """Of these columns as they lie in the file."""
    digest = hashlib.sha256()
    for column in _columns_that_are_read(group, rules):
        start = column.data_page_offset
        if column.dictionary_page_offset:
            start = min(start, column.dictionary_page_offset)
        file.seek(max(start, 0))  # a damaged table of contents may say anything
        left = column.total_compressed_size
        while left > 0:
            data = file.read(min(left, 2**20))
            if not data:
                break  # cut short, of which the reader tells
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def read(block: Block, rules: Rules, counts: Counter) -> Iterator[tuple[str, Any]]:
    import pyarrow

    wanted = block.data
    label = f"{block.label}: row group {wanted.group}"
    n_before = 0  # rows of the group in earlier batches
    n_bytes = 0  # of text in the rows so far
    try:
        table = _open_table(wanted.path, wanted.file_size)
        about = table.metadata.row_group(wanted.group)
        size = _size_of_what_is_read(about, rules)
        row_bytes = 1 + size // max(1, about.num_rows)
        batch_rows = min(BATCH_ROWS, wanted.end - wanted.first, BATCH_BYTES // row_bytes)
        if any(column.has_dictionary_page for column in _columns_that_are_read(about, rules)):
            batch_rows = min(batch_rows, LARGEST_BATCH // min(1 + size, units.LARGEST_RECORD))
        batches = table.iter_batches(
            max(1, batch_rows),
            row_groups=[wanted.group],
            columns=_wanted_columns(block.label, table.schema_arrow.names, rules),
            use_threads=False,
        )
        for batch in batches:
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            first = max(0, wanted.first - n_before)
            for i in range(first, min(len(batch), wanted.end - n_before)):
                where = f"{block.label}: row {n_before + i} of row group {wanted.group}"
                row = {}
                for name, column in columns.items():
                    row[name] = _value(where, name, column[i], rules, counts)
                    n_bytes += len(row[name]) if isinstance(row[name], str) else 0
                if n_bytes > max(MOST_TEXT, 2 * size):
                    raise ValueError(same_values_again(where, n_bytes, size))
                yield where, row
            n_before += len(batch)
            if n_before >= wanted.end:
                return
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{label} is damaged: {_first_line(error)}") from error
    raise ValueError(f"{label} is damaged: it has {n_before} rows, not {wanted.end}")


def same_values_again(where: str, n_bytes: int, size: int) -> str:
    """What is told of rows that take more memory than their file says."""
    return (
        f"{where} is the last of {n_bytes / 1e6:,.0f} MB of text that the file stores in "
        f"{size / 1e6:,.1f} MB, the same values again and again: write it without a dictionary "
        "(pyarrow: use_dictionary=False), or as JSON lines"
    )


def _value(where: str, name: str, scalar: "Scalar", rules: Rules, counts: Counter) -> Any:
    """As Python has it; bytes as text, since many programs store it so."""
    try:
        value = scalar.as_py()
    except UnicodeDecodeError as error:
        text = getattr(scalar, "value", scalar)  # in a dictionary
        if not hasattr(text, "as_buffer"):
            raise ValueError(f"{where}: {name!r} holds what is not UTF-8: {error}") from error
        value = text.as_buffer().to_pybytes()
    except (ValueError, OverflowError) as error:  # dates that Python has not, and such
        raise ValueError(f"{where}: {name!r} is no text but {scalar.type}") from error
    if isinstance(value, str | bytes) and len(value) > units.LARGEST_RECORD:
        raise ValueError(too_large(where, units.LARGEST_RECORD))
    if isinstance(value, bytes):
        return decode_utf8(value, where, 0, rules, counts)
    return value


def _wanted_columns(label: str, names: list[str], rules: Rules) -> list[str] | None:
    """The columns to read, None for all, as where a message shall name them. ValueError if what is
    asked for is missing or not clear."""
    wanted = [rules.field]
    if rules.template:
        wanted += [rules.prompt_field, rules.completion_field]
    elif rules.field not in names:
        raise ValueError(missing_field(label, "column", rules.field, names))
    wanted = [name for name in wanted if name in names]
    for name in wanted:
        refuse_same_names(label, name, names)
    has_enough = rules.field in wanted or len(wanted) == 2
    return wanted if has_enough else None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


@lru_cache(maxsize=1)
def _open_table(path: str, size: int) -> "ParquetFile":
    """A parquet file, kept open from unit to unit: its table of contents may be large and far away.
    `size` is there to tell a file from one that took its place."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(open_stored(path), page_checksum_verification=True)
