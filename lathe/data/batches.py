"""Batches of training and validation, on the device."""

import math
import mmap
from itertools import cycle

import numpy as np

from lathe.data.order import MixtureOrder, SampleOrder, place

# ------------------------------------------------------------------------------------------------- batches


def even_split(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """How many micro-batches make a step. Raises ValueError, naming batch sizes that would do, if that is not whole."""
    share = micro_batch_size * world_size
    if batch_size % share:
        near = sorted({max(1, batch_size // share) * share, (batch_size // share + 1) * share})
        raise ValueError(
            f"batch_size={batch_size} is no multiple of micro_batch_size={micro_batch_size} x {world_size} "
            f"devices; use batch_size={' or '.join(map(str, near))}"
        )
    return batch_size // share


class TrainBatches:
    """The batches of optimizer steps: each takes the next batch_size samples, over all ranks and micro-steps.

    batch_size counts sequences over all ranks; micro_batch_size those of one rank in one forward pass.
    """

    def __init__(self, dataset, block_size, batch_size, micro_batch_size, seed, device, rank=0, world_size=1):
        import torch

        self.micro_steps = even_split(batch_size, micro_batch_size, world_size)
        self.batch_size, self.micro_batch_size, self.block_size = batch_size, micro_batch_size, block_size
        self.rank, self.world_size = rank, world_size
        orders, self.n_longer = [], 0  # n_longer: prompts with completions that no window holds whole
        for stream, _ in dataset.parts:
            spans, n_longer = stream.spans(block_size)
            orders.append(SampleOrder(stream.n_tokens, block_size, seed, spans))
            self.n_longer += n_longer
        weights = [weight for _, weight in dataset.parts]
        self.order = orders[0] if len(orders) == 1 else MixtureOrder(orders, weights, seed)
        self.stream, self.device = dataset.train, torch.device(device)
        for shard in self.stream.shards:  # windows lie anywhere: reading ahead would fetch pages nobody asked for
            if hasattr(mmap, "MADV_RANDOM") and isinstance(shard.base, memoryview):
                shard.base.obj.madvise(mmap.MADV_RANDOM)
        # Two buffers, so that the next batch is gathered while the copy of this one to the device may be under way.
        on_cuda, shape = self.device.type == "cuda", (2, micro_batch_size, block_size)
        buffers = [torch.empty(shape, dtype=torch.int64, pin_memory=on_cuda) for _ in range(2)]
        self._buffers = cycle([(b, *b.numpy(), torch.cuda.Event() if on_cuda else None) for b in buffers])
        self._rows = np.zeros((micro_batch_size, block_size + 1), self.stream.dtype)

    def fetch(self, seen, micro):
        """(x, y) of micro-step `micro` of the optimizer step that follows `seen` samples.

        int64 (micro_batch_size, block_size) on the device; y is -1 where a target is masked. On the CPU x and y are
        reused by the next fetch but one: copy to keep them.
        """
        first = seen + (micro * self.world_size + self.rank) * self.micro_batch_size
        windows = self.order.windows(np.arange(first, first + self.micro_batch_size))
        buffer, x, y, copied = next(self._buffers)
        if copied is not None:
            copied.synchronize()  # the copy before last, long done
        self.stream.gather(*windows, self._rows, x, y)
        if self.device.type == "cpu":
            return buffer[0], buffer[1]
        on_device = buffer.to(self.device, non_blocking=copied is not None)
        if copied is not None:
            copied.record()
        return on_device[0], on_device[1]

    def targets(self, seen) -> int:
        """How many targets the step that follows `seen` samples scores, over all ranks and micro-steps: one or more."""
        windows = self.order.windows(np.arange(seen, seen + self.batch_size))
        if self.stream.mask is None:
            return int((windows[2] - windows[1]).sum())
        return sum(int(self.stream.scored(*window).sum()) for window in np.stack(windows, axis=1).tolist())


def count_val_windows(stream, block_size, eval_tokens, stride=0) -> int:
    """How many windows `val_windows` reads on all ranks together."""
    spans, _ = stream.spans(block_size)
    step = stride or block_size
    count = 1 + math.ceil(max(0, stream.n_tokens - 1 - block_size) / step) if spans is None else len(spans)
    return min(count, max(1, eval_tokens // step)) if eval_tokens else count


def val_windows(stream, block_size, eval_tokens, micro_batch_size, rank=0, world_size=1, device="cpu", stride=0):
    """Batches (x, y), int64 (micro_batch_size, block_size), of validation: always the same windows.

    All of them in order when eval_tokens is 0, else eval_tokens // block_size evenly spaced ones. Rank r takes
    windows r, r + world_size, ...; masked rows (y = -1) fill up so that all ranks get as many batches of one shape.
    stride: windows begin so many tokens apart, and score what the one before had not (running text only); 0 =
    block_size.
    """
    import torch

    if stream.n_tokens < 2:
        raise ValueError(f"val has {stream.n_tokens} tokens, need 2: prepare the dataset with a larger --val_fraction")
    count = count_val_windows(stream, block_size, eval_tokens, stride)
    chosen = np.arange(count) * count_val_windows(stream, block_size, 0, stride) // count
    windows = np.stack(place(chosen, stream.n_tokens, block_size, stream.spans(block_size)[0], stride))
    rows = np.zeros((micro_batch_size, block_size + 1), stream.dtype)
    for first in range(0, count, micro_batch_size * world_size):
        mine = windows[:, first + rank : first + micro_batch_size * world_size : world_size]
        n = mine.shape[1]
        x, y = torch.zeros(2, micro_batch_size, block_size, dtype=torch.int64)
        y.fill_(-1)
        stream.gather(*mine, rows[:n], x[:n].numpy(), y[:n].numpy())
        yield x.to(device), y.to(device)
