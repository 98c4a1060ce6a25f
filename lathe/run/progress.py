"""A run as people see it: a bar on a terminal, plain lines in a pipe.

News go to stderr. Results, which are what an evaluation found and how the run ended, go to stdout
as well where that leads elsewhere: `nohup python train.py > log` has them.
"""

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from lathe.terminal import fit, print_note, print_result, visible

Item = TypeVar("Item")


class Progress:
    """A bar on a terminal, plain lines in a pipe, nothing unless `enabled` (ranks > 0).

    with Progress(max_steps, start, tokens_per_step) as progress:
        progress.within(k + 1, micro, micro_steps)  # a long step is under way
        progress.step(k, loss)   # k updates are done: the bar has their news at once
        progress.train(row)      # the row's line, where there is no bar
        progress.evaluation(row)
        progress.print(text)     # a line that leaves the bar whole
        progress.close()         # the bar goes, and what is printed next is the last thing seen
    """

    def __init__(
        self, max_steps: int, start: int = 0, tokens_per_step: int = 0, enabled: bool = True
    ):
        self.max_steps = max_steps
        self.start = start
        self.tokens_per_step = tokens_per_step
        self.enabled = enabled
        self.on_terminal = enabled and is_terminal(sys.stderr)
        self.bar: TrainBar | None = None  # from the first step on: what comes before needs none

    def within(self, step: int, micro: int, micro_steps: int):
        """Of `step`, `micro` forward and backward passes of `micro_steps` are done."""
        if self.on_terminal and micro_steps > 1 and micro:
            bar = self._open_bar()
            bar.passes = f"{micro}/{micro_steps} of step {step}"
            bar.update(0)

    def step(self, step: int, loss: float):
        if self.on_terminal:
            bar = self._open_bar()
            is_first = bar.loss is None
            bar.loss = loss
            bar.passes = ""
            bar.count_seconds(step)
            bar.update(step - bar.n)
            if is_first:  # however lately the bar was drawn without it
                bar.refresh()

    def set_last_step(self, max_steps: int):
        """Where the run is to end from now on."""
        self.max_steps = max_steps
        if self.bar is not None:
            self.bar.total = max_steps

    def train(self, row: dict[str, Any]):
        if self.on_terminal:
            bar = self._open_bar()
            bar.epoch = row.get("epoch")
            bar.mfu = row.get("mfu")
        else:
            self.print(train_line(row, self.max_steps))

    def evaluation(self, row: dict[str, Any]):
        self.result(eval_line(row, self.max_steps))

    def print(self, text: str):
        if self.on_terminal:
            shown = fit(visible(text, sys.stderr), sys.stderr)
            tqdm.write(shown, file=sys.stderr)  # above whichever bar there is
        elif self.enabled:
            print_note(fit(text, sys.stderr))

    def result(self, text: str):
        """A line for stderr, and for stdout where that is read elsewhere."""
        self.print(text)
        if self.enabled and leads_elsewhere(sys.stdout, sys.stderr):
            print_result(text)

    def close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object):
        self.close()

    def _open_bar(self) -> "TrainBar":
        if self.bar is None:
            self.bar = TrainBar(self.max_steps, self.start, self.tokens_per_step)
        return self.bar


class TrainBar(tqdm):
    """tqdm's bar with the news of training, of which a narrow terminal gets the most important."""

    def __init__(self, max_steps: int, start: int, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self.loss: float | None = None  # none yet
        self.epoch: float | None = None
        self.mfu: float | None = None
        self.passes = ""  # what is done of a long step
        self.seconds: deque[float] = deque(maxlen=21)  # of the last steps
        self.stepped: float | None = None  # when the last step ended
        # miniters: each step is looked at, and drawn if the last one was 0.1 s ago.
        super().__init__(
            total=max_steps,
            initial=start,
            dynamic_ncols=True,
            miniters=1,
            leave=False,
            file=sys.stderr,
        )

    def count_seconds(self, step: int):
        """`step` has just ended."""
        now = time.perf_counter()
        if self.stepped is not None and step > self.n:
            self.seconds.append((now - self.stepped) / (step - self.n))
        self.stepped = now

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm formats, with the layout for the width that the terminal has now."""
        values = super().format_dict
        if self.dynamic_ncols:
            values["ncols"], values["nrows"] = self.dynamic_ncols(self.fp)
        values["bar_format"] = layout(self._news(values), values["ncols"] or 80)
        return values

    def _news(self, values: dict[str, Any]) -> list[str]:
        """From the most important to the least."""
        step = values["n"]
        total = values["total"]
        loss = "no loss yet" if self.loss is None else f"loss {self.loss:.4f}"
        news = [loss, self.passes or f"step {step}/{total}"]
        if self.seconds:
            usual = statistics.median(self.seconds)  # an evaluation after a step does not count
            news.append(f"{duration((total - step) * usual)} left")
            news.append(f"{self.tokens_per_step / max(usual, 1e-9):,.0f} tok/s")
        if self.epoch is not None:
            news.append(f"epoch {self.epoch:.2f}")
        if self.mfu is not None:
            news.append(f"mfu {self.mfu:.1%}")
        return news


SHORTEST_BAR = 8  # columns


def layout(news: list[str], columns: int) -> str:
    """A line for tqdm of as many of the news as fit into `columns`, and a bar where it fits, too.

    What does not fit is left out from the end of the list on; of the first, what fits is shown.
    """
    shown = news[0][:columns]
    for piece in news[1:]:
        if len(shown) + 3 + len(piece) > columns:
            break
        shown += " | " + piece
    if len(shown) + len(" ||") + SHORTEST_BAR <= columns:
        shown += " |{bar}|"
    return shown


def with_bar(items: Iterable[Item], what: str, total: int, enabled: bool = True) -> Iterable[Item]:
    """`items` again; while they are worked through, stderr shows a bar if it is a terminal."""
    if not enabled or not is_terminal(sys.stderr):
        return items
    short = "{desc}: {n_fmt}/{total_fmt} |{bar}|"
    return tqdm(items, desc=what, total=total, leave=False, dynamic_ncols=True, bar_format=short)


def is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be drawn there, and is wanted."""
    no_cursor = os.environ.get("TERM") == "dumb"
    no_bar = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return stream.isatty() and not no_cursor and not no_bar


def leads_elsewhere(stream: TextIO, other: TextIO) -> bool:
    """Whether what is printed to `stream` goes to another terminal, file or pipe than `other`."""
    try:
        one = os.fstat(stream.fileno())
        two = os.fstat(other.fileno())
    except (OSError, ValueError, AttributeError):  # no descriptor: Python's own, in a notebook
        return False
    return (one.st_dev, one.st_ino) != (two.st_dev, two.st_ino)


# -----------------------------------------------------------------------------
# Rows of metrics.jsonl as lines


# What every training row has, or may have. Whatever else a step measures is shown by its name.
USUAL = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second"}
USUAL |= {"elapsed", "memory", "skipped", "mfu", "epoch"}


def train_line(row: dict[str, Any], max_steps: int) -> str:
    """A training row for people; time per step and time left follow from the row itself."""
    seconds_per_step = row["tokens"] / row["step"] / row["tokens_per_second"]
    decimals = 0 if seconds_per_step >= 0.1 else 1
    seconds_left = (max_steps - row["step"]) * seconds_per_step
    parts = [
        f"step {row['step']:>{len(str(max_steps))}}/{max_steps}",
        f"loss {row['loss']:.4f}",
        f"lr {row['lr']:.2e}",
        f"grad {row['grad_norm']:.2f}",
    ]
    for name, value in row.items():
        if name not in USUAL:
            parts.append(f"{name} {value:.4g}")
    parts.append(f"{row['tokens_per_second']:,.0f} tok/s")
    parts.append(f"{1000 * seconds_per_step:,.{decimals}f} ms")
    if "mfu" in row:
        parts.append(f"mfu {row['mfu']:.1%}")
    if "epoch" in row:
        parts.append(f"epoch {row['epoch']:.2f}")
    parts.append(f"eta {duration(seconds_left)}")
    return " | ".join(parts)


def eval_line(row: dict[str, Any], max_steps: int) -> str:
    """An evaluation row for people."""
    parts = [
        f"step {row['step']:>{len(str(max_steps))}}/{max_steps}",
        f"val loss {row['val_loss']:.4f}",
    ]
    if "train_loss" in row:
        parts.append(f"train loss {row['train_loss']:.4f}")
    if row["val_bits_per_byte"] is not None:
        parts.append(f"{row['val_bits_per_byte']:.4f} bits per byte")
    for name, value in row.items():
        if "/" in name:  # a score in a task
            parts.append(f"{name} {value:.4f}")
    parts.append(f"{duration(row['elapsed'])} elapsed")
    return " | ".join(parts)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
