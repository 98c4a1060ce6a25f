"""JSON lines: a row per line, an object with fields or a text by itself."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from lathe.corpus.rules import Rules, decode
from lathe.corpus.source import Source
from lathe.corpus.units import Block, cut_records
from lathe.json_text import NotJSON, parse_json


def cut(source: Source, file: BinaryIO, rules: Rules) -> Iterator[Block]:
    line = 1

    def where() -> str:
        return f"{source.label}:{line}"

    for offset, data in cut_records(file, _last_line_end, where):
        yield Block(source.label, source.format, data, offset, line)
        line += data.count(b"\n")


def _last_line_end(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def read(block: Block, rules: Rules, counts: Counter) -> Iterator[tuple[str, Any]]:
    text = decode(block.data, block.label, block.offset, rules, counts)
    for number, line in enumerate(text.split("\n"), block.line):
        if not line.strip():
            continue
        where = f"{block.label}:{number}"
        try:
            row = parse_json(line, where)
        except NotJSON as error:
            if _may_end_elsewhere(error.__cause__):
                raise ValueError(f"{error}; {OTHER_FORMS}") from error
            raise
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
