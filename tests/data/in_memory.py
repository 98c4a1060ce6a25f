"""Datasets held in memory, of which a test knows every token."""

import numpy as np
from hypothesis import strategies as st

from lathe.data.batches import TrainBatches
from lathe.data.dataset import Stream


class Tokens:
    """A dataset whose token at position p is p, cut into shards at `cuts`."""

    def __init__(self, n, cuts=()):
        self.train = Stream(np.split(np.arange(n, dtype=np.uint32), sorted(cuts)))
        self.parts = [(self.train, 1.0)]


@st.composite
def corpora(draw):
    n = draw(st.integers(2, 300))
    cuts = draw(st.lists(st.integers(0, n), max_size=4))
    return n, draw(st.integers(1, n - 1)), cuts, draw(st.integers(-(2**70), 2**70))


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
    assert batches.count_targets(seen) == count
    return sorted(found)
