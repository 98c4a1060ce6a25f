"""The mean of the weights over the last updates, which often does better than the last weights.

Where a text is read many times, the last steps go to and fro around a minimum, and their mean lies
nearer to it (Izmailov et al. 2018, arXiv 1803.05407). The learning rate falls meanwhile as ever.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lathe.optim.optimizer import like_parameter, local


class TailAverage:
    """{name: tensor} of the weights that a model learns, averaged since reset().

    Of a sharded model each rank averages its rows, without an exchange. What is frozen, as under
    LoRA, is its own mean and is left alone. n: how many updates are in it; with none, weights mean
    nothing.
    """

    def __init__(self, model: nn.Module):
        self.n = 0
        self.weights: dict[str, Tensor] = {}
        for name, p in learned(model).items():
            self.weights[name] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def reset(self):
        self.n = 0

    @torch.no_grad()
    def add(self, model: nn.Module):
        """The weights as they are now."""
        self.n += 1
        current = learned(model)
        for name, mean in self.weights.items():
            own = local(mean)
            if self.n == 1:
                own.copy_(local(current[name]))
            else:
                own += (local(current[name]) - own) / self.n

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        last = {name: p.clone() for name, p in learned(model).items()}
        put(self.weights, model)
        try:
            yield
        finally:
            put(last, model)


def learned(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights that training changes, by name; of a sharded one, which this puts back into
    its shards, the shards."""
    state = model.state_dict(keep_vars=True)
    return {name: p.detach() for name, p in state.items() if p.requires_grad}


@torch.no_grad()
def put(weights: dict[str, Tensor], model: nn.Module):
    """Give the model these weights, cut up as its own are."""
    for name, p in learned(model).items():
        local(p).copy_(local(weights[name]))


# -----------------------------------------------------------------------------
# In a checkpoint


def pack(average: TailAverage, last: dict[str, Tensor], is_better: bool) -> dict[str, Any]:
    """What a checkpoint keeps beside the weights to be used, which are the averaged ones where
    these are better. Inverse of unpack. last: the model's weights, by name."""
    other = average.weights
    if is_better:
        other = {name: last[name] for name in average.weights}
    return {"n": average.n, "model_is_average": is_better, "other": other}


@torch.no_grad()
def unpack(average: TailAverage, model: nn.Module, packed: dict[str, Any]):
    """Bring the last weights and the average back; model has what was saved to be used.

    What is packed may have been cut up in another way, or not at all.
    """
    average.n = int(packed["n"])
    for name, p in learned(model).items():
        used = local(p)
        other = local(like_parameter(packed["other"][name], p))
        mean = local(average.weights[name])
        if packed["model_is_average"]:
            mean.copy_(used)
            used.copy_(other)
        else:
            mean.copy_(other)
