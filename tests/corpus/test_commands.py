"""The commands for one source of text each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import SENTENCES, as_parquet, stored_documents, write_jsonl

from lathe import ROOT
from lathe.corpus import build
from lathe.data.dataset import open_dataset
from prepare import python_stdlib, shakespeare_char, tinystories, wikitext

SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "prepare").glob("*.py")))
def test_each_command_starts_from_any_folder(script, tmp_path):
    command = [sys.executable, str(ROOT / "prepare" / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: prepare/{script} ")


def test_ready_commands_are_the_general_one_with_defaults(tmp_path, monkeypatch):
    path, asked = write_jsonl(tmp_path / "a.jsonl", SENTENCES), []
    tinystories.main(["--input", str(path), "--out", str(tmp_path / "out"), "--val_fraction=0.2"])
    assert open_dataset(tmp_path / "out").meta["tokenizer"]["name"] == "bpe:4096"
    monkeypatch.setattr(build, "prepare", asked.append)
    tinystories.main(["--tokenizer=gpt2"])
    assert (asked[0].tokenizer, asked[0].out) == ("gpt2", "data/tinystories")
    assert asked[0].val_input == ["hf:roneneldan/TinyStories:validation"]


def test_tiny_shakespeare_is_cut_as_in_nanogpt(tmp_path):
    file = SHARED / "tinyshakespeare" / "input.txt"
    if not file.is_file():
        pytest.skip(f"tiny Shakespeare is not at {file}")
    shakespeare_char.main(["--input", str(file), "--out", str(tmp_path / "out")])
    dataset, content = open_dataset(tmp_path / "out"), file.read_text()
    assert (dataset.train.n_tokens, dataset.val.n_tokens, dataset.vocab_size) == (
        1_003_855,
        111_541,
        66,
    )
    assert stored_documents(tmp_path / "out") == [
        content[: int(len(content) * 0.9)],
        content[int(len(content) * 0.9) :],
    ]


def test_shakespeare_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="cannot be downloaded.*save https.*input.txt.*--input"):
        shakespeare_char.main(["--out", str(tmp_path / "out")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "input.txt").write_text("the text, downloaded by hand. " * 20)
    shakespeare_char.main(["--out", str(tmp_path / "out")])
    assert open_dataset(tmp_path / "out").val.n_tokens == 61


def test_the_standard_library_leaves_its_tests_out(tmp_path):
    library = tmp_path / "lib"
    for name in (
        "ast.py",
        "json/decoder.py",
        "test/test_ast.py",
        "site-packages/x.py",
        "idlelib/idle_test/t.py",
    ):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(f"# {name}\nimport sys\n" * 20)
    (library / "notes.txt").write_text("not Python")
    python_stdlib.main(["--input", str(library), "--out", str(tmp_path / "out")])
    dataset = open_dataset(tmp_path / "out")
    assert dataset.meta["files"] == 2 and dataset.tokenizer().kind == "bpe"
    stored = "".join(stored_documents(tmp_path / "out"))
    assert (
        "ast.py" in stored and "decoder" in stored and "test" not in stored and "site" not in stored
    )


def test_wikitext_joins_paragraphs_to_articles(tmp_path):
    rows = [
        "",
        " = Robert <unk> = \n",
        "",
        " He was . \n",
        "",
        " = = Career = = \n",
        " Acting . \n",
        " = Du Fu = \n",
        " A poet .",
    ]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.parquet").write_bytes(as_parquet(rows))
    name = wikitext.write_articles(str(tmp_path / "hub" / "train.parquet"), tmp_path / "a.jsonl")
    articles = [json.loads(line)["text"] for line in Path(name).read_text().splitlines()]
    first = " = Robert <unk> = \n He was . \n = = Career = = \n Acting . \n"
    assert articles == [first, " = Du Fu = \n A poet ."]
