"""Which documents are for validation."""

import os
import random
from pathlib import Path

import pytest
from corpora import SENTENCES, prepare, stored_documents, write_jsonl

from lathe.corpus.split import (
    IN_EARLIER_UNIT,
    IN_LATER_UNIT,
    Position,
    document_hash,
    hash_of_parts,
    position_of_last,
)


def test_the_split_depends_on_each_document_alone(tmp_path):
    prepare(write_jsonl(tmp_path / "a.jsonl", SENTENCES), tmp_path / "a", val_fraction=0.1)
    shuffled = SENTENCES + SENTENCES[:50] + [f"more {i}" for i in range(100)]
    random.Random(0).shuffle(shuffled)
    prepare(write_jsonl(tmp_path / "b.jsonl", shuffled), tmp_path / "b", val_fraction=0.1)
    val, more_val = (set(stored_documents(tmp_path / n, "val")) for n in "ab")
    assert val == {d for d in more_val if d.startswith("Document")} and 20 < len(val) < 60
    assert not val & set(stored_documents(tmp_path / "b", "train"))  # duplicates lie on one side
    prepare(tmp_path / "a.jsonl", tmp_path / "c", val_fraction=0.2)
    assert val < set(
        stored_documents(tmp_path / "c", "val")
    )  # a larger share keeps the smaller one


@pytest.mark.parametrize("n_documents", [1, 2, 3])
def test_few_documents_are_split_by_position(n_documents, tmp_path):
    documents = ["".join(map(chr, range(97, 122))) * 8] * n_documents
    meta = prepare(
        write_jsonl(tmp_path / "a.jsonl", documents),
        tmp_path / "out",
        val_fraction=0.25,
        newlines="keep",
    )
    train, val = (stored_documents(tmp_path / "out", split) for split in ("train", "val"))
    assert "".join(train + val) == "".join(documents)
    assert len("".join(val)) == 50 * n_documents
    assert meta["options"]["split"] == "position"


def test_one_text_is_split_by_position_in_whole_characters(tmp_path, unit_bytes):
    unit_bytes(500)
    story = "".join(f"Zeile {i}: süß\r\n" for i in range(300))
    (tmp_path / "a.txt").write_text(story, newline="", encoding="utf-8")
    for tokenizer in ("byte", "char", "bpe:300"):
        out = tmp_path / tokenizer.replace(":", "")
        prepare(tmp_path / "a.txt", out, tokenizer=tokenizer, val_fraction=0.1)
        clean = story.replace("\r\n", "\n")
        at = int(len(clean) * 0.9)
        assert stored_documents(out) == [clean[:at], clean[at:]]


def test_an_empty_part_is_told(tmp_path, capsys):
    prepare(write_jsonl(tmp_path / "a.jsonl", SENTENCES), tmp_path / "out", val_fraction=0)
    assert "has no val split, which training is judged by" in capsys.readouterr().err
    (tmp_path / "nothing.txt").write_text("")
    prepare(tmp_path / "a.jsonl", tmp_path / "given", val_input=[str(tmp_path / "nothing.txt")])
    assert (
        "nothing.txt has no text: prepare it again with other files there"
        in capsys.readouterr().err
    )
    prepare(tmp_path / "a.jsonl", tmp_path / "both", val_fraction=0.3)
    assert "has no val split" not in capsys.readouterr().err


def test_validation_begins_in_one_unit_and_all_later_ones_are_of_it():
    begin = position_of_last(0.25, [10, 20, 10])
    assert begin == Position(unit=2, character=0)
    in_units = [begin.in_unit(unit) for unit in range(4)]
    assert in_units == [IN_LATER_UNIT, IN_LATER_UNIT, 0, IN_EARLIER_UNIT]
    assert position_of_last(1e-9, [10, 20, 10]) == Position(2, 9)  # at least one character
    assert position_of_last(0.875, [10, 20, 10]) == Position(0, 5)


def test_a_hash_is_the_same_in_one_piece_and_in_many():
    assert document_hash("one text") == hash_of_parts(["one", " ", "text"])


# -----------------------------------------------------------------------------
# Given by --val_input


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> list[str]:
    """Folder c, of four texts; returns the four."""
    monkeypatch.chdir(tmp_path)
    texts = []
    for name in ("a", "b", "deep/d", "val"):
        path = tmp_path / "c" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts.append(f"text of {name}\n")
        path.write_text(texts[-1])
    (tmp_path / "elsewhere").mkdir()
    return texts


def link_to_val(name: str):
    os.symlink(os.path.abspath("c/val.txt"), name)


@pytest.mark.parametrize(
    "inputs, val_inputs",
    [
        (["c"], ["c/val.txt"]),
        (["c"], ["./c/deep/../val.txt"]),
        (["c", "./c", "c/*.txt"], ["c/v*.txt"]),
        (["c/a.txt", "c/b.txt", "c/deep", "c/val.txt"], ["c/val.txt"]),
        (["c"], ["hard"]),
        (["c"], ["soft/linked.txt"]),
        (["c", "hard"], ["c/val.txt"]),
        (["c", "soft"], ["hard", "c/val.txt"]),
    ],
)
def test_no_file_is_for_both_by_whichever_name(inputs, val_inputs, corpus, capsys):
    os.mkdir("hard")
    os.link("c/val.txt", "hard/other name.txt")
    os.mkdir("soft")
    link_to_val("soft/linked.txt")
    prepare(inputs, "out", val_input=val_inputs)
    assert stored_documents("out", "val") == corpus[3:]
    assert sorted(stored_documents("out", "train")) == sorted(corpus[:3])
    assert "of --val_input, which " in capsys.readouterr().err


@pytest.mark.parametrize(
    "input, val_input, n_train, n_val",
    [("c", "c/deep", 3, 1), ("c/deep", "c", 0, 4), ("c", "c", 0, 4), ("c/val.txt", "c", 0, 4)],
)
def test_folders_within_each_other(input, val_input, n_train, n_val, corpus):
    if not n_train:
        with pytest.raises(ValueError, match="all its files are those of --val_input too"):
            prepare(input, "out", val_input=[val_input])
        assert not os.path.exists("out")
        return
    prepare(input, "out", val_input=[val_input])
    assert len(stored_documents("out", "train")) == n_train
    assert len(stored_documents("out", "val")) == n_val


def test_equal_splits_of_a_hugging_face_dataset(corpus, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    os.mkdir("hub")
    write_jsonl(Path("hub/train.jsonl"), SENTENCES[:9])
    with pytest.raises(ValueError, match="all its files are those of --val_input too"):
        prepare("hf:hub:train", "out", val_input=["hf:hub"])
    prepare(["c", "hf:hub"], "out", val_input=["hf:hub:train"])
    assert sorted(stored_documents("out", "train")) == sorted(corpus)
    assert sorted(stored_documents("out", "val")) == sorted(SENTENCES[:9])
