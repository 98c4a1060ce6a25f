"""tokenizer.json and chat templates, both ways."""

import json
from collections.abc import Iterator
from pathlib import Path

from lathe.text.chat import TEMPLATES
from lathe.text.gpt2 import EOT, GPT2_PATTERN, printable_bytes
from lathe.text.tokenizer import Tokenizer, load_tokenizer, train_char
from lathe.use.hf.find import read_json


def their_tokenizer(tokenizer: Tokenizer) -> dict:
    """tokenizer.json of the tokenizers library with the same ids for every text without special tokens."""
    specials = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for text, i in sorted(tokenizer.specials.items(), key=lambda item: item[1])
    ]  # fmt: skip
    normalizer = {"type": tokenizer.normalization} if tokenizer.normalization else None
    out = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None, "added_tokens": specials,
           "normalizer": normalizer}  # fmt: skip
    if tokenizer.kind == "char":  # WordLevel without an unknown token refuses what it does not know, as ours does
        vocab = {piece.decode(): i for i, piece in enumerate(tokenizer.pieces) if piece}
        split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
        return out | {"pre_tokenizer": split, "decoder": {"type": "Fuse"}, "model": model}
    stand_in = {byte: char for char, byte in printable_bytes().items()}
    written = {piece: "".join(stand_in[b] for b in piece) for piece in tokenizer.pieces if piece}
    ranks = {piece: i for i, piece in enumerate(tokenizer.pieces) if piece}
    own_rule = tokenizer.kind == "bpe" and tokenizer.pattern == GPT2_PATTERN  # the library's built-in one
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own_rule}
    before = level
    if tokenizer.kind == "bpe" and not own_rule:
        split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
        before = {"type": "Sequence", "pretokenizers": [split, level]}
    merges = [[written[a], written[b]] for a, b in merges_of(ranks)] if tokenizer.kind == "bpe" else []
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {written[piece]: i for piece, i in ranks.items()}, "merges": merges,
    }  # fmt: skip
    return out | {"pre_tokenizer": before, "decoder": level, "model": model}


def merges_of(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pair that each token was merged from, in order: what is left of its bytes when earlier merges are done."""
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([b]) for b in piece]
        while len(parts) > 2:
            pairs = [(ranks.get(a + b, rank), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))]
            best, i = min(pairs)
            if best >= rank:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def their_template(name: str) -> str:
    """One of our chat templates in Jinja: applied, it gives the text of a document that prepare/pairs.py makes."""
    form = {role: text.partition("{}") for role, text in TEMPLATES[name].items()}
    parts = ["{{ bos_token }}{% for message in messages %}"]
    for role, (begin, _, end) in form.items():
        last = "{% if loop.last %}{{ eos_token }}{% else %}{{ %r }}{% endif %}".replace("%r", repr(end))
        parts.append(f"{{% if message['role'] == {role!r} %}}{{{{ {begin!r} + message['content'] | trim }}}}")
        parts.append((last if role == "assistant" else f"{{{{ {end!r} }}}}") + "{% endif %}")
    prompt = form["assistant"][0].rstrip(" ")
    return "".join(parts) + f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {prompt!r} }}}}{{% endif %}}"


def write_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int, template: str = ""):
    text = json.dumps(their_tokenizer(tokenizer), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    about = {  # without the class, transformers would guess one from the model and change the ids
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOT, "eos_token": EOT, "pad_token": EOT,
        "model_max_length": block_size, "clean_up_tokenization_spaces": False, "add_bos_token": False,
    }  # fmt: skip
    if template in TEMPLATES:
        about["chat_template"] = their_template(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; for a GPT-2 without its files the gpt2 encoding; None if there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        about = read_json(folder / "config.json")
        known = about.get("model_type") == "gpt2" and about.get("vocab_size", 50257) >= 50257
        return load_tokenizer("gpt2") if known else None
    about = read_json(path)
    model, added = about.get("model", {}), {t["content"]: t["id"] for t in about.get("added_tokens", [])}
    if model.get("type") == "WordLevel" and set(added) == {EOT}:
        characters = sorted((t for t in model["vocab"] if t != EOT), key=model["vocab"].get)
        if [model["vocab"][t] for t in characters] == list(range(added[EOT])) and all(len(t) == 1 for t in characters):
            return train_char([set(characters)])
    if model.get("type") == "BPE" and not model["merges"] and len(model["vocab"]) == 256:
        return load_tokenizer("byte")
    return load_tokenizer(path)


def load_hf_tokenizer(folder: Path) -> tuple[Tokenizer, list[int], tuple[int, ...]]:
    """(tokenizer, ids that begin a text, ids that end one) of a folder. ValueError where there is no tokenizer."""
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise FileNotFoundError(f"{folder / 'tokenizer.json'} is missing: without it there is no text")
    about = read_json(folder / "config.json")
    more = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    ends = more.get("eos_token_id", about.get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    begin = about.get("bos_token_id")
    special = set(tokenizer.specials.values())
    return tokenizer, [begin] if begin in special else [], tuple(dict.fromkeys([*ends, tokenizer.eot_id]))
