"""A run as people see it on stderr: a bar on a terminal, plain lines in a pipe."""

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, TypeVar

from lathe.terminal import print_note, visible

Item = TypeVar("Item")


class Progress:
    """A bar on a terminal, plain lines in a pipe, nothing unless `enabled` (ranks > 0).

    with Progress(max_steps, start) as progress:
        progress.step(k)         # k updates are done
        progress.train(row)      # the bar's figures, or a line
        progress.evaluation(row)
        progress.print(text)     # a line that leaves the bar whole
    """

    def __init__(self, max_steps: int, start: int = 0, enabled: bool = True):
        self.max_steps = max_steps
        self.start = start
        self.enabled = enabled
        self.on_terminal = enabled and is_terminal(sys.stderr)
        self.bar = None  # tqdm's, from the first step on: what is printed before it needs none

    def step(self, step: int):
        if not self.on_terminal:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.max_steps, initial=self.start, unit="step", dynamic_ncols=True
            )
        self.bar.update(step - self.bar.n)

    def train(self, row: dict[str, Any]):
        if self.bar is None:
            self.print(train_line(row, self.max_steps))
            return
        text = f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tok/s"
        if "mfu" in row:
            text += f", mfu {row['mfu']:.1%}"
        self.bar.set_postfix_str(text, refresh=False)

    def evaluation(self, row: dict[str, Any]):
        self.print(eval_line(row, self.max_steps))

    def print(self, text: str):
        if self.on_terminal:
            from tqdm import tqdm

            tqdm.write(visible(text, sys.stderr), file=sys.stderr)  # above whichever bar there is
        elif self.enabled:
            print_note(text)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object):
        if self.bar is not None:
            self.bar.close()


def with_bar(items: Iterable[Item], what: str, total: int, enabled: bool = True) -> Iterable[Item]:
    """`items` again; while they are worked through, stderr shows a bar if it is a terminal."""
    if not enabled or not is_terminal(sys.stderr):
        return items
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, leave=False, dynamic_ncols=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be drawn there, and is wanted."""
    no_cursor = os.environ.get("TERM") == "dumb"
    no_bar = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return stream.isatty() and not no_cursor and not no_bar


# -----------------------------------------------------------------------------
# Rows of metrics.jsonl as lines


# What every training row has, or may have. Whatever else a step measures is shown by its name.
USUAL = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second"}
USUAL |= {"elapsed", "memory", "skipped", "mfu"}


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
