"""Datasets: folders of shards, mixtures of them, and files of nanoGPT's and llm.c's, read as streams of tokens."""

import hashlib
import json
from bisect import bisect_right
from pathlib import Path

import numpy as np

from lathe import ROOT
from lathe.data.order import mixture_counts
from lathe.data.shards import FORMATS, SPLITS, _check_ids, _map_tokens, _open_shard, token_dtype
from lathe.text.chat import chat_prompt
from lathe.text.tokenizer import load_tokenizer

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
        self.template = meta.get("template", "")  # of chats, see text/chat.py; "plain": prompts and completions as are
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
    script = ROOT / "prepare" / f"{folder.name}.py"
    ready = script.is_file() and folder.name not in ("text", "sources", "verify")
    command = f"prepare/{script.name}" if ready else f"prepare/text.py --input YOUR_TEXT --out {folder}"
    return f"dataset {folder} does not exist: make it with `python {command}`"


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
