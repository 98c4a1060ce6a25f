"""One door to any model: a run, a checkpoint, hf:NAME_OR_FOLDER."""

from collections.abc import Callable
from typing import NamedTuple

from lathe.run import checkpoint
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use.hf import find as hf_find
from lathe.use.hf import tokenizers as hf_tokenizers
from lathe.use.hf import weights as hf_weights
from lathe.use.network import load_model
from model import GPT

# The command


class Opened(NamedTuple):
    """A model to sample from: `begin` are the ids before a prompt, `ends` those that end a text, `template` names the
    form of the chats that it was trained on, "" if there were none."""

    name: str
    load: Callable[[], GPT]
    tokenizer: Tokenizer
    begin: list[int]
    ends: tuple[int, ...]
    template: str = ""


def open_model(options) -> Opened:
    """Find the model and its tokenizer; load() reads the weights."""
    if options.model:
        folder = hf_find.find(options.model)
        tokenizer, begin, ends = hf_tokenizers.load_hf_tokenizer(folder)
        return Opened(options.model, lambda: hf_weights.load_model(folder, dtype=None), tokenizer, begin, ends)
    path = checkpoint.find_checkpoint(options.out_dir)
    tokenizer = load_tokenizer(path)
    eot = tokenizer.eot_id  # documents begin with end-of-text, so do prompts
    template = checkpoint.read_state(path).get("template", "")
    return Opened(str(path), lambda: load_model(path), tokenizer, [eot], (eot,), template)


def encode(opened: Opened, text: str) -> list[int]:
    """Ids of a prompt with what comes before it. Raises ValueError where there is nothing to begin with."""
    ids = [*opened.begin, *opened.tokenizer.encode(text)]
    if not ids:
        raise ValueError("the prompt is empty and this model has no token that begins a text: give a --prompt")
    return ids
