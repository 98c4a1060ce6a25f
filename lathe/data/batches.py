"""Batches of training and validation, on the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from lathe.data.dataset import IGNORE, Dataset, Stream
from lathe.data.order import EpochSizes, MixtureOrder, SampleOrder
from lathe.data.shards import expect_random_reads
from lathe.data.windows import count_windows, window_bounds

if TYPE_CHECKING:  # at run time where it is used: importing torch takes seconds
    import torch

# -----------------------------------------------------------------------------
# Training


def even_split(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """How many micro-batches make a step.

    Raises ValueError, naming sizes that would do, if that is not whole.
    """
    share = micro_batch_size * world_size
    if batch_size % share:
        below = max(1, batch_size // share) * share
        above = (batch_size // share + 1) * share
        near = sorted({below, above})
        use = f"batch_size={' or '.join(map(str, near))}"
        of_rank = batch_size // world_size
        if batch_size % world_size == 0:
            smaller = max(n for n in range(1, micro_batch_size + 1) if of_rank % n == 0)
            use += f", or micro_batch_size={smaller}"
        raise ValueError(
            f"batch_size={batch_size} is no multiple of micro_batch_size={micro_batch_size} x "
            f"{world_size} devices; use {use}"
        )
    return batch_size // share


@dataclass
class _Buffer:
    """Memory of one batch, which a later fetch uses again."""

    batch: "torch.Tensor"  # (2, B, T) int64: x and y, which one copy takes to the device
    x: np.ndarray  # (B, T), the same memory
    y: np.ndarray  # (B, T), the same memory
    copied: "torch.cuda.Event | None"  # on CUDA: when the copy to the device is done


class TrainBatches:
    """The batches of optimizer steps: each step takes the next batch_size samples.

    batch_size counts sequences over all ranks and micro-steps; micro_batch_size those of one rank
    in one forward pass. shifted: see SampleOrder. n_longer: prompts with completions that no window
    holds whole.
    """

    def __init__(
        self,
        dataset: Dataset,
        block_size: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        device: "str | torch.device",
        rank: int = 0,
        world_size: int = 1,
        shifted: bool = False,
    ):
        import torch

        self.micro_steps = even_split(batch_size, micro_batch_size, world_size)
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.stream = dataset.train
        orders = []
        self.n_longer = 0
        for stream, _ in dataset.parts:
            spans = stream.spans(block_size)
            orders.append(SampleOrder(stream.n_tokens, block_size, seed, spans, shifted))
            if spans is not None:
                self.n_longer += spans.n_longer
        weights = [weight for _, weight in dataset.parts]
        self.order = orders[0] if len(orders) == 1 else MixtureOrder(orders, weights, seed)
        for shard in self.stream.shards:
            expect_random_reads(shard)
        # Two, so that the next batch is gathered while the copy of this one may be under way.
        self._buffers = cycle([self._new_buffer(block_size), self._new_buffer(block_size)])
        # What Stream.gather works in: the tokens of each window, before they are x and y
        self._rows = np.zeros((micro_batch_size, block_size + 1), self.stream.dtype)

    def _new_buffer(self, block_size: int) -> _Buffer:
        import torch

        shape = (2, self.micro_batch_size, block_size)
        on_cuda = self.device.type == "cuda"
        batch = torch.empty(shape, dtype=torch.int64, pin_memory=on_cuda)
        x, y = batch.numpy()
        return _Buffer(batch, x, y, torch.cuda.Event() if on_cuda else None)

    def fetch(self, seen: int, micro: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """(x, y) of micro-step `micro` of the optimizer step that follows `seen` samples.

        int64 (micro_batch_size, block_size) on the device; y is IGNORE where a target is masked. On
        the CPU x and y are reused by the next fetch but one: copy to keep them.
        """
        first = seen + (micro * self.world_size + self.rank) * self.micro_batch_size
        samples = np.arange(first, first + self.micro_batch_size)
        windows = self.order.windows(samples)
        buffer = next(self._buffers)
        if buffer.copied is not None:
            buffer.copied.synchronize()  # this buffer's last copy, two fetches ago, so long done
        self.stream.gather(windows, self._rows, buffer.x, buffer.y)
        if self.device.type == "cpu":
            return buffer.batch[0], buffer.batch[1]
        on_device = buffer.batch.to(self.device, non_blocking=buffer.copied is not None)
        if buffer.copied is not None:
            buffer.copied.record()
        return on_device[0], on_device[1]

    def epochs(self, seen: int) -> float:
        """How often the first `seen` samples go over the text; of a mixture, over all of it."""
        return self.order.sizes.epochs(seen)

    def count_targets(self, seen: int) -> int:
        """How many targets the step after `seen` samples scores on all ranks: one or more."""
        windows = self.order.windows(np.arange(seen, seen + self.batch_size))
        if self.stream.mask is None:
            return int((windows.ends - windows.begins).sum())
        starts = windows.starts.tolist()
        begins = windows.begins.tolist()
        ends = windows.ends.tolist()
        count = 0
        for start, begin, end in zip(starts, begins, ends, strict=True):
            count += int(self.stream.scored(start, begin, end).sum())
        return count


def epoch_sizes(dataset: Dataset, block_size: int, shifted: bool) -> EpochSizes:
    """How many samples an epoch of TrainBatches has, all datasets of a mixture together. Raises
    ValueError where there is less than one window."""
    sizes = []
    for stream, _ in dataset.parts:
        spans = stream.spans(block_size)
        sizes.append(SampleOrder(stream.n_tokens, block_size, 0, spans, shifted).sizes)
    return EpochSizes(sum(size.first for size in sizes), sum(size.later for size in sizes))


# -----------------------------------------------------------------------------
# Validation

# A forward pass reads at least so many where there are: without gradients smaller ones are slower.
TOKENS_PER_PASS = 8192


def windows_per_pass(micro_batch_size: int, block_size: int) -> int:
    """How many windows an evaluation reads at a time, if there are as many."""
    return max(1, micro_batch_size, TOKENS_PER_PASS // block_size)


def count_val_windows(stream: Stream, block_size: int, eval_tokens: int, stride: int = 0) -> int:
    """How many windows `val_windows` reads on all ranks together."""
    count = count_windows(stream.n_tokens, block_size, stream.spans(block_size), stride)
    if eval_tokens == 0:
        return count
    return min(count, max(1, eval_tokens // (stride or block_size)))


def val_windows(
    stream: Stream,
    block_size: int,
    eval_tokens: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    device: "str | torch.device" = "cpu",
    stride: int = 0,
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Batches (x, y), int64 (micro_batch_size, block_size), to evaluate: always the same windows.

    stream: the split for validation, or the training split, to compare with.

    All of them in order when eval_tokens is 0, else eval_tokens // block_size evenly spaced ones.
    Rank r takes windows r, r + world_size, ...; masked rows (y = IGNORE) fill up so that all ranks
    get as many batches of one shape. stride: windows begin so many tokens apart, and score what the
    one before had not (running text only); 0 = block_size.
    """
    import torch

    if stream.n_tokens < 2:
        raise ValueError(
            f"val has {stream.n_tokens} tokens, need 2: prepare the dataset with a larger "
            f"--val_fraction"
        )
    count = count_val_windows(stream, block_size, eval_tokens, stride)
    count_of_all = count_val_windows(stream, block_size, 0, stride)
    chosen = np.arange(count) * count_of_all // count
    windows = window_bounds(chosen, stream.n_tokens, block_size, stream.spans(block_size), stride)
    rows = np.zeros((micro_batch_size, block_size + 1), stream.dtype)
    of_all_ranks = micro_batch_size * world_size
    for first in range(0, count, of_all_ranks):
        of_rank = windows.pick(slice(first + rank, first + of_all_ranks, world_size))
        n = len(of_rank.starts)
        x = torch.zeros(micro_batch_size, block_size, dtype=torch.int64)
        y = torch.full_like(x, IGNORE)
        stream.gather(of_rank, rows[:n], x[:n].numpy(), y[:n].numpy())
        yield x.to(device), y.to(device)
