"""The network of a checkpoint: its settings, its tensors, and a GPT that waits for them."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lathe.optim.optimizer import cut_rows
from lathe.reading import KINDS, check_kinds, reading
from lathe.run.checkpoint import open_weights, read_state
from lathe.settings import RETIRED
from lathe.use import lora
from model import GPT, GPTConfig


def model_config(state: dict, path: Path) -> GPTConfig:
    """The network's settings in the state.json of a checkpoint `path`.

    Settings that came up since have their defaults. Raises ValueError for those that this code does
    not have.
    """
    if not state.get("model"):
        raise ValueError(f"{path} is damaged: state.json describes no network")
    model = {name: value for name, value in state["model"].items() if not is_off(name, value)}
    unknown = set(model) - {f.name for f in fields(GPTConfig)}
    retired = sorted(unknown & set(RETIRED))
    if retired:
        raise ValueError(
            f"{path} has {retired[0]}={model[retired[0]]}, which this version no longer computes: "
            "use the version that wrote it, or train again with ngram_rows"
        )
    if unknown:
        raise ValueError(
            f"{path} was written by code that has the setting {min(unknown)}, which this code lacks"
        )
    known = {f.name: f.type for f in fields(GPTConfig)}
    kinds = {name: kind if kind in KINDS else str for name, kind in known.items()}
    with reading(path, "is damaged: state.json describes no network"):
        check_kinds("model", model, kinds, optional=True)
        return GPTConfig(**model)


def is_off(name: str, value: object) -> bool:
    """Whether it is a setting of an earlier version with the value that means off."""
    return name in RETIRED and value == RETIRED[name]


def refuse_fewer_layers(config: GPTConfig, n_tensors: int, path: Path):
    """ValueError if there are more layers than tensors: seen before a network is made of them."""
    if config.n_layer > n_tensors:
        raise ValueError(f"{path} has {n_tensors} tensors for n_layer={config.n_layer}")


def load_weights(path: Path, merged: bool = True) -> dict[str, Tensor]:
    """Names and tensors on the CPU; LoRA's are added to what they adapt, unless merged is False.

    Raises ValueError if the file cannot be read.
    """
    weights = {name: saved[...] for name, saved in open_weights(path).items()}
    if merged and any(name.endswith(lora.A) for name in weights):
        return lora.merge(weights, read_state(path)["settings"]["lora_alpha"])
    return weights


def without_weights(config: GPTConfig) -> GPT:
    """A network of shapes only, for weights that load_state_dict(..., assign=True) puts in it."""
    with torch.device("meta"), NoRandomNumbers():
        return GPT(config)


class NoRandomNumbers(TorchFunctionMode):
    """Leaves out drawing initial weights.

    On the meta device that draws nothing, but would import half of torch's compiler.
    """

    def __torch_function__(
        self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if function is torch.nn.init.normal_:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def initial_rows(config: GPTConfig, rank: int, n_ranks: int) -> dict[str, Tensor]:
    """This rank's rows of the weights that GPT(config) begins with, which has them all, by name.

    The same numbers, from the same state of the generator, with one whole tensor in memory at a
    time. The generator is then as it would be after GPT(config).
    """
    with torch.device("meta"), DrawnRows(rank, n_ranks) as drawn:
        model = GPT(config)
    return {name: drawn.rows[p] for name, p in model.named_parameters()}


class DrawnRows(TorchFunctionMode):
    """Has initial weights drawn on the CPU for parameters on the meta device, and keeps a rank's
    rows of each."""

    def __init__(self, rank: int, n_ranks: int):
        super().__init__()
        self.rank = rank
        self.n_ranks = n_ranks
        self.rows: dict[Tensor, Tensor] = {}
        self.memory = torch.empty(0)  # where one after the other is drawn

    def __torch_function__(
        self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        p = args[0] if args else kwargs.get("tensor")
        if function not in FILLING or not p.is_meta:
            return function(*args, **kwargs)
        if p.numel() > len(self.memory):
            self.memory = torch.empty(p.numel(), dtype=p.dtype, device="cpu")
        whole = self.memory[: p.numel()].view(p.shape)
        if args:
            function(whole, *args[1:], **kwargs)
        else:
            function(**{**kwargs, "tensor": whole})
        begin, end = cut_rows(len(whole), self.rank, self.n_ranks)
        self.rows[p] = whole[begin:end].clone()
        return p


# What modules fill their parameters with
FILLING = {
    torch.nn.init.kaiming_uniform_,
    torch.nn.init.normal_,
    torch.nn.init.uniform_,
    torch.Tensor.fill_,
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.zero_,
}
