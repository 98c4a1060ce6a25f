"""What the page of one run or several shows: curves, losses, samples, settings, a summary."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from lathe.run.metrics import say_what_is_damaged
from lathe.terminal import print_note
from pages.render import render, write
from pages.run_reader import RunReader

MOST_POINTS = 10_000  # per curve; longer ones are thinned
MOST_POINTS_OF_REPORT = 4000
LARGEST_SHARE = 0.01  # of a run's time that may go into its report

# The columns of the table that compares runs, and how each is written.
SUMMARY = {
    "run": "{}",
    "parameters": "{:,}",
    "step": "{:,}",
    "train_loss": "{:.4f}",
    "val_loss": "{:.4f}",
    "gap": "{:+.4f}",
    "best_val_loss": "{:.4f}",
    "best_step": "{:,}",
    "bits_per_byte": "{:.4f}",
    "tokens": "{:,}",
    "seconds": "{:,.0f}",
    "tokens_per_second": "{:,.0f}",
    "skipped": "{}",
    "restarts": "{}",
    "device": "{}",
}


class Report:
    """report.html of a run in progress. A refresh reads what was added since the last one.

    clock: seconds, of which a refresh may take LARGEST_SHARE: the next is put off until then.
    """

    def __init__(self, out_dir: str | Path, clock: Callable[[], float] = time.monotonic):
        self.path = Path(out_dir) / "report.html"
        self.reader = RunReader(out_dir, MOST_POINTS_OF_REPORT)
        self.clock = clock
        self._due = -math.inf

    def refresh(self, now: bool = False) -> str | None:
        """Write it, if it is time or `now`; returns what went wrong, or None."""
        began = self.clock()
        if began < self._due and not now:
            return None
        fault = None
        try:
            write(self.path, page_of([self.reader.read()], max_mb=math.inf))
        except Exception as error:  # whatever it is: no page is worth a run
            reason = " ".join(str(error).split()) or type(error).__name__
            fault = f"report.html is not written: {reason}"
        ended = self.clock()
        self._due = ended + (ended - began) / LARGEST_SHARE
        return fault


def run_page(folders: list[str | Path], max_mb: float = 5.0, most_points: int = MOST_POINTS) -> str:
    """One page about the runs in these folders. Raises FileNotFoundError or ValueError."""
    readers = [RunReader(folder, most_points) for folder in folders]
    runs = [reader.read() for reader in readers]
    for reader in readers:
        for file in (reader.metrics, reader.samples):
            say_what_is_damaged(file.path, file.n_damaged, print_note)
    names = [run["name"] for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if names.count(run["name"]) > 1:
            run["name"] = str(folder)
            run["summary"]["run"] = str(folder)
    return page_of(runs, max_mb)


def page_of(runs: list[dict], max_mb: float) -> str:
    """The page of what readers read. Raises ValueError beyond max_mb."""
    titles = [key.replace("_", " ") for key in SUMMARY]
    cells = [summary_cells(run["summary"]) for run in runs]
    markdown = [titles, ["---"] * len(titles), *cells]
    return render(
        "run",
        scripts=("uPlot.iife.min.js", "common.js", "run.js"),
        styles=("uPlot.min.css", "style.css"),
        data={"runs": runs},
        max_mb=max_mb,
        shrink="show fewer runs, or raise --max_mb",
        runs=runs,
        titles=titles,
        cells=cells,
        differing=differing_settings(runs),
        pasted="\n".join("| " + " | ".join(line) + " |" for line in markdown),
    )


def summary_cells(summary: dict) -> list[str]:
    """A run's row of the table, in the order of SUMMARY; what is not known is empty."""
    cells = []
    for key, form in SUMMARY.items():
        value = summary[key]
        cells.append("" if value is None else form.format(value))
    return cells


def differing_settings(runs: list[dict]) -> list[tuple[str, list]]:
    """[(setting, its value in each run)] of those that are not the same in all; out_dir aside."""
    names = dict.fromkeys(name for run in runs for name in run["settings"])
    table = []
    for name in names:
        values = [run["settings"].get(name, "") for run in runs]
        if name != "out_dir" and any(value != values[0] for value in values):
            table.append((name, values))
    return table
