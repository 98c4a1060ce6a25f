"""What model.py promises, over the grid of its settings: small random models in float32 on one CPU thread."""

import dataclasses
import importlib.util
import itertools
import math
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import model
from model import (
    CHOICES,
    GPT,
    GPT2,
    IGNORE,
    LOGIT_BYTES_ON_GPU,
    LOGITS_AT_ONCE,
    SHORT_CONTEXT,
    ChunkedCrossEntropy,
    GPTConfig,
    KVCache,
    RMSNormOnCPU,
    attention,
    causal_mask,
    fused_attention,
    fused_attention_wins,
    loss_is_as_derived,
    rms_norm,
    rope_table,
    rotate,
    rows_at_once,
    sinusoidal_table,
)

T = 16  # block_size of the small models
V = 61  # and their vocabulary: a prime, so that a mixed-up shape cannot fit
SMALL = dict(vocab_size=V, block_size=T, n_layer=2, n_head=4, n_embd=32)
MODERN = dict(SMALL, n_kv_head=2, norm_weight=True)

configs = st.builds(
    GPTConfig,
    **{name: st.just(value) for name, value in SMALL.items()},
    **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
    n_kv_head=st.sampled_from((1, 2, 4)),
    head_dim=st.sampled_from((8, 6)),  # 6: the heads together are narrower than n_embd
    norm_weight=st.booleans(),
    qk_norm=st.booleans(),
    bias=st.booleans(),
    tie_weights=st.booleans(),
    logit_softcap=st.sampled_from((0.0, 3.0)),
    ngram_rows=st.sampled_from((0, 100, V * V)),
    zero_init=st.booleans(),
)
over_the_grid = settings(max_examples=50, derandomize=True)
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random and of a size that matters: a fresh modern model is the identity, which hides faults."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(
                noise / math.sqrt(p.shape[-1])
                if p.dim() > 1
                else 0.3 * noise + (not name.endswith("bias"))
            )
    return model.eval()


def tokens(*shape: int, vocab_size: int = V) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(3))


def gradients(model: GPT, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip((n for n, _ in model.named_parameters()), grads, strict=True))


# -----------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    "bad, name",
    [
        ({name: -1}, name)
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    ]
    + [({name: 0}, name) for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")]
    + [({"n_hidden": -4}, "n_hidden"), ({"head_dim": -8}, "head_dim"), ({"n_embd": 2}, "n_embd")]
    + [({name: "sinus"}, name) for name in CHOICES]
    + [
        ({"n_embd": 30}, "n_embd"),
        ({"n_kv_head": 3}, "n_kv_head"),
        ({"n_kv_head": 8}, "n_kv_head"),
        ({"head_dim": 7}, "head_dim"),
        ({"position": "sinusoidal", "n_embd": 33, "n_head": 3}, "n_embd"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"logit_softcap": -1.0}, "logit_softcap"),
        ({"logit_softcap": math.inf}, "logit_softcap"),
        ({"ngram_rows": -1}, "ngram_rows"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"norm_eps": math.nan}, "norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        *(({"n_embd": n}, "n_embd") for n in (-1, 0, 2)),
    ],
)
def test_a_bad_setting_is_refused_by_name_in_one_line(bad, name):
    with pytest.raises(ValueError) as error:
        GPTConfig(**dict(SMALL, **bad))
    assert str(error.value).startswith(f"{name} is {bad[name]!r}")
    assert "\n" not in str(error.value)


def test_zeros_stand_for_the_usual_sizes():
    swiglu, gelu = GPTConfig(), GPTConfig(activation="gelu")
    assert (swiglu.n_kv_head, swiglu.head_dim, swiglu.n_hidden, gelu.n_hidden) == (
        12,
        64,
        2048,
        3072,
    )
    assert GPTConfig(n_embd=100, n_head=5).n_hidden == 288  # 266.7, rounded up to a multiple of 32
    assert GPTConfig(n_kv_head=4, head_dim=32, n_hidden=7).n_hidden == 7


@over_the_grid
@given(configs)
def test_a_config_survives_its_dictionary(config):
    """Checkpoints hold the config as a dictionary of its fields."""
    assert GPTConfig(**dataclasses.asdict(config)) == config


def test_tokens_beyond_the_context_are_refused():
    model = GPT(GPTConfig(**SMALL))
    with pytest.raises(ValueError, match="block_size"):
        model(tokens(1, T + 1))
    with pytest.raises(ValueError, match="block_size"):
        KVCache(model.config, 1, T + 1)
    cache = KVCache(model.config, 1, 8)
    model.features(tokens(1, 6), cache)
    with pytest.raises(ValueError, match="9 tokens are more than the context of 8"):
        model.features(tokens(1, 3), cache)
    assert cache.pos == 6


# -----------------------------------------------------------------------------
# Norm and positions


@pytest.mark.parametrize("weighted", (False, True))
def test_rms_norm_equals_torchs_in_value_and_gradient(weighted):
    x, weight = torch.randn(3, 5, 12, requires_grad=True), torch.randn(12, requires_grad=True)
    w, inputs = (weight, (x, weight)) if weighted else (None, (x,))
    ours, theirs = rms_norm(x, w, 1e-5), F.rms_norm(x, (12,), w, 1e-5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    pull = torch.randn_like(x)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, pull),
        torch.autograd.grad(theirs, inputs, pull),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", (1.0, 1e-3))  # at 1e-3 the eps weighs more than the square of x
def test_rms_norms_gradient_by_hand_is_its_numerical_one(size):
    x = (size * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: RMSNormOnCPU.apply(x, 1e-5), (x,), eps=1e-6 * size)


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x, None, 1e-5)
    y.sum().backward()
    assert y.eq(0).all() and x.grad.isfinite().all()


def test_sinusoidal_table_is_the_papers_formula():
    table = sinusoidal_table(50, 12)
    for pos in (0, 1, 17, 49):
        for i in range(6):
            angle = pos / 10000 ** (2 * i / 12)
            assert table[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_what_enters_the_blocks_is_embedding_plus_position():
    """A fresh modern model passes it through unchanged, so the trace shows it."""
    idx = tokens(2, T)
    for position in CHOICES["position"]:
        model, trace = GPT(GPTConfig(**SMALL, position=position)), []
        model.features(idx, trace=trace)
        expected = model.transformer.wte.weight[idx]
        if position == "learned":
            expected = expected + model.transformer.wpe.weight
        elif position == "sinusoidal":
            expected = expected * math.sqrt(32) + sinusoidal_table(T, 32)
        for layer in trace:
            torch.testing.assert_close(layer["residual"], expected, rtol=0, atol=1e-6)


@given(
    p=st.integers(0, 400),
    q=st.integers(0, 400),
    shift=st.integers(0, 600),
    theta=st.sampled_from((1e4, 1e6)),
)
@settings(max_examples=50, derandomize=True)
def test_rotary_products_depend_on_distance_alone(p, q, shift, theta):
    cos, sin = rope_table(1001, 8, theta)
    a, b = torch.randn(2, 1, 8)
    near = rotate(a, cos[p], sin[p]) @ rotate(b, cos[q], sin[q]).T
    far = rotate(a, cos[p + shift], sin[p + shift]) @ rotate(b, cos[q + shift], sin[q + shift]).T
    torch.testing.assert_close(near, far, rtol=0, atol=1e-5)
    torch.testing.assert_close(rotate(a, cos[p], sin[p]).norm(), a.norm())


def test_rotary_turns_pairs_by_the_formulas_angles():
    x, (cos, sin) = torch.randn(30, 3, 8), rope_table(30, 8, 500.0)
    turned = rotate(x, cos, sin)
    for i in range(
        4
    ):  # features i and i + 4 are the real and imaginary part of a number turned by pos / theta^(2i/8)
        angle = torch.arange(30.0).unsqueeze(1) * 500.0 ** (-2 * i / 8)
        expected = torch.complex(x[..., i], x[..., i + 4]) * torch.polar(torch.ones(30, 1), angle)
        torch.testing.assert_close(
            torch.complex(turned[..., i], turned[..., i + 4]), expected, rtol=0, atol=1e-5
        )


# -----------------------------------------------------------------------------
# Attention


@over_the_grid
@given(configs, st.integers(0, T - 1))
def test_a_changed_token_moves_no_logit_before_it(config, t):
    model, idx = randomized(GPT(config)), tokens(2, T)
    other = idx.clone()
    other[0, t] = (idx[0, t] + 1) % V
    with torch.no_grad():
        before, after = model(idx), model(other)
    torch.testing.assert_close(before[0, :t], after[0, :t], rtol=0, atol=0)
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)  # nor any of another sequence
    assert not torch.equal(before[0, t], after[0, t])


@over_the_grid
@given(configs, st.lists(st.integers(1, 7), max_size=3))
def test_cached_logits_equal_uncached_ones(config, prefill):
    """The prompt in pieces, then token by token; explicit attention over a cache too."""
    model, idx = randomized(GPT(config)), tokens(3, T)
    cache = KVCache(config, 3, T)
    place = cache.k.data_ptr()
    pieces = []
    with torch.no_grad():
        for size in (*prefill, *[1] * T):
            piece = idx[:, cache.pos : cache.pos + size]
            trace = [] if cache.pos % 2 else None
            if piece.shape[1]:
                pieces.append(model.logits(model.features(piece, cache, trace)))
        uncached = model(idx)
    assert cache.pos == T and cache.k.data_ptr() == place
    torch.testing.assert_close(torch.cat(pieces, dim=1), uncached, rtol=0, atol=1e-5)


@pytest.mark.parametrize("position", CHOICES["position"])
def test_greedy_decoding_past_the_context_is_the_same_with_and_without_cache(position):
    """block_size + 50 tokens; a full cache is begun anew from the second half of its context."""
    model = randomized(GPT(GPTConfig(**MODERN, position=position)))
    ids = tokens(1, 5)
    cache, begin = KVCache(model.config, 1, T), 0
    with torch.no_grad():
        for _ in range(T + 50):
            if ids.shape[1] - begin > T:
                cache, begin = KVCache(model.config, 1, T), ids.shape[1] - T // 2
            cached = model.logits(model.features(ids[:, begin + cache.pos :], cache)[:, -1:])
            uncached = model(ids[:, begin:])[:, -1:]
            assert cached.argmax() == uncached.argmax()
            ids = torch.cat((ids, cached.argmax(-1)), dim=1)
    assert (
        len(ids[0].unique()) > 2
    )  # the model says more than one thing, so equality means something


@over_the_grid
@given(configs, st.lists(st.integers(1, T), min_size=1, max_size=6), st.booleans())
def test_documents_packed_into_a_window_are_as_if_each_were_alone(config, lengths, explicit):
    """Per-token losses and gradients; the window may begin and end within a document."""
    model = randomized(GPT(config))
    idx = 1 + tokens(2, T + 1, vocab_size=V - 1)  # 0 begins a document
    begins = [0, *(b for b in itertools.accumulate(lengths) if b < T), T]
    idx[:, begins[1:-1]] = 0
    alone = [
        model(idx[:, a:b], idx[:, a + 1 : b + 1], reduction="none")
        for a, b in itertools.pairwise(begins)
    ]
    alone = torch.cat(alone, dim=1)
    config.document_token = 0
    packed = model(idx[:, :-1], idx[:, 1:], reduction="none")
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    expected, found = gradients(model, alone.sum()), gradients(model, packed.sum())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    if explicit:
        with torch.no_grad():
            shown = model.features(idx[:, :-1], trace=(trace := []))
            torch.testing.assert_close(shown, model.features(idx[:, :-1]), rtol=0, atol=1e-4)
        assert all(
            (step["weights"][:, :, b:, :b] == 0).all() for step in trace for b in begins[1:-1]
        )


def test_a_cache_is_one_document():
    """Sampling reads a dialogue as a whole, also where the model was trained on documents apart."""
    model = randomized(GPT(GPTConfig(**MODERN, document_token=0)))
    idx = tokens(1, T)
    idx[0, 5] = 0
    with torch.no_grad():
        cached = model.features(idx, KVCache(model.config, 1, T))
        model.config.document_token = -1
        torch.testing.assert_close(cached, model.features(idx), rtol=0, atol=1e-5)


@over_the_grid
@given(configs)
def test_explicit_attention_equals_the_fused_and_shows_each_step(config):
    model, idx, trace = randomized(GPT(config)), tokens(2, T), []
    with torch.no_grad():
        explicit = model.features(idx, trace=trace)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("model.SHORT_CONTEXT", {})
            fused = model.features(idx)
    torch.testing.assert_close(explicit, fused, rtol=0, atol=1e-5)
    features = model.transformer.ln_f(trace[-1]["residual"])
    if config.ngram_rows:
        features = features + model.transformer.ngrams(idx, torch.arange(T), None).to_features
    torch.testing.assert_close(features, explicit)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    assert len(trace) == config.n_layer
    for steps in trace:
        q, k = steps["q"], steps["k"]
        assert k.shape == steps["v"].shape == (2, config.n_kv_head, T, config.head_dim)
        for h in range(4):  # each run of n_head / n_kv_head queries shares a key head
            scores = q[:, h] @ k[:, h * config.n_kv_head // 4].mT
            torch.testing.assert_close(steps["scores"][:, h], scores)
        torch.testing.assert_close(steps["scaled"], steps["scores"] / math.sqrt(config.head_dim))
        torch.testing.assert_close(
            steps["masked"][..., ~future], steps["scaled"][..., ~future], rtol=0, atol=0
        )
        assert steps["masked"][..., future].eq(float("-inf")).all()
        torch.testing.assert_close(steps["weights"].sum(-1), torch.ones(2, 4, T))
        assert steps["weights"][..., future].eq(0).all() and steps["weights"].ge(0).all()


def test_explicit_attention_after_earlier_keys_sees_all_of_them():
    q, k, v = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    steps = {}
    y = attention(q, k, v, None, 0.0, steps)
    whole = attention(torch.cat((torch.randn(1, 4, 4, 8), q), dim=2), k, v, None, 0.0)
    torch.testing.assert_close(y, whole[:, :, 4:])
    assert (steps["weights"] > 0).sum(-1).unique(dim=1).tolist() == [[[5, 6, 7]]]


@pytest.mark.parametrize("dtype", SHORT_CONTEXT)
@pytest.mark.parametrize("T", (2, 16, 64))
def test_short_contexts_by_plain_products_equal_the_fused_kernel(T, dtype):
    """Values and gradients, with a causal and with a document's mask, for grouped heads."""
    qkv = [torch.randn(2, heads, T, 8).to(dtype).requires_grad_() for heads in (4, 2, 2)]
    out = torch.randn(2, 4, T, 8).to(dtype)
    near = dict(rtol=0, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.05, atol=0.03)
    apart = causal_mask(T, T, "cpu") & (torch.arange(T) >= T // 2).unsqueeze(1).eq(
        torch.arange(T) >= T // 2
    )
    for mask in (None, apart.expand(2, 1, T, T)):
        plain = attention(*qkv, mask, 0.0)
        fused = fused_attention(*qkv, mask, 0.0)
        torch.testing.assert_close(plain, fused, **near)
        plain_grads = torch.autograd.grad(plain, qkv, out)
        fused_grads = torch.autograd.grad(fused, qkv, out)
        for a, b in zip(plain_grads, fused_grads, strict=True):
            torch.testing.assert_close(a, b, **near)


def test_the_fused_kernel_is_left_aside_where_plain_products_are_faster():
    for dtype, longest in SHORT_CONTEXT.items():
        for T, wins in ((1, True), (2, False), (longest, False), (longest + 1, True)):
            q = torch.empty(1, 2, T, 8, dtype=dtype)
            assert fused_attention_wins(q, q) == wins
    new, all_keys = torch.empty(1, 2, 3, 8), torch.empty(1, 2, 7, 8)
    assert fused_attention_wins(new, all_keys)  # after earlier tokens


def test_dropout_acts_in_training_only():
    model, idx = randomized(GPT(GPTConfig(**SMALL, dropout=0.5))), tokens(2, T)
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


def test_dropout_falls_on_embeddings_weights_of_attention_and_both_outputs():
    model = randomized(GPT(GPTConfig(**SMALL, dropout=0.5))).train()
    block, seen = model.transformer.h[0], {}
    block.register_forward_pre_hook(lambda module, args: seen.update(embedding=args[0]))
    block.attn.register_forward_hook(lambda module, args, out: seen.update(attn=out))
    block.mlp.register_forward_hook(lambda module, args, out: seen.update(mlp=out))
    model(tokens(2, T))
    for name in ("embedding", "attn", "mlp"):
        assert seen[name].eq(0).float().mean().item() == pytest.approx(0.5, abs=0.1), name
    block.attn.resid_dropout.eval()
    x = torch.randn(2, T, 32)
    rope = model.rope[:, :T]
    assert not torch.equal(
        block.attn(x, rope, None, None, 0, None), block.attn(x, rope, None, None, 0, None)
    )


# -----------------------------------------------------------------------------
# Loss


@over_the_grid
@given(configs)
def test_loss_at_initialisation_is_that_of_guessing(config):
    model = GPT(config)
    with torch.no_grad():
        loss = model(tokens(8, T), tokens(8, T + 1)[:, 1:])
    if config.zero_init and not config.tie_weights:
        assert loss.item() == pytest.approx(math.log(V), abs=1e-6)
    else:
        assert loss.item() == pytest.approx(math.log(V), abs=0.1)


@pytest.mark.parametrize(
    "family", (dict(MODERN, bias=True), dict(SMALL, **GPT2)), ids=("modern", "gpt2")
)
def test_initial_weights_have_the_size_of_their_scheme(family):
    config = GPTConfig(**dict(family, n_embd=128, n_hidden=256))
    for name, p in GPT(config).named_parameters():
        output = name.endswith("c_proj.weight")
        if p.dim() < 2:
            assert p.eq(0 if name.endswith("bias") else 1).all(), name
        elif config.zero_init and (output or name == "lm_head.weight"):
            assert p.eq(0).all(), name
        elif config.zero_init and "wte" not in name:
            assert p.std().item() == pytest.approx(0.5 / math.sqrt(p.shape[1]), rel=0.05), name
        elif config.zero_init:
            assert p.std().item() == pytest.approx(0.2, rel=0.05), name
        else:
            assert p.std().item() == pytest.approx(
                0.02 / math.sqrt(4) if output else 0.02, rel=0.05
            ), name


@over_the_grid
@given(configs)
def test_biases_and_gains_are_where_the_settings_say(config):
    names = [name for name, _ in GPT(config).named_parameters()]
    norms = 2 * config.n_layer + 1 if config.norm_weight else 0
    linears = 4 * config.n_layer if config.bias else 0
    shifts = norms if config.norm == "layernorm" and config.bias else 0
    assert sum(name.endswith(".bias") for name in names) == linears + shifts
    assert (
        sum(name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) for name in names) == norms
    )
    assert sum("_norm" in name for name in names) == 2 * config.n_layer * (
        config.qk_norm and config.norm_weight
    )


@over_the_grid
@given(configs)
def test_reductions_agree_and_skip_masked_targets(config):
    model, idx, targets = randomized(GPT(config)), tokens(2, T), tokens(2, T + 1)[:, 1:].clone()
    targets[:, ::3] = IGNORE
    with torch.no_grad():
        each = model(idx, targets, "none")
        by_hand = (
            -model(idx).log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        )
        torch.testing.assert_close(each, by_hand.where(targets != IGNORE, 0))
        torch.testing.assert_close(model(idx, targets, "sum"), each.sum())
        torch.testing.assert_close(model(idx, targets), each.sum() / (targets != IGNORE).sum())


def way(loss) -> list[str]:
    """Names of the two last steps of a loss's graph."""
    return [
        loss.grad_fn.name(),
        *(f.name() for f, _ in loss.grad_fn.next_functions if f is not None),
    ]


@over_the_grid
@given(configs, st.sampled_from((1, 200, 5 * V)), st.sampled_from(("mean", "sum", "none")))
def test_the_loss_in_pieces_equals_the_whole_one(config, at_once, reduction):
    """With few logits at a time (down to one row), the same loss and the same gradient for every parameter."""
    model, idx, targets = randomized(GPT(config)), tokens(2, T), tokens(2, T + 1)[:, 1:].clone()
    targets[0, 3:9] = IGNORE
    whole = model(idx, targets, reduction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.LOGITS_AT_ONCE", at_once)
        pieces = model(idx, targets, reduction)
    assert reduction == "none" or way(pieces) != way(whole)  # two different ways were compared
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-5)
    a, b = gradients(model, whole.sum()), gradients(model, pieces.sum())
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5)


def cross_entropy_reference(x, weight, targets, vocab_size, cap):
    logits = x.double() @ weight[:vocab_size].double().T
    logits = cap * torch.tanh(logits / cap) if cap else logits
    return F.cross_entropy(logits, targets, ignore_index=IGNORE)


def test_without_gradients_the_loss_in_pieces_costs_its_logits_alone(monkeypatch):
    model, idx = GPT(GPTConfig(**SMALL)), tokens(2, T)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        model(idx, idx)
    monkeypatch.setattr("model.LOGITS_AT_ONCE", 200)
    with torch.no_grad(), FlopCounterMode(display=False) as pieces:
        model(idx, idx)
    assert pieces.get_total_flops() == whole.get_total_flops()


@pytest.fixture(params=("in place", "for a compiler"))
def both_ways(request, monkeypatch):
    """The loss by hand in both of its forms: that for compiled GPUs computes the same anywhere."""
    if request.param == "for a compiler":
        monkeypatch.setattr("model.loss_in_place", model.loss_for_a_compiler)


def chunked_against_reference(
    dtype, cap, device="cpu", rows=400, width=16, vocab_size=50257, padded=50304
):
    """Mean loss, and gradients of features and head relative to their norm: the differences from float64."""
    x = torch.randn(rows, width, device=device, requires_grad=True)
    weight = torch.randn(padded, width, device=device).div(math.sqrt(width) / 2).requires_grad_()
    targets = torch.randint(vocab_size, (rows,), device=device)
    targets[::5] = IGNORE
    ours = (
        ChunkedCrossEntropy.apply(x.to(dtype), weight, targets, vocab_size, cap, dtype)
        / (targets != IGNORE).sum()
    )
    reference = cross_entropy_reference(x, weight, targets, vocab_size, cap)
    ours_by, exact_by = (torch.autograd.grad(loss, (x, weight)) for loss in (ours, reference))
    assert ours_by[1][vocab_size:].eq(0).all()  # padded rows are never moved
    off = [((a - b).norm() / b.norm()).item() for a, b in zip(ours_by, exact_by, strict=True)]
    return [abs(ours.item() - reference.item()), *off]


@pytest.mark.parametrize("cap", (0.0, 3.0))
def test_chunked_loss_is_exact_at_gpt2s_vocabulary(cap, both_ways):
    assert 400 * 50304 > LOGITS_AT_ONCE  # two pieces
    assert max(chunked_against_reference(torch.float32, cap)) < 1e-5


@pytest.mark.parametrize("cap", (0.0, 3.0))
def test_chunked_loss_in_bfloat16_stays_within_a_hundredth_of_float64(cap, monkeypatch, both_ways):
    monkeypatch.setattr("model.LOGITS_AT_ONCE", 1 << 16)
    assert (
        max(chunked_against_reference(torch.bfloat16, cap, rows=500, vocab_size=2000, padded=2048))
        < 0.01
    )


def test_chunked_loss_gives_back_a_tensor_that_it_never_changed_in_place(both_ways):
    """Compiled on torch 2.11, a result that forward had changed in place had gradients of zero."""
    x, weight = torch.randn(20, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True)
    loss = ChunkedCrossEntropy.apply(x, weight, tokens(20), V, 0.0, torch.float32)
    assert loss._version == 0


def test_chunked_loss_with_nothing_to_score_is_zero(both_ways):
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True)
    loss = ChunkedCrossEntropy.apply(x, weight, torch.full((4,), IGNORE), V, 0.0, torch.float32)
    loss.backward()
    assert loss.item() == 0 and x.grad.eq(0).all() and weight.grad.eq(0).all()


def test_chunked_loss_trains_a_head_over_frozen_features(both_ways):
    x, weight, targets = torch.randn(20, 8), torch.randn(V, 8, requires_grad=True), tokens(20)
    ours = ChunkedCrossEntropy.apply(x, weight, targets, V, 0.0, torch.float32)
    whole = F.cross_entropy(x @ weight.T, targets, reduction="sum")
    a, b = (torch.autograd.grad(loss, weight)[0] for loss in (ours, whole))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_head_in_bfloat16_has_a_gradient_that_many_pieces_do_not_round(monkeypatch, both_ways):
    """As FSDP gives it to the loss on a GPU; a sum of 200 pieces in bfloat16 is off by 2%."""
    x = torch.randn(400, 8).bfloat16()
    weight = torch.randn(V, 8).bfloat16().requires_grad_()
    targets = torch.full((400,), 3)
    gradients = []
    for at_once in (V // 2, 400 * V):
        monkeypatch.setattr("model.LOGITS_AT_ONCE", at_once)
        loss = ChunkedCrossEntropy.apply(x, weight, targets, V, 0.0, torch.bfloat16)
        gradients += torch.autograd.grad(loss, weight)
    pieces, whole = gradients
    assert pieces.dtype == torch.bfloat16
    assert (pieces - whole).norm() <= 0.004 * whole.norm()


def test_chunked_loss_leaves_a_frozen_head_without_a_gradient(both_ways):
    x, weight, targets = torch.randn(20, 8, requires_grad=True), torch.randn(V, 8), tokens(20)
    ours = ChunkedCrossEntropy.apply(x, weight, targets, V, 0.0, torch.float32)
    whole = F.cross_entropy(x @ weight.T, targets, reduction="sum")
    a, b = (torch.autograd.grad(loss, x)[0] for loss in (ours, whole))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@given(
    st.integers(1, 300_000), st.integers(2, 300_000), st.sampled_from((torch.bfloat16, torch.float32)),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=100, derandomize=True)
def test_pieces_on_a_gpu_are_even_of_whole_tiles_and_within_their_memory(
    n, n_ids, dtype, with_gradient
):
    x = type("Rows", (), {"is_cuda": True, "__len__": lambda _: n})()
    rows = rows_at_once(x, n_ids, dtype, with_gradient)
    pieces = math.ceil(n / rows)
    assert rows % 128 == 0
    assert rows == 128 or (rows - 128) * n_ids * 8 < LOGIT_BYTES_ON_GPU
    assert rows * pieces - n < 128 * pieces  # no piece is much smaller than the others


# What somebody who tries another loss may do to model.py: a line of it, and what it becomes.
SCORED = "return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction=reduction)"
CAPPED = "return softcapped(logits, self.config.logit_softcap)"
CHANGES = {
    "label smoothing": (SCORED, SCORED.replace("reduction=", "label_smoothing=0.1, reduction=", 1)),
    "z-loss": (
        SCORED,
        "losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction='none')",
        "losses = losses + 1e-4 * logits.logsumexp(-1).square() * (targets != IGNORE)",
        "return losses.sum() if reduction == 'sum' else losses",
    ),
    "scaled logits": (CAPPED, "return 0.25 * " + CAPPED.removeprefix("return ")),
    "a learned scale": (CAPPED, CAPPED + " * self.transformer.wte.weight[0, 0]"),
    "a part that only a whole model has": (
        CAPPED,
        CAPPED + " + self.transformer.h[0].ln_1(x).mean()",
    ),
}


def edited_model(tmp_path: Path, line: str, *lines: str):
    """model.py as a module of its own, with one line become another."""
    before, found, after = Path(model.__file__).read_text(encoding="utf-8").partition(line)
    assert found, f"model.py has no line {line}"
    indent = before.rpartition("\n")[2]
    path = tmp_path / "edited_model.py"
    path.write_text(before + f"\n{indent}".join(lines) + after, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def assert_pieces_train_as_the_whole(net: GPT, patch: pytest.MonkeyPatch, module: str):
    idx, targets = tokens(2, T), tokens(2, T + 1)[:, 1:].clone()
    targets[0, 3:9] = IGNORE
    whole = net(idx, targets)
    patch.setattr(f"{module}.LOGITS_AT_ONCE", 200)
    pieces = net(idx, targets)
    torch.testing.assert_close(pieces, whole)
    expected, found = gradients(net, whole), gradients(net, pieces)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        each = net(idx, targets, "none")
    torch.testing.assert_close(each.sum() / (targets != IGNORE).sum(), whole.detach())


@pytest.mark.parametrize("tie_weights", (False, True), ids=("untied", "tied"))
@pytest.mark.parametrize("change", CHANGES)
def test_gradients_follow_a_loss_that_was_changed_in_one_line(
    change, tie_weights, tmp_path, monkeypatch
):
    """Though the gradient of the loss as it was is written by hand, far below that line."""
    edited = edited_model(tmp_path, *CHANGES[change])
    config = edited.GPTConfig(**dict(MODERN, tie_weights=tie_weights, logit_softcap=3.0))
    with pytest.warns(UserWarning, match="the loss was changed"):
        net = edited.GPT(config)
    assert_pieces_train_as_the_whole(randomized(net), monkeypatch, "edited_model")


def test_gradients_follow_a_subclass_and_a_replaced_function(monkeypatch):
    class Louder(GPT):
        def logits(self, x):
            return 2 * super().logits(x)

    with pytest.warns(UserWarning, match="the loss was changed"):
        net = Louder(GPTConfig(**MODERN))
    with monkeypatch.context() as patch:
        assert_pieces_train_as_the_whole(randomized(net), patch, "model")
    plain = model.cross_entropy_loss
    monkeypatch.setattr("model.cross_entropy_loss", lambda *inputs: 0.5 * plain(*inputs))
    with pytest.warns(UserWarning, match="the loss was changed"):
        net = GPT(GPTConfig(**MODERN))
    assert_pieces_train_as_the_whole(randomized(net), monkeypatch, "model")


@over_the_grid
@given(configs)
def test_the_loss_as_it_is_has_its_gradient_by_hand(config):
    """Wherever and however a model is made; asking for it draws no random numbers."""
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GPT(config).fast_loss
        torch.set_rng_state(before)
        with torch.autocast("cpu", torch.bfloat16):
            net = GPT(config)
        after = torch.get_rng_state()
        with torch.device("meta"):
            assert GPT(config).fast_loss
        with torch.inference_mode():
            assert GPT(config).fast_loss
    assert net.fast_loss
    torch.set_rng_state(after)
    assert loss_is_as_derived(net)
    assert torch.equal(torch.get_rng_state(), after)


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation gives back, forward or backward."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            self.numel = max(self.numel, t.numel()) if isinstance(t, torch.Tensor) else self.numel
        return out


@pytest.mark.parametrize("fast", (True, False), ids=("by-hand", "changed"))
def test_full_logits_never_exist_in_training(fast, monkeypatch):
    monkeypatch.setattr("model.LOGITS_AT_ONCE", 1 << 20)
    config = GPTConfig(vocab_size=32768, block_size=1024, n_layer=1, n_head=1, n_embd=8)
    model, idx = GPT(config), tokens(1, 1024, vocab_size=32768)
    model.fast_loss = fast
    with LargestTensor() as largest:
        model(idx, idx).backward()
    assert largest.numel <= 4 << 20 < 1024 * 32768


# -----------------------------------------------------------------------------
# The whole network


@pytest.mark.parametrize("tie_weights", (False, True))
def test_padded_ids_have_no_logits_and_no_part_in_the_loss(tie_weights):
    config = GPTConfig(**dict(SMALL, vocab_size=1030), tie_weights=tie_weights)
    model, idx = randomized(GPT(config)), tokens(2, T, vocab_size=1030)
    assert model.head_weight.shape[0] == config.padded_vocab_size == 1088
    with torch.no_grad():
        logits, loss = model(idx), model(idx, idx)
        model.head_weight[1030:] = 100.0
        assert logits.shape == (2, T, 1030) and logits.dtype == torch.float32
        assert torch.equal(model(idx), logits) and torch.equal(model(idx, idx), loss)


def test_parameter_counts_are_gpt2s():
    with torch.device("meta"):  # shapes without memory
        small, xl = (
            GPT(GPTConfig(**GPT2)),
            GPT(GPTConfig(**GPT2, n_layer=48, n_head=25, n_embd=1600)),
        )
    padding = 50304 - 50257
    assert small.n_params() == 124_439_808 + padding * 768
    assert xl.n_params() == 1_557_611_200 + padding * 1600


def test_parameter_count_of_a_modern_model_by_hand():
    c = GPTConfig(**MODERN)
    attention = (
        32 * (32 + 2 * 16) + 32 * 32 + 2 * 8
    )  # q, k, v of 4 + 2 + 2 heads; output; q_norm, k_norm
    mlp = 3 * 32 * 96
    assert GPT(c).n_params() == 2 * V * 32 + 2 * (attention + mlp + 2 * 32) + 32


@over_the_grid
@given(configs)
def test_flops_per_token_equal_torchs_count(config):
    """The explicit path, since fused attention on a CPU is not counted; the backward pass is twice the forward."""
    model, idx = randomized(GPT(config)), tokens(2, T)
    with FlopCounterMode(display=False) as counter:
        logits = model.logits(model.features(idx, trace=[]))
    assert counter.get_total_flops() == model.flops_per_token(training=False) * idx.numel()
    with counter:
        logits.sum().backward()
    assert counter.get_total_flops() * 3 // 2 == model.flops_per_token() * idx.numel()
    with FlopCounterMode(display=False) as counter:
        model.logits(model.features(idx[:, :5], trace=[]))
    assert counter.get_total_flops() == model.flops_per_token(5, training=False) * 10


@pytest.mark.parametrize("family", (MODERN, dict(SMALL, **GPT2)), ids=("modern", "gpt2"))
def test_fifty_steps_overfit_one_batch(family):
    model, idx = GPT(GPTConfig(**family)), tokens(4, T + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(50):
        optimizer.zero_grad()
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * math.log(V)


@over_the_grid
@given(configs)
def test_every_parameter_matters(config):
    """After randomisation, no parameter of the network has a gradient of zeros: none is forgotten in the forward."""
    model = randomized(GPT(config))
    idx = torch.arange(T).expand(2, T) + torch.tensor([[0], [T]])
    for name, grad in gradients(model, model(idx, tokens(2, T))).items():
        assert grad.isfinite().all() and grad.any(), name


@over_the_grid
@given(configs)
def test_bfloat16_autocast_stays_near_float32(config):
    model, idx, targets = randomized(GPT(config)), tokens(2, T), tokens(2, T + 1)[:, 1:]
    exact = model(idx, targets)
    with torch.autocast("cpu", torch.bfloat16):
        whole = model(idx, targets)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("model.LOGITS_AT_ONCE", 200)
            pieces = model(idx, targets)
    for loss in (whole, pieces):
        assert loss.dtype == torch.float32 and abs(loss.item() - exact.item()) < 0.05
        assert all(
            g.isfinite().all() and g.dtype == torch.float32 for g in gradients(model, loss).values()
        )


def test_bfloat16_weights_decode_with_a_bfloat16_cache():
    model, idx = randomized(GPT(GPTConfig(**MODERN))).bfloat16(), tokens(2, T)
    cache = KVCache(model.config, 2, T, dtype=torch.bfloat16)
    with torch.no_grad():
        steps = [model.logits(model.features(idx[:, t : t + 1], cache)) for t in range(T)]
        torch.testing.assert_close(torch.cat(steps, dim=1), model(idx), rtol=0, atol=0.1)


@over_the_grid
@given(configs)
def test_fused_rows_cover_their_parameters(config):
    model = GPT(config)
    parameters = dict(model.named_parameters())
    for name, rows in model.fused_rows().items():
        assert sum(rows) == parameters[name].shape[0]
    fused = {"attn.c_attn.weight"} | (
        {"mlp.c_fc.weight"} if config.activation == "swiglu" else set()
    )
    assert {name.split(".", 3)[3] for name in model.fused_rows()} == fused
    assert len(model.fused_rows()) == len(fused) * config.n_layer


# -----------------------------------------------------------------------------
# Against transformers


def test_state_dict_keys_are_gpt2s():
    layer = [
        f"{module}.{kind}"
        for module in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    ]
    expected = [
        "wte.weight",
        "wpe.weight",
        *(f"h.{i}.{k}" for i in range(2) for k in layer),
        "ln_f.weight",
        "ln_f.bias",
    ]
    keys = GPT(GPTConfig(**SMALL, **GPT2)).state_dict().keys()
    assert sorted(keys) == sorted(f"transformer.{k}" for k in expected)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def largest_logit_difference(ours: GPT, theirs: torch.nn.Module, vocab_size: int = V) -> float:
    idx = tokens(2, T, vocab_size=vocab_size)
    with torch.no_grad():
        a, b = ours.eval()(idx), theirs.eval()(idx).logits
    assert b.std() > 0.5  # a model that says something
    return (a - b).abs().max().item()


@pytest.mark.parametrize("vocab_size", (V, 1030))  # 1030 is padded to 1088
def test_gpt2s_weights_fit_by_name_and_give_its_logits(transformers, vocab_size):
    shape = dict(vocab_size=vocab_size, n_positions=T, n_embd=32, n_layer=2, n_head=4)
    theirs = randomized(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)))
    ours = GPT(GPTConfig(**dict(SMALL, vocab_size=vocab_size), **GPT2))
    state = {}
    for name, p in theirs.state_dict().items():
        if name != "lm_head.weight":  # tied
            # transformers keeps these as (in, out)
            state[name] = (
                p.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else p
            )
    wte = state["transformer.wte.weight"]
    state["transformer.wte.weight"] = F.pad(
        wte, (0, 0, 0, ours.config.padded_vocab_size - vocab_size), value=9.0
    )
    ours.load_state_dict(state, strict=True)
    assert largest_logit_difference(ours, theirs, vocab_size) <= 1e-4


def llama_names(model: GPT) -> dict[str, torch.Tensor]:
    """Our weights under the names that Llama and its descendants have in transformers."""
    c, ours = model.config, model.state_dict()
    heads = (c.n_head * c.head_dim, c.n_kv_head * c.head_dim, c.n_kv_head * c.head_dim)
    state = {
        "model.embed_tokens.weight": ours["transformer.wte.weight"],
        "lm_head.weight": model.head_weight,
    }
    norms = {"model.norm": "transformer.ln_f"}
    for i in range(c.n_layer):
        theirs, h = f"model.layers.{i}", f"transformer.h.{i}"
        norms |= {
            f"{theirs}.input_layernorm": f"{h}.ln_1",
            f"{theirs}.post_attention_layernorm": f"{h}.ln_2",
        }
        qkv = ours[f"{h}.attn.c_attn.weight"].split(heads)
        state |= {f"{theirs}.self_attn.{n}_proj.weight": w for n, w in zip("qkv", qkv, strict=True)}
        state[f"{theirs}.self_attn.o_proj.weight"] = ours[f"{h}.attn.c_proj.weight"]
        if c.activation == "swiglu":
            gate, up = ours[f"{h}.mlp.c_fc.weight"].chunk(2)
            state |= {f"{theirs}.mlp.gate_proj.weight": gate, f"{theirs}.mlp.up_proj.weight": up}
        else:
            state[f"{theirs}.mlp.up_proj.weight"] = ours[f"{h}.mlp.c_fc.weight"]
        state[f"{theirs}.mlp.down_proj.weight"] = ours[f"{h}.mlp.c_proj.weight"]
        if c.qk_norm:
            for n in ("q_norm", "k_norm"):
                gain = ours[f"{h}.attn.{n}"] if c.norm_weight else torch.ones(c.head_dim)
                state[f"{theirs}.self_attn.{n}.weight"] = gain
    for theirs, name in norms.items():
        state[f"{theirs}.weight"] = (
            ours[f"{name}.weight"] if c.norm_weight else torch.ones(c.n_embd)
        )
    return state


@pytest.mark.parametrize("tie_weights", (False, True), ids=("untied", "tied"))
@pytest.mark.parametrize("norm_weight", (True, False), ids=("gains", "no-gains"))
@pytest.mark.parametrize(
    "family, parts",
    [
        ("Llama", dict(activation="swiglu", qk_norm=False)),
        ("Qwen3", dict(activation="swiglu", qk_norm=True, head_dim=6)),
        ("Arcee", dict(activation="relu2", qk_norm=False)),
    ],
    ids=("llama", "qwen3", "arcee"),
)
def test_modern_models_are_exportable(transformers, family, parts, norm_weight, tie_weights):
    c = GPTConfig(
        **dict(SMALL, n_kv_head=2, rope_theta=500.0),
        **parts,
        norm_weight=norm_weight,
        tie_weights=tie_weights,
    )
    ours = randomized(GPT(c))
    config = getattr(transformers, f"{family}Config")(
        vocab_size=V, hidden_size=c.n_embd, intermediate_size=c.n_hidden, num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head, head_dim=c.head_dim, rms_norm_eps=c.norm_eps,
        max_position_embeddings=T, tie_word_embeddings=tie_weights, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
    )  # fmt: skip
    theirs = getattr(transformers, f"{family}ForCausalLM")(config)
    theirs.load_state_dict(
        llama_names(ours), strict=True
    )  # nothing of ours is left over, nothing of theirs unset
    assert largest_logit_difference(ours, theirs) <= 1e-4


# -----------------------------------------------------------------------------
# Compiled


@pytest.mark.slow
@pytest.mark.parametrize("fast", (True, False), ids=("by-hand", "changed"))
@pytest.mark.parametrize("family", (MODERN, dict(SMALL, **GPT2)), ids=("modern", "gpt2"))
def test_the_training_graph_has_no_breaks(family, fast, monkeypatch, both_ways):
    """fullgraph raises at a break. The backend runs the graph as it is, so no compiler is needed."""
    monkeypatch.setattr("model.LOGITS_AT_ONCE", 200)  # with the loss in pieces
    torch._dynamo.reset()
    model, idx, targets = (
        randomized(GPT(GPTConfig(**family))),
        tokens(2, T),
        tokens(2, T + 1)[:, 1:],
    )
    model.fast_loss = fast
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    plain, traced = model(idx, targets), compiled(idx, targets)
    torch.testing.assert_close(traced, plain, rtol=0, atol=1e-5)
    a, b = gradients(model, plain), gradients(model, traced)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="no C++ compiler for torch.compile"
)
def test_the_compiled_loss_in_pieces_and_its_gradients_are_the_plain_ones(monkeypatch):
    monkeypatch.setattr("model.LOGITS_AT_ONCE", 200)
    torch._dynamo.reset()
    model, idx = randomized(GPT(GPTConfig(**dict(MODERN, n_layer=1)))), tokens(2, T)
    compiled, plain = torch.compile(model, fullgraph=True)(idx, idx), model(idx, idx)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)
    a, b = gradients(model, plain), gradients(model, compiled)
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="no C++ compiler for torch.compile"
)
def test_the_loss_for_a_compiler_is_the_plain_one_compiled(monkeypatch):
    monkeypatch.setattr("model.LOGITS_AT_ONCE", 20 * 64)
    torch._dynamo.reset()
    x, weight = torch.randn(50, 8), torch.randn(64, 8)
    targets = tokens(50).masked_fill(torch.arange(50) % 5 == 0, IGNORE)
    inputs = (x, weight, targets, V, 3.0, torch.float32, True)
    compiled = torch.compile(model.loss_for_a_compiler, fullgraph=True)(*inputs)
    plain = model.loss_in_place(*inputs)
    for name in ("loss", "dx", "dw"):
        torch.testing.assert_close(getattr(compiled, name), getattr(plain, name))


# -----------------------------------------------------------------------------
# The same on a GPU


@pytest.mark.parametrize("attend", [model.attention, model.fused_attention])
def test_a_mask_may_be_a_bias_whichever_way_attention_goes(attend):
    """A cache's are made into biases before it is known which way that is."""
    q, k, v = torch.randn(3, 2, 4, 8, 16)
    mask = torch.rand(2, 1, 8, 8) < 0.5
    mask |= torch.eye(8, dtype=torch.bool)
    bias = model.as_bias(mask, q.dtype)
    assert torch.allclose(attend(q, k, v, bias, 0.0), attend(q, k, v, mask, 0.0), atol=1e-6)


@gpu
@needs_cuda
@pytest.mark.parametrize("position", CHOICES["position"])
def test_cached_logits_equal_uncached_ones_on_a_gpu_in_bfloat16(position):
    model = randomized(GPT(GPTConfig(**MODERN, position=position))).cuda().bfloat16()
    idx, cache = (
        tokens(2, T).cuda(),
        KVCache(model.config, 2, T, device="cuda", dtype=torch.bfloat16),
    )
    with torch.no_grad():
        steps = [
            model.logits(model.features(piece, cache))
            for piece in idx.split((5, 3, *[1] * (T - 8)), dim=1)
        ]
        torch.testing.assert_close(torch.cat(steps, dim=1), model(idx), rtol=0, atol=0.1)


@gpu
@needs_cuda
@pytest.mark.parametrize("cap", (0.0, 3.0))
def test_chunked_loss_on_a_gpu_in_bfloat16_stays_within_a_hundredth_of_float64(cap, monkeypatch):
    monkeypatch.setattr("model.LOGIT_BYTES_ON_GPU", 1 << 26)  # four pieces
    assert max(chunked_against_reference(torch.bfloat16, cap, device="cuda", width=64)) < 0.01


@gpu
@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("n_kv_head", (4, 1))
def test_on_a_gpu_compiled_documents_are_masked_in_blocks_as_by_a_mask(n_kv_head):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    shape = dict(n_layer=2, n_head=4, n_kv_head=n_kv_head, n_embd=128, block_size=400)
    model = randomized(GPT(GPTConfig(V, document_token=7, **shape))).cuda()
    compiled = torch.compile(model, fullgraph=True)
    for n_documents in (1, 5, 100):
        idx = torch.randint(8, V, (3, 400)).cuda()
        idx[:, torch.randperm(400)[:n_documents]] = 7
        with torch.autocast("cuda", torch.bfloat16):
            plain, fast = model(idx, idx), compiled(idx, idx)
        assert abs(plain.item() - fast.item()) < 0.03
        a, b = gradients(model, plain), gradients(model, fast)
        for name in a:
            assert (a[name] - b[name]).norm() <= 0.05 * a[name].norm() + 1e-3, name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@gpu
@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("family", (MODERN, dict(SMALL, **GPT2)), ids=("modern", "gpt2"))
def test_a_compiled_training_step_on_a_gpu_has_no_breaks_and_the_plain_loss(family, monkeypatch):
    monkeypatch.setattr("model.LOGIT_BYTES_ON_GPU", 200 * V)
    torch._dynamo.reset()
    model, idx = randomized(GPT(GPTConfig(**family))).cuda(), tokens(24, T).cuda()  # three pieces
    compiled = torch.compile(model, fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16):
        plain, fast = model(idx, idx), compiled(idx, idx)
    assert abs(plain.item() - fast.item()) < 0.03
    a, b = gradients(model, plain), gradients(model, fast)
    for name in a:
        assert (a[name] - b[name]).norm() <= 0.05 * a[name].norm() + 1e-3, name
