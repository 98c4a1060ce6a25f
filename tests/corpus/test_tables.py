"""CSV and TSV: the rows that were written, or one line with the row that is none."""

import csv
import io
import random
from collections import Counter
from pathlib import Path

import pandas
import pytest
from corpora import prepare, shard_hashes, stored_documents, write
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lathe.corpus import units
from lathe.corpus.cut import cut_units
from lathe.corpus.find import make_source
from lathe.corpus.formats import tables
from lathe.corpus.rules import Rules

TEMPLATE = Rules(template="plain")  # gives rows with all their fields


def read_rows(path: Path, rules: Rules = TEMPLATE, unit_bytes: int = 10**6) -> list:
    """(where, row) of all rows of a file that is cut into blocks of about that size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_BYTES", unit_bytes)
        rows = []
        for unit in cut_units([make_source(str(path))], rules):
            for block in unit.blocks:
                rows += tables.read(block, rules, Counter())
    return rows


# -----------------------------------------------------------------------------
# Tables that programs write

field_texts = st.text(st.sampled_from('"",\t\r\n ab5é\x00\u2028\ufeff'), max_size=12)
any_texts = st.text(st.characters(codec="utf-8"), max_size=12)
rows_of_texts = st.lists(st.tuples(field_texts, field_texts | any_texts), max_size=12)
QUOTINGS = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def written_by_csv(rows, delimiter, quoting, row_end) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=row_end)
    writer.writerows([["id", "text"], *rows])
    return file.getvalue()


def written_by_pandas(rows, delimiter, quoting, row_end) -> str:
    frame = pandas.DataFrame(rows, columns=["id", "text"], dtype=object)
    return frame.to_csv(None, sep=delimiter, quoting=quoting, lineterminator=row_end, index=False)


@settings(max_examples=300)
@given(
    rows_of_texts,
    st.sampled_from([written_by_csv, written_by_pandas]),
    st.sampled_from([".csv", ".tsv"]),
    st.sampled_from(QUOTINGS),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.integers(4, 60),
    st.booleans(),
)
@example([("a", '5"'), ("b", "c")], written_by_csv, ".csv", csv.QUOTE_NONNUMERIC, "\n", 4, False)
@example([("a\r", "\r"), ("\r", "c\r")], written_by_pandas, ".csv", 0, "\n", 4, False)
def test_rows_are_those_that_were_written(folder, rows, written, kind, quoting, end, size, mark):
    # Written without quotes, this would make \r\n of the first row's end.
    assume(not (end == "\r" and rows and rows[0][0].startswith("\n")))
    path = folder / f"a{kind}"
    text = written(rows, tables.DELIMITERS[kind[1:]], quoting, end)
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    rules = Rules(template="plain", quotes="true")
    assert [tuple(row.values()) for _, row in read_rows(path, rules, size)] == rows


@given(
    st.lists(st.lists(st.text(st.sampled_from('"", ab5é\r'), max_size=9), min_size=2, max_size=2)),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(4, 60),
)
def test_tsv_without_quotes_has_its_fields_between_tabs(folder, rows, end, size):
    rows = [[field.strip("\r") if end == "\r\n" else field for field in row] for row in rows]
    lines = ["\t".join(row) + end for row in [["id", "text"], *rows]]
    (folder / "a.tsv").write_bytes("".join(lines).encode())
    assert [list(row.values()) for _, row in read_rows(folder / "a.tsv", TEMPLATE, size)] == rows


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("written", [written_by_csv, written_by_pandas])
@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_rows_of_a_large_table_are_those_that_were_written_on_any_number_of_workers(
    kind, written, tmp_path
):
    """Over two units, with stray quotes, and fields that hold whole tables."""
    draw = random.Random(1)
    pieces = ['5" ', '"', "a word, ", "\n", "\r\n", "\t", ",", '"\n"', "and another ", '","'] * 2
    rows = [(str(i), f"{i} " + "".join(draw.choices(pieces, k=30))) for i in range(60_000)]
    text = written(rows, tables.DELIMITERS[kind[1:]], csv.QUOTE_MINIMAL, "\n")
    assert len(text) > 2 * units.UNIT_BYTES
    path = tmp_path / f"a{kind}"
    path.write_bytes(text.encode())
    expected = sorted(text for _, text in rows)
    for workers in (1, 2, 4):
        out = tmp_path / str(workers)
        prepare(path, out, quotes="true", newlines="keep", workers=workers, shard_tokens=10**6)
        assert sorted(stored_documents(out)) == expected
        assert shard_hashes(out) == shard_hashes(tmp_path / "1")


# -----------------------------------------------------------------------------
# One grammar

any_table = st.text(st.sampled_from('"",,\n\n\rab'), max_size=40)


@settings(max_examples=500)
@given(any_table, st.booleans(), st.integers(1, 20))
@example('text\n"a\nb\n', True, 4)
@example('text\n"a"b\n"c"\n', True, 4)
@example('a 5" screen\nb\n"c\nd"\n', True, 4)
def test_rows_and_faults_are_the_same_wherever_a_table_is_cut(folder, text, quotes, size):
    (folder / "a.csv").write_bytes(b"text\n" + text.encode())
    rules = Rules(quotes=str(quotes).lower())

    def outcome(unit_bytes: int) -> list | str:
        try:
            return read_rows(folder / "a.csv", rules, unit_bytes)
        except ValueError as error:
            return str(error)

    assert outcome(size) == outcome(10**6)
    if quotes and "\r" not in text:
        try:
            rows = [row for row in csv.reader(io.StringIO(text), strict=True)]
        except csv.Error:
            assert isinstance(outcome(size), str)
            return
        if all(len(row) <= 1 for row in rows):
            assert [row for _, row in outcome(size)] == ["".join(row) for row in rows]


def test_a_stray_quote_in_a_large_file_moves_no_row(tmp_path, unit_bytes):
    unit_bytes(1000)
    rows = [f'{i},a 5" screen' if i % 7 == 0 else f"{i},a screen" for i in range(2000)]
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(rows))
    prepare(tmp_path / "a.csv", tmp_path / "out", val_fraction=0)
    texts = [row.partition(",")[2] for row in rows]
    assert stored_documents(tmp_path / "out") == texts


def test_sentences_in_tsv_may_begin_with_a_quote(tmp_path, capsys):
    rows = [f'{i}\t"Sentence {i}, he said' for i in range(500)] + ['500\t"quoted"']
    (tmp_path / "a.tsv").write_text("id\ttext\n" + "\n".join(rows))
    prepare(tmp_path / "a.tsv", tmp_path / "out", val_fraction=0)
    texts = [row.partition("\t")[2] for row in rows]
    assert stored_documents(tmp_path / "out") == texts
    assert "1 fields in quotes, which are kept as text (--quotes=true" in capsys.readouterr().err
    prepare(tmp_path / "a.tsv", tmp_path / "out", val_fraction=0, quotes="false", overwrite=True)
    assert stored_documents(tmp_path / "out") == texts


@pytest.mark.parametrize(
    ("table", "texts"),
    [  # reported of other readers, which took several rows for one
        ('id\ttext\n3\tabc\n4\t"abc"\n5\t"error\n6\tab"c', ["abc", '"abc"', '"error', 'ab"c']),
        ('id\ttext\n1\t"Lorem Ipsum" dolor\n2\tsit\x1a', ['"Lorem Ipsum" dolor', "sit\x1a"]),
        ('text\nFirst\n"Second\nThird "sentence"\n', ["First", '"Second', 'Third "sentence"']),
    ],
)
def test_quotes_in_tsv_that_others_stumbled_over(table, texts, tmp_path):
    (tmp_path / "a.tsv").write_text(table)
    prepare(tmp_path / "a.tsv", tmp_path / "out", val_fraction=0)
    assert stored_documents(tmp_path / "out") == texts


# -----------------------------------------------------------------------------
# What is no table


def test_quotes_that_are_not_closed_are_refused_with_their_row(fails, unit_bytes):
    write("a.csv", 'text\n"a\nb\n')
    fails("in/a.csv:2 begins a row with a quote that is never closed: double the quotes")
    unit_bytes(100)
    write("a.csv", "text\n" + "a\n" * 500 + '"b\n' + "c\n" * 500)
    fails("in/a.csv:502 begins a row with a quote that is never closed", "--workers=2")
    write("a.csv", "text\n" + "a\n" * 500 + '"b" c\n' + '"c"\n' * 500)
    fails("in/a.csv:502 begins a row with text after a closing quote", "--workers=2")
    write("a.csv", '"text\n')
    fails("in/a.csv:1 begins a row with a quote that is never closed")


def test_a_row_that_grows_without_end_is_refused_before_the_memory_is_full(
    fails, unit_bytes, monkeypatch
):
    unit_bytes(100)
    monkeypatch.setattr(units, "LARGEST_ROW", 10_000)
    write("a.csv", "text\nb\n" + '"b\n' + "c\n" * 50_000)
    fails("in/a.csv:3 begins a record of more than 0.0 MB: .*is a quote or bracket never closed")
    monkeypatch.setattr(tables, "HEADER_BYTES", 100)
    write("a.csv", '"text\n' + "c\n" * 50_000)
    fails("in/a.csv:1 begins a record of more than 0.0 MB")


def test_rows_with_another_number_of_fields_are_refused(fails):
    write("a.csv", "id,text\n1,hello\n2,hello, world\n")
    fails("in/a.csv:3 has 3 fields, the first row 2: put quotes around a field that has ',' in it")
    write("a.csv", "id,text,label\n1,hello,0\n2,hel")
    fails("in/a.csv:3 has 2 fields, the first row 3: complete the row, or take it out")
    Path("in/a.csv").unlink()
    write("a.tsv", 'id\ttext\n1\t"hello\nworld"\n')
    fails("in/a.tsv:3 has 1 fields, the first row 2: if fields stand in quotes, add --quotes=true")


def test_columns_that_are_not_clear_are_refused(fails):
    write("a.csv", "text,text\na,b\n")
    fails("in/a.csv:1 has 2 columns 'text': rename all but one")
    write("a.csv", "")
    fails("in/a.csv:1 is no table but empty: its first row has the columns' names$")
    write("a.csv", "id;text\n1;a\n")
    fails("in/a.csv:1 .* found: id;text.* its fields seem to lie between ';', which only ',' does")
    write("a.csv", ",".join(f"column {i}" for i in range(1000)))
    fails("in/a.csv:1 has no column 'text'; found: column 0, .*, and 980 more. Choose one")
    write("a.csv", f'"first{chr(10)}line\x1b[2J","{"long " * 50}"\n')
    fails(r"in/a.csv:1 has no column 'text'; found: 'first\\nline\\x1b\[2J', long long")
    Path("in/a.csv").unlink()
    write("a.tsv", '"id"\t"text"\n1\ta\n')
    fails("""in/a.tsv:1 has no column 'text'; found: "id", "text".*or add --quotes=true""")


def test_quotes_after_a_space_quote_nothing_and_are_counted(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1, "a"\n2, b\n3,c "d"\n4,"e"\n5, "f\n')
    meta = prepare(tmp_path / "a.csv", tmp_path / "out", val_fraction=0)
    assert stored_documents(tmp_path / "out") == [' "a"', " b", 'c "d"', "e", ' "f']
    assert meta["counts"] == {tables.SPACES_BEFORE_QUOTES: 2}


def test_empty_lines_say_nothing_but_where_text_is_the_only_column(tmp_path):
    (tmp_path / "a.csv").write_text("\n\nid,text\n\n1,a\n\n\n2,b\n\n")
    meta = prepare(tmp_path / "a.csv", tmp_path / "a", val_fraction=0)
    assert stored_documents(tmp_path / "a") == ["a", "b"] and meta["counts"] == {}
    (tmp_path / "b.csv").write_text('text\na\n\nb\n""\n')
    meta = prepare(tmp_path / "b.csv", tmp_path / "b", val_fraction=0)
    assert stored_documents(tmp_path / "b") == ["a", "b"]
    assert meta["counts"] == {"empty documents skipped": 2}


def test_a_first_row_larger_than_a_unit(tmp_path, unit_bytes):
    unit_bytes(100)
    columns = [f"column {i}" for i in range(30_000)]
    table = ",".join([*columns, "text"]) + "\n" + "," * len(columns) + "a\n"
    (tmp_path / "a.csv").write_text(table)
    prepare(tmp_path / "a.csv", tmp_path / "out", val_fraction=0)
    assert stored_documents(tmp_path / "out") == ["a"]


@pytest.mark.parametrize("content", [b'text\n"a\xc3\n"\n', b'te\xff,"text"\n1,2\n'])
def test_tables_that_are_not_utf8(content, fails):
    write("a.csv", content)
    fails("in/a.csv is not UTF-8 at byte")
