"""Check a dataset down to the last byte, and show what is in it.

    python prepare/verify.py data/shakespeare_char

Checks the header, size and sha256 of every shard, that all ids are in the vocabulary, and that the tokenizer beside
the shards is the one they were made with. Then prints figures, the longest documents and windows of text. Exits
with 1 at the first fault.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lathe import cli
from lathe.data.dataset import open_dataset
from lathe.data.order import SampleOrder
from lathe.data.shards import SPLITS


@dataclass
class Options:
    dataset: list[str] = field(default_factory=list)  # folders of shards, or raw:TOKENIZER:FOLDER
    windows: int = 10  # how many random windows of text to show
    window_tokens: int = 64  # tokens in each
    seed: int = 0  # decides which windows

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("no dataset is named: python prepare/verify.py FOLDER")
        for name, least in (("windows", 0), ("window_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


def main(argv=None):
    options = cli.parse(Options, argv, prog="prepare/verify.py", description=__doc__, positional="dataset")
    for name in options.dataset:
        print(report(open_dataset(name, verify=True), options))


def report(dataset, options) -> str:
    """A readable page about a dataset. ValueError if its tokenizer is not the one that its tokens were made with."""
    tokenizer = dataset.tokenizer()
    if tokenizer.fingerprint != dataset.tokenizer_fingerprint:
        raise ValueError(
            f"{dataset.path}: the tokenizer beside the shards is {tokenizer.name} ({tokenizer.fingerprint[:12]}), they "
            f"were made with {dataset.tokenizer_name} ({dataset.tokenizer_fingerprint[:12]}); prepare the dataset again"
        )
    lines = [f"{dataset.path}: all checks passed", f"tokenizer {tokenizer.name}, {tokenizer.vocab_size:,} ids"]
    lines += [f"{n:,} {what}" for what, n in dataset.meta.get("counts", {}).items()]
    for split in SPLITS:
        stream = getattr(dataset, split)
        lines += ["", f"{split}: {len(stream.shards)} shards, {stream.n_tokens:,} tokens"]
        if stream.n_tokens:
            lines += _contents(stream, tokenizer, tokenizer.token_byte_lengths())
    if options.windows and dataset.train.n_tokens > options.window_tokens:
        lines += ["", f"{options.windows} windows of {options.window_tokens} tokens of train:"]
        order = SampleOrder(dataset.train.n_tokens, options.window_tokens, options.seed)
        for start in order.windows(np.arange(options.windows)).starts.tolist():
            tokens = np.empty(options.window_tokens, np.int64)
            dataset.train.read(start, options.window_tokens, tokens)
            lines += ["", f"--- at token {start:,}", tokenizer.decode(tokens, specials=True)]
    return "\n".join(lines)


def _contents(stream, tokenizer, byte_lengths):
    """Lines about the documents of a split: number, lengths, the longest ones."""
    begins, n_bytes, used, offset = [], 0, np.zeros(tokenizer.vocab_size, bool), 0
    for shard in stream.shards:
        for start in range(0, len(shard), 2**22):
            tokens = shard[start : start + 2**22]
            begins.append(np.flatnonzero(tokens == tokenizer.eot_id) + (offset + start))
            n_bytes += int(byte_lengths[tokens].sum())
            used[tokens] = True
        offset += len(shard)
    begins, end = np.concatenate(begins), stream.n_tokens
    if stream.mask is not None:  # with the last end-of-text, none begins
        begins, end = begins[:-1], end - 1
    lengths = np.diff(begins, append=end) - 1
    lines = [
        f"{len(begins):,} documents, {n_bytes:,} bytes of text, "
        f"{n_bytes / max(stream.n_tokens - len(begins), 1):.3f} bytes per token, {used.mean():.1%} of the ids occur"
    ]
    if stream.mask is not None:
        n_scored = sum(int(np.count_nonzero(mask)) for mask in stream.mask.shards)
        lines.append(f"scored are completions and the end-of-text behind each: {n_scored:,} tokens")
    if len(begins):
        low, middle, high = np.percentile(lengths, (10, 50, 90)).astype(int).tolist()
        lines.append(f"tokens per document: 10% have at most {low:,}, half {middle:,}, 90% {high:,}")
        lines.append("longest documents:")
        for i in np.argsort(-lengths, kind="stable")[:5].tolist():
            tokens = np.empty(min(int(lengths[i]), 20), np.int64)
            stream.read(int(begins[i]) + 1, len(tokens), tokens)
            lines.append(f"  {lengths[i]:>12,} tokens at {begins[i]:,}: {tokenizer.decode(tokens)!r}")
    return lines


if __name__ == "__main__":
    cli.run(main)
