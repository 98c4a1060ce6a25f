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
import subprocess
import sys
from bisect import bisect_right
from itertools import cycle
from pathlib import Path

import numpy as np

from tokenizer import chat_prompt, load_tokenizer

HEADER_BYTES = 1024
LATHE_TAG = 0x4854414C
FORMATS = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
SPLITS = ("train", "val")
SHARD_TOKENS = 100_000_000
OWN_DATA = {"data/python_stdlib": "prepare/python_stdlib.py"}  # what any machine can make by itself, and by what
OWN_DATA |= {f"data/example_{t}": f"prepare/examples.py {t}" for t in ("reverse", "add", "sentiment", "translate")}
MIXTURE_BLOCK = 1024  # samples in which a mixture's proportions are exact
FEISTEL_ABOVE = 2**27  # windows (137 billion tokens at block_size 1024) from which an epoch's order is not stored


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


# ------------------------------------------------------------------------------------------------- reading datasets


class Stream:
    """The tokens of shards, one after the other, as one sequence. `shards`: arrays, usually memory maps; `masks`: as
    long, of uint8, 0 where a token is not scored as a target, or none."""

    def __init__(self, shards, masks=()):
        self.shards, self.mask, self._spans = list(shards), Stream(masks) if masks else None, {}
        self.ends = np.cumsum([len(s) for s in self.shards], dtype=np.int64).tolist()
        self.n_tokens = self.ends[-1] if self.ends else 0
        self.dtype = np.result_type(*self.shards) if self.shards else np.dtype("<u2")
        self.vocab_size, self.eot_id, self.path = None, None, ""  # of the dataset, once it is known

    @classmethod
    def joined(cls, streams):
        shards, masks = [shard for stream in streams for shard in stream.shards], []
        if any(stream.mask for stream in streams):
            for s in streams:
                masks += s.mask.shards if s.mask else [np.broadcast_to(np.uint8(1), len(shard)) for shard in s.shards]
        return cls(shards, masks)

    def read(self, start, count, out):
        """Copy tokens start .. start + count - 1 into the array `out`, which may have a wider type."""
        i = bisect_right(self.ends, start)
        begin = start - (self.ends[i - 1] if i else 0)
        tokens = self.shards[i][begin : begin + count]
        if len(tokens) == count:
            out[:] = tokens
            return
        done = len(tokens)  # the window crosses into the next shards
        out[:done] = tokens
        self.read(start + done, count - done, out[done:])

    def spans(self, block_size):
        """Windows that cut no document in two: (n, 2) int64, first input token and what follows the last; and how many
        documents are longer than block_size. None for a stream without a mask, whose windows lie at equal distances.

        Each window takes the next documents as long as they fit. A longer one is cut into blocks from its end, so that
        a completion that fits is in one window with the end of its prompt. Windows with nothing to score are left out.
        """
        if self.mask is None:
            return None, 0
        if block_size not in self._spans:
            offsets, positions, scored = [0, *self.ends], [], []
            for offset, shard, mask in zip(offsets, self.shards, self.mask.shards, strict=False):
                positions.append(np.flatnonzero(shard == self.eot_id) + offset)
                scored.append(np.flatnonzero(mask) + offset)
            begins = np.unique(np.concatenate([[0], *positions, [self.n_tokens - 1]])).tolist()
            at, n_longer, found = 0, 0, []
            while at < len(begins) - 1:
                begin, fits = begins[at], bisect_right(begins, begins[at] + block_size) - 1
                end = begins[max(fits, at + 1)]
                first = end - (end - begin - 1) // block_size * block_size  # where the first block ends
                found += [(max(e - block_size, begin), e) for e in range(first, end + 1, block_size)]
                n_longer += fits == at
                at = max(fits, at + 1)
            found, scored = np.array(found, np.int64).reshape(-1, 2), np.concatenate([[0], *scored])
            any_scored = np.diff(np.searchsorted(scored, found + 1), axis=1)[:, 0] > 0
            self._spans[block_size] = found[any_scored], n_longer
        return self._spans[block_size]

    def scored(self, start, begin, end) -> np.ndarray:
        """Which of the targets begin .. end - 1 of the window at token `start` are scored: uint8, 0 or 1."""
        found = np.ones(end - begin, np.uint8)
        if self.mask is not None:
            self.mask.read(start + 1 + begin, len(found), found)
        return found

    def gather(self, starts, begins, ends, rows, x, y):
        """Put the windows that `place` gives into x and y, int64 (B, block_size), with -1 in y for masked targets.

        rows: (B, block_size + 1) of this stream's dtype, to work in. ValueError if a token is outside the vocabulary.
        """
        block_size = x.shape[1]
        for row, start in zip(rows, starts.tolist(), strict=True):
            count = min(block_size + 1, self.n_tokens - start)  # less in a split shorter than a block
            self.read(start, count, row[:count])
        if self.vocab_size and int(rows.max(initial=0)) >= self.vocab_size:
            raise ValueError(
                f"dataset {self.path} has token id {rows.max()}, outside its tokenizer's {self.vocab_size:,} ids: "
                f"python prepare/verify.py {self.path} shows where; copy or prepare it again"
            )
        x[:], y[:] = rows[:, :-1], rows[:, 1:]
        for i in np.flatnonzero((begins > 0) | (ends < block_size) | (self.mask is not None)):
            begin, end = begins[i], ends[i]
            y[i, :begin], y[i, end:] = -1, -1
            y[i, begin:end][self.scored(starts[i], begin, end) == 0] = -1


class Dataset:
    """What `open_dataset` found: `.train` and `.val` streams, `.meta`, tokenizer and identity.

    parts: (stream, weight) for each dataset of a mixture, one for a plain dataset; `.train` is all of them in a row.
    """

    def __init__(self, path, meta, val, parts, fingerprint, tokenizer_from):
        self.path, self.meta, self.val, self.parts, self.fingerprint = path, meta, val, parts, fingerprint
        self.train = Stream.joined([stream for stream, _ in parts])
        self.vocab_size = meta["tokenizer"]["vocab_size"]
        for stream in (self.train, self.val, *(stream for stream, _ in parts)):
            stream.vocab_size, stream.eot_id, stream.path = self.vocab_size, meta["tokenizer"].get("eot_id"), path
        self.tokenizer_name, self.tokenizer_fingerprint = meta["tokenizer"]["name"], meta["tokenizer"]["sha256"]
        self.template = meta.get("template", "")  # of chats, see tokenizer.py; "plain": prompts and completions as are
        self._tokenizer_from, self._tokenizer = tokenizer_from, None

    def tokenizer(self):
        if self._tokenizer is None:  # loaded once: every evaluation and every save asks for it
            self._tokenizer = load_tokenizer(self._tokenizer_from)
        return self._tokenizer

    def prompt_ids(self, text) -> list[int]:
        """Ids of a prompt, as this dataset has them: behind end-of-text, and in its chat template."""
        text, _ = chat_prompt([{"role": "user", "content": text}], self.template)
        return [self.tokenizer().eot_id, *self.tokenizer().encode(text)]


def open_dataset(path, verify=False) -> Dataset:
    """Open the dataset at `path`, checking every shard's size, and with `verify` also checksums and ids.

    path: a folder of shards; `raw:TOKENIZER:FOLDER`, such as raw:gpt2:data/openwebtext, for .bin files of nanoGPT
    (no header) or llm.c without meta.json, of which those with "val" in their name are for validation;
    or a mixture with weights, `data/a:0.7,data/b:0.3`. FileNotFoundError or ValueError with one line for the user.
    """
    parts = [_path_and_weight(part) for part in str(path).split(",")]
    if len(parts) == 1:
        return _open_one(parts[0][0], verify)
    datasets = [_open_one(part, verify) for part, _ in parts]
    first = datasets[0]
    for other in datasets[1:]:
        if other.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise ValueError(
                f"dataset={path} mixes tokenizers: {first.path} has {first.tokenizer_name} "
                f"({first.tokenizer_fingerprint[:12]}), {other.path} has {other.tokenizer_name} "
                f"({other.tokenizer_fingerprint[:12]}); prepare them with the same one"
            )
    weights = [weight for _, weight in parts]
    identity = [[d.fingerprint, count] for d, count in zip(datasets, mixture_counts(weights), strict=True)]
    return Dataset(
        str(path),
        first.meta,
        Stream.joined([d.val for d in datasets]),
        [(d.train, weight) for d, weight in zip(datasets, weights, strict=True)],
        hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        first._tokenizer_from,
    )


def _path_and_weight(part):
    folder, _, weight = part.strip().rpartition(":")
    try:
        return (folder, float(weight)) if folder else (part.strip(), 1.0)
    except ValueError:
        return part.strip(), 1.0


def _open_one(path, verify) -> Dataset:
    if path.startswith("raw:"):
        return _open_raw(path, verify)
    folder = Path(path)
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(_why_no_dataset(folder))
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != "lathe-tokens" or meta["version"] != 1:
            raise ValueError(f"{folder}/meta.json has version {meta['version']}, this lathe reads 1; prepare it again")
        streams, masks, hashes = {"train": [], "val": []}, {"train": [], "val": []}, []
        for shard in meta["shards"]:
            tokens, mask = _open_shard(folder / shard["name"], meta, shard, verify)
            streams[shard["split"]].append(tokens)
            masks[shard["split"]] += [] if mask is None else [mask]
            hashes += [shard[name] for name in ("sha256", "mask_sha256") if name in shard]
        train, val = (Stream(streams[split], masks[split]) for split in SPLITS)
        fingerprint = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        return Dataset(str(path), meta, val, [(train, 1.0)], fingerprint, folder)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder}/meta.json is damaged ({type(error).__name__}: {error}); prepare it again"
        ) from error


def _why_no_dataset(folder) -> str:
    if (folder / "progress.jsonl").is_file():
        return f"dataset {folder} is unfinished (no meta.json): run the same prepare command again to continue it"
    if (folder / "train.bin").is_file():
        return f"dataset {folder} has no meta.json; for nanoGPT's headerless files write dataset=raw:TOKENIZER:{folder}"
    script = Path(__file__).parent / "prepare" / f"{folder.name}.py"
    ready = script.is_file() and folder.name not in ("text", "sources", "verify")
    command = f"prepare/{script.name}" if ready else f"prepare/text.py --input YOUR_TEXT --out {folder}"
    return f"dataset {folder} does not exist: make it with `python {command}`"


def prepare_own(path):
    """Prepare a dataset of OWN_DATA if it is missing. ValueError if that fails."""
    if str(path) not in OWN_DATA or Path(path, "meta.json").exists():
        return
    script, *words = OWN_DATA[str(path)].split()
    print(f"dataset {path} is missing: running python {OWN_DATA[str(path)]}", file=sys.stderr, flush=True)
    if subprocess.run([sys.executable, Path(__file__).parent / script, *words, f"--out={path}"]).returncode:
        raise ValueError(f"{path} could not be prepared: run python {OWN_DATA[str(path)]} to see why")


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


def _open_raw(path, verify) -> Dataset:
    _, _, rest = path.partition(":")
    spec, _, folder = rest.partition(":")
    folder = Path(folder)
    files = sorted(folder.glob("*.bin"))
    if not files:
        raise FileNotFoundError(f"dataset={path}: no .bin files in {folder}; the form is raw:TOKENIZER:FOLDER")
    tokenizer = load_tokenizer(spec)
    meta = {"tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.fingerprint}}
    dtype, streams, identity = token_dtype(tokenizer.vocab_size), {"train": [], "val": []}, []
    for file in files:
        with open(file, "rb") as opened:
            head = opened.read(2**16)
        if (*np.frombuffer(head[:8].ljust(8, b"\0"), "<i4").tolist(),) in FORMATS:
            tokens, _ = _open_shard(file, {}, {}, verify=False)
        elif file.stat().st_size % dtype.itemsize:
            raise ValueError(
                f"{file} has {file.stat().st_size:,} bytes, which is no whole number of {dtype.name} tokens"
            )
        else:
            tokens = _map_tokens(file, dtype, 0)
        # Nothing vouches for these files, so look at the beginning of each; `verify` looks at all of it.
        _check_ids(file, tokens if verify else tokens[:1_000_000], tokenizer.vocab_size)
        streams["val" if "val" in file.name else "train"].append(tokens)
        identity.append([file.name, file.stat().st_size, hashlib.sha256(head).hexdigest()])
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return Dataset(path, meta, Stream(streams["val"]), [(Stream(streams["train"]), 1.0)], fingerprint, spec)


# ------------------------------------------------------------------------------------------------- order of samples


def mix64(x):
    """splitmix64's finaliser (Steele, Lea & Flood 2014), a bijection of uint64 that looks random. In place."""
    x ^= x >> 30
    x *= 0xBF58476D1CE4E5B9
    x ^= x >> 27
    x *= 0x94D049BB133111EB
    x ^= x >> 31
    return x


def _hashes(n, *key):
    """n distinct uint64 that depend on the integers in `key` alone. Not numpy's generators: NEP 19 lets them change."""
    state = np.zeros(1, np.uint64)
    for number in key:
        state = mix64(state + np.array([number % 2**64], np.uint64) * 0x9E3779B97F4A7C15 + 1)
    x = np.arange(n, dtype=np.uint64)
    x *= 0x9E3779B97F4A7C15
    x += state
    return mix64(x)


class SampleOrder:
    """Which window of `n_tokens` tokens each sample number is: every target once per epoch, reshuffled each epoch.

    Window i of n reads block_size + 1 tokens from min(i * block_size, n_tokens - 1 - block_size); the last one
    overlaps the one before, and its targets that were that one's already are masked. `spans`: see Stream.spans.
    """

    def __init__(self, n_tokens, block_size, seed, spans=None):
        if n_tokens < (block_size + 1 if spans is None else 2):
            fix = f"use block_size={n_tokens - 1} at most, or more text" if n_tokens > 1 else "prepare more text"
            raise ValueError(f"train has {n_tokens} tokens, block_size={block_size} needs {block_size + 1}: {fix}")
        self.n_tokens, self.block_size, self.seed, self.spans = n_tokens, block_size, seed, spans
        self.n_windows = math.ceil((n_tokens - 1) / block_size) if spans is None else len(spans)
        self._epochs = {}  # the orders of the last two epochs asked for: steps at the border need both

    def windows(self, samples: np.ndarray):
        """(starts, begins, ends) of the samples with these numbers, int64: first token, and which targets count."""
        index = np.empty_like(samples)
        epochs, slots = np.divmod(samples, self.n_windows)
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            here = epochs == epoch
            index[here] = self._permuted(epoch, slots[here])
        return place(index, self.n_tokens, self.block_size, self.spans)

    def _permuted(self, epoch, slots):
        if self.n_windows > FEISTEL_ABOVE:
            return feistel(slots, self.n_windows, self.seed, epoch)
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            # All hashes differ, so the result does not depend on how the sort treats equals.
            self._epochs[epoch] = np.argsort(_hashes(self.n_windows, self.seed, epoch)).astype(np.uint32)
        return self._epochs[epoch][slots]


def place(index, n_tokens, block_size, spans=None, stride=0):
    """(starts, begins, ends) of the windows with these numbers: first token, and the range of targets that are theirs.

    A window that has fewer than block_size reads on, but what is behind its own targets is not scored. With a stride
    windows begin so many tokens apart, and the targets that the one before has seen are not a window's own."""
    if spans is None:
        at = index * (stride or block_size)
        begins = at + np.where(index > 0, block_size - (stride or block_size), 0)
        ends = np.minimum(at + block_size, n_tokens - 1)
    else:
        begins, ends = spans[index].T
        at = begins
    starts = np.maximum(np.minimum(at, n_tokens - 1 - block_size), 0)
    return starts, begins - starts, ends - starts


def feistel(slots, n, *key, rounds=6):
    """A permutation of 0..n-1 that needs no memory: Feistel rounds on 2h bits, repeated while the result is >= n."""
    half = np.uint64(math.ceil(n.bit_length() / 2))
    low = np.uint64(2 ** int(half) - 1)
    keys = _hashes(rounds, *key)
    out = slots.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & low
        for k in keys:
            left, right = right, left ^ (mix64(right + k) & low)
        out[todo] = left << half | right
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)


def mixture_counts(weights) -> list[int]:
    """How many of every 1,024 samples each dataset gives: the weights' shares, rounded by largest remainder."""
    if min(weights) <= 0 or not math.isfinite(sum(weights)):
        raise ValueError(f"the weights of a mixture of datasets must be positive, found {weights}")
    shares = [MIXTURE_BLOCK * w / sum(weights) for w in weights]
    counts = [math.floor(s) for s in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: MIXTURE_BLOCK - sum(counts)]:
        counts[i] += 1
    if min(counts) == 0:
        raise ValueError(f"a mixture's smallest share is 1/{MIXTURE_BLOCK}; the weights {weights} have a smaller one")
    return counts


class MixtureOrder:
    """Samples drawn from several SampleOrders: exact proportions in every aligned block of 1,024 samples.

    Each source goes through its own epochs. Starts are positions in the concatenation of all sources.
    """

    def __init__(self, orders, weights, seed):
        self.orders, self.seed = orders, seed
        self.counts = np.array(mixture_counts(weights))
        self.ends = np.cumsum(self.counts)
        self.offsets = np.cumsum([0] + [order.n_tokens for order in orders])
        self._block = None, None

    def windows(self, samples: np.ndarray):
        """As SampleOrder.windows."""
        blocks, slots = np.divmod(samples, MIXTURE_BLOCK)
        for block in range(int(blocks.min()), int(blocks.max()) + 1):
            here = blocks == block
            slots[here] = self._permutation(block)[slots[here]]
        source = np.searchsorted(self.ends, slots, side="right")
        local = blocks * self.counts[source] + slots - (self.ends - self.counts)[source]
        found = np.empty((3, *samples.shape), np.int64)
        for s in np.unique(source).tolist():
            here = source == s
            found[:, here] = self.orders[s].windows(local[here])
        return found[0] + self.offsets[source], found[1], found[2]

    def _permutation(self, block):
        if self._block[0] != block:
            self._block = block, np.argsort(_hashes(MIXTURE_BLOCK, self.seed, -1, block))
        return self._block[1]


# ------------------------------------------------------------------------------------------------- batches


def even_split(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """How many micro-batches make a step. Raises ValueError, naming batch sizes that would do, if that is not whole."""
    share = micro_batch_size * world_size
    if batch_size % share:
        near = sorted({max(1, batch_size // share) * share, (batch_size // share + 1) * share})
        raise ValueError(
            f"batch_size={batch_size} is no multiple of micro_batch_size={micro_batch_size} x {world_size} "
            f"devices; use batch_size={' or '.join(map(str, near))}"
        )
    return batch_size // share


class TrainBatches:
    """The batches of optimizer steps: each takes the next batch_size samples, over all ranks and micro-steps.

    batch_size counts sequences over all ranks; micro_batch_size those of one rank in one forward pass.
    """

    def __init__(self, dataset, block_size, batch_size, micro_batch_size, seed, device, rank=0, world_size=1):
        import torch

        self.micro_steps = even_split(batch_size, micro_batch_size, world_size)
        self.batch_size, self.micro_batch_size, self.block_size = batch_size, micro_batch_size, block_size
        self.rank, self.world_size = rank, world_size
        orders, self.n_longer = [], 0  # n_longer: prompts with completions that no window holds whole
        for stream, _ in dataset.parts:
            spans, n_longer = stream.spans(block_size)
            orders.append(SampleOrder(stream.n_tokens, block_size, seed, spans))
            self.n_longer += n_longer
        weights = [weight for _, weight in dataset.parts]
        self.order = orders[0] if len(orders) == 1 else MixtureOrder(orders, weights, seed)
        self.stream, self.device = dataset.train, torch.device(device)
        for shard in self.stream.shards:  # windows lie anywhere: reading ahead would fetch pages nobody asked for
            if hasattr(mmap, "MADV_RANDOM") and isinstance(shard.base, memoryview):
                shard.base.obj.madvise(mmap.MADV_RANDOM)
        # Two buffers, so that the next batch is gathered while the copy of this one to the device may be under way.
        on_cuda, shape = self.device.type == "cuda", (2, micro_batch_size, block_size)
        buffers = [torch.empty(shape, dtype=torch.int64, pin_memory=on_cuda) for _ in range(2)]
        self._buffers = cycle([(b, *b.numpy(), torch.cuda.Event() if on_cuda else None) for b in buffers])
        self._rows = np.zeros((micro_batch_size, block_size + 1), self.stream.dtype)

    def fetch(self, seen, micro):
        """(x, y) of micro-step `micro` of the optimizer step that follows `seen` samples.

        int64 (micro_batch_size, block_size) on the device; y is -1 where a target is masked. On the CPU x and y are
        reused by the next fetch but one: copy to keep them.
        """
        first = seen + (micro * self.world_size + self.rank) * self.micro_batch_size
        windows = self.order.windows(np.arange(first, first + self.micro_batch_size))
        buffer, x, y, copied = next(self._buffers)
        if copied is not None:
            copied.synchronize()  # the copy before last, long done
        self.stream.gather(*windows, self._rows, x, y)
        if self.device.type == "cpu":
            return buffer[0], buffer[1]
        on_device = buffer.to(self.device, non_blocking=copied is not None)
        if copied is not None:
            copied.record()
        return on_device[0], on_device[1]

    def targets(self, seen) -> int:
        """How many targets the step that follows `seen` samples scores, over all ranks and micro-steps: one or more."""
        windows = self.order.windows(np.arange(seen, seen + self.batch_size))
        if self.stream.mask is None:
            return int((windows[2] - windows[1]).sum())
        return sum(int(self.stream.scored(*window).sum()) for window in np.stack(windows, axis=1).tolist())


def count_val_windows(stream, block_size, eval_tokens, stride=0) -> int:
    """How many windows `val_windows` reads on all ranks together."""
    spans, _ = stream.spans(block_size)
    step = stride or block_size
    count = 1 + math.ceil(max(0, stream.n_tokens - 1 - block_size) / step) if spans is None else len(spans)
    return min(count, max(1, eval_tokens // step)) if eval_tokens else count


def val_windows(stream, block_size, eval_tokens, micro_batch_size, rank=0, world_size=1, device="cpu", stride=0):
    """Batches (x, y), int64 (micro_batch_size, block_size), of validation: always the same windows.

    All of them in order when eval_tokens is 0, else eval_tokens // block_size evenly spaced ones. Rank r takes
    windows r, r + world_size, ...; masked rows (y = -1) fill up so that all ranks get as many batches of one shape.
    stride: windows begin so many tokens apart, and score what the one before had not (running text only); 0 =
    block_size.
    """
    import torch

    if stream.n_tokens < 2:
        raise ValueError(f"val has {stream.n_tokens} tokens, need 2: prepare the dataset with a larger --val_fraction")
    count = count_val_windows(stream, block_size, eval_tokens, stride)
    chosen = np.arange(count) * count_val_windows(stream, block_size, 0, stride) // count
    windows = np.stack(place(chosen, stream.n_tokens, block_size, stream.spans(block_size)[0], stride))
    rows = np.zeros((micro_batch_size, block_size + 1), stream.dtype)
    for first in range(0, count, micro_batch_size * world_size):
        mine = windows[:, first + rank : first + micro_batch_size * world_size : world_size]
        n = mine.shape[1]
        x, y = torch.zeros(2, micro_batch_size, block_size, dtype=torch.int64)
        y.fill_(-1)
        stream.gather(*mine, rows[:n], x[:n].numpy(), y[:n].numpy())
        yield x.to(device), y.to(device)
