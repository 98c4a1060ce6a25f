"""What a plan promises: what a run takes, known before it is trained, and settings by its size."""

import math
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import arguments, rows, settings
from torch.profiler import ProfilerActivity, profile

import train
from lathe import cli
from lathe.data.batches import epoch_sizes
from lathe.data.dataset import open_dataset
from lathe.optim.average import TailAverage
from lathe.optim.build import build_optimizers
from lathe.run import plan
from lathe.run.devices import Runtime
from lathe.run.memory import block_activations, step_memory
from lathe.run.plan import follow_rules, resolve
from lathe.settings import Settings
from lathe.use import lora
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
    assert found["vocabulary"].startswith("50,257, assumed") and "steps of" in found["time"]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_names_the_part_of_a_mixture_that_is_not_prepared(dataset, tmp_path, capsys):
    mixture = f"{dataset}:0.7,{tmp_path / 'data'}:0.3"
    found = dry_run(capsys, *arguments(mixture, tmp_path / "run"))
    assert found["vocabulary"].endswith(f"assumed: dataset {tmp_path / 'data'} is not prepared")


@pytest.mark.parametrize(
    ("epochs", "said"), [(0.5, "once at most"), (2, "read 2"), (300, "by heart")]
)
def test_epochs_decide_the_steps_and_are_said_before_them(epochs, said, dataset, tmp_path, capsys):
    found = dry_run(capsys, *arguments(dataset, tmp_path / "run"), f"--epochs={epochs}")
    sizes = epoch_sizes(open_dataset(dataset), 16, shifted=True)
    steps = math.ceil(sizes.samples(epochs) / 8)
    assert f" in {steps:,} steps;" in found["tokens"] and said in found["epochs"]
    read = float(found["epochs"].partition(":")[0])
    assert epochs <= read <= epochs + 8 / sizes.first + 0.006


def test_a_run_of_epochs_reads_so_often_and_says_so(dataset, tmp_path, capsys):
    asked = dict(block_size=64, batch_size=32, epochs=0.5, max_steps=5000)
    assert train.train(settings(dataset, tmp_path / "run", **asked)) == 0
    said = capsys.readouterr().err
    last = rows(tmp_path / "run")[-1]
    assert 0.5 <= last["epoch"] <= 0.5 + 32 / epoch_sizes(open_dataset(dataset), 64, True).first
    assert f"| epoch {last['epoch']:.2f} |" in said and "0.5 epochs of" in said
    assert said.index("time ") < said.index(" | loss ")  # before the first step
    assert cli.from_toml((tmp_path / "run" / "settings.toml").read_text())["epochs"] == 0


def test_epochs_are_refused_beside_tokens_and_where_nobody_knows_how_many_they_are(tmp_path):
    with pytest.raises(ValueError, match="tokens is 5 and epochs is 2: .* give one"):
        settings("data", tmp_path, tokens=5, epochs=2.0)
    with pytest.raises(ValueError, match="not prepared.*--tokens"):
        train.main(["--dry_run", f"--dataset={tmp_path / 'data'}", "--epochs=2"])


def test_what_a_checkpoint_takes_of_the_first_process_or_of_each(capsys):
    words = ("gpt2_124m", "--dataset=nowhere", "--gpus=8xh100")
    whole = dry_run(capsys, *words)["checkpoint"]
    shared = dry_run(capsys, *words, "--parallel=fsdp")["checkpoint"]
    on_disk, _, where = whole.partition(" GB on disk")
    assert "in the first process's memory" in where
    assert shared.startswith(f"{on_disk} GB on disk; each process writes ")
    of_each = float(re.search(r"writes (\d+) MB", shared)[1])
    assert 8 * of_each == pytest.approx(1000 * float(on_disk), rel=0.01)


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
    planned = block_activations(c, T, "none", half)
    assert planned == pytest.approx((kept(3) - kept(1)) / 2 / (2 * T), rel=0.1)


def test_shards_and_small_batches_take_less():
    with torch.device("meta"):
        model = GPT(GPTConfig(257, block_size=16, n_layer=2, n_head=2, n_embd=64))
    s = Settings(micro_batch_size=64, block_size=1024, device="cuda", dtype="bfloat16")
    whole = step_memory(s, model, 2)
    shard = step_memory(replace(s, parallel="fsdp"), model, 2)
    less = step_memory(replace(s, micro_batch_size=1), model, 2)
    assert shard.weights == whole.weights / 2
    assert shard.muon == whole.muon / 2
    assert shard.checkpoint == whole.checkpoint
    assert less.peak < whole.peak
    assert less.activations < whole.activations
    assert whole.muon + whole.adamw / 2 == whole.weights == 4 * model.n_params()


def test_averaged_weights_are_counted_where_they_are():
    with torch.device("meta"):
        model = GPT(GPTConfig(257, block_size=16, n_layer=2, n_head=2, n_embd=64))
    for device in ("cpu", "cuda"):
        s = Settings(micro_batch_size=1, block_size=16, device=device, dtype="float32")
        averaged = replace(s, average_fraction=0.1)
        without, whole = step_memory(s, model, 2), step_memory(averaged, model, 2)
        shard = step_memory(replace(averaged, parallel="fsdp"), model, 2)
        n_bytes = 4 * model.n_params()
        assert (without.average, whole.average, shard.average) == (0, n_bytes, n_bytes / 2)
        # And, in an evaluation, the last weights beside them
        assert n_bytes <= whole.peak - without.peak <= 2 * n_bytes
        assert whole.checkpoint == shard.checkpoint == without.checkpoint + n_bytes
    corrections = lora.adapt(model, 4, 8.0)
    of_lora = step_memory(replace(averaged, lora_rank=4), model, 1)
    assert of_lora.average == 4 * sum(t.numel() for t in corrections.values())


def live_bytes_at_most(s: Settings, config: GPTConfig) -> int:
    """Bytes of tensors that live at once in a step, by the counts of torch's allocator."""
    model = GPT(config)
    if s.lora_rank:
        lora.adapt(model, s.lora_rank, s.lora_alpha)
    average = TailAverage(model) if s.average_fraction else None
    rates = (0.01, 0.02, 0.1, (0.9, 0.95), 0.95)
    optimizers = build_optimizers(model.named_parameters(), s.optimizer, *rates, model.fused_rows())
    x = torch.randint(config.vocab_size, (s.micro_batch_size, s.block_size))

    def step():
        for _ in range(s.batch_size // s.micro_batch_size):
            with torch.autocast("cpu", torch.bfloat16, enabled=s.dtype == "bfloat16"):
                loss = model(x, x, reduction="sum")
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if average is None:
            return
        average.add(model)
        with average.in_place(model), torch.no_grad():
            model(x, x)

    step()  # after which the optimizers have their state
    state = [t for o in optimizers for tensors in o.state.values() for t in tensors.values()]
    averaged = average.weights.values() if average else []
    tensors = [*model.parameters(), *state, *averaged]
    live = sum(t.untyped_storage().nbytes() for t in tensors)
    most = live
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as counts:
        step()
    for event in counts.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()  # negative where a tensor goes
            most = max(most, live)
    return most


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "vocab_size, changes",
    [
        (257, {}),
        (257, dict(optimizer="adamw")),
        (257, dict(average_fraction=0.1)),
        (257, dict(average_fraction=0.1, lora_rank=64, optimizer="adamw")),
        (257, dict(micro_batch_size=2)),  # gradients stay from one micro-batch to the next
        (257, dict(block_size=32, micro_batch_size=4, batch_size=4)),  # Muon's step takes most
        (20_000, {}),  # the logits do
        (1024, dict(GPT2, optimizer="adamw")),
    ],
)
def test_memory_is_what_torch_counts_within_10_percent(vocab_size, changes, dtype, seeded):
    shape = dict(n_layer=3, n_head=4, n_embd=128, block_size=128, batch_size=8, micro_batch_size=8)
    s = Settings(**{**shape, "device": "cpu", "dtype": dtype, **changes})
    names = GPTConfig.__dataclass_fields__.keys() & asdict(s).keys()
    config = GPTConfig(vocab_size=vocab_size, **{name: getattr(s, name) for name in names})
    with torch.device("meta"):
        model = GPT(config)
        if s.lora_rank:
            lora.adapt(model, s.lora_rank, s.lora_alpha)
        planned = step_memory(s, model, 1)
    assert planned.peak == pytest.approx(live_bytes_at_most(s, config), rel=0.1)


# -----------------------------------------------------------------------------
# Rules


def test_the_rules_pass_through_the_recipe_they_are_scaled_from():
    with torch.device("meta"):
        model = GPT(GPTConfig(n_head=6))
    s, lines = follow_rules(Settings(tokens=2_500_000_000, **RULES), model)
    assert (s.batch_size, s.max_steps, s.tokens) == (512, 4769, 0)
    assert (s.learning_rate, s.muon_learning_rate, s.weight_decay) == (0.004, 0.02, 0.1)
    assert len(lines) == 5
    assert all("arXiv" in line for line in lines if "max_steps" not in line)
    chinchilla, _ = follow_rules(Settings(**RULES), model)
    seen = chinchilla.max_steps * chinchilla.batch_size * 1024
    assert seen == pytest.approx(20 * (model.n_params() - 50304 * 768), rel=1e-3)


@given(
    st.integers(10**4, 10**13), st.sampled_from([64, 768, 4096]), st.sampled_from([64, 1024, 8192])
)
def test_rules_give_a_run_that_reads_the_tokens_asked_for(tokens, n_embd, block_size):
    with torch.device("meta"):
        model = GPT(GPTConfig(100, block_size=8, n_layer=1, n_head=1, n_embd=n_embd))
    asked = Settings(tokens=tokens, block_size=block_size, n_embd=n_embd, **RULES)
    s, _ = follow_rules(asked, model)
    step = s.batch_size * block_size
    assert 0 <= s.max_steps * step - tokens < step
    assert math.log2(s.batch_size) % 1 == 0
    assert 0 < s.learning_rate < 1
    assert 0 < s.muon_learning_rate < 1
    assert follow_rules(s, model) == (s, []), "what is settled stays"


def test_a_run_by_rules_says_them_and_repeats_by_its_settings(dataset, tmp_path, capsys):
    words = arguments(
        dataset, tmp_path / "run", batch_size=4, max_steps=0, muon_learning_rate=0, sample_tokens=0
    )
    assert train.main([*words, "--tokens=300"]) == 0
    assert "max_steps 5: 300 tokens, 64 a step" in capsys.readouterr().err
    written = tomllib.loads((tmp_path / "run" / "settings.toml").read_text())
    assert (written["max_steps"], written["tokens"]) == (5, 0)
    assert 0 < written["muon_learning_rate"] < 0.02


# -----------------------------------------------------------------------------
# A plan and its run are one


def test_a_dry_run_decides_what_the_run_decides(dataset, tmp_path, capsys):
    words = arguments(
        dataset, tmp_path / "run", batch_size=0, micro_batch_size=0, max_steps=3, weight_decay=-1
    )
    planned = dry_run(capsys, *words)
    assert train.main(words) == 0
    said = capsys.readouterr().err
    assert f" tokens: {planned['step']}\n" in said
    assert f"\n{planned['derived']}\n" in said  # the last rule, for weight_decay
    written = tomllib.loads((tmp_path / "run" / "settings.toml").read_text())
    tokens = 3 * written["batch_size"] * 16
    assert planned["tokens"].startswith(f"{tokens:,} in 3 steps")


def test_what_was_chosen_is_said_in_one_line_and_each_rank_gets_its_share():
    runtime = Runtime(torch.device("cpu"), torch.float32, reasons=["device cpu", "float32"])
    s = Settings(n_layer=1, n_head=1, n_embd=16, block_size=16, batch_size=8, max_steps=1)
    with torch.device("meta"):
        model = GPT(GPTConfig(257, block_size=16, n_layer=1, n_head=1, n_embd=16))
    choices = resolve(s, runtime, model).describe_choices()
    assert choices.startswith("device cpu, float32, micro_batch_size 8 (all of a step), not comp")
    two = resolve(s, replace(runtime, world_size=2), model)
    assert "micro_batch_size 4 (all of a step)" in two.describe_choices()
    assert two.describe_choices().endswith("--compile=true to try), 2 processes")
    assert (two.settings.micro_batch_size, two.micro_steps) == (4, 1)
    assert s.micro_batch_size == 0


SMALL = dict(n_layer=1, n_head=1, n_embd=16, block_size=16, micro_batch_size=8, batch_size=16)
LARGE = dict(SMALL, n_embd=1024, block_size=1024, micro_batch_size=64, batch_size=128)


@pytest.mark.parametrize(
    "shape, changed, device, world_size, said",
    [
        (SMALL, {}, "cuda", 1, "no CUDA graph (launching kernels takes longer than they do; "),
        (LARGE, {}, "cuda", 1, ""),
        (SMALL, {"cuda_graphs": True}, "cuda", 1, "a CUDA graph a pass (as asked)"),
        (SMALL, {"cuda_graphs": True}, "cuda", 2, "no CUDA graph (it takes a process alone)"),
        (SMALL, {"cuda_graphs": True}, "cpu", 1, "no CUDA graph (it takes a GPU)"),
        (
            SMALL,
            {"cuda_graphs": True, "activation_checkpointing": "full"},
            "cuda",
            1,
            "no CUDA graph (activation_checkpointing",
        ),
    ],
)
def test_what_is_captured_is_said_with_why(shape, changed, device, world_size, said, monkeypatch):
    monkeypatch.setattr(plan, "peak_flops", lambda *_: 989e12)  # an H100's
    runtime = Runtime(torch.device(device), torch.bfloat16, world_size=world_size)
    s = Settings(compile="false", max_steps=1, **shape, **changed)
    size = {name: shape[name] for name in ("n_layer", "n_head", "n_embd", "block_size")}
    with torch.device("meta"):
        model = GPT(GPTConfig(257, **size))
    decided = resolve(s, runtime, model)
    assert decided.captured == said.startswith("a CUDA graph")
    assert any(said and choice.startswith(said) for choice in decided.choices) == bool(said)


def test_documents_need_memory_for_a_mask_only_uncompiled(tmp_path, capsys):
    """8,192 x 8,192 numbers of 16 bits for each of 2 sequences; GPUs compile unasked."""
    activations = {}
    for compile in ("false", "auto"):
        words = arguments(
            str(tmp_path / "data"), tmp_path / "run", document_mask=True, block_size=8192,
            dtype="bfloat16", compile=compile,
        )  # fmt: skip
        planned = dry_run(capsys, *words, "--gpus=H100")["activations"]
        number, unit = planned.split()
        activations[compile] = float(number) * {"MB": 1e6, "GB": 1e9}[unit]
    mask = activations["false"] - activations["auto"]
    assert mask == pytest.approx(2 * 8192**2 * 2, rel=0.05)


@pytest.fixture(scope="module")
def run_of_two_layers(dataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "two"
    assert train.main(arguments(dataset, out, max_steps=2)) == 0
    return out


def test_a_dry_run_is_of_the_network_that_the_weights_need(
    run_of_two_layers, dataset, tmp_path, capsys
):
    tuned = arguments(dataset, tmp_path / "other", init_from=run_of_two_layers, n_layer=7)
    assert "in 2 blocks of width 32" in dry_run(capsys, *tuned)["parameters"]
    adapted = dry_run(capsys, *tuned, "--lora_rank=2")
    assert "Muon" not in adapted
    assert first_number(adapted["parameters"]) > first_number(dry_run(capsys, *tuned)["parameters"])
    resumed = arguments(dataset, run_of_two_layers, init_from="resume", max_steps=4)
    assert dry_run(capsys, *resumed)["tokens"].startswith("512 in 4 steps")
    with pytest.raises(ValueError, match="n_layer 2 -> 3"):
        dry_run(capsys, *resumed, "--n_layer=3")


def test_a_dry_run_of_documents_needs_no_data(tmp_path, capsys):
    words = arguments(str(tmp_path / "data"), tmp_path / "run", document_mask=True)
    assert dry_run(capsys, *words)["vocabulary"].startswith("50,257, assumed")
