"""What transformers makes of an exported folder."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.weights import load_model
from model import GPT, GPTConfig

# The command


def largest_difference(a: Callable, b: Callable, c: GPTConfig) -> tuple[float, float]:
    """(max |a - b|, max |a|) of the logits that a and b give one random text, as long as the context or 256 tokens."""
    idx = torch.randint(c.vocab_size, (1, min(c.block_size, 256)), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = a(idx), b(idx)[..., : c.vocab_size]
    return (ours - theirs).abs().max().item(), ours.abs().max().item()


def check_logits(model: GPT, folder: Path, path: Path):
    """Read the folder back; ValueError if it does not compute what `model`, of the checkpoint `path`, does."""
    difference, largest = largest_difference(model, load_model(folder), model.config)  # in float32
    print(f"read back, logits differ by {difference:.1e}", file=sys.stderr)
    if difference > 1e-5 * max(1.0, largest):
        raise ValueError(f"the export does not compute what {path} does: logits differ by {difference:.1e}")


def check_in_transformers(model: GPT, tokenizer: Tokenizer, folder: Path):
    """ValueError if the transformers library makes other logits or token ids of the folder than we do."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it fills pipes with carriage returns
    logging.set_verbosity_error()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    difference, largest = largest_difference(model, lambda idx: theirs(idx).logits, model.config)
    print(f"max |difference of logits| through transformers: {difference:.1e}", file=sys.stderr)
    text = "First, the 3 quick foxes' naïve déjà-vu:\n\n\tdon't 日本語 🎉 "
    text = "".join(c for c in text if tokenizer.kind != "char" or c.encode() in tokenizer.pieces)
    same = AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == tokenizer.encode(text)
    if difference > 1e-4 * max(1.0, largest) or not same:
        raise ValueError(f"the export is another model in transformers: logits differ by {difference:.1e}, "
                         f"token ids are {'equal' if same else 'different'}")  # fmt: skip
    print("token ids are equal", file=sys.stderr)
