"""What each part of a recipe is worth: a preset against itself with settings changed, over seeds.

    python bench/ablate.py shakespeare_char_cpu --without qk_norm=false \\
        "AdamW: optimizer=adamw,learning_rate=0.01"

An arm is settings, joined by commas, perhaps after a name and a colon. Runs are whole training
commands, arms in turn within each seed. The target of steps and seconds is the mean of the base's
final losses; when a run has it is read off its evaluations by straight lines, and the mean is over
the runs that get there. +- is the standard error of a mean. Differences to the base are taken seed
by seed.
"""

import math
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.processes import absolute, train
from bench.results import record
from lathe import cli
from lathe.settings import Settings

FIRST_SEED = 1337


@dataclass
class Options:
    """What to compare."""

    run: list[str] = field(default_factory=list)  # the base: presets and settings' files
    # arms: [NAME: ]name=value,... that differ from the base
    without: list[str] = field(default_factory=list)
    extra: str = ""  # further settings of every arm, such as "--max_steps=600"
    dataset: str = ""  # what all read; empty = the preset's
    seeds: int = 3  # runs of each arm, seeds 1337, 1338, ...
    # runs side by side, which share the processor's threads: seconds then only compare
    at_once: int = 1
    evals: int = 20  # evaluations of a run, by which the way to the target is read
    save: bool = True  # append the table to bench/RESULTS.md

    def __post_init__(self):
        if not self.run or not self.without:
            raise ValueError(
                "name the base's preset and at least one arm: ablate.py PRESET --without name=value"
            )
        for name in ("seeds", "at_once", "evals"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        read_arms(self.without)


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(
        Options, argv, prog="bench/ablate.py", description=__doc__, positional="run"
    )

    import torch

    arms = read_arms(options.without)
    common = common_settings(options)
    n_threads = max(1, torch.get_num_threads() // options.at_once)

    def measure(arm: str, seed: int) -> Curve:
        curve = train_curve([*common, *arms[arm], f"--seed={seed}"], n_threads)
        print(f"seed {seed}, {arm}: {curve[-1].loss:.4f}", file=sys.stderr)
        return curve

    runs = {arm: [] for arm in arms}
    with ThreadPoolExecutor(options.at_once) as pool:
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
            for arm in arms:
                runs[arm].append(pool.submit(measure, arm, seed))
    curves = {arm: [run.result() for run in runs[arm]] for arm in arms}

    target = statistics.mean(curve[-1].loss for curve in curves["base"])
    record(
        f"Ablation, {Path(options.run[0]).stem}",
        HEADER,
        [row_of(arm, curves[arm], curves["base"], target) for arm in arms],
        f"Target {target:.4f}, the base's mean final loss; {options.evals} evaluations a run count "
        "in the seconds.",
        options.save,
    )
    return 0


# -----------------------------------------------------------------------------
# Arms and their runs


@dataclass
class Point:
    """An evaluation, or a spot on the straight line between two."""

    step: float
    loss: float  # of validation
    seconds: float  # since the process began


Curve = list[Point]


def read_arms(without: list[str]) -> dict[str, list[str]]:
    """{name: arguments beside the common ones}, the base first. ValueError for a name twice."""
    arms = {"base": []}
    for text in without:
        name, settings = read_arm(text)
        if name in arms:
            raise ValueError(f"without: two arms have one name ({name}), name them apart")
        arms[name] = settings
    return arms


def read_arm(text: str) -> tuple[str, list[str]]:
    """(name, arguments) of "NAME: a=1,b=2" or, where the settings are the name, "a=1,b=2"."""
    name, colon, settings = text.partition(":")
    if not colon or "=" in name:
        name = text
        settings = text
    return name, [f"--{setting.strip()}" for setting in settings.split(",")]


def common_settings(options: Options) -> list[str]:
    """The arguments of every arm. ValueError where the base's number of steps follows a rule."""
    common = [*map(absolute, options.run), *options.extra.split()]
    base = cli.parse(Settings, common, presets=True)
    if not base.max_steps:
        raise ValueError(
            "max_steps is 0, by rule: give --extra=--max_steps=N, so that all arms have as many"
        )
    return [
        *common,
        f"--dataset={absolute(options.dataset or base.dataset)}",
        f"--eval_interval={max(1, base.max_steps // options.evals)}",
        f"--checkpoint_interval={base.max_steps}",
        "--sample_tokens=0",
    ]


def train_curve(settings: list[str], n_threads: int) -> Curve:
    evaluations = train(settings, OMP_NUM_THREADS=str(n_threads)).evaluations
    return [Point(row["step"], row["val_loss"], row["elapsed"]) for row in evaluations]


# -----------------------------------------------------------------------------
# What became of them

HEADER = [
    "arm",
    "final val loss",
    "less the base's",
    "seconds in all",
    "steps to target",
    "seconds to target",
    "reached",
]


def row_of(arm: str, curves: list[Curve], base: list[Curve], target: float) -> list[str]:
    finals = [curve[-1].loss for curve in curves]
    finals_of_base = [curve[-1].loss for curve in base]
    differences = [a - b for a, b in zip(finals, finals_of_base, strict=True)]
    points = [reached(curve, target) for curve in curves]
    points = [point for point in points if point is not None]
    return [
        arm,
        mean_and_error(finals, 4),
        "" if arm == "base" else mean_and_error(differences, 4),
        mean_and_error([curve[-1].seconds for curve in curves], 1),
        mean_and_error([point.step for point in points], 0),
        mean_and_error([point.seconds for point in points], 1),
        f"{len(points)} of {len(curves)}",
    ]


def reached(curve: Curve, target: float) -> Point | None:
    """Where a run first has the target, on straight lines between evaluations; None if never."""
    before = None
    for point in curve:
        if point.loss <= target:
            return point if before is None else between(before, point, target)
        before = point
    return None


def between(before: Point, after: Point, loss: float) -> Point:
    """Where the straight line from one evaluation to the next has this loss."""
    share = (before.loss - loss) / (before.loss - after.loss)
    return Point(
        step=before.step + share * (after.step - before.step),
        loss=loss,
        seconds=before.seconds + share * (after.seconds - before.seconds),
    )


def mean_and_error(values: list[float], digits: int) -> str:
    """'mean +- standard error', or '-' of nothing."""
    if not values:
        return "-"
    text = f"{statistics.mean(values):,.{digits}f}"
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
        text += f" +- {error:,.{digits}f}"
    return text


if __name__ == "__main__":
    cli.run(main)
