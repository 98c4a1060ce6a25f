"""Weights laid out for decoding compute the same, within their precision."""

import pytest
import torch
from tiny_run import loud_model

from lathe.use.caches import RaggedCache
from lathe.use.decoding_block import DecodingBlock
from lathe.use.generation import generate
from lathe.use.quantize import choose_weights, prepare_weights
from lathe.use.sampling import Sampling
from model import GPT, MLP, Block, KVCache

T, V = 24, 61


def tiny_model(**changes) -> GPT:
    return loud_model(**dict(vocab_size=V, block_size=T, n_head=4) | changes)


@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize(
    "dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.05), ("float16", 0.01), ("int8", 0.1)]
)
def test_prepared_weights_compute_the_same_within_their_precision(dtype, tolerance, tied):
    model, idx = tiny_model(tie_weights=tied, bias=True, vocab_size=1030), torch.randint(V, (3, T))
    try:
        choose_weights(dtype, torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    with torch.inference_mode():
        expected = model(idx)
        prepared = prepare_weights(model, dtype)
        for rows in (idx, idx[:1, :1]):
            error = prepared(rows) - expected[: len(rows), : rows.shape[1]]
            assert error.abs().max() / expected.abs().max() < tolerance


ARCHITECTURES = [
    dict(n_kv_head=2, norm_weight=True, tie_weights=True),
    dict(activation="relu2", position="sinusoidal", norm="layernorm", qk_norm=False, bias=True),
    dict(activation="gelu", position="learned", norm="layernorm", norm_weight=True, bias=True),
    dict(activation="gelu_tanh", position="none", n_kv_head=1, logit_softcap=5.0),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoding_blocks_compute_what_blocks_do(architecture):
    model = tiny_model(**architecture)
    for p in model.parameters():
        if p.dim() == 1:  # gains and biases that matter
            torch.nn.init.uniform_(p, 0.5, 1.5)
    idx = torch.randint(V, (3, T))
    with torch.inference_mode():
        expected = model(idx)
        torch.testing.assert_close(prepare_weights(model, "float32")(idx), expected)
    assert all(isinstance(block, DecodingBlock) for block in model.transformer.h)


def louder_mlp(self: MLP, x: torch.Tensor) -> torch.Tensor:
    gate, value = self.c_fc(x).chunk(2, dim=-1)
    return 3 * self.c_proj(torch.relu(gate) * value)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_network_that_was_changed_decodes_as_it_is(dtype, monkeypatch):
    monkeypatch.setattr(MLP, "forward", louder_mlp)
    model = tiny_model()
    idx = torch.randint(V, (3, T))
    with torch.inference_mode():
        expected = model(idx)
        error = prepare_weights(model, dtype)(idx) - expected
    assert error.norm() / expected.norm() < (0.1 if dtype == "int8" else 1e-5)
    assert isinstance(model.transformer.h[0], Block)


def test_prepared_weights_say_the_same_text():
    texts = []
    for model in (tiny_model(), prepare_weights(tiny_model(), "float32")):
        steps = generate(model, [[1, 2]], max_new_tokens=30, sampling=Sampling(temperature=0))
        texts.append([token.id for tokens in steps for token in tokens])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_int8_is_refused_where_bfloat16_is_faster(kind):
    with pytest.raises(ValueError, match=f"int8, which is for CPUs: on {kind} .* --dtype=auto"):
        choose_weights("int8", torch.device(kind))


def plant_outliers(model: GPT, times: float):
    """The same function, with three features of each norm's output so many times as large."""
    for block in model.transformer.h:
        for norm, layer in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            norm.weight.data[:3] *= times
            layer.weight.data[:, :3] /= times


@pytest.mark.parametrize("times", [30, 1000])
def test_outliers_among_features_do_not_drown_the_rest_in_int8(times):
    idx = torch.randint(V, (3, T))
    errors = []
    for planted in (1, times):
        model = tiny_model(norm_weight=True, n_embd=64)
        plant_outliers(model, planted)
        with torch.inference_mode():
            expected = model(idx)
            error = prepare_weights(model, "int8")(idx) - expected
        errors.append(error.norm() / expected.norm())
    assert errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize("n_embd", [24, 40, 64])
@pytest.mark.parametrize("has_fbgemm", [True, False])
def test_int8_serves_widths_of_any_number(n_embd, has_fbgemm, monkeypatch):
    if not has_fbgemm:
        monkeypatch.setattr("lathe.use.quantize.has_fbgemm", lambda: False)
    model = tiny_model(n_embd=n_embd)
    idx = torch.randint(V, (2, T))
    with torch.inference_mode():
        expected = model(idx)
        prepared = prepare_weights(model, "int8")
        for rows in (idx, idx[:1, :1]):  # many and one, which have ways of their own
            error = prepared(rows) - expected[: len(rows), : rows.shape[1]]
            assert error.abs().max() / expected.abs().max() < 0.1


SHAPES = [
    dict(),
    dict(position="learned", activation="gelu_tanh", bias=True, n_embd=64, n_hidden=1088),
    dict(n_kv_head=2, block_size=150, n_embd=128),
    dict(n_kv_head=1, norm_weight=True, tie_weights=True, vocab_size=1030),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("seed, shape", enumerate(SHAPES))
def test_a_sample_alone_is_what_it_is_among_others_to_the_last_bit(dtype, seed, shape):
    """Tokens, and the log-probabilities of the likeliest ones: of prompts of several lengths, some
    read together and one so long that the others' attention looks at more columns with it."""
    try:
        choose_weights(dtype, torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    model = prepare_weights(tiny_model(seed=seed, **shape), dtype)
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, 2, 5, 5, 5, 1, 17, min(100, model.config.block_size)]
    prompts = [torch.randint(V, (length,), generator=generator).tolist() for length in lengths]
    sampling = Sampling(temperature=1.0, seed=seed, logprobs=5)

    def samples(prompts: list[list[int]]) -> list[list[tuple]]:
        rows = [[] for _ in prompts]
        for step in generate(model, prompts, max_new_tokens=30, sampling=sampling):
            for token in step:
                rows[token.row].append(token[1:])
        return rows

    among = samples(prompts)
    for prompt, of_prompt in zip(prompts, among, strict=True):
        assert samples([prompt]) == [of_prompt]


def features_of_pieces(model: GPT, idx: torch.Tensor, cache: KVCache, ends: list[int]):
    """Of ids (1, T) that are read in pieces, up to each of these ends."""
    begins = [0, *ends[:-1]]
    pieces = [idx[:, begin:end] for begin, end in zip(begins, ends, strict=True)]
    return torch.cat([model.features(piece, cache) for piece in pieces], dim=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("seed, shape", enumerate([*SHAPES, dict(n_head=8, n_kv_head=1)]))
def test_a_text_read_at_once_is_what_it_is_token_by_token_to_the_last_bit(dtype, seed, shape):
    try:
        choose_weights(dtype, torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    model = prepare_weights(tiny_model(seed=seed, **shape), dtype)
    length = model.config.block_size
    generator = torch.Generator().manual_seed(seed)
    idx = torch.randint(V, (1, length), generator=generator)
    one_by_one = list(range(1, length + 1))
    in_pieces = [1, 3, 10, length - 1, length]
    with torch.inference_mode():
        at_once = model.features(idx)
        for ends in (one_by_one, in_pieces, [length]):
            for kind in (KVCache, RaggedCache):
                features = features_of_pieces(model, idx, kind(model.config, 1, length), ends)
                assert torch.equal(features, at_once)
        assert torch.equal(model.logits(at_once)[:, -1], model.logits(at_once[:, -1]))
        others = torch.randint(V, (4, length), generator=generator)
        assert torch.equal(model.features(torch.cat((others, idx)))[-1:], at_once)
