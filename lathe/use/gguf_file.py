"""A model as one GGUF file, which llama.cpp and all that is built on it (Ollama, LM Studio) open.

What llama.cpp computes, and how it calls it, is read from its sources (src/models/*.cpp); the file
itself is written by the gguf package, which is llama.cpp's own. Its converter is not used: it knows
tokenizers by a hash of their ids, and so none that was learned here.
"""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lathe.terminal import print_note, printable
from lathe.text.chat import TEMPLATES
from lathe.text.gpt2 import GPT2_PATTERN, printable_bytes
from lathe.text.hugging_face import merges_of
from lathe.text.patterns import LLAMA3_PATTERN, QWEN2_PATTERN
from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.families import GPT2, architecture_of
from lathe.use.hf.tokenizers import end_of_text, their_template
from lathe.use.hf.weights import their_weights
from model import GPT, GPTConfig, rope_frequencies

TYPES = ("f32", "f16", "bf16", "q8_0")
MOST_CONTEXT = 2**31 - 1


@dataclass(frozen=True)
class LlamaCppFamily:
    """What llama.cpp makes of one of Hugging Face's architectures."""

    name: str  # its own name for it
    settings: dict[str, list]  # values that it computes, of settings that it does not leave free
    rotates_neighbours: bool = False  # pairs (0, 1), (2, 3), ... of a head, and not halves
    needs_biases: bool = False  # of linear layers: without, they are written as zeros
    needs_head: bool = False  # a head of its own: a tied one is written twice
    scales_frequencies: bool = False  # of its rotation, each by a factor of its own


LLAMA_CPP = {
    GPT2: LlamaCppFamily("gpt2", {"activation": ["gelu_tanh"]}, needs_biases=True),
    "LlamaForCausalLM": LlamaCppFamily(
        "llama", {}, rotates_neighbours=True, scales_frequencies=True
    ),
    "Qwen3ForCausalLM": LlamaCppFamily("qwen3", {}),
    "ArceeForCausalLM": LlamaCppFamily(
        "arcee",
        {"activation": ["relu2"], "bias": [False]},
        rotates_neighbours=True,
        scales_frequencies=True,
    ),
    "Starcoder2ForCausalLM": LlamaCppFamily(
        "starcoder2", {"activation": ["gelu_tanh"]}, needs_biases=True
    ),
    # Its only activation there is xIELU, of which relu2 is a case, see xielu_of_relu2.
    "ApertusForCausalLM": LlamaCppFamily(
        "apertus", {"activation": ["relu2"]}, needs_head=True, scales_frequencies=True
    ),
}

# How llama.cpp calls the patterns that it cuts text by exactly as we do.
PRE_TOKENIZERS = {GPT2_PATTERN: "gpt-2", LLAMA3_PATTERN: "llama-bpe", QWEN2_PATTERN: "qwen2"}


def faults_for_llama_cpp(config: GPTConfig, tokenizer: Tokenizer) -> list[str]:
    """What llama.cpp cannot hold of a model that Hugging Face's classes can, as SETTING=VALUE."""
    architecture = architecture_of(config)
    if architecture not in LLAMA_CPP:
        return [f"activation={config.activation} (its class is {architecture})"]
    family = LLAMA_CPP[architecture]
    faults = [
        f"{name}={getattr(config, name)}"
        for name, values in family.settings.items()
        if getattr(config, name) not in values
    ]
    if config.ngram_rows:
        faults.append(f"ngram_rows={config.ngram_rows}")
    if config.rope_scaling.startswith("llama3") and not family.scales_frequencies:
        faults.append(f"rope_scaling={config.rope_scaling} with qk_norm or norm=layernorm")
    if family.name == "starcoder2" and config.n_head * config.head_dim != config.n_embd:
        faults.append(f"head_dim={config.head_dim}")
    if tokenizer.kind == "hf":
        faults.append(f"tokenizer={tokenizer.name} (one that the tokenizers library runs)")
    elif tokenizer.kind == "bpe" and tokenizer.pattern not in PRE_TOKENIZERS:
        faults.append(f"tokenizer={tokenizer.name} (llama.cpp does not cut text by its pattern)")
    if tokenizer.vocab_size > config.vocab_size:
        faults.append(f"vocab_size={config.vocab_size} (the tokenizer has {tokenizer.vocab_size})")
    return faults


def refuse_what_llama_cpp_cannot_hold(config: GPTConfig, tokenizer: Tokenizer):
    """ValueError that names it."""
    faults = faults_for_llama_cpp(config, tokenizer)
    if faults:
        raise ValueError(
            f"llama.cpp cannot hold {', '.join(faults)}: train with "
            f"{settings_to_train_with(config)}, or export a folder with --to"
        )


def settings_to_train_with(config: GPTConfig) -> str:
    """Those of a network that other programs hold; the dial's choices have but one such fault."""
    return "--ngram_rows=0" if config.ngram_rows else "other settings"


def import_gguf():  # noqa: ANN201 (a module)
    """The gguf package. ValueError, with the command that installs it, where it is missing."""
    try:
        import gguf
    except ImportError:
        raise ValueError("gguf needs the gguf package: pip install gguf") from None
    return gguf


# -----------------------------------------------------------------------------
# Writing


def write_gguf(
    model: GPT,
    tokenizer: Tokenizer,
    path: Path,
    kind: str = "f32",
    template: str = "",
    name: str = "",
):
    """Write a GGUF file at `path`, read it again, and compare.

    kind: one of TYPES, of matrices; vectors and learned positions are float32, as llama.cpp's
    converter has them. template: name of a chat template, see text/chat.py. name: of the model, by
    which clients list it. Raises ValueError,
    naming the setting, for what llama.cpp does not compute, and OSError.
    """
    gguf = import_gguf()
    config = model.config
    refuse_what_llama_cpp_cannot_hold(config, tokenizer)
    if tokenizer.brings_into_nfc:
        print_note(
            f"tokenizer {tokenizer.name} brings texts into Unicode's form NFC, which llama.cpp "
            "does not: text in another form has other ids there"
        )
    family = LLAMA_CPP[architecture_of(config)]
    writer = gguf.GGUFWriter(path, family.name)
    writer.add_name(printable(name or path.stem))
    write_shape(writer, config, family)
    write_vocabulary(writer, tokenizer, config.vocab_size, template)
    file_types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_file_type(file_types[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    stored = {}
    for tensor in stored_tensors(model, kind):
        stored[tensor.name] = tensor
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.type)
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    keys = {key: kept.value for part in writer.kv_data for key, kept in part.items()}
    check_file(path, keys, stored)


def write_shape(writer, config: GPTConfig, family: LlamaCppFamily):  # noqa: ANN001
    """The keys from which llama.cpp builds the network."""
    writer.add_block_count(config.n_layer)
    writer.add_context_length(min(config.block_size, MOST_CONTEXT))
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_hidden)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if config.norm == "rmsnorm":
        writer.add_layer_norm_rms_eps(config.norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if config.position == "rope":
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
    kind, _, factor = config.rope_scaling.partition(":")
    if kind == "linear":
        writer.add_rope_scaling_type(import_gguf().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(factor))
    if family.name == "apertus":
        xielu = xielu_of_relu2()
        writer.add_xielu_alpha_p([xielu["alpha_p"]] * config.n_layer)
        writer.add_xielu_alpha_n([xielu["alpha_n"]] * config.n_layer)
        writer.add_xielu_beta([xielu["beta"]] * config.n_layer)
        writer.add_xielu_eps([xielu["eps"]] * config.n_layer)


def xielu_of_relu2() -> dict[str, float]:
    """Parameters with which xIELU (arXiv 2411.13010) is relu squared.

    llama.cpp computes, with s = softplus: s(alpha_p) x^2 + beta x above 0, and below it
    (beta + s(alpha_n)) (expm1(min(x, eps)) - x) + beta x. s(log(e - 1)) is 1; s(-1000) is 0.
    """
    return {"alpha_p": math.log(math.e - 1), "alpha_n": -1000.0, "beta": 0.0, "eps": -1e-6}


def write_vocabulary(
    writer,  # noqa: ANN001
    tokenizer: Tokenizer,
    vocab_size: int,
    template: str,
):
    """Tokens as byte-level BPE, which bytes and characters are cases of.

    llama.cpp puts the token that begins a text before every prompt, as sample.py does.
    """
    gguf = import_gguf()
    special = {i: text for text, i in tokenizer.specials.items()}
    special[tokenizer.eot_id] = end_of_text(tokenizer)
    character_of = {byte: character for character, byte in printable_bytes().items()}
    tokens = []
    types = []
    for i in range(vocab_size):
        piece = tokenizer.pieces[i] if i < tokenizer.vocab_size else b""
        if i in special:
            tokens.append(special[i])
            types.append(gguf.TokenType.CONTROL)
        elif piece:
            tokens.append("".join(character_of[byte] for byte in piece))
            types.append(gguf.TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{i}]")
            types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[tokenizer.pattern or GPT2_PATTERN])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(their_merges(tokenizer, character_of))
    writer.add_bos_token_id(tokenizer.eot_id)
    writer.add_eos_token_id(tokenizer.eot_id)
    writer.add_pad_token_id(tokenizer.eot_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if template in TEMPLATES:
        writer.add_chat_template(their_template(template, tokenizer))


def their_merges(tokenizer: Tokenizer, character_of: dict[int, str]) -> list[str]:
    """The merges as llama.cpp has them, two parts with a space between.

    Characters of several bytes are merged from their bytes, first to last: what begins one stands
    nowhere but at its beginning, so that no others can come of it. A list must not be empty, and so
    the one of a byte tokenizer has a pair that no text has: symbols begin as one byte each.
    """

    def shown(piece: bytes) -> str:
        return "".join(character_of[byte] for byte in piece)

    pairs = []
    if tokenizer.kind == "bpe":
        ids = {piece: i for i, piece in enumerate(tokenizer.pieces) if piece}
        pairs = list(merges_of(ids))
    elif tokenizer.kind == "char":
        parts = {(piece[:n], piece[n : n + 1]) for piece in tokenizer.pieces for n in (1, 2, 3)}
        pairs = sorted((a, b) for a, b in parts if b)
    merges = [f"{shown(a)} {shown(b)}" for a, b in pairs]
    return merges or [f"{end_of_text(tokenizer)} {end_of_text(tokenizer)}"]


# -----------------------------------------------------------------------------
# Tensors


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in the file."""

    name: str
    shape: tuple[int, ...]
    data: np.ndarray  # of its type: blocks of bytes where that is quantized
    type: int  # a gguf.GGMLQuantizationType


def stored_tensors(model: GPT, kind: str) -> Iterator[StoredTensor]:
    """All tensors, by llama.cpp's names. ValueError for one that has no place in 16 bits."""
    gguf = import_gguf()
    config = model.config
    architecture = architecture_of(config)
    family = LLAMA_CPP[architecture]
    biases = config.bias or family.needs_biases
    tied = config.tie_weights and not family.needs_head
    complete = replace(config, bias=biases, tie_weights=tied)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
    names = gguf.get_tensor_name_map(arch, config.n_layer)
    wanted = getattr(gguf.GGMLQuantizationType, kind.upper())
    weights = their_weights(model, architecture, torch.float32, complete, as_linear=True)
    kept_in_16_bits = []
    for their_name, tensor in weights.items():
        if family.rotates_neighbours:
            tensor = with_neighbours_rotated(their_name, tensor, config)
        name = names.get_name(their_name, try_suffixes=(".weight", ".bias"))
        array = tensor.numpy()
        is_matrix = array.ndim == 2 and not name.startswith("position_embd")
        type_ = wanted if is_matrix else gguf.GGMLQuantizationType.F32
        if is_matrix and kind == "q8_0" and array.shape[1] % 32:
            kept_in_16_bits.append(name)
            type_ = gguf.GGMLQuantizationType.F16
        if type_ == gguf.GGMLQuantizationType.F16 and abs(array).max() > np.finfo("f2").max:
            raise ValueError(f"gguf_type={kind}: {name} has numbers above 65504; choose bf16")
        yield StoredTensor(name, array.shape, gguf.quants.quantize(array, type_), type_)
    if config.rope_scaling.startswith("llama3"):
        unscaled = rope_frequencies(config.head_dim, config.rope_theta, "")
        scaled = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        factors = (unscaled / scaled).float().numpy()  # by which llama.cpp divides
        f32 = gguf.GGMLQuantizationType.F32
        yield StoredTensor("rope_freqs.weight", factors.shape, factors, f32)
    if kept_in_16_bits:
        print_note(
            f"{len(kept_in_16_bits)} matrices are f16, not q8_0, which has rows of multiples of "
            f"32: {', '.join(kept_in_16_bits[:3])}"
        )


def with_neighbours_rotated(their_name: str, tensor: torch.Tensor, config: GPTConfig):  # noqa: ANN201
    """Rows of queries and keys in the order of llama.cpp's rotation: element i of the first half
    of each head, then element i of the second."""
    n_heads = {"q_proj": config.n_head, "k_proj": config.n_kv_head}
    heads = n_heads.get(their_name.split(".")[-2])
    if heads is None:
        return tensor
    # (nh * hd, ...) -> (nh, 2, hd / 2, ...) -> (nh, hd / 2, 2, ...) -> (nh * hd, ...)
    halves = tensor.unflatten(0, (heads, 2, config.head_dim // 2))
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def check_file(path: Path, keys: dict[str, object], stored: dict[str, StoredTensor]):
    """ValueError where the file, read again, does not hold these keys and tensors to the last
    bit."""
    reader = import_gguf().GGUFReader(path)
    for key, value in keys.items():
        kept = reader.get_field(key)
        if kept is None or kept.contents() != as_float32(value):
            raise ValueError(f"{path}: {key} is not what was written")
    in_file = {tensor.name: tensor for tensor in reader.tensors}
    if in_file.keys() != stored.keys():
        raise ValueError(f"{path} was not written whole: it lacks {stored.keys() - in_file.keys()}")
    for name, tensor in stored.items():
        shape = tuple(int(n) for n in reversed(in_file[name].shape))
        same = shape == tensor.shape and in_file[name].tensor_type == tensor.type
        if not same or in_file[name].data.tobytes() != tensor.data.tobytes():
            raise ValueError(f"{path}: {name} is not what was written")


def as_float32(value: object) -> object:
    """A key's value with the precision that files have for fractions."""
    if isinstance(value, list):
        return [as_float32(item) for item in value]
    return float(np.float32(value)) if isinstance(value, float) else value
