"""From logits to one token: temperature, filters, penalties.

V is the size of the vocabulary, B the number of samples side by side.
"""

import torch
from torch import Tensor

from lathe.use.sampling import Sampling


def choose(logits: Tensor, u: Tensor, s: Sampling) -> Tensor:
    """One token id per row, (B,), of logits (B, V), by numbers u (B,) drawn uniformly from [0, 1).

    The choice inverts the cumulative distribution, so it is a function of (logits, u) alone, and
    needs neither torch's generator nor a wait for the device. temperature 0 takes the likeliest.
    """
    if s.temperature == 0:
        return logits.argmax(dim=-1)
    p, ids = distribution(logits, s)
    cumulative = p.cumsum(dim=-1)
    wanted = u.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, wanted, right=True)  # (B, 1)
    last = (p > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)  # index of the last weight above 0
    index = index.minimum(last)  # rounding must not reach a token that was left out
    if ids is not None:
        index = ids.gather(1, index)
    return index.squeeze(1)


def distribution(logits: Tensor, s: Sampling) -> tuple[Tensor, Tensor | None]:
    """Weights (B, n) of the tokens that may be chosen, not summing to one, and their ids (B, n).

    Likeliest first; ids is None if no filter asked for an order: then n is V and the order is that
    of the vocabulary. Filters act on the probabilities at s.temperature, one after the other, each
    by putting weights at 0.
    """
    V = logits.shape[-1]
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # which MPS lacks
    ids = None
    if 0 < s.top_k < V:  # first: of 16 x 50,257 all as float64 would take 9 ms, these 1
        logits, ids = logits.topk(s.top_k, dim=-1)
    logits = logits.to(exact)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / s.temperature
    p = logits.softmax(dim=-1)
    if s.top_p < 1:  # nucleus sampling: Holtzman et al., arXiv 1904.09751
        if ids is None:
            p, ids = likeliest_first(p, s.top_p)
        before = p.cumsum(dim=-1) - p  # of all likelier tokens together
        p = p.masked_fill(before >= s.top_p, 0)
    if s.min_p > 0:  # Nguyen et al., arXiv 2407.01082
        p = p.masked_fill(p < s.min_p * p.amax(dim=-1, keepdim=True), 0)
    return p, ids


def likeliest_first(p: Tensor, enough: float) -> tuple[Tensor, Tensor]:
    """Probabilities (B, V) in falling order, and their ids: all, or the first that have `enough`.

    The plain form is p.sort(descending=True). On a CPU sorting all is slow, and the likeliest 1,024
    of a large vocabulary nearly always suffice.
    """
    V = p.shape[-1]
    if p.is_cpu and V > 4096:
        values, ids = p.topk(1024, dim=-1)
        if values.sum(dim=-1).min() >= enough:
            return values, ids
    return p.topk(V, dim=-1)


def penalize(logits: Tensor, seen: Tensor, counts: Tensor, s: Sampling) -> Tensor:
    """logits (B, V), made smaller where a token occurred.

    seen (B, V): whether it did, in prompt or answer; counts (B, V): how often in the answer.
    Repetition penalty: Keskar et al., arXiv 1909.05858; the others: OpenAI's API.
    """
    if s.repetition_penalty != 1:
        divided = logits / s.repetition_penalty
        multiplied = logits * s.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, divided, multiplied), logits)
    return logits - s.frequency_penalty * counts - s.presence_penalty * (counts > 0)
