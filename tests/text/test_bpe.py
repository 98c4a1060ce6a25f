import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_bpe import CODE

from lathe.text.bpe import count_pieces, train_bpe


def naive_bpe(counts, vocab_size):
    """The same rule, written plainly: count all pairs of all words anew for every merge."""
    words = [([bytes([b]) for b in word.encode()], n) for word, n in counts.items()]
    ids = {bytes([i]): i for i in range(256)}
    while len(ids) < vocab_size - 1:
        pairs = {}
        for word, n in words:
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] = pairs.get(pair, 0) + n
        best = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]), default=None)
        if best is None or pairs[best] < 2:
            break
        ids.setdefault(best[0] + best[1], len(ids))
        for word, _ in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [best[0] + best[1]]
                i += 1
    return list(ids)


# Runs of one letter, where occurrences overlap; few letters, where many pairs are equally
# frequent; characters of several bytes; zeros, which are bytes as all others
ALPHABETS = ["a", "ab", "ab c", "0123456789", "ACGT", "日本語の", "é🎉", "\0a"]
TEXTS = st.sampled_from(ALPHABETS).flatmap(
    lambda letters: st.lists(st.text(letters, min_size=1, max_size=60), max_size=8)
)


# How often a word occurs, also beyond what 32 bits hold, alone or added up
COUNTS = st.integers(1, 5) | st.sampled_from([2**31 - 1, 2**31, 2**40])


@settings(max_examples=200)
@given(TEXTS, st.integers(257, 300))
def test_bpe_training_equals_its_plain_form(texts, vocab_size):
    counts = count_pieces(texts)
    assert train_bpe(counts, vocab_size).pieces[:-1] == naive_bpe(counts, vocab_size)


@settings(max_examples=100)
@given(st.dictionaries(st.text("ab日", min_size=1, max_size=20), COUNTS, max_size=6))
def test_bpe_training_equals_its_plain_form_for_any_counts(counts):
    assert train_bpe(counts, 290).pieces[:-1] == naive_bpe(counts, 290)


@pytest.mark.slow
@pytest.mark.parametrize("text", [CODE[:30_000], CODE[:30_000].replace(" ", "")])
def test_bpe_training_equals_its_plain_form_on_real_text(text):
    counts = count_pieces([text])
    assert train_bpe(counts, 500).pieces[:-1] == naive_bpe(counts, 500)


def test_bpe_training_does_not_depend_on_the_order_of_counts():
    counts = count_pieces([CODE])
    backwards = dict(reversed(list(counts.items())))
    assert train_bpe(counts, 500).fingerprint == train_bpe(backwards, 500).fingerprint
    assert train_bpe(counts, 300).vocab_size == 300
    with pytest.raises(ValueError, match="at least bpe:257"):
        train_bpe(counts, 256)


def test_every_piece_that_is_learned_passes_whoever_watches():
    seen = []

    def watch(pieces):
        for piece in pieces:
            seen.append(piece)
            yield piece

    tokenizer = train_bpe(count_pieces([CODE]), 300, watch=watch)
    assert seen == tokenizer.pieces[256:-1]


@pytest.mark.slow
@pytest.mark.parametrize("letters", ["0123456789", "ACGT", "aaaa", "天地玄黃宇宙洪荒日月盈昃"])
def test_a_megabyte_without_a_space_is_learned_and_written(letters):
    """One word of a million bytes: time must not grow with its square, or this never ends."""
    text = "".join(random.Random(0).choices(letters, k=1_000_000 // len(letters[0].encode())))
    tokenizer = train_bpe(count_pieces([text]), 2048)
    ids = tokenizer.encode_numpy(text)
    assert len(ids) < len(text.encode()) / 2
    assert tokenizer.decode(ids) == text
