"""How good a model is: loss, perplexity and bits per byte on a prepared dataset, scores in tasks.

    python evaluate.py --out_dir=RUN [--dataset=FOLDER]
    python evaluate.py --model=hf:gpt2 --tasks hellaswag lambada

One JSON object goes to stdout. Bits per byte compare across tokenizers: the nats of all predicted
text over ln 2 and over the bytes of that text; end-of-text tokens count in neither sum.
"""

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lathe import cli, hints
from lathe.fields import PathName
from lathe.terminal import print_result

if TYPE_CHECKING:  # main() imports what takes seconds
    from lathe.data.dataset import Dataset
    from lathe.run.devices import Runtime
    from lathe.use.find_model import FoundModel
    from model import GPT


@dataclass
class Options:
    """What to evaluate, on what."""

    out_dir: PathName = "out/quickstart"  # a run's folder (its best checkpoint) or a checkpoint's
    model: PathName = ""  # instead of out_dir: hf:NAME_OR_FOLDER, a Hugging Face model
    # prepared dataset whose validation split is read; empty = the run's own, or none with tasks
    dataset: PathName = ""
    # NAME (fetched) or NAME:FILE.jsonl, such as hellaswag:val.jsonl
    tasks: list[PathName] = field(default_factory=list)
    limit: int = 0  # items of each task, from its beginning; 0 = all
    eval_tokens: int = 0  # how many tokens are read, always the same ones; 0 = all
    block_size: int = 0  # context of each window; 0 = the model's
    # windows begin every so many tokens, and score what the one before left out; 0 = block_size
    stride: int = 0
    # the loss by the number of tokens before the target in its window, too
    by_position: bool = False
    micro_batch_size: int = 8  # windows per forward pass, at least; no figure depends on it
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    # of the forward pass, or int8 weights (on a CPU)
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"

    def __post_init__(self):
        for name in ("limit", "eval_tokens", "block_size", "stride"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} is {value}: it must be 0 or more")
        if self.model and self.out_dir != Options.out_dir:
            raise ValueError(f"model is {self.model} and out_dir {self.out_dir}: choose one")
        if self.limit and not self.tasks:
            raise ValueError(
                f"limit is {self.limit}, of items of tasks: add --tasks, or mean --eval_tokens"
            )
        of_loss = ("eval_tokens", "block_size", "stride", "by_position")
        idle = [name for name in of_loss if getattr(self, name)]
        if idle and self.tasks and not self.dataset:
            raise ValueError(f"{idle[0]} is of losses on a dataset, none with tasks: add --dataset")
        if self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size is {self.micro_batch_size}: it must be 1 or more")
        if self.model and not self.model.startswith("hf:"):
            raise ValueError(f"model is {self.model!r}: {hints.instead_of_hf(self.model)}")


def main(argv: list[str] | None = None) -> int:
    about = "Score a model on a prepared dataset, or in tasks."
    options = cli.parse(Options, argv, prog="evaluate.py", description=about)

    from lathe.data.dataset import open_dataset
    from lathe.run import devices, ranks
    from lathe.use.find_model import find_model
    from lathe.use.quantize import choose_weights, prepare_weights
    from lathe.use.tasks import open_tasks

    # What is evaluated, on what
    spec = options.model or options.out_dir
    if spec.startswith("hf:") and not options.dataset and not options.tasks:
        raise ValueError("dataset is empty: a Hugging Face model names none, give --dataset=FOLDER")
    named = open_dataset(options.dataset) if options.dataset else None
    source = find_model(spec)
    dataset = named or own_dataset(options, source)
    is_without_ends = dataset is not None and "eot_id" not in dataset.meta["tokenizer"]
    if options.tasks or not is_without_ends:  # as nanoGPT measures its own files, if they are read
        source = source.with_all_ids()
    if dataset is not None:
        refuse_what_does_not_fit(dataset, source, options)
    block_size = choose_block_size(options, source.config.block_size)

    # Model and tasks
    int8 = options.dtype == "int8"
    run = devices.start(options.device, "float32" if int8 else options.dtype)
    if int8:
        choose_weights("int8", run.device)
    model = source.load().float()
    tasks = open_tasks(
        options.tasks,
        source.tokenizer,
        source.begin,
        source.config.block_size,
        options.limit,
        source.template,
    )
    model.to(run.device)
    if int8:
        prepare_weights(model, "int8")

    # Figures
    report = {
        "checkpoint": source.name,
        "step": source.state.get("step"),
        "dtype": "int8" if int8 else str(run.dtype).removeprefix("torch."),
    }
    if dataset is not None:
        report |= measure_loss(model, dataset, run, block_size, options)
    if tasks:
        report["tasks"] = {}
        for name, task in tasks.items():
            report["tasks"][name] = task.measure(model, run, source.ends)
    if run.is_main:
        print_result(json.dumps(report))
    ranks.stop()
    return 0


def own_dataset(options: Options, source: "FoundModel") -> "Dataset | None":
    """The model's own; None where only tasks are asked for."""
    from lathe.data.dataset import open_dataset

    if options.tasks:
        return None
    if not source.state:
        raise ValueError(f"dataset is empty: {source.name} names none, give --dataset=FOLDER")
    return open_dataset(source.state["settings"]["dataset"])


def refuse_what_does_not_fit(dataset: "Dataset", source: "FoundModel", options: Options):
    """ValueError for a dataset of another tokenizer, and for a stride over documents."""
    tokenizer = source.tokenizer
    if dataset.tokenizer_fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"dataset {dataset.path} was prepared with tokenizer {dataset.tokenizer_name} "
            f"({dataset.tokenizer_fingerprint[:12]}), the model speaks {tokenizer.name} "
            f"({tokenizer.fingerprint[:12]}): prepare it with --tokenizer={source.tokenizer_spec}"
        )
    if options.stride and dataset.val.mask is not None:
        raise ValueError(
            f"stride is {options.stride}: {dataset.path} holds documents that no window cuts, "
            "leave it out"
        )


def choose_block_size(options: Options, context: int) -> int:
    """The tokens of a window. ValueError if the model's context does not hold it, or if windows
    would leave tokens out."""
    block_size = options.block_size or context
    if block_size > context:
        raise ValueError(f"block_size is {block_size}: the model's context is {context}")
    if options.stride > block_size:
        raise ValueError(
            f"stride is {options.stride}: beyond block_size ({block_size}) tokens would be left out"
        )
    return block_size


def measure_loss(
    model: "GPT", dataset: "Dataset", run: "Runtime", block_size: int, options: Options
) -> dict:
    """The report's part about the validation split."""
    from lathe.use.validation import validation

    measured = validation(
        model,
        dataset,
        run,
        options.micro_batch_size,
        options.eval_tokens,
        block_size,
        stride=options.stride,
    )
    part = {
        "dataset": dataset.path,
        "split": "val",
        "loss": measured["loss"],
        "perplexity": math.exp(measured["loss"]),
        "bits_per_byte": measured["bits_per_byte"],
        "tokens": measured["tokens"],
        "block_size": block_size,
        "stride": options.stride or block_size,
    }
    if options.by_position:
        part["by_position"] = measured["by_position"]
    return part


if __name__ == "__main__":
    cli.run(main)
