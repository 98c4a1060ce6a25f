"""What is done with a unit: its documents to tokens, or a look at its text to learn a tokenizer."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lathe.corpus.read import Document, documents
from lathe.corpus.rules import Rules
from lathe.corpus.split import BY_HASH, TRAIN, VAL
from lathe.corpus.units import Unit
from lathe.data.shards import SPLITS, token_dtype
from lathe.text.bpe import count_pieces
from lathe.text.tokenizer import Tokenizer

IN_NFC = "documents brought into Unicode's form NFC, as the tokenizer does with every text"
SCORED = np.array([1, 0, 1], np.uint8)  # of a pair: its end-of-text, its prompt, its completion


@dataclass(slots=True)
class Tokens:
    """A unit's tokens and, per document (or part of one), what decides where they go."""

    tokens: np.ndarray  # of all documents, each with end-of-text before it
    scored: np.ndarray | None  # of pairs: uint8 per token, 0 in a prompt
    lengths: np.ndarray  # tokens per document, end-of-text included
    hashes: np.ndarray  # uint64 per document
    splits: np.ndarray  # int8 per document: TRAIN, VAL or BY_HASH
    continues: bool  # the first is the rest of a document that an earlier unit began
    characters: int  # of text
    counts: Counter  # of what was changed
    sha256: str  # of the unit's input


@dataclass(slots=True)
class Part:
    """A document, or what of it lies on one side of a split by position."""

    text: str
    split: int  # TRAIN, VAL or BY_HASH
    begins: bool  # with an end-of-text
    hash: int
    n_prompt: int  # characters


def tokenize_unit(unit: Unit, rules: Rules, tokenizer: Tokenizer) -> Tokens:
    dtype = token_dtype(tokenizer.vocab_size)
    eot = np.array([tokenizer.eot_id], dtype)

    def encode(text: str) -> np.ndarray:
        return tokenizer.encode_numpy(text).astype(dtype, copy=False)

    arrays = [eot[:0]]  # where there is no document, too, they can be joined
    scored = []
    lengths = []
    hashes = []
    splits = []
    counts = Counter()
    characters = 0
    continues = False
    for document in documents(unit, rules, counts):
        if not document.begins:
            continues = True
        if tokenizer.changes(document.text):
            counts[IN_NFC] += 1
        for part in _parts_of(document, characters, unit.val_begins, rules):
            ids = []
            if part.begins:
                ids.append(eot)
            if rules.template:
                # A prompt's ids do not depend on what follows: sampling has nothing there yet.
                prompt = encode(part.text[: part.n_prompt])
                answer = encode(part.text[part.n_prompt :])
                ids += [prompt, answer]
                scored.append(np.repeat(SCORED, [1, len(prompt), len(answer)]))
            else:
                ids.append(encode(part.text))
            arrays += ids
            lengths.append(sum(map(len, ids)))
            hashes.append(part.hash)
            splits.append(part.split)
        characters += len(document.text)
    return Tokens(
        tokens=np.concatenate(arrays),
        scored=np.concatenate(scored) if scored else None,
        lengths=np.array(lengths, np.int64),
        hashes=np.array(hashes, np.uint64),
        splits=np.array(splits, np.int8),
        continues=continues,
        characters=characters,
        counts=counts,
        sha256=unit.sha256(),
    )


def _parts_of(document: Document, start: int, val_begins: int | None, rules: Rules) -> list[Part]:
    """A document that begins at character `start` of its unit, cut where validation begins."""
    text = document.text
    hash = document.hash()
    if val_begins is None:
        split = SPLITS.index(document.split) if document.split else BY_HASH
        return [Part(text, split, document.begins, hash, document.n_prompt)]
    cut = min(max(val_begins - start, 0), len(text))
    if rules.template and cut < len(text):  # a pair stays whole
        cut = 0
    parts = []
    if cut > 0:
        parts.append(Part(text[:cut], TRAIN, document.begins, hash, document.n_prompt))
        hash ^= 1  # what comes after the cut is no duplicate of what comes before it
    if cut < len(text):
        begins = document.begins or start <= val_begins  # a document of its own, if it is cut here
        parts.append(Part(text[cut:], VAL, begins, hash, document.n_prompt))
    return parts


# -----------------------------------------------------------------------------
# A look at the text alone


def texts(unit: Unit, rules: Rules) -> Iterator[str]:
    for document in documents(unit, rules, Counter()):
        yield document.text


def count_characters(unit: Unit, rules: Rules) -> int:
    return sum(len(text) for text in texts(unit, rules))


def hashes_of_unit(unit: Unit, rules: Rules) -> np.ndarray:
    """Of its documents, uint64."""
    return np.array([document.hash() for document in documents(unit, rules, Counter())], np.uint64)


def characters_of_unit(unit: Unit, rules: Rules) -> set[str]:
    characters = set()
    for text in texts(unit, rules):
        characters.update(text)
    return characters


def pieces_of_unit(unit: Unit, rules: Rules) -> Counter:
    """How often each piece occurs that BPE will see as a word."""
    return count_pieces(texts(unit, rules))
