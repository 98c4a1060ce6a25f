"""What training asks of an optimizer: ours have it in common, those of torch.optim get it here."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def is_sharded(p: Tensor) -> bool:
    """Whether p is cut up over ranks: a DTensor."""
    return hasattr(p, "to_local")  # isinstance would need its module, which is slow to import


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor: its shard, where the tensor is sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def cut_rows(n_rows: int, rank: int, n_ranks: int) -> tuple[int, int]:
    """(begin, end) of a rank's rows, as FSDP2 and torch.chunk cut them: shares of ceil(rows /
    ranks), of which the last ones may have fewer, or none."""
    height = math.ceil(n_rows / n_ranks)
    begin = min(height * rank, n_rows)
    return begin, min(begin + height, n_rows)


def own_rows(p: Tensor) -> tuple[int, int]:
    """(begin, end) of a sharded tensor's rows on this rank."""
    mesh = p.device_mesh
    begin, end = cut_rows(p.shape[0], mesh.get_local_rank(), mesh.size())
    assert len(p.detach().to_local()) == end - begin, "sharded in another way than along its rows"
    return begin, end


def from_own_rows(rows: Tensor, p: Tensor) -> Tensor:
    """The tensor of which each rank has these rows: as many in all as p, and sharded as p is."""
    from torch.distributed.tensor import DTensor

    # With the whole's shape: ranks with fewer rows, or none, would have it guessed wrong.
    shape = torch.Size((p.shape[0], *rows.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        rows, p.device_mesh, p.placements, run_check=False, shape=shape, stride=stride
    )


def like_parameter(value: Tensor, p: Tensor, device: torch.device | None = None) -> Tensor:
    """A copy of a saved tensor on its parameter's device (or another), cut up as the parameter is.

    value: a Tensor, or what is read from files when rows of it are asked for (run/pieces.py): then
    no more than this rank's rows are.
    """
    device = device or p.device
    copy = isinstance(value, Tensor)  # what is read is a copy already
    if is_sharded(p) and value.shape[:1] == p.shape[:1]:  # a count of steps has no rows
        begin, end = own_rows(p)
        return from_own_rows(value[begin:end].to(device, copy=copy), p)
    return value[...].to(device, copy=copy)


class Optimizer:
    """Parameters in groups, each a dict of `params` and how they are updated, and their state.

    The part of torch.optim.Optimizer that training needs (a GradScaler takes it too). That class
    imports torch's compiler at its first use, a whole second, which in a run of seconds is much
    (bench/LOG.md). Subclasses have `update`, `keeps` and `state_name`.
    """

    keeps: frozenset[str]  # names of the tensors of a parameter's state
    state_name: str  # of the one, of state_shape, by which saved state is recognised

    def __init__(self, groups: Iterable[dict], **defaults: Any):
        self.name = type(self).__name__
        self.param_groups = []
        for group in groups:
            self.param_groups.append({**defaults, **group, "params": list(group["params"])})
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    def state_shape(self, p: Tensor) -> tuple[int, ...]:
        return tuple(p.shape)

    @torch.no_grad()
    def step(self, skip: Tensor | None = None):
        """One update from the gradients, or none where `skip`, a single boolean, is true.

        A GPU sees to that by itself, so that nobody has to wait for its answer.
        """
        if skip is not None and not skip.is_cuda:
            if skip:
                return
            skip = None
        for group in self.param_groups:
            self.update(group, skip)

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def load(self, state: dict[Tensor, dict[str, Tensor]]):
        """Take copies of saved tensors, those of each parameter by name."""
        for p, tensors in state.items():
            self.state[p] = {key: like_parameter(value, p) for key, value in tensors.items()}


class TorchOptimizer:
    """A torch.optim optimizer with what training asks of one beside: `skip` and saved state.

    build_optimizers may return it with ours or in their place. state_name: as in Optimizer, such as
    "exp_avg" for NAdam; "" if nothing is kept. On a GPU each step waits to know `skip`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, state_name: str):
        self.optimizer = optimizer
        self.name = type(optimizer).__name__
        self.state_name = state_name

    def state_shape(self, p: Tensor) -> tuple[int, ...]:
        return tuple(p.shape)

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        return self.optimizer.state

    def step(self, skip: Tensor | None = None):
        if skip is None or not skip:
            self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()

    def load(self, state: dict[Tensor, dict[str, Tensor]]):
        params = [p for group in self.param_groups for p in group["params"]]
        by_number = {}  # as torch.optim saves it
        for i, p in enumerate(params):
            if p not in state:
                continue
            by_number[i] = {}
            for key, value in state[p].items():
                # A count of steps belongs where load_state_dict puts it.
                on_device = len(value.shape) > 0
                by_number[i][key] = like_parameter(value, p) if on_device else value[...].clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": by_number, "param_groups": groups})
