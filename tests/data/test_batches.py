import gc
import re
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import Tokens, corpora, step_samples

from lathe.data.batches import TrainBatches, even_split, val_windows
from lathe.data.dataset import IGNORE, open_dataset
from lathe.data.shards import write_dataset
from lathe.text.tokenizer import load_tokenizer
from model import IGNORE as IGNORED_BY_THE_NETWORK


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


@settings(max_examples=30)
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
    windows = TrainBatches(mixture, 16, 8, 8, 0, "cpu").order.windows(np.arange(256))
    assert of_b == int((windows.starts >= 1002).sum())


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
    # 2,344 windows: all in the first epoch
    batches = TrainBatches(Tokens(150_000), 64, 8, 8, 0, "cpu")
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


def test_fetching_works_in_its_buffers():
    """It takes no memory in proportion to a batch; 300 million tokens/s need that, see bench/."""
    batches = TrainBatches(Tokens(1_000_000), 1024, 32, 32, 0, "cpu")
    batches.fetch(0, 0)
    tracemalloc.start()
    batches.fetch(32, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 1024  # bytes; the batch alone has 16 times as many


def calls_of_a_fetch(block_size: int, rows: int) -> int:
    """How many functions one fetch calls, those of C included."""
    batches = TrainBatches(Tokens(1_000_000), block_size, rows, rows, 0, "cpu")
    batches.fetch(0, 0)
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.disable()  # whose callbacks would count, too
    sys.setprofile(count)
    batches.fetch(rows, 0)
    sys.setprofile(None)
    gc.enable()
    return calls


def test_fetching_does_nothing_token_by_token():
    assert calls_of_a_fetch(1024, 32) == calls_of_a_fetch(16, 32)
    assert calls_of_a_fetch(16, 64) - calls_of_a_fetch(16, 32) <= 10 * 32  # row by row, a few


# -----------------------------------------------------------------------------
# Validation


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


def test_targets_that_are_not_scored_are_those_that_the_network_ignores():
    assert IGNORE == IGNORED_BY_THE_NETWORK


@pytest.mark.parametrize("n", [0, 1])
def test_validation_needs_two_tokens(n):
    with pytest.raises(ValueError, match=f"val has {n} tokens, need 2"):
        list(val_windows(Tokens(n).train, 8, 0, 1))


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 9))
def test_sizes_that_a_step_cannot_have_are_refused_with_sizes_that_it_can(batch, micro, world):
    try:
        assert even_split(batch, micro, world) * micro * world == batch
    except ValueError as error:
        use = str(error).partition("; use ")[2]
        for instead in re.search(r"batch_size=([\d or]+)", use)[1].split("or"):
            assert even_split(int(instead), micro, world) > 0
        smaller = re.search(r"micro_batch_size=(\d+)", use)
        assert (smaller is not None) == (batch % world == 0)
        if smaller:
            assert even_split(batch, int(smaller[1]), world) > 0
