"""Measure saving and scaling: the cost of a verified checkpoint, how long training waits, what a rank more gives.

    python bench/checkpoint_speed.py                     everything, with 124M parameters: 6 GB of memory and disk
    python bench/checkpoint_speed.py --only save stall   some of it

save: checkpoint.save (written, forced to disk, read back and compared) against a plain torch.save of the same state, in
turn. stall: how long the loop waits for a save that is written in the background, and what steps cost meanwhile.
scaling: tokens per second of two ranks with one thread each against one rank with one thread, the same global batch.
The figures are printed as they are known, and as a table at the end, which bench/RESULTS.md gets too.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lathe import cli


@dataclass
class Options:
    only: list[str] = field(default_factory=list)  # save, stall, scaling; all where empty
    n_layer: int = 12  # of the network that is saved
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257
    repeats: int = 5  # of each timing; the median is shown
    steps: int = 8  # of a scaling run
    runs: int = 3  # scaling runs of each kind
    parallel: str = "ddp"  # of the scaling run
    device: str = "auto"
    work: str = ""  # folder on the disk to measure; a temporary one by default
    save: bool = True  # append the table to bench/RESULTS.md


PARSER = dict(prog="bench/checkpoint_speed.py", description=__doc__)
if __name__ == "__main__":
    options = cli.parse_before_imports(Options, **PARSER)

import torch

from bench.results import record_told, tell
from lathe import cli
from lathe.optim.build import build_optimizers, optimizer_state
from lathe.run import checkpoint, devices, ranks
from lathe.run.background import BackgroundWriter
from lathe.run.files import flush_to_disk
from lathe.text.tokenizer import load_tokenizer
from model import GPT, GPTConfig


def main(argv=None):
    measure(cli.parse(Options, argv, **PARSER))


def measure(options):
    device, _ = devices.choose_device(options.device)
    title, notes = f"Saving and scaling: {', '.join(options.only or ['save', 'stall', 'scaling'])}", ""
    with tempfile.TemporaryDirectory(dir=options.work or None) as work:
        if not options.only or {"save", "stall"} & set(options.only):
            model, optimizers = trained_once(options, device)
            state = {"model": model.state_dict(), "optimizer": optimizer_state(optimizers)}
            size = sum(t.numel() * t.element_size() for t in checkpoint.tensors_in(state))
            notes = f"{model.n_params():,} parameters with AdamW's two moments, {size / 1e9:.2f} GB, on {device}."
            if not options.only or "save" in options.only:
                measure_save(options, state, Path(work))
            if not options.only or "stall" in options.only:
                measure_stall(options, model, optimizers, state, size, Path(work))
            del model, optimizers, state
        if not options.only or "scaling" in options.only:
            measure_scaling(options, Path(work))
    record_told(title, notes, options.save)


def trained_once(options, device):
    """A network and its optimizer after one step, so that all of the optimizer's state exists."""
    torch.manual_seed(1)
    c = GPTConfig(
        options.vocab_size,
        block_size=64,
        n_layer=options.n_layer,
        n_head=options.n_head,
        n_embd=options.n_embd,
    )
    model = GPT(c).to(device)
    optimizers = build_optimizers(
        model.named_parameters(), "adamw", 1e-3, 0.02, 0.1, (0.9, 0.95), 0.95, model.fused_rows()
    )
    step(model, optimizers)
    return model, optimizers


def step(model, optimizers):
    x = torch.randint(model.config.vocab_size, (2, 64), device=model.head_weight.device)
    model(x, x).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if x.is_cuda:
        torch.cuda.synchronize()


def timed(action):
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure_save(options, state, work):
    on_cpu = ranks.full_copy(state, keep=True)
    tokenizer = load_tokenizer("byte")

    def verified(i):
        checkpoint.save(work / "run", on_cpu["model"], on_cpu["optimizer"], {"step": i}, tokenizer)

    def plain(i):
        torch.save(on_cpu, work / f"plain{i}.pt")  # to a new file, as a run does: to write over one is faster

    def flushed(i):
        torch.save(on_cpu, work / f"flushed{i}.pt")
        flush_to_disk(work / f"flushed{i}.pt")

    seconds = {"torch.save": [], "torch.save and fsync": [], "verified save": []}
    for i in range(1, options.repeats + 2):
        for times, action in zip(seconds.values(), (plain, flushed, verified), strict=True):
            took = timed(lambda i=i, action=action: action(i))
            if i > 1:  # the first of each warms up
                times.append(took)
            for path in work.iterdir():  # each finds the same free memory and disk
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            os.sync()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        tell(f"save: {name}", f"{medians[name]:.2f} s ({', '.join(f'{t:.2f}' for t in times)})")
    for name in ("torch.save", "torch.save and fsync"):
        tell(f"save: verified / {name}", f"{medians['verified save'] / medians[name]:.2f}")


def measure_stall(options, model, optimizers, state, size, work):
    tokenizer = load_tokenizer("byte")
    alone = statistics.median(timed(lambda: step(model, optimizers)) for _ in range(options.repeats))
    waits, during, written = [], [], []
    with BackgroundWriter() as writer:
        for i in range(1, options.repeats + 1):
            began = time.perf_counter()
            copy = ranks.full_copy(state, keep=True)
            waits.append(time.perf_counter() - began)

            def write(copy=copy, i=i):
                checkpoint.save(work / "stall", copy["model"], copy["optimizer"], {"step": i}, tokenizer)
                checkpoint.prune(work / "stall", 1)

            began = time.perf_counter()
            writer.start(write)
            while writer.thread.is_alive():
                during.append(timed(lambda: step(model, optimizers)))
            writer.wait()
            written.append(time.perf_counter() - began)
    wait = statistics.median(waits)
    tell("stall: training waits for a save", f"{wait:.2f} s, {wait / (size / 1e9):.2f} s per GB")
    tell("stall: on disk and verified, behind the training, after", f"{statistics.median(written):.1f} s")
    tell("stall: a step alone, and while a save is written", f"{alone:.2f} s, {statistics.median(during):.2f} s")
    if torch.cuda.is_available():
        tell("stall: most memory on the device", f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


def measure_scaling(options, work):
    """A network of 25M parameters, eight sequences of 256 a step: beside that the 100 MB of gradients are little."""
    from lathe.data.shards import write_dataset

    sources = sorted((Path(os.__file__).parent).glob("*.py"))[:60]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sources]
    write_dataset(work / "data", load_tokenizer("byte"), texts[:-2], texts[-2:])
    words = [
        "train.py", f"--dataset={work / 'data'}", "--device=cpu", "--n_layer=8", "--n_head=8", "--n_embd=512",
        "--block_size=256", "--batch_size=8", "--micro_batch_size=4", f"--max_steps={options.steps}",
        "--log_interval=1", "--eval_tokens=1024", "--sample_tokens=0", "--compile=false", "--overwrite=true",
    ]  # fmt: skip
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    speeds = {1: [], 2: []}
    for repeat in range(options.runs):
        for n_ranks in (1, 2):
            out = work / f"ranks{n_ranks}-{repeat}"
            more = [*words, f"--out_dir={out}", f"--parallel={options.parallel if n_ranks > 1 else 'ddp'}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, *(launch if n_ranks > 1 else []), *more]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
            rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            speeds[n_ranks].append(
                statistics.median(r["tokens_per_second"] for r in rows if "loss" in r and r["step"] > 2)
            )
    one, two = (statistics.median(speeds[n_ranks]) for n_ranks in (1, 2))
    tell(f"scaling: tokens/s of one rank of one thread, and of two ({options.parallel})", f"{one:,.0f}, {two:,.0f}")
    tell("scaling: two ranks / one", f"{two / one:.2f}, efficiency {two / one / 2:.0%}")


if __name__ == "__main__":
    cli.run(measure, options)
