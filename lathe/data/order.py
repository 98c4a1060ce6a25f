"""Which window of tokens each sample number is.

Training reads one infinite sequence of samples: epoch after epoch, each a seeded permutation of all windows of
block_size tokens, such that every token is a target once per epoch. Sample number g is a pure function of
(seed, g), so the whole position of a run is one integer, and ranks and micro-batches only cut the sequence up.
"""

import math

import numpy as np

MIXTURE_BLOCK = 1024  # samples in which a mixture's proportions are exact
FEISTEL_ABOVE = 2**27  # windows (137 billion tokens at block_size 1024) from which an epoch's order is not stored


# ------------------------------------------------------------------------------------------------- order of samples


def mix64(x):
    """splitmix64's finaliser (Steele, Lea & Flood 2014), a bijection of uint64 that looks random. In place."""
    x ^= x >> 30
    x *= 0xBF58476D1CE4E5B9
    x ^= x >> 27
    x *= 0x94D049BB133111EB
    x ^= x >> 31
    return x


def _hashes(n, *key):
    """n distinct uint64 that depend on the integers in `key` alone. Not numpy's generators: NEP 19 lets them change."""
    state = np.zeros(1, np.uint64)
    for number in key:
        state = mix64(state + np.array([number % 2**64], np.uint64) * 0x9E3779B97F4A7C15 + 1)
    x = np.arange(n, dtype=np.uint64)
    x *= 0x9E3779B97F4A7C15
    x += state
    return mix64(x)


class SampleOrder:
    """Which window of `n_tokens` tokens each sample number is: every target once per epoch, reshuffled each epoch.

    Window i of n reads block_size + 1 tokens from min(i * block_size, n_tokens - 1 - block_size); the last one
    overlaps the one before, and its targets that were that one's already are masked. `spans`: see Stream.spans.
    """

    def __init__(self, n_tokens, block_size, seed, spans=None):
        if n_tokens < (block_size + 1 if spans is None else 2):
            fix = f"use block_size={n_tokens - 1} at most, or more text" if n_tokens > 1 else "prepare more text"
            raise ValueError(f"train has {n_tokens} tokens, block_size={block_size} needs {block_size + 1}: {fix}")
        self.n_tokens, self.block_size, self.seed, self.spans = n_tokens, block_size, seed, spans
        self.n_windows = math.ceil((n_tokens - 1) / block_size) if spans is None else len(spans)
        self._epochs = {}  # the orders of the last two epochs asked for: steps at the border need both

    def windows(self, samples: np.ndarray):
        """(starts, begins, ends) of the samples with these numbers, int64: first token, and which targets count."""
        index = np.empty_like(samples)
        epochs, slots = np.divmod(samples, self.n_windows)
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            here = epochs == epoch
            index[here] = self._permuted(epoch, slots[here])
        return place(index, self.n_tokens, self.block_size, self.spans)

    def _permuted(self, epoch, slots):
        if self.n_windows > FEISTEL_ABOVE:
            return feistel(slots, self.n_windows, self.seed, epoch)
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            # All hashes differ, so the result does not depend on how the sort treats equals.
            self._epochs[epoch] = np.argsort(_hashes(self.n_windows, self.seed, epoch)).astype(np.uint32)
        return self._epochs[epoch][slots]


def place(index, n_tokens, block_size, spans=None, stride=0):
    """(starts, begins, ends) of the windows with these numbers: first token, and the range of targets that are theirs.

    A window that has fewer than block_size reads on, but what is behind its own targets is not scored. With a stride
    windows begin so many tokens apart, and the targets that the one before has seen are not a window's own."""
    if spans is None:
        at = index * (stride or block_size)
        begins = at + np.where(index > 0, block_size - (stride or block_size), 0)
        ends = np.minimum(at + block_size, n_tokens - 1)
    else:
        begins, ends = spans[index].T
        at = begins
    starts = np.maximum(np.minimum(at, n_tokens - 1 - block_size), 0)
    return starts, begins - starts, ends - starts


def feistel(slots, n, *key, rounds=6):
    """A permutation of 0..n-1 that needs no memory: Feistel rounds on 2h bits, repeated while the result is >= n."""
    half = np.uint64(math.ceil(n.bit_length() / 2))
    low = np.uint64(2 ** int(half) - 1)
    keys = _hashes(rounds, *key)
    out = slots.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & low
        for k in keys:
            left, right = right, left ^ (mix64(right + k) & low)
        out[todo] = left << half | right
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)


def mixture_counts(weights) -> list[int]:
    """How many of every 1,024 samples each dataset gives: the weights' shares, rounded by largest remainder."""
    if min(weights) <= 0 or not math.isfinite(sum(weights)):
        raise ValueError(f"the weights of a mixture of datasets must be positive, found {weights}")
    shares = [MIXTURE_BLOCK * w / sum(weights) for w in weights]
    counts = [math.floor(s) for s in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: MIXTURE_BLOCK - sum(counts)]:
        counts[i] += 1
    if min(counts) == 0:
        raise ValueError(f"a mixture's smallest share is 1/{MIXTURE_BLOCK}; the weights {weights} have a smaller one")
    return counts


class MixtureOrder:
    """Samples drawn from several SampleOrders: exact proportions in every aligned block of 1,024 samples.

    Each source goes through its own epochs. Starts are positions in the concatenation of all sources.
    """

    def __init__(self, orders, weights, seed):
        self.orders, self.seed = orders, seed
        self.counts = np.array(mixture_counts(weights))
        self.ends = np.cumsum(self.counts)
        self.offsets = np.cumsum([0] + [order.n_tokens for order in orders])
        self._block = None, None

    def windows(self, samples: np.ndarray):
        """As SampleOrder.windows."""
        blocks, slots = np.divmod(samples, MIXTURE_BLOCK)
        for block in range(int(blocks.min()), int(blocks.max()) + 1):
            here = blocks == block
            slots[here] = self._permutation(block)[slots[here]]
        source = np.searchsorted(self.ends, slots, side="right")
        local = blocks * self.counts[source] + slots - (self.ends - self.counts)[source]
        found = np.empty((3, *samples.shape), np.int64)
        for s in np.unique(source).tolist():
            here = source == s
            found[:, here] = self.orders[s].windows(local[here])
        return found[0] + self.offsets[source], found[1], found[2]

    def _permutation(self, block):
        if self._block[0] != block:
            self._block = block, np.argsort(_hashes(MIXTURE_BLOCK, self.seed, -1, block))
        return self._block[1]
