"""tokenizer.json and chat templates, both ways."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from lathe.text.chat import TEMPLATES
from lathe.text.gpt2 import EOT, GPT2_PATTERN, printable_bytes
from lathe.text.tokenizer import Tokenizer, load_tokenizer, train_char
from lathe.use.hf.find import read_json

# -----------------------------------------------------------------------------
# Writing


def write_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int, template: str = ""):
    """tokenizer.json and tokenizer_config.json, with the chat template of that name, if any."""
    text = json.dumps(their_tokenizer(tokenizer), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {
        # Without the class, transformers would guess one from the model and change the ids.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOT,
        "eos_token": EOT,
        "pad_token": EOT,
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
    }
    if template in TEMPLATES:
        config["chat_template"] = their_template(template)
    text = json.dumps(config, indent=1) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def their_tokenizer(tokenizer: Tokenizer) -> dict:
    """tokenizer.json of the tokenizers library with the same ids for every text without special
    tokens."""
    normalizer = {"type": tokenizer.normalization} if tokenizer.normalization else None
    steps = character_steps(tokenizer) if tokenizer.kind == "char" else byte_level_steps(tokenizer)
    specials = sorted(tokenizer.specials.items(), key=lambda special: special[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "added_tokens": [special_token(text, i) for text, i in specials],
        "normalizer": normalizer,
        **steps,
    }


def special_token(text: str, i: int) -> dict:
    return {
        "id": i,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def character_steps(tokenizer: Tokenizer) -> dict:
    """WordLevel without an unknown token refuses what it does not know, as our tokenizer does."""
    vocab = {piece.decode(): i for i, piece in enumerate(tokenizer.pieces) if piece}
    return {
        "pre_tokenizer": isolated(r"[\s\S]"),
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }


def byte_level_steps(tokenizer: Tokenizer) -> dict:
    """BPE of bytes; a byte tokenizer is one without merges."""
    is_bpe = tokenizer.kind == "bpe"
    ids = {piece: i for i, piece in enumerate(tokenizer.pieces) if piece}
    character_of = {byte: character for character, byte in printable_bytes().items()}
    text_of = {piece: "".join(character_of[byte] for byte in piece) for piece in ids}

    has_builtin_rule = is_bpe and tokenizer.pattern == GPT2_PATTERN
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": has_builtin_rule,
    }
    pre_tokenizer = byte_level
    if is_bpe and not has_builtin_rule:
        steps = [isolated(tokenizer.pattern), byte_level]
        pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}

    merges = []
    if is_bpe:
        merges = [[text_of[a], text_of[b]] for a, b in merges_of(ids)]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {text_of[piece]: i for piece, i in ids.items()},
        "merges": merges,
    }
    return {"pre_tokenizer": pre_tokenizer, "decoder": byte_level, "model": model}


def isolated(pattern: str) -> dict:
    """The step that makes a piece of each match."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def merges_of(ids: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pair that each token was merged from, in order: what is left of its bytes when earlier
    merges are done."""
    for token, token_id in sorted(ids.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            merged_ids = [ids.get(a + b, token_id) for a, b in pairwise(parts)]
            first = min(merged_ids)
            if first >= token_id:
                break
            i = merged_ids.index(first)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


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
    config = read_json(folder / "config.json")
    generation = {}
    if (folder / "generation_config.json").is_file():
        generation = read_json(folder / "generation_config.json")

    bos = config.get("bos_token_id")
    begin = [bos] if bos in tokenizer.specials.values() else []

    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    if eos is None:
        ends = []
    elif isinstance(eos, list):
        ends = eos
    else:
        ends = [eos]
    ends = tuple(dict.fromkeys([*ends, tokenizer.eot_id]))  # each once
    return tokenizer, begin, ends


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; for a GPT-2 without its files the gpt2 encoding; None if there is
    none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        config = read_json(folder / "config.json")
        is_gpt2 = config.get("model_type") == "gpt2" and config.get("vocab_size", 50257) >= 50257
        return load_tokenizer("gpt2") if is_gpt2 else None

    content = read_json(path)
    model = content.get("model", {})
    if model.get("type") == "WordLevel":
        characters = ordered_characters(content)
        if characters is not None:
            return train_char([characters])
    if model.get("type") == "BPE" and not model["merges"] and len(model["vocab"]) == 256:
        return load_tokenizer("byte")
    return load_tokenizer(path)


def ordered_characters(content: dict) -> list[str] | None:
    """The characters of a tokenizer.json as `character_steps` makes it, in the order of their ids,
    which end-of-text's follows; None for any other."""
    added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    if set(added) != {EOT}:
        return None
    vocab = {text: i for text, i in content["model"]["vocab"].items() if text != EOT}
    characters = sorted(vocab, key=vocab.get)
    ids = [vocab[character] for character in characters]
    if ids != list(range(added[EOT])) or any(len(text) != 1 for text in characters):
        return None
    return characters
