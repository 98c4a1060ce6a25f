"""Muon's work shared among ranks: the updates are those of one process."""

import pytest
import torch
import torch.distributed as dist

from lathe.optim.muon import orthogonal_updates, updates_of_shards, updates_over_ranks

WORLD = 3
# More matrices of one shape than ranks, fewer, and rows that the ranks do not share evenly.
SHAPES = [(16, 32), (32, 16), (16, 32), (48, 32), (16, 32), (16, 32), (5, 7), (2, 7)]
ROWS = [(16, 16, 16) if shape == (48, 32) else (shape[0],) for shape in SHAPES]


def shard(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The rows that FSDP2 gives to a rank."""
    pieces = matrix.chunk(WORLD)
    return pieces[rank] if rank < len(pieces) else matrix[:0]


def check_rank(rank: int, meeting_place: str):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting_place}", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    momenta = [torch.randn(shape) for shape in SHAPES]
    expected = orthogonal_updates(momenta, ROWS)

    for update, alone in zip(updates_over_ranks(momenta, ROWS), expected, strict=True):
        torch.testing.assert_close(update, alone, rtol=0, atol=1e-6)

    shards = [shard(matrix, rank) for matrix in momenta]
    shapes = [matrix.shape for matrix in momenta]
    for update, alone in zip(updates_of_shards(shards, shapes, ROWS), expected, strict=True):
        torch.testing.assert_close(update, shard(alone, rank), rtol=0, atol=1e-6)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_shared_work_gives_each_rank_the_updates_of_one_process(tmp_path):
    """Of whole parameters and of shards; a rank that finds another number fails the test."""
    torch.multiprocessing.spawn(check_rank, (str(tmp_path / "meeting"),), nprocs=WORLD)
