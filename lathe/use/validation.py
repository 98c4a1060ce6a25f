"""The loss over fixed windows of a split: of validation, and of training to compare with."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lathe.data.batches import count_val_windows, val_windows, windows_per_pass
from lathe.data.dataset import Dataset
from lathe.run import devices, ranks
from lathe.run.progress import with_bar
from lathe.settings import Settings
from model import GPT, IGNORE


@torch.no_grad()
def validation(
    model: GPT,
    dataset: Dataset,
    run: devices.Runtime,
    micro_batch_size: int,
    eval_tokens: int = 0,
    block_size: int = 0,
    interrupted: Callable[[], bool] = lambda: False,
    stride: int = 0,
    split: Literal["val", "train"] = "val",
) -> dict | None:
    """{"loss": mean nats per target, "bits_per_byte", "tokens": targets scored, "by_position"} over
    fixed windows of the split. by_position: the loss of targets with 1, 2, 3-4, 5-8, ... tokens
    before them in their window.

    eval_tokens and block_size: 0 = the whole split, in windows of the model's own context; stride:
    as in val_windows. The ranks share the windows and join their sums in float64, so the figures
    depend neither on how many there are nor on micro_batch_size. None if interrupted() became true
    on any rank. Raises ValueError for a split shorter than two tokens.
    """
    block_size = block_size or model.config.block_size
    stream = dataset.val if split == "val" else dataset.train
    n_windows = count_val_windows(stream, block_size, eval_tokens, stride)
    windows_per_rank = math.ceil(n_windows / run.world_size)
    batch_size = min(windows_per_pass(micro_batch_size, block_size), max(1, windows_per_rank))
    batches = val_windows(
        stream,
        block_size,
        eval_tokens,
        batch_size,
        run.rank,
        run.world_size,
        run.device,
        stride,
    )
    n_batches = math.ceil(windows_per_rank / batch_size)
    byte_lengths = torch.from_numpy(dataset.tokenizer().token_byte_lengths()).to(run.device)

    was_training = model.training
    model.eval()
    stopped = False
    sums = Sums(block_size)
    for x, y in with_bar(batches, "evaluating", n_batches, run.is_main):
        stopped = interrupted()
        if stopped:
            break
        with run.autocast():
            losses = model(x, y, reduction="none")  # (B, T), 0 where y is masked
        sums.add_batch(losses, y, byte_lengths)
    model.train(was_training)

    (n_stopped,) = ranks.sum_over_ranks(stopped)
    if n_stopped:
        return None
    sums.add_ranks()
    return figures(sums)


def tokens_of_validation(s: Settings, dataset: Dataset) -> int:
    """How many validation tokens an evaluation reads, in whole windows."""
    return count_val_windows(dataset.val, s.block_size, s.eval_tokens) * s.block_size


def tokens_to_compare(s: Settings, dataset: Dataset) -> int:
    """How many training tokens an evaluation reads: as settings say, in whole windows, and no more
    than of validation."""
    if not s.eval_train_tokens:
        return 0
    n_tokens = max(1, s.eval_train_tokens // s.block_size) * s.block_size
    return min(n_tokens, tokens_of_validation(s, dataset))


class Sums:
    """What is added up over batches and ranks. It is one vector, so that a batch costs one transfer
    and the ranks send one message; the names are views of it.

    text_nats, text_bytes: (1,), of targets that are text, which end-of-text is not.
    nats, targets: (T,), the losses and the number of all targets, by position in the window.
    """

    def __init__(self, block_size: int):
        self.vector = torch.zeros(2 + 2 * block_size, dtype=torch.float64)
        parts = self.vector.split([1, 1, block_size, block_size])
        self.text_nats, self.text_bytes, self.nats, self.targets = parts

    def add_batch(self, losses: Tensor, y: Tensor, byte_lengths: Tensor):
        """losses and y: (B, T); byte_lengths: (vocab_size,), 0 for special tokens."""
        scored = y != IGNORE
        text_bytes = byte_lengths[y.clamp(min=0)].masked_fill(~scored, 0)
        is_text = text_bytes > 0
        batch = [  # as __init__ splits it
            (losses * is_text).sum().view(1),
            text_bytes.sum().view(1),
            losses.sum(dim=0),
            scored.sum(dim=0),
        ]
        self.vector += torch.cat(batch).cpu().double()

    def add_ranks(self):
        total = ranks.sum_over_ranks(*self.vector.tolist())
        self.vector.copy_(torch.tensor(total, dtype=torch.float64))


def figures(sums: Sums) -> dict:
    """What `validation` returns."""
    n_targets = int(sums.targets.sum())
    bits_per_byte = None
    if sums.text_bytes:
        bits_per_byte = sums.text_nats.item() / math.log(2) / sums.text_bytes.item()
    return {
        "loss": sums.nats.sum().item() / n_targets,
        "bits_per_byte": bits_per_byte,
        "tokens": n_targets,
        "by_position": loss_by_position(sums.nats, sums.targets),
    }


def loss_by_position(nats: Tensor, targets: Tensor) -> list[dict]:
    """A row for the positions 1, 2, 3-4, 5-8, ...; the loss is None where no target is scored."""
    rows = []
    begin = 0
    end = 1
    while begin < len(nats):
        n = int(targets[begin:end].sum())
        loss = nats[begin:end].sum().item() / n if n else None
        rows.append({"from": begin + 1, "to": min(end, len(nats)), "loss": loss, "tokens": n})
        begin = end
        end = 2 * end
    return rows
