"""What Muon and AdamW have in common: parameters in groups, and state for each."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def is_sharded(p: Tensor) -> bool:
    """Whether p is cut up over ranks: a DTensor, whose module takes too long to import just to ask."""
    return hasattr(p, "to_local")


class Optimizer:
    """Parameters in groups, each a dict of `params` and how they are updated, and a dict of tensors for each parameter.

    The part of torch.optim.Optimizer that training needs (a GradScaler takes it too). That class imports torch's
    compiler at its first use, a whole second, which in a run of seconds is much (bench/LOG.md).
    """

    def __init__(self, groups: Iterable[dict], **defaults):
        self.param_groups = [{**defaults, **group, "params": list(group["params"])} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self, skip: Tensor | None = None):
        """One update from the gradients; where `skip`, a boolean without dimensions, is true, all stays as it is. A GPU
        sees to that by itself, so that nobody has to wait for its answer."""
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
