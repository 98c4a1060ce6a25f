"""Preparations that are interrupted, and go on."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import SENTENCES, prepare, shard_hashes, stored_documents, write_jsonl

from lathe import ROOT
from lathe.corpus import build
from lathe.corpus.cut import cut_units
from lathe.corpus.find import find_inputs
from lathe.corpus.journal import JOURNAL_FILE, Journal, UnitRecord, read_journal
from lathe.corpus.rules import Rules
from lathe.corpus.split import Position
from lathe.corpus.tokens import tokenize_unit
from lathe.data.dataset import open_dataset


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch, n_units):
    real, seen = build.ShardWriter.append, []

    def append(writer, tokens, *scored):
        seen.append(tokens)
        if len(seen) == 2 * n_units:  # in the middle of a unit: train is written, val is not
            writer.close()
            for path in writer.folder.glob("*.bin.tmp"):
                with open(path, "ab") as file:
                    file.write(b"half a tok")
            raise Interrupted
        real(writer, tokens, *scored)

    monkeypatch.setattr(build.ShardWriter, "append", append)


def test_an_interrupted_run_continues_where_it_was(tmp_path, monkeypatch, capsys, unit_bytes):
    unit_bytes(2000)
    path = write_jsonl(tmp_path / "a.jsonl", SENTENCES)
    options = {"val_fraction": 0.1, "shard_tokens": 1700, "dedup": True, "tokenizer": "char"}
    prepare(path, tmp_path / "straight", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Interrupted):
            prepare(path, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "meta.json").exists()
    with pytest.raises(FileNotFoundError, match="unfinished"):
        open_dataset(tmp_path / "out")
    with monkeypatch.context() as patch:
        tokenized = []
        real = tokenize_unit
        patch.setattr(
            build,
            "tokenize_unit",
            lambda unit, **more: tokenized.append(unit) or real(unit, **more),
        )
        prepare(path, tmp_path / "out", **options)
    assert "continuing" in capsys.readouterr().err
    n_units = len(list(cut_units(find_inputs([str(path)]).sources, Rules())))
    assert len(tokenized) == n_units - 4
    assert shard_hashes(tmp_path / "out") == shard_hashes(tmp_path / "straight")


def test_a_run_continued_on_changed_input_drops_what_no_longer_holds(
    tmp_path, monkeypatch, unit_bytes
):
    unit_bytes(2000)
    path = write_jsonl(tmp_path / "a.jsonl", SENTENCES)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 6)
        with pytest.raises(Interrupted):
            prepare(path, tmp_path / "out")
    changed = path.read_text().replace("Document 50 says", "Document 5O says")  # of the same size
    path.write_text(changed)
    prepare(path, tmp_path / "out")
    prepare(path, tmp_path / "straight")
    assert shard_hashes(tmp_path / "out") == shard_hashes(tmp_path / "straight")
    assert any("5O" in d for d in stored_documents(tmp_path / "out"))


def test_a_journal_is_read_as_it_was_written(tmp_path):
    record = UnitRecord("a.txt at 0", "12ab", 10, 2, 3, False, 40, {"empty documents skipped": 1})
    journal = Journal(tmp_path, {"field": "text"}, Position(3, 14))
    journal.begin([record])
    journal.append(record)
    assert read_journal(tmp_path, {"field": "text"}) == journal
    assert len(journal.records) == 2
    assert read_journal(tmp_path, {"field": "body"}) is None  # another preparation


def test_a_line_that_was_being_written_is_not_read(tmp_path):
    record = UnitRecord("a.txt at 0", "12ab", 10, 2, 3, True, 40, {})
    journal = Journal(tmp_path, {}, None)
    assert read_journal(tmp_path, {}) is None
    journal.begin([record, record])
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(path.read_bytes()[:-5])
    assert read_journal(tmp_path, {}).records == [record]


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"3", b"\xff", b"[" * 100_000, b"1" * 5000]
    + [b'{"signature": {}, "cut": 5}', b'{"signature": {}, "cut": null}\n{"unit": "a"}'],
    ids=lambda content: content[:9].decode(errors="replace"),
)
def test_a_file_that_is_no_journal_is_as_none(content, tmp_path):
    (tmp_path / JOURNAL_FILE).write_bytes(content)
    assert read_journal(tmp_path, {}) is None


# What earlier versions wrote.
EARLIER = """
{"signature": {"field": "text"}, "cut": [1, 7]}
{"unit": "a.txt at 0", "sha256": "12ab", "train": 9, "val": 0, "seen": 0, "kept": true, \
"characters": 9, "counts": {}}
"""


def test_journals_of_earlier_versions_are_read(tmp_path):
    (tmp_path / JOURNAL_FILE).write_text(EARLIER.strip().replace("\\\n", ""))
    journal = read_journal(tmp_path, {"field": "text"})
    assert journal.val_begins == Position(1, 7)
    assert journal.records == [UnitRecord("a.txt at 0", "12ab", 9, 0, 0, True, 9, {})]


# -----------------------------------------------------------------------------
# Signals


def run_until(signal_number, step, *words):
    """prepare/text.py, sent this signal before so many steps; see stopped_run.py."""
    script = Path(__file__).with_name("stopped_run.py")
    command = [sys.executable, str(script), str(int(signal_number)), str(step), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, start_new_session=True
    )


def test_killed_at_any_step_and_run_again_it_writes_the_same_bytes(tmp_path):
    rng = random.Random(2)
    path = write_jsonl(
        tmp_path / "a.jsonl", [rng.choice(SENTENCES) * rng.randint(1, 9) for _ in range(800)]
    )
    options = ["--tokenizer=bpe:300", "--dedup=true", "--shard_tokens=50000", "--val_fraction=0.1"]
    words = [f"--input={path}", *options]
    straight = run_until(signal.SIGKILL, 0, *words, "--workers=1", f"--out={tmp_path}/straight")
    assert straight.returncode == 0, straight.stderr
    n_killed = 0
    n_continued = 0
    while True:
        workers = rng.choice([1, 2])
        again = [*words, f"--workers={workers}", f"--out={tmp_path}/killed"]
        stopped = run_until(signal.SIGKILL, rng.randint(1, 25), *again)
        n_continued += "continuing" in stopped.stderr
        if stopped.returncode == 0:
            break
        assert stopped.returncode == -signal.SIGKILL, stopped.stderr
        n_killed += 1
    assert n_killed >= 4 and n_continued >= 3
    assert shard_hashes(tmp_path / "killed") == shard_hashes(tmp_path / "straight")
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "straight"))


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_all_workers_and_says_how_to_go_on(tmp_path, workers):
    path = write_jsonl(tmp_path / "a.jsonl", SENTENCES)
    words = [f"--input={path}", f"--out={tmp_path}/out", "--tokenizer=byte", f"--workers={workers}"]
    stopped = run_until(signal.SIGINT, 8, *words)  # returns when the last process has closed stderr
    assert stopped.returncode == 130
    assert stopped.stderr == "prepare: stopped: run the same command again to continue\n"
    records = (tmp_path / "out" / JOURNAL_FILE).read_text().splitlines()[1:]
    assert json.loads(records[-1])["train"] > 0
