"""Faults that this folder's tests must see: planted(NAME) puts one into the code while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import model
import train
from lathe.run import ranks
from lathe.run.passes import CapturedPasses, Passes

add_gradients = Passes.add_gradients


def after_the_norm(also: Callable[[Tensor], Tensor | None]) -> dict:
    """What total_norm returns goes through a function more: it is called once in each step."""
    total_norm = train.total_norm

    def with_fault(parameters: list[Tensor]) -> Tensor:
        norm = total_norm(parameters)
        changed = also(norm)
        return norm if changed is None else changed

    return {(train, "total_norm"): with_fault}


def first_larger(norm: Tensor):
    norms = norm.view(1)
    norms[norms > 1]


def kept_boolean(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return mask


def read_at_once(self: ranks.Later) -> list:
    return self.numbers.tolist()


def without_the_batch(self: CapturedPasses, x: Tensor, y: Tensor, factor: float) -> Tensor:
    self.factor.fill_(factor)
    self.graph.replay()
    return self.loss


def with_a_wait(self: Passes, x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
    loss = add_gradients(self, x, y, factor)
    loss.item()
    return loss


FAULTS: dict[str, Callable[[], dict]] = {
    "item": lambda: after_the_norm(lambda norm: norm.item() and None),
    "bool": lambda: after_the_norm(lambda norm: bool(norm > 1) and None),
    "cpu": lambda: after_the_norm(lambda norm: norm.cpu().sum() and None),
    "tolist": lambda: after_the_norm(lambda norm: norm.tolist() and None),
    "a mask": lambda: after_the_norm(first_larger),
    "a copy": lambda: after_the_norm(lambda norm: norm * torch.ones(3).to(norm.device)[0]),
    "a CPU tensor": lambda: after_the_norm(lambda norm: (norm * torch.ones(1)).squeeze()),
    "a sum in any order": lambda: after_the_norm(lambda norm: norm.view(1).cumsum(0).squeeze()),
    "nobody waits": lambda: {(ranks.Later, "read"): read_at_once},
    "a batch of the capture": lambda: {(CapturedPasses, "add_gradients"): without_the_batch},
    "a wait in the capture": lambda: {(Passes, "add_gradients"): with_a_wait},
    "a float mask a layer": lambda: {(model, "as_bias"): kept_boolean},
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Inside, the fault is there; "" is none."""
    changes = FAULTS[name]() if name else {}
    before = {key: getattr(*key) for key in changes}
    for key, value in changes.items():
        setattr(*key, value)
    try:
        yield
    finally:
        for key, value in before.items():
            setattr(*key, value)
