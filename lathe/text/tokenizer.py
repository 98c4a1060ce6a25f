"""Text to token ids and back: bytes, characters, tiktoken's encodings, and byte-level BPE learned from your own text.

Whatever its kind, a tokenizer is a list of byte strings, one per id, and a way to cut text into them. It is saved
as readable files (tokenizer.json, and tokenizer.tiktoken for BPE) beside every dataset and checkpoint, so that
neither needs anything else to turn ids into text again.
"""

import base64
import hashlib
import json
import os
import unicodedata
from functools import cached_property
from pathlib import Path

import numpy as np

EOT = "<|endoftext|>"
TIKTOKEN_ENCODINGS = ("gpt2", "cl100k_base", "o200k_base")
# GPT-2's rule for cutting text before BPE (Radford et al. 2019), as possessive groups, which run faster.
# Own vocabularies use it too: llama.cpp knows it (as "gpt-2"), so exported models convert.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Tokenizer:
    """`pieces[i]` is the text of id i in bytes: b"" for special tokens and for ids that the vocabulary leaves out.

    kind: "byte", "char" or "bpe"; specials: {text: id}, always with "<|endoftext|>"; pattern: BPE's cutting rule;
    normalization: Unicode form that text is brought into first ("NFC", as Qwen's), or none.
    """

    def __init__(self, kind, name, pieces, specials, pattern="", normalization=""):
        self.kind, self.name, self.pieces, self.specials, self.pattern = kind, name, pieces, specials, pattern
        self.normalization = normalization
        self.vocab_size = len(pieces)  # specials included
        self.eot_id = specials[EOT]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. "<|endoftext|>" in it is ordinary text; a character tokenizer refuses unknown characters."""
        return self.encode_numpy(text).tolist()

    def encode_numpy(self, text: str) -> np.ndarray:
        """`encode` as a uint8 or uint32 array. Halves of surrogate pairs on their own become U+FFFD."""
        if self.normalization:
            text = unicodedata.normalize(self.normalization, text)
        if self.kind == "char":
            return self._encode_characters(text)
        try:
            if self.kind == "byte":
                return np.frombuffer(text.encode(), np.uint8)
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encode_numpy(replace_lone_surrogates(text))

    def decode(self, ids, specials=False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. Special tokens show only if `specials`.

        Raises ValueError for an id outside the vocabulary."""
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(
                f"token id {min(ids) if min(ids) < 0 else max(ids)} is not one of the {self.vocab_size} "
                f"ids of tokenizer {self.name}"
            )
        shown = {i: text.encode() for text, i in self.specials.items()} if specials else {}
        return b"".join([shown.get(i) or self.pieces[i] for i in ids]).decode("utf-8", errors="replace")

    def token_byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int64: bytes of text per id, 0 for specials, so that sums give the bytes of a token stream."""
        return np.fromiter(map(len, self.pieces), np.int64, self.vocab_size)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides the ids: kind, pattern, specials and every piece; not the name."""
        rules = [self.kind, self.pattern, sorted(self.specials.items()), self.vocab_size]
        rules = json.dumps(rules + [self.normalization] * bool(self.normalization))
        return hashlib.sha256(rules.encode() + b"\n" + self._table).hexdigest()

    def save(self, folder) -> list[str]:
        """Write the tokenizer's files into `folder` and return their names. `load_tokenizer(folder)` reads them."""
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
            about["characters"] = [p.decode() for p in self.pieces if p]
        files = {"tokenizer.tiktoken": self._table} if self.kind == "bpe" else {}
        files["tokenizer.json"] = (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()
        for name, content in files.items():  # each complete or absent; tokenizer.json, which load looks for, last
            temporary = Path(folder, name + ".tmp")
            temporary.write_bytes(content)
            os.replace(temporary, Path(folder, name))
        return list(files)

    @cached_property
    def _table(self) -> bytes:
        """One line per id that has text, `base64 id`: the .tiktoken format."""
        return b"".join(base64.b64encode(p) + b" %d\n" % i for i, p in enumerate(self.pieces) if p)

    @cached_property
    def _encoding(self):
        import tiktoken

        ranks = {piece: i for i, piece in enumerate(self.pieces) if piece}
        return tiktoken.Encoding(self.name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=self.specials)

    @cached_property
    def _id_of_codepoint(self) -> np.ndarray:
        codepoints = [ord(p.decode()) for p in self.pieces if p]
        table = np.full(max(codepoints, default=0) + 2, self.vocab_size, np.uint32)  # the last entry: all beyond it
        table[codepoints] = np.arange(len(codepoints))
        return table

    def _encode_characters(self, text: str) -> np.ndarray:
        codepoints = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._id_of_codepoint[np.minimum(codepoints, len(self._id_of_codepoint) - 1)]
        if (unknown := ids == self.vocab_size).any():
            found = [f"{chr(c)!r} (U+{c:04X})" for c in np.unique(codepoints[unknown])]
            more = f" and {len(found) - 10} more" if len(found) > 10 else ""
            raise ValueError(
                f"unknown to the character tokenizer: {', '.join(found[:10])}{more}; it knows the "
                f"{self.vocab_size - 1} characters of the text that it was made from"
            )
        return ids


def replace_lone_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and surrogates without a partner replaced by U+FFFD, as tiktoken does."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def load_tokenizer(spec) -> Tokenizer:
    """The tokenizer named by `spec`: byte, gpt2, cl100k_base, o200k_base, or a folder with (or path of) its files; a
    run's folder will do.

    A Hugging Face tokenizer.json with byte-level BPE is read too. ValueError, or OSError where files are missing.
    """
    if spec == "byte":
        return Tokenizer("byte", "byte", [bytes([i]) for i in range(256)] + [b""], {EOT: 256})
    if spec in TIKTOKEN_ENCODINGS:
        return _load_tiktoken(spec)
    path = Path(spec)
    if path.is_dir() or path.name == "tokenizer.tiktoken":
        path = (path if path.is_dir() else path.parent) / "tokenizer.json"
    if not path.is_file():  # all checkpoints of a run have the same
        path = max(path.parent.glob("checkpoints/step-*/tokenizer.json"), default=path)
    if not path.is_file():
        names = ", ".join(("byte", *TIKTOKEN_ENCODINGS))
        raise FileNotFoundError(f"tokenizer {str(spec)!r} is neither one of {names} nor a folder with tokenizer.json")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about.get("format") != "lathe-tokenizer":
            return _from_hugging_face(about, path)
        if about["kind"] == "byte":
            return load_tokenizer("byte")
        pieces = [b""] * about["vocab_size"]
        if about["kind"] == "char":
            pieces[: len(about["characters"])] = [c.encode() for c in about["characters"]]
        else:
            for line in path.with_name("tokenizer.tiktoken").read_bytes().splitlines():
                piece, i = line.split()
                pieces[int(i)] = base64.b64decode(piece)
        normalization = about.get("normalization", "")
        tokenizer = Tokenizer(about["kind"], about["name"], pieces, about["specials"], about["pattern"], normalization)
        expected = about["sha256"]
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a tokenizer that lathe can read ({type(error).__name__}: {error})") from error
    if tokenizer.fingerprint != expected:
        raise ValueError(
            f"{path}: the tokenizer files were changed or damaged (sha256 {tokenizer.fingerprint[:16]}..., "
            f"expected {expected[:16]}...); prepare or copy them again"
        )
    return tokenizer


def _load_tiktoken(name) -> Tokenizer:
    try:
        from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

        rules = ENCODING_CONSTRUCTORS[name]()
    except OSError as error:  # requests' errors are OSErrors too
        base = "https://openaipublic.blob.core.windows.net"
        urls = [f"{base}/encodings/{name}.tiktoken"]
        if name == "gpt2":
            urls = [f"{base}/gpt-2/encodings/main/{file}" for file in ("vocab.bpe", "encoder.json")]
        files = ", ".join(f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" for url in urls)
        raise OSError(
            f"tokenizer {name}: its files cannot be reached ({type(error).__name__}); save {files} in a "
            f"folder and set TIKTOKEN_CACHE_DIR to that folder"
        ) from error
    specials = rules["special_tokens"]
    pieces = [b""] * (max(max(rules["mergeable_ranks"].values()), max(specials.values())) + 1)
    for piece, i in rules["mergeable_ranks"].items():
        pieces[i] = piece
    return Tokenizer("bpe", name, pieces, specials, rules["pat_str"])


def _from_hugging_face(about, path) -> Tokenizer:
    """A byte-level BPE of the tokenizers library. Its ids must follow its merges, since tiktoken merges by id."""
    try:
        model, steps = about["model"], about["pre_tokenizer"]
        steps = steps.get("pretokenizers", [steps])
        vocab, merges = model["vocab"], [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        patterns = [s["pattern"]["Regex"] for s in steps if s["type"] == "Split"]
        patterns += [GPT2_PATTERN for s in steps if s["type"] == "ByteLevel" and s.get("use_regex", True)]
        byte_of = _hugging_face_bytes()
        added = {t["content"]: t["id"] for t in about["added_tokens"]}
        pieces = [b""] * (max([*vocab.values(), *added.values()]) + 1)
        for token, i in vocab.items():
            if token not in added:
                pieces[i] = bytes(byte_of[c] for c in token)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a byte-level BPE: lathe reads its own tokenizer files and Hugging Face's "
            f"byte-level BPE, not this ({error!r} is missing)"
        ) from error
    ids = [vocab["".join(merge)] for merge in merges]
    normalization = (about.get("normalizer") or {"type": ""}).get("type")
    if model["type"] != "BPE" or len(patterns) != 1 or normalization not in ("", "NFC") or ids != sorted(ids):
        raise ValueError(
            f"{path}: this tokenizer's rules (normalizer, several patterns, or ids out of merge order) "
            f"have no equal among byte-level BPEs that tiktoken runs"
        )
    if EOT not in added:
        ends = ("</s>", "<|end_of_text|>", "<|im_end|>", "<eos>")
        end = next((text for text in ends if text in added), None)
        if end is None:
            raise ValueError(f"{path} has no end-of-text token: none of {EOT}, {', '.join(ends)}")
        added[EOT] = added.pop(end)
    return Tokenizer("bpe", path.parent.name or "huggingface", pieces, added, patterns[0], normalization)


def _hugging_face_bytes() -> dict[str, int]:
    """GPT-2's printable stand-ins: visible Latin-1 characters are themselves, the other bytes follow from U+0100."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + k): b for k, b in enumerate(hidden)}


def train_char(texts) -> Tokenizer:
    """One id per character that occurs in `texts` (an iterable of strings, or a set of characters), in code order."""
    characters = sorted(set().union(*texts))
    return Tokenizer("char", "char", [c.encode() for c in characters] + [b""], {EOT: len(characters)})
