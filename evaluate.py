"""How good a model is: loss, perplexity and bits per byte on a prepared dataset, scores in tasks.

    python evaluate.py --out_dir=RUN [--dataset=FOLDER]
    python evaluate.py --model=hf:gpt2 --tasks hellaswag lambada

One JSON object goes to stdout. Bits per byte compare across tokenizers: the nats of all predicted text over ln 2 and
over the bytes of that text; end-of-text tokens count in neither sum.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Literal

from lathe import cli


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


def main(argv: list[str] | None = None) -> int:
    about = "Score a model on a prepared dataset, or in tasks."
    options = cli.parse(Options, argv, prog="evaluate.py", description=about)

    from lathe.data.dataset import open_dataset
    from lathe.run import devices, ranks
    from lathe.use.find_model import find_model
    from lathe.use.quantize import prepare_weights
    from lathe.use.tasks import open_tasks
    from lathe.use.validation import validation

    if options.model and not (options.dataset or options.tasks):
        raise ValueError("dataset is empty: a Hugging Face model names none, give --dataset=FOLDER")
    source = find_model(options.model or options.out_dir)
    state = source.state
    tokenizer = source.tokenizer
    dataset = options.dataset or ("" if options.tasks else state["settings"]["dataset"])
    if dataset and (dataset := open_dataset(dataset)).tokenizer_fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"dataset {dataset.path} was prepared with tokenizer {dataset.tokenizer_name} "
            f"({dataset.tokenizer_fingerprint[:12]}), the model speaks {tokenizer.name} "
            f"({tokenizer.fingerprint[:12]}): prepare it with --tokenizer={source.name}"
        )
    if dataset and options.stride and dataset.val.mask is not None:
        raise ValueError(
            f"stride is {options.stride}: {dataset.path} holds documents that no window cuts, leave it out"
        )
    model = source.load().float()
    context = model.config.block_size
    size = options.block_size or context
    if size > context:
        raise ValueError(f"block_size is {size}: the model's context is {context}")
    if options.stride > size:
        raise ValueError(f"stride is {options.stride}: beyond block_size ({size}) tokens would be left out")
    int8 = options.dtype == "int8"
    run = devices.start(options.device, "float32" if int8 else options.dtype)
    tasks = open_tasks(options.tasks, tokenizer, source.begin, context, options.limit, source.template)
    model.to(run.device)
    if int8:
        prepare_weights(model, "int8")
    dtype = "int8" if int8 else str(run.dtype).removeprefix("torch.")
    found = {"checkpoint": source.name, "step": state.get("step"), "dtype": dtype}
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
        found["tasks"] = {name: task.measure(model, run, source.ends) for name, task in tasks.items()}
    if run.is_main:
        print(json.dumps(found))
    ranks.stop()
    return 0


if __name__ == "__main__":
    cli.run(main)
