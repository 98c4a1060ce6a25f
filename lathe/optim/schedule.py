"""Learning rates as functions of the step, set before each update: a checkpoint needs none."""

import math

from lathe.optim.optimizer import Optimizer, TorchOptimizer


def set_rates(optimizers: list[Optimizer | TorchOptimizer], factor: float):
    """Give every group its rate for this step: base_lr * factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


def lr_factor(
    step: int,
    max_steps: int,
    schedule: str,
    warmup_steps: int,
    decay_fraction: float,
    min_fraction: float,
) -> float:
    """The share of the full learning rate at update `step` (0 is the first of max_steps).

    Linear warmup over warmup_steps, but at most a fifth of the run. Then "wsd": constant, and a
    linear decay to min_fraction over the last decay_fraction of the run (arXiv 2405.18392);
    "cosine": half a cosine down to min_fraction; "constant". Raises ValueError for another
    schedule.
    """
    warmup = min(warmup_steps, max_steps // 5)
    rise = min(1.0, (step + 1) / (warmup + 1))
    if schedule == "constant":
        return rise
    if schedule == "wsd":
        decay_steps = max(1.0, decay_fraction * max_steps)
        share = min(1.0, (max_steps - step) / decay_steps)
    elif schedule == "cosine":
        done = max(0, step - warmup) / max(1, max_steps - warmup)
        share = 0.5 * (1 + math.cos(math.pi * done))
    else:
        raise ValueError(f"lr_schedule is {schedule!r}: choose wsd, cosine or constant")
    return rise * (min_fraction + (1 - min_fraction) * share)
