"""Which window each sample number is: one infinite sequence that training reads.

The law: every target token of the corpus occurs exactly once per epoch. Epoch after epoch is a
seeded permutation of all windows. Sample number g is a pure function of (seed, g), so the position
of a run is one integer, and ranks and micro-batches only cut the sequence up.
"""

import math
from dataclasses import dataclass

import numpy as np

from lathe.data.windows import Spans, Windows, count_windows, window_bounds

MIXTURE_BLOCK = 1024  # samples in which a mixture's proportions are exact
# With more windows than this (137 billion tokens at block_size 1024) no epoch's order is stored.
FEISTEL_ABOVE = 2**27
FEISTEL_ROUNDS = 6


def refuse_too_few(n_tokens: int, block_size: int):
    """ValueError where training tokens are less than one window."""
    if n_tokens > block_size:
        return
    fix = "prepare more text, or with a lower --val_fraction"
    if n_tokens > 1:
        fix = f"use block_size={n_tokens - 1} at most, or more text"
    raise ValueError(
        f"train has {n_tokens} tokens, block_size={block_size} needs {block_size + 1}: {fix}"
    )


@dataclass(frozen=True)
class EpochSizes:
    """How many samples go once over a text: the first time, and each later one."""

    first: int
    later: int

    def samples(self, epochs: float) -> float:
        """That go over the text so often."""
        return min(epochs, 1.0) * self.first + max(0.0, epochs - 1.0) * self.later

    def epochs(self, n_samples: float) -> float:
        """How often the first `n_samples` go over the text. Inverse of samples."""
        if n_samples <= self.first:
            return n_samples / self.first
        return 1.0 + (n_samples - self.first) / self.later


class SampleOrder:
    """Which window of `n_tokens` tokens each sample number is, reshuffled each epoch.

    spans: see Stream.spans. shifted: from the second epoch on running text is cut at other places
    in each, so that a token does not always stand at the same distance from the beginning of its
    window. Raises ValueError where there is less than one window.
    """

    def __init__(
        self,
        n_tokens: int,
        block_size: int,
        seed: int,
        spans: Spans | None = None,
        shifted: bool = False,
    ):
        refuse_too_few(n_tokens, block_size if spans is None else 1)
        self.n_tokens = n_tokens
        self.block_size = block_size
        self.seed = seed
        self.spans = spans
        self.n_windows = count_windows(n_tokens, block_size, spans)  # of the first epoch
        self.shifted = shifted and spans is None
        # Windows are as long as the text and `spare` tokens more: the grid may begin up to `spare`
        # before the text, or, with a window more, between that and a whole window before it. What
        # has more choices is taken, so that each epoch but the first has as many windows.
        self.spare = self.n_windows * block_size - (n_tokens - 1)
        self.one_more = self.shifted and 2 * self.spare < block_size - 1
        self.n_later = self.n_windows + self.one_more  # windows of each later epoch
        self._kept = {}  # {epoch: its order}; a step across the border of two epochs needs both

    @property
    def sizes(self) -> EpochSizes:
        return EpochSizes(self.n_windows, self.n_later)

    def windows(self, samples: np.ndarray) -> Windows:
        """The windows of the samples with these numbers, int64."""
        # As if the first epoch had as many as the others.
        epochs, slots = np.divmod(samples + self.one_more, self.n_later)
        slots -= np.where(epochs == 0, self.one_more, 0)
        index = np.empty_like(samples)
        lead = np.zeros_like(samples)
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            of_epoch = epochs == epoch
            index[of_epoch] = self._permuted(epoch, slots[of_epoch])
            lead[of_epoch] = self.lead(epoch)
        return window_bounds(index, self.n_tokens, self.block_size, self.spans, lead=lead)

    def lead(self, epoch: int) -> int:
        """How many tokens before the text the first window of an epoch begins."""
        if not self.shifted or epoch == 0:
            return 0
        draw = int(hashes(1, self.seed, epoch, 1)[0])
        if self.one_more:
            return self.spare + 1 + draw % (self.block_size - 1 - self.spare)
        return draw % (self.spare + 1)

    def windows_of(self, epoch: int) -> int:
        return self.n_later if epoch else self.n_windows

    def _permuted(self, epoch: int, slots: np.ndarray) -> np.ndarray:
        n_windows = self.windows_of(epoch)
        if n_windows > FEISTEL_ABOVE:
            return feistel(slots, n_windows, self.seed, epoch)
        return self.epoch_order(epoch)[slots]

    def epoch_order(self, epoch: int) -> np.ndarray:
        """uint32 (windows,): those of an epoch, in order. The last two asked for are kept."""
        if epoch not in self._kept:
            if len(self._kept) == 2:
                oldest = next(iter(self._kept))
                del self._kept[oldest]
            # All hashes differ, so the result does not depend on how the sort treats equals.
            order = np.argsort(hashes(self.windows_of(epoch), self.seed, epoch))
            self._kept[epoch] = order.astype(np.uint32)
        return self._kept[epoch]


# -----------------------------------------------------------------------------
# Mixtures of datasets


def mixture_counts(weights: list[float]) -> list[int]:
    """How many of every 1,024 samples each dataset gives: its share, rounded by largest remainder.

    Raises ValueError for weights that are not positive, or so small that none would be left.
    """
    if min(weights) <= 0 or not math.isfinite(sum(weights)):
        raise ValueError(f"the weights of a mixture of datasets must be positive, found {weights}")
    shares = [MIXTURE_BLOCK * w / sum(weights) for w in weights]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - shares[i], i))
    n_missing = MIXTURE_BLOCK - sum(counts)
    for i in by_remainder[:n_missing]:
        counts[i] += 1
    if min(counts) == 0:
        raise ValueError(
            f"a mixture's smallest share is 1/{MIXTURE_BLOCK}; the weights {weights} have a "
            f"smaller one"
        )
    return counts


class MixtureOrder:
    """Samples drawn from several SampleOrders: exact proportions in every 1,024 samples.

    Each source goes through its own epochs. Windows lie in the concatenation of all sources.
    """

    def __init__(self, orders: list[SampleOrder], weights: list[float], seed: int):
        self.orders = orders
        self.seed = seed
        self.counts = np.array(mixture_counts(weights))
        self.offsets = np.cumsum([0] + [order.n_tokens for order in orders])
        # Of the 1,024 slots of a block source s has those from _begins[s] to _ends[s] - 1.
        self._ends = np.cumsum(self.counts)
        self._begins = self._ends - self.counts
        self._block = None  # the number of the block whose permutation is kept
        self._permutation = None

    @property
    def sizes(self) -> EpochSizes:
        """Of all texts together."""
        first = sum(order.n_windows for order in self.orders)
        return EpochSizes(first, sum(order.n_later for order in self.orders))

    def windows(self, samples: np.ndarray) -> Windows:
        """The windows of the samples with these numbers, int64."""
        blocks, slots = np.divmod(samples, MIXTURE_BLOCK)
        for block in range(int(blocks.min()), int(blocks.max()) + 1):
            of_block = blocks == block
            slots[of_block] = self._permuted(block, slots[of_block])
        sources = np.searchsorted(self._ends, slots, side="right")
        # Each source's own sample numbers: those of earlier blocks, then those of this one.
        own_samples = blocks * self.counts[sources] + slots - self._begins[sources]
        starts = np.empty_like(samples)
        begins = np.empty_like(samples)
        ends = np.empty_like(samples)
        for s in np.unique(sources).tolist():
            of_source = sources == s
            windows = self.orders[s].windows(own_samples[of_source])
            starts[of_source] = windows.starts + self.offsets[s]
            begins[of_source] = windows.begins
            ends[of_source] = windows.ends
        return Windows(starts, begins, ends)

    def _permuted(self, block: int, slots: np.ndarray) -> np.ndarray:
        if self._block != block:
            self._permutation = np.argsort(hashes(MIXTURE_BLOCK, self.seed, -1, block))
            self._block = block
        return self._permutation[slots]


# -----------------------------------------------------------------------------
# Randomness that never changes between versions, as numpy's generators may (NEP 19)

GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


def mix64(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea & Flood 2014): a bijection of uint64 that looks random.

    Works in place.
    """
    x ^= x >> 30
    x *= 0xBF58476D1CE4E5B9
    x ^= x >> 27
    x *= 0x94D049BB133111EB
    x ^= x >> 31
    return x


def hashes(n: int, *key: int) -> np.ndarray:
    """uint64 (n,): n distinct numbers that depend on the integers in `key` alone."""
    state = np.zeros(1, np.uint64)
    for number in key:
        word = np.array([number % 2**64], np.uint64)
        state = mix64(state + word * GOLDEN_GAMMA + 1)
    x = np.arange(n, dtype=np.uint64)
    x *= GOLDEN_GAMMA
    x += state
    return mix64(x)


def feistel(slots: np.ndarray, n: int, *key: int) -> np.ndarray:
    """Where a permutation of 0 .. n - 1 puts `slots`, int64, without storing it.

    A Feistel network on 2h bits (Luby & Rackoff 1988), applied again while the result is >= n.
    """
    half = np.uint64(math.ceil(n.bit_length() / 2))
    low = np.uint64(2 ** int(half) - 1)
    round_keys = hashes(FEISTEL_ROUNDS, *key)
    out = slots.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left = out[todo] >> half
        right = out[todo] & low
        for round_key in round_keys:
            scrambled = left ^ (mix64(right + round_key) & low)
            left = right
            right = scrambled
        out[todo] = left << half | right
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)
