"""The loss over fixed windows of the validation split."""

import math
from collections.abc import Callable

import torch

from lathe.data.batches import count_val_windows, val_windows
from lathe.data.dataset import Dataset
from lathe.run import devices, ranks
from lathe.run.progress import with_bar
from model import GPT, IGNORE

TOKENS_AT_ONCE = 8192  # at least, where there are so many: without gradients smaller batches are only slower


@torch.no_grad()
def validation(
    model: GPT, dataset: Dataset, run: devices.Runtime, micro_batch_size: int, eval_tokens: int = 0,
    block_size: int = 0, interrupted: Callable[[], bool] = lambda: False, stride: int = 0,
) -> dict | None:  # fmt: skip
    """{"loss": mean nats per target, "bits_per_byte", "tokens": targets scored, "by_position"} over fixed windows of
    the val split. by_position: the loss of targets with 1, 2, 3-4, 5-8, ... tokens before them in their window.

    eval_tokens and block_size: 0 = the whole split, in windows of the model's own context; stride: as in val_windows.
    The ranks share the windows and join their sums in float64, so the figures depend neither on how many there are nor
    on micro_batch_size. None if interrupted() became true on any rank. Raises ValueError for a split shorter than two
    tokens.
    """
    was_training = model.training
    model.eval()
    lengths = torch.from_numpy(dataset.tokenizer().token_byte_lengths()).to(run.device)
    size = block_size or model.config.block_size
    sums = torch.zeros(2 + 2 * size, dtype=torch.float64)  # nats and bytes of text; nats, then targets, by position
    stopped = False
    of_rank = math.ceil(count_val_windows(dataset.val, size, eval_tokens, stride) / run.world_size)
    batch = max(1, min(of_rank, max(micro_batch_size, TOKENS_AT_ONCE // size)))
    windows = val_windows(dataset.val, size, eval_tokens, batch, run.rank, run.world_size, run.device, stride)
    for x, y in with_bar(windows, "evaluating", math.ceil(of_rank / batch), run.is_main):
        if stopped := interrupted():
            break
        with run.autocast():
            losses = model(x, y, reduction="none")  # (B, T), 0 where y is masked
        scored = y != IGNORE
        text_bytes = lengths[y.clamp(min=0)] * scored
        of_text = torch.stack([(losses * (text_bytes > 0)).sum(), text_bytes.sum()])
        sums += torch.cat([of_text, losses.sum(dim=0), scored.sum(dim=0)]).cpu().double()  # one transfer a batch
    model.train(was_training)
    stopped, text_nats, text_bytes, *at = ranks.sum_over_ranks(stopped, *sums.tolist())
    if stopped:
        return None
    (nats, targets), by_position = torch.tensor(at, dtype=torch.float64).view(2, size), []
    begin, end = 0, 1
    while begin < size:
        n = int(targets[begin:end].sum())
        mean = nats[begin:end].sum().item() / n if n else None
        by_position.append({"from": begin + 1, "to": min(end, size), "loss": mean, "tokens": n})
        begin, end = end, 2 * end
    n, bits_per_byte = int(targets.sum()), text_nats / math.log(2) / text_bytes if text_bytes else None
    return {"loss": nats.sum().item() / n, "bits_per_byte": bits_per_byte, "tokens": n, "by_position": by_position}
