"""Caches of keys and values beside the plain one of model.py."""

import torch
from torch import Tensor

from model import GPT, KVCache


class BehindContexts:
    """What a forward pass over continuations sees of their contexts: row r goes on behind context source[r], whose
    keys and values `filled` holds, `lengths` tokens of each. Contexts are read once, whatever follows them."""

    def __init__(self, filled: KVCache, lengths: list[int], source: list[int], block_size: int):
        self.filled, self.block_size, device = filled, block_size, filled.k.device
        self.last = filled.last[source]
        self.source = torch.tensor(source, device=device)
        self.begins = torch.tensor(lengths, device=device)[self.source]  # (R,)

    def advance(self, T: int) -> torch.Tensor:
        steps, P = torch.arange(T, device=self.begins.device), self.filled.k.shape[3]
        before = torch.arange(P, device=self.begins.device) < self.begins[:, None, None]  # (R, 1, P)
        among = steps <= steps[:, None]  # (T, T)
        rows = len(self.begins)
        self.mask = torch.cat((before.expand(rows, T, P), among.expand(rows, T, T)), dim=2).unsqueeze(1)
        return (self.begins[:, None] + steps).clamp(max=self.block_size - 1)  # only padding is ever beyond

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        held = (x[layer][self.source].to(k.dtype) for x in (self.filled.k, self.filled.v))
        return tuple(torch.cat(pair, dim=2) for pair in zip(held, (k, v), strict=True))


def cache_dtype(model: GPT) -> torch.dtype:
    """Of the keys and values that the model computes: autocast's where that is on, else that of its embeddings."""
    weight = model.transformer.wte.weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class RaggedCache(KVCache):
    """Rows of different lengths: row b has filled[b] positions, and a new token comes behind its own row's.

    Attention looks at the first `view` positions of every row, masked. Shapes and addresses stay the same from step to
    step, so one compiled graph serves as many steps as fit into `view`.
    """

    def __init__(self, config, batch_size: int, length: int, device=None, dtype=None):
        super().__init__(config, batch_size, length, device, dtype)
        self.filled = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.places = torch.arange(length, device=device)
        self.view = length

    def advance(self, T: int) -> Tensor:
        where = self.filled.unsqueeze(1) + self.places[:T]  # (B, T)
        where = where.clamp(max=len(self.places) - 1)  # rows that nobody reads any more go on in their last place
        self.index = where[:, None, :, None]
        self.mask = (self.places[: self.view] <= where.unsqueeze(2)).unsqueeze(1)  # (B, 1, T, view)
        self.filled += T
        return where

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        index = self.index.expand(k.shape)
        self.k[layer].scatter_(2, index, k.to(self.k.dtype))
        self.v[layer].scatter_(2, index, v.to(self.v.dtype))
        return self.k[layer, :, :, : self.view], self.v[layer, :, :, : self.view]
