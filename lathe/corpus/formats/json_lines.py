"""JSON lines: a row per line, an object with fields or a text by itself."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from lathe.corpus import units
from lathe.corpus.rules import Rules, decode
from lathe.corpus.source import Source
from lathe.corpus.units import Block, cut_records, takes_too_much, too_many_values
from lathe.json_text import NotJSON, parse_json


def cut(source: Source, file: BinaryIO, rules: Rules) -> Iterator[Block]:
    line = 1

    def where() -> str:
        return f"{source.label}:{line}"

    for offset, data in cut_records(file, _last_line_end, where, units.LARGEST_RECORD):
        yield Block(source.label, source.format, data, offset, line)
        line += data.count(b"\n")


def _last_line_end(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def read(block: Block, rules: Rules, counts: Counter) -> Iterator[tuple[str, Any]]:
    lines = decode(block.data, block.label, block.offset, rules, counts).split("\n")
    lines.reverse()
    number = block.line - 1
    while lines:
        line = lines.pop()  # which may be large: it is held once
        number += 1
        if not line or line.isspace():
            continue
        where = f"{block.label}:{number}"
        if takes_too_much(line):
            raise ValueError(too_many_values(where))
        try:
            row = parse_json(line, where)
        except NotJSON as error:
            if _may_end_elsewhere(error.__cause__):
                raise ValueError(f"{error}; {OTHER_FORMS}") from error
            raise
        del line
        if isinstance(row, list):
            raise ValueError(f"{where} is a list, no row: {OTHER_FORMS}")
        yield where, row


OTHER_FORMS = "where rows do not stand on one line each, add --format=json"


def _may_end_elsewhere(error: BaseException | None) -> bool:
    """Whether a line holds more than a value, or the beginning of one."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    ends_early = not error.doc[error.pos :].strip().strip("[{")
    return ends_early or error.msg.startswith("Extra data")
