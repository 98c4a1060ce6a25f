"""Any name that the system allows, of what is read and of what is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import SENTENCES, prepare, stored_documents, write_jsonl
from tiny_run import SMALL

from lathe import ROOT
from lathe.corpus.find import find_inputs
from lathe.data.dataset import open_dataset
from lathe.data.shards import write_dataset
from lathe.text.tokenizer import load_tokenizer

NAMES = {
    "latin 1": "caf\udce9",
    "comma": "a,b",
    "colon": "v:2",
    "weight": "a:0.5,b:0.5",
    "glob": "[x]*?",
    "newline": "two\nlines",
    "quotes": "'single' \"double\" `back` \\ $HOME",
    "spaces": "  two  spaces  ",
    "dash": "-dash",
    "option": "--workers=x",
    "home": "~",
    "address": "s3:",
    "hub": "hf:name@main:train",
    "raw": "raw:byte:x",
    "emoji": "🏳️‍🌈 日本語",
    "control": "\x1b[31m\x7f\x9b",
    "255 bytes": "é" * 127 + "x",
    "percent": "%41%n{x}",
}

if sys.platform == "darwin":  # where names are UTF-8
    del NAMES["latin 1"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="not all of these are names there")


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_of_a_folder_is_read_and_written(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text("one text")
    write_jsonl(tmp_path / name / "b.jsonl", SENTENCES[:5])
    out = f"{name}/{name}"
    prepare(name, out, val_fraction=0)
    assert sorted(stored_documents(out)) == sorted(["one text", *SENTENCES[:5]])
    prepare(name, out, val_fraction=0)
    said = capsys.readouterr().err
    assert "is up to date" in said
    dataset = open_dataset(out)
    assert dataset.path == out and dataset.meta["options"]["input"] == [name]
    assert dataset.tokenizer().kind == "byte" and load_tokenizer(out).kind == "byte"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_of_a_file_is_read(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = name if len(name) < 100 else f"{name[:-4]}.txt"
    Path(name).write_text("one text")
    for inputs in ([name], ["."], [f"./{name}", name], [tmp_path / name]):
        assert [
            source.size for source in find_inputs([str(i) for i in inputs], format="text").sources
        ] == [8]
    (source,) = find_inputs([name]).sources
    assert source.label.isprintable() and json.loads(json.dumps(source.identity()))


def test_names_that_are_none(fails):
    (Path("in") / "a.txt").write_text("text")
    fails("--val_input - means standard input, which only --input reads", "--val_input=-")
    fails("--input is an empty name: name a file or folder", inputs=[""])


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_mixture_is_cut_around_names_that_there_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    byte = load_tokenizer("byte")
    write_dataset(name, byte, ["a" * 50], ["v"])
    write_dataset("plain", byte, ["b" * 70], ["w"])
    assert open_dataset(name).train.n_tokens == 51
    for mixture in (
        f"{name}:0.75,plain:0.25",
        f"plain:0.25,{name}:0.75",
        f"./{name}:0.75,plain:0.25",
    ):
        dataset = open_dataset(mixture)
        assert sorted((stream.n_tokens, weight) for stream, weight in dataset.parts) == [
            (51, 0.75),
            (71, 0.25),
        ]
    assert open_dataset(f"{name},plain,{name}").train.n_tokens == 51 + 71 + 51


def test_a_raw_dataset_is_cut_where_there_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a:b", "c:0.5"):
        os.mkdir(folder)
        Path(folder, "train.bin").write_bytes(np.arange(99, dtype="<u2").tobytes())
    write_dataset("t:1", load_tokenizer("byte"), ["text"], [])
    assert open_dataset("raw:byte:a:b").train.n_tokens == 99
    assert open_dataset("raw:t:1:a:b").train.n_tokens == 99
    assert open_dataset("raw:byte:c:0.5:2,raw:byte:a:b").parts[0][1] == 2


@pytest.mark.parametrize("name", ["../train_000000.bin", "/etc/passwd", "sub/train_000000.bin", ""])
def test_a_dataset_names_files_in_its_folder_alone(name, tmp_path):
    write_dataset(tmp_path / "a", load_tokenizer("byte"), ["text"], [])
    path = tmp_path / "a" / "meta.json"
    meta = json.loads(path.read_text())
    meta["shards"][0]["name"] = name
    path.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="meta.json names '.*', which is no name of a shard"):
        open_dataset(tmp_path / "a")


WORST = "a,b:2 [x]*\n'q\" \udce9 🎉~$HOME"
if sys.platform == "darwin":
    WORST = WORST.replace("\udce9", "é")


def command(script: str, *words: str, folder: Path) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode(errors="backslashreplace")
    return done


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_whole_run_under_the_worst_of_names(tmp_path):
    data, out, to = (f"{kind} {WORST}" for kind in ("data", "run", "hf"))
    (tmp_path / WORST).mkdir()
    (tmp_path / WORST / f"{WORST}.txt").write_text("some text of a few words\n" * 300)
    command(
        "prepare/text.py", "--input", WORST, f"--out={data}", "--tokenizer=byte", folder=tmp_path
    )
    command("prepare/verify.py", data, folder=tmp_path)
    changes = {**SMALL, "max_steps": 2, "eval_interval": 1, "sample_tokens": 4}
    settings = [f"--{name}={value}" for name, value in changes.items()]
    command("train.py", *settings, f"--dataset={data}", f"--out_dir={out}", folder=tmp_path)
    again = [f"{out}/settings.toml", "--init_from=resume", "--max_steps=3"]
    command("train.py", *again, folder=tmp_path)
    assert (tmp_path / out / "checkpoints" / "step-0000003").is_dir()
    assert (tmp_path / out / "report.html").is_file()
    scored = command("evaluate.py", f"--out_dir={out}", folder=tmp_path)
    assert json.loads(scored.stdout)["dataset"] == data
    (tmp_path / f"p {WORST}").write_text("some ")
    command(
        "sample.py",
        f"--out_dir={out}",
        f"--prompt_file=p {WORST}",
        "--max_new_tokens=4",
        folder=tmp_path,
    )
    done = command("huggingface.py", "export", f"--out_dir={out}", f"--to={to}", folder=tmp_path)
    assert os.fsdecode(done.stdout) == f"{to}\n"  # the bytes of the name, for scripts
    command("sample.py", f"--model=hf:{to}", "--prompt=a", "--max_new_tokens=4", folder=tmp_path)
    done = command(
        "visualize.py", "model", f"--out_dir={out}", "--prompt=some text", folder=tmp_path
    )
    assert os.fsdecode(done.stdout) == f"{out}/model.html\n"
