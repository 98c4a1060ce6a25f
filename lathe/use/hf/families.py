"""Which architecture of Hugging Face's computes what a configuration does, and where its tensors are."""

from collections.abc import Iterator

from model import GPTConfig

# {architecture: (where each module of our blocks is in theirs, the settings' values that it can express)}. Where there
# are several names, ours holds them in one matrix, one above the other.
_LLAMA = {
    "ln_1": ["input_layernorm"],
    "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.c_proj": ["self_attn.o_proj"],
    "ln_2": ["post_attention_layernorm"],
    "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.c_proj": ["mlp.down_proj"],
}
_QK = {"attn.q_norm": ["self_attn.q_norm"], "attn.k_norm": ["self_attn.k_norm"]}
_PLAIN_MLP = {"mlp.c_fc": ["mlp.up_proj"]}
_APERTUS_NORMS = {"ln_1": ["attention_layernorm"], "ln_2": ["feedforward_layernorm"]}
_NONE_HAS = dict(logit_softcap=[0.0], bigram_rows=[0])
_ROTARY = dict(position=["rope"], norm=["rmsnorm"]) | _NONE_HAS
_PLAIN_ACTIVATIONS = ["relu2", "gelu", "gelu_tanh"]
FAMILIES = {
    "GPT2LMHeadModel": (
        {name: [name] for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")},
        _NONE_HAS | dict(position=["learned"], norm=["layernorm"], activation=["gelu", "gelu_tanh"], qk_norm=[False]),
    ),
    "LlamaForCausalLM": (_LLAMA, _ROTARY | dict(activation=["swiglu"], qk_norm=[False])),
    "Qwen3ForCausalLM": (_LLAMA | _QK, _ROTARY | dict(activation=["swiglu"], qk_norm=[True], bias=[False])),
    "ArceeForCausalLM": (_LLAMA | _PLAIN_MLP, _ROTARY | dict(activation=_PLAIN_ACTIVATIONS, qk_norm=[False])),
    "ApertusForCausalLM": (
        _LLAMA | _PLAIN_MLP | _QK | _APERTUS_NORMS,
        _ROTARY | dict(activation=_PLAIN_ACTIVATIONS, qk_norm=[True], bias=[False]),
    ),
    "Starcoder2ForCausalLM": (
        _LLAMA | {"mlp.c_fc": ["mlp.c_fc"], "mlp.c_proj": ["mlp.c_proj"]},
        _ROTARY | dict(norm=["layernorm"], activation=_PLAIN_ACTIVATIONS, qk_norm=[False]),
    ),
}  # fmt: skip
ACTIVATIONS = {"swiglu": "silu", "relu2": "relu2", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
THEIR_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "swish": "swiglu",
}  # fmt: skip
VOCABULARY = ("transformer.wte.weight", "lm_head.weight")  # tensors with a row for each token
# {their key in config.json: our setting}
_KEYS = {"vocab_size": "vocab_size", "tie_word_embeddings": "tie_weights"}
GPT2_KEYS = _KEYS | {
    "n_positions": "block_size", "n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "n_inner": "n_hidden",
    "layer_norm_epsilon": "norm_eps",
}  # fmt: skip
KEYS = _KEYS | {
    "max_position_embeddings": "block_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head", "head_dim": "head_dim", "hidden_size": "n_embd",
    "intermediate_size": "n_hidden", "rope_theta": "rope_theta",
}  # fmt: skip


def family(c: GPTConfig) -> str:
    """The architecture that computes what this configuration does. ValueError names the settings that none has."""
    faults = {
        name: [f"{key}={getattr(c, key)}" for key, values in conditions.items() if getattr(c, key) not in values]
        for name, (_, conditions) in FAMILIES.items()
    }
    if c.n_kv_head != c.n_head:
        faults["GPT2LMHeadModel"].append(f"n_kv_head={c.n_kv_head}")
    if c.n_head * c.head_dim != c.n_embd:
        faults["GPT2LMHeadModel"].append(f"head_dim={c.head_dim}")
    fewest = min(map(len, faults.values()))
    nearest = [name for name, found in faults.items() if len(found) == fewest]
    if fewest:
        lacking = " or ".join(f"{', '.join(faults[name])} (not in {name})" for name in nearest)
        raise ValueError(f"no model of Hugging Face's computes what these settings do: change {lacking}")
    return nearest[0]


def is_norm(name: str) -> bool:
    return ".ln_" in name or "_norm" in name


def places(c: GPTConfig, architecture: str) -> Iterator[tuple[str, list[str], list[int], bool]]:
    """(our tensor, theirs, rows of each if they are several, whether theirs is stored transposed) of every tensor."""
    names, gpt2 = FAMILIES[architecture][0], architecture == "GPT2LMHeadModel"
    top, blocks = {"wte": "model.embed_tokens", "ln_f": "model.norm"}, "model.layers"
    if gpt2:
        top, blocks = {name: f"transformer.{name}" for name in ("wte", "wpe", "ln_f")}, "transformer.h"
    modules = {f"transformer.{ours}": [theirs] for ours, theirs in top.items()}
    for i in range(c.n_layer):
        for ours, parts in names.items():
            modules[f"transformer.h.{i}.{ours}"] = [f"{blocks}.{i}.{part}" for part in parts]
    if not c.tie_weights:
        modules["lm_head"] = ["lm_head"]
    kv = c.n_kv_head * c.head_dim
    rows = {"c_attn": [c.n_head * c.head_dim, kv, kv], "c_fc": [c.n_hidden, c.n_hidden]}
    for module, theirs in modules.items():
        name = module.rpartition(".")[2]
        linear, split = name.startswith("c_"), rows[name] if len(theirs) > 1 else []
        ours = module if name in ("q_norm", "k_norm") else f"{module}.weight"
        yield ours, [f"{their}.weight" for their in theirs], split, gpt2 and linear  # its Conv1D holds (in, out)
        if linear and (gpt2 or c.bias) or is_norm(module) and c.norm == "layernorm":
            yield f"{module}.bias", [f"{their}.bias" for their in theirs], split, False
