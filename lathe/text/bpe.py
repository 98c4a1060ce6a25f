"""Byte-level BPE, learned from text."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

from lathe.text.gpt2 import EOT, GPT2_PATTERN
from lathe.text.tokenizer import Tokenizer


def count_pieces(texts: Iterable[str], pattern: str = GPT2_PATTERN) -> Counter:
    """How often each piece that `pattern` cuts occurs in `texts`.

    Counters of several processes can be added.
    """
    import regex

    cut = regex.compile(pattern).findall
    counts = Counter()
    for text in texts:
        counts.update(cut(text))
    return counts


def train_bpe(counts: Mapping[str, int], vocab_size: int, pattern: str = GPT2_PATTERN) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016) of `vocab_size` ids, end-of-text included.

    counts: what `count_pieces` gives. The most frequent pair merges first, and of equals the one
    with the lowest ids, so the result depends on the counts alone. Fewer ids where the text has no
    pair left that occurs twice.
    """
    if vocab_size < 257:
        raise ValueError(
            f"bpe:{vocab_size} is too small: 256 bytes and end-of-text need at least bpe:257"
        )
    words = [(list(piece.encode()), n) for piece, n in counts.items()]
    pieces = [bytes([i]) for i in range(256)]
    id_of = {piece: i for i, piece in enumerate(pieces)}
    pair_counts = defaultdict(int)
    where = defaultdict(set)  # pair -> words that have it (or had it)
    for w, (ids, n) in enumerate(words):
        for pair in pairwise(ids):
            pair_counts[pair] += n
            where[pair].add(w)
    heap = [(-n, pair) for pair, n in pair_counts.items()]
    heapq.heapify(heap)
    while heap and len(pieces) < vocab_size - 1:
        negative, pair = heapq.heappop(heap)
        n = pair_counts[pair]
        if n != -negative:  # an outdated entry: put the true count in its place
            if n > 1:
                heapq.heappush(heap, (-n, pair))
            continue
        if n < 2:
            break
        joined = pieces[pair[0]] + pieces[pair[1]]
        # Two ways to the same bytes are one token, as in tiktoken.
        new = id_of.setdefault(joined, len(pieces))
        if new == len(pieces):
            pieces.append(joined)
        changed = set()
        for w in where.pop(pair):
            ids, count = words[w]
            for before in pairwise(ids):
                pair_counts[before] -= count
            ids[:] = _merge(ids, pair, new)
            for after in pairwise(ids):
                pair_counts[after] += count
                if new in after:
                    where[after].add(w)
                    changed.add(after)
        for after in changed:
            heapq.heappush(heap, (-pair_counts[after], after))
    return Tokenizer("bpe", f"bpe:{vocab_size}", pieces + [b""], {EOT: len(pieces)}, pattern)


def _merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """`ids` with `new` in place of each `pair`."""
    merged = []
    i = 0
    while i < len(ids):
        if ids[i] == pair[0] and i + 1 < len(ids) and ids[i + 1] == pair[1]:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged
