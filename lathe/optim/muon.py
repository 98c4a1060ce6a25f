"""Muon: momentum, orthogonalised, for the matrices inside the blocks."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from lathe.optim.optimizer import Optimizer, is_sharded

# Ranks from which on each orthogonalises some of the matrices and passes them round; with fewer it
# is cheaper that every rank does them all.
SHARED_FROM = 4

# (a, b, c) of X <- a X + b (X X^T) X + c (X X^T)^2 X, one triple an iteration: the best odd
# polynomials for five iterations (Polar Express, Amsel et al. 2025, arXiv 2505.16932).
POLAR_EXPRESS = (
    (8.15655, -22.48329, 15.87877),
    (4.04293, -2.80892, 0.50002),
    (3.89167, -2.77248, 0.50606),
    (3.28575, -2.36813, 0.46449),
    (2.34654, -1.70978, 0.42324),
)
# The polynomials are made for singular values up to 1; rounding must not carry one beyond.
MARGIN = 1.02


def orthogonalize(
    x: Tensor, coefficients: Iterable[tuple[float, float, float]] = POLAR_EXPRESS
) -> Tensor:
    """The nearest orthogonal matrices, approximately: all singular values go to about 1.

    x (K, m, n), with m <= n (transpose before otherwise). bfloat16 is enough.
    """
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * MARGIN + 1e-7)
    for a, b, c in coefficients:
        gram = x @ x.mT  # (K, m, m)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + polynomial x
    return x


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its products are fast: on GPUs from compute capability 8.0 on (Ampere). A V100
    or T4 would imitate it; in float16 small gradients would be zeros."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024; Bernstein & Newhouse, arXiv 2409.20325).

    A step moves W (m, n) by lr sqrt(max(1, m/n)) times an orthogonal matrix, so that one rate fits
    every width. Weight decay is cautious (arXiv 2510.12402): it acts only where it does not work
    against the update. `rows` maps an index into `params` to the rows of the matrices that the
    parameter holds one above the other (queries, keys and values): each is orthogonalised by
    itself. Raises ValueError for parameters that are not matrices.

    Parameters may be sharded over ranks along their rows (FSDP2). Then, and with SHARED_FROM ranks
    or more, a matrix is orthogonalised by one rank: the same update, without the waste.
    """

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

        if skip is not None:  # momentum is averaged with itself then, so it stays as it is
            for m, g in zip(momenta, grads, strict=True):
                torch.where(skip, m, g, out=g)
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])

        if sharded:
            updates = updates_of_shards(nesterov, shapes, rows)
        elif dist.is_initialized() and dist.get_world_size() >= SHARED_FROM:
            updates = updates_over_ranks(nesterov, rows)
        else:
            updates = orthogonal_updates(nesterov, rows)

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


# -----------------------------------------------------------------------------
# From momentum to updates


def orthogonal_updates(momenta: list[Tensor], rows: list[tuple[int, ...]]) -> list[Tensor]:
    """Updates of whole parameters, each of which holds matrices of these numbers of rows.

    Matrices of one shape (transposed if m > n) are stacked, so that a step is a few large kernels.
    """
    stacks = defaultdict(list)
    for momentum, heights in zip(momenta, rows, strict=True):
        for matrix in momentum.split(heights):
            stacks[flat_shape(matrix)].append(lay_flat(matrix))

    orthogonal = {}
    for shape, stack in stacks.items():
        dtype = iteration_dtype(stack[0].device)
        done = orthogonalize(torch.stack(stack).to(dtype)).to(stack[0].dtype)
        orthogonal[shape] = iter(done)

    updates = []
    for momentum, heights in zip(momenta, rows, strict=True):
        parts = []
        for matrix in momentum.split(heights):
            m, n = matrix.shape
            part = next(orthogonal[flat_shape(matrix)])
            if m > n:
                part = part.mT * math.sqrt(m / n)
            parts.append(part)
        updates.append(parts[0] if len(parts) == 1 else torch.cat(parts))
    return updates


def flat_shape(matrix: Tensor) -> tuple[int, int]:
    m, n = matrix.shape
    return min(m, n), max(m, n)


def lay_flat(matrix: Tensor) -> Tensor:
    m, n = matrix.shape
    return matrix.mT if m > n else matrix


# -----------------------------------------------------------------------------
# The same with the work shared (plain form: orthogonal_updates). Parameters of one shape are dealt
# out to the ranks in turn: number k to rank k % world_size, which does it in round k // world_size.


def by_shape(shapes: list[torch.Size]) -> dict[torch.Size, list[int]]:
    """{shape: indices}, in the same order on all ranks, which exchange one shape after another."""
    indices = defaultdict(list)
    for i, shape in enumerate(shapes):
        indices[shape].append(i)
    return indices


def updates_over_ranks(momenta: list[Tensor], rows: list[tuple[int, ...]]) -> list[Tensor]:
    """orthogonal_updates of parameters that every rank has whole."""
    rank = dist.get_rank()
    world_size = dist.get_world_size()
    updates: list[Tensor | None] = [None] * len(momenta)
    for shape, indices in by_shape([m.shape for m in momenta]).items():
        rounds = math.ceil(len(indices) / world_size)
        own = indices[rank::world_size]
        done = orthogonal_updates([momenta[i] for i in own], [rows[i] for i in own])

        # (rounds, m, n) of each rank -> (world_size, rounds, m, n)
        send = momenta[0].new_zeros(rounds, *shape)
        for k, update in enumerate(done):
            send[k] = update
        received = send.new_empty(world_size * rounds, *shape)
        dist.all_gather_into_tensor(received, send)
        received = received.view(world_size, rounds, *shape)
        for k, i in enumerate(indices):
            updates[i] = received[k % world_size, k // world_size]
    return updates


def updates_of_shards(
    shards: list[Tensor], shapes: list[torch.Size], rows: list[tuple[int, ...]]
) -> list[Tensor]:
    """orthogonal_updates of parameters of these shapes, of each of which this rank has some rows.

    Shards come to the rank that does the whole matrix, and return as shards of its update.
    """
    rank = dist.get_rank()
    world_size = dist.get_world_size()
    updates: list[Tensor | None] = [None] * len(shards)
    for (m, n), indices in by_shape(shapes).items():
        rounds = math.ceil(len(indices) / world_size)
        height = math.ceil(m / world_size)  # rows of a shard; the last ones may have fewer
        own = indices[rank::world_size]

        # (rank that does it, rounds, height, n) -> (rank that has the shard, rounds, height, n)
        send = shards[0].new_zeros(world_size, rounds, height, n)
        for k, i in enumerate(indices):
            send[k % world_size, k // world_size, : len(shards[i])] = shards[i]
        received = exchanged(send)
        whole = [received[:, k].reshape(-1, n)[:m] for k in range(len(own))]
        done = orthogonal_updates(whole, [rows[i] for i in own])

        # (rank that has the shard, rounds, height, n) -> (rank that did it, rounds, height, n)
        padded = shards[0].new_zeros(rounds, world_size * height, n)
        for k, update in enumerate(done):
            padded[k, :m] = update
        send = padded.view(rounds, world_size, height, n).transpose(0, 1).contiguous()
        received = exchanged(send)
        for k, i in enumerate(indices):
            updates[i] = received[k % world_size, k // world_size, : len(shards[i])]
    return updates


def exchanged(send: Tensor) -> Tensor:
    """send[r] goes to rank r; what comes from rank r is at [r]."""
    received = torch.empty_like(send)
    dist.all_to_all_single(received, send)
    return received
