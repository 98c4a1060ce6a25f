"""Small files that become large: refused by name and place before the memory is full."""

import gzip
import json
import re
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tiny_run import ROOT, command, finished

from lathe.corpus import units
from lathe.corpus.formats.text import last_safe_cut

MB = 10**6
MOST_MEMORY = 600 * MB
measured = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process has held")


def prepare_and_measure(path: Path) -> tuple[int, str, int]:
    """Exit code, what it said, and most bytes that the process has held."""
    script = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print(open('/proc/self/status').read()))\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = ["prepare/text.py", f"--input={path}", f"--out={path.parent / 'out'}"]
    options = ["--tokenizer=byte", "--workers=1", "--val_fraction=0"]
    process = command("-c", script, *words, *options, env={"PYTHONPATH": str(ROOT)})
    code, out, err = finished(process, timeout=300)
    return code, err.strip().splitlines()[-1], 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", out)[1])


def parts_of(name: str) -> list[bytes]:
    """A small bomb: [beginning, what is repeated 300 times, end]."""
    return {
        "an open quote": [b'text\na\n"', b"x\n" * (MB // 2), b""],
        "one line": [b'{"text": "a"}\n{"text": "', b"x" * MB, b'"}\n'],
        "a text": [b'["a", "', b"x" * MB, b'"]'],
        "many lists": [b'[{"text": "a", "x": [', b"[]," * (MB // 3), b"[]]}]"],
        "many lists in a line": [b'{"text": "a"}\n{"x": [', b"[]," * (MB // 3), b"[]]}\n"],
        "a nest": [b'["a", ', b"[" * MB, b"]"],
        "a nest in a line": [b'{"text": "a"}\n', b"[" * MB, b"\n"],
        "a header": [b'"', b"x" * MB, b""],
        "spaces": [b'{"text": "a"}\n', b" " * MB, b"\n"],
    }[name]


@pytest.mark.exhaustive
@measured
@pytest.mark.slow
@pytest.mark.parametrize(
    ("bomb", "file", "said"),
    [
        ("an open quote", "a.csv.gz", "a.csv.gz:3 begins a record of more than 12.0 MB"),
        ("an open quote", "a.csv", "a.csv:3 begins a record of more than 12.0 MB"),
        ("one line", "a.jsonl.gz", "a.jsonl.gz:2 begins a record of more than 64.0 MB"),
        ("a text", "a.json.gz", "a.json.gz: element 2, line 1, begins a record of more than"),
        ("many lists", "a.json.gz", "a.json.gz: element 1, line 1, begins a record that would"),
        ("many lists in a line", "a.jsonl.gz", "a.jsonl.gz:2 begins a record of more than"),
        ("a nest", "a.json.gz", "a.json.gz: element 2 is not JSON: it is nested too deep"),
        ("a nest in a line", "a.jsonl.gz", "a.jsonl.gz:2 begins a record of more than 64.0 MB"),
        ("a header", "a.csv.gz", "a.csv.gz:1 begins a record of more than 12.0 MB"),
        ("spaces", "a.jsonl.gz", "a.jsonl.gz:2 begins a record of more than 64.0 MB"),
    ],
)
def test_a_bomb_is_named_with_file_and_place_below_600_megabytes(bomb, file, said, tmp_path):
    path = tmp_path / file
    begin, repeated, end = parts_of(bomb)
    opened = gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb")
    with opened as stored:
        stored.write(begin)
        for _ in range(300):
            stored.write(repeated)
        stored.write(end)
    code, last_line, peak = prepare_and_measure(path)
    assert code == 1 and said in last_line
    assert "cut it into several" in last_line or "too deep" in last_line
    assert peak < MOST_MEMORY


@measured
@pytest.mark.slow
def test_a_record_just_below_the_bound_is_read_below_600_megabytes(tmp_path):
    path = tmp_path / "a.jsonl"
    lists = "[]," * ((units.LARGEST_ROW - 100) // 3)
    path.write_text(json.dumps({"text": "a"}) + '\n{"text": "b", "x": [' + lists + "[]]}\n")
    code, _, peak = prepare_and_measure(path)
    assert code == 0 and peak < MOST_MEMORY


@measured
@pytest.mark.slow
def test_a_parquet_file_that_repeats_a_large_value_is_named_below_600_megabytes(tmp_path):
    path = tmp_path / "a.parquet"
    once = pyarrow.array(["a", "x" * 20 * MB])
    again = pyarrow.array([0] + [1] * 500, pyarrow.int32())
    table = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(again, once)})
    pyarrow.parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=10**9)
    assert path.stat().st_size < 100_000
    code, last_line, peak = prepare_and_measure(path)
    assert code == 1 and "a.parquet: row" in last_line and "use_dictionary=False" in last_line
    assert peak < MOST_MEMORY


SENTENCE = "The cat, who sat on a mat, saw seven sunny seas.\\n"
BOOK = SENTENCE * (50 * MB // len(SENTENCE))
EMOJI = "\U0001f389"  # with which each character takes four bytes
BOOKS = {
    "a line": ("a.jsonl", '{"text": "a"}\n{"text": "%s"}\n'),
    "an element": ("a.json", '["a", "%s"]'),
    "a line with an emoji": ("a.jsonl", '{"text": "a"}\n{"text": "%s' + EMOJI + '"}\n'),
}


@measured
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", BOOKS)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_book_of_50_megabytes_as_one_record_is_read_or_refused_below_600(
    name, compressed, tmp_path
):
    """It is compressed a thousandfold, and all right."""
    file, around = BOOKS[name]
    path = tmp_path / (file + ".gz" * compressed)
    with gzip.open(path, "wt") if compressed else open(path, "w") as stored:
        stored.write(around % BOOK)
    code, last_line, peak = prepare_and_measure(path)
    assert peak < MOST_MEMORY
    if EMOJI in around:
        assert code == 1 and f"{file}" in last_line and "more than 420 MB of memory" in last_line
    else:
        assert code == 0, last_line


@measured
@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["a.jsonl.gz", pytest.param("a.json.gz", marks=pytest.mark.exhaustive)]
)
def test_lists_within_the_largest_record_are_refused_before_they_are_read(file, tmp_path):
    path = tmp_path / file
    begin, repeated, end = parts_of("many lists" if file == "a.json.gz" else "many lists in a line")
    with gzip.open(path, "wb") as stored:
        stored.write(begin + 60 * repeated + end)
    code, last_line, peak = prepare_and_measure(path)
    assert code == 1 and f"{file}:" in last_line and "more than 420 MB of memory" in last_line
    assert peak < MOST_MEMORY


@measured
@pytest.mark.slow
@pytest.mark.parametrize("repeated", ["\n", " ", ".\n", "\r\n"], ids=repr)
def test_eight_megabytes_of_blank_lines_are_soon_read(repeated, tmp_path):
    path = tmp_path / "a.txt.gz"
    with gzip.open(path, "wt") as stored:
        stored.write("word\n" + repeated * (8 * MB // len(repeated)) + "word\n")
    code, _, peak = prepare_and_measure(path)
    assert code == 0 and peak < MOST_MEMORY


@pytest.mark.parametrize("size", [1, 999, 2**16 - 1, 2**16, 2**16 + 1, 3 * 2**16 + 7])
@pytest.mark.parametrize("end", ["\n", "\r\n", " b", "\n\n\n", " \n \n", "é\n—\n", "\r\r\n", ""])
def test_a_text_is_cut_after_its_last_word(size, end):
    data = ("x" * size + end).encode()
    expected = 0
    text = data.decode()
    line_ends = [m.start() for m in re.finditer(r"(?<=[^\W_])\r?\n", text)]
    spaces = [m.start() for m in re.finditer(r"(?<=[a-z]) (?=[a-z])", text)]
    if line_ends or spaces:
        expected = len(text[: (line_ends or spaces)[-1]].encode())
    assert last_safe_cut(data) == expected


def test_rows_of_any_file_are_bounded_alike(fails, unit_bytes, monkeypatch):
    monkeypatch.setattr(units, "LARGEST_RECORD", 1000)
    monkeypatch.setattr(units, "LARGEST_ROW", 1000)
    large = "x" * 1500
    Path("in/a.jsonl").write_text('{"text": "a"}\n' * 40 + json.dumps({"text": large}) + "\n")
    Path("in/b.json").write_text(json.dumps([{"text": "a"}, {"text": large}, {"text": "b"}]))
    Path("in/c.csv").write_text(f'text\na\n"{large}"\nb\n')
    table = pyarrow.table({"text": ["a", large]})
    pyarrow.parquet.write_table(table, "in/d.parquet")
    places = {
        "a.jsonl": "in/a.jsonl:41 begins a record",
        "b.json": "in/b.json: element 2, line 1, begins a record",
        "c.csv": "in/c.csv:3 begins a record",
        "d.parquet": "in/d.parquet: row 1 of row group 0 begins a record",
    }
    for size in (3, 300, 700):  # wherever they are cut
        unit_bytes(size)
        for name in ("a.jsonl", "b.json", "c.csv", "d.parquet"):
            for other in Path("in").iterdir():
                other.rename(Path(other.name))
            Path(name).rename(Path("in", name))
            fails(places[name])
            Path("in", name).rename(name)
            for other in places:
                Path(other).rename(Path("in", other))
