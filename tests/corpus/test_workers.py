"""Any number of processes."""

import os
import random
import subprocess
import sys

import pytest
from corpora import SENTENCES, prepare, shard_hashes, write_jsonl

from lathe import ROOT


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, unit_bytes):
    unit_bytes(20_000)
    rng = random.Random(1)
    documents = [rng.choice(SENTENCES) * rng.randint(1, 9) for _ in range(800)]
    path = write_jsonl(tmp_path / "a.jsonl", documents)  # with duplicates
    options = {"tokenizer": "bpe:300", "dedup": True, "shard_tokens": 30_000, "val_fraction": 0.1}
    for workers in (1, 2, 3):
        prepare(path, tmp_path / str(workers), workers=workers, **options)
    metas = [(tmp_path / str(workers) / "meta.json").read_bytes() for workers in (1, 2, 3)]
    assert metas[0] == metas[1] == metas[2]  # which has the sha256 of each shard
    assert len(shard_hashes(tmp_path / "1")) > 3


START_METHOD = """
import multiprocessing
from lathe.corpus.workers import in_order

def start_method(item):
    return multiprocessing.get_start_method()

def items():
    {imports}
    yield from range(3)

if __name__ == "__main__":
    print(*{{method for _, method in in_order(start_method, items(), 2)}})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
@pytest.mark.parametrize("imports, method", [("pass", "fork"), ("import pyarrow", "spawn")])
def test_workers_are_not_forked_beside_threads_that_the_first_unit_brings(
    imports, method, tmp_path
):
    script = tmp_path / "script.py"
    script.write_text(START_METHOD.format(imports=imports))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.stdout.strip(), done.stderr) == (method, "")
