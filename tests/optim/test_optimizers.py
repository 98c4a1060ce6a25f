"""What all optimizers promise: groups, decay, saved states, updates left out."""

import math

import pytest
import torch
from gradients import with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.optim.adamw import AdamW
from lathe.optim.build import (
    build_optimizers,
    decay_groups,
    load_optimizer_state,
    optimizer_kinds,
    optimizer_state,
)
from lathe.optim.muon import Muon
from lathe.optim.optimizer import Optimizer, TorchOptimizer
from lathe.optim.schedule import lr_factor, set_rates
from model import CHOICES, GPT, GPT2, GPTConfig

SMALL = dict(vocab_size=61, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
FAMILIES = {"modern": dict(SMALL, norm_weight=True), "gpt2": dict(SMALL, **GPT2)}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
kinds = pytest.mark.parametrize("kind", ("muon", "adamw"))
# Of torch.optim: what keeps two moments and numbers, what keeps one moment, what keeps nothing.
TORCHS = {
    "NAdam": (torch.optim.NAdam, dict(lr=3e-3, betas=(0.9, 0.95)), "exp_avg"),
    "momentum": (torch.optim.SGD, dict(lr=0.1, momentum=0.9), "momentum_buffer"),
    "SGD": (torch.optim.SGD, dict(lr=1.0), ""),
}
all_kinds = pytest.mark.parametrize("kind", ("muon", "adamw", *TORCHS))
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

configs = st.builds(
    GPTConfig,
    **{name: st.just(value) for name, value in SMALL.items()},
    **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
    norm_weight=st.booleans(),
    qk_norm=st.booleans(),
    bias=st.booleans(),
    tie_weights=st.booleans(),
)


pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def built(model: GPT, kind: str = "muon", **changes) -> list[Optimizer | TorchOptimizer]:
    rest = dict(
        learning_rate=3e-3,
        muon_learning_rate=0.02,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        muon_momentum=0.95,
    )
    if kind in TORCHS:
        make, options, state_name = TORCHS[kind]
        groups = decay_groups(dict(model.named_parameters()), options["lr"], weight_decay=1e-3)
        return [TorchOptimizer(make(groups, **options), state_name)]
    return build_optimizers(
        model.named_parameters(), kind, **{**rest, **changes}, fused_rows=model.fused_rows()
    )


# -----------------------------------------------------------------------------
# AdamW, and what it has in common with Muon


def test_adamw_equals_torchs_also_without_some_gradients():
    ours = [p.requires_grad_() for p in (torch.randn(24, 16), torch.randn(16), torch.randn(8, 3))]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    a, b = (
        kind(
            [dict(params=p[:1], weight_decay=0.1), dict(params=p[1:], weight_decay=0.0)],
            lr=3e-3,
            betas=(0.8, 0.95),
        )
        for kind, p in ((AdamW, ours), (torch.optim.AdamW, theirs))
    )
    for step in range(6):
        for p, twin in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            twin.grad = p.grad.clone()
        if step == 3:
            ours[2].grad = theirs[2].grad = None
        a.step()
        b.step()
    for p, twin in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, twin, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(a.state[p]["exp_avg_sq"], b.state[twin]["exp_avg_sq"])
    a.zero_grad()
    assert all(p.grad is None for p in ours)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_an_update_that_a_device_skips_by_itself_leaves_no_trace(kind, bad):
    def build():
        params = [
            torch.full((8, 4), 0.5, requires_grad=True),
            torch.full((4, 8), -0.5, requires_grad=True),
        ]
        if kind == "muon":
            return params, Muon(params, weight_decay=0.1, rows={0: (4, 4)})
        return params, AdamW([dict(params=params)], weight_decay=0.1)

    (masked, a), (plain, b) = build(), build()
    for step, skip in enumerate((True, False, True, False)):  # also where there is no state yet
        for p, twin in zip(masked, plain, strict=True):
            twin.grad = torch.randn_like(p)
            p.grad = twin.grad.clone()
            p.grad[1] = bad if skip else p.grad[1]
        with torch.no_grad():
            a.update(a.param_groups[0], torch.tensor(skip))
        if not skip:
            b.step()
        for p, twin in zip(masked, plain, strict=True):
            assert torch.equal(p, twin), step
            assert all(torch.equal(a.state[p][key], value) for key, value in b.state[twin].items())
        b.step(torch.tensor(True))  # which a CPU knows beforehand
    assert torch.equal(masked[0], plain[0])


@pytest.mark.parametrize("kind", TORCHS)
def test_torchs_optimizers_leave_an_update_out_if_asked(kind):
    model = GPT(GPTConfig(**SMALL))
    optimizers = built(model, kind)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    idx = torch.randint(61, (4, 17))
    for skip in (torch.tensor(True), torch.tensor(False)):
        model(idx[:, :-1], idx[:, 1:]).backward()
        optimizers[0].step(skip)
        optimizers[0].zero_grad()
        assert all(p.grad is None for p in model.parameters())
        same = [torch.equal(p, before[name]) for name, p in model.named_parameters()]
        assert all(same) == bool(skip)
        assert bool(optimizer_state(optimizers)) == (not skip and kind != "SGD")


def test_a_gradient_scaler_drives_our_optimizers():
    (p,), scaler = with_gradients((8, 8)), torch.amp.GradScaler("cpu", init_scale=16.0)
    start, unscaled, optimizer = p.detach().clone(), p.grad.clone(), AdamW([dict(params=[p])])
    p.grad = p.grad * scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)
    torch.testing.assert_close(p.grad, unscaled)
    scaler.step(optimizer)
    scaler.update()
    stepped = p.detach().clone()
    assert not torch.equal(stepped, start)
    p.grad[0, 0] = math.inf
    scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert torch.equal(p, stepped)  # a gradient that is not finite is left out


# -----------------------------------------------------------------------------
# Groups


@kinds
@settings(max_examples=40, derandomize=True)
@given(config=configs)
def test_every_parameter_is_in_exactly_one_group_under_its_name(kind, config):
    model = GPT(config)
    named = dict(model.named_parameters())
    groups = [g for o in built(model, kind) for g in o.param_groups]
    assert sorted(n for g in groups for n in g["names"]) == sorted(named)
    for g in groups:
        assert all(named[n] is p for n, p in zip(g["names"], g["params"], strict=True))


@settings(max_examples=40, derandomize=True)
@given(config=configs)
def test_muon_gets_the_matrices_inside_the_blocks(config):
    muon, adamw = built(GPT(config))
    (group,) = muon.param_groups
    assert len(group["names"]) == 4 * config.n_layer
    assert all(n.startswith("transformer.h.") and n.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
               for n in group["names"])  # fmt: skip
    assert muon.rows.keys() == {
        i for i, n in enumerate(group["names"]) if n in GPT(config).fused_rows()
    }
    assert (group["base_lr"], group["momentum"]) == (0.02, 0.95)
    assert all(g["base_lr"] == 3e-3 and "momentum" not in g for g in adamw.param_groups)


@kinds
@settings(max_examples=40, derandomize=True)
@given(config=configs)
def test_decay_falls_on_matrices_only(kind, config):
    for optimizer in built(GPT(config), kind):
        for group in optimizer.param_groups:
            assert {p.dim() >= 2 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_frozen_parameters_are_left_out():
    model = GPT(GPTConfig(**FAMILIES["gpt2"]))
    model.transformer.wte.requires_grad_(False)
    names = [n for o in built(model) for g in o.param_groups for n in g["names"]]
    assert "transformer.wte.weight" not in names and len(names) == len(list(model.parameters())) - 1
    for p in model.transformer.h.parameters():
        p.requires_grad_(False)
    assert [type(o).__name__ for o in built(model)] == ["AdamW"]  # nothing is left for Muon


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="optimizer is 'lion': choose muon or adamw"):
        built(GPT(GPTConfig(**SMALL)), "lion")


# -----------------------------------------------------------------------------
# Saved states


def train(model: GPT, optimizers: list[Optimizer], steps: range):
    for step in steps:
        idx = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(step))
        set_rates(optimizers, lr_factor(step, 8, "wsd", 2, 0.5, 0.1))
        model.zero_grad()
        model(idx[:, :-1], idx[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()


@families
@all_kinds
def test_a_state_saved_mid_run_continues_bit_for_bit(family, kind, tmp_path):
    straight = GPT(GPTConfig(**family))
    stopped = GPT(GPTConfig(**family))
    stopped.load_state_dict(straight.state_dict())
    a, b = built(straight, kind), built(stopped, kind)
    train(straight, a, range(8))
    train(stopped, b, range(4))
    torch.save(
        {"weights": stopped.state_dict(), "optimizer": optimizer_state(b)},
        tmp_path / "optimizer.pt",
    )
    held = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    resumed = GPT(GPTConfig(**family))
    resumed.load_state_dict(held["weights"])
    c = built(resumed, kind)
    load_optimizer_state(c, held["optimizer"])
    train(resumed, c, range(4, 8))
    for name, p in straight.state_dict().items():
        assert torch.equal(p, resumed.state_dict()[name]), name
    expected, found = optimizer_state(a), optimizer_state(c)
    names = [] if kind == "SGD" else [name for name, _ in straight.named_parameters()]
    assert sorted(expected) == sorted(found) == sorted(names)
    for name in names:
        assert expected[name].keys() == found[name].keys()
        for key in expected[name]:
            assert torch.equal(expected[name][key], found[name][key]), (name, key)
    assert not torch.equal(straight.head_weight, stopped.head_weight)  # the second half did much


@all_kinds
def test_a_loaded_state_is_a_copy(kind):
    model, twin = GPT(GPTConfig(**SMALL)), GPT(GPTConfig(**SMALL))
    a, b = built(model, kind), built(twin, kind)
    train(model, a, range(2))
    state = optimizer_state(a)
    before = {name: {k: v.clone() for k, v in tensors.items()} for name, tensors in state.items()}
    load_optimizer_state(b, state)
    train(twin, b, range(2, 4))
    assert all(torch.equal(before[n][k], state[n][k]) for n in state for k in state[n])


@pytest.mark.parametrize(
    "written, read",
    (
        ("muon", "adamw"),
        ("adamw", "muon"),
        ("muon", "NAdam"),
        ("adamw", "momentum"),
        ("NAdam", "muon"),
        ("NAdam", "adamw"),
    ),
)
def test_a_state_of_another_optimizer_is_refused_in_one_line(written, read):
    model = GPT(GPTConfig(**SMALL))
    optimizers = built(model, written)
    train(model, optimizers, range(1))
    with pytest.raises(
        ValueError, match=r"transformer\.\S+: .* another optimizer; give that --optimizer"
    ) as error:
        load_optimizer_state(built(model, read), optimizer_state(optimizers))
    assert "\n" not in str(error.value)


def test_a_state_whose_tensors_have_the_same_names_is_known_by_its_optimizer():
    """RAdam's and AdamW's are called alike; a checkpoint says which it is."""
    model = GPT(GPTConfig(**SMALL))
    groups = decay_groups(dict(model.named_parameters()), 1e-3, weight_decay=0.0)
    radam = [TorchOptimizer(torch.optim.RAdam(groups), "exp_avg")]
    train(model, radam, range(1))
    kinds = optimizer_kinds(radam)
    assert kinds["transformer.wte.weight"] == "RAdam"
    with pytest.raises(ValueError, match="no AdamW state for .* was written with RAdam") as error:
        load_optimizer_state(built(model, "adamw"), optimizer_state(radam), kinds)
    assert "\n" not in str(error.value)
    load_optimizer_state(radam, optimizer_state(radam), kinds)


@pytest.mark.parametrize("kind", ("muon", "adamw", "NAdam", "momentum"))
def test_a_state_of_another_model_is_refused_by_parameter(kind):
    model, wider = GPT(GPTConfig(**SMALL)), GPT(GPTConfig(**dict(SMALL, n_embd=48)))
    optimizers = built(model, kind)
    train(model, optimizers, range(1))
    with pytest.raises(ValueError, match=r"for transformer\.\S+:"):
        load_optimizer_state(built(wider, kind), optimizer_state(optimizers))


# -----------------------------------------------------------------------------
# Training


def test_setting_the_rates_scales_every_base_rate():
    muon, adamw = optimizers = built(GPT(GPTConfig(**FAMILIES["gpt2"])))
    for factor in (0.5, 1.0, 0.1):
        set_rates(optimizers, factor)
        assert muon.param_groups[0]["lr"] == 0.02 * factor
        assert {g["lr"] for g in adamw.param_groups} == {3e-3 * factor}


@families
@all_kinds
def test_a_model_learns_one_batch_with_any_optimizer(family, kind):
    model = GPT(GPTConfig(**family))
    optimizers, idx = built(model, kind), torch.randint(61, (4, 17))
    for step in range(60):
        set_rates(optimizers, lr_factor(step, 60, "wsd", 5, 0.5, 0.0))
        model.zero_grad()
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert loss.item() < 0.5 * math.log(61)


# -----------------------------------------------------------------------------
# The same on a GPU


@gpu
@needs_cuda
@kinds
def test_a_state_saved_on_a_gpu_continues_there(kind, tmp_path):
    straight, resumed = (GPT(GPTConfig(**SMALL)).cuda() for _ in range(2))
    a, b = built(straight, kind), built(resumed, kind)
    batch = torch.randint(61, (4, 16), device="cuda")

    def update(model, optimizers):
        model.zero_grad()
        model(batch, batch).backward()
        for optimizer in optimizers:
            optimizer.step()

    for _ in range(3):
        update(straight, a)
    torch.save(optimizer_state(a), tmp_path / "optimizer.pt")
    load_optimizer_state(
        b, torch.load(tmp_path / "optimizer.pt", map_location="cpu", weights_only=True)
    )
    resumed.load_state_dict(straight.state_dict())
    for model, optimizers in ((straight, a), (resumed, b)):
        update(model, optimizers)
    for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
