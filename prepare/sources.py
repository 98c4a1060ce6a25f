"""From files to documents: finds the inputs, cuts them into units of work, and reads a unit's documents.

A unit is about 4 MB of input, fixed by file and position alone, so the tokens do not depend on how many workers
share the units. One process cuts (reading, decompressing, finding safe places: hundreds of MB/s), and the workers
parse what they are handed; rows of parquet files they read themselves.
"""

import csv
import gzip
import io
import json
import logging
import os
import re
import sys
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from glob import glob
from hashlib import blake2b, sha256
from itertools import chain, islice
from pathlib import Path

from tokenizer import EOT, TEMPLATES, chat_prompt, replace_lone_surrogates

UNIT_BYTES = 4_000_000
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
DELIMITERS = {"csv": ",", "tsv": "\t"}
# What is taken from a folder as text, beside the formats above; files named one by one may have any name.
TEXT_SUFFIXES = frozenset(
    ".txt .text .md .markdown .rst .tex .org .log .html .htm .xml .srt .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu "
    ".cs .java .kt .scala .js .jsx .mjs .ts .tsx .go .rs .rb .php .swift .m .mm .sh .bash .pl .pm .lua .r .jl .hs .ml "
    ".clj .ex .exs .erl .elm .dart .f90 .f .sql .css .scss .yaml .yml .toml .ini .cfg .cmake .zig .nim .v .vhd .s .asm "
    ".lisp .el .scm .vim .proto .tcl .ps1 .bat".split()
)


@dataclass(frozen=True)
class Rules:
    """How inputs are read; the options of `prepare/text.py`, and below of `prepare/pairs.py`, of the same names."""

    field: str = "text"
    newlines: str = "lf"  # or "keep"
    errors: str = "strict"  # or "replace"
    needs_hashes: bool = True  # of documents larger than a block, which cost one more pass over the file
    template: str = ""  # "": the field of a row is a text; else rows are pairs, or messages in that field
    prompt_field: str = "prompt"
    completion_field: str = "completion"


@dataclass(frozen=True, slots=True)
class Source:
    path: str  # a file, or a URL that fsspec opens
    format: str
    compression: str  # "", ".gz" or ".zst"
    size: int  # bytes on disk
    label: str  # how messages name it
    split: str = ""  # "train" or "val" where the user decided, else ""


@dataclass(slots=True)
class Block:
    """A part of one file that can be turned into tokens on its own."""

    label: str
    format: str
    data: bytes | list  # bytes of whole lines or records; json: values; parquet: what _parquet_blocks puts there
    offset: int = 0  # of data in the (decompressed) file, in bytes
    line: int = 1  # number of data's first line; json: of its first element
    columns: list = field(default_factory=list)  # of csv and tsv
    hash: int | None = None  # of the whole document, where this is a piece of one
    split: str = ""


@dataclass(slots=True)
class Unit:
    blocks: list
    done_bytes: int  # of all input files on disk, up to the end of this unit
    cut: int | None = None  # character of this unit with which validation begins, where the split is by position

    def sha256(self) -> str:
        digest = sha256()
        for block in self.blocks:
            digest.update(f"{block.format} {len(block.data)}\n".encode())
            digest.update(block.data if isinstance(block.data, bytes) else json.dumps(block.data).encode())
        return digest.hexdigest()


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


# ------------------------------------------------------------------------------------------------- cutting into units


def units(sources, rules):
    """The units of all sources, in order. Small files share a unit; large ones are cut at places that cost no token."""
    blocks, size, done = [], 0, 0
    for source in sources:
        if rules.template and source.format == "text":
            raise ValueError(f"{source.label} has no rows: say with --format which kind of file it is, such as jsonl")
        for block, raw_position in _blocks(source, rules):
            blocks.append(block)
            size += len(block.data) if isinstance(block.data, bytes) else UNIT_BYTES
            if size >= UNIT_BYTES * 0.9:
                yield Unit(blocks, done + raw_position)
                blocks, size = [], 0
        done += source.size
    if blocks:
        yield Unit(blocks, done)


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


def _blocks(source, rules):
    """(block, bytes of the file read so far) for each block of a source."""
    raw, file = _open(source)
    with raw:
        try:
            cutters = {"parquet": _parquet_blocks, "json": _json_blocks}
            for block in cutters.get(source.format, _byte_blocks)(source, file, rules):
                block.split = source.split
                yield block, min(raw.tell(), source.size)
        except Exception as error:
            if isinstance(error, (EOFError, gzip.BadGzipFile, zlib.error)) or type(error).__name__ == "ZstdError":
                raise ValueError(f"{source.label} is damaged or cut short: {error}") from error
            raise


def _byte_blocks(source, file, rules):
    cutters = {"text": _cut_text, "jsonl": lambda data: data.rfind(b"\n") + 1}
    pieces = _cut_file(file, cutters.get(source.format, _cut_records))
    begin = list(islice(pieces, 2))
    if not begin:
        yield Block(source.label, source.format, b"")  # an empty file is an empty document, and counted
        return
    columns, line, whole_hash = [], 1, None
    if source.format == "text" and len(begin) > 1 and rules.needs_hashes:
        whole_hash = _hash_of_file(source, rules)
    if source.format in DELIMITERS:
        text = _decode(Block(source.label, source.format, begin[0][1]), rules, Counter())
        columns = next(csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITERS[source.format]), [])
    for offset, data in chain(begin, pieces):
        yield Block(source.label, source.format, data, offset, line, columns, whole_hash)
        line += data.count(b"\n")


def _cut_file(file, cut):
    """(offset, bytes) pieces; `cut` finds the last good place in a piece, or 0 to get to see more of the file."""
    buffer, offset, size = b"", 0, UNIT_BYTES
    while True:
        chunk = file.read(size)
        buffer += chunk
        if len(chunk) < size:
            break
        if at := cut(buffer):
            yield offset, buffer[:at]
            offset, buffer = offset + at, buffer[at:]
        size = max(UNIT_BYTES, len(buffer))  # doubles while nothing is found, so that long lines take linear time
    if buffer:
        yield offset, buffer


def _cut_text(data):
    """The last place that no tokenizer's pattern lets a token cross: a letter or digit and a line end, or, where
    there is none, a letter and one space before another letter."""
    newline = len(data)
    while (newline := data.rfind(b"\n", 0, newline)) > 0:
        end = newline - (data[newline - 1] == 13)  # before \r\n
        if data[max(0, end - 4) : end].decode("utf-8", "ignore")[-1:].isalnum():
            return end
    space = len(data)
    while (space := data.rfind(b" ", 0, space)) > 0:
        if data[space - 1 : space].isalpha() and data[space + 1 : space + 2].isalpha():
            return space
    if len(data) < 4 * UNIT_BYTES:
        return 0
    print(f"prepare: no words in {len(data) / 1e6:.1f} MB: cutting anywhere, a token may differ", file=sys.stderr)
    return _cut_characters(data)


def _cut_characters(data):
    end = len(data) - 1
    while end > 1 and (data[end] & 0xC0 == 0x80 or data[end - 1] == 13):  # inside a character, or after \r
        end -= 1
    return end


def _cut_records(data):
    """Behind the last line end outside quotes: one with an even number of quotation marks before it."""
    before, end = data.count(b'"'), len(data)
    while (newline := data.rfind(b"\n", 0, end)) >= 0:
        before -= data.count(b'"', newline, end)
        if before % 2 == 0:
            return newline + 1
        end = newline
    return 0


def _hash_of_file(source, rules) -> int:
    """`document_hash` of a text too large for one block."""
    digest = blake2b(digest_size=8)
    raw, file = _open(source)
    with raw:
        for offset, data in _cut_file(file, _cut_text):
            text = _decode(Block(source.label, "text", data, offset), rules, Counter())
            digest.update(_normalize(text, rules, Counter()).encode())
    return int.from_bytes(digest.digest(), "little")


def document_hash(text) -> int:
    """64 bits that decide a document's split and tell duplicates, from nothing but its text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _json_blocks(source, file, rules):
    """Texts of a JSON array, or of JSON values one after the other, without holding the whole file."""
    pieces = _cut_file(file, _cut_characters)
    chunks = (_decode(Block(source.label, "json", data, offset), rules, Counter()) for offset, data in pieces)
    decode, between, text = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*"), next(chunks, "")
    is_array = text.lstrip().startswith("[")
    position, values, size, number = text.find("[") + 1 if is_array else 0, [], 0, 1
    while True:
        position, problem = between.match(text, position).end(), None
        if is_array and text[position : position + 1] == "]":
            break
        try:
            value, end = decode(text, position)
            goes_on = end == len(text)  # as a number might
        except json.JSONDecodeError as error:
            problem, goes_on = error, error.pos >= len(text) - 10 or error.msg.startswith("Unterminated")
        if goes_on and (more := next(chunks, "")):
            text, position = text[position:] + more, 0
            continue
        if position == len(text) and not is_array:
            break
        where = f"{source.label}: element {number + len(values)}"
        if problem:
            raise ValueError(f"{where} is not JSON: {problem.msg}") from problem
        values.append(_value_of(value, where, rules))
        size, position = size + end - position, end
        if size >= UNIT_BYTES:
            yield Block(source.label, "json", values, line=number)
            number, values, size = number + len(values), [], 0
    if values or number == 1:
        yield Block(source.label, "json", values, line=number)


def _parquet_blocks(source, file, rules):
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{source.label} is not a parquet file, or damaged: {error}") from error
    names = table.schema_arrow.names
    if not rules.template and rules.field not in names:
        raise ValueError(_no_field(source.label, "column", rules.field, names))
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        size = sum(
            about.column(c).total_uncompressed_size
            for c in range(about.num_columns)
            if rules.template or about.column(c).path_in_schema == rules.field
        )
        step = max(1, about.num_rows * UNIT_BYTES // max(size, UNIT_BYTES))
        # The contents are read by the workers; these figures stand for them when an interrupted run goes on.
        figures = [about.num_rows, about.total_byte_size, size]
        for first in range(0, about.num_rows, step):
            rows = [source.path, source.size, group, first, min(first + step, about.num_rows), figures]
            yield Block(source.label, "parquet", rows, offset=first, line=group)


# ------------------------------------------------------------------------------------------------- reading a unit


def documents(unit, rules, counts):
    """(text, whole document's hash or None, begins a document, split, length of its prompt) of a unit. `counts` gets
    what was changed. A row of messages is a document per answer; their hashes differ in the low bits alone, so that
    all are in the same split."""
    for block in unit.blocks:
        for value in _values(block, rules, counts):
            if rules.template:
                pairs = [[_normalize(text, rules, counts) for text in pair] for pair in _pairs_of(*value, rules)]
                key = document_hash("".join(pairs[-1]))
                for i, (prompt, completion) in enumerate(pairs):
                    yield prompt + completion, key ^ i, True, block.split, len(prompt)
            elif text := _normalize(value, rules, counts):
                yield text, block.hash, block.format != "text" or block.offset == 0, block.split, 0
            else:
                counts["empty documents skipped"] += 1


def _pairs_of(where, row, rules) -> list[tuple[str, str]]:
    """(prompt, completion) of each answer in a row, in the template. ValueError, saying where, if there is none."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object with fields but {type(row).__name__}")
    if rules.field in row:
        messages = row[rules.field]
        if rules.template == "plain":
            raise ValueError(f"{where} has messages: they need --template {' or '.join(TEMPLATES)}")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f'{where}: {rules.field!r} is no list of {{"role": ..., "content": ...}}')
        for message in messages:
            if not isinstance(message.get("content"), str) or message.get("role") not in TEMPLATES["chat"]:
                raise ValueError(
                    f"{where}: a message needs a text as 'content' and a 'role' of {', '.join(TEMPLATES['chat'])}; "
                    f"found: {', '.join(f'{k}={v!r:.40}' for k, v in message.items()) or 'none'}"
                )
    else:
        for name in (rules.prompt_field, rules.completion_field):
            if name not in row:
                found = ", ".join(map(str, row)) or "none"
                raise ValueError(
                    f"{where} has no field {name!r}, nor messages in {rules.field!r}; found: {found}. Choose with "
                    f"--prompt_field and --completion_field, or --field for messages"
                )
            if not isinstance(row[name], str):
                raise ValueError(f"{where}: {name!r} is no text but {type(row[name]).__name__}")
        prompt, completion = row[rules.prompt_field], row[rules.completion_field]
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    pairs = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt, space = chat_prompt(messages[:i], rules.template)
            answer = message["content"] if rules.template == "plain" else message["content"].strip()
            pairs.append((prompt, space + answer))
            if not answer.strip():
                raise ValueError(f"{where}: the completion is empty; leave the row out, or give it text")
    if not pairs:
        raise ValueError(f"{where} has no message of the role assistant: nothing to learn from")
    return pairs


def _values(block, rules, counts):
    """The text of each document in a block, or, for pairs, (where it stands, the row)."""
    if block.format == "text":
        return [_decode(block, rules, counts)]
    if block.format == "json":
        return block.data
    readers = {"jsonl": _read_jsonl, "parquet": _read_parquet}
    return readers.get(block.format, _read_csv)(block, rules, counts)


def _read_jsonl(block, rules, counts):
    for number, line in enumerate(_decode(block, rules, counts).split("\n"), block.line):
        if line.strip():
            where = f"{block.label}:{number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
            yield _value_of(value, where, rules)


def _read_csv(block, rules, counts):
    if not rules.template and rules.field not in block.columns:
        raise ValueError(_no_field(f"{block.label}:1", "column", rules.field, block.columns))
    column = len(block.columns) - 1 if rules.template else block.columns.index(rules.field)
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(io.StringIO(_decode(block, rules, counts), newline=""), delimiter=DELIMITERS[block.format])
    line = block.line
    for i, row in enumerate(rows):
        if row and not (i == 0 and block.offset == 0):
            if len(row) <= column:
                missing = block.columns[column]
                raise ValueError(f"{block.label}:{line} has {len(row)} columns, {missing!r} is number {column + 1}")
            named = dict(zip(block.columns, row, strict=False))
            yield (f"{block.label}:{line}", named) if rules.template else row[column]
        line = block.line + rows.line_num


def _read_parquet(block, rules, counts):
    path, size, group, first, end, _ = block.data
    row, columns = 0, None if rules.template else [rules.field]
    batches = _parquet_table(path, size).iter_batches(
        min(1000, end - first), row_groups=[group], columns=columns, use_threads=False
    )
    for batch in batches:
        for i in range(max(0, first - row), min(len(batch), end - row)):
            where = f"{block.label}: row {row + i} of row group {group}"
            yield _value_of({name: batch.column(name)[i].as_py() for name in batch.schema.names}, where, rules)
        row += len(batch)
        if row >= end:
            return


@lru_cache(maxsize=1)
def _parquet_table(path, size):
    """A parquet file, kept open from unit to unit, since its table of contents may be large and far away."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(_open(Source(path, "parquet", "", size, path))[0])


def _value_of(value, where, rules):
    """The text of a row; or, for pairs, (where, row)."""
    if rules.template:
        return where, value
    name = rules.field
    if isinstance(value, dict):
        if name not in value:
            raise ValueError(_no_field(where, "field", name, value))
        value = value[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name!r} is no text but {type(value).__name__}; choose another with --field")
    return value


def _no_field(where, kind, name, names):
    return f"{where} has no {kind} {name!r}; found: {', '.join(map(str, names)) or 'none'}. Choose one with --field"


def _decode(block, rules, counts) -> str:
    data = block.data
    if block.offset == 0 and data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at = block.offset + error.start + len(block.data) - len(data)
        if rules.errors == "strict":
            bad = data[error.start : error.end].hex(" ")
            raise ValueError(
                f"{block.label} is not UTF-8 at byte {at} ({bad}); convert it or use --errors replace"
            ) from error
        text = data.decode(errors="replace")
        counts["invalid byte sequences replaced"] += text.count("\ufffd") - data.count("\ufffd".encode())
        return text


def _normalize(text, rules, counts) -> str:
    if rules.newlines == "lf" and "\r" in text:
        counts["Windows or Mac line ends converted"] += text.count("\r")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if EOT in text:
        counts[f"{EOT} in the text, kept as ordinary text"] += text.count(EOT)
    try:
        text.encode()
    except UnicodeEncodeError:
        clean = replace_lone_surrogates(text)
        counts["lone surrogates replaced"] += clean.count("\ufffd") - text.count("\ufffd")
        text = clean
    return text
