"""Text and JSON lines from a file that a user names, or from standard input for "-"."""

import codecs
import sys
from pathlib import Path

from lathe.json_text import EXACT_DECODER, parse_json
from lathe.terminal import print_note

BYTE_ORDER_MARK = "\ufeff"


def read_text(path: str) -> str:
    """The text of a prompt, with a byte order mark left out and line ends as in training; either
    is said. Raises ValueError if it is not UTF-8."""
    raw, name = _read_bytes(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        fault = f"byte {error.start} is {raw[error.start]:#04x}"
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            fault = "it is UTF-16, save it as UTF-8"
        raise ValueError(f"the prompt in {name} is not UTF-8: {fault}") from None
    changes = []
    if text.startswith(BYTE_ORDER_MARK):
        text = text.removeprefix(BYTE_ORDER_MARK)
        changes.append("byte order mark left out")
    if "\r" in text:
        changes.append(f"{text.count(chr(13)):,} Windows or Mac line ends converted")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if changes:
        print_note(f"the prompt in {name}: {', '.join(changes)}")
    return text


def read_json_lines(path: str) -> list[tuple[str, dict]]:
    """[(where, row)] of JSON objects, one a line. Raises ValueError, naming file and line."""
    raw, name = _read_bytes(path)
    rows = []
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 at byte {error.start}") from None
        row = parse_json(text, where, EXACT_DECODER)
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object")
        rows.append((where, row))
    return rows


def _read_bytes(path: str) -> tuple[bytes, str]:
    """Content and name."""
    if path == "-":
        return sys.stdin.buffer.read(), "standard input"
    return Path(path).read_bytes(), path
