"""Muon's work shared among ranks: the matrices are those of one process."""

import os

import pytest
import torch
import torch.distributed as dist

from lathe.optim import sharing
from lathe.optim.orthogonal import orthogonal_parameters
from lathe.optim.sharing import Circle, find_circle, orthogonal_of_circle, orthogonal_shards

# More matrices of one shape than ranks, fewer, and rows that the ranks do not share evenly.
SHAPES = [(16, 32), (32, 16), (16, 32), (48, 32), (16, 32), (16, 32), (5, 7), (2, 7)]
ROWS = [(16, 16, 16) if shape == (48, 32) else (shape[0],) for shape in SHAPES]


def start(rank: int, world: int, meeting_place: str) -> list[torch.Tensor]:
    """Join the others; returns the momenta, the same on all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting_place}", rank=rank, world_size=world)
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in SHAPES]


def stop():
    dist.barrier()
    dist.destroy_process_group()


def check_equal(matrices: list[torch.Tensor], expected: list[torch.Tensor]):
    for matrix, alone in zip(matrices, expected, strict=True):
        torch.testing.assert_close(matrix, alone, rtol=0, atol=1e-6)


def shard(matrix: torch.Tensor, rank: int, world: int) -> torch.Tensor:
    """The rows that FSDP2 gives to a rank."""
    pieces = matrix.chunk(world)
    return pieces[rank] if rank < len(pieces) else matrix[:0]


def check_rank(rank: int, world: int, meeting_place: str):
    momenta = start(rank, world, meeting_place)
    expected = orthogonal_parameters(momenta, ROWS)
    check_equal(orthogonal_of_circle(momenta, ROWS, Circle(None, rank, world)), expected)

    shards = [shard(matrix, rank, world) for matrix in momenta]
    shapes = [matrix.shape for matrix in momenta]
    of_shards = orthogonal_shards(shards, shapes, ROWS)
    check_equal(of_shards, [shard(alone, rank, world) for alone in expected])
    stop()


def check_rank_of_nodes(rank: int, world: int, meeting_place: str):
    """Two nodes of two ranks; of the fourth matrix on, the second node has others."""
    sharing.SHARED_FROM = 2
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    momenta = start(rank, world, meeting_place)
    if rank >= 2:
        momenta[3:] = [-momentum for momentum in momenta[3:]]
    circle = find_circle(torch.device("cpu"))
    assert (circle.rank, circle.size) == (rank % 2, 2)
    expected = orthogonal_parameters(momenta, ROWS)
    check_equal(orthogonal_of_circle(momenta, ROWS, circle), expected)
    stop()


def check_rank_of_uneven_nodes(rank: int, world: int, meeting_place: str):
    """One node of three ranks, one of one: they work all together."""
    sharing.SHARED_FROM = 2
    os.environ["LOCAL_WORLD_SIZE"] = "3" if rank < 3 else "1"
    momenta = start(rank, world, meeting_place)
    circle = find_circle(torch.device("cpu"))
    assert (circle.rank, circle.size) == (rank, 4)
    expected = orthogonal_parameters(momenta, ROWS)
    check_equal(orthogonal_of_circle(momenta, ROWS, circle), expected)
    stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "check, world",
    [
        (check_rank, 3),
        (check_rank_of_nodes, 4),
        pytest.param(check_rank_of_uneven_nodes, 4, marks=pytest.mark.exhaustive),
    ],
)
def test_shared_work_gives_each_rank_the_matrices_of_one_process(check, world, tmp_path):
    """A rank that finds another number fails the test."""
    torch.multiprocessing.spawn(check, (world, str(tmp_path / "meeting")), nprocs=world)
