"""Datasets as streams of tokens: folders of shards, mixtures, files of nanoGPT's and llm.c's."""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lathe import hints
from lathe.commands import command_line
from lathe.data.order import mixture_counts
from lathe.data.shards import (
    SHARD_NAME,
    SPLITS,
    ShardHeader,
    check_ids,
    map_array,
    open_shard,
    read_meta,
    token_dtype,
)
from lathe.data.windows import Spans, Windows, cut_between_documents
from lathe.json_text import NotJSON
from lathe.reading import FAULTS, check_kinds, what_went_wrong
from lathe.text.chat import chat_prompt
from lathe.text.tokenizer import Tokenizer, load_tokenizer

IGNORE = -1  # in place of a target that is not scored, as the network has it

# -----------------------------------------------------------------------------
# A stream of tokens


class Stream:
    """The tokens of shards, one after the other, as one sequence.

    shards: arrays, usually memory maps; masks: as long, uint8, 0 where a token is not scored as a
    target; none where all are scored.
    """

    def __init__(self, shards: Sequence[np.ndarray], masks: Sequence[np.ndarray] = ()):
        self.shards = list(shards)
        self.mask = Stream(masks) if masks else None
        self.ends = np.cumsum([len(shard) for shard in self.shards], dtype=np.int64).tolist()
        self.n_tokens = self.ends[-1] if self.ends else 0
        self.dtype = np.result_type(*self.shards) if self.shards else np.dtype("<u2")
        self.vocab_size = None  # this and the next two are of the dataset, once it is known
        self.eot_id = None
        self.path = ""
        self._spans = {}  # {block_size: what `spans` returned}

    @classmethod
    def joined(cls, streams: list["Stream"]) -> "Stream":
        """One stream of several. If any has a mask, all of a stream without one is scored."""
        shards = [shard for stream in streams for shard in stream.shards]
        masks = []
        if any(stream.mask is not None for stream in streams):
            for stream in streams:
                if stream.mask is None:
                    masks += [np.broadcast_to(np.uint8(1), len(s)) for s in stream.shards]
                else:
                    masks += stream.mask.shards
        return cls(shards, masks)

    def read(self, start: int, count: int, out: np.ndarray):
        """Copy tokens start .. start + count - 1 into `out`, which may have a wider type."""
        i = bisect_right(self.ends, start)
        shard_start = self.ends[i - 1] if i > 0 else 0
        begin = start - shard_start
        tokens = self.shards[i][begin : begin + count]
        if len(tokens) == count:
            out[:] = tokens
            return
        done = len(tokens)  # the rest is in the next shards
        out[:done] = tokens
        self.read(start + done, count - done, out[done:])

    def spans(self, block_size: int) -> Spans | None:
        """Windows that cut no document in two, see `cut_between_documents`; None without a mask.

        Windows with nothing to score are left out.
        """
        if self.mask is None:
            return None
        if block_size not in self._spans:
            self._spans[block_size] = self._find_spans(block_size)
        return self._spans[block_size]

    def _find_spans(self, block_size: int) -> Spans:
        begins = [np.array([0, self.n_tokens - 1])]
        scored = []
        offsets = [0, *self.ends[:-1]]
        for offset, shard, mask in zip(offsets, self.shards, self.mask.shards, strict=True):
            begins.append(np.flatnonzero(shard == self.eot_id) + offset)
            scored.append(np.flatnonzero(mask) + offset)
        begins = np.unique(np.concatenate(begins))
        scored = np.concatenate(scored)
        spans = cut_between_documents(begins.tolist(), block_size)
        # The targets of a window are the tokens begin + 1 .. end.
        n_before = np.searchsorted(scored, spans.begins + 1)
        n_up_to_end = np.searchsorted(scored, spans.ends + 1)
        any_scored = n_up_to_end > n_before
        return Spans(spans.begins[any_scored], spans.ends[any_scored], spans.n_longer)

    def scored(self, start: int, begin: int, end: int) -> np.ndarray:
        """Which of the targets begin .. end - 1 of the window at token `start`: uint8, 0 or 1."""
        mask = np.ones(end - begin, np.uint8)
        if self.mask is not None:
            self.mask.read(start + 1 + begin, len(mask), mask)
        return mask

    def gather(self, windows: Windows, rows: np.ndarray, x: np.ndarray, y: np.ndarray):
        """Put inputs and targets of B windows into x and y, int64 (B, block_size).

        y has IGNORE where a target is not scored. rows: (B, block_size + 1) of this stream's dtype,
        to work in. Raises ValueError if a token is outside the vocabulary.
        """
        block_size = x.shape[1]
        for row, start in zip(rows, windows.starts.tolist(), strict=True):
            count = min(block_size + 1, self.n_tokens - start)  # less in a split below a block
            self.read(start, count, row[:count])
        if self.vocab_size and int(rows.max(initial=0)) >= self.vocab_size:
            verify = command_line("prepare/verify.py", str(self.path))
            raise ValueError(
                f"dataset {self.path} has token id {rows.max()}, outside its tokenizer's "
                f"{self.vocab_size:,} ids: {verify} shows where; "
                f"copy or prepare it again"
            )
        x[:] = rows[:, :-1]
        y[:] = rows[:, 1:]
        partly_scored = (windows.begins > 0) | (windows.ends < block_size)
        if self.mask is not None:
            partly_scored[:] = True
        for i in np.flatnonzero(partly_scored):
            begin = windows.begins[i]
            end = windows.ends[i]
            y[i, :begin] = IGNORE
            y[i, end:] = IGNORE
            targets = y[i, begin:end]
            targets[self.scored(windows.starts[i], begin, end) == 0] = IGNORE


# -----------------------------------------------------------------------------
# A dataset


class Dataset:
    """What `open_dataset` found: `.train` and `.val` streams, `.meta`, tokenizer and identity.

    parts: (stream, weight) for each dataset of a mixture, one for a plain dataset; `.train` is all
    of them in a row. tokenizer_spec: what `load_tokenizer` is given.
    """

    def __init__(
        self,
        path: str,
        meta: dict,
        parts: list[tuple[Stream, float]],
        val: Stream,
        fingerprint: str,
        tokenizer_spec: str | Path,
    ):
        self.path = path
        self.meta = meta
        self.parts = parts
        streams = [stream for stream, _ in parts]
        self.train = streams[0] if len(streams) == 1 else Stream.joined(streams)
        self.val = val
        self.fingerprint = fingerprint
        self.tokenizer_spec = tokenizer_spec
        self.tokenizer_name = meta["tokenizer"]["name"]
        self.tokenizer_fingerprint = meta["tokenizer"]["sha256"]
        self.vocab_size = meta["tokenizer"]["vocab_size"]
        # Of chats, see text/chat.py; "plain": prompts and completions as they are; "": text.
        self.template = meta.get("template", "")
        self._tokenizer = None
        for stream in (self.train, self.val, *(stream for stream, _ in parts)):
            stream.vocab_size = self.vocab_size
            stream.eot_id = meta["tokenizer"].get("eot_id")
            stream.path = path

    def tokenizer(self) -> Tokenizer:
        """Loaded once: every evaluation and every save asks for it. Raises ValueError where it is
        another one than the ids were made with."""
        if self._tokenizer is None:
            tokenizer = load_tokenizer(self.tokenizer_spec)
            if tokenizer.fingerprint != self.tokenizer_fingerprint:
                raise ValueError(
                    f"{self.tokenizer_spec} holds another tokenizer than {self.path} was made with "
                    f"(sha256 {tokenizer.fingerprint[:16]}..., meta.json says "
                    f"{self.tokenizer_fingerprint[:16]}...): put that back, or prepare again"
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a prompt, as this dataset has them: after end-of-text, and in its template."""
        text, _ = chat_prompt([{"role": "user", "content": text}], self.template)
        return [self.tokenizer().eot_id, *self.tokenizer().encode(text)]


def open_dataset(path: str | Path, verify: bool = False) -> Dataset:
    """Open the dataset at `path`, checking every shard's size; `verify`: also checksums and ids.

    path: a folder of shards; `raw:TOKENIZER:FOLDER`, such as raw:gpt2:data/openwebtext, for .bin
    files of nanoGPT (no header) or llm.c without meta.json, of which those with "val" in their name
    are for validation; or a mixture with weights, `data/a:0.7,data/b:0.3`. A folder's name may have
    commas and colons: what there is under a longer name is meant. Raises FileNotFoundError or
    ValueError with one line for the user.
    """
    parts = [_path_and_weight(part) for part in _parts_of_mixture(str(path))]
    if len(parts) > 1:
        return _open_mixture(str(path), parts, verify)
    alone, weight = parts[0]
    mixture_counts([weight])  # which says if it is none
    return _open_alone(alone, verify)


def unprepared_parts(path: str) -> list[str]:
    """The datasets of `path`, as open_dataset takes it, that are not there. ValueError for one that
    is damaged."""
    missing = []
    for part in _parts_of_mixture(path):
        name, _ = _path_and_weight(part)
        try:
            _open_alone(name, verify=False)
        except FileNotFoundError:
            missing.append(name)
    return missing


def _open_alone(path: str, verify: bool) -> Dataset:
    if path.startswith("raw:") and not os.path.isdir(path):
        return _open_raw(path, verify)
    return _open_folder(path, verify)


# -----------------------------------------------------------------------------
# A folder of shards


def _open_folder(path: str, verify: bool) -> Dataset:
    folder = Path(path)
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(hints.instead_of_dataset(folder))
    shards = {split: [] for split in SPLITS}
    masks = {split: [] for split in SPLITS}
    checksums = []
    try:
        meta = read_meta(folder)
        check_meta(meta)
        for entry in meta["shards"]:
            if not SHARD_NAME.fullmatch(entry["name"]):
                raise ValueError(
                    f"{folder}/meta.json names {entry['name']!r}, which is no name of a shard; "
                    f"prepare it again"
                )
            file = folder / entry["name"]
            tokens, mask = open_shard(file, entry, meta["tokenizer"], verify)
            shards[entry["split"]].append(tokens)
            if mask is not None:
                masks[entry["split"]].append(mask)
            checksums += [entry[key] for key in ("sha256", "mask_sha256") if key in entry]
        train = Stream(shards["train"], masks["train"])
        val = Stream(shards["val"], masks["val"])
        fingerprint = hashlib.sha256("\n".join(checksums).encode()).hexdigest()
        return Dataset(path, meta, [(train, 1.0)], val, fingerprint, folder)
    except FAULTS as error:
        if isinstance(error, ValueError) and not isinstance(error, NotJSON):
            raise
        raise ValueError(
            f"{folder}/meta.json is damaged ({what_went_wrong(error)}); prepare it again"
        ) from error


def check_meta(meta: dict):
    """NotJSON unless a meta.json has what is read from it."""
    try:
        check_kinds("it", meta, {"tokenizer": dict, "shards": list})
        check_kinds("it", meta, {"template": str}, optional=True)
        about = meta["tokenizer"]
        check_kinds("tokenizer", about, {"name": str, "sha256": str, "vocab_size": int})
        check_kinds("tokenizer", about, {"eot_id": int}, optional=True)
        if not 1 <= about["vocab_size"] <= 2**32:
            raise ValueError(f"tokenizer: vocab_size is {about['vocab_size']}")
        for i, entry in enumerate(meta["shards"]):
            if not isinstance(entry, dict):
                raise ValueError(f"shard {i} is {entry!r:.40}, not an object")
            check_kinds(f"shard {i}", entry, {"name": str, "split": str, "tokens": int})
            check_kinds(f"shard {i}", entry, {"sha256": str, "mask_sha256": str}, optional=True)
            if entry["split"] not in SPLITS or entry["tokens"] < 0:
                raise ValueError(f"shard {i} is of no split, or has fewer than 0 tokens")
    except ValueError as error:
        raise NotJSON(str(error)) from error


# -----------------------------------------------------------------------------
# A mixture


def _parts_of_mixture(spec: str) -> list[str]:
    """`spec` cut at its commas, but for those in the name of a folder that there is."""
    pieces = spec.split(",")
    parts = []
    begin = 0
    while begin < len(pieces):
        end = begin + 1
        for longer in range(len(pieces), begin, -1):
            part = ",".join(pieces[begin:longer])
            path, _ = _path_and_weight(part)
            if _is_there(path):
                end = longer
                break
        parts.append(",".join(pieces[begin:end]))
        begin = end
    return parts


def _is_there(path: str) -> bool:
    if path.startswith("raw:") and not os.path.isdir(path):
        _, path = _tokenizer_and_folder(path)
    return os.path.isdir(path)


def _path_and_weight(part: str) -> tuple[str, float]:
    """A part of a mixture, PATH or PATH:WEIGHT; the colons of raw:TOKENIZER:FOLDER stay in it."""
    if _is_there(part):
        return part, 1.0
    path, _, number = part.rpartition(":")
    try:
        weight = float(number)
    except ValueError:  # what follows the last colon is a folder
        return part.strip(), 1.0
    if not _is_there(path):
        path = path.strip()
    return path or part, weight


def _open_mixture(path: str, parts: list[tuple[str, float]], verify: bool) -> Dataset:
    datasets = [_open_alone(part, verify) for part, _ in parts]
    weights = [weight for _, weight in parts]
    first = datasets[0]
    for other in datasets[1:]:
        if other.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise ValueError(
                f"dataset={path} mixes tokenizers: {first.path} has {first.tokenizer_name} "
                f"({first.tokenizer_fingerprint[:12]}), {other.path} has {other.tokenizer_name} "
                f"({other.tokenizer_fingerprint[:12]}); prepare them with the same one"
            )
    counts = mixture_counts(weights)
    identity = [[d.fingerprint, count] for d, count in zip(datasets, counts, strict=True)]
    return Dataset(
        path,
        first.meta,
        [(d.train, weight) for d, weight in zip(datasets, weights, strict=True)],
        Stream.joined([d.val for d in datasets]),
        hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        first.tokenizer_spec,
    )


# -----------------------------------------------------------------------------
# Files without meta.json: nanoGPT's and llm.c's


def _open_raw(path: str, verify: bool) -> Dataset:
    """raw:TOKENIZER:FOLDER, see `open_dataset`."""
    spec, folder = _tokenizer_and_folder(path)
    files = sorted(Path(folder).glob("*.bin"))
    if not files:
        raise FileNotFoundError(
            f"dataset={path}: no .bin files in {Path(folder)}; the form is raw:TOKENIZER:FOLDER"
        )
    tokenizer = load_tokenizer(spec)
    shards = {split: [] for split in SPLITS}
    identity = []
    for file in files:
        with open(file, "rb") as opened:
            beginning = opened.read(2**16)
        if ShardHeader.from_bytes(beginning).dtype is not None:
            tokens, _ = open_shard(file)
        else:
            tokens = _map_headerless(file, token_dtype(tokenizer.vocab_size))
        # Nothing vouches for these files, so look at the beginning of each; `verify` at all of it.
        looked_at = tokens if verify else tokens[:1_000_000]
        check_ids(file, looked_at, tokenizer.vocab_size)
        shards["val" if "val" in file.name else "train"].append(tokens)
        identity.append([file.name, file.stat().st_size, hashlib.sha256(beginning).hexdigest()])
    meta = {
        "tokenizer": {
            "name": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "sha256": tokenizer.fingerprint,
        }
    }
    train = Stream(shards["train"])
    val = Stream(shards["val"])
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return Dataset(path, meta, [(train, 1.0)], val, fingerprint, spec)


def _tokenizer_and_folder(path: str) -> tuple[str, str]:
    """Of raw:TOKENIZER:FOLDER, either of which may have colons: cut where such a folder is."""
    words = path.removeprefix("raw:").split(":")
    for n_words in range(1, len(words)):
        folder = ":".join(words[n_words:])
        tokenizer = ":".join(words[:n_words])
        is_tokenizer = n_words == 1 or os.path.exists(tokenizer)
        if is_tokenizer and os.path.isdir(folder):
            return tokenizer, folder
    return words[0], ":".join(words[1:])


def _map_headerless(file: Path, dtype: np.dtype) -> np.ndarray:
    n_bytes = file.stat().st_size
    if n_bytes % dtype.itemsize:
        raise ValueError(
            f"{file} has {n_bytes:,} bytes, which is no whole number of {dtype.name} tokens"
        )
    return map_array(file, dtype, 0)
