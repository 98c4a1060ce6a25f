"""A block of the network as a CPU decodes with it: model.py's Block, in half as many calls.

One token's products are so small that as much time goes into what surrounds them: modules that call
modules, dropout that drops nothing, conversions to the type that is there already.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.use.caches import columns_alike
from model import (
    Block,
    GPTConfig,
    KVCache,
    as_bias,
    attention,
    causal_mask,
    rotate,
)

Layer = Callable[[Tensor], Tensor]
EXAMPLE_TOKENS = 3
ROWS_ALIKE = 3  # MKL multiplies up to so many rows alike, whatever else the product has
TOKENS_AT_ONCE = 128  # of a prompt: what none of them sees is left out


def swiglu(x: Tensor) -> Tensor:
    """Gate and value side by side, (..., 2 n_hidden) -> (..., n_hidden)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(value)


ACTIVATIONS: dict[str, Layer] = {
    "swiglu": swiglu,
    "relu2": lambda x: F.relu(x).square_(),
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def norm_as_function(norm: nn.LayerNorm | nn.RMSNorm) -> Layer:
    shape = norm.normalized_shape
    if isinstance(norm, nn.LayerNorm):
        return lambda x: torch.layer_norm(x, shape, norm.weight, norm.bias, norm.eps)
    return lambda x: torch.rms_norm(x, shape, norm.weight, norm.eps)


def attend_apart(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """model.py's attention, by products that are the same for a token whatever is read with it:
    other rows, and other tokens of its own.

    Those of many tokens in one call need not be: which kernel is taken, and how it cuts its sums,
    depends on how many there are. So each token's queries are a product of their own, in a batch of
    such; a long prompt's attention takes five times as long. q (B, nh, T, hd), k and v
    (B, nkv, S, hd), mask None or (T, S) or (B, 1, T, S). Returns (B, nh, T, hd).
    """
    B, nh, T, hd = q.shape
    nkv, S = k.shape[1:3]
    if mask is None:
        mask = causal_mask(T, S, q.device)
    bias = as_bias(mask, q.dtype) if mask.dtype == torch.bool else mask
    missing = -S % columns_alike(hd)
    if missing:
        k = F.pad(k, (0, 0, 0, missing))
        v = F.pad(v, (0, 0, 0, missing))
        bias = F.pad(bias, (0, missing), value=-math.inf)
    queries = q.unflatten(1, (nkv, nh // nkv))  # (B, nkv, g, T, hd)
    if T == 1:
        y = attend_to_cache(queries.squeeze(3), k, v, bias)
        return y.unsqueeze(3).flatten(1, 2)
    y = torch.empty_like(queries)
    for i in range(B):
        own = bias if bias.dim() == 2 else bias[i % len(bias), 0]
        attend_by_tokens(queries[i], k[i], v[i], own, out=y[i])
    return y.flatten(1, 2)


def attend_to_cache(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """One new token a row: q (B, nkv, g, hd), k and v (B, nkv, S, hd), bias (1, S) or (B, 1, 1, S).
    Returns (B, nkv, g, hd)."""
    B, nkv, _, hd = q.shape
    S = k.shape[2]
    bias = bias.view(-1, 1, 1, S)
    if B > 1:
        bias = bias.expand(B, nkv, 1, S).reshape(B * nkv, 1, S)
    y = attend_by_few_rows(
        q.reshape(B * nkv, -1, hd), k.flatten(0, 1), v.flatten(0, 1), bias.view(-1, 1, S)
    )
    return y.view(B, nkv, -1, hd)


def attend_by_tokens(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor):
    """Several new tokens of one row: q and out (nkv, g, T, hd), k, v (nkv, S, hd), bias (T, S)."""
    nkv, _, T, hd = q.shape
    S = k.shape[1]
    columns = columns_alike(hd)
    for begin in range(0, T, TOKENS_AT_ONCE):
        some = slice(begin, begin + TOKENS_AT_ONCE)
        seen = bias[some]
        # Up to the last column that any of them may look at
        n = (seen > -math.inf).any(dim=0).nonzero().max().item() + 1
        n = min(S, math.ceil(n / columns) * columns)
        seen = seen[:, :n].unsqueeze(1)
        for head in range(nkv):
            queries = q[head, :, some].transpose(0, 1)  # (tokens, g, hd)
            keys = k[head, :n].expand(len(queries), n, hd)
            values = v[head, :n].expand(len(queries), n, hd)
            y = attend_by_few_rows(queries, keys, values, seen)
            out[head, :, some] = y.transpose(0, 1)


def attend_by_few_rows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Products of a few rows, of which each is added up alike for any N and S.

    q (N, g, hd), k and v (N, S, hd) with S a multiple of columns_alike, bias (N or 1, 1, S).
    Returns (N, g, hd).
    """
    scale = 1 / math.sqrt(q.shape[-1])

    def attend(some: Tensor) -> Tensor:
        scores = torch.baddbmm(bias, some, k.mT, alpha=scale)
        return torch.bmm(scores.softmax(dim=-1), v)

    if q.shape[1] <= ROWS_ALIKE:
        return attend(q)
    return torch.cat([attend(some) for some in q.split(ROWS_ALIKE, dim=1)], dim=1)


class DecodingBlock(nn.Module):
    """Block without gradients and dropout; its layers are what `pack` makes of a Linear's."""

    def __init__(self, block: Block, pack: Callable[[nn.Linear], Layer]):
        super().__init__()
        self.config: GPTConfig = block.attn.config
        self.ln_1 = norm_as_function(block.ln_1)
        self.ln_2 = norm_as_function(block.ln_2)
        # (heads, hd), gains of the queries' and keys' norm
        self.gains = None
        if block.attn.q_norm is not None:
            queries = block.attn.q_norm.expand(self.config.n_head, -1)
            keys = block.attn.k_norm.expand(self.config.n_kv_head, -1)
            self.gains = torch.cat((queries, keys))
        self.attn_fc = pack(block.attn.c_attn)
        self.attn_proj = pack(block.attn.c_proj)
        self.mlp_fc = pack(block.mlp.c_fc)
        self.activation = ACTIVATIONS[block.mlp.activation]
        self.mlp_proj = pack(block.mlp.c_proj)

    def attend(
        self, x: Tensor, rope: Tensor | None, mask: Tensor | None, cache: KVCache | None,
        layer: int, steps: dict | None,
    ) -> Tensor:  # fmt: skip
        """CausalSelfAttention.forward: (B, T, C) -> (B, T, C)."""
        c = self.config
        nh = c.n_head
        nkv = c.n_kv_head
        B, T, _ = x.shape
        qkv = self.attn_fc(x).view(B, T, nh + 2 * nkv, c.head_dim)
        qk, v = qkv.split_with_sizes((nh + nkv, nkv), dim=2)
        if c.qk_norm:
            qk = torch.rms_norm(qk, (c.head_dim,), None, c.norm_eps)
        if self.gains is not None:
            qk = qk * self.gains
        if rope is not None:
            qk = rotate(qk, rope[0], rope[1])
        q, k = qk.split_with_sizes((nh, nkv), dim=2)
        # (B, T, heads, hd) -> (B, heads, T, hd)
        q = q.transpose(1, 2)
        k = k.transpose(1, 2)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        y = attend_apart(q, k, v, mask) if steps is None else attention(q, k, v, mask, 0.0, steps)
        return self.attn_proj(y.transpose(1, 2).flatten(2))  # (B, nh, T, hd) -> (B, T, nh hd)

    def forward(
        self, x: Tensor, rope: Tensor | None, mask: Tensor | None, cache: KVCache | None,
        layer: int, steps: dict | None,
    ) -> Tensor:  # fmt: skip
        x = x + self.attend(self.ln_1(x), rope, mask, cache, layer, steps)
        hidden = self.activation(self.mlp_fc(self.ln_2(x)))
        return x + self.mlp_proj(hidden)


@torch.inference_mode()
def is_as_derived(block: Block, layer: int, rope: Tensor | None) -> bool:
    """Whether the block computes what DecodingBlock does, by a small example.

    So whoever changes attention, MLP or Block in model.py need not know of it. rope: of the first
    positions, if any.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, EXAMPLE_TOKENS, block.attn.config.n_embd, generator=generator)
    try:
        expected = block(x, rope, None, None, layer, None)
        y = DecodingBlock(block, lambda linear: linear)(x, rope, None, None, layer, None)
    except Exception:  # a block with other parts or arguments is another one, too
        return False
    return torch.allclose(y, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
