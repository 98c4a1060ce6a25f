"""Parameters that have gradients, and twins of them."""

import torch


def with_gradients(*shapes: tuple[int, int]) -> list[torch.Tensor]:
    parameters = [torch.randn(shape).requires_grad_() for shape in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return parameters


def copies(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    twins = [p.detach().clone().requires_grad_() for p in parameters]
    for twin, p in zip(twins, parameters, strict=True):
        twin.grad = p.grad.clone()
    return twins
