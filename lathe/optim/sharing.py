"""Muon's work shared among ranks (plain form: orthogonal_parameters on every one of them).

What ranks send each other is in the type that it is orthogonalised in: nothing is lost by that, and
on a GPU it is 16 bits.
"""

import math
import os
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from lathe.optim.orthogonal import iteration_dtype, orthogonal_parameters

# Ranks from which on the work is shared; with fewer it is cheaper that every rank does it all.
SHARED_FROM = 4


@dataclass(frozen=True)
class Circle:
    """Ranks that each have all parameters, and share the work."""

    group: dist.ProcessGroup | None  # None: of all ranks
    rank: int  # this one's place in it
    size: int


def find_circle(device: torch.device) -> Circle:
    """The ranks of this node, if there are SHARED_FROM or more: nothing goes over the network then.
    In small nodes all ranks.

    Every rank calls this at the same time. What nodes compute each for themselves is equal because
    they have the same GPUs: DDP relies on that wherever it does not share.
    """
    if not dist.is_initialized() or dist.get_world_size() < SHARED_FROM:
        return Circle(None, 0, 1)
    rank = dist.get_rank()
    world_size = dist.get_world_size()
    everyone = Circle(None, rank, world_size)
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # torchrun says it
    if on_node == world_size:
        return everyone
    # Nodes of different sizes have no cut in common.
    sizes = torch.tensor([on_node, -on_node], device=device)
    dist.all_reduce(sizes, dist.ReduceOp.MAX)
    if sizes.tolist() != [on_node, -on_node] or on_node < SHARED_FROM:
        return everyone
    group, _ = dist.new_subgroups(on_node)
    return Circle(group, rank % on_node, on_node)


# -----------------------------------------------------------------------------
# Of parameters that every rank has whole


def orthogonal_of_circle(
    momenta: list[Tensor], rows: list[tuple[int, ...]], circle: Circle
) -> list[Tensor]:
    """orthogonal_parameters. Laid end to end, their numbers are cut into equal pieces, one a rank.

    A rank does the matrices that its piece has a part of and sends the piece: a matrix at a cut is
    done twice, but no number is sent twice, and none in vain.
    """
    if circle.size == 1:
        return orthogonal_parameters(momenta, rows)
    matrices = []
    for momentum, heights in zip(momenta, rows, strict=True):
        matrices += momentum.split(heights)
    ends = list(accumulate(matrix.numel() for matrix in matrices))
    n_own = math.ceil(ends[-1] / circle.size)
    first = circle.rank * n_own
    last = first + n_own
    own = [i for i, end in enumerate(ends) if first < end and end - matrices[i].numel() < last]
    done = orthogonal_parameters([matrices[i] for i in own], [(len(matrices[i]),) for i in own])

    dtype = iteration_dtype(momenta[0].device)
    send = momenta[0].new_zeros(n_own, dtype=dtype)
    for i, matrix in zip(own, done, strict=True):
        begin = ends[i] - matrix.numel()
        part = matrix.flatten()[max(0, first - begin) : last - begin]
        start = max(0, begin - first)
        send[start : start + len(part)] = part
    received = send.new_empty(circle.size * n_own)
    dist.all_gather_into_tensor(received, send, group=circle.group)
    pieces = received[: ends[-1]].split([momentum.numel() for momentum in momenta])
    return [piece.view_as(momentum) for piece, momentum in zip(pieces, momenta, strict=True)]


# -----------------------------------------------------------------------------
# Of parameters that are cut up over all ranks. Those of one shape are dealt out in turn: number k
# to rank k % world_size, which does it in round k // world_size.


def by_shape(shapes: list[torch.Size]) -> dict[torch.Size, list[int]]:
    """{shape: indices}, in the same order on all ranks, which exchange one shape after another."""
    indices = defaultdict(list)
    for i, shape in enumerate(shapes):
        indices[shape].append(i)
    return indices


def first_row(m: int) -> int:
    """Which of m rows this rank's shard begins with, as FSDP2 cuts them."""
    return dist.get_rank() * math.ceil(m / dist.get_world_size())


def orthogonal_shards(
    shards: list[Tensor], shapes: list[torch.Size], rows: list[tuple[int, ...]]
) -> list[Tensor]:
    """orthogonal_parameters of those of these shapes, of each of which this rank has some rows.

    Shards come to the rank that does the whole matrix, and return as shards of what it has done.
    """
    rank = dist.get_rank()
    world_size = dist.get_world_size()
    dtype = iteration_dtype(shards[0].device)
    orthogonal: list[Tensor | None] = [None] * len(shards)
    for (m, n), indices in by_shape(shapes).items():
        rounds = math.ceil(len(indices) / world_size)
        height = math.ceil(m / world_size)  # rows of a shard; the last ones may have fewer
        own = indices[rank::world_size]

        # (rank that does it, rounds, height, n) -> (rank that has the shard, rounds, height, n)
        send = shards[0].new_zeros(world_size, rounds, height, n, dtype=dtype)
        for k, i in enumerate(indices):
            send[k % world_size, k // world_size, : len(shards[i])] = shards[i]
        received = exchanged(send)
        whole = [received[:, k].reshape(-1, n)[:m] for k in range(len(own))]
        done = orthogonal_parameters(whole, [rows[i] for i in own])

        # (rank that has the shard, rounds, height, n) -> (rank that did it, rounds, height, n)
        padded = send.new_zeros(rounds, world_size * height, n)
        for k, matrix in enumerate(done):
            padded[k, :m] = matrix
        send = padded.view(rounds, world_size, height, n).transpose(0, 1).contiguous()
        received = exchanged(send)
        for k, i in enumerate(indices):
            orthogonal[i] = received[k % world_size, k // world_size, : len(shards[i])]
    return orthogonal


def exchanged(send: Tensor) -> Tensor:
    """send[r] goes to rank r; what comes from rank r is at [r]."""
    received = torch.empty_like(send)
    dist.all_to_all_single(received, send)
    return received
