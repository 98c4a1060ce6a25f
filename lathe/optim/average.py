"""The mean of the weights over the last updates, which often does better than the last weights.

Where a text is read many times, the last steps go to and fro around a minimum, and their mean lies
nearer to it (Izmailov et al. 2018, arXiv 1803.05407). The learning rate falls meanwhile as ever.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class TailAverage:
    """{name: float32 tensor} of a model's weights, averaged since reset().

    n: how many updates are in it; with none, weights mean nothing.
    """

    def __init__(self, model: nn.Module):
        self.n = 0
        self.weights: dict[str, Tensor] = {}
        for name, p in model.state_dict().items():
            self.weights[name] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def reset(self):
        self.n = 0

    @torch.no_grad()
    def add(self, model: nn.Module):
        """The weights as they are now."""
        self.n += 1
        current = model.state_dict()
        for name, mean in self.weights.items():
            mean += (current[name] - mean) / self.n if self.n > 1 else current[name] - mean

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        last = {name: p.clone() for name, p in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(last)


def pack(average: TailAverage, last: dict[str, Tensor], is_better: bool) -> dict:
    """What a checkpoint keeps beside the weights to be used, which are the averaged ones where
    these are better. Inverse of unpack."""
    other = last if is_better else average.weights
    return {"n": average.n, "model_is_average": is_better, "other": other}


@torch.no_grad()
def unpack(average: TailAverage, model: nn.Module, packed: dict):
    """Bring the last weights and the average back; model has what was saved to be used."""
    average.n = int(packed["n"])
    used = {name: p.clone() for name, p in model.state_dict().items()}
    other = {name: packed["other"][name] for name in used}
    averaged, last = (used, other) if packed["model_is_average"] else (other, used)
    model.load_state_dict(last)
    for name, mean in average.weights.items():
        mean.copy_(averaged[name])
