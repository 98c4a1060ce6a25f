"""Units to documents: text, JSON, CSV, parquet, pairs and chats."""

import csv
import io
import json
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from lathe.corpus.find import Source, _open
from lathe.text.chat import TEMPLATES, chat_prompt
from lathe.text.gpt2 import EOT
from lathe.text.tokenizer import replace_lone_surrogates

DELIMITERS = {"csv": ",", "tsv": "\t"}


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


def document_hash(text) -> int:
    """64 bits that decide a document's split and tell duplicates, from nothing but its text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


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
