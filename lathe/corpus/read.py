"""Units to documents."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lathe.corpus.formats import FORMATS
from lathe.corpus.pairs import pairs_of
from lathe.corpus.rules import Rules, normalize, text_of
from lathe.corpus.split import document_hash
from lathe.corpus.units import Block, Unit


@dataclass(slots=True)
class Document:
    """A document, or a piece of one that is larger than a unit."""

    text: str
    split: str  # "train" or "val" where the user decided, else ""
    begins: bool = True  # False: an earlier unit has its beginning
    whole_hash: int | None = None  # what decides split and duplicates, if not `text` alone
    n_prompt: int = 0  # characters of a prompt, with which it begins

    def hash(self) -> int:
        return document_hash(self.text) if self.whole_hash is None else self.whole_hash


def documents(unit: Unit, rules: Rules, counts: Counter) -> Iterator[Document]:
    """The documents of a unit in order, without empty ones. `counts` gets what was changed."""
    for block in unit.blocks:
        rows = FORMATS[block.format].read(block, rules, counts)
        if rules.template:
            yield from _answers(rows, block, rules, counts)
        else:
            yield from _texts(rows, block, rules, counts)


def _texts(
    rows: Iterable[tuple[str, Any]], block: Block, rules: Rules, counts: Counter
) -> Iterator[Document]:
    """A document for each row, or piece of a large text."""
    begins = block.begins_document
    for where, row in rows:
        text = normalize(text_of(where, row, rules), rules, counts)
        if text:
            yield Document(text, block.split, begins, block.document_hash)
        else:
            counts["empty documents skipped"] += 1


def _answers(
    rows: Iterable[tuple[str, Any]], block: Block, rules: Rules, counts: Counter
) -> Iterator[Document]:
    """A document for each answer in a row of messages, or one for a prompt and completion."""
    for where, row in rows:
        pairs = pairs_of(where, row, rules, counts)
        for pair in pairs:
            pair.prompt = normalize(pair.prompt, rules, counts)
            pair.completion = normalize(pair.completion, rules, counts)
        # The hashes of a row's answers differ in the low bits alone: all are in the same split.
        row_hash = document_hash(pairs[-1].prompt + pairs[-1].completion)
        for i, pair in enumerate(pairs):
            yield Document(
                pair.prompt + pair.completion,
                block.split,
                whole_hash=row_hash ^ i,
                n_prompt=len(pair.prompt),
            )
