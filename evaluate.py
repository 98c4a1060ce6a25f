"""How good a model is: loss, perplexity and bits per byte on a prepared dataset, scores in tasks.

    python evaluate.py --out_dir=RUN [--dataset=FOLDER]
    python evaluate.py --model=hf:gpt2 --tasks hellaswag lambada

One JSON object goes to stdout. Bits per byte compare across tokenizers: the nats of all predicted text over ln 2 and
over the bytes of that text; end-of-text tokens count in neither sum.
"""

from dataclasses import dataclass, field
from typing import Literal

import config


@dataclass
class Options:
    """What to evaluate, on what."""

    out_dir: str = "out/quickstart"  # a run's folder (its best checkpoint) or one checkpoint's folder
    model: str = ""  # instead of out_dir: hf:NAME_OR_FOLDER, a Hugging Face model
    dataset: str = ""  # prepared dataset whose validation split is read; empty = the run's own, or none with tasks
    tasks: list[str] = field(default_factory=list)  # NAME (fetched) or NAME:FILE.jsonl, such as hellaswag:val.jsonl
    limit: int = 0  # items of each task, from its beginning; 0 = all
    eval_tokens: int = 0  # how many tokens are read, always the same ones; 0 = all
    block_size: int = 0  # context of each window; 0 = the model's
    stride: int = 0  # windows begin every so many tokens, and score what the one before left out; 0 = block_size
    by_position: bool = False  # the loss by the number of tokens before the target in its window, too
    micro_batch_size: int = 8  # windows per forward pass, at least; no figure depends on it
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of the forward pass, or int8 weights

    def __post_init__(self):
        for name in ("limit", "eval_tokens", "block_size", "stride", "micro_batch_size"):
            if getattr(self, name) < (least := int(name == "micro_batch_size")):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {least} or more")
        if self.model and not self.model.startswith("hf:"):
            raise ValueError(f"model is {self.model!r}: write --model=hf:NAME_OR_FOLDER, or --out_dir=RUN for a run")


PARSER = dict(prog="evaluate.py", description="Score a model on a prepared dataset, or in tasks.")
if __name__ == "__main__":
    config.check(Options, **PARSER)  # --help and mistakes are answered before torch is imported, which takes seconds

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

import checkpoint
import runtime
from data import Dataset, count_val_windows, open_dataset, val_windows
from metrics import with_bar
from model import GPT, IGNORE
from quantize import prepare_weights
from sample import open_model
from tasks import open_tasks

TOKENS_AT_ONCE = 8192  # at least, where there are so many: without gradients smaller batches are only slower


@torch.no_grad()
def validation(
    model: GPT, dataset: Dataset, run: runtime.Runtime, micro_batch_size: int, eval_tokens: int = 0,
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
    stopped, text_nats, text_bytes, *at = runtime.sum_over_ranks(stopped, *sums.tolist())
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


def main(argv: list[str] | None = None) -> int:
    options = config.parse(Options, argv, **PARSER)
    if options.model and not (options.dataset or options.tasks):
        raise ValueError("dataset is empty: a Hugging Face model names none, give --dataset=FOLDER")
    opened = open_model(options)
    state = {} if options.model else checkpoint.read_state(Path(opened.name))
    dataset, tokenizer = options.dataset or ("" if options.tasks else state["settings"]["dataset"]), opened.tokenizer
    if dataset and (dataset := open_dataset(dataset)).tokenizer_fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"dataset {dataset.path} was prepared with tokenizer {dataset.tokenizer_name} "
            f"({dataset.tokenizer_fingerprint[:12]}), the model speaks {tokenizer.name} "
            f"({tokenizer.fingerprint[:12]}): prepare it with --tokenizer={opened.name}"
        )
    if dataset and options.stride and dataset.val.mask is not None:
        raise ValueError(
            f"stride is {options.stride}: {dataset.path} holds documents that no window cuts, leave it out"
        )
    model = opened.load().float()
    context = model.config.block_size
    size = options.block_size or context
    if size > context:
        raise ValueError(f"block_size is {size}: the model's context is {context}")
    if options.stride > size:
        raise ValueError(f"stride is {options.stride}: beyond block_size ({size}) tokens would be left out")
    int8 = options.dtype == "int8"
    run = runtime.start(options.device, "float32" if int8 else options.dtype)
    tasks = open_tasks(options.tasks, tokenizer, opened.begin, context, options.limit, opened.template)
    model.to(run.device)
    if int8:
        prepare_weights(model, "int8")
    dtype = "int8" if int8 else str(run.dtype).removeprefix("torch.")
    found = {"checkpoint": opened.name, "step": state.get("step"), "dtype": dtype}
    if dataset:
        val = validation(
            model, dataset, run, options.micro_batch_size, options.eval_tokens, size, stride=options.stride
        )
        found |= {"dataset": dataset.path, "split": "val", "loss": val["loss"], "perplexity": math.exp(val["loss"])}
        found |= {"bits_per_byte": val["bits_per_byte"], "tokens": val["tokens"]}
        found |= {"block_size": size, "stride": options.stride or size}
        if options.by_position:
            found["by_position"] = val["by_position"]
    if tasks:
        found["tasks"] = {name: task.measure(model, run, opened.ends) for name, task in tasks.items()}
    if run.is_main:
        print(json.dumps(found))
    runtime.stop()
    return 0


if __name__ == "__main__":
    config.run(main)
