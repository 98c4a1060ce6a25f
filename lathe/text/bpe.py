"""Byte-level BPE, learned from text."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lathe.text.gpt2 import EOT, GPT2_PATTERN
from lathe.text.tokenizer import Tokenizer

AT_ONCE = 2**22  # places looked at in the beginning, so that memory stays at some 30 bytes for each
GAP = -1  # the id between two words, and where a symbol became part of the one before it


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


def train_bpe(
    counts: Mapping[str, int],
    vocab_size: int,
    pattern: str = GPT2_PATTERN,
    watch: Callable[[Iterator[bytes]], Iterable[bytes]] = iter,
) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016) of `vocab_size` ids, end-of-text included.

    counts: what `count_pieces` gives. The most frequent pair merges first, and of equals the one
    with the lowest ids, so the result depends on the counts alone. Fewer ids where the text has no
    pair left that occurs twice. watch: passes on the at most vocab_size - 257 pieces as they are
    learned, for a progress bar.
    """
    if vocab_size < 257:
        raise ValueError(
            f"bpe:{vocab_size} is too small: 256 bytes and end-of-text need at least bpe:257"
        )
    pieces = [bytes([i]) for i in range(256)]
    pieces += watch(learn_pieces(counts, vocab_size - 257))
    return Tokenizer("bpe", f"bpe:{vocab_size}", pieces + [b""], {EOT: len(pieces)}, pattern)


def learn_pieces(counts: Mapping[str, int], limit: int) -> Iterator[bytes]:
    """The byte strings that get the ids from 256 on, at most `limit` of them."""
    words = Words(counts)
    pieces = [bytes([i]) for i in range(256)]
    id_of = {piece: i for i, piece in enumerate(pieces)}
    heap = [(-n, pair) for pair, n in words.pair_counts.items()]
    heapq.heapify(heap)
    while heap and len(pieces) < 256 + limit:
        negative, pair = heapq.heappop(heap)
        n = words.pair_counts[pair]
        if n != -negative:  # an outdated entry: put the true count in its place
            if n > 1:
                heapq.heappush(heap, (-n, pair))
            continue
        if n < 2:
            break
        first, second = ids_of(pair)
        joined = pieces[first] + pieces[second]
        # Two ways to the same bytes are one token, as in tiktoken.
        new = id_of.setdefault(joined, len(pieces))
        if new == len(pieces):
            pieces.append(joined)
            yield joined
        for changed in words.merge(pair, new):
            heapq.heappush(heap, (-words.pair_counts[changed], changed))


def ids_of(pair: int) -> tuple[int, int]:
    """Both ids of a pair, which is one number here: ordered as the ids are, and quick to sort."""
    return pair >> 32, pair & 0xFFFFFFFF


class Words:
    """All words in one array of ids, a gap before and after each; every id knows its neighbours.

    A merge touches the places of its pair and no others, so that it costs the same in one word of a
    million letters as in a million short ones. (A list for each word, written anew at each of its
    merges, took the square of its length: minutes for 100 kB of digits.)
    """

    def __init__(self, counts: Mapping[str, int]):
        encoded = [word.encode() for word in counts]
        n_places = [len(word) + 1 for word in encoded]  # a gap follows each word
        text = np.frombuffer(b"\0" + b"".join(word + b"\0" for word in encoded), np.uint8)
        n = len(text)
        index = np.int32 if n < 2**31 else np.int64
        self.ids = text.astype(np.int32)
        self.ids[0] = GAP
        self.ids[np.cumsum(n_places, dtype=np.int64)] = GAP
        most = max(counts.values(), default=0)
        weights = np.fromiter(counts.values(), np.int32 if most < 2**31 else np.int64, len(counts))
        self.weight = np.repeat(np.insert(weights, 0, 0), [1, *n_places])  # of each place's word
        self.left = np.arange(-1, n - 1, dtype=index)
        self.right = np.arange(1, n + 1, dtype=index)

        self.pair_counts: dict[int, int] = defaultdict(int)
        # Where the first id of a pair stands, or stood: {pair: arrays of places}
        self.places: dict[int, list[np.ndarray]] = defaultdict(list)
        for begin in range(0, n - 1, AT_ONCE):
            self.add_pairs(np.arange(begin, min(begin + AT_ONCE, n - 1), dtype=index))

    def merge(self, pair: int, new: int) -> list[int]:
        """Put `new` in place of each `pair`, in a run such as aaa from the left. Returns the pairs
        that became more frequent."""
        first, second = ids_of(pair)
        here = np.sort(np.concatenate(self.places.pop(pair)))
        here = here[begins_of_equals(here)]
        here = here[(self.ids[here] == first) & (self.ids[self.right[here]] == second)]
        if first == second:
            here = every_second(here, self.right)
        gone = self.right[here]
        after = self.right[gone]
        before = self.left[here]
        inside = self.ids[before] != GAP
        inside[1:] &= before[1:] != gone[:-1]  # in abab the b before a goes too
        before = before[inside]

        for changed in self.pairs_at(np.concatenate([before, here, gone])):
            self.pair_counts[changed.pair] -= changed.count
        self.ids[here] = new
        self.ids[gone] = GAP
        self.right[here] = after
        self.left[after] = here
        return self.add_pairs(np.concatenate([before, here]))

    def add_pairs(self, starts: np.ndarray) -> list[int]:
        """Count the pairs that begin at `starts` and note their places. Returns them, each once."""
        added = self.pairs_at(starts)
        for each in added:
            self.pair_counts[each.pair] += each.count
            self.places[each.pair].append(each.places)
        return [each.pair for each in added]

    def pairs_at(self, starts: np.ndarray) -> list["PairPlaces"]:
        """The different pairs that begin at `starts`; none does before a gap."""
        first = self.ids[starts].astype(np.int64)
        second = self.ids[self.right[starts]]
        inside = (first != GAP) & (second != GAP)
        pairs = (first << 32 | second)[inside]
        if not len(pairs):
            return []
        order = np.argsort(pairs, kind="stable")
        pairs = pairs[order]
        places = starts[inside][order]
        begins = np.flatnonzero(begins_of_equals(pairs))
        counts = np.add.reduceat(self.weight[places], begins, dtype=np.int64).tolist()
        different = pairs[begins].tolist()
        begins = begins.tolist()
        ends = [*begins[1:], len(places)]
        spans = zip(different, counts, begins, ends, strict=True)
        return [PairPlaces(pair, n, places[begin:end]) for pair, n, begin, end in spans]


@dataclass(slots=True)
class PairPlaces:
    """A pair, how often it occurs at `places`, and these: the places of its first ids."""

    pair: int
    count: int
    places: np.ndarray


def begins_of_equals(ordered: np.ndarray) -> np.ndarray:
    """Bool for each: whether it differs from the one before it."""
    begins = np.ones(len(ordered), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    return begins


def every_second(here: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of places that follow each other in runs, the first, third, fifth... of each run."""
    begins_run = np.ones(len(here), bool)
    begins_run[1:] = right[here[:-1]] != here[1:]
    begins = np.flatnonzero(begins_run)
    in_run = np.arange(len(here)) - np.repeat(begins, np.diff(begins, append=len(here)))
    return here[in_run % 2 == 0]
