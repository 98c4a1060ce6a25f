"""config.json, both ways."""

from pathlib import Path

from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.families import ACTIVATIONS, FAMILIES, GPT2_KEYS, KEYS, THEIR_ACTIVATIONS
from model import GPTConfig


def their_config(c: GPTConfig, architecture: str, dtype: str, tokenizer: Tokenizer) -> dict:
    """config.json, with the keys that transformers, vLLM and llama.cpp read."""
    gpt2 = architecture == "GPT2LMHeadModel"
    common = {theirs: getattr(c, ours) for theirs, ours in (GPT2_KEYS if gpt2 else KEYS).items()}
    common |= {"architectures": [architecture], "dtype": dtype, "torch_dtype": dtype, "use_cache": True}
    common |= {"initializer_range": 0.02, "bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id}
    if gpt2:
        return common | {
            "model_type": "gpt2", "n_ctx": c.block_size, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
            "activation_function": "gelu_new" if c.activation == "gelu_tanh" else c.activation,
        }  # fmt: skip
    return common | {
        "model_type": architecture.removesuffix("ForCausalLM").lower(), "hidden_act": ACTIVATIONS[c.activation],
        "norm_epsilon" if c.norm == "layernorm" else "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "attention_bias": c.bias, "mlp_bias": c.bias, "use_bias": c.bias,
        "attention_dropout": 0.0, "use_sliding_window": False, "sliding_window": None,
    }  # fmt: skip


def our_config(theirs: dict, where: Path) -> tuple[str, GPTConfig]:
    """(architecture, configuration) of a config.json. ValueError names what our network does not compute."""
    name = (theirs.get("architectures") or ["none"])[0]
    name = "GPT2LMHeadModel" if name == "none" and theirs.get("model_type") == "gpt2" else name
    if name not in FAMILIES:
        raise ValueError(f"{where}: architecture {name} is not one that lathe reads: {', '.join(FAMILIES)}")
    gpt2, norm = name == "GPT2LMHeadModel", FAMILIES[name][1]["norm"][0]
    rope = theirs.get("rope_parameters") or {}
    usual = {"n_positions": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": norm == "layernorm"}
    usual |= {"n_inner": 0, "num_key_value_heads": 0, "head_dim": 0, "rope_theta": rope.get("rope_theta") or 10000.0}
    found = {}
    for key, ours in (GPT2_KEYS if gpt2 else KEYS).items():
        found[ours] = theirs.get(key) if theirs.get(key) is not None else usual.get(key)
        whole = ours not in ("norm_eps", "rope_theta")
        if not isinstance(found[ours], int if whole else (int, float)):
            kind = "whole number" if whole else "number"
            raise ValueError(f"{where}: {key} is {theirs.get(key, 'missing')}, not a {kind}")
    scaling = theirs.get("rope_scaling") or rope
    act = theirs.get("activation_function", "gelu_new") if gpt2 else theirs.get("hidden_act", "silu")
    activation = THEIR_ACTIVATIONS.get(act)
    layers = theirs.get("layer_types") or []
    window = theirs.get("sliding_window") if theirs.get("use_sliding_window", name == "Starcoder2ForCausalLM") else None
    for setting, value, right in (
        ("rope_scaling", scaling, scaling.get("rope_type", scaling.get("type", "default")) == "default"),
        ("activation", act, activation in FAMILIES[name][1]["activation"]),
        ("layer_types", layers, set(layers) <= {"full_attention"}),
        ("sliding_window", window, not window or window >= theirs.get("max_position_embeddings", 0)),
        ("scale_attn_weights", False, theirs.get("scale_attn_weights", True)),
        ("scale_attn_by_inverse_layer_idx", True, not theirs.get("scale_attn_by_inverse_layer_idx")),
        ("partial_rotary_factor", rope.get("partial_rotary_factor"), rope.get("partial_rotary_factor", 1.0) == 1.0),
        ("pretraining_tp", theirs.get("pretraining_tp"), theirs.get("pretraining_tp", 1) == 1),
    ):
        if not right:
            raise ValueError(f"{where}: {setting} is {value}, which lathe's network does not compute")
    if not gpt2:
        found["norm_eps"] = theirs.get("norm_epsilon" if norm == "layernorm" else "rms_norm_eps", 1e-6)
    return name, GPTConfig(
        **found, position=FAMILIES[name][1]["position"][0], norm=norm, norm_weight=True, bias=True, zero_init=False,
        activation=activation, qk_norm="attn.q_norm" in FAMILIES[name][0],
    )  # fmt: skip
