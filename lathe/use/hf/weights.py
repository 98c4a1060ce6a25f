"""Tensors, both ways."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from lathe.run.tensor_file import read_tensor, safetensors_table
from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.config import our_config
from lathe.use.hf.families import VOCABULARY, is_norm, places
from lathe.use.hf.find import read_json
from lathe.use.hf.tokenizers import find_tokenizer, load_hf_tokenizer
from lathe.use.network import without_weights
from model import GPT, GPTConfig

# Export


def their_weights(model: GPT, architecture: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the folder. Rows that pad our vocabulary stay behind; norms without gains get ones, GPT-2's layers
    without biases zeros."""
    c, state, out = model.config, model.state_dict(), {}
    shapes = without_weights(replace(c, norm_weight=True, bias=True)).state_dict()
    for ours, theirs, rows, turned in places(c, architecture):
        tensor = state.get(ours)
        if tensor is None:
            tensor = torch.full(shapes[ours].shape, float(not ours.endswith("bias")))
        if ours in VOCABULARY:
            tensor = tensor[: c.vocab_size]
        for name, part in zip(theirs, tensor.split(rows) if rows else [tensor], strict=True):
            out[name] = (part.T if turned else part).to(dtype).contiguous()
    return out


def tensor_table(folder: Path) -> dict[str, tuple[Path, tuple]]:
    """{tensor name: (file, entry in its table)}. Raises OSError or ValueError for missing or damaged files."""
    index = folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    out = {}
    for path in (folder / file for file in files):
        if not path.is_file():
            others = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no other weights"
            raise FileNotFoundError(f"{path} is missing ({others} there): lathe reads safetensors")
        out |= {name: (path, entry) for name, entry in safetensors_table(path).items()}
    return out


def read_config(folder: Path, tokenizer: Tokenizer | None) -> GPTConfig:
    """The configuration of the network in a Hugging Face folder.

    Gains that are all one and biases that are all zero are what `export` writes for a network without them, and are not
    taken over. Rows of the vocabulary beyond the tokenizer's ids are padding. Raises ValueError or OSError.
    """
    architecture, config = our_config(read_json(folder / "config.json"), folder / "config.json")
    if tokenizer is not None:
        config.vocab_size = min(config.vocab_size, tokenizer.vocab_size)
    files = tensor_table(folder)
    has_bias = has_gains = False
    for ours, theirs, _, _ in places(config, architecture):
        is_bias = ours.endswith("bias")
        if not is_bias and not is_norm(ours):
            continue
        neutral = 0 if is_bias else 1
        for name in names_in_file(theirs, files):
            if name is None:  # read_weights says so
                continue
            differs = bool((read_tensor(*files[name]) != neutral).any())
            has_bias |= is_bias and differs
            has_gains |= is_norm(ours) and differs
    config.bias = has_bias
    config.norm_weight = has_gains
    return config


def names_in_file(names: list[str], files: dict) -> list[str | None]:
    """Each name as the files have it, with or without the prefix of the whole model; None where they lack it."""
    out = []
    for name in names:
        short = name.removeprefix("transformer.").removeprefix("model.")
        out.append(name if name in files else short if short in files else None)
    return out


def read_weights(folder: Path, config: GPTConfig, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a network of read_config's configuration, by our names, on the CPU; dtype None keeps the file's.

    Positions are as many as in the file, even where the configuration has fewer. Raises ValueError or OSError.
    """
    architecture, as_stored = our_config(read_json(folder / "config.json"), folder / "config.json")
    config = replace(config, block_size=as_stored.block_size)
    files, state = tensor_table(folder), {}
    left = {name for name in files if not name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))}
    for ours, theirs, _, turned in places(replace(config, bias=True), architecture):
        names = names_in_file(theirs, files)
        if ours.endswith("bias") and not any(names):
            continue
        if None in names:
            raise ValueError(f"{folder}: the weights lack {theirs[names.index(None)]}")
        left -= set(names)
        parts = [read_tensor(*files[name]) for name in names]
        parts = [part.T if turned else part for part in parts]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        if ours in VOCABULARY:  # zeros are added, or rows left out
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, config.padded_vocab_size - len(tensor)))
        state[ours] = tensor if dtype is None else tensor.to(dtype)
    if config.tie_weights:
        left.discard("lm_head.weight")
    if left:
        names = ", ".join(sorted(left)[:3])
        raise ValueError(f"{folder}: {architecture} has no place for {names} ({len(left)} tensors)")
    weights = {}  # without gains of one and biases of zero, which a network without them does not have
    for name, like in without_weights(config).state_dict().items():
        weights[name] = state.get(name)
        if weights[name] is None:  # a bias, where other layers have theirs
            weights[name] = torch.zeros(like.shape, dtype=dtype)
        if weights[name].shape != like.shape:
            found, right = tuple(weights[name].shape), tuple(like.shape)
            raise ValueError(f"{folder}: {name} is {found}, by config.json it should be {right}")
    return weights


def load_model(folder: Path, dtype: torch.dtype | None = torch.float32) -> GPT:
    """The network of a Hugging Face folder, in evaluation mode on the CPU; dtype None keeps the file's. Raises
    ValueError or OSError."""
    config = read_config(folder, find_tokenizer(folder))
    model = without_weights(config)
    model.load_state_dict(read_weights(folder, config, dtype), assign=True)
    return model.eval()


def as_checkpoint(folder: Path, block_size: int) -> tuple[dict, dict[str, Tensor]]:
    """What train.py needs of a checkpoint's state and its weights, from a Hugging Face folder; a context longer than
    block_size is cut to it."""
    model, tokenizer = load_model(folder), load_hf_tokenizer(folder)[0]
    c, weights = model.config, model.state_dict()
    c.block_size = min(c.block_size, block_size)
    if c.position == "learned":
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][: c.block_size]
    about = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
    return {"model": asdict(c), "tokenizer": about}, weights
