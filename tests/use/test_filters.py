"""The choice of a token: filters and penalties by their definitions, draws by their distribution."""

import pytest
import torch

from lathe.use.filters import choose, distribution, penalize
from lathe.use.sampling import Sampling


def logits_rows(n=1000, size=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, generator=generator) * torch.rand(n, 1, generator=generator) * 6


def probabilities(logits, **options):
    """distribution() as probabilities over all ids."""
    p, order = distribution(logits, Sampling(**options))
    p = p / p.sum(-1, keepdim=True)
    return p if order is None else torch.zeros(logits.shape, dtype=p.dtype).scatter_(1, order, p)


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.7),
        dict(temperature=1.0, top_k=50),
        dict(temperature=1.3, top_p=0.9),
        dict(temperature=1.5, min_p=0.05),
        dict(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02),
    ],
    ids=str,
)
def test_filters_equal_those_of_transformers(options):
    """1,000 random rows: the same tokens are left, with the same probabilities."""
    transformers = pytest.importorskip("transformers")
    logits = logits_rows()
    expected = logits.double() / options["temperature"]
    if top_k := options.get("top_k"):
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p := options.get("top_p"):
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    if min_p := options.get("min_p"):
        expected = transformers.MinPLogitsWarper(min_p)(None, expected)
    expected, ours = expected.softmax(-1), probabilities(logits, **options)
    assert ((ours > 0) == (expected > 0)).all()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_the_shortcut_of_top_p_over_a_large_vocabulary_changes_nothing():
    """The likeliest 1,024 of 5,000 hold top_p in the first row, not in the second."""
    logits = torch.stack((torch.randn(5000) * 6, torch.randn(5000) * 0.1))
    for rows in (logits[:1], logits):
        sorted_p, order = rows.double().softmax(-1).sort(descending=True)
        kept = torch.where(sorted_p.cumsum(-1) - sorted_p < 0.9, sorted_p, 0.0)
        expected = torch.zeros_like(kept).scatter_(1, order, kept / kept.sum(-1, keepdim=True))
        ours = probabilities(rows, temperature=1.0, top_p=0.9)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_penalties_equal_their_definitions():
    transformers = pytest.importorskip("transformers")
    logits = logits_rows(20)
    prompt, answer = torch.randint(500, (20, 30)), torch.randint(50, (20, 40))
    seen = torch.zeros(20, 500, dtype=torch.bool).scatter_(1, torch.cat((prompt, answer), 1), True)
    counts = torch.zeros(20, 500, dtype=torch.int32)
    counts.scatter_add_(1, answer, torch.ones_like(answer, dtype=torch.int32))
    ours = penalize(logits, seen, counts, Sampling(repetition_penalty=1.3))
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    theirs = theirs(torch.cat((prompt, answer), 1), logits.clone())
    torch.testing.assert_close(ours, theirs)
    ours = penalize(logits, seen, counts, Sampling(frequency_penalty=0.5, presence_penalty=0.25))
    torch.testing.assert_close(ours, logits - 0.5 * counts - 0.25 * (counts > 0))


def test_zero_temperature_and_the_narrowest_filters_take_the_likeliest():
    logits, u = logits_rows(), torch.rand(1000)
    for options in (
        dict(temperature=0),
        dict(temperature=1.0, top_k=1),
        dict(temperature=1.0, top_p=1e-9),
        dict(temperature=1.0, min_p=1.0),
        dict(temperature=1e-320),
    ):
        assert (choose(logits, u, Sampling(**options)) == logits.argmax(-1)).all(), options


def test_a_choice_never_leaves_the_filter():
    logits = logits_rows(200, 50)
    for u in (0.0, 0.5, 1 - 2**-24):
        chosen = choose(logits, torch.full((200,), u), Sampling(temperature=1.0, top_k=5))
        assert (logits.topk(5).indices == chosen.unsqueeze(1)).any(-1).all()


@pytest.mark.parametrize(
    "options", [dict(temperature=1.0), dict(temperature=0.8, top_k=20, top_p=0.95)], ids=str
)
def test_200_000_draws_follow_the_distribution(options):
    logits = logits_rows(1, 60, seed=4) / 2
    draws = 200_000
    u = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    chosen = choose(logits.expand(draws, -1), u, Sampling(**options))
    expected = probabilities(logits, **options)[0] * draws
    found = torch.bincount(chosen, minlength=60)
    assert (found[expected == 0] == 0).all()
    kept = expected > 5
    chi_square = ((found[kept] - expected[kept]).square() / expected[kept]).sum().item()
    freedom = kept.sum().item() - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations
