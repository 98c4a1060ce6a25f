"""JSON that others wrote: what it says, or one line on where it is none.

Python's reader has faults of its own kinds for numbers of thousands of digits and for what is
nested too deep, and of a key that comes twice it keeps the last without a word.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

BYTE_ORDER_MARK = "\ufeff"


class NotJSON(ValueError):
    """Of one line: where, and why."""


class RepeatedKeys(dict):
    """An object in which keys come more than once; the last values stand."""

    repeated: list[str]


def _object(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        value = RepeatedKeys(value)
        counts = Counter(key for key, _ in pairs)
        value.repeated = [key for key, n in counts.items() if n > 1]
    return value


def _object_without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict:
    value = _object(pairs)
    if isinstance(value, RepeatedKeys):
        raise ValueError(f"the key {value.repeated[0]!r:.40} comes twice in an object")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.40} is too large for a number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


# What others wrote, of which we want to know a part.
DECODER = json.JSONDecoder(object_pairs_hook=_object)
# What goes on to others as it is.
EXACT_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_without_repeated_keys,
    parse_float=_finite,
    parse_constant=_refuse_constant,
)


def parse_json(text: str, where: str, decoder: json.JSONDecoder = DECODER) -> Any:
    """The value that a text is. NotJSON, which begins with `where`, if it is none."""
    try:
        return decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise NotJSON(f"{where} is not JSON: {what_is_wrong(error)}") from error


def what_is_wrong(error: ValueError | RecursionError) -> str:
    """Of what a decoder raised, in a few words."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if not isinstance(error, json.JSONDecodeError):
        reason = str(error)
        if "integer string conversion" in reason:
            return "a number has thousands of digits"
        return reason
    if error.doc.startswith(BYTE_ORDER_MARK):
        return "it begins with a byte order mark, which only a file may"
    position = f"column {error.colno}"
    if "\n" in error.doc.rstrip("\n"):
        position = f"line {error.lineno}, {position}"
    return f"{error.msg.removesuffix(' at')} at {position}"


def read_json(path: Path) -> dict:
    """The object in a file. OSError; NotJSON, which begins with its path."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotJSON(f"{path} is not UTF-8 at byte {error.start}") from error
    value = parse_json(text, str(path))
    if not isinstance(value, dict):
        raise NotJSON(f"{path} is no JSON object")
    return value


def refuse_repeated(where: str, row: dict, names: Iterable[str]):
    """ValueError if one of these keys comes more than once in a row: which value is meant?"""
    if isinstance(row, RepeatedKeys):
        for name in names:
            if name in row.repeated:
                raise ValueError(f"{where} has the key {name!r} more than once: keep one")
