"""The network: a decoder-only transformer (Vaswani et al. 2017; GPT-2, Radford et al. 2019).

Reading order: config, norm, positions, masks, cache, attention, MLP, block, loss, GPT; at the end,
faster forms of norm, attention and loss. Sizes: B sequences, T positions, C = n_embd, nh query
heads, nkv key/value heads, hd = head_dim, V vocabulary. GPT-2's names, so that its weights fit.
"""

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint

IGNORE = -1  # a target with this id is not scored
LOGITS_AT_ONCE = 1 << 24  # more logits than this are computed in pieces: 64 MB of float32
LOGIT_BYTES_ON_GPU = 1 << 31  # the same on a GPU, where logits and gradient may take 2 GB
# GPT-2 as published. The other family, "modern", is the defaults below.
GPT2 = dict(
    position="learned", norm="layernorm", norm_weight=True, activation="gelu_tanh", qk_norm=False,
    bias=True, tie_weights=True, zero_init=False,
)  # fmt: skip


@dataclass
class GPTConfig:
    """Shape and parts of a GPT. Raises ValueError, naming the setting, for values that do not fit.

    A field below `# --- model` is a setting of training, and its comment the setting's help:
    lathe/settings.py reads them from here. From papers are n_kv_head (arXiv 2305.13245), rope
    (2104.09864), sinusoidal (1706.03762, 3.5), rmsnorm (1910.07467), swiglu (2002.05202), relu2
    (2109.08668), qk_norm (2302.05442; before rope, as in Qwen3) and logit_softcap (2408.00118);
    tables by n-grams are lathe/ngrams.py's.
    """

    # --- what the data decides
    vocab_size: int = 50257
    # id that begins a document, whose tokens then see none before it; -1 = off
    document_token: int = -1

    # --- model
    block_size: int = 1024  # context length, in tokens
    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads per block
    n_kv_head: int = 0  # key/value heads, fewer than n_head for grouped queries; 0 = n_head
    head_dim: int = 0  # width of one head; 0 = n_embd / n_head
    n_embd: int = 768  # width of the residual stream
    # width of the MLP; 0 = 4 n_embd, for swiglu 8/3 n_embd up to a multiple of 32
    n_hidden: int = 0
    # how a token's position is encoded
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    # longer wavelengths for longer contexts: linear:4 or, as Llama 3.1, llama3:8:1:4:8192
    rope_scaling: str = ""
    # normalisation before attention, MLP and head
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_weight: bool = False  # learned gains in the norms
    norm_eps: float = 1e-5  # added to the variance in the norms
    # of the MLP; gelu_tanh is GPT-2's
    activation: Literal["swiglu", "relu2", "gelu", "gelu_tanh"] = "swiglu"
    qk_norm: bool = True  # normalise queries and keys per head
    bias: bool = False  # biases in linear layers, and in layernorms with gains
    tie_weights: bool = False  # one matrix for token embedding and output head
    zero_init: bool = True  # output projections start at zero; false = GPT-2's initialisation
    logit_softcap: float = 0.0  # c squashes logits to c tanh(logits / c); 0 = off
    # rows of a table by the last tokens, for each length of these; see lathe/ngrams.py; 0 = off
    ngram_rows: int = 0
    ngram_order: int = 5  # most tokens that such a row goes by: 2 is pairs
    ngram_dropout: float = 0.0  # probability of dropping such a row in training
    dropout: float = 0.0  # probability of dropping an activation in training

    def __post_init__(self):
        def check(fits: bool, name: str, rule: str):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must {rule}")

        for name, choices in CHOICES.items():
            check(getattr(self, name) in choices, name, f"be one of {', '.join(choices)}")
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            check(getattr(self, name) >= 1, name, "be 1 or more")
        for name, most in MOST.items():
            check(getattr(self, name) <= most, name, f"be {most:,} at most")

        # Zeros stand for the usual sizes
        if self.n_kv_head == 0:
            self.n_kv_head = self.n_head
        if self.head_dim == 0:
            rule = f"be a multiple of n_head ({self.n_head}), or head_dim be given"
            check(self.n_embd % self.n_head == 0, "n_embd", rule)
            self.head_dim = self.n_embd // self.n_head
        if self.n_hidden == 0 and self.activation == "swiglu":
            # 8/3 n_embd: three matrices of it are as large as the two of 4 n_embd
            self.n_hidden = 32 * math.ceil(self.n_embd / 12)
        elif self.n_hidden == 0:
            self.n_hidden = 4 * self.n_embd

        for name in ("n_kv_head", "head_dim", "n_hidden"):
            check(getattr(self, name) >= 1, name, "be 1 or more")
        check(self.n_head % self.n_kv_head == 0, "n_kv_head", f"divide n_head ({self.n_head})")
        if self.position == "rope":
            check(self.head_dim % 2 == 0, "head_dim", "be even with position=rope")
        if self.position == "sinusoidal":
            check(self.n_embd % 2 == 0, "n_embd", "be even with position=sinusoidal")
        check(self.norm_eps > 0, "norm_eps", "be above 0")
        check(self.rope_theta > 0, "rope_theta", "be above 0")
        if self.rope_scaling:
            rule = "be linear:FACTOR or llama3:FACTOR:LOW:HIGH:LENGTH, with LOW below HIGH"
            check(is_rope_scaling(self.rope_scaling), "rope_scaling", rule)
        check(0 <= self.dropout < 1, "dropout", "be at least 0 and below 1")
        check(0 <= self.logit_softcap < math.inf, "logit_softcap", "be 0 (off) or more")
        check(self.ngram_rows >= 0, "ngram_rows", "be 0 (off) or more")
        check(self.ngram_order >= 2, "ngram_order", "be 2 (pairs) or more")
        check(0 <= self.ngram_dropout < 1, "ngram_dropout", "be at least 0 and below 1")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: a multiple of 64, which tensor cores like."""
        if self.vocab_size < 1024:
            return self.vocab_size  # small tables would get slower
        return 64 * math.ceil(self.vocab_size / 64)


# More is a mistake, which would fill the memory before it shows.
MOST = dict(
    vocab_size=2**32, block_size=2**24, n_layer=10_000, n_head=2**16, n_embd=2**20,
    ngram_rows=2**31, ngram_order=16,
)  # fmt: skip
CHOICES = {f.name: get_args(f.type) for f in fields(GPTConfig) if get_args(f.type)}


def is_rope_scaling(scaling: str) -> bool:
    """Whether it is one of the two forms of rope_frequencies."""
    kind, *words = scaling.split(":")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    if not all(0 < number < math.inf for number in numbers):
        return False
    if kind == "llama3" and len(numbers) == 4:
        return numbers[1] < numbers[2]
    return kind == "linear" and len(numbers) == 1


# -----------------------------------------------------------------------------
# Norm


def outside_autocast(x: Tensor) -> AbstractContextManager:
    """For norms on a GPU: they compute in float32 whatever they read, and return what they read.

    Autocast would have them return float32, too, twice the bytes, and rms_norm not before
    torch 2.12 (pytorch issue 188955).
    """
    return torch.autocast("cuda", enabled=False) if x.is_cuda else nullcontext()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps), the mean over the last dimension, times weight (D,) if any."""
    if x.is_cpu and not torch.compiler.is_compiling():
        y = RMSNormOnCPU.apply(x, eps)  # the same, in fewer kernels: see fast paths
        return y if weight is None else y * weight
    if weight is not None and x.is_cuda:
        weight = weight.to(x.dtype)
    with outside_autocast(x):
        return F.rms_norm(x, (x.shape[-1],), weight, eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the last dimension, times weight, plus bias (D,)."""
    if x.is_cuda and not torch.compiler.is_compiling():
        weight = None if weight is None else weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
    with outside_autocast(x):
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def make_norm(c: GPTConfig) -> nn.Module:
    if c.norm == "layernorm":
        return LayerNorm(c.n_embd, c.norm_eps, elementwise_affine=c.norm_weight, bias=c.bias)
    return RMSNorm(c.n_embd, c.norm_eps, elementwise_affine=c.norm_weight)


# -----------------------------------------------------------------------------
# Positions: sinusoidal and rope. Tables are computed on a CPU in float64, alike for every device.


def frequencies(width: int, theta: float) -> Tensor:
    """(width / 2,): theta^(-2i / width), by which feature pair i turns at each position."""
    even = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")  # 2i
    return theta ** -(even / width)


def rope_frequencies(head_dim: int, theta: float, scaling: str) -> Tensor:
    """(hd / 2,): those of rope, slower where weights were trained so for longer contexts.

    "linear:FACTOR" divides all by FACTOR (arXiv 2306.15595). "llama3:FACTOR:LOW:HIGH:LENGTH", as in
    Llama 3.1 (2407.21783), divides those of pairs that go round less than LOW times in LENGTH
    positions, keeps those of more than HIGH times, and goes over from one to the other between.
    """
    frequency = frequencies(head_dim, theta)
    kind, *words = scaling.split(":")
    if kind == "linear":
        return frequency / float(words[0])
    if kind == "llama3":
        factor, low, high, length = map(float, words)
        rounds = length * frequency / (2 * math.pi)
        kept = ((rounds - low) / (high - low)).clamp(0, 1)
        return kept * frequency + (1 - kept) * frequency / factor
    return frequency


def angles(length: int, frequency: Tensor) -> Tensor:
    """(length, width / 2): by how much each pair of features is turned at each position."""
    pos = torch.arange(length, dtype=torch.float64, device="cpu")
    return torch.outer(pos, frequency)


def sinusoidal_table(length: int, n_embd: int) -> Tensor:
    """(length, C): sin(pos / 10000^(2i/C)) in feature 2i, and the cosine in feature 2i + 1."""
    angle = angles(length, frequencies(n_embd, 10000.0))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).float()


def rope_table(length: int, head_dim: int, theta: float, scaling: str = "") -> Tensor:
    """(2, length, 1, hd): cosines and signed sines for rotate, the same for every head."""
    frequency = rope_frequencies(head_dim, theta, scaling)
    angle = angles(length, frequency).unsqueeze(1)  # (length, 1, hd / 2)
    cos = torch.cat((angle.cos(), angle.cos()), dim=-1)
    sin = torch.cat((-angle.sin(), angle.sin()), dim=-1)
    return torch.stack((cos, sin)).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of features i and i + hd/2 (the half-split form of Llama's published weights).

    x (B, T, heads, hd), cos and sin (T, 1, hd) or (B, T, 1, hd).
    """
    other = x.roll(x.shape[-1] // 2, dims=-1)  # the other feature of each pair
    return torch.addcmul(x * cos.to(x.dtype), other, sin.to(x.dtype))  # x cos + other sin


# -----------------------------------------------------------------------------
# Masks: who may look at whom


def causal_mask(T: int, total: int, device: torch.device | str) -> Tensor:
    """(T, total) booleans: the last T of `total` positions see themselves and all before them."""
    return torch.ones(T, total, dtype=torch.bool, device=device).tril(total - T)


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Booleans -> 0 where one may look, -inf where not, which attention adds to its scores.

    Kernels want this: made once for all layers here, else by each of them for itself.
    """
    if mask.is_floating_point():  # it is one already
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))


def document_begins(idx: Tensor, document_token: int) -> Tensor:
    """ids (B, T) -> (B, T), for each token the index at which its document begins."""
    index = torch.arange(idx.shape[1], device=idx.device)
    return torch.where(idx == document_token, index, 0).cummax(dim=1).values


def document_mask(begins: Tensor) -> Tensor:
    """document_begins (B, T) -> (B, 1, T, T) booleans: the causal mask within each document."""
    T = begins.shape[1]
    same = begins.unsqueeze(2) == begins.unsqueeze(1)  # (B, T, T)
    return (same & causal_mask(T, T, begins.device)).unsqueeze(1)


BLOCK = 128  # positions whose queries and keys a kernel takes together


def document_blocks(begins: Tensor) -> BlockMask:
    """document_mask for flex_attention, which computes it position by position where it must, and
    leaves out whole blocks: no (T, T) is in memory. All from numbers that stay on the device.

    begins never falls along a row, so the first and the last query of a block tell of all its own.
    """
    T = begins.shape[1]
    block = torch.arange(math.ceil(T / BLOCK), device=begins.device)  # (n,)
    last = (block * BLOCK + BLOCK - 1).clamp(max=T - 1)
    first_begin = begins[:, block * BLOCK].unsqueeze(-1)  # (B, n, 1)
    last_begin = begins[:, last].unsqueeze(-1)
    queries = block.unsqueeze(-1)  # (n, 1); keys are (n,)
    seen = (block <= queries) & (block >= first_begin // BLOCK)  # (B, n, n), by some query
    full = (block < queries) & (block * BLOCK >= last_begin)  # all keys by all queries
    partial = seen & ~full

    def may_look(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= begins[b, query])

    lists = [listed(blocks) for blocks in (partial, full, partial.mT, full.mT)]
    counts_and_indices = [t for pair in lists for t in pair]
    return BlockMask((T, T), *counts_and_indices, (BLOCK, BLOCK), may_look)


def fits_blocks(c: GPTConfig, dropout: float) -> bool:
    """Whether flex_attention can: it has no dropout, and its products are 16 numbers wide."""
    return dropout == 0 and c.head_dim >= 16


def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n, n) booleans -> (B, 1, n), how many of a row are true, and (B, 1, n, n), which: those
    first. Both contiguous, as flex_attention's kernels take for granted."""
    count = blocks.sum(dim=-1, dtype=torch.int32)
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return count.unsqueeze(1).contiguous(), order.int().unsqueeze(1).contiguous()


# -----------------------------------------------------------------------------
# Cache


def check_length(n_tokens: int, limit: int):
    if n_tokens > limit:
        raise ValueError(f"{n_tokens} tokens are more than the context of {limit} (block_size)")


class KVCache:
    """Keys and values of the tokens read so far, so that each forward pass reads only new ones.

    What is asked of a cache in a pass over ids (B, T); lathe/use/caches.py has two more kinds:
    - advance(T) -> positions, mask. GPT.features calls it once, first: make room for T more tokens
      in each row. positions, (T,) or (B, T): theirs in the tables of positions. mask, booleans
      (T, S) or (B, 1, T, S): which of the S positions that `append` will return each of them may
      look at. None: all up to its own; only where T is S or 1, see fused_attention.
    - last, (B, n). NGrams, if there is such a table, reads here which n tokens stand before the new
      ones of each row, and writes the last ones again.
    - append(layer, k, v) -> k, v. Attention calls it in each layer: keep the new tokens' keys and
      values, (B, nkv, T, hd); return those of all S positions, (B, nkv, S, hd).

    In this kind all rows are equally long: k and v are (n_layer, B, nkv, length, hd), allocated
    once, of which `pos` positions are filled. Raises ValueError beyond block_size or length.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, length: int,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):  # fmt: skip
        if length > config.block_size:
            limit = f"block_size ({config.block_size})"
            raise ValueError(f"a cache of {length} positions is longer than {limit}")
        shape = (config.n_layer, batch_size, config.n_kv_head, length, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.length = length
        self.pos = 0
        n_last = config.ngram_order - 1 if config.ngram_rows else 1
        self.last = torch.zeros(batch_size, n_last, dtype=torch.long, device=device)

    def advance(self, T: int) -> tuple[Tensor, Tensor | None]:
        begin = self.pos
        end = begin + T
        check_length(end, self.length)
        self.pos = end
        positions = torch.arange(begin, end, device=self.k.device)
        mask = None
        if begin > 0 and T > 1:  # a token alone may look at all before it
            mask = causal_mask(T, end, self.k.device)
        return positions, mask

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.pos
        begin = end - k.shape[2]
        self.k[layer, :, :, begin:end] = k
        self.v[layer, :, :, begin:end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


# -----------------------------------------------------------------------------
# Attention


def repeat_heads(x: Tensor, n: int) -> Tensor:
    """(B, nkv, S, hd) -> (B, nkv n, S, hd): n query heads side by side share a key/value head."""
    return x.unsqueeze(2).expand(-1, -1, n, -1, -1).flatten(1, 2)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, steps: dict | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(hd)) v, where mask allows it: q (B, nh, T, hd), k and v (B, nkv, S, hd).

    mask: (T, S) or (B, 1, T, S) booleans, or as_bias of them; None: causal, for the last T of S
    positions. Returns (B, nh, T, hd). A dict for `steps` gets q, k, v, scores, scaled, masked and
    weights.
    """
    nh, T, hd = q.shape[1:]
    nkv, S = k.shape[1:3]
    keys = repeat_heads(k, nh // nkv)
    values = repeat_heads(v, nh // nkv)
    if mask is None:
        mask = causal_mask(T, S, q.device)
    # (B, nh, T, hd) x (B, nh, hd, S) -> (B, nh, T, S)
    scaled = (q * (1 / math.sqrt(hd))) @ keys.mT
    # masked_fill of the scores has a slower backward pass
    bias = as_bias(mask, scaled.dtype) if mask.dtype == torch.bool else mask
    masked = scaled + bias
    weights = masked.softmax(dim=-1)
    if steps is not None:
        scores = scaled * math.sqrt(hd)
        steps.update(q=q, k=k, v=v, scores=scores, scaled=scaled, masked=masked, weights=weights)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    weights = weights.to(v.dtype)  # on CUDA autocast makes softmax float32
    # (B, nh, T, S) x (B, nh, S, hd) -> (B, nh, T, hd)
    return weights @ values


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        heads = config.n_head + 2 * config.n_kv_head  # queries, keys and values as one matrix
        self.c_attn = nn.Linear(config.n_embd, heads * config.head_dim, bias=config.bias)
        self.c_proj = nn.Linear(config.n_head * config.head_dim, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.q_norm = None
        self.k_norm = None
        if config.qk_norm and config.norm_weight:
            self.q_norm = nn.Parameter(torch.ones(config.head_dim))
            self.k_norm = nn.Parameter(torch.ones(config.head_dim))

    def forward(
        self, x: Tensor, rope: Tensor | None, mask: Tensor | BlockMask | None,
        cache: KVCache | None, layer: int, steps: dict | None,
    ) -> Tensor:  # fmt: skip
        c = self.config
        nh = c.n_head
        nkv = c.n_kv_head
        qkv = self.c_attn(x).unflatten(-1, (nh + 2 * nkv, c.head_dim))  # (B, T, heads, hd)
        qk, v = qkv.split((nh + nkv, nkv), dim=2)  # q and k stay one: fewer kernels
        if c.qk_norm:
            qk = rms_norm(qk, None, c.norm_eps)
        if self.q_norm is not None:
            qk = qk * torch.cat((self.q_norm.expand(nh, -1), self.k_norm.expand(nkv, -1)))
        if rope is not None:
            qk = rotate(qk, rope[0], rope[1])
        q, k = qk.split((nh, nkv), dim=2)
        # (B, T, heads, hd) -> (B, heads, T, hd)
        q = q.transpose(1, 2)
        k = k.transpose(1, 2)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # with those of earlier tokens: (B, nkv, S, hd)
        dropout = c.dropout if self.training else 0.0
        if steps is None and fused_attention_wins(q, v):
            y = fused_attention(q, k, v, mask, dropout)
        else:
            y = attention(q, k, v, mask, dropout, steps)
        y = y.transpose(1, 2).flatten(2)  # heads side by side: (B, nh, T, hd) -> (B, T, nh hd)
        return self.resid_dropout(self.c_proj(y))


# -----------------------------------------------------------------------------
# MLP and block


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation = config.activation
        width = config.n_hidden
        if config.activation == "swiglu":
            width = 2 * config.n_hidden  # gate and value as one matrix: one kernel in place of two
        self.c_fc = nn.Linear(config.n_embd, width, bias=config.bias)
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = before_activation(self.c_fc, x)
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=-1)
            x = F.silu(gate) * value
        elif self.activation == "relu2":
            x = F.relu(x).square()
        elif self.activation == "gelu":
            x = F.gelu(x)
        else:  # gelu_tanh
            x = F.gelu(x, approximate="tanh")
        return self.dropout(self.c_proj(x))


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: Tensor | None, mask: Tensor | BlockMask | None,
        cache: KVCache | None, layer: int, steps: dict | None,
    ) -> Tensor:  # fmt: skip
        x = x + self.attn(self.ln_1(x), rope, mask, cache, layer, steps)
        return x + self.mlp(self.ln_2(x))


# -----------------------------------------------------------------------------
# Loss


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type of matrix products with x: autocast's where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def residual_dtype(x: Tensor) -> torch.dtype:
    """The type of the residual stream, which begins as x: on a GPU in bfloat16 autocast bfloat16,
    half the bytes of all that is not a product (quality: bench/LOG.md); else that of x."""
    is_half = x.is_cuda and autocast_dtype(x) == torch.bfloat16
    return torch.bfloat16 if is_half else x.dtype


def rows_at_once(x: Tensor, n_ids: int, dtype: torch.dtype, with_gradient: bool) -> int:
    """How many of the features (N, C) get logits, (rows, n_ids), at a time; products are in dtype.

    On a GPU pieces are a multiple of 128 rows, which its products like, and equally large, so that
    the compiler has one kernel for all of them.
    """
    if not x.is_cuda:
        return max(1, LOGITS_AT_ONCE // n_ids)
    size = 2 * 4  # uncompiled: logits in float32, and what the loss makes of them
    if torch.compiler.is_compiling():
        size = 2 * dtype.itemsize if with_gradient else dtype.itemsize
    pieces = max(1, math.ceil(len(x) * n_ids * size / LOGIT_BYTES_ON_GPU))
    return max(128, 128 * math.ceil(len(x) / pieces / 128))


def softcapped(logits: Tensor, cap: float) -> Tensor:
    if cap == 0:
        return logits
    return cap * torch.tanh(logits / cap)


def cross_entropy_loss(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """logits (N, V), targets (N,) -> their cross-entropy in nats, 0 where the target is IGNORE.

    reduction: "none" (N,), or "sum". To change the loss, change this: the faster form of it notices
    and is not taken any more (loss_is_as_derived).
    """
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction=reduction)


# -----------------------------------------------------------------------------
# GPT


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        modules = {"wte": nn.Embedding(config.padded_vocab_size, config.n_embd)}
        if config.position == "learned":
            modules["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        if config.ngram_rows:
            from lathe.ngrams import NGrams  # a wing: without it this file needs torch alone

            sizes = (config.vocab_size, config.ngram_order, config.ngram_rows, config.n_embd)
            modules["ngrams"] = NGrams(*sizes, config.ngram_dropout)
        modules["drop"] = nn.Dropout(config.dropout)
        modules["h"] = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        modules["ln_f"] = make_norm(config)
        self.transformer = nn.ModuleDict(modules)
        self.lm_head = None  # the head is the embedding table
        if not config.tie_weights:
            self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        if config.position == "sinusoidal":
            table = sinusoidal_table(config.block_size, config.n_embd)
            self.register_buffer("sinusoids", table, persistent=False)
        if config.position == "rope":
            theta = config.rope_theta
            table = rope_table(config.block_size, config.head_dim, theta, config.rope_scaling)
            self.register_buffer("rope", table, persistent=False)
        self.init_weights()
        self.fast_loss = loss_is_as_derived(self)

    @torch.no_grad()
    def init_weights(self):
        """GPT-2's scheme; or, with zero_init, matrices at std 0.5 / sqrt(fan in), embeddings at 0.2
        (bench/LOG.md), and output projections at zero, so that every block begins as the identity
        (Fixup, arXiv 1901.09321)."""
        c = self.config
        for name, p in self.named_parameters():
            output = name.endswith("c_proj.weight")
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() < 2:  # gains
                nn.init.ones_(p)
            elif name.endswith("ngrams.weight"):
                nn.init.zeros_(p)
            elif not c.zero_init and output:  # 2 n_layer of them add up in the residual stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * c.n_layer))
            elif not c.zero_init:
                nn.init.normal_(p, std=0.02)
            elif name.endswith(("wte.weight", "wpe.weight")):
                nn.init.normal_(p, std=0.02 if c.tie_weights else 0.2)
            elif output or name.endswith("lm_head.weight"):
                nn.init.zeros_(p)
            else:
                nn.init.normal_(p, std=0.5 / math.sqrt(p.shape[1]))

    @property
    def head_weight(self) -> Tensor:
        """(V padded, C), the matrix that turns features into logits."""
        if self.lm_head is None:
            return self.transformer.wte.weight
        return self.lm_head.weight

    def masks_documents_in_blocks(self, idx: Tensor) -> bool:
        """Whether document_blocks have a kernel: where all of this, or each block alone (as in
        FSDP), is compiled for a GPU."""
        compiled = torch.compiler.is_compiling() or self.transformer.h[0]._compiled_call_impl
        dropout = self.config.dropout if self.training else 0.0
        return bool(idx.is_cuda and compiled) and fits_blocks(self.config, dropout)

    def features(
        self, idx: Tensor, cache: KVCache | None = None, trace: list[dict] | None = None
    ) -> Tensor:
        """(B, T) token ids -> (B, T, C), normed, ready for the head.

        With a cache, idx holds only the new tokens, and the cache grows by them; all in it is one
        document. With a trace (an empty list), attention runs step by step and one dict a layer is
        appended: q, k, v, scores, scaled, masked, weights, and `residual`, the stream after the
        block. Raises ValueError for more tokens than the context.
        """
        c = self.config
        T = idx.shape[1]
        # positions: (T,) or (B, T), each token's in its document; mask: as in attention
        if cache is not None:
            positions, mask = cache.advance(T)
        else:
            check_length(T, c.block_size)
            positions = torch.arange(T, device=idx.device)
            mask = None
            if c.document_token >= 0:
                begins = document_begins(idx, c.document_token)
                positions = positions - begins
                in_blocks = trace is None and self.masks_documents_in_blocks(idx)
                mask = document_blocks(begins) if in_blocks else document_mask(begins)
        x = self.transformer.wte(idx)
        if c.ngram_rows:
            last = None if cache is None else cache.last
            by_ngrams = self.transformer.ngrams(idx, positions, last)
            x = x + by_ngrams.to_input
        rope = None
        if c.position == "learned":
            x = x + self.transformer.wpe(positions)
        elif c.position == "sinusoidal":  # the factor is the paper's (section 3.4)
            x = x * math.sqrt(c.n_embd) + self.sinusoids[positions].type_as(x)
        elif c.position == "rope":  # in attention
            rope = self.rope[:, positions]  # (2, T, 1, hd) or (2, B, T, 1, hd)
        x = self.transformer.drop(x.to(residual_dtype(x)))
        if isinstance(mask, Tensor) and trace is None and (x.is_cuda or cache is not None):
            mask = as_bias(mask, autocast_dtype(x))
        for layer, block in enumerate(self.transformer.h):
            steps = None if trace is None else {}
            x = block(x, rope, mask, cache, layer, steps)
            if trace is not None:
                trace.append({**steps, "residual": x})
        x = self.transformer.ln_f(x)
        if c.ngram_rows:
            x = x + by_ngrams.to_features.to(x.dtype)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Features (..., C) -> float32 logits (..., V) of the real vocabulary: no padded ids."""
        if self.lm_head is None:
            logits = F.linear(x, self.head_weight)
        else:
            logits = self.lm_head(x)
        logits = logits[..., : self.config.vocab_size].float()
        return softcapped(logits, self.config.logit_softcap)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, reduction: str = "mean"
    ) -> Tensor:
        """idx (B, T) -> logits (B, T, V); with targets (B, T), their loss in nats.

        reduction: "mean" or "sum" over the targets that are not -1; or "none": (B, T), 0 where the
        target is -1.
        """
        x = self.features(idx)
        if targets is None:
            return self.logits(x)
        x = x.flatten(0, 1)  # (B, T, C) -> (N, C)
        t = targets.flatten()  # (B, T) -> (N,)
        if reduction == "none":
            return self.loss(x, t, "none").view_as(targets)
        total = self.loss(x, t, "sum")
        if reduction == "sum":
            return total
        return total / (t != IGNORE).sum()

    def plain_loss(self, x: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """cross_entropy_loss of features (N, C) and targets (N,)."""
        return cross_entropy_loss(self.logits(x), targets, reduction)

    def loss(self, x: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """plain_loss, with few logits at a time."""
        training = torch.is_grad_enabled()
        rows = rows_at_once(x, self.config.padded_vocab_size, autocast_dtype(x), training)
        in_pieces = len(x) > rows
        by_hand = training and reduction == "sum" and self.fast_loss
        if by_hand and (in_pieces or x.is_cuda):
            return chunked_cross_entropy(x, self.head_weight, targets, self.config)
        if not in_pieces:
            return self.plain_loss(x, targets, reduction)
        losses = []
        for a, b in zip(x.split(rows), targets.split(rows), strict=True):
            if training:  # the logits are forgotten, and computed again for the gradient
                losses.append(checkpoint(self.plain_loss, a, b, reduction, use_reentrant=False))
            else:
                losses.append(self.plain_loss(a, b, reduction))
        if reduction == "none":
            return torch.cat(losses)
        return sum(losses)

    def n_params(self) -> int:
        """How many numbers are learned: embedding tables included, tied ones once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, context: int | None = None, training: bool = True) -> int:
        """Operations in matrix products for one token at `context` tokens (default block_size).

        By PaLM's convention (arXiv 2204.02311, appendix B) the masked half of attention counts; a
        backward pass costs twice a forward one.
        """
        c = self.config
        matrices = [p for p in self.transformer.h.parameters() if p.dim() == 2]
        weights = sum(p.numel() for p in matrices) + self.head_weight.numel()
        # Scores and weighted sums: two products of hd for each head and token of the context
        in_attention = 4 * c.n_layer * (context or c.block_size) * c.n_head * c.head_dim
        forward = 2 * weights + in_attention
        return 3 * forward if training else forward

    def fused_rows(self) -> dict[str, tuple[int, ...]]:
        """{name: rows of each} for parameters that hold several matrices, one above the other."""
        c = self.config
        q = c.n_head * c.head_dim
        kv = c.n_kv_head * c.head_dim
        rows = {}
        for i in range(c.n_layer):
            rows[f"transformer.h.{i}.attn.c_attn.weight"] = (q, kv, kv)
            if c.activation == "swiglu":
                rows[f"transformer.h.{i}.mlp.c_fc.weight"] = (c.n_hidden, c.n_hidden)
        return rows


# -----------------------------------------------------------------------------
# Fast paths: each computes what its plain form above does, and is taken where that is slower. Tests
# hold both equal; figures are from bench/LOG.md, "Kernels on a CPU", forward and backward.


class RMSNormOnCPU(torch.autograd.Function):
    """Plain form: rms_norm, which is many small kernels on a CPU. y = x / sqrt(mean(x^2) + eps).

    24 x 128 x 128 numbers take 0.3 ms in place of 1.4.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        mean_square = norm.square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        mean_product = torch.linalg.vecdot(grad, y).unsqueeze(-1).div_(y.shape[-1])
        dx = torch.addcmul(grad, y, mean_product, value=-1)  # grad - y mean(grad y)
        return dx.mul_(scale), None


def before_activation(layer: nn.Module, x: Tensor) -> Tensor:
    """Plain form: layer(x), (B, T, C) -> (B, T, width).

    Compiled for a GPU, a bias is added by the kernel of the activation, and the gradient of that
    sums up the bias's, position by position; as part of the product it would be read once more for
    that: 4.5 of 74 GB that the kernels of a step of gpt2_124m move.
    """
    is_plain = type(layer) is nn.Linear and layer.bias is not None
    if not (is_plain and x.is_cuda and torch.compiler.is_compiling()):
        return layer(x)
    return F.linear(x, layer.weight) + layer.bias.expand(len(x), 1, -1)


# Up to this many positions a CPU attends faster plainly: 24 x 128 positions with 4 heads of 32 in
# bfloat16 take 4.8 ms in place of 17.3; but 4 x 512 with 12 heads of 64 in float32, 152, not 82.
SHORT_CONTEXT = {torch.float32: 64, torch.bfloat16: 512}


def fused_attention_wins(q: Tensor, v: Tensor) -> bool:
    T = q.shape[2]
    S = v.shape[2]
    plain_wins = q.is_cpu and T == S and 1 < T <= SHORT_CONTEXT.get(v.dtype, 0)
    return not plain_wins


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None, dropout: float
) -> Tensor:
    """Plain form: attention. One kernel, which never holds the products, (B, nh, T, S).

    The mask may be booleans, as_bias of them, or document_blocks, which the compiler makes a kernel
    for. Without one T must be S or 1: torch's causal mask is of the first T positions, not the
    last.
    """
    causal = mask is None and q.shape[2] > 1  # a token alone may look at all before it
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):  # which autocast does not know
        q, k = q.to(v.dtype), k.to(v.dtype)
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped)


def cross_entropy_and_gradient(
    scores: Tensor, targets: Tensor, vocab_size: int, cap: float
) -> tuple[Tensor, Tensor]:
    """The loss summed over targets (N, 1), and its gradient in scores (N, V padded), by hand.

    Plain form: cross_entropy_loss(softcapped(scores[:, :vocab_size])). Rows of the gradient whose
    target is IGNORE are not 0 yet.
    """
    logits = softcapped(scores, cap)
    slope = None
    if cap:
        slope = 1 - (logits / cap).square()  # derivative of cap tanh(scores / cap)
    logits[:, vocab_size:] = float("-inf")
    logprobs = logits.log_softmax(dim=-1)
    index = targets.clamp(min=0)
    own = logprobs.gather(1, index)
    loss = -(own * (targets != IGNORE)).sum()
    # The gradient of the logits is softmax minus one-hot.
    one = torch.ones_like(index, dtype=logprobs.dtype)
    grad = logprobs.exp_().scatter_add_(1, index, -one)
    if slope is not None:
        grad = grad.mul_(slope)
    return loss, grad


def cross_entropy_by_comparison(
    scores: Tensor, targets: Tensor, vocab_size: int, cap: float
) -> tuple[Tensor, Tensor]:
    """cross_entropy_and_gradient for a compiler, which makes one kernel of it: scores are read, and
    the gradient is written, in their type. Rows whose target is IGNORE are 0.

    With gather and scatter of the targets' columns the softmax would go to memory in float32: of
    1,334 rows over 50,304 ids 1.5 GB are moved, not 0.3.
    """
    logits = softcapped(scores.float(), cap)
    ids = torch.arange(scores.shape[1], device=scores.device)
    slope = 1.0
    if cap:
        slope = 1 - (logits / cap).square()
    logprobs = torch.where(ids < vocab_size, logits, float("-inf")).log_softmax(dim=-1)
    is_target = ids == targets  # (N, V)
    loss = -torch.where(is_target, logprobs, 0.0).sum()
    grad = torch.where(targets != IGNORE, logprobs.exp() - is_target.float(), 0.0)
    return loss, (grad * slope).to(scores.dtype)


@dataclass
class LossAndGradients:
    loss: Tensor  # (), summed over targets
    dx: Tensor  # (N, C), its gradient in the features
    dw: Tensor | None  # (V padded, C), in the head, if that learns


def loss_in_place(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, cap: float, dtype: torch.dtype,
    head_learns: bool,
) -> LossAndGradients:  # fmt: skip
    """For ChunkedCrossEntropy. No more than 4 LOGITS_AT_ONCE logits exist at any time."""
    rows = rows_at_once(x, weight.shape[0], dtype, with_gradient=True)
    if x.is_cpu:
        rows = max(1, 4 * LOGITS_AT_ONCE // weight.shape[0])
    w = weight.to(dtype)
    sums = torch.promote_types(weight.dtype, torch.float32)  # FSDP's weights may be bfloat16
    dx = torch.empty_like(x)
    dw = None
    total = torch.zeros((), device=x.device)
    for begin in range(0, len(x), rows):
        piece = slice(begin, begin + rows)
        xs = x[piece].to(dtype)  # (rows, C)
        ts = targets[piece].unsqueeze(1)  # (rows, 1)
        scored = ts != IGNORE
        # (rows, C) x (C, V) -> (rows, V), without a name that would keep its memory
        loss, grad = cross_entropy_and_gradient((xs @ w.T).float(), ts, vocab_size, cap)
        total = total + loss  # torch 2.11 miscompiles +=
        grad = grad.to(dtype)
        dx[piece] = (grad @ w) * scored
        if head_learns:
            part = grad.T @ (xs * scored)  # (V, rows) x (rows, C) -> (V, C)
            dw = part.to(sums) if dw is None else dw.add_(part)
    return LossAndGradients(total, dx, dw)


def loss_for_a_compiler(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, cap: float, dtype: torch.dtype,
    head_learns: bool,
) -> LossAndGradients:  # fmt: skip
    """loss_in_place on a GPU, compiled: nothing is changed in place, and what pieces add to the
    head's gradient is added up once."""
    rows = rows_at_once(x, weight.shape[0], dtype, with_gradient=True)
    w = weight.to(dtype)
    total = torch.zeros((), device=x.device)
    dxs = []
    dws = []
    for piece, ids in zip(x.to(dtype).split(rows), targets.split(rows), strict=True):
        scores = piece @ w.T  # (rows, C) x (C, V) -> (rows, V)
        loss, grad = cross_entropy_by_comparison(scores, ids.unsqueeze(1), vocab_size, cap)
        total = total + loss
        dxs.append(grad @ w)
        if head_learns:
            dws.append(grad.T @ piece)  # (V, rows) x (rows, C) -> (V, C)
    sums = torch.promote_types(weight.dtype, torch.float32)
    dw = sum(part.to(sums) for part in dws) if head_learns else None
    return LossAndGradients(total, torch.cat(dxs).to(x.dtype), dw)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Plain form: GPT.plain_loss with reduction="sum". One pass over the logits, in pieces.

    x (N, C), weight (V padded, C), targets (N,); products are in `dtype`, sums in float32. The
    gradient is known as soon as the logits are, so it is computed at once: no product is done
    twice, and few logits exist at any time. 1,024 rows over 50,304 ids take 976 ms in bfloat16 on a
    CPU, 650 of them in the three products.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, cap: float,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        on_gpu = x.is_cuda and torch.compiler.is_compiling()
        way = loss_for_a_compiler if on_gpu else loss_in_place
        done = way(x, weight, targets, vocab_size, cap, dtype, ctx.needs_input_grad[1])
        ctx.save_for_backward(done.dx, done.dw)
        return done.loss

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = ctx.saved_tensors
        if dw is not None:
            dw = dw * grad
        return dx * grad, dw, None, None, None, None


def chunked_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, c: GPTConfig) -> Tensor:
    """ChunkedCrossEntropy, with products in autocast's type where that is on."""
    dtype = autocast_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return ChunkedCrossEntropy.apply(x, weight, targets, c.vocab_size, c.logit_softcap, dtype)


def loss_is_as_derived(model: GPT) -> bool:
    """Whether GPT.plain_loss is what ChunkedCrossEntropy has the gradient of, by a small example.

    So whoever changes cross_entropy_loss or GPT.logits, here or in a subclass, need not know of it.
    Takes a millisecond when a model is made, and warns if the answer is no.
    """
    numbers = torch.Generator("cpu").manual_seed(0)
    options = dict(dtype=torch.float32, device="cpu", requires_grad=True)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        x = torch.randn(6, 4, generator=numbers, **options)
        weight = torch.randn(8, 4, generator=numbers, **options)  # 5 ids, padded to 8
        targets = torch.tensor([0, 4, IGNORE, 2, 2, 1], device="cpu")
        # A model of the same class that has nothing but a head
        probe = type(model).__new__(type(model))
        nn.Module.__init__(probe)
        probe.config = replace(model.config, vocab_size=5)
        probe.transformer = SimpleNamespace(wte=SimpleNamespace(weight=weight))
        probe.lm_head = None if model.lm_head is None else lambda x: F.linear(x, weight)
        fast = chunked_cross_entropy(x, weight, targets, probe.config)
        fast_grads = torch.autograd.grad(fast, (x, weight))
        try:
            plain = probe.plain_loss(x, targets, "sum")
            plain_grads = torch.autograd.grad(plain, (x, weight))
            pairs = zip((plain, *plain_grads), (fast, *fast_grads), strict=True)
            equal = all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)
        except Exception:  # a loss that needs more than the head is another one, too
            equal = False
    if not equal:
        message = "the loss was changed: large vocabularies get their gradients a slower way"
        warnings.warn(message, stacklevel=3)
    return equal
