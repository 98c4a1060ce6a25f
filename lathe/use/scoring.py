"""Log-probabilities of given texts, and the likeliest answers."""

import torch

from lathe.text.tokenizer import Tokenizer
from lathe.use.caches import BehindContexts, cache_dtype
from lathe.use.generation import generate
from lathe.use.sampling import Sampling
from model import GPT, IGNORE, LOGITS_AT_ONCE, KVCache

TOKENS_AT_ONCE = 4096  # in the cache of one batch, four times as many off the CPU; a forward pass gets a quarter
MORE_TOKENS = 8  # an answer may be longer than the right one by this: spaces, other tokens for the same text, the end


@torch.no_grad()
def score(model: GPT, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """(log-probability, whether every token is the likeliest one) of each continuation behind its context.

    pairs: (context, continuation) ids, at least one each, together at most block_size + 1.
    """
    c, device = model.config, model.transformer.wte.weight.device
    dtype, at_once = cache_dtype(model), tokens_at_once(device) // 4

    def padded(rows, fill=0):
        length = max(map(len, rows))
        return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], device=device)

    contexts = list(dict.fromkeys(tuple(context) for context, _ in pairs))
    lengths = [len(context) - 1 for context in contexts]  # the last token is read with what follows it
    filled = KVCache(c, len(contexts), max(lengths), device, dtype)
    for piece in pieces(lengths, at_once):
        if longest := max(lengths[i] for i in piece):
            part = KVCache(c, len(piece), longest, device, dtype)
            model.features(padded([contexts[i][:-1] for i in piece]), part)
            filled.k[:, piece, :, :longest], filled.v[:, piece, :, :longest] = part.k, part.v
            filled.last[piece, 0] = torch.tensor([contexts[i][-2] if lengths[i] else 0 for i in piece], device=device)
    number, found = {context: i for i, context in enumerate(contexts)}, {}
    for piece in pieces([len(ids) for _, ids in pairs], at_once):
        rows = [pairs[i] for i in piece]
        behind = BehindContexts(filled, lengths, [number[tuple(context)] for context, _ in rows], c.block_size)
        x = model.features(padded([(context[-1], *ids[:-1]) for context, ids in rows]), behind)
        targets = padded([ids for _, ids in rows], IGNORE)
        scored, n, of_piece = targets != IGNORE, max(1, LOGITS_AT_ONCE // c.padded_vocab_size), []
        for features, target in zip(x[scored].split(n), targets[scored].split(n), strict=True):
            logits = model.logits(features)
            own = logits.gather(1, target[:, None]).squeeze(1)
            of_piece.append((own - logits.logsumexp(dim=-1), logits.argmax(dim=-1) == target))
        sizes = [len(ids) for _, ids in rows]
        by_row = (torch.cat(part).cpu().split(sizes) for part in zip(*of_piece, strict=True))
        for i, logprobs, likeliest in zip(piece, *by_row, strict=True):
            found[i] = logprobs.double().sum().item(), bool(likeliest.all())
    return [found[i] for i in range(len(pairs))]


def tokens_at_once(device: torch.device) -> int:
    return TOKENS_AT_ONCE if device.type == "cpu" else 4 * TOKENS_AT_ONCE


def pieces(lengths: list[int], at_once: int) -> list[list[int]]:
    """Numbers of the rows, longest first, in pieces of at most `at_once` tokens with padding, or of one row."""
    found = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found[-1] and (len(found[-1]) + 1) * lengths[found[-1][0]] > at_once:
            found.append([])
        found[-1].append(i)
    return found


# Answers


@torch.no_grad()
def answers(
    model: GPT, tokenizer: Tokenizer, prompts: list[list[int]], limits: list[int], stops: list[str], ends: tuple
) -> list[str]:
    """The likeliest text behind each prompt, up to its end (one of `ends`, or its stop text) or its limit of tokens."""
    ids = [[] for _ in prompts]
    for tokens in generate(model, prompts, 1, max(limits), Sampling(temperature=0), ends, len(prompts)):
        for token in tokens:
            ids[token.row] += [token.id] * (token.id not in ends)
    texts = [tokenizer.decode(row[:limit]) for row, limit in zip(ids, limits, strict=True)]
    return [text.partition(stop)[0] if stop else text for text, stop in zip(texts, stops, strict=True)]
