"""Check a dataset down to the last byte, and show what is in it.

    python prepare/verify.py data/shakespeare_char

Checks the header, size and sha256 of every shard, that all ids are in the vocabulary, and that the
tokenizer beside the shards is the one they were made with. Then prints figures, the longest
documents and windows of text. Exits with 1 at the first fault.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lathe import cli
from lathe.commands import command_line
from lathe.data.dataset import Dataset, Stream, open_dataset
from lathe.data.order import SampleOrder
from lathe.data.shards import SPLITS
from lathe.fields import PathName
from lathe.terminal import print_result
from lathe.text.tokenizer import Tokenizer

PIECE_TOKENS = 2**22  # read at once


@dataclass
class Options:
    # folders of shards, or raw:TOKENIZER:FOLDER
    dataset: list[PathName] = field(default_factory=list)
    windows: int = 10  # how many random windows of text to show
    window_tokens: int = 64  # tokens in each
    seed: int = 0  # decides which windows

    def __post_init__(self):
        if not self.dataset:
            verify = command_line("prepare/verify.py", "FOLDER")
            raise ValueError(f"no dataset is named: {verify}")
        least = {"windows": 0, "window_tokens": 1, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {value}")


def main(argv: list[str] | None = None):
    options = cli.parse(
        Options, argv, prog="prepare/verify.py", description=__doc__, positional="dataset"
    )
    for name in options.dataset:
        print_result(report(open_dataset(name, verify=True), options))


def report(dataset: Dataset, options: Options) -> str:
    """A readable page about a dataset. ValueError if its tokenizer is not the one that its tokens
    were made with."""
    tokenizer = dataset.tokenizer()
    lines = [
        f"{dataset.path}: all checks passed",
        f"tokenizer {tokenizer.name}, {tokenizer.vocab_size:,} ids",
    ]
    for what, n in dataset.meta.get("counts", {}).items():
        lines.append(f"{n:,} {what}")
    for reason, n in dataset.meta.get("left_out", {}).items():
        lines.append(f"left out of the input: {n:,} x {reason}")
    for split in SPLITS:
        stream = getattr(dataset, split)
        lines += ["", f"{split}: {len(stream.shards)} shards, {stream.n_tokens:,} tokens"]
        if stream.n_tokens:
            lines += contents(stream, tokenizer)
    if options.windows and dataset.train.n_tokens > options.window_tokens:
        lines += windows(dataset.train, tokenizer, options)
    return "\n".join(lines)


def contents(stream: Stream, tokenizer: Tokenizer) -> list[str]:
    """Lines about the documents of a split: number, lengths, the longest ones."""
    begins, n_bytes, occurs = scan(stream, tokenizer)
    end = stream.n_tokens
    if stream.mask is not None:  # with the last end-of-text, none begins
        begins = begins[:-1]
        end -= 1
    lengths = np.diff(begins, append=end) - 1
    n_text_tokens = max(stream.n_tokens - len(begins), 1)
    lines = [
        f"{len(begins):,} documents, {n_bytes:,} bytes of text, "
        f"{n_bytes / n_text_tokens:.3f} bytes per token, {occurs.mean():.1%} of the ids occur"
    ]
    if stream.mask is not None:
        n_scored = sum(int(np.count_nonzero(mask)) for mask in stream.mask.shards)
        lines.append(f"scored are completions and the end-of-text after each: {n_scored:,} tokens")
    if len(begins) == 0:
        return lines
    low, middle, high = np.percentile(lengths, (10, 50, 90)).astype(int).tolist()
    lines.append(f"tokens per document: 10% have at most {low:,}, half {middle:,}, 90% {high:,}")
    lines.append("longest documents:")
    for i in np.argsort(-lengths, kind="stable")[:5].tolist():
        tokens = read_tokens(stream, int(begins[i]) + 1, min(int(lengths[i]), 20))
        lines.append(f"  {lengths[i]:>12,} tokens at {begins[i]:,}: {tokenizer.decode(tokens)!r}")
    return lines


def scan(stream: Stream, tokenizer: Tokenizer) -> tuple[np.ndarray, int, np.ndarray]:
    """(where end-of-text stands, bytes of text, whether each id occurs) of all tokens."""
    byte_lengths = tokenizer.token_byte_lengths()
    begins = []
    n_bytes = 0
    occurs = np.zeros(tokenizer.vocab_size, bool)
    offset = 0
    for shard in stream.shards:
        for start in range(0, len(shard), PIECE_TOKENS):
            tokens = shard[start : start + PIECE_TOKENS]
            begins.append(np.flatnonzero(tokens == tokenizer.eot_id) + (offset + start))
            n_bytes += int(byte_lengths[tokens].sum())
            occurs[tokens] = True
        offset += len(shard)
    return np.concatenate(begins), n_bytes, occurs


def windows(stream: Stream, tokenizer: Tokenizer, options: Options) -> list[str]:
    """Lines with random windows of text."""
    n_tokens = options.window_tokens
    lines = ["", f"{options.windows} windows of {n_tokens} tokens of train:"]
    order = SampleOrder(stream.n_tokens, n_tokens, options.seed)
    starts = order.windows(np.arange(options.windows)).starts
    for start in starts.tolist():
        text = tokenizer.decode(read_tokens(stream, start, n_tokens), specials=True)
        lines += ["", f"--- at token {start:,}", text]
    return lines


def read_tokens(stream: Stream, start: int, count: int) -> np.ndarray:
    tokens = np.empty(count, np.int64)
    stream.read(start, count, tokens)
    return tokens


if __name__ == "__main__":
    cli.run(main)
