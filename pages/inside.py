"""What a model does inside when it reads a text, as numbers: visualize.py puts them on a page.

One pass through the network with attention step by step, and a few more: the head on every residual
stream, a text read twice, a text read without one of its tokens, and what the model writes next.
Sizes: T tokens, L layers, H heads, hd features of a head, C features of the residual stream.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.text.tokenizer import Tokenizer
from lathe.use.caches import last_ids
from lathe.use.generation import generate
from lathe.use.sampling import Sampling
from model import GPT, GPTConfig, KVCache, rope_frequencies
from pages.options import ModelOptions


@torch.no_grad()
def look_inside(
    model: GPT, tokenizer: Tokenizer, ids: list[int], options: ModelOptions, ends: tuple[int, ...]
) -> dict:
    """All that the page shows of `model` (on the CPU, float32) reading `ids`: values and arrays.

    ids begins with the token before a document; the ids `ends` end one. The weights take no more
    gradients afterwards. Raises ValueError for more tokens than the context or the page can hold.
    Long because it is a list: what is computed, in order, and then each name that model.js reads.
    """
    c = model.config
    T = len(ids)
    check_length(c, T, options.max_mb)
    reading = read_once(model, ids)
    weights = torch.stack([layer["weights"][0] for layer in reading.trace])  # (L, H, T, T)
    logp = F.log_softmax(reading.logits, dim=-1)  # (T, V)
    likeliest_next = int(reading.logits[-1].argmax())
    following = torch.tensor([*ids[1:], likeliest_next])  # what comes after each token
    logp_following = logp[torch.arange(T), following]
    lens = logit_lens(model, reading.streams, reading.by_ngrams, following)
    scores = head_scores(weights) | {"induction": induction_scores(model, ids)}
    chosen = choose_heads(scores, T, c, options.heads)
    next_ids, tail = next_token(reading.logits[-1])
    written = write_next(model, ids, options, ends)
    effects, first_left_out = leave_one_out(model, ids, logp, following, options.leave_out)
    near_ids, near_cosines = nearest_embeddings(model, list(dict.fromkeys(ids)))
    position_about, position_arrays = positions(model, T)

    ids_of = {
        "ids": torch.tensor(ids),
        "lens_ids": lens.ids,
        "logit_ids": next_ids.indices,
        "near_ids": near_ids,
        "new_ids": torch.tensor(written.ids, dtype=torch.long),
        "new_top_ids": written.top.indices,
    }
    shown = torch.cat([x.flatten() for x in ids_of.values()]).unique()  # the page has their texts
    index_type = np.uint16 if len(shown) < 65536 else np.uint32
    indices = {name: torch.searchsorted(shown, x.contiguous()) for name, x in ids_of.items()}
    halves = {
        "entropy": -(logp.exp() * logp).nansum(dim=-1),
        "mean_weights": weights.mean(dim=(0, 1)),
        "lens_p": lens.p,
        "lens_true": lens.p_following,
        "norms": reading.streams.norm(dim=-1),
        "new_top_p": written.top.values,
        "influence": effects,
        "near_cosine": near_cosines,
        **queries_keys_values(reading.trace, chosen, c),
    }
    nats = -float(logp_following[:-1].double().sum())
    n_bytes = sum(len(tokenizer.pieces[i]) for i in ids)
    n_likelier = (logp > logp_following.unsqueeze(1)).sum(dim=-1)[:-1].numpy()
    lower = torch.ones(T, T, dtype=torch.bool).tril()
    return {
        "tokens": [visible(tokenizer, i) for i in shown.tolist()],
        "config": vars(c),
        "scores": scores,
        "idle": reading.idle,
        "nats": nats,
        "bits_per_byte": nats / math.log(2) / n_bytes if n_bytes else None,
        "chosen": chosen,
        "tail": tail,
        "new_p": written.p,
        "stopped": written.stopped,
        "temperature": options.temperature,
        "first_left_out": first_left_out,
        "position_about": position_about,
        **position_arrays,
        "surprisal": -logp_following[:-1].numpy(),  # of tokens 1 .. T-1, in nats
        "rank": n_likelier.astype(np.uint32) + np.uint32(1),
        # row by row, without what may not be seen
        "maps": (255 * weights[:, :, lower]).round().byte().numpy(),
        "logits": next_ids.values.numpy(),
        "gradients": reading.gradients.numpy(),
        **{name: x.numpy().astype(index_type) for name, x in indices.items()},
        **{name: x.numpy().astype(np.float16) for name, x in halves.items()},
    }


def check_length(c: GPTConfig, T: int, max_mb: float):
    """Raises ValueError for more tokens than the context or a page of max_mb can hold."""
    if T > c.block_size:
        raise ValueError(
            f"the prompt has {T:,} tokens, the context is {c.block_size:,} (block_size): "
            "shorten --prompt"
        )
    if c.n_layer * c.n_head * T * T > 40e6 * max_mb:  # maps of this size never compress that well
        raise ValueError(
            f"a page of {T:,} tokens would exceed max_mb ({max_mb:g}): shorten --prompt"
        )


# -----------------------------------------------------------------------------
# One pass


@dataclass
class Reading:
    """What one pass over a text shows."""

    logits: Tensor  # (T, V)
    trace: list[dict[str, Tensor]]  # of GPT.features, a dict a layer
    streams: Tensor  # (L + 1, T, C), the residual streams from the embeddings on
    by_ngrams: Tensor  # (T, C), what a table by n-grams adds for the head; else zeros
    gradients: Tensor  # (L + 1, T), norms of the loss's gradient in the streams
    # of each MLP, the share of units that move less than a hundredth of the layer's strongest
    idle: list[float]


def read_once(model: GPT, ids: list[int]) -> Reading:
    """One pass with attention step by step, and back."""
    embedded: list[Tensor] = []
    hidden: list[Tensor] = []

    def keep_embeddings(module: nn.Module, args: tuple, output: Tensor):
        embedded.append(output.requires_grad_())

    def keep_hidden(module: nn.Module, args: tuple):
        hidden.append(args[0].detach())

    # Gradients flow back to the embeddings through the streams only, not into weights.
    model.eval().requires_grad_(False)
    hooks = [model.transformer.drop.register_forward_hook(keep_embeddings)]
    hooks += [
        block.mlp.c_proj.register_forward_pre_hook(keep_hidden) for block in model.transformer.h
    ]
    try:
        with torch.enable_grad():
            idx = torch.tensor([ids])
            trace: list[dict[str, Tensor]] = []
            features = model.features(idx, trace=trace)
            logits = model.logits(features)[0]
            streams = [embedded[0], *(layer["residual"] for layer in trace)]
            if len(ids) > 1:
                loss = F.cross_entropy(logits[:-1], idx[0, 1:])
                gradients = torch.autograd.grad(loss, streams)
            else:  # nothing is predicted
                gradients = [torch.zeros_like(stream) for stream in streams]
    finally:
        for hook in hooks:
            hook.remove()
    return Reading(
        logits=logits.detach(),
        trace=[{name: tensor.detach() for name, tensor in layer.items()} for layer in trace],
        streams=torch.cat(streams).detach(),
        by_ngrams=(features - model.transformer.ln_f(streams[-1])).detach()[0],
        gradients=torch.cat(gradients).norm(dim=-1),
        idle=[share_of_idle(units) for units in hidden],
    )


def share_of_idle(units: Tensor) -> float:
    threshold = 0.01 * units.abs().max()
    return float((units.abs() < threshold).float().mean())


# -----------------------------------------------------------------------------
# Predictions


@dataclass
class Lens:
    """The head on every residual stream (nostalgebraist 2020); the last row is the output."""

    ids: Tensor  # (L + 1, T, 10), the likeliest
    p: Tensor  # (L + 1, T, 10), their probabilities
    p_following: Tensor  # (L + 1, T), the probability of what follows


@torch.no_grad()
def logit_lens(model: GPT, streams: Tensor, by_ngrams: Tensor, following: Tensor) -> Lens:
    """streams (L + 1, T, C), by_ngrams (T, C), following (T,): the id after each token."""
    ids, probabilities, of_following = [], [], []
    for stream in streams:  # one at a time: a large vocabulary's logits are large
        features = model.transformer.ln_f(stream) + by_ngrams
        p = model.logits(features).softmax(dim=-1)  # (T, V)
        top = p.topk(min(10, p.shape[-1]), dim=-1)
        ids.append(top.indices)
        probabilities.append(top.values)
        of_following.append(p[torch.arange(len(p)), following])
    return Lens(torch.stack(ids), torch.stack(probabilities), torch.stack(of_following))


def next_token(logits: Tensor, most: int = 1000) -> tuple[torch.return_types.topk, list]:
    """The likeliest `most` of logits (V,), and the others as a histogram: up to 32 bins of
    [count, log of their mean exp]."""
    top = logits.topk(min(most, len(logits)))
    rest = logits.double().sort(descending=True).values[len(top.values) :]
    if not len(rest):
        return top, []
    edges = torch.linspace(float(rest[-1]), float(rest[0]), 33, dtype=torch.float64)[1:-1]
    bin_of = torch.bucketize(rest, edges)
    bins = [rest[bin_of == i] for i in range(32)]
    histogram = [[len(x), float(x.logsumexp(0)) - math.log(len(x))] for x in bins if len(x)]
    return top, histogram


def visible(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; bytes that are no whole character as <hex>, and special tokens by name."""
    piece = tokenizer.pieces[token]
    if not piece:
        names = {i: text for text, i in tokenizer.specials.items()}
        return names.get(token, f"<{token}>")
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02x}>" for byte in piece)


@dataclass
class Written:
    """What the model writes after a text; probabilities at temperature 1."""

    ids: list[int]
    p: list[float]
    top: torch.return_types.topk  # the likeliest ten at each step
    stopped: str  # why


@torch.no_grad()
def write_next(model: GPT, ids: list[int], options: ModelOptions, ends: tuple[int, ...]) -> Written:
    """Continue `ids` by at most options.max_new_tokens, within the context."""
    room = model.config.block_size - len(ids) + 1  # the last token written need not be read
    n = min(options.max_new_tokens, room)
    new = []
    if n:
        sampling = Sampling(temperature=options.temperature, seed=options.seed)
        for tokens in generate(model, [ids], 1, n, sampling, ends):
            new += [token.id for token in tokens]
    stopped = f"the length asked for (max_new_tokens={n})"
    if n == room:
        stopped = "the context is full (block_size)"
    if new and new[-1] in ends:
        stopped = "the end-of-text token came"
    logits = model(torch.tensor([[*ids, *new[:-1]]]))[0, len(ids) - 1 :]
    p = logits[: len(new)].softmax(dim=-1)
    top = p.topk(min(10, p.shape[-1]), dim=-1)
    return Written(new, p[torch.arange(len(new)), new].tolist(), top, stopped)


@torch.no_grad()
def leave_one_out(
    model: GPT, ids: list[int], logp: Tensor, following: Tensor, wanted: int
) -> tuple[Tensor, int]:
    """Effects (T, T) of single tokens, and the first token that was left out.

    Effect [i, p] is how many nats likelier `following[p]`, as foretold at position p, is with token
    i than without it; nan where it was not computed. Later tokens move up by one when i is gone.
    wanted: how many tokens, from the last, are left out; 0 = as many as take a few seconds.
    """
    T = len(ids)
    effects = torch.full((T, T), float("nan"))
    begin = max(1, T - (wanted or affordable(model, T)))  # nothing is foretold without token 0
    with_all = logp[torch.arange(T), following]
    cache = KVCache(model.config, 1, T)  # keys and values before i are computed once and kept
    model.features(torch.tensor([ids]), cache)
    for i in range(T - 1, begin - 1, -1):
        effects[i, i] = with_all[i] - logp[i - 1, following[i]]
        cache.pos = i
        cache.last[0] = torch.tensor(last_ids(ids[:i], cache.last.shape[1]))
        if i < T - 1:
            features = model.features(torch.tensor([ids[i + 1 :]]), cache)
            without = F.log_softmax(model.logits(features)[0], dim=-1)
            later = torch.arange(T - 1 - i)
            effects[i, i + 1 :] = with_all[i + 1 :] - without[later, following[i + 1 :]]
    return effects, begin


def affordable(model: GPT, T: int) -> int:
    """How many tokens can be left out in a few seconds, at 1e11 operations a second."""
    cost = model.flops_per_token(T, training=False)
    return max(1, int((2 * 1e11 / cost) ** 0.5))  # n tokens left out are n * n / 2 tokens to read


# -----------------------------------------------------------------------------
# Heads


def head_scores(weights: Tensor) -> dict[str, list]:
    """Numbers of each head, (L, H), as means over the rows of its map; weights (L, H, T, T)."""
    T = weights.shape[-1]
    n_rows = max(1, T - 1)  # the first row has no choice
    position = torch.arange(T, dtype=weights.dtype)
    distance = position.unsqueeze(1) - position  # (T, T), from each query back to each key
    bits = -(weights * weights.clamp(min=1e-12).log2()).sum(-1)  # (L, H, T)
    return {
        "entropy": (bits[..., 1:].sum(-1) / n_rows).tolist(),
        "distance": ((weights * distance).sum(-1)[..., 1:].sum(-1) / n_rows).tolist(),  # tokens
        "previous": (weights.diagonal(-1, -2, -1).sum(-1) / n_rows).tolist(),
        "first": (weights[..., 1:, 0].sum(-1) / n_rows).tolist(),
    }


@torch.no_grad()
def induction_scores(model: GPT, ids: list[int]) -> list[list[float]]:
    """(L, H): in a text that is read twice, how much attention goes from the second copy of a token
    to what followed its first copy (Olsson et al. 2022, arXiv 2209.11895)."""
    c = model.config
    n = min(64, (c.block_size - 1) // 2)
    text = ids[1 : n + 1]
    n = len(text)
    if n < 2:
        return [[0.0] * c.n_head for _ in range(c.n_layer)]
    trace: list[dict[str, Tensor]] = []
    model.features(torch.tensor([[ids[0], *text, *text]]), trace=trace)
    # Queries: the second copy. Keys: what followed each token of the first one.
    maps = torch.stack([layer["weights"][0, :, n + 1 :, 2 : n + 2] for layer in trace])
    matching = maps[..., :n, :].diagonal(0, -2, -1)  # (L, H, n)
    return matching[..., : n - 1].mean(-1).tolist()


def choose_heads(
    scores: dict[str, list], T: int, c: GPTConfig, wanted: list[str]
) -> list[tuple[int, int]]:
    """(layer, head) of those whose q, k and v the page holds: those wanted, or all if they are
    small, or the strongest by each score in turn until they fill 350 kB."""
    names = [f"{layer}.{head}" for layer in range(c.n_layer) for head in range(c.n_head)]
    for name in wanted:
        if name not in names:
            raise ValueError(f"heads: {name!r} is not one of 0.0 to {names[-1]} (LAYER.HEAD)")
    if wanted:
        return sorted({tuple(map(int, name.split("."))) for name in wanted})
    orders = []
    for name, values in scores.items():
        strength = np.array(values).ravel() * (-1 if name == "entropy" else 1)
        orders.append(np.argsort(-strength, kind="stable"))
    in_turn = dict.fromkeys(int(order[i]) for i in range(len(names)) for order in orders)
    bytes_each = 3 * 2 * T * c.head_dim  # q, k and v in 16 bits
    most = max(1, 350_000 // bytes_each)
    return sorted(divmod(head, c.n_head) for head in list(in_turn)[:most])


def queries_keys_values(
    trace: list[dict[str, Tensor]], heads: list[tuple[int, int]], c: GPTConfig
) -> dict[str, Tensor]:
    """{"q", "k", "v"}: (n, T, hd) of these heads; several query heads can share keys and values."""
    shared_by = c.n_head // c.n_kv_head
    rows: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
    for layer, head in heads:
        rows["q"].append(trace[layer]["q"][0, head])
        rows["k"].append(trace[layer]["k"][0, head // shared_by])
        rows["v"].append(trace[layer]["v"][0, head // shared_by])
    return {name: torch.stack(tensors) for name, tensors in rows.items()}


# -----------------------------------------------------------------------------
# Tables and sizes


def nearest_embeddings(model: GPT, ids: list[int], n: int = 5) -> tuple[Tensor, Tensor]:
    """(ids, cosines), each (len(ids), n): tokens whose embeddings point in the most similar
    directions."""
    table = model.transformer.wte.weight.detach()[: model.config.vocab_size].float()
    table = F.normalize(table, dim=-1)
    top = (table[ids] @ table.T).topk(min(n + 1, len(table)), dim=-1)
    return top.indices[:, 1:], top.values[:, 1:]  # the first is the token itself


def positions(model: GPT, T: int) -> tuple[dict, dict[str, np.ndarray]]:
    """How the model tells positions apart: JSON values, and the arrays `position_picture`
    (positions, features) in 0..255 and `position_similarity` (positions, positions), cosines."""
    c = model.config
    about: dict = {"kind": c.position}
    if c.position == "none":
        return about, {}
    n = c.block_size if c.position == "learned" else min(c.block_size, max(64, T))
    chosen = torch.linspace(0, n - 1, min(n, 96)).round().long()
    if c.position == "rope":
        cosines, sines = model.rope[:, chosen, 0, c.head_dim // 2 :].float()  # (positions, hd / 2)
        picture = cosines
        vectors = torch.cat((cosines, sines), dim=-1)
        frequency = rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        about["wavelengths"] = (2 * np.pi / frequency).tolist()  # tokens per full turn
    else:
        table = model.transformer.wpe.weight if c.position == "learned" else model.sinusoids
        vectors = table.detach()[chosen].float()
        features = torch.linspace(0, c.n_embd - 1, min(c.n_embd, 160)).round().long()
        picture = vectors[:, features]
    about["places"] = chosen.tolist()
    picture = 127.5 * (1 + picture / picture.abs().max().clamp(min=1e-9))
    vectors = F.normalize(vectors, dim=-1)
    similarity = (vectors @ vectors.T).numpy().astype(np.float16)
    return about, {
        "position_picture": picture.round().byte().numpy(),
        "position_similarity": similarity,
    }


def parts(model: GPT) -> tuple[list[dict], int]:
    """The drawing of the network, from bottom to top, with real sizes; and all its parameters."""
    t = model.transformer
    c = model.config
    texts = descriptions(model)

    def part(name: str, *modules: nn.Module | None) -> dict:
        return {"name": name, "what": texts[name], "n": count_parameters(*modules)}

    block = t.h[0]
    inner = [
        part("Norm", block.ln_1),
        part("Attention", block.attn),
        part("Norm", block.ln_2),
        part("MLP", block.mlp),
    ]
    drawing = [part("Token embedding", t.wte)]
    if c.ngram_rows:
        drawing.append(part("N-grams", t.ngrams))
    drawing.append(part("Positions", t.wpe if c.position == "learned" else None))
    drawing.append({**part("Block", *t.h), "inner": inner})
    drawing.append(part("Norm", t.ln_f))
    drawing.append(part("Head", model.lm_head))
    return drawing, count_parameters(model)


def count_parameters(*modules: nn.Module | None) -> int:
    return sum(p.numel() for m in modules if m is not None for p in m.parameters())


def descriptions(model: GPT) -> dict[str, str]:
    """{part of the drawing: what it is, with its sizes}."""
    c = model.config
    norm = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[c.norm]
    if c.norm_weight:
        norm += ", learned gains"

    keys = f"{c.n_head} key and value heads"
    if c.n_kv_head != c.n_head:
        keys = f"{c.n_kv_head} key/value heads"
    qkv_width = model.transformer.h[0].attn.c_attn.out_features
    normed = ", normed" if c.qk_norm else ""
    attention = (
        f"queries, keys, values {c.n_embd} -> {qkv_width}: {c.n_head} query heads, "
        f"{keys} of {c.head_dim}{normed}; joined side by side and projected to {c.n_embd}"
    )

    gate = " x 2 (gate and value)" if c.activation == "swiglu" else ""
    head = f"{c.n_embd} -> {c.vocab_size:,}"
    if c.tie_weights:
        head = "the embedding table again"
    if c.logit_softcap:
        head += f", capped at {c.logit_softcap:g}"
    rope_scaling = f", {c.rope_scaling}" if c.rope_scaling else ""
    return {
        "Token embedding": f"{c.vocab_size:,} x {c.n_embd}",
        "N-grams": f"by the last 2 to {c.ngram_order} tokens: {c.ngram_order - 1} x "
        f"{c.ngram_rows:,} rows, half of each for the first block, half for the head",
        "Positions": {
            "rope": f"rotary, in attention (theta {c.rope_theta:g}{rope_scaling})",
            "none": "none",
            "learned": f"learned, {c.block_size} x {c.n_embd}, added",
            "sinusoidal": "sinusoidal, fixed, added",
        }[c.position],
        "Block": f"x {c.n_layer}",
        "Norm": norm,
        "Attention": attention,
        "MLP": f"{c.n_embd} -> {c.n_hidden}{gate} -> {c.n_embd}, {c.activation}",
        "Head": head,
    }
