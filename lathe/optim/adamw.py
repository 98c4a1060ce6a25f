"""Adam with decoupled weight decay, for what is not a hidden matrix."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lathe.optim.optimizer import Optimizer, local


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101), in torch's kernel.

    Moments are of the parameters' dtype, and sharded as they are.
    """

    keeps = frozenset(("step", "exp_avg", "exp_avg_sq"))
    state_name = "exp_avg"

    def __init__(
        self,
        groups: Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, group: dict, skip: Tensor | None):
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1.0)
        found_inf = None if skip is None else skip.float()
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            [local(p) for p in params],
            [local(p.grad) for p in params],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],  # the largest exp_avg_sq so far, for amsgrad
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=found_inf,
        )
        if found_inf is not None:  # a skipped update does not count
            # As a list, since one tensor for all would be read by the host.
            torch._foreach_sub_(steps, [found_inf] * len(steps))
