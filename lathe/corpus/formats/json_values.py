"""JSON of other forms: an array of rows, or rows one after the other, each over any lines.

The cutter must parse to know where a row ends, so a block holds rows already, of which it keeps
the text alone where no more is asked for.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from lathe.corpus import units
from lathe.corpus.rules import Rules, decode, text_of
from lathe.corpus.source import Source
from lathe.corpus.units import Block, cut_stream, last_character_end

BETWEEN_ROWS = re.compile(r"[\s,]*")


def cut(source: Source, file: BinaryIO, rules: Rules) -> Iterator[Block]:
    rows = []
    size = 0
    number = 1  # of the first row of this block
    for where, row, length in _parse(source.label, _texts(source, file, rules)):
        rows.append(row if rules.template else text_of(where, row, rules))
        size += length
        if size >= units.UNIT_BYTES:
            yield Block(source.label, source.format, rows, line=number)
            number += len(rows)
            rows = []
            size = 0
    if rows or number == 1:
        yield Block(source.label, source.format, rows, line=number)


def read(block: Block, rules: Rules, counts: Counter) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(block.data, block.line):
        yield _where(block.label, number), row


def _where(label: str, number: int) -> str:
    return f"{label}: element {number}"


def _texts(source: Source, file: BinaryIO, rules: Rules) -> Iterator[str]:
    """The file's text in pieces."""
    for offset, data in cut_stream(file, last_character_end):
        yield decode(data, source.label, offset, rules, Counter())


def _parse(label: str, texts: Iterator[str]) -> Iterator[tuple[str, Any, int]]:
    """(where it stands, row, its length in characters) of each row, holding a piece or a row."""
    decoder = json.JSONDecoder()
    text = next(texts, "")
    is_array = text.lstrip().startswith("[")
    position = 0
    if is_array:
        position = text.find("[") + 1
    number = 1
    while True:
        position = BETWEEN_ROWS.match(text, position).end()
        if is_array and text.startswith("]", position):
            return
        problem = None
        try:
            row, end = decoder.raw_decode(text, position)
            may_be_cut = end == len(text)  # as a number might
        except json.JSONDecodeError as error:
            problem = error
            may_be_cut = error.pos >= len(text) - 10 or error.msg.startswith("Unterminated")
        if may_be_cut:
            more = next(texts, "")
            if more:
                text = text[position:] + more
                position = 0
                continue
        if position == len(text) and not is_array:
            return
        where = _where(label, number)
        if problem is not None:
            raise ValueError(f"{where} is not JSON: {problem.msg}") from problem
        yield where, row, end - position
        position = end
        number += 1
