"""The options of a preparation, and what they come down to for the files that are there."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from lathe.corpus.find import Inputs
from lathe.corpus.rules import Rules
from lathe.corpus.source import Source
from lathe.data.shards import SHARD_TOKENS
from lathe.fields import PathName

Format = Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"]


@dataclass
class Options:
    # files, folders, patterns, URLs, hf:NAME, or -
    input: list[PathName] = field(default_factory=list)
    out: PathName = ""  # folder for the dataset
    # byte, char, gpt2, cl100k_base, o200k_base, bpe:N (N=4096) or a folder
    tokenizer: PathName = ""
    val_fraction: float = -1.0  # share of documents for validation; -1: a tenth, but 10 MB at most
    # validation comes from these files instead
    val_input: list[PathName] = field(default_factory=list)
    field: str = "text"  # field or column that holds the text (jsonl, json, csv, tsv, parquet)
    format: Format = "auto"  # of all files; auto: each by its name
    newlines: Literal["lf", "keep"] = "lf"  # lf: Windows and old Mac line ends become \n
    errors: Literal["strict", "replace"] = "strict"  # what is not UTF-8: stop there, or put U+FFFD
    # whether fields of tables may stand in quotes; auto: in csv, not in tsv
    quotes: Literal["auto", "true", "false"] = "auto"
    dedup: bool = False  # leave out documents that occurred before, character for character
    workers: int = 0  # processes; 0: one per core, or one for small inputs
    bpe_sample: int = 200  # MB of the input that bpe:N learns from, evenly spread
    shard_tokens: int = SHARD_TOKENS  # tokens per shard file
    overwrite: bool = False  # replace another dataset in the same folder

    def __post_init__(self):
        if not 0 <= self.val_fraction < 1 and self.val_fraction != -1:
            raise ValueError(f"val_fraction={self.val_fraction} must be at least 0 and below 1")
        limits = {"shard_tokens": (1, 2**31 - 1), "bpe_sample": (1, 2**31), "workers": (0, 1024)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}={value} must be from {least} to {most}")
        if self.tokenizer.startswith("bpe:"):
            size = self.tokenizer.removeprefix("bpe:")
            if not size.isdecimal() or int(size) < 257:
                raise ValueError(
                    f"tokenizer={self.tokenizer}: write bpe:N with N from 257, such as bpe:4096"
                )

    def rules(self, needs_hashes: bool) -> Rules:
        return Rules(
            field=self.field,
            newlines=self.newlines,
            errors=self.errors,
            quotes=self.quotes,
            needs_hashes=needs_hashes,
        )


# -----------------------------------------------------------------------------
# What they come down to

TABLES = ("csv", "tsv")  # the formats for which `quotes` matters

DEFAULT_TOKENIZER = "bpe:4096"
# Options without effect on what is written; for the inputs, the files count.
WITHOUT_EFFECT = ("input", "val_input", "out", "workers", "overwrite")


@dataclass(frozen=True)
class Plan:
    """A preparation with everything decided."""

    options: Options  # as the user gave them
    out: Path
    sources: list[Source]
    left_out: Counter[str]  # what is not read, by the reason
    input_bytes: int  # on disk, of all sources
    tokenizer: str
    val_fraction: float  # of documents or characters
    by_position: bool  # whether the split is known to be by position before a look at the text
    rules: Rules
    signature: dict  # what decides the bytes that are written


def make_plan(options: Options, out: Path, inputs: Inputs) -> Plan:
    sources = inputs.sources
    input_bytes = sum(source.size for source in sources)
    tokenizer = options.tokenizer or DEFAULT_TOKENIZER
    val_fraction = options.val_fraction
    if val_fraction == -1:
        val_fraction = 0.0 if options.val_input else min(0.1, 1e7 / max(input_bytes, 1))
    # One text alone is split by position, so that both parts are of it.
    by_position = len(sources) == 1 and sources[0].format == "text" and val_fraction > 0
    signature = {k: v for k, v in vars(options).items() if k not in WITHOUT_EFFECT}
    signature["tokenizer"] = tokenizer
    signature["val_fraction"] = val_fraction
    signature["files"] = _fingerprint(sources)
    if not any(source.format in TABLES for source in sources):
        del signature["quotes"]
    return Plan(
        options=options,
        out=out,
        sources=sources,
        left_out=inputs.left_out.counts,
        input_bytes=input_bytes,
        tokenizer=tokenizer,
        val_fraction=val_fraction,
        by_position=by_position,
        rules=options.rules(needs_hashes=options.dedup or not by_position),
        signature=signature,
    )


def options_without_effect(plan: Plan) -> list[str]:
    """What was asked for and changes nothing for these inputs, with the reason."""
    options = plan.options
    formats = {source.format for source in plan.sources}
    acts = {
        "field": ("there are no rows", bool(formats - {"text"})),
        "quotes": ("there are no tables", bool(formats & set(TABLES))),
        "bpe_sample": ("the tokenizer is not learned", plan.tokenizer.startswith("bpe:")),
        "val_fraction": ("validation comes from val_input", not options.val_input),
    }
    idle = []
    for option in fields(options):
        why, has_effect = acts.get(option.name, ("", True))
        if not has_effect and getattr(options, option.name) != option.default:
            idle.append(f"{option.name} (since {why})")
    return idle


def _fingerprint(sources: Iterable[Source]) -> str:
    identities = [source.identity() for source in sources]
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()
