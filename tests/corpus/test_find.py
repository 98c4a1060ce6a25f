"""Which files an input means."""

import gzip
from pathlib import Path

import pytest
from corpora import SENTENCES, as_jsonl, as_parquet, prepare, shard_hashes, stored_documents, write

from lathe.corpus.find import find_inputs


def test_folders_patterns_and_files_are_found_once_and_in_order(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / ".hidden").mkdir()
    for name in ("b.txt", "a.md", "deep/c.py", ".hidden/d.txt", "picture.png"):
        (tmp_path / "in" / name).write_text(f"content of {name} " * 20)
    (tmp_path / "in" / "e.txt.gz").write_bytes(gzip.compress(b"content of e " * 20))
    out = tmp_path / "in" / "out"  # the folder written to lies inside the folder read
    prepare([tmp_path / "in", tmp_path / "in" / "*.txt"], out, val_fraction=0)
    begins = [d.split()[2] for d in stored_documents(out)]
    assert begins == ["a.md", "b.txt", "e", "deep/c.py"]
    prepare([tmp_path / "in" / "**" / "*.txt*"], tmp_path / "out2", val_fraction=0)
    assert [d.split()[2] for d in stored_documents(tmp_path / "out2")] == [
        ".hidden/d.txt",
        "b.txt",
        "e",
    ]
    prepare(
        [tmp_path / "in" / "picture.png"], tmp_path / "out3", val_fraction=0
    )  # named by itself: taken
    assert len(stored_documents(tmp_path / "out3")) == 1


def test_no_input(fails):
    fails("--input nothing.txt: no such file or folder", inputs=["nothing.txt"])
    fails(r"--input \*.xyz: no documents found", inputs=["*.xyz"])
    fails("--input in: no documents found")
    write("picture.png", b"\x89PNG")
    fails("--input in: no documents found")


@pytest.mark.parametrize(("name", "write"), [("x.jsonl", as_jsonl), ("x.parquet", as_parquet)])
def test_datasets_that_the_datasets_library_knows_are_read(name, write, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / name).write_bytes(write(SENTENCES))
    prepare(f"hf:{tmp_path}/hub", tmp_path / "out")
    prepare(f"hf:{tmp_path}/hub:train", tmp_path / "same")
    assert sorted(stored_documents(tmp_path / "out")) == sorted(SENTENCES)
    assert shard_hashes(tmp_path / "out") == shard_hashes(tmp_path / "same")
    with pytest.raises(ValueError, match="no split or configuration 'test'; splits: train"):
        prepare(f"hf:{tmp_path}/hub:test", tmp_path / "none")


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
        find_inputs(["hf:nobody/nothing"])
