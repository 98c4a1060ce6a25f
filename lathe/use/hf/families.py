"""The architectures of Hugging Face's that compute what our network does, and their modules.

One table, FAMILIES, serves both directions: config.py and weights.py write and read by it.
"""

from dataclasses import dataclass, field

from model import GPTConfig


@dataclass(frozen=True)
class Family:
    """An architecture: {our module: theirs}, and what of our network it computes.

    Where a module of ours has several of theirs, its matrix holds theirs, one above the other.
    """

    block: dict[str, list[str]]  # modules of a block
    settings: dict[
        str, list
    ]  # the values that it can express, of settings that it does not leave free
    blocks: str = "model.layers"  # where the blocks are
    outside: dict[str, str] = field(  # modules outside of blocks, beside lm_head
        default_factory=lambda: {"wte": "model.embed_tokens", "ln_f": "model.norm"}
    )
    conv1d: bool = False  # linear layers hold their weights as (in, out), and always have biases


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
PLAIN_MLP = {"mlp.c_fc": ["mlp.up_proj"]}
STARCODER2_MLP = {"mlp.c_fc": ["mlp.c_fc"], "mlp.c_proj": ["mlp.c_proj"]}
APERTUS_NORMS = {"ln_1": ["attention_layernorm"], "ln_2": ["feedforward_layernorm"]}

NO_FAMILY_HAS = {"logit_softcap": [0.0], "bigram_rows": [0]}
LLAMA_LIKE = {"position": ["rope"], "norm": ["rmsnorm"]} | NO_FAMILY_HAS
SWIGLU = {"activation": ["swiglu"]}
PLAIN_ACTIVATION = {"activation": ["relu2", "gelu", "gelu_tanh"]}

FAMILIES = {
    GPT2: Family(
        block={name: [name] for name in GPT2_BLOCK},
        settings=NO_FAMILY_HAS
        | {
            "position": ["learned"],
            "norm": ["layernorm"],
            "activation": ["gelu", "gelu_tanh"],
            "qk_norm": [False],
        },
        blocks="transformer.h",
        outside={name: f"transformer.{name}" for name in ("wte", "wpe", "ln_f")},
        conv1d=True,
    ),
    "LlamaForCausalLM": Family(
        block=LLAMA_BLOCK,
        settings=LLAMA_LIKE | SWIGLU | {"qk_norm": [False]},
    ),
    "Qwen3ForCausalLM": Family(
        block=LLAMA_BLOCK | QK_NORM,
        settings=LLAMA_LIKE | SWIGLU | {"qk_norm": [True], "bias": [False]},
    ),
    "ArceeForCausalLM": Family(
        block=LLAMA_BLOCK | PLAIN_MLP,
        settings=LLAMA_LIKE | PLAIN_ACTIVATION | {"qk_norm": [False]},
    ),
    "ApertusForCausalLM": Family(
        block=LLAMA_BLOCK | PLAIN_MLP | QK_NORM | APERTUS_NORMS,
        settings=LLAMA_LIKE | PLAIN_ACTIVATION | {"qk_norm": [True], "bias": [False]},
    ),
    "Starcoder2ForCausalLM": Family(
        block=LLAMA_BLOCK | STARCODER2_MLP,
        settings=LLAMA_LIKE | {"norm": ["layernorm"]} | PLAIN_ACTIVATION | {"qk_norm": [False]},
    ),
}


def architecture_of(config: GPTConfig) -> str:
    """The architecture that computes what this configuration does. ValueError names the settings
    that none has."""
    faults = {name: faults_of(config, name) for name in FAMILIES}
    fewest = min(len(faults_of_family) for faults_of_family in faults.values())
    nearest = [name for name in FAMILIES if len(faults[name]) == fewest]
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
