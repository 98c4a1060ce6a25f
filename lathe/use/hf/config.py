"""config.json, both ways."""

from pathlib import Path

from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.families import FAMILIES, GPT2
from model import GPTConfig

# {their key: our setting}
GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "tie_word_embeddings": "tie_weights",
    "n_positions": "block_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_inner": "n_hidden",
    "layer_norm_epsilon": "norm_eps",
}
LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "tie_word_embeddings": "tie_weights",
    "max_position_embeddings": "block_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "head_dim": "head_dim",
    "hidden_size": "n_embd",
    "intermediate_size": "n_hidden",
    "rope_theta": "rope_theta",
}
NORM_EPS_KEYS = {"layernorm": "norm_epsilon", "rmsnorm": "rms_norm_eps"}  # where GPT-2's is not

# {our activation: theirs}; what is read may have an older name
ACTIVATIONS = {
    "swiglu": "silu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
}
OUR_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "swiglu",
}

# -----------------------------------------------------------------------------
# Writing


def their_config(c: GPTConfig, architecture: str, dtype: str, tokenizer: Tokenizer) -> dict:
    """config.json, with the keys that transformers, vLLM and llama.cpp read."""
    keys = GPT2_KEYS if architecture == GPT2 else LLAMA_KEYS
    values = {theirs: getattr(c, ours) for theirs, ours in keys.items()}
    values |= {
        "architectures": [architecture],
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
        "initializer_range": 0.02,
        "bos_token_id": tokenizer.eot_id,
        "eos_token_id": tokenizer.eot_id,
    }
    if architecture == GPT2:
        return values | {
            "model_type": "gpt2",
            "n_ctx": c.block_size,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "activation_function": "gelu_new" if c.activation == "gelu_tanh" else c.activation,
        }
    return values | {
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "hidden_act": ACTIVATIONS[c.activation],
        NORM_EPS_KEYS[c.norm]: c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "rope_scaling": None,  # transformers 4.57 would take the usual one of a family
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
        "use_bias": c.bias,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
    }


# -----------------------------------------------------------------------------
# Reading


def our_config(theirs: dict, path: Path) -> tuple[str, GPTConfig]:
    """(architecture, configuration) of a config.json.

    It says nothing sure of biases and gains of norms: here they are there. ValueError names what
    our network does not compute, or what cannot be.
    """
    try:
        return _our_config(theirs, path)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} describes no network: {error}") from error


def _our_config(theirs: dict, path: Path) -> tuple[str, GPTConfig]:
    architecture = read_architecture(theirs, path)
    numbers = read_numbers(theirs, architecture, path)
    refuse_what_we_do_not_compute(theirs, architecture, path)
    family = FAMILIES[architecture]
    config = GPTConfig(
        **numbers,
        position=family.settings["position"][0],
        norm=family.settings["norm"][0],
        norm_weight=True,
        bias=True,
        zero_init=False,
        activation=OUR_ACTIVATIONS[their_activation(theirs, architecture)],
        qk_norm="attn.q_norm" in family.block,
    )
    return architecture, config


def read_architecture(theirs: dict, path: Path) -> str:
    names = theirs.get("architectures")
    if names:
        name = names[0]
    elif theirs.get("model_type") == "gpt2":
        name = GPT2
    else:
        name = "none"
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"{path}: architecture {name} is not one that lathe reads: {known}")
    return name


def read_numbers(theirs: dict, architecture: str, path: Path) -> dict[str, int | float]:
    """{our setting: value} of sizes and other numbers; those left out are as in transformers."""
    (norm,) = FAMILIES[architecture].settings["norm"]
    rope = theirs.get("rope_parameters") or {}
    defaults = {
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": norm == "layernorm",
        "n_inner": 0,  # 0: as our network derives them
        "num_key_value_heads": 0,
        "head_dim": 0,
        "rope_theta": rope.get("rope_theta") or 10000.0,
    }
    numbers = {}
    keys = GPT2_KEYS if architecture == GPT2 else LLAMA_KEYS
    for key, setting in keys.items():
        value = theirs.get(key)
        if value is None:
            value = defaults.get(key)
        may_be_fraction = setting in ("norm_eps", "rope_theta")
        if not isinstance(value, (int, float) if may_be_fraction else int):
            kind = "number" if may_be_fraction else "whole number"
            raise ValueError(f"{path}: {key} is {theirs.get(key, 'missing')}, not a {kind}")
        numbers[setting] = value
    if architecture != GPT2:
        numbers["norm_eps"] = theirs.get(NORM_EPS_KEYS[norm], 1e-6)
    return numbers


def their_activation(theirs: dict, architecture: str) -> str:
    if architecture == GPT2:
        return theirs.get("activation_function", "gelu_new")
    return theirs.get("hidden_act", "silu")


def refuse_what_we_do_not_compute(theirs: dict, architecture: str, path: Path):
    """ValueError for the first value that changes what their network computes, and not ours."""

    def refuse(setting: str, value: object):
        raise ValueError(f"{path}: {setting} is {value}, which lathe's network does not compute")

    rope = theirs.get("rope_parameters") or {}
    scaling = theirs.get("rope_scaling") or rope
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        refuse("rope_scaling", scaling)

    activation = their_activation(theirs, architecture)
    if OUR_ACTIVATIONS.get(activation) not in FAMILIES[architecture].settings["activation"]:
        refuse("activation", activation)

    layer_types = theirs.get("layer_types") or []
    if not set(layer_types) <= {"full_attention"}:
        refuse("layer_types", layer_types)

    uses_window = theirs.get("use_sliding_window", architecture == "Starcoder2ForCausalLM")
    window = theirs.get("sliding_window")
    if uses_window and window and window < theirs.get("max_position_embeddings", 0):
        refuse("sliding_window", window)

    if not theirs.get("scale_attn_weights", True):
        refuse("scale_attn_weights", False)
    if theirs.get("scale_attn_by_inverse_layer_idx"):
        refuse("scale_attn_by_inverse_layer_idx", True)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        refuse("partial_rotary_factor", rope["partial_rotary_factor"])
    if theirs.get("pretraining_tp", 1) != 1:
        refuse("pretraining_tp", theirs["pretraining_tp"])
