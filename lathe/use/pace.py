"""How long a run takes here: what a step needs is measured before the first one.

On a copy of the network with two blocks, and with one: the difference is what each further block
costs. So a large network is measured in seconds and little memory, on shapes that are the run's.
"""

from dataclasses import dataclass, replace

from lathe.data.dataset import Dataset
from lathe.run.devices import Runtime
from lathe.run.plan import Plan
from lathe.run.process import random_state, set_random_state
from lathe.run.timing import TimedNetwork, Timing
from lathe.use import lora
from lathe.use.network import without_weights
from lathe.use.validation import tokens_of_validation, tokens_to_compare
from model import GPT

MOST_FLOPS = 3e10  # of a pass that is measured: less than a second on two slow cores
MOST_BYTES = 2e9  # of a network that is built to be measured, with its gradients and moments
LONG_ENOUGH = 0.15  # seconds of a pass; shorter ones are measured with more sequences
SLOW_STEP = 20.0  # seconds of a step about which a word is due


@dataclass(frozen=True)
class Shape:
    """Of a batch that is measured."""

    sequences: int
    tokens: int  # of each


def measure_pace(plan: Plan, runtime: Runtime) -> Timing | None:
    """What this machine needs for the plan, not compiled; None where even two blocks of the network
    are too much to build for that. Random states are left as they were."""
    n_layer = plan.config.n_layer
    two = replace(plan.config, n_layer=min(2, n_layer))
    if 16 * without_weights(two).n_params() > MOST_BYTES:
        return None
    before = random_state(runtime.device)
    network = few_blocks(plan, two.n_layer, runtime)
    shape = shape_to_measure(plan, network)
    pace = measure(network, shape)
    if n_layer > 2:
        of_one = measure(few_blocks(plan, 1, runtime), shape)
        others = n_layer - 2
        pace = Timing(
            pace.token + others * max(0.0, pace.token - of_one.token),
            pace.update + others * max(0.0, pace.update - of_one.update),
        )
    set_random_state(before, runtime.device)
    return pace


def is_short(plan: Plan, steps_done: int) -> bool:
    """Whether a run takes so few seconds that measuring it would be a good part of them."""
    steps = plan.settings.max_steps - steps_done
    return steps <= 400 and steps * plan.tokens_per_step * plan.flops_per_token < 2.5e11


def few_blocks(plan: Plan, n_layer: int, runtime: Runtime) -> TimedNetwork:
    """A network of the plan's widths with a few blocks and new weights."""
    s = plan.settings
    model = GPT(replace(plan.config, n_layer=n_layer))
    if s.lora_rank:
        lora.adapt(model, s.lora_rank, s.lora_alpha)
    return TimedNetwork(model, s, runtime)


def shape_to_measure(plan: Plan, network: TimedNetwork) -> Shape:
    """As many of a micro-batch's sequences, or tokens of one, as take a moment."""
    s = plan.settings
    tokens = s.block_size
    while tokens > 64 and tokens * network.model.flops_per_token(tokens) > MOST_FLOPS:
        tokens //= 2
    sequences = 1
    while sequences < s.micro_batch_size and tokens == s.block_size:
        of_first = network.one_pass(sequences, tokens)  # loads what later ones have
        if of_first > 1 or network.one_pass(sequences, tokens) > LONG_ENOUGH:
            break
        sequences = min(4 * sequences, s.micro_batch_size)
    return Shape(sequences, tokens)


def measure(network: TimedNetwork, shape: Shape) -> Timing:
    """The shortest of a few; of one alone where that is long enough to be sure."""
    passes = [network.one_pass(shape.sequences, shape.tokens)]
    updates = [network.one_update()]  # of Muon, whose products are large, some take seconds
    while len(passes) < 4 and sum(passes) + sum(updates) < 4 * LONG_ENOUGH:
        passes.append(network.one_pass(shape.sequences, shape.tokens))
        updates.append(network.one_update())
    return Timing(min(passes) / (shape.sequences * shape.tokens), min(updates))


# -----------------------------------------------------------------------------
# In words


def expectation(plan: Plan, pace: Timing, dataset: Dataset | None, steps_done: int = 0) -> str:
    """How long it will take, and of what that is made."""
    s = plan.settings
    steps = s.max_steps - steps_done
    step = pace.step(plan.tokens_per_step // plan.world_size)
    text = f"{steps:,} steps of {amount_of_time(step)}"
    total = steps * step
    if dataset is not None:
        n_evaluations = s.max_steps // s.eval_interval - steps_done // s.eval_interval
        n_evaluations += s.max_steps % s.eval_interval > 0
        val = tokens_of_validation(s, dataset)
        train = tokens_to_compare(s, dataset)
        evaluation = (val + train) * pace.token / 3 / plan.world_size  # of which no backward
        total += n_evaluations * evaluation
        read = f"{val:,} validation and {train:,} training tokens"
        times = "1 evaluation" if n_evaluations == 1 else f"{n_evaluations:,} evaluations"
        text += f", {times} of {amount_of_time(evaluation)} ({read})"
    return f"about {in_words(total)}: {text}"


def slow_step_advice(plan: Plan, pace: Timing) -> str:
    """What to change where a step takes so long that nothing seems to happen; "" where not."""
    s = plan.settings
    seconds = pace.step(plan.tokens_per_step // plan.world_size)
    if seconds <= SLOW_STEP or s.batch_size == 1:
        return ""
    batch_size = s.batch_size
    while batch_size > 1 and pace.token * batch_size * s.block_size > SLOW_STEP / 4:
        batch_size //= 2
    each = pace.step(batch_size * s.block_size)
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
