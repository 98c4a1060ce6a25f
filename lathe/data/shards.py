"""Tokens on disk: what a dataset's folder holds, written and read.

    train_000000.bin ...   shards: a header, then tokens, little-endian uint16, or uint32 above
                           65,536 ids
    train_000000.mask ...  a byte per token, 1 where it is scored as a target, 0 in prompts: in
                           datasets of prompts and completions alone
    meta.json              what the shards are; written last: without it the folder is unfinished
    tokenizer.json ...     the tokenizer's files
    inputs.json            by prepare/ alone: whether the input has changed since; needed by nobody

Every document begins with the end-of-text token, so a scan for it finds all documents. With masks
one more stands after the last document, for the model to learn where that stops.
"""

import errno
import hashlib
import json
import math
import mmap
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from lathe.json_text import read_json
from lathe.text.tokenizer import Tokenizer

SPLITS = ("train", "val")
SHARD_TOKENS = 100_000_000
HEADER_BYTES = 1024
HEADER_WORDS = struct.Struct("<7i16si")
LATHE_TAG = 0x4854414C  # "LATH"
DTYPES = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}  # as in llm.c


def token_dtype(vocab_size: int) -> np.dtype:
    """The type that tokens of such a vocabulary are stored in."""
    return np.dtype("<u2") if vocab_size <= 65536 else np.dtype("<u4")


@dataclass
class ShardHeader:
    """A shard's first 1,024 bytes: these words of 4 bytes, little-endian, and zeros.

    llm.c's loaders read the first three. In shards of others the rest is zero.
    """

    magic: int  # word 0: of DTYPES
    version: int  # word 1: of DTYPES
    n_tokens: int  # word 2
    tag: int  # word 3: LATHE_TAG
    itemsize: int  # word 4: bytes per token
    vocab_size: int  # word 5
    eot_id: int  # word 6
    tokenizer: bytes  # words 7 to 10: the first 16 bytes of its sha256
    split: int  # word 11: 0 train, 1 val

    @property
    def dtype(self) -> np.dtype | None:
        """Type of the tokens; None if this is no shard's header."""
        return DTYPES.get((self.magic, self.version))

    def to_bytes(self) -> bytes:
        return HEADER_WORDS.pack(*astuple(self)).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def from_bytes(cls, content: bytes) -> "ShardHeader":
        return cls(*HEADER_WORDS.unpack_from(content.ljust(HEADER_BYTES, b"\0")))


# -----------------------------------------------------------------------------
# Writing shards


class ShardWriter:
    """Appends tokens of one split to shards, which carry the suffix .tmp until `finish`.

    position: how many tokens an earlier, interrupted writer has safely stored; what lies beyond is
    cut off.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        tokenizer: Tokenizer,
        shard_tokens: int = SHARD_TOKENS,
        position: int = 0,
    ):
        self.folder = Path(folder)
        self.split = split
        self.tokenizer = tokenizer
        self.shard_tokens = shard_tokens
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.n_tokens = position
        self._files = {}  # {suffix: file} of the shard that is being written
        self._cut_off(".bin", HEADER_BYTES, self.dtype.itemsize)
        self._cut_off(".mask", 0, 1)

    def _cut_off(self, suffix: str, header_bytes: int, itemsize: int):
        """Keep `n_tokens` tokens of what an earlier writer left in files of this suffix."""
        pattern = f"{self.split}_{'[0-9]' * 6}{suffix}"
        for path in self.folder.glob(pattern):  # named by a `finish` that did not end
            path.rename(f"{path}.tmp")
        for path in self.folder.glob(f"{pattern}.tmp"):
            shard = int(path.name.split("_")[1][:6])
            kept = min(self.n_tokens - shard * self.shard_tokens, self.shard_tokens)
            if kept > 0:
                os.truncate(path, header_bytes + kept * itemsize)
            else:
                path.unlink()

    def path(self, shard: int, suffix: str = ".bin") -> Path:
        return self.folder / f"{self.split}_{shard:06d}{suffix}"

    def append(self, tokens: np.ndarray, scored: np.ndarray | None = None):
        """Store tokens, and which of them are scored: uint8, for all of the dataset or none.

        They are on the disk for good only after `sync`. Raises ValueError for an id outside the
        vocabulary, which a cast to uint16 would wrap silently.
        """
        if len(tokens) and int(tokens.max()) >= self.tokenizer.vocab_size:
            raise ValueError(
                f"token id {tokens.max()} is outside the vocabulary of "
                f"{self.tokenizer.vocab_size} ids"
            )
        done = 0
        while done < len(tokens):
            shard, filled = divmod(self.n_tokens, self.shard_tokens)
            if not self._files:
                self._open(shard, new=filled == 0, with_mask=scored is not None)
            count = min(len(tokens) - done, self.shard_tokens - filled)
            part = slice(done, done + count)
            self._files[".bin"].write(np.ascontiguousarray(tokens[part], self.dtype))
            if scored is not None:
                self._files[".mask"].write(np.ascontiguousarray(scored[part], np.uint8))
            self.n_tokens += count
            done += count
            if filled + count == self.shard_tokens:
                self.close()

    def _open(self, shard: int, new: bool, with_mask: bool):
        self._files[".bin"] = open(f"{self.path(shard)}.tmp", "ab")
        if with_mask:
            self._files[".mask"] = open(f"{self.path(shard, '.mask')}.tmp", "ab")
        if new:
            self._files[".bin"].write(bytes(HEADER_BYTES))  # `finish` fills it in

    def sync(self):
        """Wait until all tokens are on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self):
        self.sync()
        for file in self._files.values():
            file.close()
        self._files = {}

    def finish(self) -> list[dict]:
        """Give every shard its header and name; returns what meta.json says of them, in order."""
        self.close()
        byte_lengths = self.tokenizer.token_byte_lengths()
        n_shards = math.ceil(self.n_tokens / self.shard_tokens)
        entries = [self._finish_shard(shard, byte_lengths) for shard in range(n_shards)]
        if entries and "scored" in entries[-1]:
            entries[-1]["documents"] -= 1  # none begins with the last end-of-text
        return entries

    def _finish_shard(self, shard: int, byte_lengths: np.ndarray) -> dict:
        """Give one shard, and its mask, header and name; returns what meta.json says of it."""
        path = self.path(shard)
        n_tokens = min(self.shard_tokens, self.n_tokens - shard * self.shard_tokens)
        header = self._header(n_tokens).to_bytes()
        digest = hashlib.sha256(header)
        occurrences = np.zeros(self.tokenizer.vocab_size, np.int64)
        with open(f"{path}.tmp", "r+b") as file:
            file.write(header)
            while True:  # block by block: a memory map would count as our memory
                tokens = np.fromfile(file, self.dtype, 2**20)
                if not len(tokens):
                    break
                digest.update(tokens)
                occurrences += np.bincount(tokens, minlength=len(occurrences))
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)
        entry = {
            "name": path.name,
            "split": self.split,
            "tokens": n_tokens,
            "documents": int(occurrences[self.tokenizer.eot_id]),
            "bytes": int(occurrences @ byte_lengths),
            "sha256": digest.hexdigest(),
        }
        mask_path = self.path(shard, ".mask")
        unnamed_mask = Path(f"{mask_path}.tmp")
        if unnamed_mask.is_file():
            entry["scored"] = int(np.count_nonzero(np.memmap(unnamed_mask, np.uint8, "r")))
            entry["mask_sha256"] = file_sha256(unnamed_mask)
            os.replace(unnamed_mask, mask_path)
        return entry

    def _header(self, n_tokens: int) -> ShardHeader:
        magic, version = next(key for key, dtype in DTYPES.items() if dtype == self.dtype)
        return ShardHeader(
            magic=magic,
            version=version,
            n_tokens=n_tokens,
            tag=LATHE_TAG,
            itemsize=self.dtype.itemsize,
            vocab_size=self.tokenizer.vocab_size,
            eot_id=self.tokenizer.eot_id,
            tokenizer=bytes.fromhex(self.tokenizer.fingerprint)[:16],
            split=SPLITS.index(self.split),
        )


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -----------------------------------------------------------------------------
# Reading a shard


def open_shard(
    path: Path, entry: dict | None = None, tokenizer: dict | None = None, verify: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """A shard's tokens, mapped into memory, and its mask: uint8, None where all are scored.

    entry, tokenizer: what meta.json says of the shard and of the tokenizer, where there is one.
    verify: check sha256 and ids, too. Raises FileNotFoundError, or ValueError for a damaged shard.
    """
    entry = entry or {}
    mask_path = path.with_suffix(".mask") if "mask_sha256" in entry else None
    files = [path] if mask_path is None else [path, mask_path]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing, though meta.json names it: copy or prepare the dataset again"
            )
    with open(path, "rb") as opened:
        header = ShardHeader.from_bytes(opened.read(HEADER_BYTES))
    if header.dtype is None:
        raise ValueError(
            f"{path} does not begin with a shard's header; if it is a headerless file of tokens, "
            f"write dataset=raw:TOKENIZER:{path.parent}"
        )
    n_tokens = entry.get("tokens", header.n_tokens)
    _check_size(path, header, n_tokens, HEADER_BYTES + n_tokens * header.dtype.itemsize)
    if mask_path is not None:
        _check_size(mask_path, header, n_tokens, n_tokens)
    if tokenizer is not None and header.tag == LATHE_TAG:
        _check_tokenizer(path, header, tokenizer)
    tokens = map_array(path, header.dtype, HEADER_BYTES)
    if verify:
        _check_sha256(path, entry["sha256"])
        if mask_path is not None:
            _check_sha256(mask_path, entry["mask_sha256"])
        check_ids(path, tokens, tokenizer["vocab_size"])
    mask = None if mask_path is None else map_array(mask_path, np.dtype(np.uint8), 0)
    return tokens, mask


def _check_size(file: Path, header: ShardHeader, n_tokens: int, expected_bytes: int):
    n_bytes = file.stat().st_size
    if n_bytes != expected_bytes or header.n_tokens != n_tokens:
        raise ValueError(
            f"{file} is truncated or changed: it has {n_bytes:,} bytes, {n_tokens:,} tokens make "
            f"{expected_bytes:,}; copy or prepare the dataset again"
        )


def _check_tokenizer(path: Path, header: ShardHeader, tokenizer: dict):
    of_header = header.tokenizer.hex()
    if of_header != tokenizer["sha256"][:32]:
        raise ValueError(
            f"{path} was made with another tokenizer than meta.json names ({of_header[:12]}..., "
            f"{tokenizer['name']} is {tokenizer['sha256'][:12]}...); prepare the dataset again"
        )


def _check_sha256(file: Path, expected: str):
    sha256 = file_sha256(file)
    if sha256 != expected:
        raise ValueError(
            f"{file} was changed: sha256 {sha256[:16]}..., meta.json says {expected[:16]}...; "
            f"copy or prepare the dataset again"
        )


def check_ids(path: Path, tokens: np.ndarray, vocab_size: int):
    """ValueError that names the largest of `tokens`, of the file `path`, if it is no id."""
    if not len(tokens):
        return
    largest = int(tokens.argmax())
    if tokens[largest] >= vocab_size:
        raise ValueError(
            f"{path}: token {largest:,} is {tokens[largest]}, outside the tokenizer's "
            f"{vocab_size:,} ids; these tokens are of another tokenizer or type, or damaged"
        )


def map_array(path: Path, dtype: np.dtype, offset: int) -> np.ndarray:
    """What a file holds from byte `offset` on, mapped into memory."""
    if path.stat().st_size == offset:
        return np.empty(0, dtype)
    try:
        mapped = map_file(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        allow_more_files(path)
        mapped = map_file(path)
    return np.frombuffer(mapped, dtype, offset=offset)


def map_file(path: Path) -> mmap.mmap:
    """A file in memory; as long as it is there, the system counts it as open."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def allow_more_files(path: Path):
    """Raise the number of files that this process may open, to the most that a user may allow.

    Raises OSError where that is reached; `path` is the file that could not be opened.
    """
    import resource  # where there is no such module, there is no such limit

    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == most:
        raise OSError(
            f"{path}: this process may open {allowed:,} files, and its data has more shards: "
            "raise the limit (ulimit -Hn, or the system's limits.conf), or prepare the data again "
            "with fewer and larger shards (--shard_tokens)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def expect_random_reads(array: np.ndarray):
    """Keep the system from reading ahead in an array of `map_array`; others are left alone."""
    if hasattr(mmap, "MADV_RANDOM") and isinstance(array.base, memoryview):
        array.base.obj.madvise(mmap.MADV_RANDOM)


# -----------------------------------------------------------------------------
# meta.json

META_FORMAT = "lathe-tokens"
META_VERSION = 1


def write_meta(
    folder: str | Path, tokenizer: Tokenizer, shards: list[dict], **about: object
) -> dict:
    """Write meta.json, which completes the dataset, and return what it holds.

    shards: what the writers' `finish` returned; about: whatever else is worth knowing.
    """
    summed = ["tokens", "documents", "bytes"]
    if any("scored" in entry for entry in shards):
        summed.append("scored")
    totals = {}
    for split in SPLITS:
        of_split = [entry for entry in shards if entry["split"] == split]
        totals[split] = {key: sum(entry[key] for entry in of_split) for key in summed}
    meta = {
        "format": META_FORMAT,
        "version": META_VERSION,
        "tokenizer": {
            "name": tokenizer.name,
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "eot_id": tokenizer.eot_id,
            "sha256": tokenizer.fingerprint,
            "file": "tokenizer.json",
        },
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "totals": totals,
        "shards": shards,
        **about,
    }
    temporary = Path(folder, "meta.json.tmp")
    # What is no UTF-8 in a file's name gets the escape that JSON has for it.
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(meta, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, Path(folder, "meta.json"))
    return meta


def read_meta(folder: Path) -> dict:
    """What `write_meta` wrote. ValueError for another version; KeyError and such if damaged."""
    meta = read_json(folder / "meta.json")
    if meta["format"] != META_FORMAT or meta["version"] != META_VERSION:
        raise ValueError(
            f"{folder}/meta.json has version {meta['version']}, this lathe reads {META_VERSION}; "
            f"prepare it again"
        )
    return meta


SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})_\d{{6}}\.(bin|mask)(\.tmp)?")


def is_dataset(folder: Path) -> bool:
    """Whether there is a meta.json by `write_meta`, of any version."""
    try:
        with open(folder / "meta.json", "rb") as file:
            beginning = file.read(100)
    except OSError:
        return False
    return f'"format": "{META_FORMAT}"'.encode() in beginning


def write_dataset(
    folder: str | Path,
    tokenizer: Tokenizer,
    train: Iterable[str],
    val: Iterable[str],
    shard_tokens: int = SHARD_TOKENS,
) -> dict:
    """A dataset from documents in memory. `prepare/text.py` is for all larger ones."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "meta.json").unlink(missing_ok=True)
    tokenizer.save(folder)
    shards = []
    for split, documents in zip(SPLITS, (train, val), strict=True):
        writer = ShardWriter(folder, split, tokenizer, shard_tokens)
        for document in documents:
            writer.append(np.array([tokenizer.eot_id]))
            writer.append(tokenizer.encode_numpy(document))
        shards += writer.finish()
    return write_meta(folder, tokenizer, shards)
