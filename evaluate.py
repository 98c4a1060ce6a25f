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
    micro_batch_size: int = 8  # windows per forward pass, at least; no figure depends on it
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of the forward pass, or int8 weights

    def __post_init__(self):
        for name, least in (("limit", 0), ("eval_tokens", 0), ("block_size", 0), ("micro_batch_size", 1)):
            if getattr(self, name) < least:
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
    block_size: int = 0, interrupted: Callable[[], bool] = lambda: False,
) -> dict | None:  # fmt: skip
    """{"loss": mean nats per target, "bits_per_byte", "tokens": targets scored} over fixed windows of the val split.

    eval_tokens and block_size: 0 = the whole split, in windows of the model's own context. The ranks share the windows
    and join their sums in float64, so the figures depend neither on how many there are nor on micro_batch_size. None if
    interrupted() became true on any rank. Raises ValueError for a split shorter than two tokens.
    """
    was_training = model.training
    model.eval()
    lengths = torch.from_numpy(dataset.token_byte_lengths()).to(run.device)
    sums = torch.zeros(5, dtype=torch.float64)  # nats, targets, nats of text, bytes of text, interruptions
    size = block_size or model.config.block_size
    of_rank = math.ceil(count_val_windows(dataset.val, size, eval_tokens) / run.world_size)
    batch = max(1, min(of_rank, max(micro_batch_size, TOKENS_AT_ONCE // size)))
    windows = val_windows(dataset.val, size, eval_tokens, batch, run.rank, run.world_size, run.device)
    for x, y in with_bar(windows, "evaluating", math.ceil(of_rank / batch), run.is_main):
        if interrupted():
            sums[4] += 1
            break
        with run.autocast():
            losses = model(x, y, reduction="none")  # (B, T), 0 where y is masked
        text_bytes = lengths[y.clamp(min=0)] * (y != IGNORE)
        of_batch = losses.sum(), (y != IGNORE).sum(), (losses * (text_bytes > 0)).sum(), text_bytes.sum()
        sums[:4] += torch.stack([s.float() for s in of_batch]).cpu().double()
    model.train(was_training)
    nats, targets, text_nats, text_bytes, interruptions = runtime.sum_over_ranks(*sums.tolist())
    if interruptions:
        return None
    bits_per_byte = text_nats / math.log(2) / text_bytes if text_bytes else None
    return {"loss": nats / targets, "bits_per_byte": bits_per_byte, "tokens": int(targets)}


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
    model = opened.load().float()
    context = model.config.block_size
    if options.block_size > context:
        raise ValueError(f"block_size is {options.block_size}: the model's context is {context}")
    run = runtime.start(options.device, "float32" if options.dtype == "int8" else options.dtype)
    tasks = open_tasks(options.tasks, tokenizer, opened.begin, context, options.limit)
    model.to(run.device)
    if options.dtype == "int8":
        model = prepare_weights(model, "int8")
    found = {"checkpoint": opened.name, "step": state.get("step")}
    if dataset:
        val = validation(model, dataset, run, options.micro_batch_size, options.eval_tokens, options.block_size)
        found |= {"dataset": dataset.path, "split": "val", "loss": val["loss"], "perplexity": math.exp(val["loss"])}
        found |= {"bits_per_byte": val["bits_per_byte"], "tokens": val["tokens"]}
        found["block_size"] = options.block_size or context
    if tasks:
        found["tasks"] = {name: task.measure(model, run, opened.ends) for name, task in tasks.items()}
    if run.is_main:
        print(json.dumps(found))
    runtime.stop()
    return 0


if __name__ == "__main__":
    config.run(main)
