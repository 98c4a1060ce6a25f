"""Which documents are for validation."""

import random

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
    assert "no validation text: add --val_fraction or --val_input" in capsys.readouterr().err
    prepare(tmp_path / "a.jsonl", tmp_path / "both", val_fraction=0.3)
    assert "no validation text" not in capsys.readouterr().err


def test_validation_begins_in_one_unit_and_all_later_ones_are_of_it():
    begin = position_of_last(0.25, [10, 20, 10])
    assert begin == Position(unit=2, character=0)
    in_units = [begin.in_unit(unit) for unit in range(4)]
    assert in_units == [IN_LATER_UNIT, IN_LATER_UNIT, 0, IN_EARLIER_UNIT]
    assert position_of_last(1e-9, [10, 20, 10]) == Position(2, 9)  # at least one character
    assert position_of_last(0.875, [10, 20, 10]) == Position(0, 5)


def test_a_hash_is_the_same_in_one_piece_and_in_many():
    assert document_hash("one text") == hash_of_parts(["one", " ", "text"])
