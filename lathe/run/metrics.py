"""metrics.jsonl: what a run reports, a row a line.

A row is a flat dict with a step. Training rows: step, tokens, loss, lr, grad_norm,
tokens_per_second, epoch, elapsed, memory, and mfu where the device's peak is known. Evaluation
rows: step, val_loss, val_bits_per_byte, train_loss (of a fixed sample of the training split, with
the same weights: val_loss minus it is the gap), elapsed, and of eval_tasks TASK/acc and the like.
What else a row holds is written and mirrored as well.

`elapsed` is in seconds since the process began, `tokens` since step 0, `epoch` how often the text
was read since then, `memory` the most bytes used so far, `skipped` (once there are any) the steps
left out. The file is the source of truth; wandb and TensorBoard mirror it.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lathe.json_text import parse_json
from lathe.reading import is_of
from lathe.run.files import LineLog
from lathe.terminal import print_note

Row = dict[str, Any]


# -----------------------------------------------------------------------------
# Reading


def read_metrics(path: str | Path) -> tuple[list[Row], list[Row]]:
    """(training rows, evaluation rows) of a metrics.jsonl, also while it is being written or if it
    is not there yet. Numbers that were not finite are None."""
    training = []
    evaluation = []
    for (kind, _), row in read_rows(path).items():
        if kind == "training":
            training.append(row)
        else:
            evaluation.append(row)
    return training, evaluation


def read_rows(path: str | Path) -> dict[tuple[str, int], Row]:
    """Rows of a metrics file by kind and step, in order; the last row of a step stands."""
    return {(kind_of(row), row["step"]): row for row in each_row(path)}


def each_row(path: str | Path, say: Callable[[str], None] | None = None) -> Iterator[Row]:
    """The rows of a metrics file as they stand there. say: told how many lines are none."""
    file = GrowingFile(Path(path))
    n_without_step = 0
    for rows in file.new_rows():
        for row in rows:
            if is_of(row.get("step"), int):
                yield row
            else:
                n_without_step += 1
    say_what_is_damaged(file.path, file.n_damaged + n_without_step, say)


def kind_of(row: Row) -> str:
    return "evaluation" if "val_loss" in row else "training"


def read_lines(path: str | Path, say: Callable[[str], None] | None = None) -> list[dict]:
    """The JSON objects of a file that may be missing, or half-written when the power went. say:
    told how many lines are none."""
    file = GrowingFile(Path(path))
    objects = [row for rows in file.new_rows() for row in rows]
    say_what_is_damaged(file.path, file.n_damaged, say)
    return objects


def say_what_is_damaged(path: Path, n_lines: int, say: Callable[[str], None] | None):
    if n_lines and say is not None:
        lines = "1 line is" if n_lines == 1 else f"{n_lines:,} lines are"
        say(f"{path}: {lines} damaged and left out")


BLOCK = 1 << 20  # bytes that are read at once


class GrowingFile:
    """A file of JSON objects, a line each, that grows or may be missing."""

    def __init__(self, path: Path):
        self.path = path
        self.n_damaged = 0  # lines so far that are no objects, but for a last one that is torn
        self._read = 0  # bytes
        self._inode: int | None = None

    def new_rows(self, begins_anew: Callable[[], None] | None = None) -> Iterator[list[Row]]:
        """Rows added since the last call, in blocks.

        begins_anew: called where the file is another one now, or shorter: all its rows are new.
        """
        try:
            file = open(self.path, "rb")
        except FileNotFoundError:
            return
        with file:
            about = os.fstat(file.fileno())
            if about.st_ino != self._inode or about.st_size < self._read:
                self._inode = about.st_ino
                self._read = 0
                self.n_damaged = 0
                if begins_anew is not None:
                    begins_anew()
            file.seek(self._read)
            while lines := file.readlines(BLOCK):
                is_torn = not lines[-1].endswith(b"\n") and not parse_lines(lines[-1:])
                if is_torn:
                    lines.pop()  # its rest may come
                self._read += sum(map(len, lines))
                rows = parse_lines(lines)
                if len(rows) < len(lines):
                    n_blank = sum(line.isspace() for line in lines)
                    self.n_damaged += len(lines) - n_blank - len(rows)
                yield rows
                if is_torn:
                    return


def parse_lines(lines: list[bytes]) -> list[Row]:
    """The JSON objects among these lines."""
    try:
        values = json.loads((b"[" + b",".join(lines) + b"]").decode())  # 1.5 times as fast as each
    except (ValueError, RecursionError):
        values = []
    if len(values) != len(lines):  # some are damaged
        values = []
        for line in lines:
            with suppress(ValueError):
                values.append(parse_json(line.decode(), "a line"))
    return [value for value in values if isinstance(value, dict)]


# -----------------------------------------------------------------------------
# Writing


class MetricsLog:
    """Appends rows to metrics.jsonl so that each step stands there once per kind.

    Also after crashes and resumes: a run that goes on after step `resume_step` drops the later rows
    of its past life; one from scratch (0) drops them all.
    """

    def __init__(
        self,
        path: str | Path,
        resume_step: int = 0,
        say: Callable[[str], None] = print_note,
    ):
        self.path = Path(path)
        kept = {}  # lines, which take a third of the memory of rows
        if resume_step > 0:
            for row in each_row(self.path, say):
                if row["step"] <= resume_step:
                    kept[kind_of(row), row["step"]] = json_line(row)
        self._last_steps: dict[str, int] = {}  # by kind
        for kind, step in kept:
            self._last_steps[kind] = max(step, self._last_steps.get(kind, step))
        self._lines = LineLog(self.path, list(kept.values()), say)

    def log(self, row: Row):
        """Append one row, unless its step has been: resuming at an evaluated step may evaluate it
        again."""
        kind = kind_of(row)
        if row["step"] > self._last_steps.get(kind, -1):
            self._last_steps[kind] = row["step"]
            self._lines.write(json_line(row))

    def close(self):
        self._lines.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object):
        self.close()


def json_line(row: Row) -> str:
    """One line of JSON; nan and inf, which JSON does not have, become null."""
    values = {}
    for name, value in row.items():
        if hasattr(value, "item"):  # a number of numpy's or torch's
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        values[name] = value
    return json.dumps(values, allow_nan=False) + "\n"


def open_samples(path: Path, step: int, say: Callable[[str], None] = print_note) -> LineLog:
    """samples.jsonl of a run at `step`, without the lines of steps that it will reach again."""
    rows = read_lines(path, say) if step else []
    kept = []
    for row in rows:
        if is_of(row.get("step"), int) and row["step"] <= step:
            kept.append(json.dumps(row) + "\n")
    return LineLog(path, kept, say)
