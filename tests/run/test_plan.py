"""What lathe/run/plan.py promises: what a run takes, known before it is trained, and settings that follow from its size."""

import math
import os
import re
import sys
import tomllib
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ONE_THREAD, ROOT, arguments, make_dataset, rows

import train
from bench.train_speed import run_child
from lathe.run import plan
from lathe.settings import Settings
from model import GPT, GPT2, GPTConfig

RULES = dict(
    batch_size=0, max_steps=0, learning_rate=0.0, muon_learning_rate=0.0, weight_decay=-1.0
)


def dry_run(capsys, *words) -> dict[str, str]:
    """{name: figure} of what a dry run prints."""
    assert train.main([*words, "--dry_run"]) == 0
    return dict(
        re.split(r" {2,}", line.strip(), maxsplit=1)
        for line in capsys.readouterr().out.splitlines()
    )


def first_number(text: str) -> int:
    return int(re.search(r"[\d,]+", text)[0].replace(",", ""))


@pytest.mark.parametrize(
    "more", [{}, GPT2, dict(n_kv_head=1, activation="relu2", tie_weights=True)]
)
def test_parameters_and_flops_are_those_of_the_network(more, dataset, tmp_path, capsys):
    found = dry_run(capsys, *arguments(dataset, tmp_path / "run", **more))
    model = GPT(GPTConfig(vocab_size=257, block_size=16, n_layer=2, n_head=2, n_embd=32, **more))
    assert first_number(found["parameters"]) == model.n_params()
    assert first_number(found["FLOPs"]) == model.flops_per_token()
    assert float(found["FLOPs"].split(", ")[-1].split()[0]) == pytest.approx(
        20 * 8 * 16 * model.flops_per_token(), rel=1e-3
    )
    assert found["step"] == "8 sequences of 16 = 2 at a time x 4 accumulated x 1 device"


def test_a_dry_run_needs_no_data_and_leaves_nothing(tmp_path, capsys):
    found = dry_run(capsys, *arguments(str(tmp_path / "data"), tmp_path / "run"))
    assert found["vocabulary"].startswith("50,257, assumed") and "unknown" in found["time"]
    assert not list(tmp_path.iterdir())


def test_hours_and_dollars_follow_from_flops(capsys):
    found = dry_run(
        capsys,
        "gpt2_124m",
        "--dataset=nowhere",
        "--gpus=8xh100",
        "--mfu=0.5",
        "--dollars_per_hour=3",
    )
    with torch.device("meta"):
        model = GPT(GPTConfig(**GPT2))
    hours = 600_000 * 480 * 1024 * model.flops_per_token() / (8 * 0.5 * 989.5e12) / 3600
    assert found["time"].startswith(f"{hours:,.3g} hours on 8 x H100")
    assert found["cost"].startswith(f"${hours * 8 * 3:,.2f}") and "x 8 devices" in found["step"]


def test_what_cannot_be_planned_is_refused(capsys):
    plan_for = ["--dry_run", "--dataset=nowhere", "--init_from=scratch"]
    with pytest.raises(
        ValueError, match="batch_size=10 is no multiple of micro_batch_size=4 x 2 devices"
    ):
        train.main([*plan_for, "--batch_size=10", "--micro_batch_size=4", "--gpus=2xA100"])
    with pytest.raises(ValueError, match="gpus is '8': .*8xH100"):
        train.main([*plan_for, "--gpus=8"])
    with pytest.raises(SystemExit):
        train.main(["--gpus=8xH100"])
    assert "gpus is 8xH100, for plans alone: add --dry_run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        {}, GPT2, dict(activation="relu2"), dict(n_kv_head=2), dict(qk_norm=False), dict(norm_weight=True),
        dict(position="none", qk_norm=False), dict(dropout=0.1), dict(norm="layernorm"), dict(head_dim=16),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "T, dtype", [(64, torch.float32), (96, torch.float32), (64, torch.bfloat16)]
)
def test_activations_are_counted_as_autograd_keeps_them(more, T, dtype):
    half = dtype != torch.float32

    def kept(n_layer: int) -> int:
        torch.manual_seed(1)
        shape = dict(block_size=T, n_layer=n_layer, n_head=4, n_embd=96)
        model, saved = GPT(GPTConfig(60, **shape, **more)), {}

        def pack(t):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        x = torch.randint(60, (2, T))
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        with hooks, torch.autocast("cpu", dtype, enabled=half):
            loss = model(x, x)
        assert loss.isfinite()
        copies = 2 * sum(p.numel() for p in model.parameters() if p.dim() == 2 and half)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for place, size in saved.items() if place not in weights) - copies

    c = GPTConfig(60, block_size=T, n_layer=1, n_head=4, n_embd=96, **more)
    found = plan.kept_by_block(Settings(block_size=T, dropout=c.dropout), c, "cpu", half)
    assert found == pytest.approx((kept(3) - kept(1)) / 2 / (2 * T), rel=0.1)


def test_shards_and_small_batches_take_less(dataset):
    s = Settings(micro_batch_size=64, block_size=16)
    with torch.device("meta"):
        model = GPT(GPTConfig(257, block_size=16, n_layer=2, n_head=2, n_embd=64))
    whole, shard, less = (
        plan.memory(replace(s, **change), model, "cuda", True, 2)
        for change in ({}, {"parallel": "fsdp"}, {"micro_batch_size": 1})
    )
    assert (shard.weights, shard.muon) == (
        whole.weights / 2,
        whole.muon / 2,
    ) and shard.copy == whole.copy
    assert less.peak < whole.peak and less.activations < whole.activations
    assert whole.muon + whole.adamw / 2 == whole.weights == 4 * model.n_params()


def test_the_rules_pass_through_the_recipe_they_are_scaled_from():
    with torch.device("meta"):
        model = GPT(GPTConfig(n_head=6))
    s = Settings(tokens=2_500_000_000, **RULES)
    said = plan.derive(s, model)
    assert (s.batch_size, s.max_steps, s.tokens) == (512, 4769, 0)
    assert (s.learning_rate, s.muon_learning_rate, s.weight_decay) == (0.004, 0.02, 0.1)
    assert len(said) == 5 and all("arXiv" in line for line in said if "max_steps" not in line)
    chinchilla = Settings(**RULES)
    plan.derive(chinchilla, model)
    seen = chinchilla.max_steps * chinchilla.batch_size * 1024
    assert seen == pytest.approx(20 * (model.n_params() - 50304 * 768), rel=1e-3)


@given(
    st.integers(10**4, 10**13), st.sampled_from([64, 768, 4096]), st.sampled_from([64, 1024, 8192])
)
def test_rules_give_a_run_that_reads_the_tokens_asked_for(tokens, n_embd, block_size):
    with torch.device("meta"):
        model = GPT(GPTConfig(100, block_size=8, n_layer=1, n_head=1, n_embd=n_embd))
    s = Settings(tokens=tokens, block_size=block_size, n_embd=n_embd, **RULES)
    plan.derive(s, model)
    step = s.batch_size * block_size
    assert 0 <= s.max_steps * step - tokens < step and math.log2(s.batch_size) % 1 == 0
    assert 0 < s.learning_rate < 1 and 0 < s.muon_learning_rate < 1
    again = replace(s)
    assert plan.derive(again, model) == [] and again == s, "what is settled stays"


def test_a_run_by_rules_says_them_and_repeats_by_its_settings(dataset, tmp_path, capsys):
    words = arguments(
        dataset, tmp_path / "run", batch_size=4, max_steps=0, muon_learning_rate=0, sample_tokens=0
    )
    assert train.main([*words, "--tokens=300"]) == 0
    assert "max_steps 5: 300 tokens, 64 a step" in capsys.readouterr().err
    written = tomllib.loads((tmp_path / "run" / "settings.toml").read_text())
    assert (written["max_steps"], written["tokens"]) == (5, 0) and 0 < written[
        "muon_learning_rate"
    ] < 0.02


SHAPES = {
    "tiny": dict(n_layer=2, n_embd=64, block_size=64, batch_size=16),
    "10M": dict(n_layer=6, n_embd=384, n_head=6, block_size=256, batch_size=8, optimizer="adamw"),
    "large vocabulary": dict(n_layer=4, n_embd=256, n_head=4, block_size=128, batch_size=16),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the heap's habits are glibc's")
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_known_within_15_percent(shape, tmp_path, monkeypatch):
    for name, value in ONE_THREAD.items():
        monkeypatch.setenv(name, value)
    tokenizer = "gpt2" if "vocabulary" in shape else "byte"
    if tokenizer == "gpt2" and not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("TIKTOKEN_CACHE_DIR does not hold the gpt2 vocabulary")
    data = make_dataset(tmp_path / "data", tokenizer)
    words = arguments(
        data, tmp_path / "run", micro_batch_size=0, max_steps=4, eval_interval=2, **SHAPES[shape]
    )
    command = [sys.executable, str(ROOT / "train.py"), *words]
    said, *_ = run_child([*command, "--dry_run"], tmp_path)
    amount, unit = re.search(r"^memory +([\d.,]+) (GB|MB)", said, re.M).groups()
    estimate = float(amount.replace(",", "")) * {"GB": 1e9, "MB": 1e6}[unit]
    peaks = []  # of up to three runs: how far a save has come when a step takes most differs
    while len(peaks) < 3 and not any(estimate == pytest.approx(peak, rel=0.15) for peak in peaks):
        run_child([*command, "--overwrite=true"], tmp_path)
        peaks.append(max(row["memory"] for row in rows(tmp_path / "run")))
    assert estimate == pytest.approx(max(peaks), rel=0.15)
