"""The tokenizer that a preparation asks for, learned from its input where it is char or bpe:N."""

import math
from collections import Counter
from pathlib import Path

from lathe.corpus.options import Plan
from lathe.corpus.report import Progress, say
from lathe.corpus.tokens import characters_of_unit, pieces_of_unit
from lathe.corpus.workers import results_of_units
from lathe.text.bpe import train_bpe
from lathe.text.tokenizer import TIKTOKEN_ENCODINGS, Tokenizer, load_tokenizer, train_char


def make_tokenizer(plan: Plan) -> Tokenizer:
    """OSError or ValueError if there is no such tokenizer."""
    spec = plan.tokenizer
    if spec == "char":
        return _learn_char(plan)
    if spec.startswith("bpe:"):
        return _learn_bpe(plan, int(spec.removeprefix("bpe:")))
    if spec in ("byte", *TIKTOKEN_ENCODINGS) or Path(spec).exists():
        return load_tokenizer(spec)
    names = ", ".join(("byte", "char", "bpe:N", *TIKTOKEN_ENCODINGS))
    advice = ""
    of_hub = spec.removeprefix("hf:")
    if of_hub != spec:
        advice = "; of a model on the Hub, download its tokenizer.json and name that folder"
        if of_hub in TIKTOKEN_ENCODINGS or Path(of_hub).exists():
            advice = f"; did you mean --tokenizer={of_hub}?"
    elif spec == "bpe":
        advice = "; did you mean --tokenizer=bpe:4096?"
    raise FileNotFoundError(
        f"tokenizer={spec} is neither one of {names} nor a folder with tokenizer.json{advice}"
    )


def _learn_char(plan: Plan) -> Tokenizer:
    characters = set()
    for of_unit in results_of_units(plan, characters_of_unit, "collecting characters"):
        characters |= of_unit
    return train_char([characters])


def _learn_bpe(plan: Plan, vocab_size: int) -> Tokenizer:
    """From one unit in so many that about --bpe_sample MB are read."""
    every = max(1, math.ceil(plan.input_bytes / (plan.options.bpe_sample * 10**6)))
    counts = Counter()
    for of_unit in results_of_units(plan, pieces_of_unit, "counting", every):
        counts.update(of_unit)
    progress = Progress("merging pairs", vocab_size - 257, unit="")
    tokenizer = train_bpe(counts, vocab_size, watch=progress.watch)
    if counts and tokenizer.vocab_size < vocab_size:
        say(
            f"bpe:{vocab_size:,} has {tokenizer.vocab_size:,} ids: what it learned from has no "
            f"pair left that comes twice"
        )
    return tokenizer
