"""tokenizer.json of Hugging Face's tokenizers library: our kinds written as one, and known again.

Only a file whose every rule has an equal here is read as one of ours and run by tiktoken, which is
several times as fast. All others are run by the library itself, see library.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lathe.text.gpt2 import EOT, GPT2_PATTERN, printable_bytes
from lathe.text.patterns import SAME_IN_TIKTOKEN, in_oniguruma


@dataclass
class Rules:
    """What a Tokenizer is made of, see there."""

    kind: Literal["byte", "char", "bpe", "hf"]
    pieces: list[bytes]
    specials: dict[str, int]
    pattern: str = ""
    normalization: str = ""
    file: dict | None = None  # of kind "hf": the content of its tokenizer.json


# -----------------------------------------------------------------------------
# Writing


def their_file(rules: Rules) -> dict:
    """tokenizer.json of the tokenizers library with the same ids for every text without special
    tokens."""
    if rules.kind == "hf":
        return rules.file
    steps = character_steps(rules) if rules.kind == "char" else byte_level_steps(rules)
    specials = sorted(rules.specials.items(), key=lambda special: special[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "added_tokens": [special_token(text, i) for text, i in specials],
        "normalizer": {"type": rules.normalization} if rules.normalization else None,
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


def character_steps(rules: Rules) -> dict:
    """WordLevel without an unknown token refuses what it does not know, as our tokenizer does."""
    vocab = {piece.decode(): i for i, piece in enumerate(rules.pieces) if piece}
    return {
        "pre_tokenizer": isolated(r"[\s\S]"),
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }


def byte_level_steps(rules: Rules) -> dict:
    """BPE of bytes; a byte tokenizer is one without merges."""
    is_bpe = rules.kind == "bpe"
    ids = {piece: i for i, piece in enumerate(rules.pieces) if piece}
    character_of = {byte: character for character, byte in printable_bytes().items()}
    text_of = {piece: "".join(character_of[byte] for byte in piece) for piece in ids}

    has_builtin_rule = is_bpe and rules.pattern == GPT2_PATTERN
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": has_builtin_rule,
    }
    pre_tokenizer = byte_level
    if is_bpe and not has_builtin_rule:
        steps = [isolated(in_oniguruma(rules.pattern)), byte_level]
        pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}

    merges = []
    if is_bpe:
        merges = [[text_of[a], text_of[b]] for a, b in merges_of(ids)]
    return {
        "pre_tokenizer": pre_tokenizer,
        "decoder": byte_level,
        "model": bpe(text_of, ids, merges),
    }


def bpe(text_of: dict[bytes, str], ids: dict[bytes, int], merges: list[list[str]]) -> dict:
    return {
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
            earliest = min(merged_ids)
            if earliest >= token_id:
                break
            parts = merge_where(parts, [i == earliest for i in merged_ids])
        if len(parts) == 2:
            yield parts[0], parts[1]


def merge_where(parts: list[bytes], is_pair: list[bool]) -> list[bytes]:
    """`parts` with those joined with the next that `is_pair` says; of two that overlap, the
    first."""
    merged = []
    i = 0
    while i < len(parts):
        if i < len(is_pair) and is_pair[i]:
            merged.append(parts[i] + parts[i + 1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


# -----------------------------------------------------------------------------
# Knowing ours again


def read_ours(content: dict, specials: dict[str, int]) -> Rules | None:
    """The rules of `content`, a tokenizer.json, if it is one of ours: if these rules, written
    again, are the same in all that decides ids. specials: {text: id}, with end-of-text."""
    model = content["model"]
    if model.get("type") == "WordLevel":
        rules = character_rules(model, specials)
    elif model.get("type", "BPE") == "BPE":
        rules = byte_level_rules(content, specials)
    else:
        rules = None
    if rules is None:
        return None
    written = their_file(rules)
    same = what_decides_ids(written, specials) == what_decides_ids(content, specials)
    return rules if same else None


def character_rules(model: dict, specials: dict[str, int]) -> Rules | None:
    """Of characters in the order of their ids, which end-of-text's follows."""
    vocab = {text: i for text, i in model["vocab"].items() if i not in specials.values()}
    characters = sorted(vocab, key=vocab.get)
    ids = [vocab[character] for character in characters]
    are_ours = ids == list(range(len(ids))) and specials == {EOT: len(ids)}
    if not are_ours or any(len(character) != 1 for character in characters):
        return None
    pieces = [character.encode("utf-8", "replace") for character in characters]
    return Rules("char", [*pieces, b""], specials)


def byte_level_rules(content: dict, specials: dict[str, int]) -> Rules | None:
    model = content["model"]
    byte_of = printable_bytes()
    pieces = [b""] * (1 + max([*model["vocab"].values(), *specials.values()]))
    for text, i in model["vocab"].items():
        if i in specials.values():
            continue
        if not all(character in byte_of for character in text):
            return None
        pieces[i] = bytes(byte_of[character] for character in text)
    all_bytes = [bytes([byte]) for byte in range(256)]
    n_made_by_merges = sum(len(piece) > 1 for piece in pieces)
    if not set(all_bytes) <= set(pieces) or len(model["merges"]) != n_made_by_merges:
        return None

    if not model["merges"]:
        is_plain = pieces == [*all_bytes, b""] and specials == {EOT: 256}
        return Rules("byte", pieces, specials) if is_plain else None
    steps = steps_of(content, "pre_tokenizer")
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    pattern = SAME_IN_TIKTOKEN.get(patterns[0]) if patterns else GPT2_PATTERN
    normalizers = [step["type"] for step in steps_of(content, "normalizer")]
    if pattern is None or normalizers not in ([], ["NFC"]):
        return None
    return Rules("bpe", pieces, specials, pattern, "".join(normalizers))


def what_decides_ids(content: dict, specials: dict[str, int]) -> dict:
    """The rules of `content` in one form, whatever is left out, and however it is written."""
    model = content["model"]
    kind = model.get("type", "BPE")
    special_ids = set(specials.values())
    added = content.get("added_tokens", [])
    options = ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"]
    if kind == "WordLevel":
        options.append("unk_token")  # a BPE with all bytes needs none
    return {
        "normalizer": steps_of(content, "normalizer"),
        "pre_tokenizer": steps_of(content, "pre_tokenizer"),
        "model": kind,
        "options": [model.get(option) or None for option in options],
        "vocab": {text: i for text, i in model["vocab"].items() if i not in special_ids},
        "merges": [pair_of(merge) for merge in model.get("merges", [])],
        "tokens in text": [token for token in added if token["id"] not in special_ids],
    }


def steps_of(content: dict, part: str) -> list[dict]:
    """The steps of a normalizer, pre_tokenizer or decoder, alone or in sequences, each with the
    defaults of what it leaves out."""
    whole = content.get(part)
    if whole is None:
        return []
    if whole["type"] == "Sequence":
        (name,) = set(whole) - {"type"}  # pretokenizers, normalizers or decoders
        return [step for inner in whole[name] for step in steps_of({part: inner}, part)]
    step = dict(whole)
    if step["type"] == "ByteLevel":
        step["trim_offsets"] = True  # which moves offsets, not ids
        step.setdefault("use_regex", True)
        step.setdefault("add_prefix_space", True)
    return [step]


def pair_of(merge: str | list[str]) -> list[str]:
    """The two parts of a merge, which older files write as one string with a space between."""
    if isinstance(merge, str):
        return merge.split(" ")
    return list(merge)
