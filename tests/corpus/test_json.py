"""JSON and JSON lines: every row of a file, or one line with the file and the line."""

import json
from collections import Counter
from pathlib import Path

import pytest
from corpora import prepare, stored_documents, write
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.corpus import units
from lathe.corpus.cut import cut_units
from lathe.corpus.find import make_source
from lathe.corpus.formats import FORMATS
from lathe.corpus.rules import Rules, text_of

anything = st.text(st.characters(codec=None, exclude_categories=[]), max_size=9)
rows = st.lists(anything.map(lambda text: {"text": text, "n": 1}) | anything, max_size=6)


def texts_of(path: Path, unit_bytes: int) -> list[str]:
    """The texts of a file that is cut into blocks of about that size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_BYTES", unit_bytes)
        texts = []
        for unit in cut_units([make_source(str(path))], Rules()):
            for block in unit.blocks:
                for where, row in FORMATS[block.format].read(block, Rules(), Counter()):
                    texts.append(text_of(where, row, Rules()))
    return texts


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.booleans(), rows), max_size=4),
    st.sampled_from([None, 1]),
    st.sampled_from(["", " ", "\n", "\r\n", ",\n"]),
    st.integers(1, 60),
)
def test_all_rows_are_read_of_arrays_and_of_what_stands_after_them(
    tmp_path_factory, parts, indent, between, size
):
    path = tmp_path_factory.mktemp("json") / "a.json"
    written = []
    for in_array, of_part in parts:
        if in_array:
            written.append(json.dumps(of_part, indent=indent))
        else:
            written += [json.dumps(row, indent=indent) for row in of_part]
    path.write_text(between.join(written))
    expected = [row if isinstance(row, str) else row["text"] for _, part in parts for row in part]
    assert texts_of(path, size) == expected


@settings(max_examples=200)
@given(st.text(st.sampled_from('[]{},"ab \n1'), max_size=12), st.integers(1, 9))
def test_a_file_is_read_or_refused_the_same_wherever_it_is_cut(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(text)

    def outcome(unit_bytes: int) -> list | str:
        try:
            return texts_of(path, unit_bytes)
        except ValueError as error:
            return str(error)

    assert outcome(size) == outcome(10**6)
    try:
        value = json.loads(text)
    except ValueError:
        return
    if isinstance(value, list) and all(isinstance(row, str) for row in value):
        assert outcome(size) == value


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('["a"]junk', "element 2 is not JSON: Expecting value at line 1"),
        ('["a"]}["b"]', "element 2 is not JSON: Expecting value at line 1"),
        ('["a"]\n\n]', "element 2 is not JSON: Expecting value at line 3"),
        ('[\n"a"\n"b"]', "element 2 is not JSON: neither a comma nor the array's end .* line 3"),
        ('["a",]', "element 2 is not JSON: a comma stands before the array's end at line 1"),
        ('["a",,"b"]', "element 2 is not JSON: Expecting value at line 1"),
        ('["a"', "element 2 is not JSON: neither a comma nor the array's end .* at line 1"),
        ("[", "element 1 is not JSON: Expecting value at line 1"),
        ('["a"]\n["b", ' + "1" * 5000 + "]", "element 3 is not JSON: a number has thousands"),
        (
            '["a"]\n' + '[{"text":' * 100_000,
            "element 2 is not JSON: it is nested too deep at line 2",
        ),
        ('["a", NaN]', "element 2 is no text and no object with fields but float"),
        ('{"text": "a", "text": "b"}', "element 1 has the key 'text' more than once: keep one"),
        ('["a\0b"]', "element 1 is not JSON: Invalid control character at line 1"),
        ('["a"]\0\0\0', "element 2 is not JSON: Expecting value at line 1"),
        ("{}", "element 1 has no field 'text'; found: none"),
    ],
    ids=lambda text: f"{text:.12}",
)
def test_what_is_no_row_is_refused(content, fault, fails, unit_bytes):
    write("a.json", content)
    fails(f"in/a.json: {fault}")
    unit_bytes(3)
    fails(f"in/a.json: {fault}")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1" * 5000, "is not JSON: a number has thousands of digits"),
        ('{"text": "a", "id": ' + "1" * 5000 + "}", "is not JSON: a number has thousands"),
        ("[" * 100_000 + "]" * 100_000, "is not JSON: it is nested too deep"),
        ('{"text": "a"} {"text": "b"}', "is not JSON: Extra data at column 15"),
        ('{"text": NaN}', ": 'text' is no text but float"),
        ('{"text": "a", "text": "b"}', " has the key 'text' more than once: keep one"),
        ('\ufeff{"text": "a"}', "is not JSON: it begins with a byte order mark"),
        ('{"text": "a\0"}', "is not JSON: Invalid control character at"),
        ("\0\0\0\0", "is not JSON: Expecting value at column 1$"),
        ("{", "is not JSON: .*; where rows do not stand on one line each, add --format=json"),
        ('{"text": "a"},', "is not JSON: Extra data at column 14; where rows .* add --format=json"),
        ('[{"text": "a"}]', " is a list, no row: where rows .* add --format=json"),
        ("5", " is no text and no object with fields but int"),
        ('{"te\\nxt": 1}', r" has no field 'text'; found: 'te\\nxt'"),
    ],
    ids=lambda text: f"{text:.12}",
)
def test_a_line_that_is_no_row_is_refused(line, fault, fails):
    write("a.jsonl", '{"text": "x"}\n' * 3 + line + "\n")
    fails(f"in/a.jsonl:4 ?{fault}")


def test_what_is_not_asked_for_may_be_anything(tmp_path):
    rows = '{"text": "a\\ud800", "x": NaN, "y": 1, "y": 2, "z": {"a": 1, "a": 2}}'
    nest = '{"text": "b", "x": ' + "[" * 500 + "]" * 500 + "}"
    (tmp_path / "a.jsonl").write_text(f"\ufeff{rows}\n{nest}\n")
    (tmp_path / "a.json").write_text(f"\ufeff[{rows},\n{nest}]")
    for name in ("a.jsonl", "a.json"):
        meta = prepare(tmp_path / name, tmp_path / f"{name}.out", val_fraction=0)
        assert stored_documents(tmp_path / f"{name}.out") == ["a\ufffd", "b"]
        assert meta["counts"] == {"lone surrogates replaced": 1}


def test_bytes_that_are_replaced_are_counted(tmp_path, unit_bytes):
    unit_bytes(50)
    rows = [b'{"text": "%d \xff"}' % i for i in range(40)]
    (tmp_path / "a.json").write_bytes(b"[" + b",\n".join(rows) + b"]")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    for name in ("a.json", "a.jsonl"):
        out = tmp_path / f"{name}.out"
        meta = prepare(tmp_path / name, out, val_fraction=0, errors="replace")
        assert stored_documents(out) == [f"{i} \ufffd" for i in range(40)]
        assert meta["counts"] == {"invalid byte sequences replaced": 40}


def test_a_row_over_many_pieces_is_read_in_linear_time(tmp_path, unit_bytes):
    unit_bytes(1000)
    text = "word " * 400_000
    (tmp_path / "a.json").write_text(json.dumps(["a", {"text": text}, "b"]))
    prepare(tmp_path / "a.json", tmp_path / "out", val_fraction=0)
    assert stored_documents(tmp_path / "out") == ["a", text, "b"]
