"""tokenizer.json and chat templates, both ways."""

import json
from pathlib import Path

from lathe.text.chat import TEMPLATES
from lathe.text.gpt2 import EOT
from lathe.text.hugging_face import their_file
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use.hf.find import read_file

# -----------------------------------------------------------------------------
# Writing


def write_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int, template: str = ""):
    """tokenizer.json and tokenizer_config.json, with the chat template of that name, if any."""
    text = json.dumps(their_file(tokenizer.rules), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    end = end_of_text(tokenizer)
    config = {
        # Without the class, transformers would guess one from the model and change the ids.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
    }
    if template in TEMPLATES:
        config["chat_template"] = their_template(template)
    text = json.dumps(config, indent=1) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def end_of_text(tokenizer: Tokenizer) -> str:
    """The token that ends a text, as the folder calls it."""
    added = tokenizer.file["added_tokens"] if tokenizer.file else []
    return next((token["content"] for token in added if token["id"] == tokenizer.eot_id), EOT)


def their_template(name: str) -> str:
    """One of our chat templates in Jinja: applied, it gives the text of a document that
    prepare/pairs.py makes."""
    roles = TEMPLATES[name]
    jinja = "{{ bos_token }}{% for message in messages %}"
    for role, form in roles.items():
        begin, _, end = form.partition("{}")
        jinja += "{% if message['role'] == " + repr(role) + " %}"
        jinja += "{{ " + repr(begin) + " + message['content'] | trim }}"
        if role == "assistant":
            jinja += "{% if loop.last %}{{ eos_token }}{% else %}{{ " + repr(end) + " }}{% endif %}"
        else:
            jinja += "{{ " + repr(end) + " }}"
        jinja += "{% endif %}"
    jinja += "{% endfor %}"
    before_answer, _, _ = roles["assistant"].partition("{}")
    prompt = before_answer.rstrip(" ")
    return jinja + "{% if add_generation_prompt %}{{ " + repr(prompt) + " }}{% endif %}"


# -----------------------------------------------------------------------------
# Reading


def load_hf_tokenizer(folder: Path) -> tuple[Tokenizer, list[int], tuple[int, ...]]:
    """(tokenizer, ids that begin a text, ids that end one) of a folder. FileNotFoundError where
    there is no tokenizer."""
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{folder / 'tokenizer.json'} is missing: without it there is no text"
        )
    config = read_file(folder / "config.json")
    generation = {}
    if (folder / "generation_config.json").is_file():
        generation = read_file(folder / "generation_config.json")

    bos = config.get("bos_token_id")
    begin = [bos] if bos in tokenizer.specials.values() else []

    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    if eos is None:
        ends = []
    elif isinstance(eos, list):
        ends = eos
    else:
        ends = [eos]
    if not all(isinstance(end, int) for end in ends):
        raise ValueError(f"{folder}: eos_token_id is {eos}, not a token's number or several")
    if any(not 0 <= end < 2**31 for end in ends):
        raise ValueError(f"{folder}: eos_token_id is {eos!r:.60}, no token's number")
    ends = tuple(dict.fromkeys([*ends, tokenizer.eot_id]))  # each once
    return tokenizer, begin, ends


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; for a GPT-2 without its files the gpt2 encoding; None if there is
    none."""
    names = ("tokenizer.json", "vocab.json")
    if any((folder / name).is_file() for name in names):
        return load_tokenizer(folder)
    config = read_file(folder / "config.json")
    is_gpt2 = config.get("model_type") == "gpt2" and config.get("vocab_size", 50257) >= 50257
    return load_tokenizer("gpt2") if is_gpt2 else None
