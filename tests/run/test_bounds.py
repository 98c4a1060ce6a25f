"""What a dry run says of a step on many GPUs: what it takes at least, and of that most."""

import math
import re

import pytest
import torch
from test_plan import dry_run

from lathe.run.bounds import find_bounds, step_memory_traffic, step_traffic
from lathe.run.gpus import known_gpu
from lathe.settings import Settings
from model import GPT, GPT2, GPTConfig

H100 = known_gpu("H100")


def network(**changes) -> GPT:
    with torch.device("meta"):
        return GPT(GPTConfig(50257, **changes))


def settings(**changes) -> Settings:
    return Settings(**{"device": "cuda", "dtype": "bfloat16", "micro_batch_size": 8, **changes})


def bounds(s: Settings, model: GPT, world: int):
    return find_bounds(s, model, model.flops_per_token(s.block_size), H100, 989.5, world)


@pytest.mark.parametrize("n, kind", [(64, "ddp"), (512, "ddp"), (64, "fsdp"), (512, "fsdp")])
def test_a_dry_run_for_many_gpus_says_what_bounds_a_step(n, kind, capsys):
    said = dry_run(
        capsys, "modern_124m", "--dataset=nowhere", f"--gpus={n}xH100", f"--parallel={kind}"
    )
    other = {"ddp": "fsdp", "fsdp": "ddp"}[kind]
    assert re.match(r"[\d.]+ [MG]B per device$", said[f"with {other}"])
    for name in ("products", "memory traffic", "network"):
        assert re.match(r"[\d.,]+ m?s a step: ", said[name])
    assert "65% of 989.5 TFLOP/s" in said["products"]
    assert "3,350 GB/s" in said["memory traffic"]
    assert "450 GB/s within a node, 50 between nodes of 8 (assumed)" in said["network"]
    # 512 sequences are 8 or 1 a GPU: the weights' gradients take longer to send than to compute
    assert said["bound by"].startswith("network: ")


@pytest.mark.parametrize("n, kind", [(1, "ddp"), (8, "ddp"), (64, "ddp"), (512, "fsdp")])
@pytest.mark.parametrize("mfu", [0.1, 1])
def test_the_time_of_a_run_is_no_less_than_its_steps_take_at_least(n, kind, mfu, capsys):
    said = dry_run(
        capsys,
        "modern_124m",
        "--dataset=nowhere",
        f"--gpus={n}xH100",
        f"--parallel={kind}",
        f"--mfu={mfu}",
        "--dollars_per_hour=2",
    )
    steps = int(re.search(r"in ([\d,]+) steps", said["tokens"])[1].replace(",", ""))
    part = said["network" if said["bound by"].startswith("network") else "bound by"]
    least, unit = re.search(r"([\d.,]+) (m?s)(?: a step:| or more)", part).groups()
    seconds = float(least.replace(",", "")) * {"s": 1, "ms": 1e-3}[unit]
    hours = float(said["time"].partition(" ")[0].replace(",", ""))
    assert hours >= 0.99 * steps * seconds / 3600
    assert ("as its bound says" in said["time"]) == (mfu == 1 or n == 512)
    dollars = float(said["cost"].partition(":")[0].strip("$").replace(",", ""))
    assert math.isclose(dollars, 2 * n * hours, rel_tol=0.01, abs_tol=0.01)


def test_one_gpu_and_one_node_have_no_network_between_nodes(capsys):
    one = dry_run(capsys, "gpt2_124m", "--dataset=nowhere", "--gpus=1xA100")
    assert "network" not in one and "with fsdp" not in one
    node = dry_run(capsys, "gpt2_124m", "--dataset=nowhere", "--gpus=8xA100")
    assert "assumed" not in node["network"]
    assert node["bound by"].startswith("products; a step takes")
    unknown = dry_run(capsys, "gpt2_124m", "--dataset=nowhere", "--device=cpu")
    assert "products" not in unknown


def test_what_does_not_fit_is_said_for_both_ways(capsys):
    large = ["--n_layer=56", "--n_embd=1600", "--n_head=25", "--batch_size=1024"]
    words = ["modern_124m", "--dataset=nowhere", "--gpus=64xH100", "--micro_batch_size=16", *large]
    whole = dry_run(capsys, *words)
    shards = dry_run(capsys, *words, "--parallel=fsdp")
    assert "DOES NOT FIT" in whole["memory"] and "DOES NOT FIT" not in whole["with fsdp"]
    assert "DOES NOT FIT" not in shards["memory"] and "DOES NOT FIT" in shards["with ddp"]


def test_a_larger_batch_turns_a_step_from_the_network_to_the_products():
    model = network(n_head=6)
    names = [
        bounds(settings(batch_size=512 * 8 * steps), model, 512).bound_by for steps in (1, 2, 16)
    ]
    assert names[0] == "network" and names[-1] == "products"


def test_a_gpu_does_its_share_whatever_their_number():
    model = network(n_head=6)
    alone = bounds(settings(batch_size=512), model, 1)
    many = bounds(settings(batch_size=512), model, 64)
    assert alone.traffic.gradients == alone.network == 0
    assert 1 < 64 * many.flops / alone.flops < 1.2  # each node does Muon's part anew
    assert many.traffic.gradients == 4 * model.n_params()


def test_shards_send_in_each_micro_batch_and_in_16_bits():
    model = network(n_head=6)
    once = step_traffic(settings(parallel="fsdp", batch_size=512), model, 64)
    twice = step_traffic(settings(parallel="fsdp", batch_size=1024), model, 64)
    wide = step_traffic(settings(parallel="fsdp", batch_size=512, dtype="float32"), model, 64)
    assert twice.weights == 2 * once.weights and twice.gradients == 2 * once.gradients
    assert wide.weights == 2 * once.weights and wide.gradients == 2 * once.gradients
    assert once.gradients == 2 * model.n_params()


def test_recomputing_costs_a_forward_pass():
    model = network(n_head=6)
    s = dict(batch_size=512, optimizer="adamw")
    plain = bounds(settings(**s), model, 64)
    again = bounds(settings(**s, activation_checkpointing="full"), model, 64)
    assert again.products == pytest.approx(plain.products * 4 / 3)


@pytest.mark.parametrize(
    "shape, counted", [({**GPT2, "n_head": 12}, 69.5e9), (dict(n_head=6), 72.7e9)]
)
def test_memory_traffic_is_that_of_inductors_kernels_within_an_eighth(shape, counted):
    """Their ceilings stand in tests/cuda/test_lowered.py, for a micro-batch without its update."""
    model = network(**shape)
    s = settings(micro_batch_size=60, batch_size=60)
    one = step_memory_traffic(s, model, 1)
    two = step_memory_traffic(settings(micro_batch_size=60, batch_size=120), model, 1)
    assert math.isclose(two - one, counted, rel_tol=0.125)
