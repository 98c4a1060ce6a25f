"""Text and JSON lines from a file that a user names, or from standard input for "-"."""

import json
import sys
from pathlib import Path


def read_text(path: str) -> str:
    """The text of a prompt. Raises ValueError if it is not UTF-8."""
    raw, name = _read_bytes(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {raw[error.start]:#04x}"
        raise ValueError(f"the prompt in {name} is not UTF-8: {byte}") from None


def read_json_lines(path: str) -> list[tuple[str, dict]]:
    """[(where, row)] of JSON objects, one a line. Raises ValueError, naming file and line."""
    raw, name = _read_bytes(path)
    rows = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object")
        rows.append((where, row))
    return rows


def _read_bytes(path: str) -> tuple[bytes, str]:
    """Content and name."""
    if path == "-":
        return sys.stdin.buffer.read(), "standard input"
    return Path(path).read_bytes(), path
