"""Documents that occur twice, character for character: left out if the user wants; of one in both
splits, validation keeps its own."""

import os
from pathlib import Path

import numpy as np

from lathe.corpus.split import TRAIN
from lathe.corpus.tokens import Tokens

DUPLICATES_FILE = "duplicates.tmp"


def in_both_splits(unit: Tokens, validation: np.ndarray) -> np.ndarray:
    """Which of a unit's documents are for training though validation has them: hashes, sorted."""
    if not len(validation):
        return np.zeros(len(unit.hashes), bool)
    position = np.searchsorted(validation, unit.hashes)
    position[position == len(validation)] = 0
    return (unit.splits == TRAIN) & (validation[position] == unit.hashes)


class Duplicates:
    """Hashes of all documents so far, 8 bytes each: sorted in memory, and in a file for when the
    run is interrupted.

    `n_seen`: how many an earlier, interrupted run has stored; `last_kept`: whether the last
    document was stored, whose rest may come in the next unit.
    """

    def __init__(self, folder: Path, n_seen: int = 0, last_kept: bool = True):
        self.path = folder / DUPLICATES_FILE
        self.last_kept = last_kept
        with open(self.path, "a+b") as file:
            file.truncate(8 * n_seen)
            file.seek(0)
            self.hashes = np.sort(np.frombuffer(file.read(), np.uint64))

    @property
    def n_seen(self) -> int:
        return len(self.hashes)

    def kept(self, unit: Tokens, in_both: np.ndarray) -> np.ndarray:
        """Which of a unit's documents are kept; those left out are counted in the unit.

        in_both: which of them are for training though validation has them, see `in_both_splits`.
        """
        keep = ~in_both
        first_new = 0
        if unit.continues:  # its first document shares the fate of its beginning
            keep[0] = self.last_kept
            first_new = 1
        new = first_new + np.flatnonzero(keep[first_new:])
        keep[new] = self._add(unit.hashes[new])
        unit.counts["duplicates left out"] += int(np.count_nonzero(~keep[first_new:]))
        if len(keep):
            self.last_kept = bool(keep[-1])
        return keep

    def _add(self, hashes: np.ndarray) -> np.ndarray:
        """Which of `hashes` are new, the first of equal ones counting as new. They are on the disk
        when this returns."""
        values, first = np.unique(hashes, return_index=True)
        begin = np.searchsorted(self.hashes, values)
        end = np.searchsorted(self.hashes, values, side="right")
        is_new = begin == end
        self.hashes = np.insert(self.hashes, begin[is_new], values[is_new])
        new = np.zeros(len(hashes), bool)
        new[first[is_new]] = True
        with open(self.path, "ab") as file:
            file.write(hashes[new].tobytes())
            file.flush()
            os.fsync(file.fileno())
        return new
