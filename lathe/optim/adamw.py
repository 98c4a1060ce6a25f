"""Adam with decoupled weight decay, for what is not a hidden matrix."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lathe.optim.optimizer import Optimizer, is_sharded


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101), in torch's fused kernel.

    Raises nothing of its own; moments are of the parameters' dtype, and sharded as they are.
    """

    def __init__(
        self, groups: Iterable[dict], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):  # fmt: skip
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, group: dict, skip: Tensor | None):
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        if not params:
            return
        states = [self.state[p] for p in params]
        steps = [state["step"] for state in states]
        columns = params, [p.grad for p in params], *([s[k] for s in states] for k in ("exp_avg", "exp_avg_sq"))
        columns = [[t.to_local() if is_sharded(t) else t for t in column] for column in columns]
        torch._foreach_add_(steps, 1.0)
        beta1, beta2 = group["betas"]
        found_inf = None if skip is None else skip.float()
        torch._fused_adamw_(
            *columns, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
            eps=group["eps"], amsgrad=False, maximize=False, found_inf=found_inf,
        )  # fmt: skip
        if skip is not None:
            torch._foreach_sub_(steps, [found_inf] * len(steps))  # one tensor for all would be read by the host
