"""config.json, both ways."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lathe.reading import KINDS, is_of
from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.families import FAMILIES, GPT2, Family
from lathe.use.hf.foreign import biased_modules, refuse_another_type, refuse_foreign_fields
from lathe.use.hf.ngrams import has_table, our_table, with_table, without_table
from lathe.use.hf.rope import our_rope, their_rope, their_scaling
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
    "gelu_accurate": "gelu_tanh",
    "gelu_python": "gelu",
    "swish": "swiglu",
}

# -----------------------------------------------------------------------------
# Writing


def their_config(c: GPTConfig, architecture: str, dtype: str, tokenizer: Tokenizer) -> dict:
    """config.json, with the keys that transformers, vLLM and llama.cpp read."""
    values = family_config(c, architecture, dtype, tokenizer)
    return with_table(values, c) if c.ngram_rows else values


def family_config(c: GPTConfig, architecture: str, dtype: str, tokenizer: Tokenizer) -> dict:
    """That of a network without a table by n-grams."""
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
        "rope_theta": c.rope_theta,
        "rope_parameters": their_rope(c),
        "rope_scaling": their_scaling(c),
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
        "use_bias": c.bias,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
    }


# -----------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Described:
    """What a config.json says."""

    architecture: str
    config: GPTConfig  # as if there were biases, and gains of norms: the weights tell
    biased: set[str]  # the linear layers of a block that have biases, by our names


def our_config(theirs: dict, path: Path) -> Described:
    """The network that a config.json describes.

    ValueError names what our network does not compute, or what cannot be.
    """
    try:
        return _our_config(theirs, path)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} describes no network: {error}") from error


def _our_config(theirs: dict, path: Path) -> Described:
    table = {}
    if has_table(theirs):
        table = our_table(theirs, path)
        theirs = without_table(theirs)
    architecture = read_architecture(theirs, path)
    family = FAMILIES[architecture]
    keys = GPT2_KEYS if architecture == GPT2 else LLAMA_KEYS
    activation_key = "activation_function" if architecture == GPT2 else "hidden_act"
    activation = theirs.get(activation_key, family.defaults[activation_key])
    if OUR_ACTIVATIONS.get(activation) not in family.settings["activation"]:
        raise ValueError(
            f"{path}: activation is {activation} ({activation_key}), which lathe's network does "
            "not compute"
        )
    numbers = read_numbers(theirs, keys, family, path)
    read = {*keys, activation_key}
    (norm,) = family.settings["norm"]
    if architecture != GPT2:
        eps_key = NORM_EPS_KEYS[norm]
        read.add(eps_key)
        numbers["norm_eps"] = theirs.get(eps_key, family.defaults[eps_key])
        numbers["rope_theta"], numbers["rope_scaling"] = our_rope(theirs, family, path)
    refuse_foreign_fields(theirs, family, read, path)
    refuse_another_type(theirs, architecture, family, path)
    config = GPTConfig(
        **numbers,
        **table,
        position=family.settings["position"][0],
        norm=norm,
        norm_weight=True,
        bias=True,
        zero_init=False,
        activation=OUR_ACTIVATIONS[activation],
        qk_norm="attn.q_norm" in family.block,
    )
    return Described(architecture, config, biased_modules(theirs, family))


def read_architecture(theirs: dict, path: Path) -> str:
    """Its name in FAMILIES, told by model_type where `architectures` is left out."""
    if theirs.get("architectures") is not None:
        name = theirs["architectures"][0]
    else:
        of_type = {family.model_type: name for name, family in FAMILIES.items()}
        name = of_type.get(theirs.get("model_type"), "none")
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"{path}: architecture {name} is not one that lathe reads: {known}")
    return name


def read_numbers(theirs: dict, keys: dict[str, str], family: Family, path: Path) -> dict[str, Any]:
    """{our setting: value} of sizes and other numbers; those left out are as in transformers."""
    may_be_missing = [
        "n_inner",
        "num_key_value_heads",
        "head_dim",
    ]  # 0: as our network derives them
    defaults = dict.fromkeys(may_be_missing, 0) | family.defaults
    numbers = {}
    for key, setting in keys.items():
        value = theirs[key] if key in theirs else defaults.get(key)
        if value is None and key in may_be_missing:
            value = 0
        kind = {"norm_eps": float, "tie_weights": bool}.get(setting, int)
        if not is_of(value, kind):
            raise ValueError(f"{path}: {key} is {theirs.get(key, 'missing')}, not {KINDS[kind]}")
        numbers[setting] = value
    return numbers
