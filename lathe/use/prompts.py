"""Prompts and rows from files."""

import json
import sys
from pathlib import Path


def read_bytes(path: str) -> tuple[bytes, str]:
    """Content and name of a file, or of standard input for "-"."""
    return (sys.stdin.buffer.read(), "standard input") if path == "-" else (Path(path).read_bytes(), path)


def read_text(path: str) -> str:
    """A file's text. Raises ValueError if it is not UTF-8."""
    raw, name = read_bytes(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt in {name} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None


def read_json_lines(path: str) -> list[tuple[str, dict]]:
    """[(where, row)] of the JSON objects in a file that has one a line. Raises ValueError, naming file and line."""
    rows, (raw, name) = [], read_bytes(path)
    for n, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{name}, line {n} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{name}, line {n} is not a JSON object")
            rows.append((f"{name}, line {n}", row))
    return rows
