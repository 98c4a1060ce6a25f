"""The same command again: nothing to do, unless what was read has changed, whatever its size and time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import SENTENCES, as_parquet, prepare, stored_documents, write_jsonl

from lathe import ROOT
from lathe.corpus import source


def texts(folder) -> list[str]:
    return sorted(stored_documents(folder))


@pytest.fixture
def settled(monkeypatch):
    """Files are taken to be written long ago, as most are: their times can be relied on at once."""
    monkeypatch.setattr(source, "SETTLED_AFTER", -(10**18))


@pytest.mark.parametrize("age", ["new", "settled"])
def test_an_older_file_of_the_same_size_in_its_place_is_seen(age, tmp_path, request, capsys):
    if age == "settled":
        request.getfixturevalue("settled")
    older = write_jsonl(tmp_path / "older.jsonl", ["an old text", "and more"])
    path = write_jsonl(tmp_path / "a.jsonl", ["a new text.", "and more"])
    assert older.stat().st_size == path.stat().st_size
    os.utime(older, (1e9, 1e9))
    os.utime(path, (2e9 - 1e9, 1e9))
    prepare(path, tmp_path / "out", val_fraction=0)
    prepare(path, tmp_path / "out", val_fraction=0)
    assert "up to date" in capsys.readouterr().err
    os.replace(older, path)
    prepare(path, tmp_path / "out", val_fraction=0)
    assert texts(tmp_path / "out") == ["an old text", "and more"]
    assert "the input has changed: preparing it again" in capsys.readouterr().err


@pytest.mark.usefixtures("settled")
def test_a_folder_or_link_that_leads_elsewhere_now_is_seen(tmp_path, capsys):
    for version, word in (("v1", "first"), ("v2", "again")):
        (tmp_path / version).mkdir()
        for name in ("a.txt", "b.txt"):
            (tmp_path / version / name).write_text(f"{word} {name}")
            os.utime(tmp_path / version / name, (1e9, 1e9))
    os.symlink("v1", tmp_path / "current")
    prepare(tmp_path / "current", tmp_path / "out", val_fraction=0)
    os.remove(tmp_path / "current")
    os.symlink("v2", tmp_path / "current")
    prepare(tmp_path / "current", tmp_path / "out", val_fraction=0)
    assert texts(tmp_path / "out") == ["again a.txt", "again b.txt"]
    (tmp_path / "v2").rename(tmp_path / "v3")
    (tmp_path / "v1").rename(tmp_path / "v2")
    prepare(tmp_path / "current", tmp_path / "out", val_fraction=0)
    assert texts(tmp_path / "out") == ["first a.txt", "first b.txt"]


@pytest.mark.usefixtures("settled")
def test_a_file_that_was_only_touched_or_copied_is_not_prepared_again(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", SENTENCES)
    prepare(path, tmp_path / "out", val_fraction=0)
    shard = tmp_path / "out" / "train_000000.bin"
    before = shard.stat().st_mtime_ns
    os.utime(path)
    shutil.copy(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    capsys.readouterr()
    prepare(path, tmp_path / "out", val_fraction=0)
    said = capsys.readouterr().err
    assert "comparing the input with what" in said and "up to date" in said
    assert shard.stat().st_mtime_ns == before
    prepare(path, tmp_path / "out", val_fraction=0)  # from now on its new times are known
    assert "comparing" not in capsys.readouterr().err
    (tmp_path / "out" / "inputs.json").unlink()  # needed by nobody
    prepare(path, tmp_path / "out", val_fraction=0)
    assert "comparing" in capsys.readouterr().err


def test_parquet_is_known_by_its_content(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(as_parquet([f"text {i:04}" for i in range(400)]))
    prepare(path, tmp_path / "out", val_fraction=0)
    other = as_parquet([f"TEXT {i:04}" for i in range(400)])
    assert len(other) == path.stat().st_size
    path.write_bytes(other)
    os.utime(path, (1e9, 1e9))
    prepare(path, tmp_path / "out", val_fraction=0)
    assert all(text.startswith("TEXT") for text in texts(tmp_path / "out"))


def test_standard_input_is_known_by_its_content(tmp_path):
    words = [sys.executable, str(ROOT / "prepare" / "text.py"), "-", "--tokenizer=byte"]
    for text, said in (("one text", "ready"), ("one text", "up to date"), ("one TEXT", "changed")):
        done = subprocess.run(
            [*words, f"--out={tmp_path}/out"], input=text * 9, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0 and said in done.stderr, done.stderr
    assert "".join(stored_documents(tmp_path / "out")) == "one TEXT" * 9
    assert not (tmp_path / "out" / "stdin.tmp").exists()


def test_standard_input_beside_a_folder_is_read_after_it_and_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("from the folder")
    words = [sys.executable, str(ROOT / "prepare" / "text.py"), "-", str(tmp_path / "in")]
    words += [f"--out={tmp_path}/out", "--tokenizer=byte", "--val_fraction=0"]
    done = subprocess.run(words, input="from a pipe", capture_output=True, encoding="utf-8")
    assert "reading 1 file: 1 .txt, then standard input\n" in done.stderr
    assert stored_documents(tmp_path / "out") == ["from the folder", "from a pipe"]


def test_a_dataset_of_an_earlier_version_is_up_to_date_by_its_time(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", SENTENCES)
    prepare(path, tmp_path / "out", val_fraction=0)
    meta = Path(tmp_path / "out" / "meta.json")
    about = json.loads(meta.read_text(encoding="utf-8"))
    del about["content"], about["left_out"], about["options"]["dedup"]  # which came later
    meta.write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "out" / "inputs.json").unlink()
    os.utime(path, (1e9, 1e9))
    prepare(path, tmp_path / "out", val_fraction=0)
    assert "up to date" in capsys.readouterr().err
