"""How long a run takes here: what a step needs is measured before the first one.

On a copy of the network with two blocks, and with one: the difference is what each further block
costs. So a large network is measured in seconds and little memory, on shapes that are the run's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lathe.data.batches import count_val_windows
from lathe.data.dataset import Dataset
from lathe.optim.optimizer import Optimizer, TorchOptimizer
from lathe.run.devices import Runtime
from lathe.run.plan import Plan
from lathe.run.process import random_state, set_random_state
from lathe.settings import Settings
from lathe.use import lora
from lathe.use.network import without_weights
from lathe.use.validation import tokens_to_compare
from model import GPT

MOST_FLOPS = 3e10  # of a pass that is measured: less than a second on two slow cores
MOST_BYTES = 2e9  # of a network that is built to be measured, with its gradients and moments
LONG_ENOUGH = 0.15  # seconds of a pass; shorter ones are measured with more sequences
SLOW_STEP = 20.0  # seconds of a step about which a word is due
MAKE_OPTIMIZERS = Callable[[Settings, GPT], list[Optimizer | TorchOptimizer]]


@dataclass(frozen=True)
class Pace:
    """Seconds that training takes, as measured."""

    micro_step: float  # forward and backward pass of a micro-batch
    update: float  # what optimizers need, once a step
    per_token: float  # of a forward and backward pass

    def step(self, micro_steps: int) -> float:
        return micro_steps * self.micro_step + self.update


@dataclass(frozen=True)
class Times:
    """What passes and updates took on a network."""

    one_pass: float
    update: float


@dataclass(frozen=True)
class Shape:
    """Of a batch that is measured."""

    sequences: int
    tokens: int  # of each


def measure_pace(plan: Plan, runtime: Runtime, make_optimizers: MAKE_OPTIMIZERS) -> Pace | None:
    """What this machine needs for the plan, not compiled; None where even two blocks of the network
    are too much to build for that. Random states are left as they were."""
    n_layer = plan.config.n_layer
    two = replace(plan.config, n_layer=min(2, n_layer))
    if 16 * without_weights(two).n_params() > MOST_BYTES:
        return None
    before = random_state(runtime.device)
    network = SmallNetwork(plan, two.n_layer, runtime, make_optimizers)
    shape = network.shape_to_measure()
    times = network.times(shape)
    if n_layer > 2:
        of_one = SmallNetwork(plan, 1, runtime, make_optimizers).times(shape)
        others = n_layer - 2
        times = Times(
            times.one_pass + others * max(0.0, times.one_pass - of_one.one_pass),
            times.update + others * max(0.0, times.update - of_one.update),
        )
    set_random_state(before, runtime.device)
    s = plan.settings
    per_token = times.one_pass / (shape.sequences * shape.tokens)
    return Pace(per_token * s.micro_batch_size * s.block_size, times.update, per_token)


def is_short(plan: Plan, steps_done: int) -> bool:
    """Whether a run is over sooner than it is measured."""
    steps = plan.settings.max_steps - steps_done
    return steps <= 100 and steps * plan.tokens_per_step * plan.flops_per_token < 1e10


class SmallNetwork:
    """A network of the plan's widths with a few blocks and new weights, on the run's device."""

    def __init__(
        self, plan: Plan, n_layer: int, runtime: Runtime, make_optimizers: MAKE_OPTIMIZERS
    ):
        s = plan.settings
        self.runtime = runtime
        self.settings = s
        self.model = GPT(replace(plan.config, n_layer=n_layer))
        if s.lora_rank:
            lora.adapt(self.model, s.lora_rank, s.lora_alpha)
        self.model.to(runtime.device).train()
        self.optimizers = make_optimizers(s, self.model)

    def shape_to_measure(self) -> Shape:
        """As many of a micro-batch's sequences, or tokens of one, as take a moment."""
        s = self.settings
        tokens = s.block_size
        while tokens > 64 and tokens * self.model.flops_per_token(tokens) > MOST_FLOPS:
            tokens //= 2
        sequences = 1
        while sequences < s.micro_batch_size and tokens == s.block_size:
            of_first = self.one_pass(Shape(sequences, tokens))  # loads what later ones have
            if of_first > 1 or self.one_pass(Shape(sequences, tokens)) > LONG_ENOUGH:
                break
            sequences = min(4 * sequences, s.micro_batch_size)
        return Shape(sequences, tokens)

    def times(self, shape: Shape) -> Times:
        """The shortest of a few; of one alone where that is long enough to be sure."""
        passes = [self.one_pass(shape)]
        updates = [self.update()]  # of Muon, whose products are large, some take seconds
        while len(passes) < 4 and sum(passes) + sum(updates) < 4 * LONG_ENOUGH:
            passes.append(self.one_pass(shape))
            updates.append(self.update())
        return Times(min(passes), min(updates))

    def one_pass(self, shape: Shape) -> float:
        size = (shape.sequences, shape.tokens + 1)
        ids = torch.randint(self.model.config.vocab_size, size, device=self.runtime.device)
        x = ids[:, :-1].contiguous()
        y = ids[:, 1:].contiguous()
        began = self.now()
        with self.runtime.autocast():
            loss = self.model(x, y, reduction="sum")
        loss.backward()
        return self.now() - began

    def update(self) -> float:
        began = self.now()
        for optimizer in self.optimizers:
            optimizer.step(torch.zeros((), dtype=torch.bool, device=self.runtime.device))
            optimizer.zero_grad()
        return self.now() - began

    def now(self) -> float:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)
        elif self.runtime.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


# -----------------------------------------------------------------------------
# In words


def expectation(plan: Plan, pace: Pace, dataset: Dataset | None, steps_done: int = 0) -> str:
    """How long it will take, and of what that is made."""
    s = plan.settings
    steps = s.max_steps - steps_done
    step = pace.step(plan.micro_steps)
    text = f"{steps:,} steps of {amount_of_time(step)}"
    total = steps * step
    if dataset is not None:
        n_evaluations = s.max_steps // s.eval_interval - steps_done // s.eval_interval
        n_evaluations += s.max_steps % s.eval_interval > 0
        val = s.block_size * count_val_windows(dataset.val, s.block_size, s.eval_tokens)
        train = tokens_to_compare(s, dataset)
        evaluation = (val + train) * pace.per_token / 3 / plan.world_size  # of which no backward
        total += n_evaluations * evaluation
        read = f"{val:,} validation and {train:,} training tokens"
        times = "1 evaluation" if n_evaluations == 1 else f"{n_evaluations:,} evaluations"
        text += f", {times} of {amount_of_time(evaluation)} ({read})"
    return f"about {in_words(total)}: {text}"


def slow_step_advice(plan: Plan, pace: Pace) -> str:
    """What to change where a step takes so long that nothing seems to happen; "" where not."""
    s = plan.settings
    seconds = pace.step(plan.micro_steps)
    if seconds <= SLOW_STEP or s.batch_size == 1:
        return ""
    batch_size = s.batch_size
    while batch_size > 1 and pace.per_token * batch_size * s.block_size > SLOW_STEP / 4:
        batch_size //= 2
    each = pace.per_token * batch_size * s.block_size + pace.update
    return (
        f"a step of {plan.tokens_per_step:,} tokens takes {in_words(seconds)} here: "
        f"--batch_size={batch_size} makes it {in_words(each)}, for as many steps"
    )


def amount_of_time(seconds: float) -> str:
    """86 ms, 1.4 s, 3 minutes: two digits."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 99.5:
        return f"{float(f'{seconds:.2g}'):g} s"
    return in_words(seconds)


def in_words(seconds: float) -> str:
    """20 seconds, 3 minutes, 2.5 hours, 12 days."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            n = seconds / size
            return f"{n:,.0f} {unit}" if n >= 9.95 else f"{float(f'{n:.2g}'):g} {unit}"
    return f"{max(1, round(seconds))} seconds" if seconds >= 1.5 else "a second"
