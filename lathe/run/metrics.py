"""What a run reports: metrics.jsonl, lines or a progress bar on stderr, and mirrors in wandb and TensorBoard.

A row is a flat dict. Training rows: step, tokens, loss, lr, grad_norm, tokens_per_second, elapsed (and mfu where the
device's peak is known); evaluation rows: step, val_loss, val_bits_per_byte, elapsed, and of eval_tasks TASK/acc and the
like. `elapsed` is in seconds since the process began, `tokens` since step 0, `memory` the most bytes held so far,
`skipped` (once there are any) the steps left out. metrics.jsonl is the source of truth. starts.jsonl beside it tells
how each process of the run was called.
"""

import json
import math
import os
from contextlib import suppress
from pathlib import Path


def _kind(row):
    return "eval" if "val_loss" in row else "train"


def read_lines(path):
    """The JSON objects of a file that may be missing, or half-written when the power went."""
    rows = []
    for line in Path(path).read_bytes().splitlines() if Path(path).exists() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _read_rows(path):
    """{(kind, step): row} of a metrics file in order; the last row of a step stands."""
    return {(_kind(row), row["step"]): row for row in read_lines(path) if isinstance(row.get("step"), int)}


def read_metrics(path):
    """(training rows, evaluation rows) of a metrics.jsonl, also of one that is being written, or not there yet.

    Numbers that were not finite are None."""
    rows = _read_rows(path)
    return tuple([row for (kind, _), row in rows.items() if kind == wanted] for wanted in ("train", "eval"))


class MetricsLog:
    """Appends rows to metrics.jsonl so that each step stands there once per kind, also after crashes and resumes.

    A run that continues after step `resume_step` drops the later rows of its past life; one from scratch (0) drops
    them all. Rows are flushed one by one: a killed process loses none, a machine that loses power the last ones."""

    def __init__(self, path, resume_step=0):
        self.path = Path(path)
        rows = _read_rows(self.path) if resume_step else {}
        rows = {key: row for key, row in rows.items() if row["step"] <= resume_step}
        self.written = set(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(map(_json_line, rows.values()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self.file = open(self.path, "a", encoding="utf-8", newline="\n")

    def log(self, row):
        """Append one row, unless its step is already there: resuming at an evaluated step may evaluate it again."""
        key = (_kind(row), row["step"])
        if key not in self.written:
            self.written.add(key)
            self.file.write(_json_line(row))
            self.file.flush()

    def close(self):
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _json_line(row):
    """One line of JSON; nan and inf, which JSON does not have, become null."""
    row = {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}  # numpy, torch
    row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    return json.dumps(row, allow_nan=False) + "\n"


def keep_samples(path, step):
    """Drop the lines of samples.jsonl of steps that a run at `step` will reach again."""
    rows = read_lines(path) if step else []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step), encoding="utf-8")
