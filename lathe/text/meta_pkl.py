"""nanoGPT's meta.pkl: the characters of its data/NAME, whose places are their ids.

The file is a pickle: a program for a small machine that can call any code. What stands here knows
the few of its instructions that build dicts of texts and numbers, and refuses all others.
"""

import pickletools
from pathlib import Path
from typing import Any

from lathe.reading import reading

LARGEST = 4_000_000  # bytes; the characters of Chinese take a twentieth
PUSHES = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BININT", "BININT1", "BININT2", "INT", "LONG1", "LONG"),
)
MARK = object()


def plain_value(data: bytes) -> Any:
    """The value of a pickle of dicts, texts and numbers. ValueError for any other instruction."""
    stack: list = []
    memo: dict[int, Any] = {}
    for instruction, argument, _ in pickletools.genops(data):
        name = instruction.name
        if name == "STOP":
            return stack.pop()
        if name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            stack.append(MARK)
        elif name in PUSHES:
            stack.append(argument)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            begin = len(stack) - stack[::-1].index(MARK)
            items = stack[begin:]
            del stack[begin - 1 :]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it has the instruction {name}, and may hold plain values alone")
    raise ValueError("it ends early")


def read_characters(path: Path) -> list[str]:
    """The characters in a meta.pkl, by their ids. Raises ValueError for anything but characters in
    the order of their codes, OSError."""
    with reading(path, "is no meta.pkl of nanoGPT's characters"):
        n_bytes = path.stat().st_size
        if n_bytes > LARGEST:
            raise ValueError(f"it has {n_bytes:,} bytes")
        meta = plain_value(path.read_bytes())
        if not isinstance(meta, dict) or not isinstance(meta.get("stoi"), dict):
            raise ValueError("it has no table stoi")
        ids = meta["stoi"]
        if not all(isinstance(char, str) and len(char) == 1 for char in ids):
            raise ValueError("stoi has what is no character")
        characters = sorted(ids)
        if [ids[char] for char in characters] != list(range(len(ids))):
            raise ValueError("its ids are not in the order of the characters' codes")
        return characters
