"""Two more kinds of cache; KVCache in model.py says what is asked of each, when and by whom."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model import GPT, GPTConfig, KVCache, causal_mask


def columns_alike(head_dim: int) -> int:
    """Over any multiple of so many positions a CPU adds up attention's products in the same order:
    not over a part of them, which its vectors are longer than, and MKL leaves small ones to torch.
    """
    return 16 if head_dim >= 32 else 64


def cache_dtype(model: GPT) -> torch.dtype:
    """The type of the keys and values that the model computes: autocast's, or its embeddings'."""
    weight = model.transformer.wte.weight
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def last_ids(ids: Sequence[int], n: int) -> list[int]:
    """What a row of a cache's `last`, (n,), is once these ids are read; 0 where there are fewer."""
    last = list(ids[-n:])
    return [0] * (n - len(last)) + last


class RaggedCache(KVCache):
    """Rows of different lengths, for decoding: a row's new tokens come after its own earlier ones.

    `filled` (B,) says how many positions each row has. Attention looks at the first `view`
    positions of every row (S = view), masked. Shapes and addresses stay the same from step to step,
    so one compiled graph serves as many steps as fit into `view`. It has room
    for `capacity` of them, `length` or a few more.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, length: int,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):  # fmt: skip
        columns = columns_alike(config.head_dim)
        self.capacity = math.ceil(length / columns) * columns
        shape = replace(config, block_size=max(config.block_size, self.capacity))
        super().__init__(shape, batch_size, self.capacity, device, dtype)
        self.length = length
        self.filled = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.index = torch.arange(self.capacity, device=device)
        begins = torch.arange(0, batch_size * config.n_kv_head * self.capacity, self.capacity)
        self.begins = begins.view(batch_size, config.n_kv_head, 1).to(self.index.device)
        self.view = self.capacity

    def advance(self, T: int) -> tuple[Tensor, Tensor]:
        """positions (B, T) and mask (B, 1, T, view)."""
        positions = self.filled.unsqueeze(1) + self.index[:T]  # (B, T)
        # Rows that nobody reads any more go on in their last position.
        positions = positions.clamp(max=self.length - 1)
        self.filled += T
        # Where the new ones go, with the positions of all rows and heads counted through
        self.columns = (self.begins + positions.unsqueeze(1)).flatten()  # (B nkv T,)
        # Of each layer: where it writes, and what it reads
        self.layers = list(zip(self.k.flatten(1, 3), self.v.flatten(1, 3), strict=True))
        view = slice(self.view)
        self.views = list(zip(self.k[:, :, :, view], self.v[:, :, :, view], strict=True))
        mask = self.index[: self.view] <= positions.unsqueeze(2)  # (B, T, view)
        return positions, mask.unsqueeze(1)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.layers[layer]  # (B nkv length, hd)
        keys.index_copy_(0, self.columns, k.reshape(-1, k.shape[-1]).to(keys.dtype))
        values.index_copy_(0, self.columns, v.reshape(-1, v.shape[-1]).to(values.dtype))
        return self.views[layer]


class ContinuationCache:
    """Contexts that were read once, for scoring continuations (R, T) of them in one forward pass.

    contexts: their keys and values, lengths[i] tokens of context i. Row r goes on after context
    source[r]. It sees all P columns of `contexts`, masked, then its own tokens (S = P + T), which
    are not kept.
    """

    def __init__(self, contexts: KVCache, lengths: list[int], source: list[int], block_size: int):
        device = contexts.k.device
        self.contexts = contexts
        self.block_size = block_size
        self.source = torch.tensor(source, device=device)
        self.lengths = torch.tensor(lengths, device=device)[self.source]  # (R,)
        self.last = contexts.last[self.source]

    def advance(self, T: int) -> tuple[Tensor, Tensor]:
        """positions (R, T) and mask (R, 1, T, P + T)."""
        R = len(self.source)
        P = self.contexts.length
        device = self.source.device
        earlier = torch.arange(P, device=device) < self.lengths[:, None, None]  # (R, 1, P)
        own = causal_mask(T, T, device)
        mask = torch.cat((earlier.expand(R, T, P), own.expand(R, T, T)), dim=2)
        positions = self.lengths[:, None] + torch.arange(T, device=device)
        positions = positions.clamp(max=self.block_size - 1)  # only padding is ever beyond
        return positions, mask.unsqueeze(1)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        earlier_k = self.contexts.k[layer][self.source].to(k.dtype)  # (R, nkv, P, hd)
        earlier_v = self.contexts.v[layer][self.source].to(v.dtype)
        return torch.cat((earlier_k, k), dim=2), torch.cat((earlier_v, v), dim=2)
