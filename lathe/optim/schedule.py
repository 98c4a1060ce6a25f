"""Learning rates as functions of the step, set before each update: a checkpoint needs none; and the
decay that goes with a rate."""

import math
from dataclasses import dataclass

from lathe.optim.optimizer import Optimizer, TorchOptimizer


def set_rates(optimizers: list[Optimizer | TorchOptimizer], factor: float):
    """Give every group its rate for this step: base_lr * factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


SHORTEST_MEMORY = 10  # steps


def decay_by_reading(rate: float, steps_of_a_reading: float) -> float:
    """The weight decay that suits a text, where matrices have this peak rate.

    A step forgets the share rate * decay of what weights were; best is that they forget as much in
    so many steps as one reading of the text takes (Wang and Aitchison, arXiv 2405.13698).
    """
    return float(f"{1 / rate / max(steps_of_a_reading, SHORTEST_MEMORY):.2g}")


# -----------------------------------------------------------------------------
# Where a run is on its schedule


@dataclass(frozen=True)
class Leg:
    """A part of a run by the clock: from `step` on, which is at `share` of the way, each step takes
    an equal part of what is left up to `last_step`."""

    step: int
    share: float
    last_step: int

    def __str__(self) -> str:
        return f"{self.step} {self.share!r} {self.last_step}"

    def share_at(self, step: int) -> float:
        """Of the way: 0 is before the first update, 1 after the last."""
        steps = (step - self.step) / (self.last_step - self.step)
        return self.share + (1 - self.share) * steps


def read_pace(pace: list[str]) -> list[Leg]:
    """The legs that str(leg) has written. Raises ValueError for what is none of a run."""
    legs = []
    for text in pace:
        try:
            step, share, last_step = text.split()
            leg = Leg(int(step), float(share), int(last_step))
        except ValueError:
            raise ValueError(f"pace has {text!r}; a leg is 'STEP SHARE LAST_STEP'") from None
        begins_well = leg.step > legs[-1].step if legs else leg.step == 0
        if not (begins_well and 0 <= leg.share < 1 and leg.step < leg.last_step):
            raise ValueError(f"pace has {text!r}, which does not continue what stands before it")
        legs.append(leg)
    return legs


@dataclass(frozen=True)
class Position:
    """Where a step is on the schedule: as step `step` of `max_steps` is on a steady one."""

    step: float
    max_steps: int


def position(step: int, max_steps: int, pace: list[str]) -> Position:
    """Of update `step`. pace: the legs of a run by the clock, which end at max_steps; with another
    max_steps it is as if there were none."""
    legs = read_pace(pace)
    if not legs or legs[-1].last_step != max_steps:
        return Position(step, max_steps)
    leg = max((leg for leg in legs if leg.step <= step), key=lambda leg: leg.step)
    # By the leg alone, not by later ones: a repeat, which knows them all, computes the same bits.
    return Position(leg.share_at(step) * leg.last_step, leg.last_step)


def is_near_end(step: int, margin: float, max_steps: int, pace: list[str]) -> bool:
    """Whether, in a run by the clock, less than `margin` steps were to follow after `step` updates,
    as far as was known when the last of them began. Never in a run without a clock."""
    legs = read_pace(pace)
    if not legs or legs[-1].last_step != max_steps:
        return False
    known = [leg for leg in legs if leg.step < step]
    return known[-1].last_step - step < margin


# -----------------------------------------------------------------------------
# The rate there


def lr_factor(
    step: float,
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
