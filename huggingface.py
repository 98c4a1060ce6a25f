"""Our weights to a Hugging Face folder and back, without the transformers library.

    python huggingface.py export --out_dir=RUN --to=FOLDER [--verify=true]

The folder opens in transformers, and so in vLLM, lm-eval and llama.cpp's converter, with equal logits. What has no
exact counterpart there is refused by the name of the setting. The other way, `init_from=hf:NAME_OR_FOLDER` in train.py
and `--model=hf:NAME_OR_FOLDER` in sample.py, evaluate.py and visualize.py read such folders, from disk or from the Hub.
One table, FAMILIES, serves both directions.
"""

from dataclasses import dataclass, field
from typing import Literal

import config


@dataclass
class Options:
    """Write a trained model as a Hugging Face folder."""

    command: list[str] = field(default_factory=list)  # export
    out_dir: str = "out/quickstart"  # a run's folder (its best checkpoint) or one checkpoint's folder
    to: str = ""  # folder to write
    overwrite: bool = False  # replace the folder if it exists
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights written
    verify: bool = False  # compare logits and token ids with what transformers makes of the folder

    def __post_init__(self):
        if self.command != ["export"]:
            found = f"`{' '.join(self.command)}` is no command" if self.command else "no command is given"
            raise ValueError(f"{found}: the one there is is `export`")
        if not self.to:
            raise ValueError("to is empty: give the folder to write with --to=FOLDER")


PARSER = dict(prog="huggingface.py", description="Write a model as a Hugging Face folder.", positional="command")
if __name__ == "__main__":
    config.check(Options, **PARSER)  # --help and mistakes are answered before torch is imported, which takes seconds

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

import checkpoint
import tokenizer as lathe_tokenizer
from model import GPT, GPTConfig
from tokenizer import EOT, GPT2_PATTERN, TEMPLATES, Tokenizer

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


# Export


def their_weights(model: GPT, architecture: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the folder. Rows that pad our vocabulary stay behind; norms without gains get ones, GPT-2's layers
    without biases zeros."""
    c, state, out = model.config, model.state_dict(), {}
    shapes = checkpoint.without_weights(replace(c, norm_weight=True, bias=True)).state_dict()
    for ours, theirs, rows, turned in places(c, architecture):
        tensor = state.get(ours)
        if tensor is None:
            tensor = torch.full(shapes[ours].shape, float(not ours.endswith("bias")))
        if ours in VOCABULARY:
            tensor = tensor[: c.vocab_size]
        for name, part in zip(theirs, tensor.split(rows) if rows else [tensor], strict=True):
            out[name] = (part.T if turned else part).to(dtype).contiguous()
    return out


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


def their_tokenizer(tokenizer: Tokenizer) -> dict:
    """tokenizer.json of the tokenizers library with the same ids for every text without special tokens."""
    specials = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for text, i in sorted(tokenizer.specials.items(), key=lambda item: item[1])
    ]  # fmt: skip
    normalizer = {"type": tokenizer.normalization} if tokenizer.normalization else None
    out = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None, "added_tokens": specials,
           "normalizer": normalizer}  # fmt: skip
    if tokenizer.kind == "char":  # WordLevel without an unknown token refuses what it does not know, as ours does
        vocab = {piece.decode(): i for i, piece in enumerate(tokenizer.pieces) if piece}
        split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
        return out | {"pre_tokenizer": split, "decoder": {"type": "Fuse"}, "model": model}
    stand_in = {byte: char for char, byte in lathe_tokenizer._hugging_face_bytes().items()}
    written = {piece: "".join(stand_in[b] for b in piece) for piece in tokenizer.pieces if piece}
    ranks = {piece: i for i, piece in enumerate(tokenizer.pieces) if piece}
    own_rule = tokenizer.kind == "bpe" and tokenizer.pattern == GPT2_PATTERN  # the library's built-in one
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own_rule}
    before = level
    if tokenizer.kind == "bpe" and not own_rule:
        split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
        before = {"type": "Sequence", "pretokenizers": [split, level]}
    merges = [[written[a], written[b]] for a, b in merges_of(ranks)] if tokenizer.kind == "bpe" else []
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {written[piece]: i for piece, i in ranks.items()}, "merges": merges,
    }  # fmt: skip
    return out | {"pre_tokenizer": before, "decoder": level, "model": model}


def merges_of(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pair that each token was merged from, in order: what is left of its bytes when earlier merges are done."""
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([b]) for b in piece]
        while len(parts) > 2:
            pairs = [(ranks.get(a + b, rank), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))]
            best, i = min(pairs)
            if best >= rank:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def their_template(name: str) -> str:
    """One of our chat templates in Jinja: applied, it gives the text of a document that prepare/pairs.py makes."""
    form = {role: text.partition("{}") for role, text in TEMPLATES[name].items()}
    parts = ["{{ bos_token }}{% for message in messages %}"]
    for role, (begin, _, end) in form.items():
        last = "{% if loop.last %}{{ eos_token }}{% else %}{{ %r }}{% endif %}".replace("%r", repr(end))
        parts.append(f"{{% if message['role'] == {role!r} %}}{{{{ {begin!r} + message['content'] | trim }}}}")
        parts.append((last if role == "assistant" else f"{{{{ {end!r} }}}}") + "{% endif %}")
    prompt = form["assistant"][0].rstrip(" ")
    return "".join(parts) + f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {prompt!r} }}}}{{% endif %}}"


def write_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int, template: str = ""):
    text = json.dumps(their_tokenizer(tokenizer), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    about = {  # without the class, transformers would guess one from the model and change the ids
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOT, "eos_token": EOT, "pad_token": EOT,
        "model_max_length": block_size, "clean_up_tokenization_spaces": False, "add_bos_token": False,
    }  # fmt: skip
    if template in TEMPLATES:
        about["chat_template"] = their_template(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [lathe]
---
# {title}

A GPT of {parameters:,} parameters, trained with lathe on `{dataset}` and written for Hugging Face as `{architecture}`.

| | |
|---|---|
| validation loss | {val_loss} |
| training steps, sequences read | {step:,}, {samples:,} |
| layers, heads, width, context | {c.n_layer}, {c.n_head}, {c.n_embd}, {c.block_size} |
| tokenizer | {tokenizer} |

Texts begin with `<|endoftext|>`, and so should prompts:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
ids = tokenizer(tokenizer.eos_token + "Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0]))
```
"""


def export(
    model: GPT,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: str = "float32",
    state: dict | None = None,
    check: Callable[[Path], None] = lambda written: None,
) -> str:
    """Write model and tokenizer as a Hugging Face folder; returns the architecture.

    state: a checkpoint's, whose figures go to the model card. check: called with the written folder before it takes the
    place of what was there. Raises ValueError, naming the setting, for what cannot be written without loss, OSError,
    and what `check` raises; the folder is then as it was before.
    """
    c, architecture, folder = model.config, family(model.config), folder.resolve()
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        weights = their_weights(model, architecture, getattr(torch, dtype))
        with open(temporary / "model.safetensors", "wb") as file:
            checkpoint.write_safetensors(file, weights)
        facts = their_config(c, architecture, dtype, tokenizer)
        generation = {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id, "do_sample": True}
        generation |= {"pad_token_id": tokenizer.eot_id, "temperature": 0.8, "top_k": 200}
        for name, values in (("config.json", facts), ("generation_config.json", generation)):
            (temporary / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        state = state or {}
        write_tokenizer(temporary, tokenizer, c.block_size, state.get("template", ""))
        loss = state.get("val_loss")
        card = CARD.format(
            title=folder.name, parameters=model.n_params(), architecture=architecture, c=c, tokenizer=tokenizer.name,
            dataset=state.get("dataset", {}).get("path", "an unnamed dataset"), step=state.get("step", 0),
            samples=state.get("samples", 0), val_loss="not measured" if loss is None else f"{loss:.4f} nats per token",
        )  # fmt: skip
        (temporary / "README.md").write_text(card, encoding="utf-8")
        check(temporary)
        checkpoint.replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return architecture


# Import


def find(name: str) -> Path:
    """The folder meant by hf: and a path or a model's name on the Hub, whose files are fetched unless they are in the
    cache. Raises OSError, with what to do, if they cannot be."""
    name = name.removeprefix("hf:")
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"hf:{name}: there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json"]
    try:
        try:
            return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        except LocalEntryNotFoundError:
            print(f"fetching {name} from the Hugging Face Hub", file=sys.stderr)
            return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise OSError(
            f"hf:{name} is neither a folder nor in the Hub's cache, and cannot be fetched ({reason}): download its "
            "config.json, tokenizer.json and model.safetensors elsewhere and give their folder as hf:FOLDER"
        ) from None


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a Hugging Face model folder") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


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


def tensor_table(folder: Path) -> dict[str, tuple[Path, tuple]]:
    """{tensor name: (file, entry in its table)}. Raises OSError or ValueError for missing or damaged files."""
    index = folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    out = {}
    for path in (folder / file for file in files):
        if not path.is_file():
            others = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no other weights"
            raise FileNotFoundError(f"{path} is missing ({others} there): lathe reads safetensors")
        out |= {name: (path, entry) for name, entry in checkpoint.safetensors_table(path).items()}
    return out


def load_model(folder: Path, dtype: torch.dtype | None = torch.float32) -> GPT:
    """The network of a Hugging Face folder, in evaluation mode on the CPU; dtype None keeps the file's.

    Gains that are all one and biases that are all zero are what `export` writes for a network without them, and are not
    taken over. Rows of the vocabulary beyond the tokenizer's ids are padding. Raises ValueError or OSError.
    """
    architecture, c = our_config(read_json(folder / "config.json"), folder / "config.json")
    files, state = tensor_table(folder), {}
    left = {name for name in files if not name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))}
    if tokenizer := find_tokenizer(folder):
        c.vocab_size = min(c.vocab_size, tokenizer.vocab_size)
    for ours, theirs, _, turned in places(c, architecture):
        short = [name.removeprefix("transformer.").removeprefix("model.") for name in theirs]
        names = [next((n for n in pair if n in files), None) for pair in zip(theirs, short, strict=True)]
        if ours.endswith("bias") and not any(names):
            continue
        if None in names:
            raise ValueError(f"{folder}: the weights lack {theirs[names.index(None)]}")
        left -= set(names)
        parts = [checkpoint.read_tensor(*files[name]) for name in names]
        parts = [part.T if turned else part for part in parts]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        if ours in VOCABULARY:  # zeros are added, or rows left out
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, c.padded_vocab_size - len(tensor)))
        state[ours] = tensor if dtype is None else tensor.to(dtype)
    if c.tie_weights:
        left.discard("lm_head.weight")
    if left:
        names = ", ".join(sorted(left)[:3])
        raise ValueError(f"{folder}: {architecture} has no place for {names} ({len(left)} tensors)")
    biases = {name for name in state if name.endswith("bias")}
    c.bias = any(bool(state[name].any()) for name in biases)
    c.norm_weight = any(bool((state[name] != (name not in biases)).any()) for name in filter(is_norm, state))
    model = checkpoint.without_weights(c)
    for name, like in model.state_dict().items():
        if name not in state:  # a bias, where other layers have theirs
            state[name] = torch.zeros(like.shape, dtype=dtype)
        if state[name].shape != like.shape:
            found, right = tuple(state[name].shape), tuple(like.shape)
            raise ValueError(f"{folder}: {name} is {found}, by config.json it should be {right}")
    model.load_state_dict(state, strict=False, assign=True)  # gains of one and biases of zero are left over
    return model.eval()


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; for a GPT-2 without its files the gpt2 encoding; None if there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        about = read_json(folder / "config.json")
        known = about.get("model_type") == "gpt2" and about.get("vocab_size", 50257) >= 50257
        return lathe_tokenizer.load_tokenizer("gpt2") if known else None
    about = read_json(path)
    model, added = about.get("model", {}), {t["content"]: t["id"] for t in about.get("added_tokens", [])}
    if model.get("type") == "WordLevel" and set(added) == {EOT}:
        characters = sorted((t for t in model["vocab"] if t != EOT), key=model["vocab"].get)
        if [model["vocab"][t] for t in characters] == list(range(added[EOT])) and all(len(t) == 1 for t in characters):
            return lathe_tokenizer.train_char([set(characters)])
    if model.get("type") == "BPE" and not model["merges"] and len(model["vocab"]) == 256:
        return lathe_tokenizer.load_tokenizer("byte")
    return lathe_tokenizer.load_tokenizer(path)


def load_tokenizer(folder: Path) -> tuple[Tokenizer, list[int], tuple[int, ...]]:
    """(tokenizer, ids that begin a text, ids that end one) of a folder. ValueError where there is no tokenizer."""
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise FileNotFoundError(f"{folder / 'tokenizer.json'} is missing: without it there is no text")
    about = read_json(folder / "config.json")
    more = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    ends = more.get("eos_token_id", about.get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    begin = about.get("bos_token_id")
    special = set(tokenizer.specials.values())
    return tokenizer, [begin] if begin in special else [], tuple(dict.fromkeys([*ends, tokenizer.eot_id]))


def as_checkpoint(folder: Path, block_size: int) -> tuple[dict, dict[str, Tensor]]:
    """What train.py needs of a checkpoint's state and its weights, from a Hugging Face folder; a context longer than
    block_size is cut to it."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)[0]
    c, weights = model.config, model.state_dict()
    c.block_size = min(c.block_size, block_size)
    if c.position == "learned":
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][: c.block_size]
    about = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
    return {"model": asdict(c), "tokenizer": about}, weights


# The command


def largest_difference(a: Callable, b: Callable, c: GPTConfig) -> tuple[float, float]:
    """(max |a - b|, max |a|) of the logits that a and b give one random text, as long as the context or 256 tokens."""
    idx = torch.randint(c.vocab_size, (1, min(c.block_size, 256)), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = a(idx), b(idx)[..., : c.vocab_size]
    return (ours - theirs).abs().max().item(), ours.abs().max().item()


def main(argv: list[str] | None = None) -> int:
    options = config.parse(Options, argv, **PARSER)
    path, folder = checkpoint.find_checkpoint(options.out_dir), Path(options.to)
    taken = folder.is_file() or folder.is_dir() and any(folder.iterdir())
    if taken and not (options.overwrite and (folder / "config.json").is_file()):
        raise ValueError(f"to is {folder}, which exists: choose another, or --overwrite=true for an old export")
    if options.verify:
        try:
            import transformers  # noqa: F401 - whether it is there is asked before the work begins
        except ImportError:
            raise ValueError("verify needs the transformers library: pip install transformers") from None
    model, tokenizer = checkpoint.load_model(path), lathe_tokenizer.load_tokenizer(path)
    model.config.document_token = -1  # their networks know no documents, and do not need to: a prompt is one

    def check(written):
        print(f"{folder}: {family(model.config)}, {model.n_params():,} parameters", file=sys.stderr)
        if options.dtype != "float32":
            for parameter in model.parameters():  # what rounding leaves
                parameter.data = parameter.data.to(getattr(torch, options.dtype)).float()
        check_logits(model, written, path)
        if options.verify:
            check_in_transformers(model, tokenizer, written)

    export(model, tokenizer, folder, options.dtype, checkpoint.read_state(path), check)
    print(folder)
    return 0


def check_logits(model: GPT, folder: Path, path: Path):
    """Read the folder back; ValueError if it does not compute what `model`, of the checkpoint `path`, does."""
    difference, largest = largest_difference(model, load_model(folder), model.config)  # in float32
    print(f"read back, logits differ by {difference:.1e}", file=sys.stderr)
    if difference > 1e-5 * max(1.0, largest):
        raise ValueError(f"the export does not compute what {path} does: logits differ by {difference:.1e}")


def check_in_transformers(model: GPT, tokenizer: Tokenizer, folder: Path):
    """ValueError if the transformers library makes other logits or token ids of the folder than we do."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it fills pipes with carriage returns
    logging.set_verbosity_error()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    difference, largest = largest_difference(model, lambda idx: theirs(idx).logits, model.config)
    print(f"max |difference of logits| through transformers: {difference:.1e}", file=sys.stderr)
    text = "First, the 3 quick foxes' naïve déjà-vu:\n\n\tdon't 日本語 🎉 "
    text = "".join(c for c in text if tokenizer.kind != "char" or c.encode() in tokenizer.pieces)
    same = AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == tokenizer.encode(text)
    if difference > 1e-4 * max(1.0, largest) or not same:
        raise ValueError(f"the export is another model in transformers: logits differ by {difference:.1e}, "
                         f"token ids are {'equal' if same else 'different'}")  # fmt: skip
    print("token ids are equal", file=sys.stderr)


if __name__ == "__main__":
    config.run(main)
