"""Scores of given texts: in batches as one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from task_rows import greedy
from tiny_run import loud_model

from lathe.use import scoring
from lathe.use.scoring import batches_by_length, score
from model import CHOICES, GPT, GPT2


def one_by_one(model: GPT, context: list[int], ids: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *ids][:-1]]))[0, len(context) - 1 :]
    target = torch.tensor(ids)
    own = logits.double().log_softmax(-1).gather(1, target[:, None])
    return own.sum().item(), bool((logits.argmax(-1) == target).all())


ARCHITECTURES = [
    *(dict(position=position) for position in CHOICES["position"]),
    dict(n_kv_head=1),
    dict(GPT2),
    dict(logit_softcap=5.0, norm_weight=True),
    dict(ngram_rows=10**4),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_scores_in_a_batch_equal_those_one_by_one(architecture, monkeypatch):
    """Contexts of all lengths, also of one token and of the whole context, each with several
    continuations."""
    model = loud_model(61, **architecture)
    random = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(61, (n,), generator=random).tolist()

    contexts = [ids(n) for n in (1, 2, 7, 7, 30, 47, 48)]
    pairs = [(c, ids(n)) for c in contexts for n in (1, 2, 20, 1) if len(c) + n <= 49]
    pairs += [(c, greedy(model, c, 2)) for c in contexts if len(c) < 47]
    expected = [one_by_one(model, *pair) for pair in pairs]
    assert {is_greedy for _, is_greedy in expected} == {True, False}
    for cached_tokens in (4096, 200, 4):
        monkeypatch.setattr(scoring, "CACHED_TOKENS", cached_tokens)
        for found, (logprob, is_greedy) in zip(score(model, pairs), expected, strict=True):
            assert found.logprob == pytest.approx(logprob, abs=1e-4)
            assert found.is_greedy == is_greedy


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 50))
def test_batches_hold_every_row_once_and_no_more_than_they_may(lengths, max_tokens):
    batches = batches_by_length(lengths, max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= max_tokens or len(batch) == 1
