"""The architectures of Hugging Face's that compute what our network does, and their modules.

One table, FAMILIES, serves both directions: config.py and weights.py write and read by it.
"""

from dataclasses import dataclass, field
from typing import Any

from model import GPTConfig


@dataclass(frozen=True)
class Family:
    """An architecture: {our module: theirs}, and what of our network it computes.

    Where a module of ours has several of theirs, its matrix holds theirs, one above the other.
    """

    model_type: str  # as config.json calls it
    block: dict[str, list[str]]  # modules of a block
    settings: dict[
        str, list
    ]  # the values that it can express, of settings that it does not leave free
    blocks: str = "model.layers"  # where the blocks are
    outside: dict[str, str] = field(  # modules outside of blocks, beside lm_head
        default_factory=lambda: {"wte": "model.embed_tokens", "ln_f": "model.norm"}
    )
    conv1d: bool = False  # linear layers hold their weights as (in, out), and always have biases
    # {setting of theirs: modules of a block that have biases where it is true}; "": always
    biases: dict[str, list[str]] = field(default_factory=dict)
    # what its class in transformers has for keys that a config.json leaves out
    defaults: dict[str, Any] = field(default_factory=dict)
    # {setting of theirs: the one value with which it computes what our network does}
    neutral: dict[str, Any] = field(default_factory=dict)
    is_written: bool = True  # False: only read; another family holds the same network


GPT2 = "GPT2LMHeadModel"
GPT2_BLOCK = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
LLAMA_BLOCK = {
    "ln_1": ["input_layernorm"],
    "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.c_proj": ["self_attn.o_proj"],
    "ln_2": ["post_attention_layernorm"],
    "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.c_proj": ["mlp.down_proj"],
}
QK_NORM = {"attn.q_norm": ["self_attn.q_norm"], "attn.k_norm": ["self_attn.k_norm"]}
FUSED = {"attn.c_attn": ["self_attn.qkv_proj"], "mlp.c_fc": ["mlp.gate_up_proj"]}
PLAIN_MLP = {"mlp.c_fc": ["mlp.up_proj"]}
STARCODER2_MLP = {"mlp.c_fc": ["mlp.c_fc"], "mlp.c_proj": ["mlp.c_proj"]}
APERTUS_NORMS = {"ln_1": ["attention_layernorm"], "ln_2": ["feedforward_layernorm"]}

NO_FAMILY_HAS = {"logit_softcap": [0.0]}
LLAMA_LIKE = {"position": ["rope"], "norm": ["rmsnorm"]} | NO_FAMILY_HAS
SWIGLU = {"activation": ["swiglu"]}
PLAIN_ACTIVATION = {"activation": ["relu2", "gelu", "gelu_tanh"]}

IN_ATTENTION = ["attn.c_attn", "attn.c_proj"]
IN_MLP = ["mlp.c_fc", "mlp.c_proj"]
LLAMA_BIASES = {"attention_bias": IN_ATTENTION, "mlp_bias": IN_MLP}
# As of transformers 5.24; tests/use/test_hf_config.py compares them with what is installed.
DEFAULTS = {"hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False}
LLAMA_DEFAULTS = DEFAULTS | {"rms_norm_eps": 1e-6}
QWEN_DEFAULTS = LLAMA_DEFAULTS | {"num_key_value_heads": 32}
APERTUS_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12000000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}

FAMILIES = {
    GPT2: Family(
        model_type="gpt2",
        block={name: [name] for name in GPT2_BLOCK},
        settings=NO_FAMILY_HAS
        | {
            "position": ["learned"],
            "norm": ["layernorm"],
            "activation": ["gelu", "gelu_tanh"],
            "qk_norm": [False],
            "rope_scaling": [""],
        },
        blocks="transformer.h",
        outside={name: f"transformer.{name}" for name in ("wte", "wpe", "ln_f")},
        conv1d=True,
        biases={"": [*IN_ATTENTION, *IN_MLP]},
        defaults={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
        },
        neutral={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
    "LlamaForCausalLM": Family(
        model_type="llama",
        block=LLAMA_BLOCK,
        settings=LLAMA_LIKE | SWIGLU | {"qk_norm": [False]},
        biases=LLAMA_BIASES,
        defaults=LLAMA_DEFAULTS,
        neutral={"pretraining_tp": 1},
    ),
    "Qwen3ForCausalLM": Family(
        model_type="qwen3",
        block=LLAMA_BLOCK | QK_NORM,
        settings=LLAMA_LIKE | SWIGLU | {"qk_norm": [True], "bias": [False]},
        biases={"attention_bias": IN_ATTENTION},
        defaults=QWEN_DEFAULTS | {"head_dim": 128},
    ),
    "ArceeForCausalLM": Family(
        model_type="arcee",
        block=LLAMA_BLOCK | PLAIN_MLP,
        settings=LLAMA_LIKE | PLAIN_ACTIVATION | {"qk_norm": [False]},
        biases=LLAMA_BIASES,
        defaults=LLAMA_DEFAULTS | {"hidden_act": "relu2", "rms_norm_eps": 1e-5},
    ),
    "ApertusForCausalLM": Family(
        model_type="apertus",
        block=LLAMA_BLOCK | PLAIN_MLP | QK_NORM | APERTUS_NORMS,
        settings=LLAMA_LIKE | PLAIN_ACTIVATION | {"qk_norm": [True], "bias": [False]},
        biases={"attention_bias": IN_ATTENTION},
        defaults=LLAMA_DEFAULTS
        | {
            "hidden_act": "xielu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 12000000.0,
            "rope_parameters": APERTUS_ROPE,
        },
    ),
    "Starcoder2ForCausalLM": Family(
        model_type="starcoder2",
        block=LLAMA_BLOCK | STARCODER2_MLP,
        settings=LLAMA_LIKE | {"norm": ["layernorm"]} | PLAIN_ACTIVATION | {"qk_norm": [False]},
        biases={"use_bias": [*IN_ATTENTION, *IN_MLP]},
        neutral={
            "mlp_type": "default",
            "norm_type": "layer_norm",
        },  # of the first that were published
        defaults=DEFAULTS
        | {
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": 1e-5,
            "num_key_value_heads": 2,
            "use_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    # Of these a network of ours is written as one of those above.
    "MistralForCausalLM": Family(
        model_type="mistral",
        block=LLAMA_BLOCK,
        settings=LLAMA_LIKE | SWIGLU | {"qk_norm": [False]},
        defaults=LLAMA_DEFAULTS | {"num_key_value_heads": 8, "sliding_window": 4096},
        is_written=False,
    ),
    "Qwen2ForCausalLM": Family(
        model_type="qwen2",
        block=LLAMA_BLOCK,
        settings=LLAMA_LIKE | SWIGLU | {"qk_norm": [False]},
        biases={"": ["attn.c_attn"]},
        defaults=QWEN_DEFAULTS,
        is_written=False,
    ),
    "Phi3ForCausalLM": Family(
        model_type="phi3",
        block=LLAMA_BLOCK | FUSED,
        settings=LLAMA_LIKE | SWIGLU | {"qk_norm": [False]},
        defaults=LLAMA_DEFAULTS | {"rms_norm_eps": 1e-5},
        is_written=False,
    ),
    "SmolLM3ForCausalLM": Family(
        model_type="smollm3",
        block=LLAMA_BLOCK,
        settings=LLAMA_LIKE | SWIGLU | {"qk_norm": [False]},
        biases=LLAMA_BIASES,
        defaults=LLAMA_DEFAULTS
        | {
            "num_key_value_heads": 4,
            "rope_theta": 2000000.0,
            "tie_word_embeddings": True,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
        },
        is_written=False,
    ),
    "GraniteForCausalLM": Family(
        model_type="granite",
        block=LLAMA_BLOCK,
        settings=LLAMA_LIKE | SWIGLU | {"qk_norm": [False]},
        biases=LLAMA_BIASES,
        defaults=LLAMA_DEFAULTS | {"attention_multiplier": 1.0},
        neutral={"embedding_multiplier": 1, "residual_multiplier": 1, "logits_scaling": 1},
        is_written=False,
    ),
    "OlmoForCausalLM": Family(
        model_type="olmo",
        block=LLAMA_BLOCK,
        settings=LLAMA_LIKE
        | SWIGLU
        | {"norm": ["layernorm"], "norm_weight": [False], "qk_norm": [False]},
        biases={"attention_bias": IN_ATTENTION},
        defaults=DEFAULTS | {"norm_epsilon": 1e-5},
        neutral={"norm_epsilon": 1e-5},  # which stands in its code
        is_written=False,
    ),
}
WRITTEN = [name for name, family in FAMILIES.items() if family.is_written]


def architecture_of(config: GPTConfig) -> str:
    """The architecture that computes what this configuration does. ValueError names the settings
    that none has."""
    faults = {name: faults_of(config, name) for name in WRITTEN}
    fewest = min(len(faults_of_family) for faults_of_family in faults.values())
    nearest = [name for name in WRITTEN if len(faults[name]) == fewest]
    if fewest:
        changes = [f"{', '.join(faults[name])} (not in {name})" for name in nearest]
        raise ValueError(
            "no model of Hugging Face's computes what these settings do: change "
            + " or ".join(changes)
        )
    return nearest[0]


def faults_of(config: GPTConfig, architecture: str) -> list[str]:
    """What this architecture does not compute, as SETTING=VALUE."""
    allowed = FAMILIES[architecture].settings
    names = [name for name, values in allowed.items() if getattr(config, name) not in values]
    if architecture == GPT2 and config.n_kv_head != config.n_head:
        names.append("n_kv_head")
    if architecture == GPT2 and config.n_head * config.head_dim != config.n_embd:
        names.append("head_dim")
    return [f"{name}={getattr(config, name)}" for name in names]
