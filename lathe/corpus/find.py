"""Which files an input means."""

import gzip
import io
import logging
import os
import sys
from dataclasses import dataclass
from glob import glob
from pathlib import Path

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
# What is taken from a folder as text, beside the formats above; files named one by one may have any name.
TEXT_SUFFIXES = frozenset(
    ".txt .text .md .markdown .rst .tex .org .log .html .htm .xml .srt .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu "
    ".cs .java .kt .scala .js .jsx .mjs .ts .tsx .go .rs .rb .php .swift .m .mm .sh .bash .pl .pm .lua .r .jl .hs .ml "
    ".clj .ex .exs .erl .elm .dart .f90 .f .sql .css .scss .yaml .yml .toml .ini .cfg .cmake .zig .nim .v .vhd .s .asm "
    ".lisp .el .scm .vim .proto .tcl .ps1 .bat".split()
)


@dataclass(frozen=True, slots=True)
class Source:
    path: str  # a file, or a URL that fsspec opens
    format: str
    compression: str  # "", ".gz" or ".zst"
    size: int  # bytes on disk
    label: str  # how messages name it
    split: str = ""  # "train" or "val" where the user decided, else ""


# ------------------------------------------------------------------------------------------------- finding files


def find_sources(inputs, format="auto", split="", not_below=None) -> list[Source]:
    """The files behind `inputs`: paths, folders, glob patterns and hf:NAME[@REVISION][:CONFIG][:SPLIT], each file once.

    A folder gives its text, code and data files, sorted; `not_below`, the folder written to, is left out.
    """
    found = {}
    for name in inputs:
        path = Path(name)
        if name.startswith("hf:"):
            files = _hub_files(name)
        elif path.is_dir():
            files = _files_below(name, format, not_below)
        elif path.is_file() or "://" in name:
            files = [name]
        elif any(c in name for c in "*?["):
            files = sorted(p for p in map(Path, glob(name, recursive=True, include_hidden=True)) if p.is_file())
        else:
            raise FileNotFoundError(f"--input {name}: no such file or folder")
        if not files:
            raise FileNotFoundError(f"--input {name}: no documents found (no text or data files there)")
        found |= {str(p): _source(str(p), format, split) for p in files}
    return list(found.values())


def _files_below(folder, format, not_below):
    """Files of a folder in a fixed order, without hidden ones; strings, since there may be a million."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
        if not_below is not None and Path(root).resolve() == Path(not_below).resolve():
            folders.clear()
            continue
        for name in sorted(names):
            suffix = _without_compression(name)[1]
            if not name.startswith(".") and (format != "auto" or suffix in FORMATS or suffix in TEXT_SUFFIXES):
                found.append(os.path.join(root, name))
    return found


def _without_compression(name):
    """(compression, suffix) of a file name: a.jsonl.zst -> (.zst, .jsonl)."""
    suffixes = [s.lower() for s in Path(name).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    return compression, suffixes[-1] if suffixes else ""


def _source(path, format, split) -> Source:
    compression, suffix = _without_compression(path)
    if "://" in path:
        import fsspec

        try:
            size = fsspec.url_to_fs(path)[0].size(path) or 0
        except Exception as error:  # each file system has its own kinds
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise OSError(f"--input {path}: cannot be opened ({reason})") from error
    else:
        size = Path(path).stat().st_size
    return Source(path, FORMATS.get(suffix, "text") if format == "auto" else format, compression, size, path, split)


def _hub_files(spec) -> list[str]:
    """The files of a dataset that `datasets` knows, by hub name or folder; our own readers open them directly."""
    import datasets

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no line per retry: our own says what came of them
    name, *rest = spec.removeprefix("hf:").split(":")
    name, _, revision = name.partition("@")
    if not name:
        raise ValueError(f"--input {spec} names no dataset: write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT")
    if not (local := Path(name).is_dir()):
        print(f"prepare: asking the Hugging Face Hub for {name}", file=sys.stderr, flush=True)
    try:
        names = datasets.get_dataset_config_names(name, revision=revision or None)
        config = rest.pop(0) if rest and rest[0] in names else None
        if config is None and len(names) > 1 and "default" not in names:
            raise ValueError(f"choose a configuration, hf:{name}:CONFIG, of: {', '.join(names)}")
        by_split = datasets.load_dataset_builder(name, config, revision=revision or None).config.data_files or {}
    except Exception as error:  # its own kinds, and those of every file system below it
        reason = f"{type(error).__name__}: {error}".splitlines()[0].removeprefix("ValueError: ")
        if not local:
            reason += f"; if it cannot be reached, download the files of https://huggingface.co/datasets/{name} "
            reason += "elsewhere and give --input FOLDER"
        raise OSError(f"--input {spec}: datasets cannot open it: {reason}") from error
    split = rest[0] if rest else "train"
    if split not in by_split:
        raise ValueError(
            f"--input {spec}: no split or configuration {split!r}; splits: {', '.join(map(str, by_split))}"
        )
    return list(by_split[split])


def _open(source):
    if "://" in source.path:
        import fsspec

        raw = fsspec.open(source.path, "rb").open()
    else:
        raw = open(source.path, "rb")
    if source.compression == ".gz":
        return raw, io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if source.compression == ".zst":
        import zstandard

        return raw, io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
    return raw, raw
