"""How the bytes of a file are reached, and what is said when they cannot be."""

import pytest
from corpora import FORMS, SENTENCES, prepare, stored_documents


def test_files_at_an_address_are_read_where_they_are(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    for name in ("a.parquet", "a.jsonl"):
        with fsspec.open(f"memory://lathe/{name}", "wb") as file:
            file.write(FORMS[name](SENTENCES))
        prepare(f"memory://lathe/{name}", tmp_path / name)
        assert sorted(stored_documents(tmp_path / name)) == sorted(SENTENCES)


def test_addresses_that_cannot_be_opened(fails):
    pytest.importorskip("fsspec")
    fails(r"--input nowhere://x.jsonl: cannot be opened \(ValueError", inputs=["nowhere://x.jsonl"])
