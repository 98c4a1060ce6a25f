"""What lathe/optim promises: Muon's algebra, groups, decay, saved states and schedules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.optim.adamw import AdamW
from lathe.optim.build import build_optimizers, load_optimizer_state, optimizer_state
from lathe.optim.muon import POLAR_EXPRESS, Muon, orthogonalize
from lathe.optim.optimizer import Optimizer
from lathe.optim.schedule import lr_factor, set_rates
from model import CHOICES, GPT, GPT2, GPTConfig

CLASSIC = (
    (3.4445, -4.7750, 2.0315),
) * 5  # Jordan et al. 2024, kellerjordan.github.io/posts/muon; torch's
EXACT = ((2.0, -1.5, 0.5),) * 12  # slow, and the true polar factor
SMALL = dict(vocab_size=61, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
FAMILIES = {"modern": dict(SMALL, norm_weight=True), "gpt2": dict(SMALL, **GPT2)}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
kinds = pytest.mark.parametrize("kind", ("muon", "adamw"))
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


def with_gradients(*shapes: tuple[int, int]) -> list[torch.Tensor]:
    parameters = [torch.randn(shape).requires_grad_() for shape in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return parameters


def copies(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    twins = [p.detach().clone().requires_grad_() for p in parameters]
    for twin, p in zip(twins, parameters, strict=True):
        twin.grad = p.grad.clone()
    return twins


def built(model: GPT, kind: str = "muon", **changes) -> list[Optimizer]:
    rest = dict(
        learning_rate=3e-3,
        muon_learning_rate=0.02,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        muon_momentum=0.95,
    )
    return build_optimizers(
        model.named_parameters(), kind, **{**rest, **changes}, fused_rows=model.fused_rows()
    )


# ---- orthogonalisation ----


@pytest.mark.parametrize(
    "coefficients, smallest, low, high",
    [
        (CLASSIC, 1e-3, 0.47, 1.20),
        (CLASSIC, 3e-3, 0.68, 1.20),
        (CLASSIC, 1e-2, 0.68, 1.13),
        (POLAR_EXPRESS, 1e-3, 0.85, 1.14),
        (POLAR_EXPRESS, 3e-3, 0.86, 1.14),
        (POLAR_EXPRESS, 1e-2, 0.86, 1.14),
        (EXACT, 3e-3, 1.0, 1.0),
    ],
)
def test_singular_values_come_into_the_band(coefficients, smallest, low, high):
    """Whatever they were between `smallest` and 1, as shares of the Frobenius norm."""
    inner = torch.logspace(math.log10(smallest), math.log10(0.3), 48, dtype=torch.float64)
    values = torch.cat((inner, (1 - inner.square().sum()).sqrt().view(1)))
    left, right = (torch.linalg.qr(torch.randn(n, 49, dtype=torch.float64))[0] for n in (49, 80))
    x = ((left * values) @ right.T).float()
    # Rounding to bfloat16 alone moves singular values of 1e-3 by a good part of themselves.
    for dtype, slack in ((torch.float32, 0.01), (torch.bfloat16, 0.015))[
        : 1 if smallest < 3e-3 else 2
    ]:
        result = torch.linalg.svdvals(orthogonalize(x[None].to(dtype), coefficients)[0].float())
        assert low - slack <= result.min() and result.max() <= high + slack


def test_enough_iterations_give_the_nearest_orthogonal_matrix():
    x = torch.randn(3, 24, 64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(orthogonalize(x, EXACT), u @ v, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "coefficients, rms", ((CLASSIC, 0.87), (POLAR_EXPRESS, 1.03), (EXACT, 1.0))
)
def test_a_gaussian_matrix_comes_out_at_the_known_size(coefficients, rms):
    x = orthogonalize(torch.randn(1, 128, 512), coefficients)
    assert x.norm().item() / math.sqrt(128) == pytest.approx(rms, abs=0.01)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.floats(1e-3, 1e4),
    st.sampled_from((CLASSIC, POLAR_EXPRESS)),
)
def test_orthogonalisation_knows_neither_side_nor_size_nor_sign(m, n, scale, coefficients):
    x = torch.randn(2, m, n)
    y = orthogonalize(x, coefficients)
    torch.testing.assert_close(orthogonalize(x.mT, coefficients).mT, y, rtol=0, atol=1e-3)
    torch.testing.assert_close(orthogonalize(x * scale, coefficients), y, rtol=0, atol=1e-3)
    torch.testing.assert_close(orthogonalize(-x, coefficients), -y, rtol=0, atol=1e-5)


# ---- AdamW ----


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


# ---- Muon ----


@pytest.mark.parametrize("shape", ((32, 64), (64, 32), (48, 48)))
def test_five_steps_equal_torchs_muon(shape):
    """Its iterations run in bfloat16 and its norm has no safety margin: the first polynomial takes ours back out."""
    first = tuple(c * 1.02**power for c, power in zip(CLASSIC[0], (1, 3, 5), strict=True))
    ours, theirs = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)).div(8) for _ in range(2)
    )
    start = ours.clone()
    a = Muon(
        [ours.requires_grad_()], 0.02, 0.95, 0.1, None, (first, *CLASSIC[1:]), False, torch.bfloat16
    )
    b = torch.optim.Muon([theirs.requires_grad_()], lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert (ours - theirs).norm() <= 2e-3 * theirs.norm()
    assert (ours - theirs).norm() <= 0.02 * (theirs - start).norm()  # of the way that both went


@pytest.mark.parametrize("coefficients, size", ((CLASSIC, 0.87), (POLAR_EXPRESS, 1.03)))
@pytest.mark.parametrize("m, n", ((128, 512), (512, 128)))
def test_an_update_has_the_size_that_its_shape_and_rate_say(coefficients, size, m, n):
    (p,) = with_gradients((m, n))
    before = p.detach().clone()
    Muon([p], lr=0.3, coefficients=coefficients).step()
    expected = 0.3 * math.sqrt(min(m, n) * max(1, m / n)) * size
    assert (p - before).norm().item() == pytest.approx(expected, rel=0.02)


def test_an_update_goes_down_the_gradient_whatever_its_scale():
    (p,) = with_gradients((16, 40))
    (q,) = copies([p])
    q.grad *= 1000
    before = p.detach().clone()
    for x in (p, q):
        Muon([x]).step()
    assert ((p - before) * p.grad).sum() < 0
    torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


def test_stacked_parameters_move_as_each_would_alone():
    together = with_gradients((16, 32), (32, 16), (16, 32), (16, 16), (8, 40), (32, 16))
    alone = copies(together)
    stacked, singles = (
        Muon(together, weight_decay=0.1),
        [Muon([p], weight_decay=0.1) for p in alone],
    )
    for _ in range(3):
        for p, q in zip(together, alone, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in (stacked, *singles):
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", ((32, 32, 32), (32, 16, 16), (96, 96), (32, 8, 8)))
def test_fused_rows_move_as_separate_matrices_would(rows):
    parts = with_gradients(*((r, 32) for r in rows))
    other, fused = with_gradients(
        (24, 32), (sum(rows), 32)
    )  # another parameter first: `rows` counts positions
    with torch.no_grad():
        fused.copy_(torch.cat(parts))
    fused.grad = torch.cat([p.grad for p in parts])
    before = fused.detach().clone()
    Muon([other, fused], weight_decay=0.1, rows={1: rows}).step()
    Muon(parts, weight_decay=0.1).step()
    torch.testing.assert_close(fused, torch.cat(parts), rtol=0, atol=1e-5)
    whole = before.clone().requires_grad_()
    whole.grad = fused.grad
    Muon([whole], weight_decay=0.1).step()
    assert not torch.allclose(whole, fused, atol=1e-3)  # which is not what one tall matrix does


def test_a_parameter_without_a_gradient_is_left_alone_and_keeps_the_rows_of_the_others():
    first, fused = with_gradients((16, 32), (64, 32))
    (twin,) = copies([fused])
    first.grad = None
    before = first.detach().clone()
    optimizer = Muon([first, fused], weight_decay=0.1, rows={1: (32, 32)})
    optimizer.step()
    Muon([twin], weight_decay=0.1, rows={0: (32, 32)}).step()
    assert torch.equal(first, before) and first not in optimizer.state
    torch.testing.assert_close(fused, twin, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cautious", (False, True))
def test_a_gradient_of_zeros_only_decays(cautious):
    """And cautious decay has then nothing to go along with."""
    p = torch.randn(8, 12, requires_grad=True)
    before, p.grad = p.detach().clone(), torch.zeros(8, 12)
    Muon([p], lr=0.1, weight_decay=0.5, cautious=cautious).step()
    torch.testing.assert_close(
        p.detach(), before * (1 if cautious else 1 - 0.1 * 0.5), rtol=1e-6, atol=0
    )


def test_cautious_decay_acts_only_where_the_update_shrinks_the_weight():
    (plain,) = with_gradients((16, 24))
    (decayed,) = copies([plain])
    before = plain.detach().clone()
    Muon([plain], lr=0.1).step()
    Muon([decayed], lr=0.1, weight_decay=0.5).step()
    update = before - plain.detach()
    agree = update * before > 0
    assert 0.3 < agree.float().mean() < 0.7
    torch.testing.assert_close(
        decayed.detach(), plain - 0.1 * 0.5 * before * agree, rtol=0, atol=1e-6
    )
    assert torch.equal(decayed[~agree], plain[~agree])


@pytest.mark.parametrize("shape", ((5,), (), (2, 3, 4)))
def test_muon_refuses_what_is_no_matrix(shape):
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.zeros(shape, requires_grad=True)])


@pytest.mark.parametrize("shape", ((16, 8), (8, 16)))
def test_muon_solves_a_regression(shape):
    truth, x = torch.randn(shape), torch.randn(200, shape[1])
    w = torch.zeros(shape, requires_grad=True)
    optimizer = Muon([w], lr=0.2)
    losses = []
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 120)
        optimizer.zero_grad()
        loss = (x @ (w - truth).T).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


# ---- groups ----


@kinds
@settings(max_examples=40, deadline=None, derandomize=True)
@given(config=configs)
def test_every_parameter_is_in_exactly_one_group_under_its_name(kind, config):
    model = GPT(config)
    named = dict(model.named_parameters())
    groups = [g for o in built(model, kind) for g in o.param_groups]
    assert sorted(n for g in groups for n in g["names"]) == sorted(named)
    for g in groups:
        assert all(named[n] is p for n, p in zip(g["names"], g["params"], strict=True))


@settings(max_examples=40, deadline=None, derandomize=True)
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
@settings(max_examples=40, deadline=None, derandomize=True)
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
    with pytest.raises(ValueError, match="optimizer is 'sgd': choose muon or adamw"):
        built(GPT(GPTConfig(**SMALL)), "sgd")


# ---- saved states ----


def train(model: GPT, optimizers: list[Optimizer], steps: range):
    for step in steps:
        idx = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(step))
        set_rates(optimizers, lr_factor(step, 8, "wsd", 2, 0.5, 0.1))
        model.zero_grad()
        model(idx[:, :-1], idx[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()


@families
@kinds
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
    ends, starts = optimizer_state(a), optimizer_state(c)
    assert ends.keys() == starts.keys() == dict(straight.named_parameters()).keys()
    assert all(torch.equal(ends[n][k], starts[n][k]) for n in ends for k in ends[n])
    assert not torch.equal(
        straight.head_weight, stopped.head_weight
    )  # the second half did something


def test_a_loaded_state_is_a_copy():
    model, twin = GPT(GPTConfig(**SMALL)), GPT(GPTConfig(**SMALL))
    a, b = built(model), built(twin)
    train(model, a, range(2))
    state = optimizer_state(a)
    before = {name: {k: v.clone() for k, v in tensors.items()} for name, tensors in state.items()}
    load_optimizer_state(b, state)
    train(twin, b, range(2, 4))
    assert all(torch.equal(before[n][k], state[n][k]) for n in state for k in state[n])


@pytest.mark.parametrize("written, read", (("muon", "adamw"), ("adamw", "muon")))
def test_a_state_of_another_optimizer_is_refused_in_one_line(written, read):
    model = GPT(GPTConfig(**SMALL))
    optimizers = built(model, written)
    train(model, optimizers, range(1))
    with pytest.raises(
        ValueError, match="transformer.h.0.* another optimizer; give that --optimizer"
    ) as error:
        load_optimizer_state(built(model, read), optimizer_state(optimizers))
    assert "\n" not in str(error.value)


@kinds
def test_a_state_of_another_model_is_refused_by_parameter(kind):
    model, wider = GPT(GPTConfig(**SMALL)), GPT(GPTConfig(**dict(SMALL, n_embd=48)))
    optimizers = built(model, kind)
    train(model, optimizers, range(1))
    with pytest.raises(ValueError, match=r"for transformer\.\S+:"):
        load_optimizer_state(built(wider, kind), optimizer_state(optimizers))


# ---- schedules ----

runs = dict(
    max_steps=st.integers(1, 5000),
    warmup=st.integers(0, 2000),
    decay=st.floats(0, 1),
    low=st.floats(0, 1),
    schedule=st.sampled_from(("wsd", "cosine", "constant")),
)
many = settings(max_examples=200, deadline=None, derandomize=True)


@many
@given(st.data(), *runs.values())
def test_the_rate_stays_between_its_bounds(data, max_steps, warmup, decay, low, schedule):
    step = data.draw(st.integers(0, max_steps - 1))
    factor = lr_factor(step, max_steps, schedule, warmup, decay, low)
    assert 0 <= factor <= 1
    assert factor > 0 or low == 0
    if step >= max_steps // 5:  # warmup takes at most a fifth of the run
        assert factor >= low - 1e-12
    if step >= min(warmup, max_steps // 5):
        assert lr_factor(step + 1, max_steps, schedule, warmup, decay, low) <= factor + 1e-12


@many
@given(*runs.values())
def test_the_rate_ends_at_its_minimum(max_steps, warmup, decay, low, schedule):
    """The step behind the last would have it: the last update is one decrement above."""
    end = lr_factor(max_steps, max_steps, schedule, warmup, decay, low)
    assert end == pytest.approx(1.0 if schedule == "constant" else low, abs=1e-9)
    if schedule == "wsd":
        last = lr_factor(max_steps - 1, max_steps, schedule, 0, decay, low)
        assert last - low <= (1 - low) / max(1.0, decay * max_steps) + 1e-9


@many
@given(st.data(), *runs.values())
def test_warmup_is_linear_and_starts_above_zero(data, max_steps, warmup, decay, low, schedule):
    rises = min(warmup, max_steps // 5)
    step = data.draw(st.integers(0, rises))
    assert lr_factor(step, max_steps, "constant", warmup, decay, low) == pytest.approx(
        (step + 1) / (rises + 1)
    )
    late = data.draw(st.integers(rises, max_steps))
    assert lr_factor(late, max_steps, "constant", warmup, decay, low) == 1


@many
@given(st.data(), *runs.values())
def test_wsd_is_flat_and_then_a_straight_line(data, max_steps, warmup, decay, low, schedule):
    bend = max_steps - max(1.0, decay * max_steps)
    step = data.draw(st.integers(min(warmup, max_steps // 5), max_steps))
    line = 1.0 if step <= bend else low + (1 - low) * (max_steps - step) / (max_steps - bend)
    assert lr_factor(step, max_steps, "wsd", warmup, decay, low) == pytest.approx(line)


@many
@given(st.integers(1, 1000), st.integers(0, 500), st.floats(0, 1))
def test_cosine_is_half_way_down_at_half_the_way_behind_warmup(quarter, warmup, low):
    warmup = min(warmup, quarter)  # at most a fifth of the run
    rate = [
        lr_factor(warmup + i * quarter, warmup + 4 * quarter, "cosine", warmup, 0.2, low)
        for i in range(5)
    ]
    down = (1 + math.sqrt(0.5)) / 2  # a quarter of the way
    assert rate == pytest.approx([low + (1 - low) * x for x in (1, down, 0.5, 1 - down, 0)])


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="lr_schedule is 'linear': choose wsd, cosine or constant"):
        lr_factor(5, 10, "linear", 0, 0.2, 0.0)


def test_setting_the_rates_scales_every_base_rate():
    muon, adamw = optimizers = built(GPT(GPTConfig(**FAMILIES["gpt2"])))
    for factor in (0.5, 1.0, 0.1):
        set_rates(optimizers, factor)
        assert muon.param_groups[0]["lr"] == 0.02 * factor
        assert {g["lr"] for g in adamw.param_groups} == {3e-3 * factor}


# ---- the two together ----


@families
@kinds
def test_a_model_learns_one_batch_with_either_optimizer(family, kind):
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


# ---- the same on a GPU ----


@gpu
@needs_cuda
def test_muon_on_a_gpu_in_bfloat16_follows_the_cpu_in_float32():
    shapes = ((64, 128), (128, 64), (192, 64), (64, 128))
    cpu = with_gradients(*shapes)
    device = [p.detach().cuda().requires_grad_() for p in cpu]
    before = [p.detach().clone() for p in cpu]
    a, b = (Muon(ps, weight_decay=0.1, rows={2: (64, 64, 64)}) for ps in (cpu, device))
    for _ in range(5):
        for p, q in zip(cpu, device, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.cuda()
        a.step()
        b.step()
    for p, q, start in zip(cpu, device, before, strict=True):
        assert (p - q.cpu()).norm() <= 0.06 * (p - start).norm()


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
