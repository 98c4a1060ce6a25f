"""Whole-process wall-clock to a validation loss: from typing the command to its end, start-up and saving included.

    python bench/time_to_loss.py config/shakespeare_char_cpu.toml --target=1.8857 --peer=PATH_TO_NANOGPT

Each seed is one run of our command and, with --peer, one of nanoGPT's README command for CPUs, or for GPUs where there
is one, alternately. Our run must end at or below the target over the whole validation split. nanoGPT samples its
validation loss, and its whole run counts, whatever it reaches; the best of its losses is shown.
"""

import json
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.results import ROOT, record
from bench.train_speed import run_child, run_nanogpt
from lathe import cli

# What nanoGPT's README gives its config/train_shakespeare_char.py for CPUs; for GPUs it is nothing.
ON_CPU = "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4"
ON_CPU += " --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"


@dataclass
class Options:
    """What to time."""

    run: list[str] = field(default_factory=lambda: ["config/shakespeare_char_cpu.toml"])  # preset and settings' file
    extra: str = ""  # further settings for our side
    dataset: str = "data/shakespeare_char"  # what our side reads
    target: float = 1.8857  # validation loss in nats that a run must end at or below
    peer: str = ""  # folder of nanoGPT, with data/shakespeare_char prepared
    seeds: int = 3  # runs of each
    save: bool = True  # append the table to bench/RESULTS.md


def main(argv: list[str] | None = None) -> int:
    o = cli.parse(Options, argv, prog="bench/time_to_loss.py", description="Time to a loss.", positional="run")
    rows, seconds = [], {"lathe": [], "nanoGPT": []}
    preset = [str(Path(p).resolve()) if Path(p).exists() else p for p in o.run]
    for seed in range(1337, 1337 + o.seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "train.py"), *preset, *o.extra.split(), f"--seed={seed}"]
            command += [f"--dataset={Path(o.dataset).resolve()}", f"--out_dir={folder}/run", "--init_from=scratch"]
            _, memory, took = run_child(command, Path(folder))
            losses = [json.loads(line).get("val_loss") for line in open(f"{folder}/run/metrics.jsonl")]
        loss = [x for x in losses if x is not None][-1]
        verdict = "reached" if loss <= o.target else "MISSED"
        seconds["lathe"].append(took)
        rows.append(["lathe", seed, f"{took:.1f}", f"{loss:.4f}", verdict, f"{memory / 2**20:,.0f}"])
        print(rows[-1], file=sys.stderr)
        if o.peer:
            text, memory, took = run_nanogpt(o.peer, [] if torch.cuda.is_available() else ON_CPU.split())
            loss = min(map(float, re.findall(r"val loss ([\d.]+)", text)))
            seconds["nanoGPT"].append(took)
            rows.append(["nanoGPT", 1337, f"{took:.1f}", f"{loss:.4f}", "", f"{memory / 2**20:,.0f}"])
            print(rows[-1], file=sys.stderr)
    notes = f"Median {statistics.median(seconds['lathe']):.1f} s"
    if o.peer:
        ratios = [b / a for a, b in zip(seconds["lathe"], seconds["nanoGPT"], strict=True)]
        notes += f" against {statistics.median(seconds['nanoGPT']):.1f} s: {statistics.median(ratios):.1f} times faster"
        notes += f", pair by pair {min(ratios):.1f} to {max(ratios):.1f}"
    print(notes)
    header = ["arm", "seed", "seconds", "val loss", f"<= {o.target}", "peak MiB"]
    record(f"Time to validation loss {o.target}, {Path(o.run[0]).stem}", header, rows, notes + ".", o.save)
    return 0


if __name__ == "__main__":
    cli.run(main)
