"""Text to token ids and back: bytes, characters, tiktoken's encodings, byte-level BPE of your own,
and Hugging Face's.

Whatever its kind, a tokenizer is a list of byte strings, one per id, and a way to cut text into
them. It is saved as readable files (tokenizer.json, and tokenizer.tiktoken for BPE) beside every
dataset and checkpoint, so that neither needs anything else to turn ids into text again.

Special tokens are never made from text: "<|endoftext|>" or "<|im_start|>" in a document or a prompt
is ordinary text, with any tokenizer. What a Hugging Face tokenizer adds without calling it special,
such as Qwen3's <think>, is a token wherever it stands, as there.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lathe.json_text import read_json
from lathe.reading import FAULTS, check_kinds, is_of, what_went_wrong
from lathe.terminal import printable
from lathe.text.beside import complete, read_vocab_and_merges
from lathe.text.gpt2 import EOT
from lathe.text.hugging_face import Rules, read_ours, steps_of
from lathe.text.library import (
    NASTY,
    normalize_nfc,
    open_library,
    pieces_of,
    puts_space_first,
    read_with_library,
    same_ids,
    say_what_is_left_out,
    special_tokens,
    try_steps,
)
from lathe.text.meta_pkl import read_characters
from lathe.text.trial import KNOWN, try_rules

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

MOST_IDS = 2**24
TIKTOKEN_ENCODINGS = ("gpt2", "cl100k_base", "o200k_base")


class Tokenizer:
    """A vocabulary and how text is cut into its pieces.

    pieces: text of each id in bytes, b"" for special tokens and for ids that the vocabulary leaves
    out; specials: {text: id}, always with "<|endoftext|>"; pattern: BPE's cutting rule;
    normalization: Unicode form that text is brought into first ("NFC", as Qwen's), or none; file:
    of kind "hf", the content of the tokenizer.json that the tokenizers library runs.
    """

    def __init__(
        self,
        kind: Literal["byte", "char", "bpe", "hf"],
        name: str,
        pieces: list[bytes],
        specials: dict[str, int],
        pattern: str = "",
        normalization: str = "",
        file: dict | None = None,
    ):
        self.kind = kind
        self.name = name
        self.pieces = pieces
        self.specials = specials
        self.pattern = pattern
        self.normalization = normalization
        self.file = file
        self.vocab_size = len(pieces)  # specials included
        self.eot_id = specials[EOT]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. "<|endoftext|>" in it is ordinary text.

        Raises ValueError for a character that a character tokenizer does not know.
        """
        return self.encode_numpy(text).tolist()

    def encode_numpy(self, text: str) -> np.ndarray:
        """`encode` as a uint8 or uint32 array. Lone surrogates become U+FFFD."""
        if self.kind == "char":
            return self._encode_characters(text)
        try:
            utf8 = text.encode()
        except UnicodeEncodeError:
            return self.encode_numpy(replace_lone_surrogates(text))
        if self.kind == "byte":
            return np.frombuffer(utf8, np.uint8)
        try:
            return self._encode_by_library(text)
        except BaseException as error:
            is_panic = type(error).__name__ == "PanicException"  # of Rust's: no Exception
            if not is_panic and not isinstance(error, ValueError):
                raise
            raise ValueError(
                f"tokenizer {self.name} cannot cut {text[:30]!r}...: {what_went_wrong(error)}"
            ) from error

    def _encode_by_library(self, text: str) -> np.ndarray:
        if self.kind == "hf":
            return np.array(self.library.encode(text, add_special_tokens=False).ids, np.uint32)
        if self.brings_into_nfc:
            text = normalize_nfc(text)
        try:
            return self.encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:
            parts = cut_long_gaps(text)
            if len(parts) == 1:
                raise
        ids = [self.encoding.encode_to_numpy(part, disallowed_special=()) for part in parts]
        return np.concatenate(ids)

    def decode(self, ids: Iterable[int], specials: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. Where the tokenizer puts a space
        before every text, as Llama 2's does, that one is left out.

        ids: a list, array or tensor; specials: whether special tokens show. Raises ValueError for
        an id outside the vocabulary.
        """
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        if ids:
            lowest = min(ids)
            highest = max(ids)
            if lowest < 0 or highest >= self.vocab_size:
                raise ValueError(
                    f"token id {lowest if lowest < 0 else highest} is not one of the "
                    f"{self.vocab_size} ids of tokenizer {self.name}"
                )
        pieces = [self.pieces[i] for i in ids]
        if specials:
            shown = {i: text.encode() for text, i in self.specials.items()}
            pieces = [shown.get(i, piece) for i, piece in zip(ids, pieces, strict=True)]
        text = b"".join(pieces).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.puts_space_first else text

    def token_byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int64: bytes of text per id, 0 for specials."""
        return np.fromiter(map(len, self.pieces), np.int64, self.vocab_size)

    @cached_property
    def encoding(self) -> "tiktoken.Encoding":
        """tiktoken's object for this BPE, which does the work."""
        import tiktoken

        return tiktoken.Encoding(
            self.name,
            pat_str=self.pattern,
            mergeable_ranks={piece: i for i, piece in enumerate(self.pieces) if piece},
            special_tokens=self.specials,
        )

    @cached_property
    def library(self) -> "tokenizers.Tokenizer":
        """The tokenizers library's object for kind "hf", which does the work."""
        return open_library(self.file)

    @cached_property
    def puts_space_first(self) -> bool:
        return self.kind == "hf" and puts_space_first(self.library, self.pieces)

    @cached_property
    def brings_into_nfc(self) -> bool:
        if self.kind == "hf":
            return any(step["type"] == "NFC" for step in steps_of(self.file, "normalizer"))
        return self.normalization == "NFC"

    def changes(self, text: str) -> bool:
        """Whether its ids are those of another text, the same one in Unicode's form NFC."""
        return self.brings_into_nfc and not text.isascii() and normalize_nfc(text) != text

    def __getstate__(self) -> dict:
        """For other processes, which make the library's object anew: it forgets on its way that
        special tokens in a text are text."""
        return {name: value for name, value in vars(self).items() if name != "library"}

    @property
    def rules(self) -> Rules:
        return Rules(
            self.kind, self.pieces, self.specials, self.pattern, self.normalization, self.file
        )

    def _encode_characters(self, text: str) -> np.ndarray:
        codepoints = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        last = len(self._id_of_codepoint) - 1
        ids = self._id_of_codepoint[np.minimum(codepoints, last)]
        unknown = ids == self.vocab_size
        if unknown.any():
            names = [f"{chr(c)!r} (U+{c:04X})" for c in np.unique(codepoints[unknown])]
            others = f" and {len(names) - 10} more" if len(names) > 10 else ""
            raise ValueError(
                f"unknown to the character tokenizer: {', '.join(names[:10])}{others}; it knows "
                f"the {self.vocab_size - 1} characters of the text that it was made from"
            )
        return ids

    @cached_property
    def _id_of_codepoint(self) -> np.ndarray:
        """Id of each code point, vocab_size for none; the last entry is for all beyond it."""
        codepoints = [ord(piece.decode()) for piece in self.pieces if piece]
        table = np.full(max(codepoints, default=0) + 2, self.vocab_size, np.uint32)
        table[codepoints] = np.arange(len(codepoints))
        return table

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides the ids: kind, rules, specials and every piece; not the name."""
        rules = [self.kind, self.pattern, sorted(self.specials.items()), self.vocab_size]
        if self.normalization:
            rules.append(self.normalization)
        if self.kind == "hf":
            rules.append(json.dumps(self.file, sort_keys=True))
        return hashlib.sha256(json.dumps(rules).encode() + b"\n" + self._table).hexdigest()

    @cached_property
    def _table(self) -> bytes:
        """One line per id that has text, `base64 id`: the .tiktoken format."""
        lines = [b"%b %d\n" % (base64.b64encode(p), i) for i, p in enumerate(self.pieces) if p]
        return b"".join(lines)

    def save(self, folder: str | Path) -> list[str]:
        """Write the tokenizer's files, which `load_tokenizer` reads; returns their names."""
        about = {
            "format": "lathe-tokenizer",
            "kind": self.kind,
            "name": self.name,
            "vocab_size": self.vocab_size,
            "specials": self.specials,
            "pattern": self.pattern,
            "normalization": self.normalization,
            "sha256": self.fingerprint,
        }
        if self.kind == "char":
            about["characters"] = [piece.decode() for piece in self.pieces if piece]
        files = {}
        indent = 1
        if self.kind == "bpe":
            files["tokenizer.tiktoken"] = self._table
        if self.kind == "hf":
            about["file"] = self.file
            indent = None  # a line for each merge would be hundreds of thousands
        text = json.dumps(about, indent=indent, ensure_ascii=False) + "\n"
        files["tokenizer.json"] = text.encode()
        for name, content in files.items():  # tokenizer.json, which load looks for, last
            temporary = Path(folder, name + ".tmp")
            temporary.write_bytes(content)
            os.replace(temporary, Path(folder, name))
        return list(files)


def _read_saved(about: dict, path: Path) -> Tokenizer:
    """The tokenizer that `save` wrote. about: what tokenizer.json, at `path`, holds."""
    if about["kind"] == "byte":
        return _bytes()
    check_kinds(str(path), about, {"vocab_size": int, "specials": dict, "pattern": str})
    check_kinds(str(path), about, {"name": str, "sha256": str})
    refuse_large_id(about["vocab_size"], path)
    for i in about["specials"].values():
        refuse_large_id(i, path)
    pieces = [b""] * about["vocab_size"]
    if about["kind"] == "hf":
        for i in all_ids(about["file"]):
            refuse_large_id(i, path)
        pieces = pieces_of(about["file"], about["specials"])
    elif about["kind"] == "char":
        characters = [character.encode() for character in about["characters"]]
        pieces[: len(characters)] = characters
    else:
        for line in path.with_name("tokenizer.tiktoken").read_bytes().splitlines():
            piece, i = line.split()
            pieces[int(i)] = base64.b64decode(piece)
    tokenizer = Tokenizer(
        about["kind"],
        about["name"],
        pieces,
        about["specials"],
        about["pattern"],
        about.get("normalization", ""),
        about.get("file"),
    )
    expected = about["sha256"]
    if tokenizer.fingerprint != expected:
        raise ValueError(
            f"{path}: the tokenizer files were changed or damaged "
            f"(sha256 {tokenizer.fingerprint[:16]}..., expected {expected[:16]}...); "
            f"prepare or copy them again"
        )
    check_rules(tokenizer, path)
    return tokenizer


def check_rules(tokenizer: Tokenizer, path: Path):
    """ValueError unless the rules of a tokenizer whose files are whole can be used: they may have
    been made by anybody."""
    pieces = tokenizer.pieces
    largest = max(tokenizer.specials.values())
    if largest >= len(pieces):
        raise ValueError(f"{path}: a special token has id {largest}, there are {len(pieces):,} ids")
    if tokenizer.normalization not in ("", "NFC"):
        raise ValueError(f"{path}: normalization is {tokenizer.normalization!r:.40}, not NFC")
    if tokenizer.kind == "hf":
        try_steps(tokenizer.rules, path)
    elif tokenizer.kind == "char":
        if any(len(piece.decode()) > 1 for piece in pieces):
            raise ValueError(f"{path}: characters holds more than a character")
    else:
        missing = {bytes([byte]) for byte in range(256)}.difference(pieces)
        if missing:
            raise ValueError(
                f"{path}: no id is the byte {min(missing)!r} and {len(missing) - 1} others"
            )
        if tokenizer.pattern not in KNOWN:
            try_rules("tiktoken", tokenizer.pattern, NASTY, path)


def refuse_large_id(largest: Any, path: Path):
    """ValueError, before a list of so many pieces takes the memory."""
    if is_of(largest, int) and 0 <= largest <= MOST_IDS:
        return
    raise ValueError(f"{path} has ids up to {largest!r:.40}, and tokenizers at most {MOST_IDS:,}")


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """The tokenizer named by `spec`: byte, gpt2, cl100k_base, o200k_base, or where its files are.

    That is a folder or a path; a run's folder will do, and so will a tokenizer.json of Hugging
    Face's, a GPT-2 folder with vocab.json and merges.txt, or one with nanoGPT's meta.pkl. Its ids
    are those of the tokenizers library, or it is refused. Raises ValueError, or OSError where files
    are missing.
    """
    if spec == "byte":
        return _bytes()
    if spec in TIKTOKEN_ENCODINGS:
        return _tiktoken_encoding(spec)
    if (Path(spec) / "meta.pkl").is_file() and not (Path(spec) / "tokenizer.json").is_file():
        return train_char([read_characters(Path(spec) / "meta.pkl")])
    path = _find_tokenizer_json(spec)
    try:
        if path.name == "vocab.json":
            return _read_hugging_face(read_vocab_and_merges(path.parent), path)
        about = read_json(path)
        if about.get("format") == "lathe-tokenizer":
            return _read_saved(about, path)
        return _read_hugging_face(about, path)
    except FAULTS as error:
        if isinstance(error, ValueError) and str(path.parent) in str(error):
            raise
        raise ValueError(
            f"{path} is not a tokenizer that lathe can read "
            f"({type(error).__name__}: {what_went_wrong(error)})"
        ) from error


def _read_hugging_face(content: dict, path: Path) -> Tokenizer:
    """Run by tiktoken where all its rules have an equal there, else by the tokenizers library."""
    if "model" not in content:
        raise ValueError(f"{path} is not a tokenizer that lathe can read: it has no model")
    content = complete(content, path)
    for i in all_ids(content):
        refuse_large_id(i, path)
    say_what_is_left_out(content, path)
    specials = special_tokens(content, path)
    folder = printable(path.parent.name) or "huggingface"
    ours = read_ours(content, specials)
    if ours is not None:
        name = folder if ours.kind == "bpe" else ours.kind
        tokenizer = Tokenizer(
            ours.kind, name, ours.pieces, ours.specials, ours.pattern, ours.normalization
        )
        if same_ids(ours, tokenizer.encode, content):
            return tokenizer
    theirs = read_with_library(content, specials, path)
    return Tokenizer("hf", folder, theirs.pieces, theirs.specials, file=theirs.file)


def all_ids(content: dict) -> list:
    """Of the vocabulary and of added tokens, as a tokenizer.json of Hugging Face's has them."""
    vocab = content["model"].get("vocab") or {}
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    return [*ids, *(token["id"] for token in content.get("added_tokens") or [])]


def _find_tokenizer_json(spec: str | Path) -> Path:
    path = Path(spec)
    if path.is_dir():
        path = path / "tokenizer.json"
    elif path.name == "tokenizer.tiktoken":
        path = path.with_name("tokenizer.json")
    if not path.is_file():  # in a run's folder all checkpoints have the same
        path = max(path.parent.glob("checkpoints/step-*/tokenizer.json"), default=path)
    if not path.is_file() and path.with_name("merges.txt").is_file():
        path = path.with_name("vocab.json")
    if not path.is_file():
        names = ", ".join(("byte", *TIKTOKEN_ENCODINGS))
        raise FileNotFoundError(
            f"tokenizer {str(spec)!r} is neither one of {names} nor a folder with tokenizer.json"
        )
    return path


# -----------------------------------------------------------------------------
# Where tokenizers come from, but for bpe.py


def _bytes() -> Tokenizer:
    """One id per byte."""
    return Tokenizer("byte", "byte", [bytes([i]) for i in range(256)] + [b""], {EOT: 256})


def train_char(texts: Iterable[Iterable[str]]) -> Tokenizer:
    """One id per character that occurs in `texts`, strings or sets of characters, in code order."""
    characters = sorted(set().union(*texts))
    pieces = [character.encode() for character in characters] + [b""]
    return Tokenizer("char", "char", pieces, {EOT: len(characters)})


def _tiktoken_encoding(name: str) -> Tokenizer:
    """An encoding of tiktoken's, whose files it downloads once."""
    try:
        from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

        rules = ENCODING_CONSTRUCTORS[name]()
    except OSError as error:  # requests' errors are OSErrors too
        urls = _tiktoken_urls(name)
        files = [f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" for url in urls]
        raise OSError(
            f"tokenizer {name}: its files cannot be reached ({type(error).__name__}); "
            f"save {', '.join(files)} in a folder and set TIKTOKEN_CACHE_DIR to that folder"
        ) from error
    ranks = rules["mergeable_ranks"]
    specials = rules["special_tokens"]
    n_ids = 1 + max(max(ranks.values()), max(specials.values()))
    pieces = [b""] * n_ids
    for piece, i in ranks.items():
        pieces[i] = piece
    return Tokenizer("bpe", name, pieces, specials, rules["pat_str"])


def _tiktoken_urls(name: str) -> list[str]:
    base = "https://openaipublic.blob.core.windows.net"
    if name == "gpt2":
        folder = f"{base}/gpt-2/encodings/main"
        return [f"{folder}/vocab.bpe", f"{folder}/encoder.json"]
    return [f"{base}/encodings/{name}.tiktoken"]


LONG_GAP = re.compile(r"\s{10000}")


def cut_long_gaps(text: str) -> list[str]:
    """The text in parts, none of which has more white space in a row than tiktoken's engine bears:
    it has no ids for a text with a million spaces (openai/tiktoken issue 15)."""
    ends = [gap.end() for gap in LONG_GAP.finditer(text)]
    parts = [text[begin:end] for begin, end in pairwise([0, *ends, len(text)])]
    return [part for part in parts if part]


def has_lone_surrogates(text: str) -> bool:
    """Whether a text has what UTF-8 cannot say, as JSON's escapes and names of files may."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def replace_lone_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates as U+FFFD, as tiktoken has it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
