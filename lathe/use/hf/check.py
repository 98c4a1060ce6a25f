"""What an exported folder computes, read back here and in the transformers library."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lathe.terminal import print_note
from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.weights import load_model
from model import GPT, GPTConfig

TEXT = "First, the 3 quick foxes' naïve déjà-vu:\n\n\tdon't 日本語 🎉 "


def round_weights(model: GPT, dtype: str):
    """In place: what is left of the weights, still float32, where they are written as `dtype`."""
    if dtype == "float32":
        return
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()


def check_logits(model: GPT, folder: Path, source: Path):
    """Read the folder back; ValueError if it does not compute what `model`, of the checkpoint
    `source`, does."""
    back = load_model(folder)  # in float32
    difference, largest = largest_difference(model, back, model.config)
    print_note(f"read back, logits differ by {difference:.1e}")
    if difference > 1e-5 * max(1.0, largest):
        raise ValueError(
            f"the export does not compute what {source} does: logits differ by {difference:.1e}"
        )


def check_in_transformers(model: GPT, tokenizer: Tokenizer, folder: Path):
    """ValueError if the transformers library makes other logits or token ids of the folder than we
    do."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it fills pipes with carriage returns
    logging.set_verbosity_error()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    difference, largest = largest_difference(model, lambda idx: theirs(idx).logits, model.config)
    print_note(f"max |difference of logits| through transformers: {difference:.1e}")

    text = TEXT
    if tokenizer.kind == "char":  # which knows some characters only
        text = "".join(character for character in TEXT if character.encode() in tokenizer.pieces)
    their_ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    same_ids = their_ids == tokenizer.encode(text)
    if difference > 1e-4 * max(1.0, largest) or not same_ids:
        raise ValueError(
            f"the export is another model in transformers: logits differ by {difference:.1e}, "
            f"token ids are {'equal' if same_ids else 'different'}"
        )
    print_note("token ids are equal")


def largest_difference(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], config: GPTConfig
) -> tuple[float, float]:
    """(max |ours - theirs|, max |ours|) of the logits for a random text of at most 256 tokens."""
    generator = torch.Generator().manual_seed(0)
    length = min(config.block_size, 256)
    idx = torch.randint(config.vocab_size, (1, length), generator=generator)
    with torch.inference_mode():
        our_logits = ours(idx)
        their_logits = theirs(idx)[..., : config.vocab_size]  # rows of padding left out
    difference = (our_logits - their_logits).abs().max().item()
    return difference, our_logits.abs().max().item()
