"""What files beside a tokenizer.json add to its rules, and those in its place: vocab.json and
merges.txt."""

from pathlib import Path
from typing import Any

from lathe.json_text import read_json
from lathe.terminal import print_note
from lathe.text.gpt2 import EOT
from lathe.text.hugging_face import special_token, steps_of
from lathe.text.patterns import QWEN2_PATTERN

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
GPT2_CLASSES = ("gpt2", "starcoder2", "GPT2Tokenizer", "GPT2TokenizerFast")
# Classes that in transformers 5 make their own rules of a vocabulary, whatever a file has, and the
# types of models that have them where tokenizer_config.json names no class
REBUILT = {
    "GPT2Tokenizer": ["ByteLevel"],
    "CodeGenTokenizer": ["ByteLevel"],
    "GPTNeoXTokenizer": ["NFC", "ByteLevel"],
    "CohereTokenizer": ["NFC", "Digits", "ByteLevel"],
    "Qwen2Tokenizer": ["NFC", "Split", "ByteLevel"],
}
# Types of models of which transformers 5 takes the file's rules, whatever class is named
AS_IN_FILE = ("mistral", "phi3", "granite")
CLASS_OF = {"gpt2": "GPT2Tokenizer", "starcoder2": "GPT2Tokenizer", "qwen3": "Qwen2Tokenizer"}


def read_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def text_of(token: Any) -> str | None:
    """Of a token as tokenizer_config.json names it: its text, or an object with that."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def complete(content: dict, path: Path) -> dict:
    """`content` of the tokenizer.json at `path` with the tokens that files beside it name, as
    transformers adds them. ValueError names what contradicts it."""
    about = read_if_there(path.with_name("tokenizer_config.json"))
    refuse_prefix_space(content, about, path)
    say_what_transformers_ignores(content, about, path)
    vocab = content["model"].get("vocab") or {}
    ids = dict(vocab) if isinstance(vocab, dict) else {text: i for i, (text, _) in enumerate(vocab)}
    added = list(content.get("added_tokens") or [])
    ids |= {token["content"]: token["id"] for token in added}
    known = {token["content"] for token in added}
    next_id = 1 + max([*ids.values(), -1])
    for token in named_tokens(about, path):
        text = token["content"]
        i = token.get("id", ids.get(text))
        if i is None:  # a special token that no text needs
            continue
        if ids.setdefault(text, i if i == next_id else None) != i:
            raise ValueError(
                f"{path}: the files beside it (added_tokens_decoder, added_tokens.json) have "
                f"{text!r} as token {i}, and {path.name} {has(ids[text], next_id)}"
            )
        next_id = max(next_id, i + 1)
        if text not in known:
            known.add(text)
            added.append(special_token(text, i) | token | {"id": i})
    return content | {"added_tokens": added}


def has(i: int | None, next_id: int) -> str:
    return f"lacks it; the next would be {next_id}" if i is None else f"has it as {i}"


def named_tokens(about: dict, path: Path) -> list[dict]:
    """Tokens that are no part of tokenizer.json, as its added_tokens; without ids where those are
    the vocabulary's. about: tokenizer_config.json."""
    tokens = []
    for i, token in (about.get("added_tokens_decoder") or {}).items():
        tokens.append({**token, "id": int(i)})
    beside = read_if_there(path.with_name("added_tokens.json"))
    if not tokens:
        plain = {"special": False, "normalized": True}
        tokens = [{"content": text, "id": i, **plain} for text, i in beside.items()]
    tokens.sort(key=lambda token: token["id"])
    names = about | read_if_there(path.with_name("special_tokens_map.json"))
    extra = names.get("additional_special_tokens") or names.get("extra_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else list(extra)
    texts = [text_of(token) for token in [*(names.get(role) for role in ROLES), *extra]]
    return tokens + [{"content": text} for text in texts if text]


def refuse_prefix_space(content: dict, about: dict, path: Path):
    """ValueError where one file puts a space before each text, and the other does not."""
    steps = steps_of(content, "pre_tokenizer")
    byte_level = [step for step in steps if step["type"] == "ByteLevel"]
    metaspace = [step for step in steps if step["type"] == "Metaspace"]
    is_in_file = any(step["add_prefix_space"] for step in byte_level)
    is_in_file |= any(step.get("prepend_scheme", "always") != "never" for step in metaspace)
    asked = "true" if about.get("add_prefix_space") else ""
    if about.get("add_prefix_space") is None and metaspace and is_llamas(about, path):
        asked = "missing, which for LlamaTokenizer is true,"
    if (byte_level or metaspace) and asked and not is_in_file:
        raise ValueError(
            f"{path}: add_prefix_space is {asked} in tokenizer_config.json and false in "
            f"{path.name}: which one holds depends on the version of transformers"
        )


def is_llamas(about: dict, path: Path) -> bool:
    """Whether transformers 5 makes a LlamaTokenizer of the folder."""
    config = read_if_there(path.with_name("config.json"))
    name = about.get("tokenizer_class")
    is_named = name in ("LlamaTokenizer", "LlamaTokenizerFast")
    return is_named and config.get("model_type") not in (*AS_IN_FILE, "qwen2")


def say_what_transformers_ignores(content: dict, about: dict, path: Path):
    """A note where the file's rules are not those that REBUILT has for its class."""
    model_type = read_if_there(path.with_name("config.json")).get("model_type")
    name = about.get("tokenizer_class") or CLASS_OF.get(model_type)
    if model_type == "qwen2":  # whatever class is named
        name = "Qwen2Tokenizer"
    own = None
    if isinstance(name, str) and model_type not in AS_IN_FILE:
        own = REBUILT.get(name.removesuffix("Fast"))
    steps = [*steps_of(content, "normalizer"), *steps_of(content, "pre_tokenizer")]
    rules = [step["type"] for step in steps]
    patterns = [step["pattern"] for step in steps if step["type"] == "Split"]
    if content["model"].get("ignore_merges"):
        rules.append("ignore_merges")
    if own and (rules != own or patterns not in ([], [{"Regex": QWEN2_PATTERN}])):
        print_note(
            f"{path}: its rules ({', '.join(rules) or 'none'}) hold here. transformers 5 makes "
            f"those of {name} instead ({', '.join(own)}), and so other ids"
        )


def read_vocab_and_merges(folder: Path) -> dict:
    """What a tokenizer.json would hold of a GPT-2 folder that has vocab.json and merges.txt alone.
    ValueError for another model's, whose rules these two do not tell."""
    config = read_if_there(folder / "config.json")
    about = read_if_there(folder / "tokenizer_config.json")
    whose = about.get("tokenizer_class") or config.get("model_type") or "gpt2"
    if whose not in GPT2_CLASSES:
        raise ValueError(
            f"{folder} has no tokenizer.json, and vocab.json and merges.txt do not tell the rules "
            f"of {whose}: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of "
            "transformers writes it"
        )
    vocab = read_json(folder / "vocab.json")
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / 'merges.txt'} is not UTF-8 at byte {error.start}") from error
    merges = [line for line in lines if line and not line.startswith("#version")]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": about.get("add_prefix_space", False),
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "added_tokens": [special_token(EOT, vocab[EOT])] if EOT in vocab else [],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
