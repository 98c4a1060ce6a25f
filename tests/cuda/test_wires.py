"""How much a step sends, for 8 and 64 ranks: counted on one, by wires.py."""

import json
from pathlib import Path

import pytest
from tiny_run import command, finished

HERE = Path(__file__).resolve().parent

# {phase: {collective: (how many at the most, their bytes at the most over those of the weights)}}.
# What is not here is not sent. Muon's updates: matrices of one shape are dealt out, in 4 shapes.
NUMBERS = {"allreduce": (1, 1e-5)}
FSDP = {
    "forward": {"allgather_base": (26, 2.01)},  # in each of two micro-batches
    "backward": {"allgather_base": (24, 1.82), "reduce_scatter_base": (26, 2.01)},
    "norm": {"all_reduce": (1, 1e-4), "wrap_tensor_autograd": (1, 1e-4)},
    "numbers": NUMBERS,
}
CEILINGS = {
    ("ddp", 8): {
        "backward": {"DDP's bucket": (2, 1.01)},
        "numbers": NUMBERS,
        "optimizers": {"allgather_base": (4, 1.22)},
    },
    ("ddp", 64): {
        "backward": {"DDP's bucket": (2, 1.01)},
        "numbers": NUMBERS,
        "optimizers": {"allgather_base": (4, 4.85)},
    },
    ("fsdp", 8): {**FSDP, "optimizers": {"alltoall_base": (8, 0.31)}},
    ("fsdp", 64): {**FSDP, "optimizers": {"alltoall_base": (8, 0.16)}},
}


def excess(parallel: str, world: int, *fault: str) -> dict[tuple[str, str], tuple[int, float]]:
    """What is above its ceiling: {(phase, collective): (how many, bytes over the weights')}."""
    words = (HERE / "wires.py", world, parallel, *fault)
    code, out, err = finished(command(*words), 300)
    assert code == 0, err[-2000:]
    report = json.loads(out)
    above = {}
    for phase, collectives in report["sent"].items():
        for name, (count, n_bytes) in collectives.items():
            most, ratio = CEILINGS[parallel, world].get(phase, {}).get(name, (0, 0.0))
            if count > most or n_bytes > ratio * report["weights"]:
                above[phase, name] = (count, round(n_bytes / report["weights"], 4))
    return above


@pytest.mark.parametrize("parallel, world", CEILINGS)
def test_a_step_sends_no_more_than_it_must(parallel, world):
    assert not excess(parallel, world)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_more_all_gather_is_seen(parallel):
    assert {phase for phase, _ in excess(parallel, 8, "extra")} == {"forward"}


def test_buffers_that_are_passed_on_are_seen():
    assert {name for _, name in excess("ddp", 8, "buffers")} == {"broadcast"}
