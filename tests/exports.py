"""Networks of every kind that maps to one of Hugging Face's; shared by the tests of exports."""

import argparse
from pathlib import Path

import torch

from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.gpt2 import GPT2_PATTERN
from lathe.text.tokenizer import Tokenizer, train_char
from lathe.use.hf.export import export
from model import GPT, GPT2, GPTConfig

CONTEXT = 20
LETTERS = "abcdefghijklmnopqrstuvwxyzABC \n.,!é日"
CHARACTERS = train_char([LETTERS])

MODERN = dict(position="rope", norm="rmsnorm")
WITH_ALL = dict(bias=True, norm_weight=True, tie_weights=True)
MAPPED = [  # (our settings, their class)
    (dict(GPT2), "GPT2LMHeadModel"),
    (dict(GPT2, activation="gelu", bias=False), "GPT2LMHeadModel"),
    (dict(GPT2, norm_weight=False, bias=False, tie_weights=False), "GPT2LMHeadModel"),
    (dict(MODERN, activation="swiglu", qk_norm=False), "LlamaForCausalLM"),
    (dict(MODERN, **WITH_ALL, qk_norm=False, n_kv_head=2), "LlamaForCausalLM"),
    (dict(MODERN, activation="swiglu", qk_norm=True, n_kv_head=2), "Qwen3ForCausalLM"),
    (
        dict(MODERN, norm_weight=True, head_dim=16, rope_theta=500.0, norm_eps=1e-6),
        "Qwen3ForCausalLM",
    ),
    (dict(MODERN, activation="relu2", qk_norm=False, n_kv_head=2), "ArceeForCausalLM"),
    (dict(MODERN, activation="gelu", qk_norm=False, bias=True), "ArceeForCausalLM"),
    (dict(MODERN, activation="gelu_tanh", qk_norm=False), "ArceeForCausalLM"),
    (
        dict(MODERN, activation="relu2", qk_norm=True, norm_weight=True, n_kv_head=2),
        "ApertusForCausalLM",
    ),
    (
        dict(norm="layernorm", activation="gelu_tanh", qk_norm=False, n_kv_head=2),
        "Starcoder2ForCausalLM",
    ),
    (
        dict(WITH_ALL, norm="layernorm", activation="relu2", qk_norm=False),
        "Starcoder2ForCausalLM",
    ),
]


def bpe_tokenizer() -> Tokenizer:
    """Of a vocabulary that the network pads."""
    source = Path(argparse.__file__).read_text(encoding="utf-8")
    return train_bpe(count_pieces([source], GPT2_PATTERN), 1100)


def tiny_model(tokenizer: Tokenizer = CHARACTERS, **changes) -> GPT:
    """An untrained network of which no tensor is all zeros or ones."""
    torch.manual_seed(0)
    shape = dict(block_size=CONTEXT, n_layer=2, n_head=4, n_embd=32, zero_init=False)
    config = GPTConfig(**{"vocab_size": tokenizer.vocab_size, **shape, **changes})
    model = GPT(config).eval()
    for p in model.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    return model


def exported(folder: Path, **changes) -> GPT:
    """The network that was written into the folder."""
    model = tiny_model(**changes)
    export(model, CHARACTERS, folder)
    return model
