"""Documents that occur twice."""

from corpora import prepare, stored_documents, write_jsonl


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
