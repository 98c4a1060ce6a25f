"""Measure saving and scaling: a verified checkpoint's cost, how long training waits, a second rank.

    python bench/checkpoint_speed.py                     everything, with 124M parameters: 6 GB of
                                                         memory and disk
    python bench/checkpoint_speed.py --only save stall   some of it

save: checkpoint.save (written, forced to disk, read back and compared) against a plain torch.save
of the same state, in turn. stall: how long the loop waits for a save that is written in the
background, and what steps cost meanwhile. scaling: tokens per second of two ranks with one thread
each against one rank with one thread, the same global batch. The figures are printed as they are
known, and as a table at the end, which bench/RESULTS.md gets too.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.fields import PathName

Part = Literal["save", "stall", "scaling"]


@dataclass
class Options:
    """What to measure."""

    only: list[Part] = field(default_factory=list)  # all where empty
    n_layer: int = 12  # of the network that is saved
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257
    repeats: int = 5  # of each timing; the median is shown
    steps: int = 8  # of a scaling run
    runs: int = 3  # scaling runs of each kind
    extra: str = ""  # further settings of the scaling runs, such as "--n_layer=2"
    parallel: str = "ddp"  # of the scaling run
    device: str = "auto"
    work: PathName = ""  # folder on the disk to measure; a temporary one by default
    save: bool = True  # append the table to bench/RESULTS.md


PARSER = dict(prog="bench/checkpoint_speed.py", description=__doc__)
if __name__ == "__main__":  # torch takes seconds; --help and mistakes need not wait
    options = cli.parse_before_imports(Options, **PARSER)

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from bench.processes import train
from bench.results import Figures
from bench.turns import in_turn
from lathe.data.shards import write_dataset
from lathe.optim.build import build_optimizers, optimizer_state
from lathe.optim.optimizer import Optimizer
from lathe.run import checkpoint, devices
from lathe.run.background import BackgroundWriter
from lathe.run.files import flush_to_disk
from lathe.run.tensor_file import host_copy
from lathe.text.tokenizer import load_tokenizer
from model import GPT, GPTConfig


def main(argv: list[str] | None = None) -> int:
    return measure(cli.parse(Options, argv, **PARSER))


def measure(options: Options) -> int:
    parts = options.only or get_args(Part)
    figures = Figures()
    notes = ""
    with tempfile.TemporaryDirectory(dir=options.work or None) as folder:
        work = Path(folder)
        if "save" in parts or "stall" in parts:
            trained = train_once(options)
            notes = trained.describe()
            if "save" in parts:
                measure_save(trained, options.repeats, work, figures)
            if "stall" in parts:
                measure_stall(trained, options.repeats, work, figures)
            del trained  # the memory is needed
        if "scaling" in parts:
            measure_scaling(options, work, figures)
    figures.record(f"Saving and scaling: {', '.join(parts)}", notes, options.save)
    return 0


def timed(action: Callable[[], None]) -> float:
    """Seconds of wall-clock."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


# -----------------------------------------------------------------------------
# What is saved


@dataclass
class Trained:
    """A network and its optimizers after one step, so that all of their state exists."""

    model: GPT
    optimizers: list[Optimizer]

    def step(self):
        """Train on two sequences of random ids."""
        device = self.model.head_weight.device
        x = torch.randint(self.model.config.vocab_size, (2, 64), device=device)
        self.model(x, x).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if x.is_cuda:
            torch.cuda.synchronize()

    def state(self) -> dict[str, dict]:
        """What a checkpoint holds of them."""
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizer_state(self.optimizers),
        }

    def n_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in checkpoint.tensors_in(self.state()))

    def describe(self) -> str:
        return (
            f"{self.model.n_params():,} parameters with AdamW's two moments, "
            f"{self.n_bytes() / 1e9:.2f} GB, on {self.model.head_weight.device}."
        )


def train_once(options: Options) -> Trained:
    torch.manual_seed(1)
    device, _ = devices.choose_device(options.device)
    config = GPTConfig(
        vocab_size=options.vocab_size,
        block_size=64,
        n_layer=options.n_layer,
        n_head=options.n_head,
        n_embd=options.n_embd,
    )
    model = GPT(config).to(device)
    optimizers = build_optimizers(
        model.named_parameters(),
        optimizer="adamw",
        learning_rate=1e-3,
        muon_learning_rate=0.02,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        muon_momentum=0.95,
        fused_rows=model.fused_rows(),
    )
    trained = Trained(model, optimizers)
    trained.step()
    return trained


# -----------------------------------------------------------------------------
# save


def measure_save(trained: Trained, repeats: int, work: Path, figures: Figures):
    state = host_copy(trained.state())
    tokenizer = load_tokenizer("byte")
    # Each writes new files, as a run does: to write over one is faster.
    run = work / "run"
    plain_file = work / "plain.pt"

    def plain():
        torch.save(state, plain_file)

    def flushed():
        torch.save(state, plain_file)
        flush_to_disk(plain_file)

    def verified():
        checkpoint.save(run, state["model"], state["optimizer"], {"step": 1}, tokenizer)

    def time_and_clear(save: Callable[[], None]) -> float:
        seconds = timed(save)
        plain_file.unlink(missing_ok=True)
        shutil.rmtree(run, ignore_errors=True)
        os.sync()  # each finds the same free memory and disk
        return seconds

    seconds = in_turn(
        repeats,
        {
            "torch.save": lambda: time_and_clear(plain),
            "torch.save and fsync": lambda: time_and_clear(flushed),
            "verified save": lambda: time_and_clear(verified),
        },
        warm_up=True,
    )
    medians = {name: statistics.median(of_save) for name, of_save in seconds.items()}
    for name, of_save in seconds.items():
        each = ", ".join(f"{s:.2f}" for s in of_save)
        figures.tell(f"save: {name}", f"{medians[name]:.2f} s ({each})")
    for name in ("torch.save", "torch.save and fsync"):
        ratio = medians["verified save"] / medians[name]
        figures.tell(f"save: verified / {name}", f"{ratio:.2f}")


# -----------------------------------------------------------------------------
# stall


def measure_stall(trained: Trained, repeats: int, work: Path, figures: Figures):
    run = work / "stall"
    tokenizer = load_tokenizer("byte")
    step_alone = statistics.median(timed(trained.step) for _ in range(repeats))
    waits = []  # for the copy, while training stands still
    written = []  # from there until the save is on disk
    steps_meanwhile = []
    with BackgroundWriter() as writer:
        for number in range(1, repeats + 1):
            began = time.perf_counter()
            copy = host_copy(trained.state())
            copied = time.perf_counter()
            waits.append(copied - began)

            def write(copy: dict = copy, number: int = number):
                about = {"step": number}
                checkpoint.save(run, copy["model"], copy["optimizer"], about, tokenizer)
                checkpoint.prune(run, 1)

            writer.start(write)
            steps_meanwhile.append(timed(trained.step))
            while not writer.last.done():
                steps_meanwhile.append(timed(trained.step))
            writer.wait()
            written.append(time.perf_counter() - copied)
    wait = statistics.median(waits)
    wait_per_gb = wait / (trained.n_bytes() / 1e9)
    on_disk = statistics.median(written)
    step_meanwhile = statistics.median(steps_meanwhile)
    figures.tell("stall: training waits for a save", f"{wait:.2f} s, {wait_per_gb:.2f} s per GB")
    figures.tell("stall: on disk and verified, while it trains, after", f"{on_disk:.1f} s")
    figures.tell(
        "stall: a step alone, and while a save is written",
        f"{step_alone:.2f} s, {step_meanwhile:.2f} s",
    )
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e9
        figures.tell("stall: most memory on the device", f"{peak:.2f} GB")


# -----------------------------------------------------------------------------
# scaling


def measure_scaling(options: Options, work: Path, figures: Figures):
    """A network of 25M parameters and eight sequences of 256 a step: beside that work the 100 MB of
    gradients that two ranks exchange are little."""
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sources]
    write_dataset(work / "data", load_tokenizer("byte"), texts[:-2], texts[-2:])
    settings = [
        f"--dataset={work / 'data'}",
        "--device=cpu",
        "--n_layer=8",
        "--n_head=8",
        "--n_embd=512",
        "--block_size=256",
        "--batch_size=8",
        "--micro_batch_size=4",
        f"--max_steps={options.steps}",
        "--log_interval=1",
        "--eval_tokens=1024",
        "--sample_tokens=0",
        "--compile=false",
        *options.extra.split(),
    ]

    def speed(n_ranks: int, parallel: str) -> float:
        """Tokens per second, each rank with one thread; the first two steps warm up."""
        how = [*settings, f"--parallel={parallel}"]
        training = train(how, n_ranks, work, OMP_NUM_THREADS="1")
        rows = [row for row in training.rows if row["step"] > 2]
        return statistics.median(row["tokens_per_second"] for row in rows)

    speeds = in_turn(
        options.runs,
        {"one": lambda: speed(1, "ddp"), "two": lambda: speed(2, options.parallel)},
    )
    one = statistics.median(speeds["one"])
    two = statistics.median(speeds["two"])
    figures.tell(
        f"scaling: tokens/s of one rank of one thread, and of two ({options.parallel})",
        f"{one:,.0f}, {two:,.0f}",
    )
    figures.tell("scaling: two ranks / one", f"{two / one:.2f}, efficiency {two / one / 2:.0%}")


if __name__ == "__main__":
    cli.run(measure, options)
