"""What training asks of an optimizer: ours have it in common, those of torch.optim get it here."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def is_sharded(p: Tensor) -> bool:
    """Whether p is cut up over ranks: a DTensor."""
    return hasattr(p, "to_local")  # isinstance would need its module, which is slow to import


def like_parameter(value: Tensor, p: Tensor) -> Tensor:
    """A copy of a tensor of saved state on its parameter's device, cut up as the parameter is."""
    value = value.to(p.device, copy=True)
    if is_sharded(p) and value.shape == p.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)
    return value


class Optimizer:
    """Parameters in groups, each a dict of `params` and how they are updated, and their state.

    The part of torch.optim.Optimizer that training needs (a GradScaler takes it too). That class
    imports torch's compiler at its first use, a whole second, which in a run of seconds is much
    (bench/LOG.md). Subclasses have `update` and `state_name`.
    """

    state_name: str  # of the tensor, shaped as the parameter, by which saved state is recognised

    def __init__(self, groups: Iterable[dict], **defaults: Any):
        self.name = type(self).__name__
        self.param_groups = []
        for group in groups:
            self.param_groups.append({**defaults, **group, "params": list(group["params"])})
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

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
                by_number[i][key] = like_parameter(value, p) if value.dim() else value.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": by_number, "param_groups": groups})
