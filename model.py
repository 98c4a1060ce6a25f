"""The network: a decoder-only transformer (Vaswani et al. 2017, arXiv 1706.03762; GPT-2, Radford et al. 2019).

Reading order: GPTConfig, norm, positions, attention, MLP, block, loss, GPT. Sizes: B sequences, T positions, C =
n_embd, nh query heads, nkv key/value heads, hd = head_dim, V vocabulary. GPT-2's names, so that its weights fit.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = -1  # a target with this id is not scored
LOGITS_AT_ONCE = 1 << 24  # more logits than this are computed in pieces: 64 MB of float32
SHORT_CONTEXT = {torch.float32: 64, torch.bfloat16: 512}  # up to here a CPU attends faster by plain products
# GPT-2 as published. The other family, "modern", is the defaults below.
GPT2 = dict(position="learned", norm="layernorm", norm_weight=True, activation="gelu_tanh", qk_norm=False,
            bias=True, tie_weights=True, zero_init=False)  # fmt: skip


@dataclass
class GPTConfig:
    """Shape and parts of a GPT. Raises ValueError, naming the setting, for values that do not fit together.

    A field below `# --- model` is a setting of training, and its comment the setting's help: lathe/settings.py reads
    them from here. From papers are n_kv_head (arXiv 2305.13245), rope (2104.09864), sinusoidal (1706.03762, 3.5),
    rmsnorm (1910.07467), swiglu (2002.05202), relu2 (2109.08668), qk_norm (2302.05442; before rope, as in Qwen3),
    logit_softcap (Gemma 2, 2408.00118) and, from modded-nanogpt's records, bigram_rows.
    """

    # --- what the data decides
    vocab_size: int = 50257
    document_token: int = -1  # id that begins a document, whose tokens then see none before it; -1 = off

    # --- model
    block_size: int = 1024  # context length, in tokens
    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads per block
    n_kv_head: int = 0  # key/value heads, fewer than n_head for grouped queries; 0 = n_head
    head_dim: int = 0  # width of one head; 0 = n_embd / n_head
    n_embd: int = 768  # width of the residual stream
    n_hidden: int = 0  # width of the MLP; 0 = 4 n_embd, for swiglu 8/3 n_embd up to a multiple of 32
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"  # how a token knows its place
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"  # normalisation before attention, MLP and head
    norm_weight: bool = False  # learned gains in the norms
    norm_eps: float = 1e-5  # added to the variance in the norms
    # of the MLP; gelu_tanh is GPT-2's
    activation: Literal["swiglu", "relu2", "gelu", "gelu_tanh"] = "swiglu"
    qk_norm: bool = True  # normalise queries and keys per head
    bias: bool = False  # biases in linear layers, and in layernorms with gains
    tie_weights: bool = False  # one matrix for token embedding and output head
    zero_init: bool = True  # output projections start at zero; false = GPT-2's initialisation
    logit_softcap: float = 0.0  # c squashes logits to c tanh(logits / c); 0 = off
    # a table by pairs of tokens beside the embedding; no Hugging Face model has one; 0 = off
    bigram_rows: int = 0
    dropout: float = 0.0  # probability of dropping an activation in training

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        gated = self.activation == "swiglu"
        self.n_hidden = self.n_hidden or (math.ceil(self.n_embd / 12) * 32 if gated else 4 * self.n_embd)
        uneven = self.head_dim == 0 and self.n_head > 0 and self.n_embd % self.n_head
        self.head_dim = self.head_dim or max(1, self.n_embd // max(1, self.n_head))
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head", "head_dim", "n_hidden")
        for wrong, name, rule in (
            *((getattr(self, name) < 1, name, "be 1 or more") for name in sizes),
            *((getattr(self, name) not in of, name, f"be one of {', '.join(of)}") for name, of in CHOICES.items()),
            (uneven, "n_embd", f"be a multiple of n_head ({self.n_head}), or head_dim be given"),
            (self.n_head % (self.n_kv_head or 1), "n_kv_head", f"divide n_head ({self.n_head})"),
            (self.position == "rope" and self.head_dim % 2, "head_dim", "be even with position=rope"),
            (self.position == "sinusoidal" and self.n_embd % 2, "n_embd", "be even with position=sinusoidal"),
            (not 0 <= self.dropout < 1, "dropout", "be at least 0 and below 1"),
            (not 0 <= self.logit_softcap < math.inf, "logit_softcap", "be 0 (off) or more"),
            (self.bigram_rows < 0, "bigram_rows", "be 0 (off) or more"),
            *((not getattr(self, name) > 0, name, "be above 0") for name in ("norm_eps", "rope_theta")),
        ):
            if wrong:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must {rule}")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: a multiple of 64, which tensor cores like; small tables would get slower."""
        return -(-self.vocab_size // 64) * 64 if self.vocab_size >= 1024 else self.vocab_size


CHOICES = {f.name: get_args(f.type) for f in fields(GPTConfig) if get_args(f.type)}


class RMSNormFunction(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + eps), gradient by hand: on a CPU F.rms_norm is many small kernels, and far slower."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, y).unsqueeze(-1).div_(y.shape[-1])
        return torch.addcmul(grad, y, along, value=-1).mul_(scale), None


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x (..., D) over its root mean square; weight (D,) or None."""
    if x.is_cpu and not torch.compiler.is_compiling():
        y = RMSNormFunction.apply(x, eps)
        return y if weight is None else y * weight
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def make_norm(c: GPTConfig) -> nn.Module:
    if c.norm == "layernorm":
        return nn.LayerNorm(c.n_embd, c.norm_eps, elementwise_affine=c.norm_weight, bias=c.bias)
    return RMSNorm(c.n_embd, c.norm_eps, elementwise_affine=c.norm_weight)


def rope_table(length: int, head_dim: int, theta: float) -> Tensor:
    """(2, length, 1, hd), cosines and signed sines of rotary embeddings: pair i turns by theta^(-2i/hd) a step."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), frequency).unsqueeze(1)
    return torch.stack((angle.cos().repeat(1, 1, 2), torch.cat((-angle.sin(), angle.sin()), dim=-1))).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn feature i together with feature i + hd/2 (the half-split form of Llama's published weights)."""
    return torch.addcmul(x * cos.to(x.dtype), x.roll(x.shape[-1] // 2, dims=-1), sin.to(x.dtype))


def sinusoidal_table(length: int, n_embd: int) -> Tensor:
    """(length, C): sin(pos / 10000^(2i/C)) in feature 2i, the cosine in 2i + 1 (arXiv 1706.03762, section 3.5)."""
    cos, sin = rope_table(length, n_embd, 10000.0)[:, :, 0, n_embd // 2 :]
    return torch.stack((sin, cos), dim=-1).flatten(1)


class KVCache:
    """Keys and values of the tokens so far, allocated once: k and v are (n_layer, B, nkv, length, hd), of which the
    first `pos` positions are filled; last (B, 1) are the newest tokens, for pairs. ValueError beyond block_size."""

    def __init__(self, config: GPTConfig, batch_size: int, length: int, device=None, dtype: torch.dtype | None = None):
        if length > config.block_size:
            raise ValueError(f"a cache of {length} positions is longer than block_size ({config.block_size})")
        shape = (config.n_layer, batch_size, config.n_kv_head, length, config.head_dim)
        self.k, self.v = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.pos, self.mask, self.last = 0, None, torch.zeros(batch_size, 1, dtype=torch.long, device=device)

    def advance(self, T: int) -> slice:
        """Make room for T tokens; returns their positions. Only several behind earlier ones need a mask written out."""
        begin, end, limit = self.pos, self.pos + T, self.k.shape[3]
        if end > limit:
            raise ValueError(f"{end} tokens are more than the context of {limit} (block_size)")
        self.pos, self.mask = end, causal_mask(T, end, self.k.device) if begin and T > 1 else None
        return slice(begin, end)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's k, v (B, nkv, T, hd) into the room made; returns views of all up to there."""
        begin, end = self.pos - k.shape[2], self.pos
        self.k[layer, :, :, begin:end], self.v[layer, :, :, begin:end] = k, v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


def causal_mask(T: int, total: int, device) -> Tensor:
    """(T, total) booleans: the last T of `total` positions may look at themselves and at everything before them."""
    return torch.ones(T, total, dtype=torch.bool, device=device).tril(total - T)


def documents(idx: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """ids (B, T), `token` where documents begin -> places in them (B, T), who may look at whom (B, 1, T, T)."""
    place = torch.arange(idx.shape[1], device=idx.device)
    begin = torch.where(idx == token, place, 0).cummax(dim=1).values
    same = begin.unsqueeze(2) == begin.unsqueeze(1)
    return place - begin, (same & causal_mask(len(place), len(place), idx.device)).unsqueeze(1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, steps: dict | None) -> Tensor:
    """softmax(q k^T / sqrt(hd)) v where mask, (T, S) or (B, 1, T, S), allows it; None is the causal one.
    q (B, nh, T, hd), k and v (B, nkv, S, hd) -> (B, nh, T, hd). The fused kernel never holds (B, nh, T, S) products;
    plain ones are faster for short contexts on a CPU (bench/LOG.md). A dict for `steps` gets them."""
    (nh, T, hd), (nkv, S) = q.shape[1:], k.shape[1:3]
    short = q.is_cpu and T == S and 1 < T <= SHORT_CONTEXT.get(v.dtype, 0)
    if not short and steps is None:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, T > 1 and mask is None, enable_gqa=nkv != nh)
    keys, values = (x.unsqueeze(2).expand(-1, -1, nh // nkv, -1, -1).flatten(1, 2) for x in (k, v))  # a group's
    scaled = (q * (1 / math.sqrt(hd))) @ keys.mT  # (B, nh, T, hd) x (B, nh, hd, S) -> (B, nh, T, S)
    barred = ~(causal_mask(T, S, q.device) if mask is None else mask)
    masked = scaled + torch.zeros_like(barred, dtype=scaled.dtype).masked_fill_(barred, float("-inf"))
    weights = masked.softmax(dim=-1)
    if steps is not None:
        steps.update(q=q, k=k, v=v, scores=scaled * math.sqrt(hd), scaled=scaled, masked=masked, weights=weights)
    return F.dropout(weights, dropout, dropout > 0).to(v.dtype) @ values


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.c_attn = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=config.bias)
        self.c_proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        self.qk_norm, self.norm_eps, self.dropout = config.qk_norm, config.norm_eps, config.dropout
        gains = config.qk_norm and config.norm_weight
        self.q_norm, self.k_norm = (nn.Parameter(torch.ones(self.head_dim)) if gains else None for _ in range(2))
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope, mask, cache: KVCache | None, layer: int, trace: dict | None) -> Tensor:
        nh, nkv = self.n_head, self.n_kv_head
        qk, v = self.c_attn(x).unflatten(-1, (nh + 2 * nkv, -1)).split((nh + nkv, nkv), dim=2)  # (B, T, heads, hd)
        if self.qk_norm:  # of queries and keys together: half the kernels
            qk = rms_norm(qk, None, self.norm_eps)
            if self.q_norm is not None:
                qk = qk * torch.cat((self.q_norm.expand(nh, -1), self.k_norm.expand(nkv, -1)))
        q, k = (qk if rope is None else rotate(qk, *rope)).split((nh, nkv), dim=2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, T, heads, hd) -> (B, heads, T, hd)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        y = attention(q, k, v, mask, self.dropout * self.training, trace)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))  # heads side by side


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation = config.activation
        self.c_fc = nn.Linear(config.n_embd, config.n_hidden * (1 + (self.activation == "swiglu")), bias=config.bias)
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=-1)  # computed as one: fewer kernels
            x = F.silu(gate) * value
        elif self.activation == "relu2":
            x = F.relu(x).square()
        else:
            x = F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return self.dropout(self.c_proj(x))


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1, self.attn = make_norm(config), CausalSelfAttention(config)
        self.ln_2, self.mlp = make_norm(config), MLP(config)

    def forward(self, x: Tensor, rope, mask, cache: KVCache | None, layer: int, trace: dict | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), rope, mask, cache, layer, trace)
        return x + self.mlp(self.ln_2(x))


def softcapped(logits: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(logits / cap) if cap else logits


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of x W^T against targets, some rows of logits at a time; exact, summed in float32.
    x (N, C), weight (V padded, C), targets (N,). The gradient is known as soon as the logits are, so it is computed in
    the same pass: nothing is done twice, and no more than 4 LOGITS_AT_ONCE logits exist at any time."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, cap: float, dtype: torch.dtype):
        rows, w = max(1, 4 * LOGITS_AT_ONCE // weight.shape[0]), weight.to(dtype)
        dx, dw, total = torch.empty_like(x), None, torch.zeros((), device=x.device)
        for begin in range(0, len(x), rows):
            xs, ts = x[begin : begin + rows].to(dtype), targets[begin : begin + rows].unsqueeze(1)
            logits = softcapped((xs @ w.T).float(), cap)
            slope = 1 - (logits / cap).square() if cap else None  # derivative of the cap
            logits[:, vocab_size:] = float("-inf")
            logits = logits.log_softmax(dim=-1)
            scored, index = ts != IGNORE, ts.clamp(min=0)
            total = total - (logits.gather(1, index) * scored).sum()  # torch 2.11 miscompiles -=
            # The gradient of the logits is softmax minus one-hot.
            grad = logits.exp_().scatter_add_(1, index, -torch.ones_like(index, dtype=logits.dtype))
            grad = (grad if slope is None else grad.mul_(slope)).to(dtype)
            dx[begin : begin + rows] = (grad @ w) * scored
            if ctx.needs_input_grad[1]:
                part = grad.T @ (xs * scored)
                dw = part.to(weight.dtype) if dw is None else dw.add_(part)
        ctx.save_for_backward(dx, dw)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        dx, dw = ctx.saved_tensors
        return dx * grad, None if dw is None else dw * grad, None, None, None, None


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = c = config
        modules = {"wte": nn.Embedding(c.padded_vocab_size, c.n_embd)}
        if c.position == "learned":
            modules["wpe"] = nn.Embedding(c.block_size, c.n_embd)
        if c.bigram_rows:
            modules["bigram"] = nn.Embedding(min(c.bigram_rows, c.vocab_size**2), c.n_embd)
        blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        modules |= {"drop": nn.Dropout(c.dropout), "h": blocks, "ln_f": make_norm(c)}
        self.transformer = nn.ModuleDict(modules)
        self.lm_head = None if c.tie_weights else nn.Linear(c.n_embd, c.padded_vocab_size, bias=False)
        if c.position == "rope":
            self.register_buffer("table", rope_table(c.block_size, c.head_dim, c.rope_theta), persistent=False)
        elif c.position == "sinusoidal":
            self.register_buffer("table", sinusoidal_table(c.block_size, c.n_embd), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """GPT-2's scheme; or, with zero_init, matrices at std 0.5/sqrt(fan in), embeddings at 0.2 (bench/LOG.md) and
        output projections at zero, so that every block begins as the identity (Fixup, arXiv 1901.09321)."""
        c, std = self.config, 0.2 if self.config.zero_init and not self.config.tie_weights else 0.02
        for name, p in self.named_parameters():
            output = name.endswith("c_proj.weight")  # 2 n_layer of them add up in the residual stream
            if p.dim() < 2:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name.endswith(("wte.weight", "wpe.weight")) or not c.zero_init:
                nn.init.normal_(p, std=std / math.sqrt(2 * c.n_layer) if output else std)
            elif output or name.endswith(("bigram.weight", "lm_head.weight")):
                nn.init.zeros_(p)
            else:
                nn.init.normal_(p, std=0.5 / math.sqrt(p.shape[1]))

    @property
    def head_weight(self) -> Tensor:  # (V padded, C), the matrix that turns features into logits
        return self.transformer.wte.weight if self.lm_head is None else self.lm_head.weight

    def pairs(self, idx: Tensor, cache: KVCache | None) -> Tensor:
        """ids (B, T) -> the row of the bigram table for each with the one before it; in a small table pairs share."""
        before = F.pad(idx, (1, -1))
        if cache is not None:
            before[:, :1], cache.last[:] = cache.last, idx[:, -1:]
        n, V = self.transformer.bigram.num_embeddings, self.config.vocab_size  # behind `else`: a prime
        return (before.masked_fill(idx == self.config.document_token, 0) * (V if n == V * V else 0x9E3779B1) + idx) % n

    def features(self, idx: Tensor, cache: KVCache | None = None, trace: list[dict] | None = None) -> Tensor:
        """(B, T) token ids -> (B, T, C), normed, ready for the head.
        With a cache, idx holds only the new tokens, and the cache grows by them; all in it is one document. With a
        trace (an empty list), attention runs step by step and one dict a layer is appended: q, k, v, scores, scaled,
        masked, weights, and `residual`, the stream behind the block. ValueError for more tokens than the context."""
        c = self.config
        if cache is None and idx.shape[1] > c.block_size:
            raise ValueError(f"{idx.shape[1]} tokens are more than the context of {c.block_size} (block_size)")
        where = slice(0, idx.shape[1]) if cache is None else cache.advance(idx.shape[1])
        mask = cache and cache.mask
        if cache is None and c.document_token >= 0:
            where, mask = documents(idx, c.document_token)
        x = self.transformer.wte(idx)
        if c.bigram_rows:
            x = x + self.transformer.bigram(self.pairs(idx, cache))
        if c.position == "learned":
            x = x + self.transformer.wpe.weight[where]
        elif c.position == "sinusoidal":
            x = x * math.sqrt(c.n_embd) + self.table[where].type_as(x)  # the factor is the paper's (section 3.4)
        x = self.transformer.drop(x)
        rope = self.table[:, where] if c.position == "rope" else None
        for layer, block in enumerate(self.transformer.h):
            steps = None if trace is None else {}
            x = block(x, rope, mask, cache, layer, steps)
            if trace is not None:
                trace.append({**steps, "residual": x})
        return self.transformer.ln_f(x)

    def logits(self, x: Tensor) -> Tensor:
        """Features (..., C) -> float32 logits (..., V) of the real vocabulary: padded ids have none."""
        logits = F.linear(x, self.head_weight) if self.lm_head is None else self.lm_head(x)
        return softcapped(logits[..., : self.config.vocab_size].float(), self.config.logit_softcap)

    def forward(self, idx: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """idx (B, T) -> logits (B, T, V); with targets (B, T), their cross-entropy in nats. reduction: "mean" or "sum"
        over the targets that are not -1; or "none": (B, T), 0 where the target is -1."""
        c, x = self.config, self.features(idx)
        if targets is None:
            return self.logits(x)
        x, t, rows = x.flatten(0, 1), targets.flatten(), max(1, LOGITS_AT_ONCE // c.padded_vocab_size)
        if reduction != "none" and len(t) > rows and torch.is_grad_enabled():
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            with torch.autocast(kind, enabled=False):
                total = ChunkedCrossEntropy.apply(x, self.head_weight, t, c.vocab_size, c.logit_softcap, dtype)
        else:
            how, parts = "none" if reduction == "none" else "sum", zip(x.split(rows), t.split(rows), strict=True)
            losses = [F.cross_entropy(self.logits(a), b, ignore_index=IGNORE, reduction=how) for a, b in parts]
            if how == "none":
                return torch.cat(losses).view_as(targets)
            total = sum(losses[1:], losses[0])
        return total if reduction == "sum" else total / (t != IGNORE).sum()

    def n_params(self) -> int:  # embedding tables included, tied ones once
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, context: int | None = None, training: bool = True) -> int:
        """Operations in matrix products for one token at `context` tokens (default block_size), by PaLM's convention
        (arXiv 2204.02311, appendix B): the masked half of attention counts; a backward pass costs twice a forward."""
        c = self.config
        weights = sum(p.numel() for p in self.transformer.h.parameters() if p.dim() == 2) + self.head_weight.numel()
        forward = 2 * weights + 4 * c.n_layer * (context or c.block_size) * c.n_head * c.head_dim
        return 3 * forward if training else forward

    def fused_rows(self) -> dict[str, tuple[int, ...]]:
        """{name: rows of each} for parameters that hold several matrices, one above the other."""
        c, kv = self.config, self.config.n_kv_head * self.config.head_dim
        rows = {f"transformer.h.{i}.attn.c_attn.weight": (c.n_head * c.head_dim, kv, kv) for i in range(c.n_layer)}
        gated = range(c.n_layer) if c.activation == "swiglu" else ()
        return rows | {f"transformer.h.{i}.mlp.c_fc.weight": (c.n_hidden, c.n_hidden) for i in gated}
