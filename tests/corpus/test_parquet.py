"""Parquet: texts of every type of column, and one line where a file or a row has none."""

import io
import random
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from corpora import SENTENCES, prepare, stored_documents, write

from lathe.corpus.cut import cut_units
from lathe.corpus.find import make_source
from lathe.corpus.formats import parquet
from lathe.corpus.rules import Rules

TEXTS = ["a", "", None, "é", "\ufeffb"]
AS_BYTES = [text and text.encode() for text in TEXTS]


@pytest.fixture(autouse=True)
def no_open_table():
    """None of an earlier test, whose file had the same name and size."""
    parquet._open_table.cache_clear()


def file_of(table: pyarrow.Table | dict, **options) -> bytes:
    if isinstance(table, dict):
        table = pyarrow.table(table)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(TEXTS, pyarrow.string()),
        pyarrow.array(TEXTS, pyarrow.large_string()),
        pyarrow.array(TEXTS).dictionary_encode(),
        pyarrow.array(AS_BYTES, pyarrow.binary()),
        pyarrow.array(AS_BYTES, pyarrow.large_binary()),
        pyarrow.array(AS_BYTES, pyarrow.binary()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type)[:30],
)
def test_texts_of_every_type_are_read_and_empty_ones_counted(column, tmp_path):
    nest = [{"text": "other", "x": [1]}] * len(TEXTS)
    write_to = tmp_path / "a.parquet"
    write_to.write_bytes(file_of({"nest": nest, "text": column}, row_group_size=2))
    meta = prepare(write_to, tmp_path / "out", val_fraction=0)
    assert stored_documents(tmp_path / "out") == ["a", "é", "\ufeffb"]
    assert meta["counts"] == {"empty documents skipped": 2}


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pyarrow.array([["a"], ["b"]]), "list"),
        (pyarrow.array([{"text": "a"}] * 2), "dict"),
        (pyarrow.array([1.5, 2.5]), "float"),
        (pyarrow.array([2**62, 2**62], pyarrow.timestamp("us")), "timestamp"),
    ],
    ids=lambda value: str(getattr(value, "type", value))[:12],
)
def test_columns_of_other_types_are_refused_with_the_row(column, what, fails):
    write("a.parquet", file_of({"text": column}))
    fails(f"in/a.parquet: row 0 of row group 0: 'text' is no text but {what}")


def test_columns_may_have_any_names_but_not_the_same_one(fails, tmp_path, capsys):
    write("a.parquet", file_of({"a.b": ["x"], "a": [{"b": "y"}]}))
    prepare("in/a.parquet", tmp_path / "dotted", field="a.b", val_fraction=0)
    assert stored_documents(tmp_path / "dotted") == ["x"]
    capsys.readouterr()
    same = pyarrow.Table.from_arrays([["x"], ["y"], ["z"]], names=["text", "text", "other"])
    write("a.parquet", file_of(same))
    fails("in/a.parquet has 2 columns 'text': rename all but one")
    prepare("in/a.parquet", tmp_path / "other", field="other", val_fraction=0)
    assert stored_documents(tmp_path / "other") == ["z"]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.binary()], ids=str)
def test_texts_that_are_not_utf8_are_refused_or_replaced_with_a_word(kind, fails, tmp_path, capsys):
    plain = pyarrow.array([b"a", b"b\xff", b"c"], pyarrow.binary()).view(kind)
    for column in (plain, plain.dictionary_encode()):
        write("a.parquet", file_of({"text": column}))
        fails("in/a.parquet: row 1 of row group 0 is not UTF-8 at byte 1 .ff.; convert it")
        out = tmp_path / "replaced"
        meta = prepare("in/a.parquet", out, errors="replace", val_fraction=0, overwrite=True)
        assert stored_documents(out) == ["a", "b\ufffd", "c"]
        capsys.readouterr()
        assert meta["counts"] == {"invalid byte sequences replaced": 1}


# -----------------------------------------------------------------------------
# Damage


def texts_of(path: Path) -> list[str]:
    texts = []
    for unit in cut_units([make_source(str(path))], Rules()):
        for block in unit.blocks:
            for _, row in parquet.read(block, Rules(), Counter()):
                texts.append(row["text"])
    return texts


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    whole = file_of({"text": SENTENCES[:20]}, row_group_size=9)
    path = tmp_path / "a.parquet"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=r"a\.parquet is not a parquet file, or damaged: [^\n]*$"
        ):
            texts_of(path)
    path.write_bytes(whole)
    assert texts_of(path) == SENTENCES[:20]


def test_flipped_bits_are_found_by_checksums_and_named(tmp_path):
    whole = file_of({"n": range(400), "text": SENTENCES}, write_page_checksum=True)
    path = tmp_path / "a.parquet"
    draw = random.Random(1)
    n_found = 0
    for _ in range(100):
        content = bytearray(whole)
        content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        parquet._open_table.cache_clear()
        try:
            assert texts_of(path) == SENTENCES  # of the other column, or a comment
        except ValueError as error:
            assert "a.parquet" in str(error) and "\n" not in str(error)
            n_found += 1
    assert n_found > 50
