"""Adagrad by rows, for tables of which a step uses few rows."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lathe.optim.optimizer import Optimizer, from_own_rows, is_sharded, local

EPS = 1e-10  # so that the first gradient of a row moves it by the rate, however small it is


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011) with one rate for each row (as in DLRM, arXiv 1906.00091).

    A row moves by lr g / sqrt(sum of mean(g^2) over the steps so far): rows that are seldom used
    move as far as others, and one that is not used in a step stays as it is, so that a sparse
    gradient says all and gives the same weights as a dense one.
    """

    keeps = frozenset(("sum_of_squares",))
    state_name = "sum_of_squares"

    def __init__(self, groups: Iterable[dict], lr: float = 0.05):
        super().__init__(groups, lr=lr)

    def state_shape(self, p: Tensor) -> tuple[int, ...]:
        return (p.shape[0], 1)

    def update(self, group: dict, skip: Tensor | None):
        for p in group["params"]:
            if p.grad is None:
                continue
            if not self.state[p]:
                self.state[p] = {"sum_of_squares": zeros_by_row(p)}
            weight, sums, grad = map(local, (p, self.state[p]["sum_of_squares"], p.grad))
            if grad.is_sparse:
                update_rows(weight, sums, grad, group["lr"])
            else:
                update_all(weight, sums, grad, group["lr"], skip)


def update_rows(weight: Tensor, sums: Tensor, grad: Tensor, lr: float):
    """weight (R, C), sums (R, 1), grad sparse, of N rows of which some are the same.

    All tensors are as large in each step: those of coalesce() are not, and between ones of many
    sizes a process loses a megabyte of its heap every few steps.
    """
    sorted_rows, order = grad._indices()[0].sort(stable=True)  # (N,)
    is_another = sorted_rows.diff(prepend=sorted_rows[:1]) != 0
    number = is_another.cumsum(dim=0)  # which of the different rows it is
    rows = torch.zeros_like(sorted_rows).scatter_(0, number, sorted_rows)
    values = grad._values()  # (N, C)
    total = torch.zeros_like(values).index_add_(0, number, values[order])
    # At the end of both stand row 0 and gradients of zero, which change nothing.
    sums.index_add_(0, rows, total.square().mean(dim=1, keepdim=True))
    weight.index_add_(0, rows, total.div_(sums[rows].sqrt_().add_(EPS)), alpha=-lr)


def update_all(weight: Tensor, sums: Tensor, grad: Tensor, lr: float, skip: Tensor | None):
    """The same with a gradient (R, C) of all rows, or nothing where `skip` is true."""
    if skip is not None:
        grad = grad.masked_fill(skip, 0.0)
    sums.add_(grad.square().mean(dim=1, keepdim=True))
    weight.addcdiv_(grad, sums.sqrt() + EPS, value=-lr)


def zeros_by_row(p: Tensor) -> Tensor:
    """(rows of p, 1), sharded as p is."""
    zeros = torch.zeros_like(local(p)[:, :1], memory_format=torch.contiguous_format)
    return from_own_rows(zeros, p) if is_sharded(p) else zeros
