"""Kinds of files: the same documents from each, and one line with file and place where one is wrong."""

from pathlib import Path

import pytest
from corpora import (
    FORMS,
    SENTENCES,
    compressed,
    prepare,
    shard_hashes,
    stored_documents,
    write,
    write_jsonl,
)

from lathe.corpus.archives import COMPRESSIONS


# Parquet files are compressed inside already.
@pytest.mark.parametrize(
    ("name", "suffix"),
    [(n, s) for n in FORMS for s in ("", *COMPRESSIONS) if not (s and n.endswith(".parquet"))],
)
def test_every_form_of_the_same_documents_gives_the_same_shards(name, suffix, tmp_path, unit_bytes):
    unit_bytes(3000)  # many units of each
    prepare(write_jsonl(tmp_path / "plain.jsonl", SENTENCES), tmp_path / "expected")
    (tmp_path / (name + suffix)).write_bytes(compressed(FORMS[name](SENTENCES), suffix))
    quotes = "true" if name.endswith(".tsv") else "auto"
    prepare(tmp_path / (name + suffix), tmp_path / "out", quotes=quotes)
    assert shard_hashes(tmp_path / "out") == shard_hashes(tmp_path / "expected")
    assert sorted(stored_documents(tmp_path / "out")) == sorted(SENTENCES)


def test_other_fields_and_given_validation_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"body": "train me", "text": 3}\n\n{"body": "too"}\n"a text by itself"\n'
    )
    (tmp_path / "b.csv").write_text('id,body\n1,"validate, ""me"""\n')
    meta = prepare(
        tmp_path / "a.jsonl", tmp_path / "out", field="body", val_input=[str(tmp_path / "b.csv")]
    )
    assert stored_documents(tmp_path / "out", "train") == ["train me", "too", "a text by itself"]
    assert stored_documents(tmp_path / "out", "val") == ['validate, "me"']
    assert meta["options"]["split"] == "given"


def test_missing_fields_name_those_that_exist(fails):
    write("a.jsonl", '{"text": "x"}\n{"body": "x", "id": 1}\n')
    fails("in/a.jsonl:2 has no field 'text'; found: body, id. Choose one with --field")
    write("a.jsonl", '{"text": 5}\n')
    fails("in/a.jsonl:1: 'text' is no text but int")
    Path("in/a.jsonl").unlink()
    write("a.csv", "id,body\n1,x\n")
    fails("in/a.csv:1 has no column 'text'; found: id, body. Choose one with --field")
    write("a.csv", 'id,text\n1,"x\ny"\n2\n')
    fails("in/a.csv:4 has 1 fields, the first row 2")
    Path("in/a.csv").unlink()
    write("a.json", '[{"text": "x"}, {"content": "x"}]')
    fails("in/a.json: element 2 has no field 'text'; found: content")


def test_missing_and_wrong_parquet_columns(fails):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "body": ["x", "y"]}), "in/a.parquet")
    fails("in/a.parquet has no column 'text'; found: id, body")
    fails("in/a.parquet: row 0 of row group 0: 'id' is no text but int", "--field=id")
    Path("in/a.parquet").write_bytes(b"PAR1 not really")
    fails("in/a.parquet is not a parquet file, or damaged")


def test_json_that_is_damaged(fails):
    write("a.json", '[{"text": "x"}, {"text": ')
    fails("in/a.json: element 2 is not JSON")
    write("a.json", '[{"text": "x"}, {"text": x}, ' + '{"text": "more"}, ' * 100)
    fails("in/a.json: element 2 is not JSON: Expecting value")
    write("a.json", '{"text": "x"} {"text": "y')
    fails("in/a.json: element 2 is not JSON: Unterminated string")


def test_lines_that_are_not_json(fails, unit_bytes):
    unit_bytes(1000)
    write("a.jsonl", '{"text": "x"}\n' * 500 + '{"text": "x}\n')
    fails("in/a.jsonl:501 is not JSON: .* at column 10")
    write("a.jsonl", '{"text": "x"}\n' * 500 + "[1, 2]\n")
    fails("in/a.jsonl:501 is a list, no row: where rows .* add --format=json")
