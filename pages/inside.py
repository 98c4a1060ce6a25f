"""What a model does inside when it reads a text, as numbers: visualize.py puts them on a page.

One pass through the network with attention step by step, and a few more: the head on every residual stream, a text
read twice, a text read without one of its tokens, and what the model writes on. T tokens, L layers, H heads.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lathe.use.generation import generate
from lathe.use.sampling import Sampling
from model import GPT, KVCache


def look_inside(model: GPT, tokenizer, ids: list[int], options, ends: tuple[int, ...]) -> dict:
    """Everything that the page shows of `model` (on the CPU, float32) reading `ids`: JSON values and numpy arrays.

    ids begins with the token before a document, the ids `ends` end one; options is visualize.ModelOptions. The weights
    take no more gradients afterwards. Raises ValueError for more tokens than the context or the page can hold.
    """
    c, T = model.config, len(ids)
    if T > c.block_size:
        raise ValueError(f"the prompt has {T:,} tokens, the context is {c.block_size:,} (block_size): shorten --prompt")
    if c.n_layer * c.n_head * T * T > 40e6 * options.max_mb:  # maps of this size never compress that well
        raise ValueError(f"a page of {T:,} tokens would exceed max_mb ({options.max_mb:g}): shorten --prompt")
    logits, trace, streams, gradients, idle = read_once(model, ids)
    logp = F.log_softmax(logits, dim=-1)
    # What follows each token; behind the last one, what is likeliest to.
    following = torch.tensor([*ids[1:], int(logits[-1].argmax())])
    of_following = logp[torch.arange(T), following]
    lens_ids, lens_p, lens_true = logit_lens(model, streams, following)
    weights = torch.stack([layer["weights"][0] for layer in trace])  # (L, H, T, T)
    scores = head_scores(weights) | {"induction": induction_scores(model, ids)}
    chosen = choose_heads(scores, T, c, options.heads)
    group = c.n_head // c.n_kv_head  # query heads that share one key/value head
    qkv = {n: [trace[layer][n][0, head if n == "q" else head // group] for layer, head in chosen] for n in "qkv"}
    lower = torch.ones(T, T, dtype=torch.bool).tril()
    likeliest, tail = next_token(logits[-1])
    new_ids, new_p, new_top, stopped = write_on(model, ids, options, ends)
    influence, first_left_out = leave_one_out(model, ids, logp, following, options.leave_out)
    near_ids, near_cosine = nearest_embeddings(model, list(dict.fromkeys(ids)))
    position_about, position_arrays = positions(model, T)

    ids_of = {
        "ids": torch.tensor(ids), "lens_ids": lens_ids, "logit_ids": likeliest.indices, "near_ids": near_ids,
        "new_ids": torch.tensor(new_ids, dtype=torch.long), "new_top_ids": new_top.indices,
    }  # fmt: skip
    shown = torch.cat([x.flatten() for x in ids_of.values()]).unique()  # the page holds the text of these alone
    kind = np.uint16 if len(shown) < 65536 else np.uint32
    halves = {
        "entropy": -(logp.exp() * logp).nansum(dim=-1), "mean_weights": weights.mean(dim=(0, 1)), "lens_p": lens_p,
        "lens_true": lens_true, "norms": streams.norm(dim=-1), "new_top_p": new_top.values, "influence": influence,
        "near_cosine": near_cosine, **{name: torch.stack(rows) for name, rows in qkv.items()},
    }  # fmt: skip
    nats, n_bytes = -float(of_following[:-1].double().sum()), sum(len(tokenizer.pieces[i]) for i in ids)
    return {
        "tokens": [visible(tokenizer, i) for i in shown.tolist()], "config": vars(c), "scores": scores, "idle": idle,
        "nats": nats, "bits_per_byte": nats / math.log(2) / n_bytes if n_bytes else None, "chosen": chosen,
        "tail": tail, "new_p": new_p, "stopped": stopped, "temperature": options.temperature,
        "first_left_out": first_left_out, "position_about": position_about, **position_arrays,
        "surprisal": -of_following[:-1].numpy(),  # of tokens 1 .. T-1, in nats
        "rank": (logp > of_following.unsqueeze(1)).sum(dim=-1)[:-1].numpy().astype(np.uint32) + np.uint32(1),
        "maps": (255 * weights[:, :, lower]).round().byte().numpy(),  # row by row, without what may not be seen
        "logits": likeliest.values.numpy(), "gradients": gradients.numpy(),
        **{name: torch.searchsorted(shown, x.contiguous()).numpy().astype(kind) for name, x in ids_of.items()},
        **{name: x.numpy().astype(np.float16) for name, x in halves.items()},
    }  # fmt: skip


def read_once(model: GPT, ids: list[int]):
    """One pass with attention step by step: (logits (T, V), the trace of GPT.features, the residual streams from the
    embeddings on (L + 1, T, C), the norms of the loss's gradient in them (L + 1, T), and the share of idle units in
    each MLP: those that move less than a hundredth of the layer's strongest)."""
    embedded, active, trace = [], [], []
    # Gradients flow back to the embeddings through the streams only, not into weights.
    model.eval().requires_grad_(False)
    hooks = [model.transformer.drop.register_forward_hook(lambda _, args, out: embedded.append(out.requires_grad_()))]
    for block in model.transformer.h:
        hooks.append(block.mlp.c_proj.register_forward_pre_hook(lambda _, args: active.append(args[0].detach())))
    try:
        with torch.enable_grad():
            idx = torch.tensor([ids])
            logits = model.logits(model.features(idx, trace=trace))[0]
            streams = [embedded[0], *(layer["residual"] for layer in trace)]
            grads = [torch.zeros_like(stream) for stream in streams]
            if len(ids) > 1:
                grads = torch.autograd.grad(F.cross_entropy(logits[:-1], idx[0, 1:]), streams)
    finally:
        for hook in hooks:
            hook.remove()
    trace = [{name: tensor.detach() for name, tensor in layer.items()} for layer in trace]
    idle = [float((a.abs() < 0.01 * a.abs().max()).float().mean()) for a in active]
    return logits.detach(), trace, torch.cat(streams).detach(), torch.cat(grads).norm(dim=-1), idle


@torch.no_grad()
def logit_lens(model: GPT, streams: Tensor, following: Tensor):
    """The head on every residual stream (nostalgebraist 2020; the last row is the model's output): ids and
    probabilities of the likeliest ten, (L + 1, T, 10), and the probability of what follows, (L + 1, T)."""
    rows = []
    for stream in streams:  # one at a time: a large vocabulary's logits are large
        p = model.logits(model.transformer.ln_f(stream)).softmax(dim=-1)
        top = p.topk(min(10, p.shape[-1]), dim=-1)
        rows.append((top.indices, top.values, p[torch.arange(len(p)), following]))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def next_token(logits: Tensor, most: int = 1000):
    """(the likeliest `most` of logits (V,), the others as a histogram): 32 bins of [count, log of their mean exp]."""
    top = logits.topk(min(most, len(logits)))
    rest = logits.double().sort(descending=True).values[len(top.values) :]
    if not len(rest):
        return top, []
    edges = torch.linspace(float(rest[-1]), float(rest[0]), 33, dtype=torch.float64)[1:-1]
    place = torch.bucketize(rest, edges)
    bins = [rest[place == i] for i in range(32)]
    return top, [[len(x), float(x.logsumexp(0)) - math.log(len(x))] for x in bins if len(x)]


def visible(tokenizer, token: int) -> str:
    """A token's text; bytes that are no whole character as <hex>, and special tokens by name."""
    piece = tokenizer.pieces[token]
    if not piece:
        return next((text for text, i in tokenizer.specials.items() if i == token), f"<{token}>")
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02x}>" for byte in piece)


def head_scores(weights: Tensor) -> dict:
    """Numbers of each head, (L, H), as means over the rows of its map; weights (L, H, T, T)."""
    T = weights.shape[-1]
    place = torch.arange(T, dtype=weights.dtype)
    back = place.unsqueeze(1) - place  # how far each key lies behind each query
    rows = max(1, T - 1)  # the first row has no choice
    return {
        "entropy": (-(weights * weights.clamp(min=1e-12).log2()).sum(-1)[..., 1:].sum(-1) / rows).tolist(),  # bits
        "distance": ((weights * back).sum(-1)[..., 1:].sum(-1) / rows).tolist(),  # tokens
        "previous": (weights.diagonal(-1, -2, -1).sum(-1) / rows).tolist(),
        "first": (weights[..., 1:, 0].sum(-1) / rows).tolist(),
    }


@torch.no_grad()
def induction_scores(model: GPT, ids: list[int]) -> list[list[float]]:
    """(L, H): in a text that is read twice, how much attention goes from the second copy of a token to what followed
    its first copy (Olsson et al. 2022, arXiv 2209.11895)."""
    text = ids[1:][: min(64, (model.config.block_size - 1) // 2)]
    if len(text) < 2:
        return [[0.0] * model.config.n_head for _ in range(model.config.n_layer)]
    trace, n = [], len(text)
    model.features(torch.tensor([[ids[0], *text, *text]]), trace=trace)
    weights = torch.stack([layer["weights"][0, :, n + 1 :, 2 : n + 2] for layer in trace])  # queries: the second copy
    return weights[..., :n, :].diagonal(0, -2, -1)[..., : n - 1].mean(-1).tolist()


def choose_heads(scores: dict, T: int, c, wanted: list[str]) -> list[tuple[int, int]]:
    """The heads whose q, k and v the page holds: those wanted, or all if they are small, or the strongest by each
    score in turn until they fill 350 kB."""
    names = [f"{layer}.{head}" for layer in range(c.n_layer) for head in range(c.n_head)]
    for name in wanted:
        if name not in names:
            raise ValueError(f"heads: {name!r} is not one of 0.0 to {names[-1]} (LAYER.HEAD)")
    if wanted:
        return sorted({tuple(map(int, name.split("."))) for name in wanted})
    most = max(1, 350_000 // (3 * 2 * T * c.head_dim))
    flat = {name: np.array(values).ravel() * (-1 if name == "entropy" else 1) for name, values in scores.items()}
    orders = [np.argsort(-values, kind="stable") for values in flat.values()]
    mixed = dict.fromkeys(int(order[i]) for i in range(len(names)) for order in orders)
    return sorted(divmod(head, c.n_head) for head in list(mixed)[:most])


@torch.no_grad()
def write_on(model: GPT, ids: list[int], options, ends: tuple[int, ...]):
    """What the model writes behind ids: (new ids, their probabilities, the likeliest ten at each
    step, why it stopped), all at temperature 1."""
    room = model.config.block_size - len(ids) + 1  # the last token written need not be read
    n = min(options.max_new_tokens, room)
    sampling = Sampling(temperature=options.temperature, seed=options.seed)
    new = [token.id for step in generate(model, [ids], 1, n, sampling, ends) for token in step] if n else []
    reason = f"the length asked for (max_new_tokens={n})" if n < room else "the context is full (block_size)"
    if new and new[-1] in ends:
        reason = "the end-of-text token came"
    p = model(torch.tensor([[*ids, *new[:-1]]]))[0, len(ids) - 1 :][: len(new)].softmax(dim=-1)
    top = p.topk(min(10, p.shape[-1]), dim=-1)
    return new, p[torch.arange(len(new)), new].tolist(), top, reason


@torch.no_grad()
def leave_one_out(model: GPT, ids: list[int], logp: Tensor, following: Tensor, wanted: int):
    """((T, T) effects, the first token that was left out): effect [i, p] is how many nats likelier `following[p]`, as
    foretold at position p, is with token i than without it; nan where it was not computed.

    Later tokens move up by one place when i is gone. The keys and values before i are read once and kept.
    """
    T, places = len(ids), torch.arange(len(ids))
    effects = torch.full((T, T), float("nan"))
    cost = model.flops_per_token(T, training=False)
    affordable = max(1, int((2 * 1e11 / cost) ** 0.5))  # n tokens left out are n * n / 2 tokens read: a few seconds
    begin = max(1, T - (wanted or affordable))  # text without its beginning has no first prediction: 0 stays
    base = logp[places, following]
    cache = KVCache(model.config, 1, T)
    model.features(torch.tensor([ids]), cache)
    for i in range(T - 1, begin - 1, -1):
        cache.pos, cache.last[:] = i, ids[i - 1]  # what was before i is still there
        effects[i, i] = base[i] - logp[i - 1, following[i]]
        if i < T - 1:
            without = F.log_softmax(model.logits(model.features(torch.tensor([ids[i + 1 :]]), cache))[0], dim=-1)
            effects[i, i + 1 :] = base[i + 1 :] - without[torch.arange(T - 1 - i), following[i + 1 :]]
    return effects, begin


def nearest_embeddings(model: GPT, ids: list[int], n: int = 5):
    """(ids, cosines), each (len(ids), n): the tokens whose embeddings point in the most similar directions."""
    table = F.normalize(model.transformer.wte.weight.detach()[: model.config.vocab_size].float(), dim=-1)
    top = (table[ids] @ table.T).topk(min(n + 1, len(table)), dim=-1)  # the first is the token itself
    return top.indices[:, 1:], top.values[:, 1:]


def positions(model: GPT, T: int) -> tuple[dict, dict]:
    """How the model tells places apart: (JSON values, arrays `position_picture` (places, features) in 0..255 and
    `position_similarity` (places, places) as cosines)."""
    c = model.config
    about = {"kind": c.position}
    if c.position == "none":
        return about, {}
    n = c.block_size if c.position == "learned" else min(c.block_size, max(64, T))
    places = torch.linspace(0, n - 1, min(n, 96)).round().long()
    if c.position == "rope":
        picture, sines = model.table[:, places, 0, c.head_dim // 2 :].float()  # of the angles, (places, hd / 2)
        turned = torch.cat((picture, sines), dim=-1)
        frequency = c.rope_theta ** -(torch.arange(0, c.head_dim, 2) / c.head_dim)
        about["wavelengths"] = (2 * np.pi / frequency.double()).tolist()  # tokens per full turn
    else:
        turned = (model.transformer.wpe.weight if c.position == "learned" else model.table).detach()[places].float()
        features = torch.linspace(0, c.n_embd - 1, min(c.n_embd, 160)).round().long()
        picture = turned[:, features]
    about["places"], turned = places.tolist(), F.normalize(turned, dim=-1)
    picture = 127.5 * (1 + picture / picture.abs().max().clamp(min=1e-9))
    similarity = (turned @ turned.T).numpy().astype(np.float16)
    return about, {"position_picture": picture.round().byte().numpy(), "position_similarity": similarity}


def parts(model: GPT) -> tuple[list[dict], int]:
    """The drawing of the network: its parts from bottom to top, with real sizes and numbers of parameters."""
    c, t = model.config, model.transformer

    def count(*modules) -> int:
        return sum(p.numel() for m in modules if m is not None for p in m.parameters())

    block, attention = t.h[0], t.h[0].attn
    keys = f"{c.n_kv_head} key/value heads" if c.n_kv_head != c.n_head else f"{c.n_head} key and value heads"
    norm = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[c.norm] + (", learned gains" if c.norm_weight else "")
    place = {"rope": f"rotary, in attention (theta {c.rope_theta:g})", "none": "none",
             "learned": f"learned, {c.block_size} x {c.n_embd}, added",
             "sinusoidal": "sinusoidal, fixed, added"}[c.position]  # fmt: skip
    head = "the embedding table again" if c.tie_weights else f"{c.n_embd} -> {c.vocab_size:,}"
    hidden = f"{c.n_embd} -> {c.n_hidden}{' x 2 (gate and value)' if c.activation == 'swiglu' else ''} -> {c.n_embd}"
    qkv = f"{c.n_embd} -> {attention.c_attn.out_features}"
    return [
        {"name": "Token embedding", "what": f"{c.vocab_size:,} x {c.n_embd}", "n": count(t.wte)},
        *([{"name": "Pairs of tokens", "what": f"{t.bigram.num_embeddings:,} x {c.n_embd}", "n": count(t.bigram)}]
          if c.bigram_rows else []),
        {"name": "Positions", "what": place, "n": t.wpe.weight.numel() if c.position == "learned" else 0},
        {"name": "Block", "what": f"x {c.n_layer}", "n": count(*t.h), "inner": [
            {"name": "Norm", "what": norm, "n": count(block.ln_1)},
            {"name": "Attention", "what": f"queries, keys, values {qkv}: {c.n_head} query heads, {keys} of {c.head_dim}"
             + (", normed" if c.qk_norm else "") + f"; joined side by side and projected to {c.n_embd}",
             "n": count(attention)},
            {"name": "Norm", "what": norm, "n": count(block.ln_2)},
            {"name": "MLP", "what": f"{hidden}, {c.activation}", "n": count(block.mlp)}]},
        {"name": "Norm", "what": norm, "n": count(t.ln_f)},
        {"name": "Head", "what": head + (f", capped at {c.logit_softcap:g}" if c.logit_softcap else ""),
         "n": count(model.lm_head)},
    ], count(model)  # fmt: skip
