"""Byte-level BPE from a tokenizer.json of Hugging Face's tokenizers library."""

from dataclasses import dataclass
from pathlib import Path

from lathe.text.gpt2 import EOT, GPT2_PATTERN, printable_bytes

OTHER_ENDS = ("</s>", "<|end_of_text|>", "<|im_end|>", "<eos>")  # what others call end-of-text


@dataclass
class ByteLevelBPE:
    """What a Tokenizer is made of, see there."""

    pieces: list[bytes]
    specials: dict[str, int]
    pattern: str
    normalization: str


def read_byte_level_bpe(about: dict, path: Path) -> ByteLevelBPE:
    """The BPE that `about`, the content of the tokenizer.json at `path`, describes.

    Its ids must follow its merges, since tiktoken, which runs it here, merges by id. Raises
    ValueError for other kinds of tokenizers and for rules that tiktoken has no equal of.
    """
    try:
        model = about["model"]
        cutting = about["pre_tokenizer"]
        steps = cutting.get("pretokenizers", [cutting])  # of a sequence, or the only one
        vocab = model["vocab"]
        merges = [_pair(merge) for merge in model["merges"]]
        patterns = _patterns(steps)
        specials = {token["content"]: token["id"] for token in about["added_tokens"]}
        pieces = _pieces(vocab, specials)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a byte-level BPE: lathe reads its own tokenizer files and "
            f"Hugging Face's byte-level BPE, not this ({error!r} is missing)"
        ) from error

    merged_ids = [vocab["".join(pair)] for pair in merges]
    normalizer = about.get("normalizer") or {"type": ""}
    normalization = normalizer.get("type")
    runs_in_tiktoken = (
        model["type"] == "BPE"
        and len(patterns) == 1
        and normalization in ("", "NFC")
        and merged_ids == sorted(merged_ids)
    )
    if not runs_in_tiktoken:
        raise ValueError(
            f"{path}: this tokenizer's rules (normalizer, several patterns, or ids out of merge "
            f"order) have no equal among byte-level BPEs that tiktoken runs"
        )
    if EOT not in specials:
        end = next((text for text in OTHER_ENDS if text in specials), None)
        if end is None:
            raise ValueError(
                f"{path} has no end-of-text token: none of {EOT}, {', '.join(OTHER_ENDS)}"
            )
        specials[EOT] = specials.pop(end)
    return ByteLevelBPE(pieces, specials, patterns[0], normalization)


def _pair(merge: str | list[str]) -> list[str]:
    """The two parts of a merge, which older files write as one string with a space between."""
    if isinstance(merge, str):
        return merge.split(" ")
    return merge


def _patterns(steps: list[dict]) -> list[str]:
    """Every rule by which the steps cut text."""
    patterns = [step["pattern"]["Regex"] for step in steps if step["type"] == "Split"]
    for step in steps:
        if step["type"] == "ByteLevel" and step.get("use_regex", True):
            patterns.append(GPT2_PATTERN)
    return patterns


def _pieces(vocab: dict[str, int], specials: dict[str, int]) -> list[bytes]:
    """Bytes of each id, b"" for specials and for ids that nothing has."""
    byte_of = printable_bytes()
    n_ids = max([*vocab.values(), *specials.values()]) + 1
    pieces = [b""] * n_ids
    for token, i in vocab.items():
        if token not in specials:
            pieces[i] = bytes(byte_of[character] for character in token)
    return pieces
