"""Log-probabilities of given texts, and the likeliest answers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lathe.run.devices import without_plans
from lathe.text.tokenizer import Tokenizer
from lathe.use.caches import ContinuationCache, cache_dtype, last_ids
from lathe.use.generation import generate
from lathe.use.sampling import Sampling
from model import GPT, IGNORE, KVCache, rows_at_once

# So many tokens of contexts are in the cache at a time, with padding; off the CPU four times as
# many. A forward pass reads a quarter of them.
CACHED_TOKENS = 4096

# An answer may be longer than the right one by so many tokens: spaces, the same text in other
# tokens, the end.
MORE_TOKENS = 8


def cached_tokens(device: torch.device) -> int:
    return CACHED_TOKENS if device.type == "cpu" else 4 * CACHED_TOKENS


def batches_by_length(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Numbers of the rows, longest first, in batches of at most max_tokens with padding, or of one
    row."""
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches = [[]]
    for row in longest_first:
        batch = batches[-1]
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            batch = []
            batches.append(batch)
        batch.append(row)
    return batches


def pad_rows(rows: list[Sequence[int]], device: torch.device, fill: int = 0) -> Tensor:
    """(R, T) of rows of different lengths, with `fill` after their ends."""
    length = max(len(row) for row in rows)
    padded = [[*row, *[fill] * (length - len(row))] for row in rows]
    return torch.tensor(padded, device=device)


# -----------------------------------------------------------------------------
# Given texts


class Score(NamedTuple):
    logprob: float  # of all tokens of the continuation, in nats
    is_greedy: bool  # each of them is the likeliest one


@torch.no_grad()
@without_plans()
def score(model: GPT, pairs: list[tuple[list[int], list[int]]]) -> list[Score]:
    """The score of each continuation after its context.

    pairs: (context, continuation) ids, at least one each, together at most block_size + 1. The
    plain form is a forward pass over each pair on its own. Here a context that several
    continuations share is read once, and both are read in batches: bench/eval_speed.py measures
    what it wins.
    """
    contexts = list(dict.fromkeys(tuple(context) for context, _ in pairs))
    number = {context: n for n, context in enumerate(contexts)}
    cache = read_contexts(model, contexts)
    lengths = [len(context) - 1 for context in contexts]

    device = cache.k.device
    scores = {}
    for batch in batches_by_length([len(ids) for _, ids in pairs], tokens_per_pass(device)):
        context_of_row = [tuple(pairs[i][0]) for i in batch]
        ids_of_row = [pairs[i][1] for i in batch]
        source = [number[context] for context in context_of_row]
        view = ContinuationCache(cache, lengths, source, model.config.block_size)
        rows = [  # what is read to predict the ids
            [context[-1], *ids[:-1]]
            for context, ids in zip(context_of_row, ids_of_row, strict=True)
        ]
        features = model.features(pad_rows(rows, device), view)  # (R, T, C)
        scores_of_rows = score_rows(model, features, ids_of_row)
        scores.update(zip(batch, scores_of_rows, strict=True))
    return [scores[i] for i in range(len(pairs))]


def tokens_per_pass(device: torch.device) -> int:
    return cached_tokens(device) // 4


def read_contexts(model: GPT, contexts: list[tuple[int, ...]]) -> KVCache:
    """A cache with all tokens of each context but the last, which is read with what follows it."""
    device = model.transformer.wte.weight.device
    dtype = cache_dtype(model)
    lengths = [len(context) - 1 for context in contexts]
    cache = KVCache(model.config, len(contexts), max(lengths), device, dtype)
    for batch in batches_by_length(lengths, tokens_per_pass(device)):
        longest = lengths[batch[0]]
        if longest == 0:
            continue
        part = KVCache(model.config, len(batch), longest, device, dtype)
        model.features(pad_rows([contexts[i][:-1] for i in batch], device), part)
        cache.k[:, batch, :, :longest] = part.k
        cache.v[:, batch, :, :longest] = part.v
        n_last = cache.last.shape[1]
        last = [last_ids(contexts[i][: lengths[i]], n_last) for i in batch]
        cache.last[batch] = torch.tensor(last, device=device)
    return cache


def score_rows(model: GPT, features: Tensor, ids_of_row: list[list[int]]) -> list[Score]:
    """features: (R, T, C) where each of the row's ids is predicted, with padding at its end."""
    targets = pad_rows(ids_of_row, features.device, IGNORE)  # (R, T)
    scored = targets != IGNORE
    features = features[scored]  # (N, C), row by row
    targets = targets[scored]  # (N,)

    n_ids = model.config.padded_vocab_size
    at_once = rows_at_once(features, n_ids, features.dtype, with_gradient=False)
    logprobs = []
    likeliest = []
    for x, target in zip(features.split(at_once), targets.split(at_once), strict=True):
        logits = model.logits(x)
        own = logits.gather(1, target[:, None]).squeeze(1)
        logprobs.append(own - logits.logsumexp(dim=-1))
        likeliest.append(logits.argmax(dim=-1) == target)

    sizes = [len(ids) for ids in ids_of_row]
    logprobs_of_row = torch.cat(logprobs).cpu().split(sizes)
    likeliest_of_row = torch.cat(likeliest).cpu().split(sizes)
    return [
        Score(row_logprobs.double().sum().item(), bool(row_likeliest.all()))
        for row_logprobs, row_likeliest in zip(logprobs_of_row, likeliest_of_row, strict=True)
    ]


# -----------------------------------------------------------------------------
# Answers


@torch.no_grad()
def answers(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    limits: list[int],
    stops: list[str],
    ends: tuple[int, ...],
) -> list[str]:
    """The likeliest text after each prompt, up to its end (one of `ends`, or its stop text) or its
    limit of tokens."""
    greedy = Sampling(temperature=0)
    ids: list[list[int]] = [[] for _ in prompts]
    for tokens in generate(model, prompts, 1, max(limits), greedy, ends, len(prompts)):
        for token in tokens:
            if token.id not in ends:
                ids[token.row].append(token.id)

    texts = []
    for row, limit, stop in zip(ids, limits, stops, strict=True):
        text = tokenizer.decode(row[:limit])
        if stop:
            text = text.partition(stop)[0]
        texts.append(text)
    return texts
