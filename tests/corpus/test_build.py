"""The whole of a preparation."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import SENTENCES, as_jsonl, prepare, stored_documents, write, write_jsonl

from lathe import ROOT
from lathe.run.lock import lock_folder
from prepare import text


def test_standard_input_is_text_or_what_format_says(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "prepare" / "text.py"),
        "--input",
        "-",
        "--tokenizer",
        "char",
        "--out",
    ]
    story = "Once upon a time. " * 50
    subprocess.run(
        [*command, str(tmp_path / "text")], input=story.encode(), check=True, capture_output=True
    )
    assert "".join(stored_documents(tmp_path / "text")) == story
    rows = as_jsonl(SENTENCES)
    done = subprocess.run(
        [*command, str(tmp_path / "rows"), "--format=jsonl"], input=rows, capture_output=True
    )
    assert done.returncode == 0 and done.stdout == b""
    assert sorted(stored_documents(tmp_path / "rows")) == sorted(SENTENCES)
    names = {"lock", "inputs.json", "meta.json", "tokenizer.json"}
    names |= {"train_000000.bin", "val_000000.bin"}
    assert {p.name for p in (tmp_path / "rows").iterdir()} == names


def test_running_the_same_command_again_does_nothing_unless_the_input_changed(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", SENTENCES)
    prepare(path, tmp_path / "out")
    before = (tmp_path / "out" / "meta.json").stat().st_mtime_ns
    prepare(path, tmp_path / "out")
    assert (tmp_path / "out" / "meta.json").stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().err
    path.write_text(path.read_text().replace("Document 50", "Document 5O"))
    after = (tmp_path / "out" / "meta.json").stat().st_mtime + 5
    os.utime(path, (after, after))
    prepare(path, tmp_path / "out")
    assert any("5O" in d for d in stored_documents(tmp_path / "out"))
    with pytest.raises(ValueError, match="holds a dataset of other input or options.*--overwrite"):
        prepare(path, tmp_path / "out", val_fraction=0.5)
    prepare(path, tmp_path / "out", val_fraction=0.5, overwrite=True)
    (tmp_path / "out" / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="--overwrite"):
        prepare(path, tmp_path / "out", val_fraction=0.5)


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
def test_empty_input(fails, tokenizer):
    write("a.txt", "")
    fails(
        r"no documents found in in/a.txt \(1 file, 1 document empty\)", f"--tokenizer={tokenizer}"
    )
    write("b.jsonl", '{"text": ""}\n{"text": null}\n')
    fails(
        r"no documents found in in/a.txt and others \(2 files, 3 documents empty\)",
        f"--tokenizer={tokenizer}",
    )
    assert not list(Path("out").glob("*.bin*"))


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


def test_two_at_a_time_in_one_folder(fails, tmp_path):
    write("a.txt", "some text")
    (tmp_path / "out").mkdir()
    with lock_folder("out", tmp_path / "out"):
        fails(
            f"out out is in use by process {os.getpid()} on .*: wait, stop it, or choose another --out"
        )
    text.main(["--input=in", "--out=out"])  # the lock is gone with its holder


class Usage:
    free = 500


def test_too_little_room_is_told_before_the_start(fails, monkeypatch):
    write("a.txt", "some text " * 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    fails("out=out: about 0.00 GB are needed, 0.00 GB are free: make room or name another folder")


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

    full = subprocess.run(command, capture_output=True, encoding="utf-8", preexec_fn=limit)
    assert full.returncode == 1
    message = r"error: out=.*/out: cannot write more \(.*\), about 0.0\d GB are needed in all; make room and run"
    assert re.search(message, full.stderr) and full.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.bin"))  # nothing unfinished has a finished name
    again = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert again.returncode == 0 and "continuing" in again.stderr
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert sum(t["bytes"] for t in meta["totals"].values()) == 19_000_000


def test_nothing_is_left_of_standard_input_that_the_disk_cannot_hold(tmp_path):
    resource = pytest.importorskip("resource")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    full = subprocess.run(
        [sys.executable, str(ROOT / "prepare" / "text.py"), "-", f"--out={tmp_path}/out"],
        input="a line of the text\n" * 100_000,
        capture_output=True,
        encoding="utf-8",
        preexec_fn=limit,
    )
    assert full.returncode == 1 and full.stderr.count("\n") == 1
    said = rf"error: out={tmp_path}/out: cannot write more \([^)]*\); make room and run the same"
    assert re.search(said, full.stderr), full.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lock"]


def test_what_a_preparation_does_not_need_is_not_imported(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 20)
    code = (
        "import sys; from prepare import text; text.main(['a.txt', '--out=out', '--tokenizer=byte']); "
        "print(*{'torch', 'pyarrow', 'datasets', 'fsspec', 'zstandard'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
