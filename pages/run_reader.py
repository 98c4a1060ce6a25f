"""What a run's folder tells, for its page. Its files are read in blocks and thinned meanwhile.

A reader keeps what it has read. Asked again, it reads only what was added since, so that a page
that is refreshed while a run goes on costs the same however long the run is.
"""

from pathlib import Path

import numpy as np

from lathe import cli, hints
from lathe.run.metrics import GrowingFile, Row, kind_of, read_lines

CURVES = "step tokens loss lr grad_norm tokens_per_second mfu memory skipped seconds".split()
EVALUATIONS = "step val_loss val_bits_per_byte train_loss seconds".split()
MOST_SAMPLED_STEPS = 40  # of which a page shows the samples
MOST_CHARACTERS = 4000  # of a sample


def number(value: object) -> int | float | None:
    """A finite number; None for whatever else somebody's file holds in its place."""
    is_number = type(value) in (int, float) and -1e300 < value < 1e300
    return value if is_number else None


class ThinnedRows:
    """Rows by step, of which at most about `most` are kept, however many come: of each stretch the
    first, and the one of the highest `value`, or of one that is not finite, so that spikes stay.

    Stretches are as wide as need be. A step that comes again, or an earlier one, begins anew there:
    what is kept of that step and later ones goes.
    """

    def __init__(self, most: int, value: str):
        self.most = most
        self.value = value
        self.width = 1  # rows in a stretch
        self.in_last = 0  # rows in the last one
        self.firsts: list[Row] = []  # one of each stretch
        self.highest: list[Row] = []
        self.heights: list[float] = []  # of the rows in `highest`
        self.last: Row | None = None
        self.lowest: Row | None = None  # of all rows whose value is a finite number

    def add(self, row: Row):
        if self.last is not None and row["step"] <= self.last["step"]:
            self.go_back_before(row["step"])
        self.last = row
        value = number(row.get(self.value))
        if value is not None and (self.lowest is None or value < self.lowest[self.value]):
            self.lowest = row
        height = np.inf if value is None else value
        # Of a stretch of one row the first is the highest; of a wider one there are two to keep.
        most_stretches = self.most if self.width == 1 else self.most // 2
        if self.in_last == self.width and len(self.firsts) >= most_stretches:
            self._widen(4 if self.width == 1 else 2)
        if not self.firsts or self.in_last == self.width:
            self.firsts.append(row)
            self.highest.append(row)
            self.heights.append(height)
            self.in_last = 1
            return
        self.in_last += 1
        if height > self.heights[-1]:
            self.highest[-1] = row
            self.heights[-1] = height

    def _widen(self, times: int):
        """Let `times` stretches be one."""
        highest = []
        heights = []
        for begin in range(0, len(self.firsts), times):
            of_these = self.heights[begin : begin + times]
            i = begin + of_these.index(max(of_these))
            highest.append(self.highest[i])
            heights.append(self.heights[i])
        self.in_last += (len(of_these) - 1) * self.width
        self.firsts = self.firsts[::times]
        self.highest = highest
        self.heights = heights
        self.width *= times

    def go_back_before(self, step: int):
        """Forget this step and later ones."""
        while self.firsts and self.firsts[-1]["step"] >= step:
            del self.firsts[-1], self.highest[-1], self.heights[-1]
            self.in_last = self.width
        if self.firsts and self.highest[-1]["step"] >= step:
            self.highest[-1] = self.firsts[-1]
            value = number(self.firsts[-1].get(self.value))
            self.heights[-1] = np.inf if value is None else value
        self.last = None  # which rows() would add
        kept = self.rows()
        self.last = kept[-1] if kept else None
        if self.lowest is not None and self.lowest["step"] >= step:
            scored = [row for row in kept if number(row.get(self.value)) is not None]
            self.lowest = min(scored, key=lambda row: row[self.value], default=None)

    @property
    def is_thinned(self) -> bool:
        return self.width > 1

    def rows(self) -> list[Row]:
        """What is kept, in order, and the last row."""
        kept = []
        for first, highest in zip(self.firsts, self.highest, strict=True):
            kept.append(first)
            if highest is not first:
                kept.append(highest)
        if self.last is not None and kept[-1] is not self.last:
            kept.append(self.last)
        return kept


class SampledTexts:
    """Texts of the evaluations of a run, of which a page shows a few, evenly spread."""

    def __init__(self):
        self.by_step: dict[int, list[dict]] = {}

    def add(self, row: Row):
        step = row.get("step")
        text = row.get("text")
        prompt = row.get("prompt", "")
        if type(step) is not int or not isinstance(text, str) or not isinstance(prompt, str):
            return
        sample = {
            "step": step,
            "sample": row.get("sample", 0),
            "text": (prompt + text)[:MOST_CHARACTERS],
        }
        if step not in self.by_step and len(self.by_step) >= 4 * MOST_SAMPLED_STEPS:
            kept = sorted(self.by_step)[::2]
            self.by_step = {step: self.by_step[step] for step in kept}
        self.by_step.setdefault(step, []).append(sample)

    def few(self) -> list[dict]:
        """Texts of at most MOST_SAMPLED_STEPS steps, the first and the last among them."""
        chosen = sorted(self.by_step)
        if len(chosen) > MOST_SAMPLED_STEPS:
            last = len(chosen) - 1
            spread = [round(i * last / (MOST_SAMPLED_STEPS - 1)) for i in range(MOST_SAMPLED_STEPS)]
            chosen = [chosen[i] for i in spread]
        return [sample for step in chosen for sample in self.by_step[step]]


class RunReader:
    """Reads a run's folder, also of one in progress or crashed, and reads on when asked again."""

    def __init__(self, folder: str | Path, most_points: int):
        self.folder = Path(folder)
        self.most_points = most_points
        self.metrics = GrowingFile(self.folder / "metrics.jsonl")
        self.samples = GrowingFile(self.folder / "samples.jsonl")
        self._forget_metrics()
        self._forget_samples()

    def _forget_metrics(self):
        self.training = ThinnedRows(self.most_points, "loss")
        self.evaluations = ThinnedRows(self.most_points, "val_loss")
        self.elapsed = 0.0
        self.seconds = 0.0

    def _forget_samples(self):
        self.texts = SampledTexts()

    def read(self) -> dict:
        """What the page's script and its tables show. Raises FileNotFoundError without metrics."""
        if not self.folder.is_dir():
            raise FileNotFoundError(hints.instead_of_run(self.folder))
        if not (self.folder / "metrics.jsonl").is_file():
            raise FileNotFoundError(
                f"{self.folder} holds no metrics.jsonl: "
                "it is not the out_dir of a run that has begun"
            )
        for rows in self.metrics.new_rows(self._forget_metrics):
            self._add(rows)
        for rows in self.samples.new_rows(self._forget_samples):
            for row in rows:
                self.texts.add(row)
        settings = read_settings(self.folder)
        starts = read_lines(self.folder / "starts.jsonl")
        return {
            "name": self.folder.name,
            "settings": settings,
            "starts": starts,
            "curves": curves(self.training.rows()),
            "evaluations": evaluation_curves(self.evaluations.rows(), settings),
            "flops_per_token": number(starts[-1].get("flops_per_token")) if starts else None,
            "thinned": self.training.is_thinned or self.evaluations.is_thinned,
            "summary": self.summary(settings, starts),
            "samples": self.texts.few(),
        }

    def _add(self, rows: list[Row]):
        """Rows of metrics.jsonl, each given `seconds` since the run began: `elapsed` begins anew
        with each process."""
        for row in rows:
            if type(row.get("step")) is not int:
                continue
            elapsed = number(row.get("elapsed")) or self.elapsed
            is_new_process = elapsed < self.elapsed
            self.seconds += elapsed if is_new_process else elapsed - self.elapsed
            self.elapsed = elapsed
            row["seconds"] = self.seconds
            if kind_of(row) == "training":
                self.training.add(row)
            else:
                self.evaluations.add(row)

    def summary(self, settings: dict, starts: list[dict]) -> dict:
        """{column of the table that compares runs: value, None if it is not known}."""
        train = self.training.last or {}
        evaluation = self.evaluations.last or {}
        best = self.evaluations.lowest or {}
        scored = [row for row in self.evaluations.rows() if number(row["val_loss"]) is not None]
        last = max(train, evaluation, key=lambda row: row.get("step", -1))
        start = starts[-1] if starts else {}
        return {
            "run": self.folder.name,
            "parameters": number(start.get("parameters")),
            "step": last.get("step", 0),
            "max_steps": settings.get("max_steps"),
            "train_loss": number(evaluation.get("train_loss", train.get("loss"))),
            "val_loss": scored[-1]["val_loss"] if scored else None,
            "gap": gap(evaluation),
            "best_val_loss": best.get("val_loss"),
            "best_step": best.get("step"),
            "bits_per_byte": number(best.get("val_bits_per_byte")),
            "tokens": number(train.get("tokens")),
            "seconds": last.get("seconds"),
            "tokens_per_second": self.usual_speed(),
            "device": start.get("device"),
            "skipped": number(train.get("skipped", 0)),
            "restarts": max(0, len(starts) - 1),
        }

    def usual_speed(self) -> float | None:
        """The median over rows that are evenly spread, without the first, which has a warm-up."""
        rows = self.training.firsts[1:] or self.training.firsts
        speeds = [number(row.get("tokens_per_second")) for row in rows]
        known = [speed for speed in speeds if speed]
        return float(np.median(known)) if known else None


def read_settings(folder: Path) -> dict:
    """settings.toml of a run; {} where it is missing or damaged."""
    try:
        return cli.from_toml((folder / "settings.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def columns_of(rows: list[Row], names: list[str]) -> dict[str, list]:
    return {name: [number(row.get(name)) for row in rows] for name in names}


def curves(rows: list[Row]) -> dict[str, list]:
    """{name: a value per row} of the training metrics that any row has."""
    return columns_of(rows, [name for name in CURVES if any(name in row for row in rows)])


def gap(row: Row) -> float | None:
    """By how much the loss of the validation split is higher than the training split's, of the same
    weights. The loss of training batches would not do: it is of the weights of steps before."""
    val_loss = number(row.get("val_loss"))
    train_loss = number(row.get("train_loss"))  # runs of earlier versions have none
    if val_loss is None or train_loss is None:
        return None
    return val_loss - train_loss


def evaluation_curves(rows: list[Row], settings: dict) -> dict[str, list]:
    """{name: a value per evaluation}: losses, and scores of tasks (TASK/acc and the like)."""
    scores = sorted({name for row in rows for name in row if "/" in name})
    columns = columns_of(rows, [*EVALUATIONS, *scores])
    columns["gap"] = [gap(row) for row in rows]
    batch_size = number(settings.get("batch_size")) or 0
    block_size = number(settings.get("block_size")) or 0
    columns["tokens"] = [row["step"] * batch_size * block_size or None for row in rows]
    return columns
