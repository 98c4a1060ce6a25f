"""Whole-process wall-clock to a validation loss: from the command to its end, saving included.

    python bench/time_to_loss.py config/shakespeare_char_cpu.toml --target=1.8857 \\
        --peer=PATH_TO_NANOGPT

Each seed is one run of our command and, with --peer, one of nanoGPT's README command for CPUs, or
for GPUs where there is one, alternately. Our run must end at or below the target over the whole
validation split. nanoGPT samples its validation loss, and its whole run counts, whatever it
reaches; the best of its losses is shown.
"""

import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import nanogpt
from bench.processes import absolute, train
from bench.results import record
from lathe import cli
from lathe.fields import PathName

FIRST_SEED = 1337  # nanoGPT has no other
# What nanoGPT's README gives its config/train_shakespeare_char.py for CPUs; for GPUs it is nothing.
ON_CPU = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 "
    "--n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
PRESET = "config/shakespeare_char_cpu.toml"


@dataclass
class Options:
    """What to time."""

    run: list[PathName] = field(default_factory=lambda: [PRESET])  # preset and settings' file
    extra: str = ""  # further settings for our side
    dataset: PathName = "data/shakespeare_char"  # what our side reads
    target: float = 1.8857  # validation loss in nats that a run must end at or below
    peer: PathName = ""  # folder of nanoGPT, with data/shakespeare_char prepared
    seeds: int = 3  # runs of each
    save: bool = True  # append the table to bench/RESULTS.md

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}: it must be 1 or more")


@dataclass
class Run:
    """A whole command, from its start to its end."""

    seconds: float
    loss: float  # of validation
    peak_bytes: int


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(
        Options, argv, prog="bench/time_to_loss.py", description=__doc__, positional="run"
    )

    import torch

    settings = [*map(absolute, options.run), *options.extra.split()]
    settings.append(f"--dataset={Path(options.dataset).resolve()}")
    peer_settings = [] if torch.cuda.is_available() else ON_CPU.split()

    rows = []
    ours = []
    peers = []
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        run = run_ours([*settings, f"--seed={seed}"])
        ours.append(run)
        verdict = "reached" if run.loss <= options.target else "MISSED"
        rows.append(row_of("lathe", seed, run, verdict))
        print(rows[-1], file=sys.stderr)
        if options.peer:
            run = run_nanogpt(options.peer, peer_settings)
            peers.append(run)
            rows.append(row_of("nanoGPT", FIRST_SEED, run))
            print(rows[-1], file=sys.stderr)

    notes = summary(ours, peers)
    print(notes)
    title = f"Time to validation loss {options.target}, {Path(options.run[0]).stem}"
    header = ["arm", "seed", "seconds", "val loss", f"<= {options.target}", "peak MiB"]
    record(title, header, rows, notes + ".", options.save)
    return 0


def run_ours(settings: list[str]) -> Run:
    training = train(settings)
    losses = [row["val_loss"] for row in training.evaluations if row["val_loss"] is not None]
    return Run(training.child.seconds, losses[-1], training.child.peak_bytes)


def run_nanogpt(peer: str, settings: list[str]) -> Run:
    child = nanogpt.train(peer, settings)
    loss = min(nanogpt.val_losses(child.output))
    return Run(child.seconds, loss, child.peak_bytes)


def row_of(arm: str, seed: int, run: Run, verdict: str = "") -> list:
    mebibytes = run.peak_bytes / 2**20
    return [arm, seed, f"{run.seconds:.1f}", f"{run.loss:.4f}", verdict, f"{mebibytes:,.0f}"]


def summary(ours: list[Run], peers: list[Run]) -> str:
    """Median seconds and, with a peer, by how much they differ, pair by pair."""
    text = f"Median {statistics.median(run.seconds for run in ours):.1f} s"
    if not peers:
        return text
    ratios = [peer.seconds / run.seconds for run, peer in zip(ours, peers, strict=True)]
    return (
        f"{text} against {statistics.median(run.seconds for run in peers):.1f} s: "
        f"{statistics.median(ratios):.1f} times faster, "
        f"pair by pair {min(ratios):.1f} to {max(ratios):.1f}"
    )


if __name__ == "__main__":
    cli.run(main)
