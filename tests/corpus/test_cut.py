"""Large texts in pieces: no token, document or byte shows where they were cut."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import SENTENCES, prepare, stored_documents

from lathe import ROOT
from lathe.corpus import build
from lathe.corpus.split import document_hash
from lathe.data.dataset import open_dataset
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.tokenizer import load_tokenizer

TRICKY = (
    "日本語の文\n\n\n" * 50
    + "x\r\n  y\r\n" * 99
    + "no line ends but words and 12 3456 don't it's. " * 99
)


@pytest.mark.parametrize("encoding", ["gpt2", "cl100k_base", "o200k_base"])
def test_where_a_text_is_cut_into_units_does_not_show_in_the_tokens(
    encoding, tmp_path, monkeypatch, unit_bytes
):
    import tiktoken_ext.openai_public as encodings

    empty = {"load_tiktoken_bpe": {}, "data_gym_to_mergeable_bpe_ranks": {}}
    for name, ranks in empty.items():
        monkeypatch.setattr(encodings, name, lambda *a, ranks=ranks, **k: ranks)
    # With our own merges: the pattern is what counts.
    pattern = encodings.ENCODING_CONSTRUCTORS[encoding]()["pat_str"]
    source = Path(build.__file__).read_text("utf-8") + "".join(SENTENCES) + TRICKY
    train_bpe(count_pieces([source], pattern), 500, pattern).save(tmp_path)
    (tmp_path / "a.txt").write_text(source, newline="", encoding="utf-8")
    expected = load_tokenizer(tmp_path).encode(source)
    for size in (700, 1300, 5000):
        unit_bytes(size)
        out = tmp_path / str(size)
        prepare(tmp_path / "a.txt", out, tokenizer=str(tmp_path), newlines="keep", val_fraction=0)
        assert np.concatenate(open_dataset(out).train.shards).tolist() == [499, *expected]


def test_a_text_without_words_is_cut_between_characters_with_a_warning(
    tmp_path, unit_bytes, capsys
):
    unit_bytes(100)
    story = "日本語" * 400
    (tmp_path / "a.txt").write_text(story, encoding="utf-8")
    (tmp_path / "b.txt").write_text("\r\n" * 900, newline="")
    prepare(
        [tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", val_fraction=0, newlines="keep"
    )
    assert stored_documents(tmp_path / "out") == [story, "\r\n" * 900]
    assert "cutting anywhere" in capsys.readouterr().err


def test_documents_larger_than_units_and_shards_keep_their_split_and_their_duplicates(
    tmp_path, unit_bytes
):
    unit_bytes(1000)
    (tmp_path / "in").mkdir()
    large = {i: "".join(random.Random(i).choices("abc \n", k=5000)) for i in range(30)}
    for i, content in large.items():
        (tmp_path / "in" / f"{i:02}.txt").write_text(content)
        (tmp_path / "in" / f"{i:02}_copy.txt").write_text(content)
        (tmp_path / "in" / f"{i:02}_small.txt").write_text(f"small {i}")
    prepare(tmp_path / "in", tmp_path / "out", val_fraction=0.3, dedup=True, shard_tokens=2000)
    train, val = (stored_documents(tmp_path / "out", split) for split in ("train", "val"))
    assert sorted(train + val) == sorted([*large.values(), *(f"small {i}" for i in range(30))])
    assert any(len(d) == 5000 for d in val) and any(len(d) == 5000 for d in train)
    by_hash = {d: document_hash(d) < 0.3 * 2**64 for d in train + val}
    assert all(by_hash[d] for d in val) and not any(by_hash[d] for d in train)


def test_peak_memory_does_not_grow_with_the_document(tmp_path):
    with open(tmp_path / "a.txt", "w") as file:
        for i in range(80):
            file.write(f"line {i} of a long text\n" * 50_000)
    code = (
        "import sys; from lathe.corpus import build; options = build.Options("
        "input=[sys.argv[1]], out=sys.argv[2], tokenizer='byte', workers=1); build.prepare(options); "
        "print(open('/proc/self/status').read())"
    )
    if not os.path.exists("/proc/self/status"):
        pytest.skip("peak memory is read from /proc, which Linux has")
    run = [sys.executable, "-c", code, str(tmp_path / "a.txt"), str(tmp_path / "out")]
    status = subprocess.run(run, cwd=ROOT, capture_output=True, check=True, encoding="utf-8").stdout
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    assert (tmp_path / "a.txt").stat().st_size > 90e6
    assert peak < 150e6  # 103 MB, of which 35 are Python and numpy
