"""Low-rank adaptation (LoRA; Hu et al. 2021, arXiv 2106.09685): train small corrections alone.

A matrix W (out, in) of a block acts as W + alpha/rank B A, with A (rank, in) and B (out, rank).
Only A and B learn; B begins at zero, so that training begins at the model it was given. A matrix
that holds several, such as queries, keys and values, is one matrix here. Checkpoints of a run keep
W, A and B apart: it resumes exactly, and W is bit for bit what it was. Whoever else loads one gets
their sum.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

A, B = ".lora_A", ".lora_B"  # endings of the parameters' names, after that of their layer


class AdaptedLinear(nn.Module):
    """A linear layer with a correction of low rank beside its weight, which keeps its name."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = alpha / rank
        rows, columns = linear.weight.shape
        small = torch.randn(rank, columns) / math.sqrt(columns)  # A x is about as large as x
        self.lora_A = nn.Parameter(small)
        self.lora_B = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_A)  # (..., in) -> (..., rank)
        correction = F.linear(low, self.lora_B)  # (..., rank) -> (..., out)
        return F.linear(x, self.weight, self.bias) + self.scale * correction


def adapt(model: nn.Module, rank: int, alpha: float) -> dict[str, Tensor]:
    """Freeze a GPT and give each linear layer of its blocks a correction to learn.

    Returns these tensors by name. Raises ValueError for a rank that a matrix cannot have.
    """
    model.requires_grad_(False)
    blocks = model.transformer.h
    linears = [(name, m) for name, m in blocks.named_modules() if isinstance(m, nn.Linear)]
    for name, linear in linears:
        most = min(linear.weight.shape)
        if rank > most:
            raise ValueError(
                f"lora_rank is {rank}, but {name} is a matrix of rank {most} at most: choose less"
            )
        blocks.set_submodule(name, AdaptedLinear(linear, rank, alpha))
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith((A, B))}


def merge(weights: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Weights by name, each correction added to its matrix: the same model without adapters."""
    out = {name: tensor for name, tensor in weights.items() if not name.endswith((A, B))}
    for name in weights:
        if name.endswith(A):
            layer = name.removesuffix(A)
            a, b = weights[name], weights[layer + B]
            rank = len(a)
            out[layer + ".weight"] = out[layer + ".weight"] + (b @ a) * (alpha / rank)
    return out
