"""What a preparation tells people, on stderr."""

import shlex
import sys
import time
from pathlib import Path

from lathe.data.shards import SPLITS
from lathe.terminal import print_note

SECONDS_BETWEEN_LINES = 10.0


def say(line: str):
    print_note(f"prepare: {line}")


class Progress:
    """A pass over the input: a bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, what: str, total: int):
        self.what = what
        self.total = total  # bytes of all files on disk
        self.began = time.monotonic()
        self.next_line = SECONDS_BETWEEN_LINES
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False)

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
            say(
                f"{self.what}: {done / 1e6:.0f} of {self.total / 1e6:.0f} MB, "
                f"{done / 1e6 / elapsed:.1f} MB/s, {tokens / 1e6:.1f}M tokens, {left:.0f} s left"
            )

    def close(self):
        if self.bar is not None:
            self.bar.close()


def summarize(out: Path, meta: dict, seconds: float):
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
    if not meta["totals"]["val"]["tokens"]:
        say("no validation text: add --val_fraction or --val_input")
    if not meta["totals"]["train"]["tokens"]:
        say("no text to train on: lower --val_fraction")
    name = meta["tokenizer"]["name"]
    ids = meta["tokenizer"]["vocab_size"]
    say(
        f"{out} is ready in {seconds:.1f} s (tokenizer {name}, {ids:,} ids): "
        f"python train.py --dataset={shlex.quote(str(out))}"
    )
