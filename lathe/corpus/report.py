"""What a preparation tells people, on stderr."""

import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from lathe.corpus.next_step import training_command
from lathe.data.shards import SPLITS
from lathe.run.progress import is_terminal
from lathe.terminal import fit, print_note

SECONDS_BETWEEN_LINES = 10.0
Item = TypeVar("Item")


def say(line: str):
    print_note(fit(f"prepare: {line}", sys.stderr))


class Progress:
    """A pass over the input: a bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, what: str, total: int, unit: str = "B"):
        self.what = what
        self.total = total  # bytes of all files on disk, or how many of another unit
        self.unit = unit
        self.began = time.monotonic()
        self.next_line = SECONDS_BETWEEN_LINES
        self.bar = None
        if is_terminal(sys.stderr):
            self.bar = tqdm(
                total=total, desc=what, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True
            )

    def show(self, done: int, tokens: int = 0):
        """`done`: bytes of the input read so far; `tokens`: how many are stored, where any are."""
        if self.bar is not None:
            if tokens:
                self.bar.set_postfix_str(f"{tokens / 1e6:.1f}M tokens", refresh=False)
            self.bar.update(done - self.bar.n)
            return
        elapsed = time.monotonic() - self.began
        if elapsed >= self.next_line:
            self.next_line = elapsed + SECONDS_BETWEEN_LINES
            left = elapsed * (self.total - done) / max(done, 1)
            if self.unit == "B":
                amount = f"{done / 1e6:.0f} of {self.total / 1e6:.0f} MB, "
                amount += f"{done / 1e6 / elapsed:.1f} MB/s, {tokens / 1e6:.1f}M tokens"
            else:
                amount = f"{done:,} of {self.total:,}"
            say(f"{self.what}: {amount}, {left:.0f} s left")

    def watch(self, items: Iterator[Item]) -> Iterator[Item]:
        """`items` again, one of the unit each."""
        for n_done, item in enumerate(items, 1):
            yield item
            self.show(n_done)
        self.close()

    def close(self):
        if self.bar is not None:
            self.bar.close()


# In the environment of a preparation that training has begun, and after which it goes on.
CALLED_BY_TRAINING = "LATHE_PREPARES_FOR_TRAINING"


def summarize(out: Path, meta: dict, tokenizer: str, seconds: float):
    """What came out: each split's figures, what was changed in the text, what to type next."""
    for split in SPLITS:
        total = meta["totals"][split]
        per_token = total["bytes"] / max(total["tokens"] - total["documents"], 1)
        line = f"{split}: {total['tokens']:,} tokens of {total['documents']:,} documents, "
        line += f"{total['bytes']:,} bytes of text ({per_token:.2f} per token)"
        if "scored" in total:
            line += f"; {total['scored']:,} are scored"
        say(line)
    for what, n in meta["counts"].items():
        say(f"{n:,} {what}")
    name = meta["tokenizer"]["name"]
    ids = meta["tokenizer"]["vocab_size"]
    for split, use in (("train", "training reads"), ("val", "training is judged by")):
        if not meta["totals"][split]["tokens"]:
            share = "a lower" if split == "train" else "a higher"
            advice = f"prepare it again with {share} --val_fraction"
            if split == "val":
                advice += " or --val_input FILE"
            val_input = meta["options"]["val_input"]
            if split == "val" and val_input:
                names = shlex.join(val_input)
                advice = f"--val_input {names} has no text: prepare it again with other files there"
            say(
                f"{out} is written in {seconds:.1f} s, but has no {split} split, which {use}: "
                f"{advice}, and --overwrite"
            )
            return
    say(f"{out} is ready in {seconds:.1f} s (tokenizer {name}, {ids:,} ids)")
    say_next(out, meta, tokenizer)


def say_next(out: Path, meta: dict, tokenizer: str):
    """What to type to train on it, on a line of its own."""
    command = training_command(out, meta, tokenizer)
    if command is not None and os.environ.get(CALLED_BY_TRAINING) != "1":
        print_note(fit(f"next:\n  {command}", sys.stderr))
