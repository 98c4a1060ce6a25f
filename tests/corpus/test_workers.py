"""Any number of processes."""

import random

from corpora import SENTENCES, prepare, shard_hashes, write_jsonl


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
