import gc
import hashlib
import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe import ROOT
from lathe.data.batches import TrainBatches, val_windows
from lathe.data.dataset import Stream, open_dataset
from lathe.data.order import MixtureOrder, SampleOrder, feistel, mixture_counts
from lathe.data.shards import ShardWriter, file_sha256, write_dataset, write_meta
from lathe.text.tokenizer import Tokenizer, load_tokenizer, train_char


class Tokens:
    """A dataset held in memory whose token at position p is p, cut into shards at `cuts`."""

    def __init__(self, n, cuts=()):
        self.train = Stream(np.split(np.arange(n, dtype=np.uint32), sorted(cuts)))
        self.parts = [(self.train, 1.0)]


@st.composite
def corpora(draw):
    n = draw(st.integers(2, 300))
    cuts = draw(st.lists(st.integers(0, n), max_size=4))
    return n, draw(st.integers(1, n - 1)), cuts, draw(st.integers(-(2**70), 2**70))


def starts(order, first, count):
    """Where the windows of these samples begin."""
    return order.windows(np.arange(first, first + count)).starts


def step_samples(dataset, block_size, seen, seed, ranks, micro_steps, rows):
    """Sorted (x, y) rows of one optimizer step, fetched by all ranks and micro-steps."""
    found, count = [], 0
    for rank in range(ranks):
        batches = TrainBatches(
            dataset, block_size, ranks * micro_steps * rows, rows, seed, "cpu", rank, ranks
        )
        assert batches.micro_steps == micro_steps
        for micro in range(micro_steps):
            x, y = batches.fetch(seen, micro)
            assert x.shape == y.shape == (rows, block_size) and x.dtype == y.dtype
            found += [(tuple(a), tuple(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
            count += int((y != -1).sum())
    assert batches.targets(seen) == count
    return sorted(found)


# ------------------------------------------------------------------------------------------------- the order


@settings(deadline=None)
@given(corpora())
def test_every_target_occurs_once_per_epoch(corpus):
    n, block_size, cuts, seed = corpus
    batches = TrainBatches(Tokens(n, cuts), block_size, 1, 1, seed, "cpu")
    for epoch in range(2):
        targets = []
        for g in range(epoch * batches.order.n_windows, (epoch + 1) * batches.order.n_windows):
            x, y = (rows[0].tolist() for rows in batches.fetch(g, 0))
            assert all(b in (a + 1, -1) for a, b in zip(x, y, strict=True))
            targets += [t for t in y if t != -1]
        assert sorted(targets) == list(range(1, n))


@settings(deadline=None, max_examples=30)
@given(corpora(), st.integers(0, 500))
def test_a_step_reads_the_same_samples_however_it_is_split(corpus, seen):
    n, block_size, cuts, seed = corpus
    splits = [(1, 1, 12), (2, 2, 3), (3, 4, 1), (4, 1, 3), (6, 2, 1), (1, 6, 2)]
    steps = [step_samples(Tokens(n, cuts), block_size, seen, seed, *split) for split in splits]
    assert all(step == steps[0] for step in steps)
    assert steps[0] == step_samples(
        Tokens(n), block_size, seen, seed, 1, 1, 12
    )  # nor on where shards end


def test_a_run_continued_elsewhere_reads_the_batches_that_it_would_have_read():
    straight = [step_samples(Tokens(1000), 7, seen, 3, 1, 1, 12) for seen in range(0, 600, 12)]
    continued = [step_samples(Tokens(1000), 7, seen, 3, 1, 2, 6) for seen in range(0, 252, 12)]
    continued += [step_samples(Tokens(1000), 7, seen, 3, 4, 3, 1) for seen in range(252, 600, 12)]
    assert straight == continued


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**40), st.integers(0, 10))
def test_an_epoch_is_a_permutation(n_windows, seed, epoch):
    order = SampleOrder(n_windows * 3 + 1, 3, seed)
    begins = starts(order, epoch * n_windows, n_windows)
    assert sorted(begins.tolist()) == list(range(0, 3 * n_windows, 3))
    assert sorted(feistel(np.arange(n_windows), n_windows, seed, epoch).tolist()) == list(
        range(n_windows)
    )


@settings(max_examples=20)
@given(st.integers(2**27 + 1, 2**31), st.integers(0, 2**40))
def test_the_order_of_huge_corpora_is_a_permutation_that_is_not_stored(n_windows, seed):
    order = SampleOrder(n_windows * 1024, 1024, seed)
    begins = starts(order, n_windows - 500, 1000)
    assert order._kept == {} and 0 <= begins.min() and begins.max() < n_windows * 1024
    assert len(set(begins[:500].tolist())) == len(set(begins[500:].tolist())) == 500


def test_the_order_never_changes_between_versions():
    """Runs that began with an older lathe resume in the same order: these figures stay as they are."""
    assert starts(SampleOrder(1005, 100, 7), 0, 22).tolist() == [
        *(700, 600, 100, 200, 0, 300, 900, 500, 800, 400, 904),
        *(700, 600, 904, 800, 500, 300, 100, 0, 200, 400, 900),
    ]
    assert SampleOrder(1005, 100, 7).windows(np.array([10, 13])).begins.tolist() == [96, 96]
    assert feistel(np.arange(10), 1000, 7, 0).tolist() == [
        566,
        385,
        930,
        208,
        16,
        231,
        172,
        257,
        127,
        558,
    ]
    mixture = MixtureOrder([SampleOrder(501, 10, 3), SampleOrder(1501, 10, 3)], [0.7, 0.3], 3)
    assert starts(mixture, 0, 8).tolist() == [981, 430, 140, 90, 1781, 420, 1761, 220]


def test_epochs_and_seeds_differ_and_small_orders_are_uniform():
    orders = {
        tuple(starts(SampleOrder(1001, 10, seed), 100 * epoch, 100))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25
    counts = {}
    for seed in range(6000):
        key = tuple(starts(SampleOrder(4, 1, seed), 3, 3).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert (
        sum((c - 1000) ** 2 / 1000 for c in counts.values()) < 20.5
    )  # chi-squared, 5 degrees, p = 0.001


def test_ten_billion_tokens_are_ordered_in_seconds_and_40_megabytes():
    began = time.process_time()
    order = SampleOrder(10**10, 1024, 0)
    starts(order, 0, 1)
    assert time.process_time() - began < 10  # 1.8 s; the bar is 2 s on an idle machine
    assert sum(a.nbytes for a in order._kept.values()) <= 40e6


# ------------------------------------------------------------------------------------------------- mixtures


def test_mixtures_are_exact_in_every_block_and_each_source_keeps_its_epochs():
    sizes, weights = [400, 3000, 57], [0.5, 0.3, 0.2]
    orders = [SampleOrder(n, 10, 1) for n in sizes]
    mixture = MixtureOrder(orders, weights, 1)
    assert mixture.counts.tolist() == [512, 307, 205]
    begins = starts(mixture, 0, 8 * 1024)
    source = np.searchsorted(np.cumsum(sizes), begins, side="right")
    for block in source.reshape(8, 1024):
        assert np.bincount(block).tolist() == [512, 307, 205]
        assert len(set(block[:20])) > 1  # mixed, not one source after the other
    for s, order in enumerate(orders):
        count = mixture.counts[
            s
        ]  # block k has the source's samples k * count .. (k + 1) * count - 1, in some order
        drawn = (begins[source == s] - mixture.offsets[s]).reshape(8, count)
        assert (
            np.sort(drawn).tolist()
            == np.sort(starts(order, 0, 8 * count).reshape(8, count)).tolist()
        )
    assert (
        np.concatenate([starts(mixture, g, 100) for g in range(0, 5000, 100)]).tolist()
        == begins[:5000].tolist()
    )


@given(st.lists(st.floats(1, 100), min_size=1, max_size=8))
def test_mixture_counts_are_the_weights_within_one(weights):
    counts = mixture_counts(weights)
    assert sum(counts) == 1024
    assert all(abs(c - 1024 * w / sum(weights)) < 1 for c, w in zip(counts, weights, strict=True))


@pytest.mark.parametrize(
    "weights", [[1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, 1e-9]]
)
def test_mixture_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(ValueError, match="mixture"):
        mixture_counts(weights)


def test_a_mixture_of_folders_reads_the_same_on_1_2_and_4_ranks(tmp_path):
    tokenizer = load_tokenizer("byte")
    write_dataset(tmp_path / "a", tokenizer, ["a" * 500, "b" * 500], ["v" * 9])
    write_dataset(tmp_path / "b", tokenizer, ["c" * 700], ["w" * 19], shard_tokens=100)
    mixture = open_dataset(f"{tmp_path}/a:0.75,{tmp_path}/b:0.25")
    assert mixture.train.n_tokens == 1002 + 701 and mixture.val.n_tokens == 10 + 20
    steps = [
        [step_samples(mixture, 16, g, 0, w, 8 // w, 1) for g in range(0, 256, 8)] for w in (1, 2, 4)
    ]
    assert steps[0] == steps[1] == steps[2]
    of_b = sum(99 in x for step in steps[0] for x, _ in step)
    assert of_b == sum(
        s >= 1002 for s in starts(TrainBatches(mixture, 16, 8, 8, 0, "cpu").order, 0, 256)
    )
    other = open_dataset(f"{tmp_path}/a:0.5,{tmp_path}/b:0.5")
    assert other.fingerprint != mixture.fingerprint
    write_dataset(tmp_path / "c", train_char(["xyz"]), ["xyz"], [])
    with pytest.raises(ValueError, match="mixes tokenizers.*byte.*char"):
        open_dataset(f"{tmp_path}/a,{tmp_path}/c")


# ------------------------------------------------------------------------------------------------- batches


def test_batch_sizes_that_do_not_divide_are_an_error_that_names_those_that_do():
    with pytest.raises(
        ValueError, match="batch_size=10 .*micro_batch_size=2 x 3.*batch_size=6 or 12"
    ):
        TrainBatches(Tokens(100), 4, 10, 2, 0, "cpu", 0, 3)


@pytest.mark.parametrize(
    ("n", "fix"), [(9, "block_size=8 at most"), (1, "prepare more text"), (0, "prepare more")]
)
def test_too_little_text_for_a_block_names_the_largest_block(n, fix):
    with pytest.raises(ValueError, match=f"train has {n} tokens, block_size=10 needs 11: .*{fix}"):
        TrainBatches(Tokens(n), 10, 1, 1, 0, "cpu")


def test_a_batch_may_be_larger_than_the_corpus():
    x, y = TrainBatches(Tokens(10), 4, 64, 64, 0, "cpu").fetch(0, 0)
    assert int((y == 5).sum()) in (21, 22) and x.shape == (64, 4)


def test_fetching_allocates_nothing_that_stays():
    batches = TrainBatches(
        Tokens(150_000), 64, 8, 8, 0, "cpu"
    )  # 2,344 windows: all in the first epoch
    tracemalloc.start()
    for step in range(20):
        batches.fetch(step * 8, 0)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(200):
        batches.fetch(step * 8, 0)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 4096


def test_fetching_is_fast():
    """The bar is 300 million tokens/s on an idle core; a tenth of it must be there on any machine that is busy."""
    dataset = Tokens(10)
    dataset.train = Stream([np.zeros(20_000_000, np.uint16)])
    dataset.parts = [(dataset.train, 1.0)]
    batches = TrainBatches(dataset, 1024, 32, 32, 0, "cpu")
    batches.fetch(0, 0)
    began = time.process_time()
    for step in range(100):
        batches.fetch(step * 32, 0)
    assert 100 * 32 * 1024 / (time.process_time() - began) > 30e6


@settings(deadline=None)
@given(
    st.integers(2, 300),
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 7),
    st.lists(st.integers(0, 300)),
)
def test_validation_counts_every_target_once_on_any_number_of_ranks(
    n, block_size, ranks, rows, cuts
):
    stream = Tokens(n, [c for c in cuts if c <= n]).train
    batches = [list(val_windows(stream, block_size, 0, rows, rank, ranks)) for rank in range(ranks)]
    assert len({len(of_rank) for of_rank in batches}) == 1
    targets = []
    for x, y in (batch for of_rank in batches for batch in of_rank):
        assert x.shape == y.shape == (rows, block_size)
        assert all(
            b == a + 1 for a, b in zip(x[y != -1].tolist(), y[y != -1].tolist(), strict=True)
        )
        targets += y[y != -1].tolist()
    assert sorted(targets) == list(range(1, n))


def test_validation_on_fewer_tokens_takes_evenly_spaced_windows_always_the_same():
    stream = Tokens(10_001).train
    starts = [[x[0, 0].item() for x, _ in val_windows(stream, 100, 500, 1)] for _ in range(2)]
    assert starts == [[0, 2000, 4000, 6000, 8000]] * 2
    assert sum(int((y != -1).sum()) for _, y in val_windows(stream, 100, 10**9, 3)) == 10_000


@pytest.mark.parametrize("n", [0, 1])
def test_validation_needs_two_tokens(n):
    with pytest.raises(ValueError, match=f"val has {n} tokens, need 2"):
        list(val_windows(Tokens(n).train, 8, 0, 1))


# ------------------------------------------------------------------------------------------------- shards


@pytest.fixture
def folder(tmp_path):
    write_dataset(
        tmp_path / "d",
        load_tokenizer("byte"),
        ["hello", "", "wörld" * 100],
        ["val"],
        shard_tokens=100,
    )
    return tmp_path / "d"


def test_shards_hold_the_documents_each_after_an_end_of_text(folder):
    dataset = open_dataset(folder, verify=True)
    tokens = np.concatenate(dataset.train.shards)
    assert tokens.tolist() == [256, *b"hello", 256, 256, *("wörld" * 100).encode()]
    assert [len(s) for s in dataset.train.shards] == [100] * 6 + [8]
    assert dataset.meta["totals"]["train"] == {"tokens": 608, "documents": 3, "bytes": 605}
    assert sum(dataset.tokenizer().token_byte_lengths()[tokens]) == 605
    assert dataset.val.shards[0].tolist() == [256, *b"val"]
    assert dataset.tokenizer().fingerprint == dataset.tokenizer_fingerprint
    out = np.zeros(608, np.int64)
    dataset.train.read(0, 608, out)
    assert (out == tokens).all()
    for shard in dataset.meta["shards"]:
        assert hashlib.sha256((folder / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]


def test_llmc_reads_our_shards_and_we_read_theirs(folder, tmp_path):
    raw = (folder / "train_000000.bin").read_bytes()
    magic, version, count = struct.unpack(
        "<3i", raw[:12]
    )  # what llm.c's loaders check, and all that they check
    assert (magic, version) == (20240520, 1) and len(raw) == 1024 + 2 * count
    assert struct.unpack("<4H", raw[1024:1032]) == (256, *b"hel")

    theirs = tmp_path / "fineweb10B"
    theirs.mkdir()
    for name, tokens in (
        ("fineweb_train_000001.bin", [256, 1, 2, 3]),
        ("fineweb_val_000000.bin", [256, 9]),
    ):
        header = struct.pack("<3i", 20240520, 1, len(tokens)).ljust(1024, b"\0")
        (theirs / name).write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))
    header = struct.pack("<3i", 20240801, 7, 2).ljust(1024, b"\0")  # as for Llama 3
    (theirs / "fineweb_train_000002.bin").write_bytes(header + struct.pack("<2I", 4, 5))
    dataset = open_dataset(f"raw:byte:{theirs}", verify=True)
    out = np.zeros(6, np.int64)
    dataset.train.read(0, 6, out)
    assert out.tolist() == [256, 1, 2, 3, 4, 5]
    assert dataset.val.shards[0].tolist() == [256, 9]


def test_nanogpt_files_open_only_when_named_raw_and_are_checked(tmp_path):
    (tmp_path / "train.bin").write_bytes(np.arange(256, dtype="<u2").tobytes())
    (tmp_path / "val.bin").write_bytes(np.arange(10, dtype="<u2").tobytes())
    with pytest.raises(FileNotFoundError, match="dataset=raw:TOKENIZER:"):
        open_dataset(tmp_path)
    dataset = open_dataset(f"raw:byte:{tmp_path}")
    assert (dataset.train.n_tokens, dataset.val.n_tokens, dataset.vocab_size) == (256, 10, 257)
    (tmp_path / "val.bin").write_bytes(b"\0" * 11)
    with pytest.raises(
        ValueError, match="val.bin has 11 bytes, which is no whole number of uint16 tokens"
    ):
        open_dataset(f"raw:byte:{tmp_path}")
    (tmp_path / "val.bin").write_bytes(np.array([3, 257], "<u2").tobytes())
    with pytest.raises(
        ValueError, match="val.bin: token 1 is 257, outside the tokenizer's 257 ids"
    ):
        open_dataset(f"raw:byte:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="no .bin files"):
        open_dataset(f"raw:byte:{tmp_path}/nothing")


@pytest.mark.parametrize(
    ("vocab_size", "magic", "width"), [(65536, 20240520, 2), (65537, 20240801, 4)]
)
def test_tokens_take_two_bytes_up_to_65536_ids_and_four_above(tmp_path, vocab_size, magic, width):
    tokenizer = Tokenizer(
        "byte", "many", [b"x"] * (vocab_size - 1) + [b""], {"<|endoftext|>": vocab_size - 1}
    )
    writer = ShardWriter(tmp_path, "train", tokenizer)
    writer.append(np.array([0, 65535, vocab_size - 1]))
    with pytest.raises(
        ValueError, match=f"token id {vocab_size} is outside the vocabulary of {vocab_size} ids"
    ):
        writer.append(np.array([vocab_size]))
    write_meta(tmp_path, tokenizer, writer.finish())
    dataset = open_dataset(tmp_path, verify=True)
    assert dataset.train.shards[0].tolist() == [0, 65535, vocab_size - 1]
    assert struct.unpack("<i", (tmp_path / "train_000000.bin").read_bytes()[:4])[0] == magic
    assert (tmp_path / "train_000000.bin").stat().st_size == 1024 + 3 * width


def test_a_writer_continues_exactly_at_any_position(tmp_path):
    tokenizer, tokens = load_tokenizer("byte"), np.arange(55) % 257
    for name, stop_at in (("straight", []), ("broken", [0, 7, 10, 20, 29])):
        (tmp_path / name).mkdir()
        for position in (
            stop_at
        ):  # each attempt leaves ten tokens too many, and the last one finished shards as well
            writer = ShardWriter(tmp_path / name, "train", tokenizer, 10, position)
            writer.append(tokens[position : position + 20])
            writer.finish()
        position = stop_at[-1] if stop_at else 0
        writer = ShardWriter(tmp_path / name, "train", tokenizer, 10, position)
        writer.append(tokens[position:])
        write_meta(tmp_path / name, tokenizer, writer.finish())
        tokenizer.save(tmp_path / name)
    assert (
        open_dataset(tmp_path / "straight").fingerprint
        == open_dataset(tmp_path / "broken", verify=True).fingerprint
    )
    assert not list((tmp_path / "broken").glob("*.tmp"))


def test_a_writer_leaves_files_alone_that_are_not_its_own(tmp_path):
    (tmp_path / "train_mine.bin").write_bytes(b"precious")
    (tmp_path / "train.bin").write_bytes(b"precious")
    write_dataset(tmp_path, load_tokenizer("byte"), ["a"], ["b"])
    assert (
        (tmp_path / "train_mine.bin").read_bytes()
        == (tmp_path / "train.bin").read_bytes()
        == b"precious"
    )


def test_a_missing_dataset_names_the_command_that_makes_it(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="python prepare/shakespeare_char.py`"):
        open_dataset(tmp_path / "shakespeare_char")
    with pytest.raises(FileNotFoundError, match="prepare/text.py --input YOUR_TEXT --out .*mine`"):
        open_dataset(tmp_path / "mine")
    with pytest.raises(
        FileNotFoundError, match="prepare/text.py --input YOUR_TEXT --out .*verify`"
    ):
        open_dataset(tmp_path / "verify")
    (folder / "meta.json").rename(folder / "progress.jsonl")
    with pytest.raises(FileNotFoundError, match="unfinished.*run the same prepare command again"):
        open_dataset(folder)


def overwrite(at, content):
    def damage(folder):
        with open(folder / "train_000001.bin", "r+b") as file:
            file.seek(at)
            file.write(content)

    return damage


def edit_meta(change):
    def damage(folder):
        meta = json.loads((folder / "meta.json").read_text())
        change(meta)
        (folder / "meta.json").write_text(json.dumps(meta))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: os.truncate(folder / "train_000001.bin", 1100),
            "train_000001.bin is truncated or changed: it has 1,100 bytes, 100 tokens make 1,224",
        ),
        (overwrite(1224, b"xx"), "train_000001.bin is truncated or changed: it has 1,226 bytes"),
        (overwrite(1030, b"!"), "train_000001.bin was changed: sha256"),
        (overwrite(0, bytes(1024)), "train_000001.bin does not begin with a shard's header"),
        (
            edit_meta(lambda meta: meta["shards"][1].update(tokens=99)),
            "train_000001.bin is truncated or changed",
        ),
        (
            edit_meta(lambda meta: meta["tokenizer"].update(name="other", sha256="ab" * 32)),
            "train_000000.bin was made with another tokenizer .* other is abababababab",
        ),
        (edit_meta(lambda meta: meta["tokenizer"].pop("sha256")), "meta.json is damaged"),
        (lambda folder: os.truncate(folder / "meta.json", 300), "meta.json is damaged"),
        (
            lambda folder: (folder / "val_000000.bin").unlink(),
            "val_000000.bin is missing, though meta.json names it",
        ),
    ],
)
def test_damaged_datasets_are_refused_with_the_file_and_the_fix(folder, damage, message):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_dataset(folder, verify=True)
    assert (
        "\n" not in str(error.value) and "again" in str(error.value) or "raw:" in str(error.value)
    )


def test_ids_outside_the_vocabulary_are_found_by_verifying(folder):
    path = folder / "train_000001.bin"
    path.write_bytes(path.read_bytes()[:-2] + struct.pack("<H", 300))
    edit_meta(lambda meta: meta["shards"][1].update(sha256=file_sha256(path)))(folder)
    with pytest.raises(
        ValueError, match="train_000001.bin: token 99 is 300, outside the tokenizer's 257 ids"
    ):
        open_dataset(folder, verify=True)


def test_importing_data_does_not_import_torch():
    code = "import sys, lathe.data.dataset, lathe.data.batches; sys.exit('torch' in sys.modules or 'tiktoken' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
