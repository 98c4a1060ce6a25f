"""JSON of other forms: arrays of rows, or rows one after the other, each over any lines.

The cutter must parse to know where a row ends, so a block holds rows already: of each its text or,
where more is asked for, itself, still as JSON.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from lathe.corpus import units
from lathe.corpus.rules import Rules, decode, text_of
from lathe.corpus.source import Source
from lathe.corpus.units import (
    Block,
    cut_stream,
    last_character_end,
    takes_too_much,
    too_large,
    too_many_values,
)
from lathe.json_text import DECODER, parse_json, what_is_wrong

SPACE = re.compile(r"\s*")
COMMA = re.compile(r"\s*,\s*(?=[^\s\]])")  # and a value after it
BETWEEN_ROWS = re.compile(r"[\s,]*")
# The last characters of a piece may be the beginning of a literal, or of an escape in a text.
LONGEST_PART = 10


def cut(source: Source, file: BinaryIO, rules: Rules) -> Iterator[Block]:
    counts = Counter()
    rest = _Rest(_texts(source, file, rules, counts))
    rows = []
    size = 0
    first = 1  # number of the first row of this block
    try:
        for number, (value, begin, end) in enumerate(_values(rest), 1):
            if rules.template:
                rows.append(rest.text[begin:end])
            else:
                rows.append(text_of(_where(source.label, number), value, rules))
            size += end - begin
            if size >= units.UNIT_BYTES:
                rest.forget()
                yield Block(source.label, source.format, rows, line=first, counts=dict(counts))
                counts.clear()
                first += len(rows)
                rows = []
                size = 0
    except _TooLarge as error:
        where = _where(source.label, first + len(rows))
        where = f"{where}, line {rest.line},"
        raise ValueError(
            too_many_values(where)
            if error.by_its_values
            else too_large(where, units.LARGEST_RECORD)
        ) from error
    except _Fault as error:
        where = _where(source.label, first + len(rows))
        raise ValueError(f"{where} is not JSON: {error} at line {rest.line}") from error
    if rows or first == 1:
        yield Block(source.label, source.format, rows, line=first, counts=dict(counts))


def read(block: Block, rules: Rules, counts: Counter) -> Iterator[tuple[str, Any]]:
    counts.update(block.counts)
    for number, row in enumerate(block.data, block.line):
        where = _where(block.label, number)
        yield where, parse_json(row, where) if rules.template else row


def _where(label: str, number: int) -> str:
    return f"{label}: element {number}"


def _texts(source: Source, file: BinaryIO, rules: Rules, counts: Counter) -> Iterator[str]:
    """The file's text in pieces."""
    for offset, data in cut_stream(file, last_character_end):
        yield decode(data, source.label, offset, rules, counts)


# -----------------------------------------------------------------------------
# Parsing, with no more of the file in memory than a piece or a row


class _Rest:
    """What is left of a file's text: as much of it as was asked for."""

    def __init__(self, texts: Iterator[str]):
        self._texts = texts
        self.text = next(texts, "")
        self.position = 0  # in `text`: what lies before is done
        self._lines_before = 0  # of the file, before `text`

    @property
    def line(self) -> int:
        """Number of the line that comes next."""
        return self._lines_before + self.text.count("\n", 0, self.position) + 1

    def grow(self) -> bool:
        """Read on, so that what is left is twice as long at least, or longer than a record may be.
        False at the end of the file."""
        text = next(self._texts, "")
        if not text:
            return False
        self.forget()
        left = len(self.text)
        missing = min(left, units.LARGEST_RECORD + LONGEST_PART - left) - len(text)
        more = [self.text, text]
        self.text = ""  # may be large
        while missing > 0 and (text := next(self._texts, "")):
            more.append(text)
            missing -= len(text)
        self.text = "".join(more)
        return True

    def forget(self):
        """Let go of what is done."""
        self._lines_before = self.line - 1
        self.text = self.text[self.position :]
        self.position = 0

    def next_character(self, skipped: re.Pattern = SPACE) -> str:
        """The next one after those, or "" at the end of the file."""
        while True:
            self.position = skipped.match(self.text, self.position).end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.grow():
                return ""

    def value(self) -> "_Value":
        """The value that stands next."""
        while True:
            problem = None
            if takes_too_much(self.text, self.position):
                raise _TooLarge(by_its_values=True)
            try:
                value, end = DECODER.raw_decode(self.text, self.position)
                may_be_cut = end == len(self.text)  # as a number might
            except json.JSONDecodeError as error:
                problem = error
                end = len(self.text)
                is_near_end = error.pos >= len(self.text) - LONGEST_PART
                may_be_cut = is_near_end or error.msg.startswith("Unterminated")
            except (ValueError, RecursionError) as error:
                raise _Fault(what_is_wrong(error)) from error
            if may_be_cut and end - self.position > units.LARGEST_RECORD:
                raise _TooLarge
            if may_be_cut and self.grow():
                continue
            if problem is not None:
                self.position = problem.pos
                raise _Fault(problem.msg.removesuffix(" at"))
            begin = self.position
            if end - begin > units.LARGEST_RECORD:
                raise _TooLarge
            self.position = end
            return _Value(value, begin, end)


class _Value(NamedTuple):
    value: Any
    begin: int  # in the text, which stays until the next one is asked for
    end: int


class _Fault(Exception):
    """Why no value stands where one should."""


class _TooLarge(Exception):
    """A value of more than LARGEST_RECORD characters, or of too many values for the memory."""

    def __init__(self, by_its_values: bool = False):
        super().__init__()
        self.by_its_values = by_its_values


def _values(rest: _Rest) -> Iterator[_Value]:
    """The values of a file, and those in its arrays."""
    while next_character := rest.next_character(skipped=BETWEEN_ROWS):
        if next_character == "[":
            yield from _values_in_array(rest)
        else:
            yield rest.value()


def _values_in_array(rest: _Rest) -> Iterator[_Value]:
    rest.position += len("[")
    next_character = rest.next_character()
    while next_character != "]":
        yield rest.value()
        comma = COMMA.match(rest.text, rest.position)
        if comma:  # as what follows says, only faster
            rest.position = comma.end()
            continue
        next_character = rest.next_character()
        if next_character == ",":
            rest.position += len(",")
            if rest.next_character() == "]":
                raise _Fault("a comma stands before the array's end")
        elif next_character != "]":
            raise _Fault("neither a comma nor the array's end stands before it")
    rest.position += len("]")
