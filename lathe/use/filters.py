"""From logits to one token: temperature, filters, penalties."""

import torch
from torch import Tensor

from lathe.use.sampling import Sampling

# Choosing a token


def choose(logits: Tensor, u: Tensor, s: Sampling) -> Tensor:
    """One token id per row, (B,), of logits (B, V), by the numbers u (B,) drawn uniformly from [0, 1).

    The choice inverts the cumulative distribution, so it is a function of (logits, u) alone, and needs neither torch's
    generator nor a word with the device. temperature 0 takes the likeliest token.
    """
    if s.temperature == 0:
        return logits.argmax(dim=-1)
    p, order = distribution(logits, s)
    cumulative = p.cumsum(dim=-1)
    wanted = u.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    last = (p > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)  # rounding must not reach behind it
    index = torch.searchsorted(cumulative, wanted, right=True).minimum(last)
    return (index if order is None else order.gather(1, index)).squeeze(1)


def distribution(logits: Tensor, s: Sampling) -> tuple[Tensor, Tensor | None]:
    """Weights (B, n) of the tokens that may be chosen, not summing to one, and their ids (B, n), likeliest first; ids
    is None if no filter asked for an order: then n is V.

    Filters act on the probabilities at s.temperature, in the order top_k, top_p (Holtzman et al., arXiv 1904.09751),
    min_p (arXiv 2407.01082).
    """
    V, order = logits.shape[-1], None
    logits = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / s.temperature
    if 0 < s.top_k < V:
        logits, order = logits.topk(s.top_k, dim=-1)
    p = logits.softmax(dim=-1)
    if s.top_p < 1:
        if order is None:  # on a CPU sorting all is slow, and the likeliest 1,024 nearly always hold top_p
            few = p.is_cpu and V > 4096 and p.topk(1024, dim=-1).values.sum(dim=-1).min() >= s.top_p
            p, order = p.topk(1024 if few else V, dim=-1)
        p = p.masked_fill(p.cumsum(dim=-1) - p >= s.top_p, 0)
    if s.min_p > 0:
        p = p.masked_fill(p < s.min_p * p.amax(dim=-1, keepdim=True), 0)
    return p, order


def penalize(logits: Tensor, seen: Tensor, counts: Tensor, s: Sampling) -> Tensor:
    """logits (B, V) made smaller where a token occurred: `seen` (B, V) says whether, in prompt or answer, `counts`
    (B, V) how often in the answer. Repetition penalty: Keskar et al., arXiv 1909.05858; the others: OpenAI's API."""
    if s.repetition_penalty != 1:
        weaker = torch.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
        logits = torch.where(seen, weaker, logits)
    return logits - s.frequency_penalty * counts - s.presence_penalty * (counts > 0)
