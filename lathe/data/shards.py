"""Tokens on disk, and the order in which training reads them.

A dataset is a folder: shards of tokens, `meta.json` (written last: without it the folder is unfinished) and the
tokenizer's files. Every document begins with the end-of-text token, so a scan for it finds all documents.

    shard = 1,024-byte header (256 little-endian int32) + tokens (little-endian uint16, or uint32 above 65,536 ids)
    words   0  magic: 20240520 (uint16) or 20240801 (uint32), as in llm.c      5  vocabulary size
            1  version: 1 (uint16) or 7 (uint32)                               6  end-of-text id
            2  number of tokens                                                7..10  sha256 of the tokenizer, 16 bytes
            3  0x4854414C ("LATH"), zero in others' shards                     11  0 train, 1 val
            4  bytes per token

A dataset of prompts and completions has a file more per shard, NAME.mask: a byte per token, 1 where it is scored as a
target and 0 in prompts. One more end-of-text stands behind its last document, for the model to learn where that stops.

Training reads one infinite sequence of samples: epoch after epoch, each a seeded permutation of all windows of
block_size tokens, such that every token is a target once per epoch. Sample number g is a pure function of
(seed, g), so the whole position of a run is one integer, and ranks and micro-batches only cut the sequence up.
"""

import hashlib
import json
import math
import mmap
import os
from pathlib import Path

import numpy as np

HEADER_BYTES = 1024
LATHE_TAG = 0x4854414C
FORMATS = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
SPLITS = ("train", "val")
SHARD_TOKENS = 100_000_000


# ------------------------------------------------------------------------------------------------- writing shards


def token_dtype(vocab_size) -> np.dtype:
    return np.dtype("<u2") if vocab_size <= 65536 else np.dtype("<u4")


class ShardWriter:
    """Appends tokens of one split to shards, which carry the suffix .tmp until `finish`.

    `position`: how many tokens an earlier, interrupted writer has safely stored; what lies beyond is cut off.
    """

    def __init__(self, folder, split, tokenizer, shard_tokens=SHARD_TOKENS, position=0):
        self.folder, self.split, self.tokenizer = Path(folder), split, tokenizer
        self.shard_tokens, self.n_tokens = shard_tokens, position
        self.dtype, self.files = token_dtype(tokenizer.vocab_size), []  # those of the shard being written
        for suffix, header, itemsize in ((".bin", HEADER_BYTES, self.dtype.itemsize), (".mask", 0, 1)):
            name = f"{split}_{'[0-9]' * 6}{suffix}"
            for path in self.folder.glob(name):  # named by a `finish` that did not end
                path.rename(f"{path}.tmp")
            for path in self.folder.glob(f"{name}.tmp"):
                before = int(path.name.split("_")[1][:6]) * shard_tokens
                if before >= position:
                    path.unlink()
                else:
                    os.truncate(path, header + min(position - before, shard_tokens) * itemsize)

    def path(self, shard, suffix=".bin") -> Path:
        return self.folder / f"{self.split}_{shard:06d}{suffix}"

    def append(self, tokens: np.ndarray, scored: np.ndarray | None = None):
        """Store tokens, and which of them are scored (uint8, for all tokens of the dataset or none); they are on the
        disk for good only after `sync`."""
        if len(tokens) and int(tokens.max()) >= self.tokenizer.vocab_size:  # a cast to uint16 would wrap silently
            raise ValueError(f"token id {tokens.max()} is outside the vocabulary of {self.tokenizer.vocab_size} ids")
        parts = [tokens] if scored is None else [tokens, scored]
        while len(parts[0]):
            shard, filled = divmod(self.n_tokens, self.shard_tokens)
            if not self.files:
                suffixes = (".bin", ".mask")[: len(parts)]
                self.files = [open(f"{self.path(shard, suffix)}.tmp", "ab") for suffix in suffixes]
                if not filled:
                    self.files[0].write(bytes(HEADER_BYTES))
            room = self.shard_tokens - filled
            for file, part, dtype in zip(self.files, parts, (self.dtype, np.uint8), strict=False):
                file.write(np.ascontiguousarray(part[:room], dtype))
            self.n_tokens += len(parts[0][:room])
            if len(parts[0]) >= room:
                self.close()
            parts = [part[room:] for part in parts]

    def sync(self):
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())

    def close(self):
        self.sync()
        while self.files:
            self.files.pop().close()

    def finish(self) -> list[dict]:
        """Give every shard its header and name; returns what meta.json says about them, in order."""
        self.close()
        about, lengths = [], self.tokenizer.token_byte_lengths()
        for shard in range(math.ceil(self.n_tokens / self.shard_tokens)):
            count = min(self.shard_tokens, self.n_tokens - shard * self.shard_tokens)
            path, mask = self.path(shard), Path(f"{self.path(shard, '.mask')}.tmp")
            occurrences, digest = np.zeros(self.tokenizer.vocab_size, np.int64), hashlib.sha256(self._header(count))
            with open(f"{path}.tmp", "r+b") as file:
                file.write(self._header(count))
                while len(tokens := np.fromfile(file, self.dtype, 2**20)):  # a memory map would count as our memory
                    occurrences += np.bincount(tokens, minlength=len(occurrences))
                    digest.update(tokens)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{path}.tmp", path)
            entry = {"name": path.name, "split": self.split, "tokens": count}
            entry |= {"documents": int(occurrences[self.tokenizer.eot_id]), "bytes": int(occurrences @ lengths)}
            entry["sha256"] = digest.hexdigest()
            if mask.is_file():
                scored = int(np.count_nonzero(np.memmap(mask, np.uint8, "r")))
                entry |= {"scored": scored, "mask_sha256": file_sha256(mask)}
                os.replace(mask, self.path(shard, ".mask"))
            about.append(entry)
        if about and "scored" in about[-1]:
            about[-1]["documents"] -= 1  # none begins with the last end-of-text
        return about

    def _header(self, count) -> bytes:
        (magic, version), dtype = next(item for item in FORMATS.items() if item[1] == self.dtype)
        words = np.zeros(HEADER_BYTES // 4, "<i4")
        words[:7] = magic, version, count, LATHE_TAG, dtype.itemsize, self.tokenizer.vocab_size, self.tokenizer.eot_id
        words[7:11] = np.frombuffer(bytes.fromhex(self.tokenizer.fingerprint)[:16], "<i4")
        words[11] = SPLITS.index(self.split)
        return words.tobytes()


def write_meta(folder, tokenizer, shards, **about) -> dict:
    """Write meta.json, which completes the dataset. `shards`: what the writers' `finish` returned; returns the meta."""
    totals = {}
    for split in SPLITS:
        of_split = [s for s in shards if s["split"] == split]
        totals[split] = {key: sum(s[key] for s in of_split) for key in ("tokens", "documents", "bytes")}
        if any("scored" in s for s in shards):
            totals[split]["scored"] = sum(s["scored"] for s in of_split)
    identity = {"name": tokenizer.name, "kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
    identity |= {"eot_id": tokenizer.eot_id, "sha256": tokenizer.fingerprint, "file": "tokenizer.json"}
    meta = {"format": "lathe-tokens", "version": 1, "tokenizer": identity}
    meta |= {"dtype": token_dtype(tokenizer.vocab_size).name, "totals": totals, "shards": shards} | about
    temporary = Path(folder, "meta.json.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, Path(folder, "meta.json"))
    return meta


def write_dataset(folder, tokenizer, train, val, shard_tokens=SHARD_TOKENS) -> dict:
    """A dataset from documents in memory (two iterables of strings). `prepare/text.py` is for all larger ones."""
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


def file_sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _map_tokens(path, dtype, offset) -> np.ndarray:
    if path.stat().st_size == offset:
        return np.empty(0, dtype)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype, offset=offset)


def _open_shard(path, meta, shard, verify):
    """The tokens of a shard with a header, and which of them are scored: uint8, or None for all. `meta` and `shard`:
    what meta.json says, or {} where there is none."""
    mask = path.with_suffix(".mask") if "mask_sha256" in shard else None
    for file in filter(None, (path, mask)):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, though meta.json names it: copy or prepare the dataset again")
    with open(path, "rb") as file:
        words = np.frombuffer(file.read(HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), "<i4").tolist()
    dtype = FORMATS.get((words[0], words[1]))
    if dtype is None:
        raise ValueError(
            f"{path} does not begin with a shard's header; if it is a headerless file of tokens, write "
            f"dataset=raw:TOKENIZER:{path.parent}"
        )
    count = shard.get("tokens", words[2])
    for file, expected in ((path, HEADER_BYTES + count * dtype.itemsize), (mask, count)):
        if file and (file.stat().st_size != expected or words[2] != count):
            raise ValueError(
                f"{file} is truncated or changed: it has {file.stat().st_size:,} bytes, {count:,} tokens make "
                f"{expected:,}; copy or prepare the dataset again"
            )
    if words[3] == LATHE_TAG and meta:
        of_header = np.array(words[7:11], "<i4").tobytes().hex()
        if of_header != meta["tokenizer"]["sha256"][:32]:
            raise ValueError(
                f"{path} was made with another tokenizer than meta.json names ({of_header[:12]}..., "
                f"{meta['tokenizer']['name']} is {meta['tokenizer']['sha256'][:12]}...); prepare the dataset again"
            )
    tokens = _map_tokens(path, dtype, HEADER_BYTES)
    if verify:
        for file, name in ((path, "sha256"), (mask, "mask_sha256")):
            if file and (found := file_sha256(file)) != shard[name]:
                raise ValueError(
                    f"{file} was changed: sha256 {found[:16]}..., meta.json says {shard[name][:16]}...; "
                    f"copy or prepare the dataset again"
                )
        _check_ids(path, tokens, meta["tokenizer"]["vocab_size"])
    return tokens, mask and _map_tokens(mask, np.dtype(np.uint8), 0)


def _check_ids(path, tokens, vocab_size):
    if len(tokens) and tokens[where := int(tokens.argmax())] >= vocab_size:
        raise ValueError(
            f"{path}: token {where:,} is {tokens[where]}, outside the tokenizer's {vocab_size:,} ids; "
            f"these tokens are of another tokenizer or type, or damaged"
        )
