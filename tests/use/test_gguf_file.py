"""GGUF files: what llama.cpp reads of one is our network and our tokenizer."""

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from exports import CHARACTERS, LETTERS, MAPPED, bpe_tokenizer, tiny_model
from torch.nn import functional as F

from lathe.text.library import NASTY
from lathe.text.patterns import CL100K_PATTERN, O200K_PATTERN
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use.gguf_file import (
    LLAMA_CPP,
    faults_for_llama_cpp,
    their_merges,
    with_neighbours_rotated,
    write_gguf,
    xielu_of_relu2,
)
from lathe.use.hf.families import GPT2
from model import GPT, GPTConfig, rope_frequencies, rope_table, rotate

BPE = bpe_tokenizer()
HELD = [  # of our networks, the ones that llama.cpp computes
    (settings, architecture)
    for settings, architecture in MAPPED
    if not faults_for_llama_cpp(tiny_model(**settings).config, CHARACTERS)
]


def written(folder: Path, model: GPT, tokenizer: Tokenizer = CHARACTERS, kind: str = "f32", **more):
    path = folder / "model.gguf"
    path.unlink(missing_ok=True)
    write_gguf(model, tokenizer, path, kind, **more)
    return gguf.GGUFReader(path)


def tensors(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """As float32, in the order of rows that ours have."""
    values = {}
    for tensor in reader.tensors:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values[tensor.name] = torch.tensor(array).reshape(tuple(map(int, reversed(tensor.shape))))
    return values


def value(reader: gguf.GGUFReader, key: str):
    return reader.get_field(key).contents()


def in_halves(rows: torch.Tensor, n_heads: int) -> torch.Tensor:
    """The way back: from pairs of neighbours to the two halves of each head."""
    heads = rows.unflatten(0, (n_heads, -1))
    return torch.cat([heads[:, 0::2], heads[:, 1::2]], dim=1).reshape(rows.shape)


@pytest.mark.parametrize(("settings", "architecture"), HELD)
def test_every_tensor_of_a_file_is_ours(tmp_path, settings, architecture):
    model = tiny_model(**settings)
    c = model.config
    reader = written(tmp_path, model)
    theirs = tensors(reader)
    state = model.state_dict()
    assert value(reader, "general.architecture") == LLAMA_CPP[architecture].name

    queries, keys, values = (
        c.n_head * c.head_dim,
        c.n_kv_head * c.head_dim,
        c.n_kv_head * c.head_dim,
    )
    for i in range(c.n_layer):
        ours = {name.removeprefix(f"transformer.h.{i}."): t for name, t in state.items()}
        for kind in ("weight", "bias") if c.bias else ("weight",):
            qkv = ours[f"attn.c_attn.{kind}"]
            if architecture == GPT2:
                assert torch.equal(theirs[f"blk.{i}.attn_qkv.{kind}"], qkv)
            else:
                q, k, v = qkv.split([queries, keys, values])
                q_theirs, k_theirs = (
                    theirs[f"blk.{i}.attn_q.{kind}"],
                    theirs[f"blk.{i}.attn_k.{kind}"],
                )
                if LLAMA_CPP[architecture].rotates_neighbours:
                    q_theirs, k_theirs = (
                        in_halves(q_theirs, c.n_head),
                        in_halves(k_theirs, c.n_kv_head),
                    )
                assert torch.equal(q_theirs, q) and torch.equal(k_theirs, k)
                assert torch.equal(theirs[f"blk.{i}.attn_v.{kind}"], v)
            assert torch.equal(theirs[f"blk.{i}.ffn_down.{kind}"], ours[f"mlp.c_proj.{kind}"])
        if c.activation == "swiglu":
            both = torch.cat([theirs[f"blk.{i}.ffn_gate.weight"], theirs[f"blk.{i}.ffn_up.weight"]])
            assert torch.equal(both, ours["mlp.c_fc.weight"])
        if LLAMA_CPP[architecture].needs_biases and not c.bias:
            assert theirs[f"blk.{i}.ffn_up.bias"].eq(0).all()
        if not c.norm_weight:
            assert theirs[f"blk.{i}.ffn_norm.weight"].eq(1).all()
        if c.qk_norm:
            expected = ours.get("attn.q_norm", torch.ones(c.head_dim))
            assert torch.equal(theirs[f"blk.{i}.attn_q_norm.weight"], expected)
    table = state["transformer.wte.weight"][: c.vocab_size]
    assert torch.equal(theirs["token_embd.weight"], table)
    head = theirs.get("output.weight", table)
    assert torch.equal(head, table if c.tie_weights else state["lm_head.weight"][: c.vocab_size])
    assert ("output.weight" in theirs) == (not c.tie_weights or architecture.startswith("Apertus"))
    if architecture == GPT2:
        assert torch.equal(theirs["position_embd.weight"], state["transformer.wpe.weight"])


def test_the_network_is_described_in_full(tmp_path):
    model = tiny_model(
        position="rope", norm="rmsnorm", activation="swiglu", qk_norm=True, head_dim=16, n_kv_head=2,
        rope_theta=500.0, norm_eps=1e-6, n_hidden=48,
    )  # fmt: skip
    reader = written(tmp_path, model)
    expected = {
        "block_count": 2,
        "context_length": 20,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "rope.dimension_count": 16,
        "rope.freq_base": 500.0,
        "vocab_size": CHARACTERS.vocab_size,
    }
    assert {key: value(reader, f"qwen3.{key}") for key in expected} == expected
    assert value(reader, "qwen3.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)


def test_a_scaled_rotation_is_written_as_a_number_or_a_factor_for_each_frequency(tmp_path):
    llama = dict(position="rope", norm="rmsnorm", activation="swiglu", qk_norm=False)
    reader = written(tmp_path, tiny_model(**llama, rope_scaling="linear:4"))
    assert value(reader, "llama.rope.scaling.type") == "linear"
    assert value(reader, "llama.rope.scaling.factor") == 4.0
    assert "rope_freqs.weight" not in tensors(reader)
    scaling = "llama3:8:1:4:64"
    factors = tensors(written(tmp_path, tiny_model(**llama, rope_scaling=scaling)))[
        "rope_freqs.weight"
    ]
    angles = rope_frequencies(8, 10000.0, "") / factors
    assert torch.allclose(angles, rope_frequencies(8, 10000.0, scaling))
    assert factors.min() == 1 and factors.max() == 8


def test_rotating_neighbours_of_reordered_rows_is_rotating_halves():
    config = GPTConfig(n_head=2, n_embd=16, vocab_size=8, n_layer=1)
    x = torch.randn(16)  # a query: 2 heads of 8
    cos, sin = rope_table(6, 8, 100.0)[:, 5]  # (1, hd) each, at position 5
    halves = rotate(x.view(1, 1, 2, 8), cos[None], sin[None]).view(2, 8)
    name = "model.layers.0.self_attn.q_proj.weight"
    reordered = with_neighbours_rotated(name, x, config).view(2, 8)
    even, odd = reordered[:, 0::2], reordered[:, 1::2]
    c, s = cos[0, :4], sin[0, 4:]
    pairs = torch.stack([even * c - odd * s, odd * c + even * s], dim=-1)
    assert torch.allclose(in_halves(pairs.reshape(16), 2).view(2, 8), halves, atol=1e-6)


def test_xielu_is_relu_squared_with_the_parameters_that_are_written():
    x = torch.linspace(-4, 4, 101)
    p = {name: torch.tensor(number) for name, number in xielu_of_relu2().items()}
    up, down = F.softplus(p["alpha_p"]), p["beta"] + F.softplus(p["alpha_n"])
    below = (torch.expm1(torch.minimum(x, p["eps"])) - x) * down + p["beta"] * x
    xielu = torch.where(x > 0, up * x * x + p["beta"] * x, below)
    assert torch.allclose(xielu, F.relu(x).square(), atol=1e-5)


@pytest.mark.parametrize(("kind", "error"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 1e-2)])
def test_matrices_are_of_the_type_asked_for_and_vectors_float32(tmp_path, kind, error):
    settings, _ = MAPPED[0]  # with learned positions
    reader = written(tmp_path, tiny_model(**settings), kind=kind)
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    assert types["token_embd.weight"] == types["blk.1.ffn_up.weight"] == kind
    assert types["position_embd.weight"] == types["blk.0.attn_norm.weight"] == "f32"
    exact = tensors(written(tmp_path, tiny_model(**settings)))
    for name, tensor in tensors(reader).items():
        assert (tensor - exact[name]).abs().max() <= error * exact[name].abs().max()


def test_rows_that_have_no_place_in_q8_0_are_f16_and_that_is_said(tmp_path, capsys):
    model = tiny_model(position="rope", norm="rmsnorm", activation="swiglu", n_hidden=40)
    reader = written(tmp_path, model, kind="q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q8_0"
    assert "2 matrices are f16" in capsys.readouterr().err


def test_numbers_too_large_for_16_bits_are_refused(tmp_path):
    model = tiny_model(position="rope", norm="rmsnorm", activation="swiglu")
    model.transformer.h[1].mlp.c_proj.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match="gguf_type=f16: blk.1.ffn_down.weight.*bf16"):
        written(tmp_path, model, kind="f16")


# -----------------------------------------------------------------------------
# Tokenizers


def ids_by_merges(reader: gguf.GGUFReader, text: str) -> list[int]:
    """What llama.cpp does with a text: cut as GPT-2's, one symbol a byte, lowest merge first."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = value(reader, "tokenizer.ggml.tokens")
    id_of = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in value(reader, "tokenizer.ggml.merges")]
    rank = {pair: i for i, pair in enumerate(pairs)}
    ids = []
    for word, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(text):
        parts = list(word)
        while True:
            ranks = [rank.get(pair, math.inf) for pair in zip(parts, parts[1:], strict=False)]
            if min(ranks, default=math.inf) == math.inf:
                break
            i = ranks.index(min(ranks))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [id_of[part] for part in parts]
    return ids


@pytest.mark.parametrize(
    "tokenizer", [BPE, CHARACTERS, load_tokenizer("byte")], ids=lambda t: t.kind
)
def test_vocabulary_and_merges_give_our_ids(tmp_path, tokenizer):
    model = tiny_model(tokenizer, position="rope", norm="rmsnorm", activation="swiglu")
    reader = written(tmp_path, model, tokenizer)
    texts = NASTY[:-2]
    if tokenizer.kind == "char":
        texts = ["".join(c for c in text if c in LETTERS) for text in [*NASTY, LETTERS, "é日é日日"]]
    for text in texts:
        assert ids_by_merges(reader, text) == tokenizer.encode(text), text
    assert value(reader, "tokenizer.ggml.pre") == "gpt-2"
    assert len(value(reader, "tokenizer.ggml.tokens")) == tokenizer.vocab_size


def test_end_of_text_begins_and_ends_a_text_and_is_never_made_of_one(tmp_path):
    model = tiny_model(BPE, position="rope", norm="rmsnorm", activation="swiglu")
    reader = written(tmp_path, model, BPE, template="chat")
    for name in ("bos", "eos"):
        assert value(reader, f"tokenizer.ggml.{name}_token_id") == BPE.eot_id
    assert value(reader, "tokenizer.ggml.add_bos_token") is True
    assert value(reader, "tokenizer.ggml.add_eos_token") is False
    types = value(reader, "tokenizer.ggml.token_type")
    assert [i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL] == [BPE.eot_id]
    assert "User: " in value(reader, "tokenizer.chat_template")


def test_a_byte_tokenizer_has_one_merge_that_no_text_has():
    byte = load_tokenizer("byte")
    (merge,) = their_merges(byte, {i: chr(0x4E00 + i) for i in range(256)})
    left, _ = merge.split(" ")
    assert len(left) > 1  # symbols begin as one byte each


def with_pattern(pattern: str) -> Tokenizer:
    return Tokenizer("bpe", "other", BPE.pieces, BPE.specials, pattern)


@pytest.mark.parametrize(
    ("settings", "tokenizer", "fault"),
    [
        (dict(MAPPED[1][0]), BPE, "activation=gelu"),
        (dict(MAPPED[8][0]), BPE, "activation=gelu, bias=True"),
        (dict(MAPPED[12][0]), BPE, "activation=relu2"),
        (dict(MAPPED[3][0]), with_pattern(CL100K_PATTERN), "tokenizer=other .*pattern"),
        (dict(MAPPED[3][0]), with_pattern(O200K_PATTERN), "tokenizer=other .*pattern"),
        (dict(MAPPED[3][0], vocab_size=7), BPE, "vocab_size=7"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused_by_name(tmp_path, settings, tokenizer, fault):
    with pytest.raises(ValueError, match=f"llama.cpp cannot hold {fault}"):
        write_gguf(tiny_model(tokenizer, **settings), tokenizer, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_hold_what_was_written_is_refused(tmp_path, monkeypatch):
    model = tiny_model(position="rope", norm="rmsnorm", activation="swiglu", qk_norm=False)
    whole = gguf.GGUFWriter.write_tensors_to_file

    def damaged(writer: gguf.GGUFWriter):
        first = next(iter(writer.tensors[0].values()))
        first.tensor = np.zeros_like(first.tensor)
        whole(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", damaged)
    with pytest.raises(ValueError, match="token_embd.weight is not what was written"):
        written(tmp_path, model)

    close = gguf.GGUFWriter.close

    def other_keys(writer: gguf.GGUFWriter):
        close(writer)
        writer.kv_data[0]["llama.block_count"].value = 3

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", whole)
    monkeypatch.setattr(gguf.GGUFWriter, "close", other_keys)
    with pytest.raises(ValueError, match="llama.block_count is not what was written"):
        written(tmp_path, model)
