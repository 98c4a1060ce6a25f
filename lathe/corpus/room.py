"""How much room on the disk a dataset will take."""

import shutil
from collections.abc import Iterable

from lathe.corpus.cut import cut_units
from lathe.corpus.options import Plan
from lathe.corpus.source import Source
from lathe.corpus.tokens import texts
from lathe.data.shards import token_dtype
from lathe.text.tokenizer import Tokenizer

SAMPLE_CHARACTERS = 100_000


def check_room(plan: Plan, tokenizer: Tokenizer):
    """OSError if the disk has not the room for what will be written, by an estimate."""
    needed = estimate_shards(plan, tokenizer)
    free = shutil.disk_usage(plan.out).free
    if needed > free:
        raise OSError(
            f"out={plan.out}: about {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are "
            f"free: make room or name another folder"
        )


def estimate_text(sources: Iterable[Source]) -> int:
    """Bytes of text; compressed files are taken to have four times their size."""
    n_bytes = 0
    for source in sources:
        is_compressed = source.compression or source.format == "parquet"
        n_bytes += source.size * (4 if is_compressed else 1)
    return n_bytes


def estimate_shards(plan: Plan, tokenizer: Tokenizer) -> float:
    """Bytes of all shards, from how the tokenizer treats the beginning of the input."""
    sample = _first_text(plan)[:SAMPLE_CHARACTERS]
    n_tokens = len(tokenizer.encode_numpy(sample)) + 1
    tokens_per_byte = min(n_tokens / max(len(sample.encode()), 1), 1)
    token_bytes = token_dtype(tokenizer.vocab_size).itemsize
    return estimate_text(plan.sources) * tokens_per_byte * token_bytes


def _first_text(plan: Plan) -> str:
    """The first text of the first unit, "" if it has none."""
    for unit in cut_units(plan.sources, plan.rules):
        return next(texts(unit, plan.rules), "")
    return ""
