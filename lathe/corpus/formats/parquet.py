"""Parquet: the cutter plans which rows to read, from the file's table of contents; workers read."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

from lathe.corpus import units
from lathe.corpus.rules import Rules, missing_field
from lathe.corpus.source import Source, is_url, open_stored
from lathe.corpus.units import Block, ParquetRows

if TYPE_CHECKING:
    from pyarrow.parquet import ColumnChunkMetaData, ParquetFile, RowGroupMetaData

BATCH_ROWS = 1000


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
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{source.label} is not a parquet file, or damaged: {error}") from error
    names = table.schema_arrow.names
    if not rules.template and rules.field not in names:
        raise ValueError(missing_field(source.label, "column", rules.field, names))
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
        file.seek(start)
        left = column.total_compressed_size
        while left > 0:
            data = file.read(min(left, 2**20))
            if not data:
                break  # cut short, of which the reader tells
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def read(block: Block, rules: Rules, counts: Counter) -> Iterator[tuple[str, Any]]:
    wanted = block.data
    columns = None if rules.template else [rules.field]
    batches = _open_table(wanted.path, wanted.file_size).iter_batches(
        min(BATCH_ROWS, wanted.end - wanted.first),
        row_groups=[wanted.group],
        columns=columns,
        use_threads=False,
    )
    n_before = 0  # rows of the group in earlier batches
    for batch in batches:
        names = batch.schema.names
        for i in range(max(0, wanted.first - n_before), min(len(batch), wanted.end - n_before)):
            where = f"{block.label}: row {n_before + i} of row group {wanted.group}"
            yield where, {name: batch.column(name)[i].as_py() for name in names}
        n_before += len(batch)
        if n_before >= wanted.end:
            return


@lru_cache(maxsize=1)
def _open_table(path: str, size: int) -> "ParquetFile":
    """A parquet file, kept open from unit to unit: its table of contents may be large and far away.
    `size` is there to tell a file from one that took its place."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(open_stored(path))
