"""progress.jsonl: what a preparation has safely done, for when it is interrupted.

The first line tells which preparation it is; each other line is a unit with its tokens on the disk.
"""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lathe.corpus.split import Position
from lathe.json_text import NotJSON, parse_json

JOURNAL_FILE = "progress.jsonl"


@dataclass(frozen=True)
class UnitRecord:
    """A unit that is done. The names are those in the file."""

    unit: str  # where it begins: a file and an offset
    sha256: str  # of what was read
    train: int  # tokens stored so far, this unit's included
    val: int
    seen: int  # different documents so far, where duplicates are left out
    kept: bool  # whether the last document was stored, with which the next unit may go on
    characters: int  # of its text
    counts: dict[str, int]  # of what was changed in it


NOTHING_DONE = UnitRecord("", "", train=0, val=0, seen=0, kept=True, characters=0, counts={})


@dataclass
class Journal:
    folder: Path
    signature: dict  # what decides the bytes that are written
    val_begins: Position | None  # where the split is by position
    records: list[UnitRecord] = field(default_factory=list)

    def begin(self, records: Iterable[UnitRecord]):
        """Write the file anew, with the records of units that need not be done again."""
        self.records = list(records)
        cut = None
        if self.val_begins is not None:
            cut = [self.val_begins.unit, self.val_begins.character]
        rows = [{"signature": self.signature, "cut": cut}, *map(asdict, self.records)]
        path = self.folder / JOURNAL_FILE
        temporary = path.with_name(f"{JOURNAL_FILE}.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, path)

    def append(self, record: UnitRecord):
        """Note a unit as done; its tokens must be on the disk by then."""
        self.records.append(record)
        with open(self.folder / JOURNAL_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")


def is_unfinished(folder: Path) -> bool:
    """Whether a preparation was interrupted in this folder."""
    try:
        with open(folder / JOURNAL_FILE, "rb") as file:
            return file.read(13) == b'{"signature":'
    except OSError:
        return False


def read_journal(folder: Path, signature: dict) -> Journal | None:
    """The journal of an interrupted run of the same preparation, or None."""
    rows = []
    # There may be none, or its last line was being written.
    with suppress(FileNotFoundError, UnicodeDecodeError, NotJSON):
        for line in (folder / JOURNAL_FILE).read_text(encoding="utf-8").splitlines():
            rows.append(parse_json(line, JOURNAL_FILE))
    try:
        if not rows or rows[0]["signature"] != signature:
            return None
        header, *records = rows
        val_begins = None
        if header["cut"] is not None:
            unit, character = header["cut"]
            val_begins = Position(unit, character)
        return Journal(folder, signature, val_begins, [UnitRecord(**row) for row in records])
    except (KeyError, TypeError, ValueError):  # JSON, but none of ours: begin anew
        return None
