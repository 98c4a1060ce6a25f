"""Which documents are for training and which for validation: by hash, by position, or as given.

By hash: a document's own text decides. So the split does not depend on order, workers or other
files, it stays when files are added, and of equal documents all are on the same side.

By position: the last characters are for validation. For one text alone, so that both parts are of
it, and for so few documents that their hashes all fall into one part.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

import numpy as np

# Of a document, in arrays; TRAIN and VAL are places in SPLITS.
BY_HASH = -1
TRAIN = 0
VAL = 1


# -----------------------------------------------------------------------------
# By hash


def document_hash(text: str) -> int:
    """64 bits that decide a document's split and tell duplicates, from nothing but its text."""
    digest = blake2b(text.encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def hash_of_parts(texts: Iterable[str]) -> int:
    """`document_hash` of a document that comes in parts."""
    digest = blake2b(digest_size=8)
    for text in texts:
        digest.update(text.encode())
    return int.from_bytes(digest.digest(), "little")


def is_val_by_hash(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which of these documents (uint64) are for validation: `fraction` of all possible hashes."""
    return hashes < np.uint64(int(fraction * 2**64))


# -----------------------------------------------------------------------------
# By position

# What Unit.val_begins says beside a number of a character in the unit.
IN_LATER_UNIT = 2**62
IN_EARLIER_UNIT = -1


@dataclass(frozen=True)
class Position:
    """Where validation begins."""

    unit: int
    character: int  # in that unit

    def in_unit(self, unit: int) -> int:
        """The character of unit number `unit` with which validation begins, for Unit.val_begins."""
        if unit < self.unit:
            return IN_LATER_UNIT
        if unit > self.unit:
            return IN_EARLIER_UNIT
        return self.character


def position_of_last(fraction: float, characters: Iterable[int]) -> Position:
    """Where the last `fraction` of all text begins, at least one character; `characters`: of each
    unit."""
    ends = list(accumulate(characters))
    begin = min(int(ends[-1] * (1 - fraction)), ends[-1] - 1)
    unit = bisect_right(ends, begin)
    if unit == 0:
        return Position(0, begin)
    return Position(unit, begin - ends[unit - 1])
