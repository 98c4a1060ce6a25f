"""One door for files that others wrote: whatever is wrong with one is one line that names it.

A file may be whole by its checksums and wrong all the same: other types, missing keys, numbers of
thirty digits, nests. What reads it, and what uses what was read for the first time, stands in

    with reading(path):
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What code that expects other content raises. RuntimeError: torch's, and RecursionError.
FAULTS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@contextmanager
def reading(
    path: Path, what: str = "is damaged, or not what its name says", advises: bool = False
) -> Iterator[None]:
    """Turn any fault of what is read inside into a ValueError of one line that names the file (or
    folder). A ValueError that names it already stays as it is; advises=True: so does any other,
    since what stands inside has its own words for users."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the libraries that read have many kinds of their own
        if isinstance(error, ValueError) and (advises or str(path) in str(error)):
            raise
        raise ValueError(f"{path} {what}: {what_went_wrong(error)}") from error


def what_went_wrong(error: Exception) -> str:
    """In a few words, on one line."""
    lines = str(error).strip().splitlines()
    reason = lines[0][:160] if lines else ""
    if isinstance(error, KeyError):
        return f"it lacks {reason}"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return reason or type(error).__name__


# -----------------------------------------------------------------------------
# What a value of JSON must be

KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "an object",
    list: "a list",
    bool: "true or false",
}
LARGEST_NUMBER = 2**63  # no size, count or place in a file is larger


def is_of(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of this type. true is no number, 1 may stand for 1.0."""
    if isinstance(value, bool) and kind is not bool:
        return False
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        return False
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind)


def check_kinds(where: str, values: dict, kinds: dict[str, type], optional: bool = False):
    """ValueError, which begins with `where`, unless the keys have values of these types; an
    optional one may be missing or null."""
    for name, kind in kinds.items():
        value = values.get(name)
        if value is None and optional:
            continue
        if name not in values:
            raise ValueError(f"{where} lacks {name}")
        if not is_of(value, kind):
            raise ValueError(f"{where}: {name} is {value!r:.40}, not {KINDS[kind]}")
