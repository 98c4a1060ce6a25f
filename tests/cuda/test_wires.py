"""How much a step sends, for 8 and 64 ranks: counted on one, by wires.py."""

import json
from pathlib import Path

import pytest
import torch
import wires
from tiny_run import command, finished

from lathe.run.bounds import step_traffic
from lathe.settings import Settings
from model import GPT, GPTConfig

HERE = Path(__file__).resolve().parent

# {phase: {collective: (how many at the most, their bytes at the most over those of the weights)}}.
# What is not here is not sent.
NUMBERS = {"allreduce": (1, 1e-5)}
DDP = {"backward": {"DDP's bucket": (2, 1.01)}, "numbers": NUMBERS}
DDP |= {"optimizers": {"allgather_base": (1, 0.454)}}  # 2 bytes for each number that Muon updates
FSDP = {
    "forward": {"allgather_base": (26, 1.01)},  # in both of two micro-batches
    "backward": {"allgather_base": (24, 0.91), "reduce_scatter_base": (26, 1.01)},
    "norm": {"all_reduce": (1, 1e-4), "wrap_tensor_autograd": (1, 1e-4)},
    "numbers": NUMBERS,
}
CEILINGS = {
    "8-ddp": DDP,
    "64-ddp": DDP,
    "8-fsdp": {**FSDP, "optimizers": {"alltoall_base": (8, 0.152)}},
    "64-fsdp": {**FSDP, "optimizers": {"alltoall_base": (8, 0.076)}},
}
FAULTS = ["8-ddp-extra", "8-fsdp-extra", "8-ddp-buffers", "8-ddp-float32", "8-fsdp-float32"]


@pytest.fixture(scope="module")
def reports() -> dict[str, dict]:
    code, out, err = finished(command(HERE / "wires.py", *CEILINGS, *FAULTS), 300)
    assert code == 0, err[-2000:]
    return json.loads(out)


def excess(job: str, report: dict) -> dict[tuple[str, str], tuple[int, float]]:
    """What is above its ceiling: {(phase, collective): (how many, bytes over the weights')}."""
    ceilings = CEILINGS["-".join(job.split("-")[:2])]
    above = {}
    for phase, collectives in report["sent"].items():
        for name, (count, n_bytes) in collectives.items():
            most, ratio = ceilings.get(phase, {}).get(name, (0, 0.0))
            if count > most or n_bytes > ratio * report["weights"]:
                above[phase, name] = (count, round(n_bytes / report["weights"], 4))
    return above


@pytest.mark.parametrize("job", CEILINGS)
def test_a_step_sends_no_more_than_it_must(reports, job):
    assert not excess(job, reports[job])


@pytest.mark.parametrize("job", ["8-ddp-extra", "8-fsdp-extra"])
def test_one_more_all_gather_is_seen(reports, job):
    assert set(excess(job, reports[job])) == {("forward", "allgather_base")}


def test_buffers_that_are_passed_on_are_seen(reports):
    assert set(excess("8-ddp-buffers", reports["8-ddp-buffers"])) == {("forward", "broadcast")}


def test_what_is_sent_in_float32_is_seen(reports):
    ddp = excess("8-ddp-float32", reports["8-ddp-float32"])
    assert set(ddp) == {("optimizers", "allgather_base")}
    fsdp = excess("8-fsdp-float32", reports["8-fsdp-float32"])
    assert {phase for phase, _ in fsdp} == {"forward", "backward", "optimizers"}


@pytest.mark.parametrize("job", ["8-ddp", "64-ddp"])
def test_muon_of_the_124m_network_sends_170_mb_a_step(reports, job):
    report = reports[job]
    _, n_bytes = report["sent"]["optimizers"]["allgather_base"]
    per_number = n_bytes / (report["matrices"] / 4)
    with torch.device("meta"):
        blocks = GPT(GPTConfig(n_head=6)).transformer.h  # config/modern_124m.toml
    numbers = sum(p.numel() for p in blocks.parameters() if p.dim() == 2)
    assert per_number * numbers <= 170e6


@pytest.mark.parametrize("job", CEILINGS)
def test_a_dry_run_plans_what_is_sent(reports, job):
    world, parallel = job.split("-")
    s = Settings(
        parallel=parallel, dtype="bfloat16", device="cuda", micro_batch_size=1,
        batch_size=wires.MICRO_STEPS * int(world), block_size=wires.CONFIG["block_size"],
    )  # fmt: skip
    with torch.device("meta"):
        model = GPT(GPTConfig(**wires.CONFIG))
    planned = step_traffic(s, model, int(world))
    sent = reports[job]["sent"]

    def counted(phase: str, *names: str) -> int:
        return sum(n for name, (_, n) in sent.get(phase, {}).items() if name in names)

    gradients = counted("backward", "DDP's bucket", "reduce_scatter_base")
    weights = counted("forward", "allgather_base") + counted("backward", "allgather_base")
    assert planned.gradients == pytest.approx(gradients, rel=0.01)
    assert planned.weights == pytest.approx(weights, rel=0.01)
    assert planned.muon == pytest.approx(
        counted("optimizers", "allgather_base", "alltoall_base"), rel=0.01
    )
