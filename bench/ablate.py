"""What each part of a recipe is worth: a preset against itself with some settings changed, over several seeds.

    python bench/ablate.py shakespeare_char_cpu --without qk_norm=false "AdamW: optimizer=adamw,learning_rate=0.01"

An arm is settings, joined by commas, perhaps behind a name. Runs are whole training commands, arms in turn within each
seed. The target of steps and seconds is the mean of the base's final losses; when a run has it is read off its
evaluations by straight lines, and the mean is over the runs that get there. +- is the standard error of a mean.
Differences to the base are taken seed by seed.
"""

import json
import math
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.results import ROOT, record
from bench.train_speed import run_child
from lathe import cli
from lathe.settings import Settings


@dataclass
class Options:
    """What to compare."""

    run: list[str] = field(default_factory=list)  # the base: presets and settings' files
    without: list[str] = field(default_factory=list)  # arms: [NAME: ]name=value,... that differ from the base
    extra: str = ""  # further settings of every arm, such as "--max_steps=600"
    dataset: str = ""  # what all read; empty = the preset's
    seeds: int = 3  # runs of each arm, seeds 1337, 1338, ...
    at_once: int = 1  # runs side by side, which share the processor's threads: seconds then only compare
    evals: int = 20  # evaluations of a run, by which the way to the target is read
    save: bool = True  # append the table to bench/RESULTS.md


def train(settings: list[str], threads: int) -> list[tuple[int, float, float]]:
    """(step, validation loss, seconds since the process began) of each evaluation of one run."""
    with tempfile.TemporaryDirectory() as folder:
        given = [*settings, f"--out_dir={folder}/run", "--init_from=scratch", "--sample_tokens=0"]
        run_child([sys.executable, str(ROOT / "train.py"), *given], Path(folder), OMP_NUM_THREADS=str(threads))
        rows = [json.loads(line) for line in open(f"{folder}/run/metrics.jsonl")]
    return [(row["step"], row["val_loss"], row["elapsed"]) for row in rows if "val_loss" in row]


def read_arm(text: str) -> tuple[str, list[str]]:
    """(name, arguments) of "NAME: a=1,b=2" or, where the settings are the name, "a=1,b=2"."""
    name, colon, settings = text.partition(":")
    if not colon or "=" in name:
        name, settings = text, text
    return name, [f"--{setting.strip()}" for setting in settings.split(",")]


def reached(curve: list[tuple[int, float, float]], target: float) -> tuple[float, float] | None:
    """(steps, seconds) at which a run first has the target, on straight lines between evaluations; None if never."""
    before = None
    for now in curve:
        if now[1] <= target:
            if before is None:
                return now[0], now[2]
            share = (before[1] - target) / (before[1] - now[1])
            return before[0] + share * (now[0] - before[0]), before[2] + share * (now[2] - before[2])
        before = now
    return None


def mean_and_error(values: list[float], digits: int) -> str:
    """'mean +- standard error', or '-' of nothing."""
    if not values:
        return "-"
    text = f"{statistics.mean(values):,.{digits}f}"
    if len(values) > 1:
        text += f" +- {statistics.stdev(values) / math.sqrt(len(values)):,.{digits}f}"
    return text


def main(argv: list[str] | None = None) -> int:
    o = cli.parse(Options, argv, prog="bench/ablate.py", description="Compare recipes.", positional="run")
    if not o.run or not o.without:
        raise ValueError("name the base's preset and at least one arm: ablate.py PRESET --without name=value")
    common = [str(Path(p).resolve()) if Path(p).exists() else p for p in o.run] + o.extra.split()
    base = cli.parse(Settings, common, presets=True)
    if not base.max_steps:
        raise ValueError("max_steps is 0, by rule: give --extra=--max_steps=N, so that all arms have as many")
    dataset = o.dataset or base.dataset
    common.append(f"--dataset={Path(dataset).resolve() if Path(dataset).exists() else dataset}")
    common += [f"--eval_interval={max(1, base.max_steps // o.evals)}", f"--checkpoint_interval={base.max_steps}"]
    arms = {"base": []} | dict(map(read_arm, o.without))
    if len(arms) <= len(o.without):
        raise ValueError(f"two arms have one name ({', '.join(arms)}): name them apart")
    threads, curves = max(1, torch.get_num_threads() // o.at_once), {arm: [] for arm in arms}
    runs = [(seed, arm) for seed in range(1337, 1337 + o.seeds) for arm in arms]
    with ThreadPoolExecutor(o.at_once) as pool:
        found = pool.map(lambda run: train([*common, *arms[run[1]], f"--seed={run[0]}"], threads), runs)
        for (seed, arm), curve in zip(runs, found, strict=True):
            curves[arm].append(curve)
            print(f"seed {seed}, {arm}: {curve[-1][1]:.4f}", file=sys.stderr)
    finals = {arm: [curve[-1][1] for curve in of_arm] for arm, of_arm in curves.items()}
    target = statistics.mean(finals["base"])
    rows = []
    for arm, of_arm in curves.items():
        differences = [a - b for a, b in zip(finals[arm], finals["base"], strict=True)]
        there = [found for curve in of_arm if (found := reached(curve, target))]
        columns = [[point[i] for point in there] for i in (0, 1)]
        whole = mean_and_error([curve[-1][2] for curve in of_arm], 1)
        rows.append(
            [arm, mean_and_error(finals[arm], 4), "" if arm == "base" else mean_and_error(differences, 4), whole]
            + [mean_and_error(columns[0], 0), mean_and_error(columns[1], 1), f"{len(there)} of {len(of_arm)}"]
        )
    header = ["arm", "final val loss", "less the base's", "seconds in all", "steps to target", "seconds to target"]
    notes = f"Target {target:.4f}, the base's mean final loss; {o.evals} evaluations a run count in the seconds."
    record(f"Ablation, {Path(o.run[0]).stem}", [*header, "reached"], rows, notes, o.save)
    return 0


if __name__ == "__main__":
    cli.run(main)
