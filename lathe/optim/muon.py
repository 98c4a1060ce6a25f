"""Muon: momentum, orthogonalised, for the matrices inside the blocks."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lathe.optim import sharing
from lathe.optim.optimizer import Optimizer, is_sharded


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024; Bernstein & Newhouse, arXiv 2409.20325).

    A step moves W (m, n) by lr sqrt(max(1, m/n)) times an orthogonal matrix, so that one rate fits
    every width. Weight decay is cautious (arXiv 2510.12402): it acts only where it does not work
    against the update. `rows` maps an index into `params` to the rows of the matrices that the
    parameter holds one above the other (queries, keys and values): each is orthogonalised by
    itself. Raises ValueError for parameters that are not matrices.

    Parameters may be sharded over ranks along their rows (FSDP2). Then, and where a node has enough
    ranks, each orthogonalises a part of the matrices: see sharing.py.
    """

    keeps = frozenset(("momentum",))
    state_name = "momentum"

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        rows: dict[int, tuple[int, ...]] | None = None,
    ):
        params = list(params)
        for p in params:
            if p.dim() != 2:
                raise ValueError(
                    f"Muon updates matrices, not a parameter of shape {tuple(p.shape)}"
                )
        super().__init__([dict(params=params)], lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.rows = rows or {}
        self.circle: sharing.Circle | None = None  # who shares the work; known at the first update
        self.look_ahead = look_ahead
        self.move = move

    def compile(self):
        """Do in few kernels what is done number by number: see Kernels."""
        kernels = Kernels()
        self.look_ahead = kernels.look_ahead
        self.move = kernels.move

    def update(self, group: dict, skip: Tensor | None):
        params = []
        rows = []
        for i, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            params.append(p)
            rows.append(self.rows.get(i, (p.shape[0],)))
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        if not params:
            return
        shapes = [p.shape for p in params]
        grads = [p.grad for p in params]
        momenta = [self.state[p]["momentum"] for p in params]
        sharded = is_sharded(params[0])
        if sharded:  # this rank's shards, which share their DTensors' memory
            params = [p.to_local() for p in params]
            grads = [g.to_local() for g in grads]
            momenta = [m.to_local() for m in momenta]

        nesterov = self.look_ahead(momenta, grads, group["momentum"], skip)

        first_rows = [0] * len(params)  # of what this rank has of a parameter
        if sharded:
            orthogonal = sharing.orthogonal_shards(nesterov, shapes, rows)
            first_rows = [sharing.first_row(shape[0]) for shape in shapes]
        else:
            if self.circle is None:
                self.circle = sharing.find_circle(params[0].device)
            orthogonal = sharing.orthogonal_of_circle(nesterov, rows, self.circle)
        del nesterov  # whose memory the rest can use
        self.move(params, orthogonal, rows, first_rows, group, skip)


def look_ahead(
    momenta: list[Tensor], grads: list[Tensor], momentum: float, skip: Tensor | None
) -> list[Tensor]:
    """Average the gradients into the momenta; returns these a step further (Nesterov)."""
    if skip is not None:  # momentum is averaged with itself then, so it stays as it is
        for m, g in zip(momenta, grads, strict=True):
            torch.where(skip, m, g, out=g)
    torch._foreach_lerp_(momenta, grads, 1 - momentum)
    return torch._foreach_lerp(grads, momenta, momentum)


def move(
    params: list[Tensor], orthogonal: list[Tensor], rows: list[tuple[int, ...]],
    first_rows: list[int], group: dict, skip: Tensor | None,
):  # fmt: skip
    """Move each parameter, or shard, by its orthogonal matrices; their list is emptied."""
    updates = [o.to(p.dtype) for o, p in zip(orthogonal, params, strict=True)]
    orthogonal.clear()  # whose memory the rest can use
    scale_by_shape(updates, rows, first_rows)
    if skip is not None:
        torch._foreach_mul_(updates, (~skip).to(updates[0].dtype))
    if group["weight_decay"]:
        decay_cautiously(params, updates, group["lr"] * group["weight_decay"])
    torch._foreach_add_(params, updates, alpha=-group["lr"])


def decay_cautiously(params: list[Tensor], updates: list[Tensor], rate: float):
    """Shrink each number by `rate` of itself, but only where its update has the same sign."""
    decay = torch._foreach_mul(updates, params)
    torch._foreach_sign_(decay)
    torch._foreach_clamp_min_(decay, 0.0)  # 1 where the signs agree, else 0
    torch._foreach_mul_(decay, params)
    torch._foreach_add_(params, decay, alpha=-rate)


def scale_by_shape(updates: list[Tensor], rows: list[tuple[int, ...]], first_rows: list[int]):
    """Multiply each matrix (m, n) by sqrt(max(1, m/n)).

    updates: of whole parameters, or of shards, which begin at a row of them and hold some.
    """
    parts = []
    factors = []
    for update, heights, first_row in zip(updates, rows, first_rows, strict=True):
        n = update.shape[1]
        begin = -first_row  # of the matrix in the shard
        for m in heights:
            end = begin + m
            if m > n and end > 0:
                parts.append(update[max(0, begin) : end])
                factors.append(math.sqrt(m / n))
            begin = end
    if parts:
        torch._foreach_mul_(parts, factors)


# -----------------------------------------------------------------------------
# Fast path. Plain form: look_ahead and move, of which each line reads and writes all matrices on a
# GPU: some 10 GB a step for the 85 million numbers of modern_124m. Compiled: 2.9 GB, in 4 kernels.


class Kernels:
    """look_ahead and move, compiled. Rates come as tensors: a new number would compile anew."""

    def __init__(self):
        self.looked_ahead = torch.compile(looked_ahead, dynamic=False, fullgraph=True)
        self.moved = torch.compile(moved, dynamic=False, fullgraph=True)
        self.factors: dict[tuple, list[Tensor]] = {}  # by where the matrices lie

    def look_ahead(
        self, momenta: list[Tensor], grads: list[Tensor], momentum: float, skip: Tensor | None
    ) -> list[Tensor]:
        return self.looked_ahead(momenta, grads, momentum, skip)

    def move(
        self, params: list[Tensor], orthogonal: list[Tensor], rows: list[tuple[int, ...]],
        first_rows: list[int], group: dict, skip: Tensor | None,
    ):  # fmt: skip
        layout = (*rows, *first_rows, *(p.shape for p in params))
        if layout not in self.factors:
            self.factors[layout] = shape_factors(params, rows, first_rows)
        lr = torch.tensor(group["lr"])
        weight_decay = torch.tensor(group["weight_decay"])
        self.moved(params, orthogonal, self.factors[layout], lr, weight_decay, skip)


def shape_factors(
    params: list[Tensor], rows: list[tuple[int, ...]], first_rows: list[int]
) -> list[Tensor]:
    """(rows, 1) for each parameter or shard: what scale_by_shape multiplies its rows by."""
    ones = [p.new_ones(p.shape) for p in params]
    scale_by_shape(ones, rows, first_rows)
    return [one[:, :1].clone() for one in ones]


def looked_ahead(
    momenta: list[Tensor], grads: list[Tensor], momentum: float, skip: Tensor | None
) -> list[Tensor]:
    if skip is not None:
        grads = [torch.where(skip, m, g) for m, g in zip(momenta, grads, strict=True)]
    torch._foreach_lerp_(momenta, grads, 1 - momentum)
    return torch._foreach_lerp(grads, momenta, momentum)


def moved(
    params: list[Tensor], orthogonal: list[Tensor], factors: list[Tensor], lr: Tensor,
    weight_decay: Tensor, skip: Tensor | None,
):  # fmt: skip
    if skip is not None:
        lr = torch.where(skip, 0.0, lr)
    updates = [o.to(p.dtype) * f for o, p, f in zip(orthogonal, params, factors, strict=True)]
    decayed = [torch.where(u * p > 0, p, 0.0) for u, p in zip(updates, params, strict=True)]
    decays = torch._foreach_mul(decayed, lr * weight_decay)
    steps = torch._foreach_mul(updates, lr)
    torch._foreach_sub_(params, torch._foreach_add(decays, steps))
