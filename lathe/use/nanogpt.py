"""nanoGPT's ckpt.pt: weights and settings of a GPT that its train.py has saved.

The file is a pickle, of which torch reads tensors and plain values alone. It names its dataset, not
its tokenizer: that is read from a meta.pkl or a dataset of ours nearby, or it is GPT-2's, as the
number of ids says.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lathe import hints
from lathe.reading import check_kinds, reading
from lathe.run.files import utf8_path
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use.network import refuse_fewer_layers, without_weights
from model import GPT2, GPTConfig

NAME = "ckpt.pt"
GPT2_IDS = (50257, 50304)  # as they are, and filled up to a multiple of 64
COMPILED = "_orig_mod."  # what torch.compile puts before the names of tensors
WHAT = "is no ckpt.pt of nanoGPT's"


@dataclass(frozen=True)
class Checkpoint:
    """What a ckpt.pt holds, as far as it is used."""

    path: Path
    model_args: dict
    dataset: str  # its name in nanoGPT's data/
    tensors: dict[str, Tensor]  # by the names of ours, as in the file
    step: int | None
    val_loss: float | None


def find(spec: str | Path) -> Path | None:
    """The ckpt.pt that a path or a folder without a run of ours means, if it does."""
    path = Path(spec)
    if path.is_file() and path.suffix in (".pt", ".pth"):
        return path
    if (path / NAME).is_file() and not hints.is_run(path) and not hints.is_checkpoint(path):
        return path / NAME
    return None


def read(path: Path) -> Checkpoint:
    """Raises ValueError for anything but a checkpoint of nanoGPT's train.py, OSError."""
    with reading(path, WHAT), utf8_path(path) as name:
        if not zipfile.is_zipfile(name):
            raise ValueError("it was not written by torch.save")
        try:
            saved = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # torch's, of several kinds and many lines
            raise ValueError(
                "it is damaged, or holds more than tensors and plain values, which could run code "
                "and is not read"
            ) from None
        if not isinstance(saved, dict):
            raise ValueError(f"it holds {type(saved).__name__}, not a dict")
        check_kinds("it", saved, {"model": dict, "model_args": dict})
        check_kinds("it", saved, {"config": dict, "iter_num": int}, optional=True)
        numbers = {"n_layer": int, "n_head": int, "n_embd": int, "block_size": int}
        check_kinds("model_args", saved["model_args"], {**numbers, "vocab_size": int})
        check_kinds("model_args", saved["model_args"], {"bias": bool}, optional=True)
        tensors = {}
        for name_there, tensor in saved["model"].items():
            ours = str(name_there).removeprefix(COMPILED)
            if ours.endswith((".attn.bias", ".attn.masked_bias")) or ours == "lm_head.weight":
                continue  # masks, and the embedding once more
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise ValueError(f"{ours!r:.40} is no tensor of weights")
            if not tensor.is_contiguous():
                raise ValueError(f"{ours} is no tensor as nanoGPT saves it")
            tensors[ours] = tensor
        val_loss = saved.get("best_val_loss")
        return Checkpoint(
            path=path,
            model_args=saved["model_args"],
            dataset=str((saved.get("config") or {}).get("dataset", "")),
            tensors=tensors,
            step=saved.get("iter_num"),
            val_loss=None if val_loss is None else float(val_loss),
        )


def find_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of its training. Raises ValueError, with where it was looked for, if none that
    is near has as many ids."""
    n_ids = checkpoint.model_args["vocab_size"]
    fitting = (*GPT2_IDS, n_ids) if n_ids in GPT2_IDS else (n_ids, n_ids + 1)
    name = Path(checkpoint.dataset).name or "NAME"
    folder = checkpoint.path.parent
    places = [folder, folder.parent / "data" / name, Path("data", name)]
    for place in places:
        if not any((place / file).is_file() for file in ("meta.pkl", "tokenizer.json")):
            continue
        tokenizer = load_tokenizer(place)
        if tokenizer.vocab_size in fitting:
            return tokenizer
    if n_ids in GPT2_IDS:
        return load_tokenizer("gpt2")
    raise ValueError(
        f"{checkpoint.path} has {n_ids} ids, and says not of what: put the meta.pkl of nanoGPT's "
        f"data/{name} beside it (looked for in {', '.join(map(str, places))})"
    )


def read_config(checkpoint: Checkpoint, tokenizer: Tokenizer) -> GPTConfig:
    """The network's configuration; ids that only fill up a vocabulary are left out."""
    with reading(checkpoint.path, WHAT):
        args = checkpoint.model_args
        config = GPTConfig(
            **GPT2
            | {name: args[name] for name in ("block_size", "n_layer", "n_head", "n_embd")}
            | {"bias": args.get("bias", True), "activation": "gelu"},
            vocab_size=min(args["vocab_size"], tokenizer.vocab_size),
        )
        refuse_fewer_layers(config, len(checkpoint.tensors), checkpoint.path)
        return config


def read_weights(checkpoint: Checkpoint, config: GPTConfig) -> dict[str, Tensor]:
    """The tensors of a network of this configuration, or of one with more ids: the rows of those
    are the mean of all others. Raises ValueError for others than nanoGPT's."""
    with reading(checkpoint.path, WHAT):
        n_ids = checkpoint.model_args["vocab_size"]
        weights = {}
        for name, like in without_weights(config).state_dict().items():
            if name == "lm_head.weight":
                continue
            tensor = checkpoint.tensors.get(name)
            if tensor is None:
                raise ValueError(f"it lacks {name}")
            if name == "transformer.wte.weight":
                if tuple(tensor.shape) != (n_ids, config.n_embd):
                    raise ValueError(f"{name} is {tuple(tensor.shape)}")
                if config.vocab_size > n_ids:
                    tensor = torch.cat([tensor, tensor.mean(0, keepdim=True)])
                tensor = F.pad(tensor, (0, 0, 0, config.padded_vocab_size - len(tensor)))
            elif name == "transformer.wpe.weight":
                tensor = tensor[: config.block_size]
            if tensor.shape != like.shape:
                shape = tuple(tensor.shape)
                raise ValueError(f"{name} is {shape}, by model_args {tuple(like.shape)}")
            weights[name] = tensor.float()
        return weights
