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


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("ab c", min_size=1, max_size=30), max_size=8))
def test_bpe_training_equals_its_plain_form(texts):
    counts = count_pieces(texts)
    assert train_bpe(counts, 280).pieces[:-1] == naive_bpe(counts, 280)


def test_bpe_training_does_not_depend_on_the_order_of_counts():
    counts = count_pieces([CODE])
    backwards = dict(reversed(list(counts.items())))
    assert train_bpe(counts, 500).fingerprint == train_bpe(backwards, 500).fingerprint
    assert train_bpe(counts, 300).vocab_size == 300
    with pytest.raises(ValueError, match="at least bpe:257"):
        train_bpe(counts, 256)
