"""How inputs become text: what the user decided, and the steps that all formats share.

bytes of a file -> text (`decode`); a row of data -> its text (`text_of`); text -> the text that is
stored (`normalize`). What is changed on the way is counted, in words, for the summary.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lathe.corpus.archives import what_instead_of_text
from lathe.json_text import refuse_repeated
from lathe.text.tokenizer import EOT, replace_lone_surrogates

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Rules:
    """The options of prepare/text.py, and below those of prepare/pairs.py, of the same names."""

    field: str = "text"
    newlines: str = "lf"  # or "keep"
    errors: str = "strict"  # or "replace"
    quotes: str = "auto"  # or "true" or "false"
    needs_hashes: bool = True  # of documents in several blocks, which costs another pass over them
    template: str = ""  # of pairs, in rows or in messages in that field; "": its text is meant
    prompt_field: str = "prompt"
    completion_field: str = "completion"


def decode(data: bytes, label: str, offset: int, rules: Rules, counts: Counter) -> str:
    """The text of bytes at `offset` of the file `label`. ValueError if they are not UTF-8, or
    begin an archive or what else is no text."""
    if offset == 0 and (instead := what_instead_of_text(data)):
        raise ValueError(f"{label} is {instead}")
    if offset == 0 and data.startswith(BYTE_ORDER_MARK):
        offset = len(BYTE_ORDER_MARK)
        data = data[offset:]
    return decode_utf8(data, label, offset, rules, counts)


def decode_utf8(data: bytes, label: str, offset: int, rules: Rules, counts: Counter) -> str:
    """As `decode`, of bytes that do not begin a file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if rules.errors == "strict":
            bad = data[error.start : error.end].hex(" ")
            raise ValueError(
                f"{label} is not UTF-8 at byte {offset + error.start} ({bad}); "
                f"convert it or use --errors replace"
            ) from error
    text = data.decode(errors="replace")
    n_replaced = text.count("\ufffd") - data.count("\ufffd".encode())
    counts["invalid byte sequences replaced"] += n_replaced
    return text


def text_of(where: str, row: Any, rules: Rules) -> str:
    """The text of a row: the row itself, or its field. ValueError, saying where, if it has none."""
    value = row
    if isinstance(row, dict):
        if rules.field not in row:
            raise ValueError(missing_field(where, "field", rules.field, row))
        refuse_repeated(where, row, [rules.field])
        value = row[rules.field]
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    kind = type(value).__name__
    if value is row:
        raise ValueError(f"{where} is no text and no object with fields but {kind}")
    raise ValueError(f"{where}: {rules.field!r} is no text but {kind}; choose another with --field")


def missing_field(where: str, kind: str, name: str, names: Iterable) -> str:
    """What is told where a row or table has no such field (or column: `kind`)."""
    present = list_names(names)
    return f"{where} has no {kind} {name!r}; found: {present}. Choose one with --field"


def refuse_same_names(where: str, name: str, names: Sequence[str]):
    """ValueError if more than one column has the name."""
    n_columns = names.count(name)
    if n_columns > 1:
        raise ValueError(f"{where} has {n_columns} columns {name!r}: rename all but one")


NAMES_LISTED = 20


def list_names(names: Iterable) -> str:
    """Names of fields for a message of one line: a file may have any, and any number of them."""
    names = [str(name) for name in names]
    listed = [f"{name:.40}" if name.isprintable() else f"{name!r:.40}" for name in names]
    if len(names) > NAMES_LISTED:
        listed[NAMES_LISTED:] = [f"and {len(names) - NAMES_LISTED:,} more"]
    return ", ".join(listed) or "none"


def normalize(text: str, rules: Rules, counts: Counter) -> str:
    """The text that is stored: line ends as asked for, nothing that UTF-8 cannot express."""
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
