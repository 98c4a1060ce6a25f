"""From momentum to orthogonal matrices: what Muon computes of each matrix."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# (a, b, c) of X <- a X + b (X X^T) X + c (X X^T)^2 X, one triple an iteration: the best odd
# polynomials for five iterations (Polar Express, Amsel et al. 2025, arXiv 2505.16932).
POLAR_EXPRESS = (
    (8.15655, -22.48329, 15.87877),
    (4.04293, -2.80892, 0.50002),
    (3.89167, -2.77248, 0.50606),
    (3.28575, -2.36813, 0.46449),
    (2.34654, -1.70978, 0.42324),
)
# The polynomials are made for singular values up to 1; rounding must not carry one beyond.
MARGIN = 1.02


def orthogonalize(
    x: Tensor, coefficients: Iterable[tuple[float, float, float]] = POLAR_EXPRESS
) -> Tensor:
    """The nearest orthogonal matrices, approximately: all singular values go to about 1.

    x (K, m, n), with m <= n (transpose before otherwise). bfloat16 is enough.
    """
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * MARGIN + 1e-7)
    for a, b, c in coefficients:
        gram = x @ x.mT  # (K, m, m)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + polynomial x
    return x


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its products are fast: on GPUs from compute capability 8.0 on (Ampere). A V100
    or T4 would imitate it; in float16 small gradients would be zeros."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32


def orthogonal_parameters(momenta: list[Tensor], rows: list[tuple[int, ...]]) -> list[Tensor]:
    """Of parameters, each of which holds matrices of these numbers of rows, the orthogonal ones.

    They are in iteration_dtype. Matrices of one shape (transposed if m > n) are stacked, so that a
    step is a few large kernels.
    """
    stacks = defaultdict(list)
    for momentum, heights in zip(momenta, rows, strict=True):
        for matrix in momentum.split(heights):
            stacks[flat_shape(matrix)].append(lay_flat(matrix))

    orthogonal = {}
    for shape, stack in stacks.items():
        dtype = iteration_dtype(stack[0].device)
        orthogonal[shape] = iter(orthogonalize(torch.stack(stack).to(dtype)))

    parameters = []
    for momentum, heights in zip(momenta, rows, strict=True):
        parts = []
        for matrix in momentum.split(heights):
            m, n = matrix.shape
            part = next(orthogonal[flat_shape(matrix)])
            parts.append(part.mT if m > n else part)
        parameters.append(parts[0] if len(parts) == 1 else torch.cat(parts))
    return parameters


def flat_shape(matrix: Tensor) -> tuple[int, int]:
    m, n = matrix.shape
    return min(m, n), max(m, n)


def lay_flat(matrix: Tensor) -> Tensor:
    m, n = matrix.shape
    return matrix.mT if m > n else matrix
