"""Documents that occur twice."""

import pytest
from corpora import SENTENCES, prepare, stored_documents, write_jsonl


def test_leaving_out_duplicates_keeps_both_parts_of_a_text_that_is_cut(tmp_path, unit_bytes):
    unit_bytes(500)
    story = "".join(f"line {i}\n" for i in range(300))
    (tmp_path / "a.txt").write_text(story)
    prepare(tmp_path / "a.txt", tmp_path / "out", val_fraction=0.25, dedup=True)
    at = int(len(story) * 0.75)
    assert stored_documents(tmp_path / "out") == [story[:at], story[at:]]
    write_jsonl(tmp_path / "b.jsonl", ["one and the same", "one and the same", "another " * 50])
    prepare(
        tmp_path / "b.jsonl", tmp_path / "b", val_fraction=1e-9, dedup=True
    )  # by hash, all go to train
    assert stored_documents(tmp_path / "b", "train")[0] == "one and the same"
    assert "".join(stored_documents(tmp_path / "b")) == "one and the same" + "another " * 50


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_that_validation_has_too_are_counted_or_left_out_of_training(
    workers, tmp_path, unit_bytes, capsys
):
    unit_bytes(2000)
    long = "".join(f"line {i}\n" for i in range(900))  # in several units
    train = write_jsonl(
        tmp_path / "train.jsonl", [*SENTENCES[:50], SENTENCES[7], *SENTENCES[50:90]]
    )
    val = write_jsonl(tmp_path / "val.jsonl", [*SENTENCES[5:9], "only here"])
    (tmp_path / "long.txt").write_text(long)
    (tmp_path / "copy.txt").write_text(long)
    inputs = [train, tmp_path / "long.txt"]
    options = dict(val_input=[str(val), str(tmp_path / "copy.txt")], workers=workers)
    said = "documents of training that validation has, too"
    meta = prepare(inputs, tmp_path / "counted", **options)
    assert [n for what, n in meta["counts"].items() if said in what] == [6]  # one of them twice
    assert f"6 {said}" in capsys.readouterr().err
    assert len(stored_documents(tmp_path / "counted", "train")) == 92

    meta = prepare(inputs, tmp_path / "left_out", dedup=True, **options)
    assert meta["counts"] == {"duplicates left out": 6}
    expected = [*SENTENCES[:5], *SENTENCES[9:90]]
    assert stored_documents(tmp_path / "left_out", "train") == expected
    assert stored_documents(tmp_path / "left_out", "val") == [*SENTENCES[5:9], "only here", long]


def test_what_differs_in_one_character_is_in_both(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", ["a text", "a  text"])
    val = write_jsonl(tmp_path / "val.jsonl", ["a text.", "a Text"])
    assert prepare(train, tmp_path / "out", val_input=[str(val)])["counts"] == {}
