"""What Muon promises: its algebra, its size, its decay; the same among parameters as for each alone."""

import math
from functools import partial

import pytest
import torch
from gradients import copies, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from lathe.optim.muon import Muon
from lathe.optim.orthogonal import MARGIN, POLAR_EXPRESS, orthogonalize

# Jordan et al. 2024, kellerjordan.github.io/posts/muon; torch's
CLASSIC = ((3.4445, -4.7750, 2.0315),) * 5
EXACT = ((2.0, -1.5, 0.5),) * 12  # slow, and the true polar factor
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


# -----------------------------------------------------------------------------
# Orthogonalisation


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


@settings(max_examples=30, derandomize=True)
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


# -----------------------------------------------------------------------------
# Muon


@pytest.mark.parametrize("shape", ((32, 64), (64, 32), (48, 48)))
def test_five_steps_equal_torchs_muon_with_its_polynomials(shape, monkeypatch):
    """Its iterations run in bfloat16 and without a margin: the first polynomial takes ours out."""
    first = tuple(c * MARGIN**power for c, power in zip(CLASSIC[0], (1, 3, 5), strict=True))
    as_torchs = partial(orthogonalize, coefficients=(first, *CLASSIC[1:]))
    monkeypatch.setattr(
        "lathe.optim.orthogonal.orthogonalize", lambda x: as_torchs(x.bfloat16()).float()
    )
    ours = torch.randn(shape).div(8)
    theirs = ours.clone()
    start = ours.clone()
    a = Muon([ours.requires_grad_()], lr=0.02, momentum=0.95)
    b = torch.optim.Muon([theirs.requires_grad_()], lr=0.02, momentum=0.95, weight_decay=0)
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert (ours - theirs).norm() <= 2e-3 * theirs.norm()
    assert (ours - theirs).norm() <= 0.02 * (theirs - start).norm()  # of the way that both went


@pytest.mark.parametrize("m, n", ((128, 512), (512, 128)))
def test_an_update_has_the_size_that_its_shape_and_rate_say(m, n):
    (p,) = with_gradients((m, n))
    before = p.detach().clone()
    Muon([p], lr=0.3).step()
    expected = 0.3 * math.sqrt(min(m, n) * max(1, m / n)) * 1.03
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


def test_a_gradient_of_zeros_changes_nothing():
    """Decay has nothing then to go along with."""
    p = torch.randn(8, 12, requires_grad=True)
    before = p.detach().clone()
    p.grad = torch.zeros(8, 12)
    Muon([p], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(p, before)


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


def test_compiled_updates_are_the_plain_ones_whatever_the_rates(monkeypatch):
    """As on a GPU, where a step may be skipped; with nothing compiled anew for another rate."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    params = [torch.randn(shape) for shape in ((12, 8), (8, 8), (24, 8), (8, 24))]
    pairs = []
    for _ in range(2):
        own = [torch.nn.Parameter(p.clone()) for p in params]
        pairs.append((Muon(own, 0.02, 0.9, 0.1, {2: (8, 16)}), own))
    pairs[1][0].compile()
    for step in range(4):
        grads = [torch.randn(p.shape) for p in params]
        for optimizer, own in pairs:
            for p, grad in zip(own, grads, strict=True):
                p.grad = grad.clone()
            (group,) = optimizer.param_groups
            group["lr"] = 0.02 / (1 + step)
            with torch.no_grad():
                optimizer.update(group, skip=torch.tensor(step == 2))
        for a, b in zip(pairs[0][1], pairs[1][1], strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 2


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


# -----------------------------------------------------------------------------
# The same on a GPU


@gpu
@needs_cuda
@pytest.mark.parametrize("compiled", (False, True))
def test_muon_on_a_gpu_in_bfloat16_follows_the_cpu_in_float32(compiled):
    shapes = ((64, 128), (128, 64), (192, 64), (64, 128))
    cpu = with_gradients(*shapes)
    device = [p.detach().cuda().requires_grad_() for p in cpu]
    before = [p.detach().clone() for p in cpu]
    a, b = (Muon(ps, weight_decay=0.1, rows={2: (64, 64, 64)}) for ps in (cpu, device))
    if compiled:
        b.compile()
    for _ in range(5):
        for p, q in zip(cpu, device, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.cuda()
        a.step()
        b.step()
    for p, q, start in zip(cpu, device, before, strict=True):
        assert (p - q.cpu()).norm() <= 0.06 * (p - start).norm()
