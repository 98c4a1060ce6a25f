"""Files of every kind with the same documents, and what is in the datasets that are made of them."""

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from lathe.corpus import build
from lathe.data.dataset import open_dataset

SENTENCES = [
    f"Document {i} says: hello, wörld!\nIts second line is number {i * i}.\n" for i in range(400)
]


def prepare(inputs, out, **options):
    options = {"tokenizer": "byte", "workers": 1} | options
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return build.prepare(build.Options(input=[str(i) for i in inputs], out=str(out), **options))


def stored_documents(folder, split=None) -> list[str]:
    """All documents of a dataset, decoded, train before val."""
    dataset = open_dataset(folder, verify=True)
    tokenizer, found = dataset.tokenizer(), []
    for stream in (dataset.train, dataset.val) if split is None else (getattr(dataset, split),):
        tokens = np.empty(stream.n_tokens, np.int64)
        if stream.n_tokens:
            stream.read(0, stream.n_tokens, tokens)
        begins = np.flatnonzero(tokens == tokenizer.eot_id)
        assert not len(tokens) or begins[0] == 0
        found += (
            [tokenizer.decode(part[1:]) for part in np.split(tokens, begins[1:])]
            if len(begins)
            else []
        )
    return found


def shard_hashes(folder):
    return [(s["name"], s["sha256"]) for s in open_dataset(folder, verify=True).meta["shards"]]


def write_jsonl(path, documents, **more):
    path.write_text(
        "".join(json.dumps({"text": d} | more) + "\n" for d in documents), encoding="utf-8"
    )
    return path


def write(name, content):
    path = Path("in", name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# -----------------------------------------------------------------------------
# Kinds of files


def as_jsonl(documents):
    return "".join(json.dumps({"n": 1, "text": d}) + "\n" for d in documents).encode()


def as_csv(documents, delimiter=","):
    table = io.StringIO()
    csv.writer(table, delimiter=delimiter).writerows(
        [["n", "text"], *([i, d] for i, d in enumerate(documents))]
    )
    return table.getvalue().encode()


def as_parquet(documents):
    import pyarrow
    import pyarrow.parquet

    table, file = pyarrow.table({"n": list(range(len(documents))), "text": documents}), io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=150)
    return file.getvalue()


FORMS = {
    "a.jsonl": as_jsonl,
    "a.ndjson": as_jsonl,
    "a.json": lambda documents: json.dumps([{"text": d} for d in documents], indent=1).encode(),
    "strings.json": lambda documents: json.dumps(documents, ensure_ascii=False).encode(),
    "values.json": lambda documents: "\n".join(
        json.dumps({"text": d}, indent=1) for d in documents
    ).encode(),
    "a.csv": as_csv,
    "a.tsv": lambda documents: as_csv(documents, "\t"),
    "a.parquet": as_parquet,
}


def compressed(content, suffix):
    if suffix == ".gz":
        return gzip.compress(content)
    if suffix == ".bz2":
        return bz2.compress(content)
    if suffix == ".xz":
        return lzma.compress(content)
    if suffix == ".zst":
        return pytest.importorskip("zstandard").compress(content)
    return content
