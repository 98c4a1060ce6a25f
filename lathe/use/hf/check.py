"""What an exported folder computes, read back here and in the transformers library."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lathe.terminal import print_note
from lathe.text.chat import TEMPLATES, chat_prompt
from lathe.text.library import NASTY, known_part
from lathe.text.tokenizer import Tokenizer
from lathe.use.find_model import FoundModel
from lathe.use.hf.tokenizers import answers_begin_with_a_space
from lathe.use.hf.weights import load_model
from model import GPT, GPTConfig

TEXT = "First, the 3 quick foxes' naïve déjà-vu:\n\n\tdon't 日本語 🎉 "
GREEDY_TOKENS = 24


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


def check_in_transformers(model: GPT, source: FoundModel, folder: Path):
    """ValueError if the transformers library makes other logits, token ids or greedy text of the
    folder than we do.

    source: the checkpoint that `model` is of, with its tokenizer and chat template.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it fills pipes with carriage returns
    logging.set_verbosity_error()
    # The model file of a table by n-grams, which was copied there just now
    trusted = {"trust_remote_code": True} if model.config.ngram_rows else {}
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **trusted)
    difference, largest = largest_difference(model, lambda idx: theirs(idx).logits, model.config)
    print_note(f"max |difference of logits| through transformers: {difference:.1e}")
    if difference > 1e-4 * max(1.0, largest):
        raise ValueError(
            f"the export is another model in transformers: logits differ by {difference:.1e}"
        )

    tokenizer = source.tokenizer
    their_tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
    texts = nasty_texts(tokenizer)
    for text in texts:
        if their_tokenizer(text)["input_ids"] != tokenizer.encode(text):
            raise ValueError(
                f"the export is another model in transformers: token ids differ for {text[:60]!r}"
            )
    print_note(f"token ids are equal for {len(texts)} texts")

    prompt = fitting_text(tokenizer, model.config.block_size // 2)
    inputs = their_tokenizer(their_tokenizer.eos_token + prompt, return_tensors="pt")
    same_greedy_text(model, source.encode(prompt), theirs, inputs, "a plain prompt")
    if source.template in TEMPLATES:
        messages = [{"role": "user", "content": fitting_text(tokenizer, 8)}]
        text, space = chat_prompt(messages, source.template)
        if not answers_begin_with_a_space(source.template, tokenizer):
            text += space
        inputs = their_tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        same_greedy_text(model, source.encode(text), theirs, inputs, "a chat")


def nasty_texts(tokenizer: Tokenizer) -> list[str]:
    """Long numbers, spaces, code, scripts, emoji: what tokenizers cut differently. Without special
    tokens, which transformers makes of text, and we do not."""
    texts = [*NASTY, TEXT, "12345 1234567890123 3.14159 0x1F 1_000", "x  =  [ 1,\t2 ]\n\n\n\t}"]
    if tokenizer.kind == "char":
        texts = [known_part(text, tokenizer.pieces) for text in texts]
    added = tokenizer.file["added_tokens"] if tokenizer.file else []
    special = [*tokenizer.specials, *(token["content"] for token in added if token["special"])]
    return [text for text in texts if not any(token in text for token in special)]


def fitting_text(tokenizer: Tokenizer, n_ids: int) -> str:
    """The beginning of a text that has so many ids at most."""
    text = TEXT
    if tokenizer.kind == "char":
        text = known_part(TEXT, tokenizer.pieces)
    while text and len(tokenizer.encode(text)) > n_ids:
        text = text[:-1]
    return text


def same_greedy_text(model: GPT, ids: list[int], theirs: Callable, inputs: dict, asked: str):
    """ValueError if the likeliest continuation in transformers is another than ours.

    Of two tokens that are equally likely, up to rounding, either may be taken. ids: of the prompt,
    as we read it. inputs: of the same prompt, as their tokenizer makes them.
    """
    if inputs["input_ids"][0].tolist() != ids:
        raise ValueError(f"the export is another model in transformers: {asked} has other ids")
    n_new = min(GREEDY_TOKENS, model.config.block_size - len(ids))
    if n_new < 1:
        print_note(f"greedy text was not compared for {asked}: it fills the context")
        return
    continued = theirs.generate(
        **inputs,
        max_new_tokens=n_new,
        do_sample=False,
        eos_token_id=None,
        top_k=None,
        temperature=None,
    )
    n_equal = 0
    for their_id in continued[0, len(ids) :].tolist():
        with torch.inference_mode():
            logits = model(torch.tensor([ids]))[0, -1, : model.config.vocab_size]
        if logits.max() - logits[their_id] > 1e-4 * max(1.0, logits.abs().max().item()):
            raise ValueError(
                f"the export is another model in transformers: {asked} continues otherwise after "
                f"{n_equal} tokens"
            )
        ids = [*ids, their_id]
        n_equal += 1
    print_note(f"greedy text of {n_equal} tokens is equal for {asked}")


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
