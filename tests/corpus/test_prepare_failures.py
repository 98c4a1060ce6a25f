"""What prepare says when something is wrong: one line with the file, the place and the fix, and an exit code."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lathe import ROOT, cli
from lathe.corpus.find import find_sources
from lathe.run.lock import lock_folder
from lathe.text.tokenizer import train_char
from prepare import text


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Runs prepare/text.py on the files of tmp_path/in and asserts one matching line on stderr and the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(match, *arguments, inputs=("in",), out="out", code=1):
        with pytest.raises(SystemExit) as end:
            cli.run(
                lambda: text.main(
                    ["--input", *inputs, f"--out={out}", "--tokenizer=byte", *arguments]
                )
            )
        printed = capsys.readouterr()
        assert end.value.code == code and printed.out == ""
        assert re.search(match, printed.err), printed.err
        assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
        assert not (tmp_path / out / "meta.json").exists()

    (tmp_path / "in").mkdir()
    return run


def write(name, content):
    path = Path("in", name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_no_input(fails):
    fails("--input nothing.txt: no such file or folder", inputs=["nothing.txt"])
    fails(r"--input \*.xyz: no documents found", inputs=["*.xyz"])
    fails("--input in: no documents found")
    write("picture.png", b"\x89PNG")
    fails("--input in: no documents found")


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
def test_empty_input(fails, tokenizer):
    write("a.txt", "")
    fails(
        r"no documents found in in/a.txt \(1 files, 1 documents empty\)", f"--tokenizer={tokenizer}"
    )
    write("b.jsonl", '{"text": ""}\n{"text": null}\n')
    fails(
        r"no documents found in in/a.txt and others \(2 files, 3 documents empty\)",
        f"--tokenizer={tokenizer}",
    )
    assert not list(Path("out").glob("*.bin*"))


def test_text_that_is_not_utf8(fails):
    write("a.txt", "good text\n" * 10)
    write("b.txt", b"good\n" * 10 + b"caf\xe9 noir")
    fails(r"in/b.txt is not UTF-8 at byte 53 \(e9\); convert it or use --errors replace")
    write("b.txt", b"\xef\xbb\xbf" + b"x" * 5 + b"\xff")
    fails(r"in/b.txt is not UTF-8 at byte 8 \(ff\)")
    write("b.txt", "UTF-16 has a mark in front".encode("utf-16"))
    fails("in/b.txt is not UTF-8 at byte 0")


@pytest.mark.parametrize("name", ["b.jsonl", "b.json", "b.csv"])
def test_data_files_that_are_not_utf8(fails, name):
    content = {
        "b.jsonl": b'{"text": "ab\xff"}',
        "b.json": b'[{"text": "ab\xff"}]',
        "b.csv": b"text\nab\xff\n",
    }[name]
    write(name, content)
    byte = content.index(b"\xff")
    fails(rf"in/{name} is not UTF-8 at byte {byte} \(ff\)")


def test_text_that_is_not_utf8_far_into_a_large_file(fails, monkeypatch):
    monkeypatch.setattr("lathe.corpus.units.UNIT_BYTES", 1000)
    write("a.txt", b"one line of text\n" * 1000 + b"\xc3(" + b"and on\n" * 1000)
    fails(r"in/a.txt is not UTF-8 at byte 17000 \(c3\)")
    write("b.jsonl", b'{"text": "good"}\n' * 1000 + b'{"text": "\x80"}\n')
    Path("in/a.txt").unlink()
    fails(r"in/b.jsonl is not UTF-8 at byte 17010 \(80\)")


def test_lines_that_are_not_json(fails, monkeypatch):
    monkeypatch.setattr("lathe.corpus.units.UNIT_BYTES", 1000)
    write("a.jsonl", '{"text": "x"}\n' * 500 + '{"text": "x}\n')
    fails("in/a.jsonl:501 is not JSON: .* at column 10")
    write("a.jsonl", '{"text": "x"}\n' * 500 + "[1, 2]\n")
    fails("in/a.jsonl:501: 'text' is no text but list; choose another with --field")


def test_missing_fields_name_those_that_exist(fails):
    write("a.jsonl", '{"text": "x"}\n{"body": "x", "id": 1}\n')
    fails("in/a.jsonl:2 has no field 'text'; found: body, id. Choose one with --field")
    write("a.jsonl", '{"text": 5}\n')
    fails("in/a.jsonl:1: 'text' is no text but int")
    Path("in/a.jsonl").unlink()
    write("a.csv", "id,body\n1,x\n")
    fails("in/a.csv:1 has no column 'text'; found: id, body. Choose one with --field")
    write("a.csv", 'id,text\n1,"x\ny"\n2\n')
    fails("in/a.csv:4 has 1 columns, 'text' is number 2")
    Path("in/a.csv").unlink()
    write("a.json", '[{"text": "x"}, {"content": "x"}]')
    fails("in/a.json: element 2 has no field 'text'; found: content")


def test_missing_and_wrong_parquet_columns(fails):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "body": ["x", "y"]}), "in/a.parquet")
    fails("in/a.parquet has no column 'text'; found: id, body")
    fails("in/a.parquet: row 0 of row group 0: 'id' is no text but int", "--field=id")
    Path("in/a.parquet").write_bytes(b"PAR1 not really")
    fails("in/a.parquet is not a parquet file, or damaged")


def test_damaged_json_and_archives(fails):
    write("a.json", '[{"text": "x"}, {"text": ')
    fails("in/a.json: element 2 is not JSON")
    write("a.json", '[{"text": "x"}, {"text": x}, ' + '{"text": "more"}, ' * 100)
    fails("in/a.json: element 2 is not JSON: Expecting value")
    write("a.json", '{"text": "x"} {"text": "y')
    fails("in/a.json: element 2 is not JSON: Unterminated string")
    Path("in/a.json").unlink()
    whole = gzip.compress(os.urandom(5000).hex().encode())
    write("a.txt.gz", whole[: len(whole) // 2])
    fails("in/a.txt.gz is damaged or cut short")
    write("a.txt.gz", whole[:2000] + bytes(50) + whole[2050:])
    fails("in/a.txt.gz is damaged or cut short")
    write("a.txt.gz", b"no archive at all")
    fails("in/a.txt.gz is damaged or cut short")
    Path("in/a.txt.gz").unlink()
    write("a.txt.zst", b"no archive at all")
    fails("in/a.txt.zst is damaged or cut short")


def test_tokenizers_that_do_not_exist_or_cannot_be_reached(fails, monkeypatch, tmp_path):
    write("a.txt", "some text")
    fails("tokenizer=gtp2 is neither one of byte, char, bpe:N, gpt2", "--tokenizer=gtp2")
    fails("tokenizer=bpe:lots: write bpe:N with N from 257", "--tokenizer=bpe:lots", code=2)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    fails(
        "gpt2: its files cannot be reached .*vocab.bpe as .*TIKTOKEN_CACHE_DIR", "--tokenizer=gpt2"
    )


def test_a_character_tokenizer_of_another_text(fails, tmp_path):
    train_char(["abc"]).save(tmp_path)
    write("a.txt", "abcd")
    fails(r"unknown to the character tokenizer: 'd' \(U\+0064\)", f"--tokenizer={tmp_path}")


def test_options_that_make_no_sense(fails):
    write("a.txt", "some text")
    fails("val_fraction=1.5 must be at least 0 and below 1", "--val_fraction=1.5", code=2)
    fails("out=in/a.txt is a file; name a folder", out="in/a.txt")
    fails("shard_tokens=0 must be from 1 to 2147483647", "--shard_tokens=0", code=2)
    fails("workers=-1 must be from 0 to 1024", "--workers=-1", code=2)
    fails("--out FOLDER is missing", "--out=", code=2)


def test_no_input_given_is_wrong_use(capsys):
    with pytest.raises(SystemExit) as end:
        text.main(["--out=out"])
    assert end.value.code == 2 and "--input FILE... is missing" in capsys.readouterr().err


def test_hub_datasets_that_cannot_be_opened(fails, monkeypatch):
    pytest.importorskip("datasets")
    Path("in/nothing").mkdir()
    fails("--input hf:in/nothing: datasets cannot open it: ", inputs=["hf:in/nothing"])
    fails("--input hf: names no dataset: write hf:NAME", inputs=["hf:"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match="https://huggingface.co/datasets/nobody/nothing elsewhere.*--input FOLDER"
    ):
        find_sources(["hf:nobody/nothing"])


def test_addresses_that_cannot_be_opened(fails):
    pytest.importorskip("fsspec")
    fails(r"--input nowhere://x.jsonl: cannot be opened \(ValueError", inputs=["nowhere://x.jsonl"])


def test_two_at_a_time_in_one_folder(fails, tmp_path):
    write("a.txt", "some text")
    (tmp_path / "out").mkdir()
    with lock_folder("out", tmp_path / "out"):
        fails(
            f"out out is in use by process {os.getpid()} on .*: wait, stop it, or choose another --out"
        )
    text.main(["--input=in", "--out=out"])  # the lock is gone with its holder


def test_too_little_room_is_told_before_the_start(fails, monkeypatch):
    write("a.txt", "some text " * 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    fails("out=out: about 0.00 GB are needed, 0.00 GB are free: make room or name another folder")


class Usage:
    free = 500


def test_a_full_disk_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    """A limit on the size of files stands in for a full disk: writing fails in the same place."""
    resource = pytest.importorskip("resource")
    (tmp_path / "a.txt").write_text("a line of the text\n" * 1_000_000)
    command = [
        sys.executable,
        str(ROOT / "prepare" / "text.py"),
        f"--input={tmp_path}/a.txt",
        f"--out={tmp_path}/out",
    ]
    command += ["--tokenizer=byte", "--workers=1"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))

    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert full.returncode == 1
    message = r"error: out=.*/out: cannot write more \(.*\), about 0.0\d GB are needed in all; make room and run"
    assert re.search(message, full.stderr) and full.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.bin"))  # nothing unfinished has a finished name
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "continuing" in again.stderr
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert sum(t["bytes"] for t in meta["totals"].values()) == 19_000_000
