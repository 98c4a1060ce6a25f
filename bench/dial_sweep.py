"""Is what `--minutes` chooses near the best? The dial's run, and twelve that differ from it in one
thing, on each dataset, all by the same minutes.

    python bench/dial_sweep.py data/shakespeare_char data/python_stdlib --minutes=1

A run that differs names that thing by hand and leaves all else to the dial. stderr has each run as
it ends, stdout a table for each dataset; what counts is how far the best of the twelve is below the
dial's own loss, and which part of its minutes each run took.
"""

import math
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.compare import threads_of_each
from bench.processes import run_child
from bench.results import record
from lathe import ROOT, cli
from lathe.fields import PathName
from lathe.run.metrics import read_metrics


@dataclass
class Options:
    """What to train on, and for how long."""

    datasets: list[PathName] = field(default_factory=list)  # folders that prepare/ wrote
    minutes: float = 1.0  # of each run, from its command to its end
    at_once: int = 1  # runs side by side, which share the processor's threads
    seed: int = 1337
    save: bool = False  # append the tables to bench/RESULTS.md

    def __post_init__(self):
        if not self.datasets:
            raise ValueError("name a dataset: dial_sweep.py data/shakespeare_char")
        for dataset in self.datasets:
            if not Path(dataset, "meta.json").is_file():
                raise ValueError(f"{dataset} is no dataset: it has no meta.json")
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes is {self.minutes:g}: it must be above 0")
        if self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}: it must be 1 or more")


@dataclass
class Run:
    """One training by minutes, as it ended."""

    what: str
    settings: dict  # all of them, as its folder has them
    steps: int
    loss: float
    share: float  # of its minutes that the process took

    @property
    def network(self) -> str:
        return f"{self.settings['n_layer']} x {self.settings['n_embd']}"


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(
        Options, argv, prog="bench/dial_sweep.py", description=__doc__, positional="datasets"
    )
    for dataset in options.datasets:
        sweep(dataset, options)
    return 0


def sweep(dataset: str, options: Options):
    def train(what: str, given: list[str]) -> Run:
        run = run_by_minutes(dataset, what, given, options)
        line = f"{run.what}: {run.network}, {run.steps} steps, loss {run.loss:.4f}"
        print(f"{dataset}: {line}, {run.share:.3f} of the time", file=sys.stderr, flush=True)
        return run

    chosen = train("as the dial chooses", [])
    with ThreadPoolExecutor(options.at_once) as pool:
        others = list(pool.map(train, *zip(*changes(chosen.settings).items(), strict=True)))
    rows = [row_of(run, chosen) for run in [chosen, *others]]
    best = min(others, key=lambda run: run.loss)
    record(
        f"--minutes={options.minutes:g} on {Path(dataset).name}, and twelve other ways",
        ["run", "network", "steps", "val loss", "against the dial's", "of its time"],
        rows,
        f"The best of the twelve is {difference(best, chosen)} against the dial's.",
        save=options.save,
    )


def changes(s: dict) -> dict[str, list[str]]:
    """{what differs: settings that make it so}, of a run with settings s."""

    from lathe.run.dial import SIZES  # imports torch

    def times(factor: float, *names: str) -> list[str]:
        return [f"--{name}={factor * s[name]:.4g}" for name in names]

    sizes = [(size.n_layer, size.n_embd) for size in SIZES]
    i = sizes.index((s["n_layer"], s["n_embd"]))
    rates = ("learning_rate", "muon_learning_rate")
    dropout = 0.0 if s["dropout"] else 0.1
    return {
        "a size smaller": network_of(sizes[max(0, i - 1)]),
        "a size larger": network_of(sizes[min(len(sizes) - 1, i + 1)]),
        "rates x 0.5": times(0.5, *rates),
        "rates x 0.7": times(0.7, *rates),
        "rates x 1.4": times(1.4, *rates),
        "rates x 2": times(2.0, *rates),
        "batch x 0.5": [f"--batch_size={max(1, s['batch_size'] // 2)}"],
        "batch x 2": [f"--batch_size={2 * s['batch_size']}"],
        "twice the heads": [f"--n_head={2 * s['n_head']}"],
        f"dropout {dropout:g}": [f"--dropout={dropout:g}"],
        "no decay": ["--weight_decay=0"],
        "decay x 3": times(3.0, "weight_decay"),
    }


def network_of(size: tuple[int, int]) -> list[str]:
    return [f"--n_layer={size[0]}", f"--n_embd={size[1]}"]


def run_by_minutes(dataset: str, what: str, given: list[str], options: Options) -> Run:
    with tempfile.TemporaryDirectory(prefix="lathe-sweep-") as scratch:
        folder = Path(scratch, "run")
        command = [sys.executable, str(ROOT / "train.py"), f"--dataset={dataset}"]
        command += [f"--minutes={options.minutes}", f"--seed={options.seed}", f"--out_dir={folder}"]
        command += [*given, "--sample_tokens=0"]
        began = time.monotonic()
        run_child(command, Path.cwd(), **threads_of_each(options.at_once))
        seconds = time.monotonic() - began
        _, evaluations = read_metrics(folder / "metrics.jsonl")
        settings = tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8"))
    last = evaluations[-1]
    return Run(what, settings, last["step"], last["val_loss"], seconds / 60 / options.minutes)


def row_of(run: Run, chosen: Run) -> list:
    against = "" if run is chosen else difference(run, chosen)
    return [run.what, run.network, run.steps, f"{run.loss:.4f}", against, f"{run.share:.3f}"]


def difference(run: Run, chosen: Run) -> str:
    return f"{run.loss / chosen.loss - 1:+.1%}"


if __name__ == "__main__":
    cli.run(main)
