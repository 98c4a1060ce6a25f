"""Tokenizers that the tokenizers library runs: their bytes per id, and what is refused.

Ids are the library's own. What is checked here is that they keep the text: that the bytes of the
ids, one after the other, are the text again, for a fixed set of nasty strings.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lathe.reading import what_went_wrong
from lathe.terminal import print_note
from lathe.text.beside import read_if_there, text_of
from lathe.text.gpt2 import EOT, printable_bytes
from lathe.text.hugging_face import Rules, steps_of
from lathe.text.trial import needs_trial, try_rules

if TYPE_CHECKING:
    import tokenizers

# What others call end-of-text
OTHER_ENDS = (
    "</s>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
)
SPACE = "▁"  # how SentencePiece's vocabularies, such as Llama 2's, write a space
EVERY_61ST = "".join(chr(c) for c in range(0, 0x110000, 61) if not 0xD800 <= c < 0xE000)
NASTY = [
    *["", " ", "  ", " a", "  a", "a ", "a  ", "a  b", "\n", "\n\n\n", " \n a", "\r\n", "\t\ta"],
    *["The QUICK brown fox's 3 déjà-vus, don't we'LL 'S", "HELLO Hello hello", "I\u0307 ı ſ ß"],
    *["1", "12", "123", "1234", "12345678901", " 12 345", "3.14", "a1b22c333", "½Ⅷ²৩৪५"],
    *[
        "e\u0301 caf\xe9 cafe\u0301",
        "ﬁ ﬀ Å Ω ① ｱ",
        "가각 \u1100\u1161",
        "日本語テキスト。中文，没有空格",
    ],
    *[
        "العربية עברית हिन्दी ไทย",
        "🎉👩‍💻🇩🇪\ufe0f",
        "𝔘𝕏",
        "a\u200bb\u200d\ufeff\u00ad\xa0",
        "\0\x1f\x7f\x85",
    ],
    *[
        "def f(x):\n    return x  # why?\n\n\n",
        "x=1;y==2!=3<=>",
        "a_b-c/d\\e",
        "(((...)))",
        "!?!?  ...",
    ],
    *["<0x0A>", "<unk>", "[UNK]", "</w>", "##a", "a@@ b", "Ġ Ċ", "a" * 300, "ab" * 200, "=" * 99],
    "".join(chr(c) for c in range(0x500)),
    EVERY_61ST.replace(SPACE, ""),
]


def read_with_library(content: dict, specials: dict[str, int], path: Path) -> Rules:
    """The rules of a tokenizer.json that the library runs. specials: {text: id}, with end-of-text,
    of tokens that are no text. Raises ValueError with the part by whose fault text would be lost.
    """
    content = settled(content, specials)
    if content["model"].get("dropout"):
        raise ValueError(
            f"{path}: model: dropout={content['model']['dropout']} gives a text other ids each "
            "time; set it to null"
        )
    rules = Rules("hf", pieces_of(content, specials), specials, file=content)
    try_steps(rules, path)
    check_text(rules, path)
    if puts_space_first(open_library(content), rules.pieces):
        print_note(
            f"{path}: this tokenizer puts a space before every text that it is given, and so also "
            "before each part of a document too long to be read at once, and before an answer"
        )
    return rules


def say_what_is_left_out(content: dict, path: Path):
    for part in ("truncation", "padding"):
        if content.get(part):
            print_note(f"{path}: its {part} is not applied: texts are used whole")


def settled(content: dict, specials: dict[str, int]) -> dict:
    """`content` with what decides the ids of a text alone: never cut, filled up or framed."""
    content = deepcopy(content)
    content.update(truncation=None, padding=None, post_processor=None)
    for token in content["added_tokens"]:
        token["special"] = token["id"] in specials.values()
    return content


def open_library(content: dict) -> "tokenizers.Tokenizer":
    """The library's tokenizer, to which special tokens in a text are ordinary text."""
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library has no class of its own for them
        reason = what_went_wrong(error)
        raise ValueError(f"the tokenizers library cannot read this file: {reason}") from error
    library.encode_special_tokens = True
    return library


def special_tokens(content: dict, path: Path) -> dict[str, int]:
    """{text: id} of the tokens that are no text, the one that ends a text as "<|endoftext|>".

    A token that the file does not call special stands in texts, such as <think>, and is not among
    them. But the one that ends a text always is, and so are others of such a name that would take
    the spaces around them away (Phi-3's </s>).
    """
    added = content.get("added_tokens") or []
    special = {token["content"]: token["id"] for token in added if token.get("special")}
    ordinary = {token["content"]: token for token in added if not token.get("special")}
    named = end_named_beside(path)
    ends = [EOT, *OTHER_ENDS, *([named] if named else [])]
    in_order = [EOT, *(end for end in ends if end in special), *ends]
    end = next((end for end in in_order if end in special or end in ordinary), None)
    if end is None:
        raise ValueError(
            f"{path} has no end-of-text token: none of {EOT}, {', '.join(OTHER_ENDS)}, and no "
            "eos_token in a tokenizer_config.json beside it"
        )
    for text in ends:
        token = ordinary.get(text, {})
        takes_spaces = token.get("lstrip") or token.get("rstrip")
        if takes_spaces:
            print_note(
                f"{path}: {text!r} in a text is ordinary text here, as special tokens are: the "
                "file makes it a token that takes the spaces beside it away"
            )
        if takes_spaces or (token and text == end):
            special[text] = token["id"]
    special[EOT] = special.pop(end)
    return special


def end_named_beside(path: Path) -> str | None:
    return text_of(read_if_there(path.with_name("tokenizer_config.json")).get("eos_token"))


# -----------------------------------------------------------------------------
# Bytes of ids


def pieces_of(content: dict, specials: dict[str, int]) -> list[bytes]:
    """Bytes of each id, b"" for specials and for ids that nothing has."""
    vocab = content["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: [text, score] in the order of ids
        vocab = {text: i for i, (text, _) in enumerate(vocab)}
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    steps = [
        s for part in ("normalizer", "pre_tokenizer", "decoder") for s in steps_of(content, part)
    ]
    is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
    writes_spaces = any(
        step["type"] == "Metaspace"
        or step["type"] == "Replace"
        and SPACE in json.dumps(step, ensure_ascii=False)
        for step in steps
    )
    byte_of = printable_bytes()
    pieces = [b""] * (1 + max([*vocab.values(), *added.values()]))
    for text, i in (vocab | added).items():
        if is_byte_level and text not in added and all(letter in byte_of for letter in text):
            pieces[i] = bytes(byte_of[letter] for letter in text)
        elif content["model"].get("byte_fallback") and is_byte_name(text):
            pieces[i] = bytes([int(text[3:5], 16)])
        else:
            shown = text.replace(SPACE, " ") if writes_spaces else text
            pieces[i] = shown.encode("utf-8", "replace")
    for i in specials.values():
        pieces[i] = b""
    return pieces


def is_byte_name(text: str) -> bool:
    """Whether it is <0x00> to <0xFF>."""
    is_named = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return is_named and all(digit in "0123456789ABCDEF" for digit in text[3:5])


# -----------------------------------------------------------------------------
# Checks


def same_ids(rules: Rules, encode: Callable[[str], list[int]], content: dict) -> bool:
    """Whether `encode`, which follows `rules`, gives the library's ids of all nasty strings; True
    where the library is not installed."""
    try:
        library = open_library(content | {"truncation": None, "padding": None})
    except ImportError:
        return True
    texts = NASTY
    if rules.kind == "char":
        texts = [known_part(text, rules.pieces) for text in texts]
    return all(library.encode(t, add_special_tokens=False).ids == encode(t) for t in texts)


def known_part(text: str, characters: list[bytes]) -> str:
    """What is left of a text for a tokenizer of these characters alone."""
    known = {character.decode() for character in characters}
    return "".join(character for character in text if character in known)


def try_steps(rules: Rules, path: Path):
    """ValueError if what comes before the model could take for ever, or all memory."""
    if needs_trial(steps_before_model(rules.file)):
        before_model = {part: rules.file.get(part) for part in ("normalizer", "pre_tokenizer")}
        try_rules("tokenizers", before_model, nasty_texts(rules), path)


def steps_before_model(content: dict) -> list[dict]:
    return steps_of(content, "normalizer") + steps_of(content, "pre_tokenizer")


def nasty_texts(rules: Rules) -> list[str]:
    """Those of all tokenizers, and some with this one's own tokens."""
    added = rules.file["added_tokens"]
    special_ids = set(rules.specials.values())
    special = [token["content"] for token in added if token["id"] in special_ids]
    ordinary = [rules.pieces[token["id"]].decode() for token in added if not token["special"]]
    return [*NASTY, *special, *(f"a{text}b {text} c" for text in [*special, *ordinary])]


def check_text(rules: Rules, path: Path):
    """ValueError, naming the part, if ids lose or change a text, or if a text gets a special id."""
    added = rules.file["added_tokens"]
    special_ids = set(rules.specials.values())
    model = f"model {rules.file['model'].get('type', 'BPE')}"
    try:
        library = open_library(rules.file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for text in nasty_texts(rules):
        try:
            kept = keeps(library, rules, text)
        except Exception as error:  # as above
            reason = what_went_wrong(error)
            raise ValueError(f"{path}: {model} has no ids for {text!r:.60}: {reason}") from error
        for i in special_ids.intersection(kept.ids):
            name = next(token["content"] for token in added if token["id"] == i)
            raise ValueError(
                f"{path}: {model} takes {name!r:.60} in a text for the special token, and so a "
                "text could end anywhere"
            )
        if not kept.same:
            part = part_at_fault(rules, text)
            raise ValueError(
                f"{path}: {part} does not keep the text: {kept.expected!r} comes back as "
                f"{kept.back!r}; lathe reads only tokenizers whose ids are the whole text"
            )


@dataclass
class Kept:
    """What became of a text."""

    ids: list[int]
    same: bool
    expected: str  # around the first difference
    back: str


def keeps(library: "tokenizers.Tokenizer", rules: Rules, text: str) -> Kept:
    """Whether the bytes of a text's ids are the text: in NFC where that is the tokenizer's, and
    after one space where it puts one before every text."""
    ids = library.encode(text, add_special_tokens=False).ids
    back = b"".join(rules.pieces[i] for i in ids).decode("utf-8", "replace")
    expected = text
    if any(step["type"] == "NFC" for step in steps_of(rules.file, "normalizer")):
        expected = normalize_nfc(text)
    if text and puts_space_first(library, rules.pieces):
        expected = " " + expected
    pairs = enumerate(zip(expected, back, strict=False))
    i = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(back)))
    near = slice(max(0, i - 8), i + 8)
    return Kept(ids, back == expected, expected[near], back[near])


def puts_space_first(library: "tokenizers.Tokenizer", pieces: list[bytes]) -> bool:
    """Whether every text gets a space before it, as Llama 2's do."""
    ids = library.encode("a", add_special_tokens=False).ids
    return b"".join(pieces[i] for i in ids) == b" a"


def part_at_fault(rules: Rules, text: str) -> str:
    """The step or added token without which `text` would be kept, else all parts by name."""
    for name, content in with_one_part_less(rules.file):
        try:
            library = open_library(content)
            without = Rules("hf", pieces_of(content, rules.specials), rules.specials, file=content)
            if keeps(library, without, text).same:
                return name
        except Exception:  # nothing works without this part
            continue
    parts = [f"model {rules.file['model'].get('type', 'BPE')}"]
    for part in ("normalizer", "pre_tokenizer"):
        parts += [f"{part} {step['type']}" for step in steps_of(rules.file, part)]
    return ", ".join(parts)


def with_one_part_less(content: dict) -> Iterator[tuple[str, dict]]:
    """(name of a part, `content` without it, or with that part doing less)."""
    for part, list_name in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        steps = steps_of(content, part)
        for i, step in enumerate(steps):
            options = {key: value for key, value in step.items() if key != "type"}
            name = f"{part} {step['type']} {json.dumps(options, ensure_ascii=False)[:100]}"
            less = [[], [step | {"add_prefix_space": False}], [step | {"prepend_scheme": "never"}]]
            for instead in less:
                others = [*steps[:i], *instead, *steps[i + 1 :]]
                yield name, content | {part: {"type": "Sequence", list_name: others}}
    for token in content["added_tokens"]:
        if not token["special"]:
            options = [key for key, value in token.items() if value is True]
            name = f"added token {token['content']!r:.60} ({', '.join(options) or 'as it is'})"
            others = [other for other in content["added_tokens"] if other is not token]
            yield name, content | {"added_tokens": others}


def normalize_nfc(text: str) -> str:
    """Unicode's form C as the library has it: Python's own depends on the version of Python."""
    from tokenizers.normalizers import NFC

    return NFC().normalize_str(text)
