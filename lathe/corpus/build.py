"""Any text to a dataset: files, folders, patterns, standard input or Hugging Face datasets, at the tokenizer's speed.

    python prepare/text.py --input book.txt --out data/book
    python prepare/text.py --input 'crawl/*.jsonl.zst' --field content --tokenizer gpt2 --out data/crawl
    zcat dump.gz | python prepare/text.py --input - --out data/dump

The same input and options give the same bytes on any number of workers. An interrupted run continues where it was
when the same command is given again.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Literal

import numpy as np

from lathe.corpus.cut import UNIT_BYTES, units
from lathe.corpus.find import Source, find_sources
from lathe.corpus.read import Rules
from lathe.corpus.workers import (
    characters_of_unit,
    in_order,
    measure_unit,
    pieces_of_unit,
    texts,
    tokenize_unit,
)
from lathe.data.shards import SHARD_TOKENS, SPLITS, ShardWriter, token_dtype, write_meta
from lathe.run.lock import lock_folder
from lathe.run.progress import with_bar
from lathe.text.bpe import train_bpe
from lathe.text.tokenizer import TIKTOKEN_ENCODINGS, load_tokenizer, train_char

UNFINISHED = ("progress.jsonl", "duplicates.tmp", "tokenizer.json", "tokenizer.tiktoken")  # what a run leaves


@dataclass
class Options:
    input: list[str] = field(default_factory=list)  # files, folders, patterns, hf:NAME[:CONFIG][:SPLIT], - for stdin
    out: str = ""  # folder for the dataset
    tokenizer: str = ""  # byte, char, gpt2, cl100k_base, o200k_base, bpe:N or a folder of one; bpe:4096 by default
    val_fraction: float = -1.0  # share of documents for validation; -1: a tenth, but 10 MB at most
    val_input: list[str] = field(default_factory=list)  # validation comes from these files instead
    field: str = "text"  # field or column that holds the text (jsonl, json, csv, tsv, parquet)
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] = "auto"  # auto: by the files' names
    newlines: Literal["lf", "keep"] = "lf"  # lf: Windows and old Mac line ends become \n
    errors: Literal["strict", "replace"] = "strict"  # what is not UTF-8: stop there, or put U+FFFD
    dedup: bool = False  # leave out documents that occurred before, character for character
    workers: int = 0  # processes; 0: one per core, or one for small inputs
    bpe_sample: int = 200  # MB of the input that bpe:N learns from, evenly spread
    shard_tokens: int = SHARD_TOKENS  # tokens per shard file
    overwrite: bool = False  # replace another dataset in the same folder

    def __post_init__(self):
        if not 0 <= self.val_fraction < 1 and self.val_fraction != -1:
            raise ValueError(f"val_fraction={self.val_fraction} must be at least 0 and below 1")
        for name, least, most in (("shard_tokens", 1, 2**31 - 1), ("bpe_sample", 1, 2**31), ("workers", 0, 1024)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} must be from {least} to {most}")
        size = self.tokenizer.removeprefix("bpe:")
        if size != self.tokenizer and not (size.isdecimal() and int(size) >= 257):
            raise ValueError(f"tokenizer={self.tokenizer}: write bpe:N with N from 257, such as bpe:4096")

    def rules(self, needs_hashes) -> Rules:
        return Rules(self.field, self.newlines, self.errors, needs_hashes)


def prepare(options) -> dict:
    """Make the dataset that `options` describe and return its meta. ValueError and OSError with one line for people."""
    options.tokenizer = options.tokenizer or "bpe:4096"
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file; name a folder")
    given = "train" if options.val_input else ""
    sources = find_sources([i for i in options.input if i != "-"], options.format, given, not_below=out)
    sources += find_sources(options.val_input, options.format, "val", not_below=out)
    with lock_folder("out", out):
        if "-" in options.input:
            sources.append(_spool_stdin(out, options.format, given))
        try:
            return _prepare(options, sources, out)
        except KeyboardInterrupt:
            _say("stopped: run the same command again to continue")
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise OSError(
                f"out={out}: cannot write more ({os.strerror(error.errno)}), about {_needed(sources) / 1e9:.2f} GB are "
                f"needed in all; make room and run the same command again to continue"
            ) from error
        finally:
            _remove(out, "stdin.tmp")


def _prepare(options, sources, out):
    began, fraction = time.monotonic(), options.val_fraction
    if fraction == -1:
        fraction = 0.0 if options.val_input else min(0.1, 1e7 / max(sum(s.size for s in sources), 1))
    without_effect = ("input", "val_input", "out", "workers", "overwrite")  # on what is written; files are in `files`
    signature = {key: value for key, value in vars(options).items() if key not in without_effect}
    signature["val_fraction"] = fraction
    files = hashlib.sha256(json.dumps([[s.label, s.size, s.split] for s in sources]).encode())
    signature["files"] = files.hexdigest()
    if finished := _finished(out, signature, sources, options.overwrite):
        _say(f"{out} is up to date: nothing to do")
        return finished

    # One text alone is split by position, so that both parts are of it; measuring it takes a pass.
    alone = len(sources) == 1 and sources[0].format == "text" and fraction > 0
    rules = options.rules(needs_hashes=options.dedup or not alone)
    run = _Run(options, rules, sources, out, fraction)
    header, done = _read_progress(out, signature)
    if header is None:
        _remove(out, *UNFINISHED)
        tokenizer = _tokenizer(run)
        tokenizer.save(out)
        cut = _cut(run.each(partial(measure_unit, rules=rules), "measuring"), fraction) if alone else None
        header = {"signature": signature, "cut": cut}
    else:
        tokenizer = load_tokenizer(out)
        _say(f"continuing in {out}: {len(done)} units of the input are done")
    lines, writers = run.tokenize(tokenizer, header, done)

    one_sided = min(w.n_tokens for w in writers) == 0 and fraction > 0 and header["cut"] is None
    if one_sided and max(w.n_tokens for w in writers) > 0 and not options.val_input:
        _say(f"all documents fell into one part: the last {fraction:.1%} of the characters become validation instead")
        header["cut"] = _cut((line["characters"] for line in lines), fraction)
        lines, writers = run.tokenize(tokenizer, header, [])
    counts = sum((Counter(line["counts"]) for line in lines), Counter())
    if not any(w.n_tokens for w in writers):
        _remove(out, *UNFINISHED)
        where, empty = sources[0].label + " and others" * (len(sources) > 1), counts["empty documents skipped"]
        raise ValueError(f"--input: no documents found in {where} ({len(sources)} files, {empty} documents empty)")
    if rules.template:
        for writer in (w for w in writers if w.n_tokens):  # what ends the last pair
            writer.append(np.array([tokenizer.eot_id]), np.ones(1, np.uint8))
            lines[-1][writer.split] = writer.n_tokens
    shards = [shard for writer in writers for shard in writer.finish()]
    _add_source_ranges(shards, lines)
    split = "given" if options.val_input else "position" if header["cut"] else "content hash"
    about = signature | {"input": options.input[:10], "val_input": options.val_input[:10], "split": split}
    about = {"options": about, "files": len(sources), "counts": dict(sorted(counts.items()))}
    meta = write_meta(out, tokenizer, shards, **about | ({"template": rules.template} if rules.template else {}))
    _remove(out, "progress.jsonl", "duplicates.tmp")
    _summarize(out, meta, time.monotonic() - began)
    return meta


# ------------------------------------------------------------------------------------------------- the run


@dataclass
class _Run:
    options: Options
    rules: Rules
    sources: list
    out: Path
    fraction: float  # of the documents, for validation

    def __post_init__(self):
        self.size = sum(s.size for s in self.sources)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = self.options.workers or (1 if self.size < 4 * UNIT_BYTES else cores)

    def each(self, task, what, every=1):
        """Results of `task` over the units, or one of so many, in order, with progress shown."""
        progress = _Progress(what, self.size)
        chosen = islice(units(self.sources, self.rules), 0, None, every)
        for unit, result in in_order(task, chosen, self.workers):
            yield result
            progress.show(unit.done_bytes)
        progress.close()

    def tokenize(self, tokenizer, header, done):
        """Tokenize all units into shards; returns progress.jsonl's lines and the writers, one per split.

        A unit is done once its line is in progress.jsonl, which is when its tokens are safely on the disk. Units of
        an interrupted run are skipped up to the first whose input is no longer what its line says.
        """
        todo, lines = self._units(header["cut"]), []
        for line in done:
            unit = next(todo, None)
            if unit is None or unit.sha256() != line["sha256"]:
                todo = chain([unit] if unit else [], todo)
                break
            lines.append(line)
        last = lines[-1] if lines else {"train": 0, "val": 0, "seen": 0, "kept": True}
        shard_tokens = self.options.shard_tokens
        writers = [ShardWriter(self.out, split, tokenizer, shard_tokens, last[split]) for split in SPLITS]
        seen = _Seen(self.out / "duplicates.tmp", last["seen"]) if self.options.dedup else None
        progress, kept = _Progress("tokenizing", self.size), last["kept"]
        task = partial(tokenize_unit, rules=self.rules, tokenizer=tokenizer)
        journal = self.out / "progress.jsonl"
        Path(f"{journal}.tmp").write_text("".join(json.dumps(row) + "\n" for row in [header, *lines]), "utf-8")
        os.replace(f"{journal}.tmp", journal)
        with open(journal, "a", encoding="utf-8") as file:
            for unit, result in in_order(task, todo, self.workers):
                keep = np.ones(len(result.lengths), bool)
                if seen is not None:
                    fresh = slice(int(result.continues), None)  # a continued document shares its beginning's fate
                    keep[: fresh.start] = kept
                    keep[fresh] = seen.add(result.hashes[fresh])
                    result.counts["duplicates left out"] += int((~keep[fresh]).sum())
                    kept = bool(keep[-1]) if len(keep) else kept
                by_hash = result.hashes < np.uint64(int(self.fraction * 2**64))
                to_val = np.where(result.splits < 0, by_hash, result.splits == 1)
                for writer, here in zip(writers, (keep & ~to_val, keep & to_val), strict=True):
                    chosen = slice(None) if here.all() else np.repeat(here, result.lengths)
                    writer.append(result.tokens[chosen], None if result.scored is None else result.scored[chosen])
                    writer.sync()
                name = f"{unit.blocks[0].label} at {unit.blocks[0].offset}"
                line = {"unit": name, "sha256": result.sha256, "train": writers[0].n_tokens}
                line |= {"val": writers[1].n_tokens, "seen": seen.sync() if seen else 0, "kept": kept}
                line |= {"characters": result.characters, "counts": result.counts}
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
                progress.show(unit.done_bytes, sum(w.n_tokens for w in writers))
        progress.close()
        return lines, writers

    def _units(self, cut):
        """All units, told where they are cut: [unit, character in it] with which validation begins, or None."""
        for i, unit in enumerate(units(self.sources, self.rules)):
            if cut:
                unit.cut = cut[1] if i == cut[0] else 2**62 if i < cut[0] else -1
            yield unit


class _Seen:
    """Hashes of all documents so far, 8 bytes each: sorted in memory, and in a file for when the run is interrupted."""

    def __init__(self, path, count):
        self.file = open(path, "a+b")
        self.file.truncate(8 * count)
        self.file.seek(0)
        self.sorted = np.sort(np.frombuffer(self.file.read(), np.uint64))

    def add(self, hashes) -> np.ndarray:
        """Which of `hashes` are new, the first of equal ones counting as new."""
        values, first = np.unique(hashes, return_index=True)
        places = np.searchsorted(self.sorted, values)
        unknown = np.searchsorted(self.sorted, values, side="right") == places
        self.sorted = np.insert(self.sorted, places[unknown], values[unknown])
        new = np.zeros(len(hashes), bool)
        new[first[unknown]] = True
        self.file.write(hashes[new].tobytes())
        return new

    def sync(self) -> int:
        self.file.flush()
        os.fsync(self.file.fileno())
        return len(self.sorted)


def _remove(out, *names):
    for name in names:
        (out / name).unlink(missing_ok=True)


def _cut(characters, fraction):
    """[unit, character in it] with which the last `fraction` of all characters begins."""
    ends = list(accumulate(characters))
    at = min(int(ends[-1] * (1 - fraction)), ends[-1] - 1)
    unit = bisect_right(ends, at)
    return [unit, at - (ends[unit - 1] if unit else 0)]


def _tokenizer(run):
    """The tokenizer that --tokenizer asks for, learned from the input if it is char or bpe:N."""
    spec = run.options.tokenizer
    if spec == "char":
        characters = set().union(*run.each(partial(characters_of_unit, rules=run.rules), "collecting characters"))
        tokenizer = train_char([characters])
    elif spec.startswith("bpe:"):
        every = max(1, math.ceil(run.size / (run.options.bpe_sample * 10**6)))
        counts = Counter()
        for of_unit in run.each(partial(pieces_of_unit, rules=run.rules), "counting", every):
            counts.update(of_unit)
        size = int(spec[4:])
        bar = partial(with_bar, what="merging pairs", total=size - 257)
        tokenizer = train_bpe(counts, size, watch=bar)
    elif spec in ("byte", *TIKTOKEN_ENCODINGS) or Path(spec).exists():
        tokenizer = load_tokenizer(spec)
    else:
        names = ", ".join(("byte", "char", "bpe:N", *TIKTOKEN_ENCODINGS))
        raise FileNotFoundError(f"tokenizer={spec} is neither one of {names} nor a folder with tokenizer.json")
    free = shutil.disk_usage(run.out).free
    if (needed := _needed(run.sources, tokenizer, run.rules)) > free:
        raise OSError(
            f"out={run.out}: about {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free: make room or name "
            f"another folder"
        )
    return tokenizer


def _needed(sources, tokenizer=None, rules=None) -> float:
    """Estimated bytes of all shards; with a tokenizer, from how it treats the beginning of the input."""
    text_bytes = sum(s.size * (4 if s.compression or s.format == "parquet" else 1) for s in sources)
    if tokenizer is None:
        return text_bytes
    first = islice(units(sources, rules), 1)
    text = next((text[:100_000] for unit in first for text in texts(unit, rules)), "")
    per_byte = (len(tokenizer.encode_numpy(text)) + 1) / max(len(text.encode()), 1)
    return text_bytes * min(per_byte, 1) * token_dtype(tokenizer.vocab_size).itemsize


def _spool_stdin(out, format, split) -> Source:
    """Standard input as a file in `out`: it is read more than once."""
    path = out / "stdin.tmp"
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 2**20)
    return Source(str(path), "text" if format == "auto" else format, "", path.stat().st_size, "<stdin>", split)


def _finished(out, signature, sources, overwrite):
    """The meta of a dataset in `out` that this very command made from files that have not changed since."""
    path = out / "meta.json"
    if not path.is_file():
        return None
    try:
        meta, written = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
        same = all(meta["options"][key] == value for key, value in signature.items())
    except (ValueError, LookupError, TypeError):  # damaged, or of another program
        meta, written, same = None, 0, False
    if not overwrite:
        if not same:
            raise ValueError(
                f"out={out} holds a dataset of other input or options: name another folder, or add --overwrite=true"
            )
        if all("://" in s.path or Path(s.path).stat().st_mtime < written for s in sources):
            return meta
    path.unlink()
    return None


def _read_progress(out, signature):
    """(header, lines) of an interrupted run of the same command, else (None, [])."""
    rows = []
    with suppress(FileNotFoundError, json.JSONDecodeError):  # there is none, or its last line was being written
        for row in (out / "progress.jsonl").read_text(encoding="utf-8").splitlines():
            rows.append(json.loads(row))
    if not rows or rows[0]["signature"] != signature:
        return None, []
    return rows[0], rows[1:]


def _add_source_ranges(shards, lines):
    """Note in each shard the first and last unit of the input that it has tokens of."""
    for split in SPLITS:
        ends, position = [line[split] for line in lines], 0
        for shard in (s for s in shards if s["split"] == split):
            first, position = bisect_right(ends, position), position + shard["tokens"]
            shard["source"] = [lines[i]["unit"] for i in (first, bisect_left(ends, position))]


# ------------------------------------------------------------------------------------------------- telling people


class _Progress:
    """A bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, what, total):
        self.what, self.total, self.began, self.next_line, self.bar = what, total, time.monotonic(), 10.0, None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False)

    def show(self, done, tokens=0):
        if self.bar is not None:
            if tokens:
                self.bar.set_postfix_str(f"{tokens / 1e6:.1f}M tokens", refresh=False)
            self.bar.update(done - self.bar.n)
        elif (elapsed := time.monotonic() - self.began) >= self.next_line:
            self.next_line = elapsed + 10
            left = elapsed * (self.total - done) / max(done, 1)
            _say(
                f"{self.what}: {done / 1e6:.0f} of {self.total / 1e6:.0f} MB, {done / 1e6 / elapsed:.1f} MB/s, "
                f"{tokens / 1e6:.1f}M tokens, {left:.0f} s left"
            )

    def close(self):
        if self.bar is not None:
            self.bar.close()


def _summarize(out, meta, seconds):
    for split in SPLITS:
        total = meta["totals"][split]
        per_token = total["bytes"] / max(total["tokens"] - total["documents"], 1)
        _say(
            f"{split}: {total['tokens']:,} tokens of {total['documents']:,} documents, {total['bytes']:,} bytes of "
            f"text ({per_token:.2f} per token)" + (f"; {total['scored']:,} are scored" if "scored" in total else "")
        )
    for what, n in meta["counts"].items():
        _say(f"{n:,} {what}")
    if not meta["totals"]["val"]["tokens"]:
        _say("no validation text: add --val_fraction or --val_input")
    if not meta["totals"]["train"]["tokens"]:
        _say("no text to train on: lower --val_fraction")
    name, ids = meta["tokenizer"]["name"], meta["tokenizer"]["vocab_size"]
    _say(f"{out} is ready in {seconds:.1f} s (tokenizer {name}, {ids:,} ids): python train.py --dataset={out}")


def _say(line):
    print(f"prepare: {line}", file=sys.stderr, flush=True)
