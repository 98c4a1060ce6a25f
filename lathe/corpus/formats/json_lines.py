"""JSON lines: a row per line, an object with fields or a text by itself."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from lathe.corpus.rules import Rules, decode
from lathe.corpus.source import Source
from lathe.corpus.units import Block, cut_stream
from lathe.json_text import parse_json


def cut(source: Source, file: BinaryIO, rules: Rules) -> Iterator[Block]:
    line = 1
    for offset, data in cut_stream(file, _last_line_end):
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
        yield where, parse_json(line, where)
