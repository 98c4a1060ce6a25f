"""Memory by n-grams: what the last few tokens say by themselves, looked up in a table.

A network spends its first steps on learning which tokens follow which; a table learns that a row at
a time, from the steps in which the row is used. Released models have such tables (LongCat-Flash-
Lite, arXiv 2601.21204), and so have records of modded-nanogpt; what they are worth here is in
bench/LOG.md. model.py adds one half of a row to the embedding and the other to what the head reads;
lathe/optim/adagrad.py updates the rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRIME = 0x9E3779B1  # 2^32 over the golden ratio: products with it spread well
POSITIVE = 0x7FFFFFFF  # 31 bits, so that no product of the hash leaves an int64


class Added(NamedTuple):
    """What the tables say at each position, (B, T, C) each."""

    to_input: Tensor  # to the embedding
    to_features: Tensor  # to what the head reads, by which it comes to the logits


class NGrams(nn.Module):
    """The table: for each order from 2 to `order` it has `rows` rows of 2 n_embd numbers.

    N-grams share rows, by a hash, where there are more of them than rows. A row begins at zero, and
    learns by its gradient alone. Only tokens that a position may attend to are looked at: none
    before the window, and none of an earlier document where documents are masked.

    sparse: gradients have only the rows that were used, as sparse tensors. To be set by whoever
    trains: neither DDP, FSDP nor CUDA graphs take such gradients.
    """

    def __init__(self, vocab_size: int, order: int, rows: int, n_embd: int, dropout: float):
        super().__init__()
        self.vocab_size = vocab_size
        self.order = order
        self.rows = rows
        self.dropout = dropout
        self.sparse = False
        self.weight = nn.Parameter(torch.zeros((self.order - 1) * self.rows, 2 * n_embd))

    def extra_repr(self) -> str:
        return f"orders 2 to {self.order}, {self.rows} rows each, {self.weight.shape[1]} wide"

    def forward(self, idx: Tensor, positions: Tensor, last: Tensor | None) -> Added:
        """ids (B, T) and their positions in their documents, (T,) or (B, T).

        last: of a cache, (B, order - 1), the ids before these, which is moved on by them; of those
        a text's first positions look at as many as there were.
        """
        rows = self.find_rows(self.with_earlier(idx, last), positions)
        vectors = F.embedding(rows, self.weight, sparse=self.sparse)  # (B, T, order - 1, 2 C)
        if self.training and self.dropout:  # a whole row or none of it
            kept = torch.rand(rows.shape, device=idx.device) >= self.dropout
            vectors = vectors * (kept / (1 - self.dropout)).unsqueeze(-1)
        return Added(*vectors.sum(dim=2).chunk(2, dim=-1))

    def with_earlier(self, idx: Tensor, last: Tensor | None) -> Tensor:
        """(B, order - 1 + T): the ids, after those that came before them; 0 where none did."""
        n_earlier = self.order - 1
        if last is None:
            return F.pad(idx, (n_earlier, 0))
        ids = torch.cat((last, idx), dim=1)
        last.copy_(ids[:, -n_earlier:])
        return ids

    def find_rows(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(B, order - 1 + T) and (T,) or (B, T) -> (B, T, order - 1): the row of each n-gram, of
        those of order 2 first.

        A number for each n-gram is the row where there are rows for all, else its hash is. Where a
        document has fewer tokens yet, what is missing counts as an id of its own.
        """
        n_earlier = self.order - 1
        T = ids.shape[1] - n_earlier
        n_ids = self.vocab_size + 1  # none is one, too
        number = ids[:, n_earlier:] + 1  # (B, T)
        mixed = number
        rows = []
        for back in range(1, self.order):
            begin = n_earlier - back
            earlier = ids[:, begin : begin + T] + 1
            earlier = torch.where(positions >= back, earlier, 0)
            mixed = (mixed * PRIME + earlier) & POSITIVE
            mixed = mixed ^ (mixed >> 15)
            if n_ids ** (back + 1) <= self.rows:
                number = number * n_ids + earlier
                row = number
            else:
                row = mixed % self.rows
            rows.append(row + (back - 1) * self.rows)
        return torch.stack(rows, dim=-1)
