"""Plain text: a file is a document. A large one is cut where that costs no token."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import BinaryIO

from lathe.corpus import units
from lathe.corpus.report import say
from lathe.corpus.rules import Rules, decode, normalize
from lathe.corpus.source import Source, open_source
from lathe.corpus.split import hash_of_parts
from lathe.corpus.units import Block, cut_stream, last_character_end


def cut(source: Source, file: BinaryIO, rules: Rules) -> Iterator[Block]:
    pieces = cut_stream(file, last_safe_cut)
    first_two = list(islice(pieces, 2))
    whole_hash = None
    if len(first_two) == 2 and rules.needs_hashes:
        whole_hash = _hash_of_file(source, rules)
    for offset, data in chain(first_two, pieces):
        yield Block(source.label, source.format, data, offset, document_hash=whole_hash)


def read(block: Block, rules: Rules, counts: Counter) -> Iterator[tuple[str, str]]:
    yield block.label, decode(block.data, block.label, block.offset, rules, counts)


def _hash_of_file(source: Source, rules: Rules) -> int:
    """`document_hash` of a text too large for one block: as it is stored, read piece by piece."""
    not_counted = Counter()

    def texts() -> Iterator[str]:
        for offset, data in cut_stream(file.content, last_safe_cut):
            text = decode(data, source.label, offset, rules, not_counted)
            yield normalize(text, rules, not_counted)

    with open_source(source) as file:
        return hash_of_parts(texts())


# -----------------------------------------------------------------------------
# Where no token is cut


def last_safe_cut(data: bytes) -> int:
    """The last place that no tokenizer's pattern lets a token cross, or 0 to get to see more:
    between a letter or digit and a line end or, where there is none, before a space between two
    letters."""
    cut = _last_line_end_after_word(data) or _last_space_between_letters(data)
    if cut or len(data) < 4 * units.UNIT_BYTES:
        return cut
    say(f"no words in {len(data) / 1e6:.1f} MB: cutting anywhere, a token may differ")
    return last_character_end(data)


# The last byte of what may be a letter or digit, and a line end. Expressions find these places:
# a loop over all line ends took 19 s for 8 MB of blank lines.
WORD_AND_LINE_END = re.compile(rb"[0-9A-Za-z\x80-\xff](?=\r?\n)")
LETTER_AND_SPACE = re.compile(rb"[A-Za-z](?= [A-Za-z])")
WINDOW = 2**16  # bytes that are searched at a time, from the end on
LONGEST_AFTER = 2  # bytes that the expressions look at after what they match


def _matches_from_the_end(expression: re.Pattern, data: bytes) -> Iterator[int]:
    """Where the one-byte matches end, the last first."""
    for begin in range(max(0, len(data) - 1) // WINDOW * WINDOW, -1, -WINDOW):
        seen = data[begin : begin + WINDOW + LONGEST_AFTER]
        ends = [match.end() for match in expression.finditer(seen)]
        yield from (begin + end for end in reversed(ends) if end <= WINDOW)


def _last_line_end_after_word(data: bytes) -> int:
    for end in _matches_from_the_end(WORD_AND_LINE_END, data):
        last_bytes = data[max(0, end - 4) : end]  # a character has up to 4
        if last_bytes.decode("utf-8", "ignore")[-1:].isalnum():
            return end
    return 0


def _last_space_between_letters(data: bytes) -> int:
    return next(_matches_from_the_end(LETTER_AND_SPACE, data), 0)
