import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.data.order import MixtureOrder, SampleOrder, feistel, mixture_counts


def starts(order, first, count):
    """Where the windows of these samples begin."""
    return order.windows(np.arange(first, first + count)).starts


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
    tracemalloc.start()
    begins = starts(order, n_windows - 500, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6  # bytes; a stored order would have 4 a window
    assert 0 <= begins.min() and begins.max() < n_windows * 1024
    assert len(set(begins[:500].tolist())) == len(set(begins[500:].tolist())) == 500


@settings(max_examples=60)
@given(st.integers(2, 400), st.integers(1, 40), st.integers(0, 99))
def test_a_shifted_grid_has_every_target_once_an_epoch(n_tokens, block_size, seed):
    block_size = min(block_size, n_tokens - 1)
    order = SampleOrder(n_tokens, block_size, seed, shifted=True)
    sample = 0
    for epoch in range(5):
        n = order.windows_of(epoch)
        windows = order.windows(np.arange(sample, sample + n))
        sample += n
        targets = []
        for start, begin, end in zip(windows.starts, windows.begins, windows.ends, strict=True):
            assert 0 <= begin < end <= block_size
            assert 0 <= start and start + block_size < n_tokens
            targets += range(start + begin + 1, start + end + 1)
        assert sorted(targets) == list(range(1, n_tokens))


def test_the_grid_moves_over_half_of_a_window_or_more():
    for n_tokens in (2 + 37 * 16, 7 + 37 * 16, 16 + 37 * 16):
        order = SampleOrder(n_tokens, 16, 3, shifted=True)
        leads = {order.lead(epoch) for epoch in range(1, 300)}
        assert len(leads) >= 8 and order.lead(0) == 0


def test_the_order_never_changes_between_versions():
    """Runs that began with an older lathe resume in the same order: these figures stay as they are."""
    assert starts(SampleOrder(1005, 100, 7), 0, 22).tolist() == [
        *(700, 600, 100, 200, 0, 300, 900, 500, 800, 400, 904),
        *(700, 600, 904, 800, 500, 300, 100, 0, 200, 400, 900),
    ]
    assert SampleOrder(1005, 100, 7).windows(np.array([10, 13])).begins.tolist() == [96, 96]
    shifted = SampleOrder(1005, 100, 7, shifted=True)
    assert starts(shifted, 0, 13).tolist() == [
        *(700, 600, 100, 200, 0, 300, 900, 500, 800, 400, 904),
        *(690, 590),
    ]
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


@pytest.mark.parametrize("n_tokens", [100, 101, 102, 105, 108, 109])
@pytest.mark.parametrize("shifted", [True, False])
def test_so_many_epochs_read_every_target_so_often(n_tokens, shifted):
    """Later epochs have a window more where they are cut at other places."""
    order = SampleOrder(n_tokens, 8, 5, shifted=shifted)
    for epochs in (1, 2, 5):
        n_samples = order.sizes.samples(epochs)
        windows = order.windows(np.arange(int(n_samples)))
        own = zip(windows.starts, windows.begins, windows.ends, strict=True)
        targets = np.concatenate([np.arange(at + a, at + b) + 1 for at, a, b in own])
        assert (np.bincount(targets)[1:] == epochs).all()
        assert order.sizes.epochs(n_samples) == epochs
    assert order.sizes.epochs(order.sizes.samples(2.5)) == pytest.approx(2.5)


def test_the_order_of_ten_billion_tokens_takes_40_megabytes():
    tracemalloc.start()
    order = SampleOrder(10**10, 1024, 0)
    starts(order, 0, 1)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept <= 40e6  # bytes


# -----------------------------------------------------------------------------
# Mixtures


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
