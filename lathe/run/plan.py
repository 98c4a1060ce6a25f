"""What is decided before a run: each setting that was left open, with the reason.

Settings say what a user asked for, and stay as they are. `resolve` makes a Plan of them, which both
training and the dry run go by, so that what is planned is what is run.
"""

import math
import os
from dataclasses import dataclass, fields, replace

import torch

from lathe.data.batches import even_split
from lathe.optim.schedule import read_pace
from lathe.run import devices, ranks
from lathe.run.gpus import peak_flops
from lathe.run.memory import StepMemory, step_memory
from lathe.settings import RESUMING, Settings
from model import GPT, GPTConfig

# Settings that are fields of GPTConfig, too. Another model's weights bring all but dropout.
NETWORK = {f.name for f in fields(GPTConfig)} & {f.name for f in fields(Settings)}
SHAPE = sorted(NETWORK - {"dropout", "ngram_dropout"})


@dataclass(frozen=True)
class Plan:
    """What a run goes by."""

    settings: Settings  # as decided: no "auto" is left, and no 0 that stands for a rule
    shapes: GPT  # the network without its weights
    resumed: bool  # a checkpoint of this run is gone on from
    world_size: int
    micro_steps: int  # micro-batches that a device reads for one update
    compiled: bool
    captured: bool  # a micro-batch's passes are one CUDA graph
    choices: tuple[str, ...]  # device, dtype, micro_batch_size, compile: what was chosen, and why
    rules: tuple[str, ...]  # a line about each setting that a published rule decided
    notes: tuple[str, ...] = ()  # lines about what was asked for and is otherwise

    @property
    def config(self) -> GPTConfig:
        return self.shapes.config

    @property
    def n_params(self) -> int:
        return self.shapes.n_params()

    @property
    def n_trained(self) -> int:
        return sum(p.numel() for p in self.shapes.parameters() if p.requires_grad)

    @property
    def tokens_per_step(self) -> int:
        return self.settings.batch_size * self.settings.block_size

    @property
    def flops_per_token(self) -> int:
        return training_flops(self.shapes, self.settings)

    def describe_choices(self) -> str:
        """What runs where, and why."""
        line = ", ".join(self.choices)
        if self.world_size > 1:
            line += f", {self.world_size} processes"
        return line

    def describe_step(self) -> str:
        """How a step is cut up."""
        s = self.settings
        devices = "1 device" if self.world_size == 1 else f"{self.world_size} devices"
        return (
            f"{s.batch_size} sequences of {s.block_size} = {s.micro_batch_size} at a time x "
            f"{self.micro_steps} accumulated x {devices}"
        )


def resolve(
    settings: Settings,
    runtime: devices.Runtime,
    shapes: GPT,
    resumed: dict | None = None,
    device_memory: float = 0.0,
) -> Plan:
    """Decide what the settings leave open.

    shapes: the network that will be trained, on the meta device.
    resumed: state.json of the checkpoint that the run goes on from, if it does.
    device_memory: bytes of a device that is not here; 0 = what is free on this one.

    Every rank calls it and gets the same. Raises ValueError for a batch that is not even.
    """
    dtype = str(runtime.dtype).removeprefix("torch.")
    s = replace(settings, device=runtime.device.type, dtype=dtype)
    steps_done = 0
    if resumed is not None:
        steps_done = resumed["step"]
        s = as_it_began(s, resumed["settings"])
    elif settings.init_from not in ("scratch", *RESUMING):
        s = replace(s, **{name: getattr(shapes.config, name) for name in SHAPE})
    if s.lora_rank:
        s = replace(s, optimizer="adamw")  # Muon is for whole matrices
    s, rules = follow_rules(s, shapes)
    if "shift_windows" in settings.given and s.shift_windows != settings.shift_windows:
        rules.append(f"shift_windows {str(s.shift_windows).lower()}: as the run began")
    read_pace(s.pace)  # for what is none of a run

    choices = list(runtime.reasons)
    if s.deterministic:
        choices.append(devices.describe_determinism(runtime.device))
    # Memory depends on it, and so on that micro-batches do.
    tokens_left = (s.max_steps - steps_done) * s.batch_size * s.block_size
    compiled, why_compiled = decide_compile(s, runtime, tokens_left * training_flops(shapes, s))
    s = replace(s, compile=str(compiled).lower())
    if not s.micro_batch_size:
        size, reason = choose_micro_batch(s, shapes, runtime, device_memory)
        s = replace(s, micro_batch_size=size)
        choices.append(reason)
    micro_steps = even_split(s.batch_size, s.micro_batch_size, runtime.world_size)

    if why_compiled:
        choices.append(why_compiled)
    captured, why_captured = decide_graphs(s, runtime, shapes)
    if why_captured:
        choices.append(why_captured)

    return Plan(
        settings=s,
        shapes=shapes,
        resumed=resumed is not None,
        world_size=runtime.world_size,
        micro_steps=micro_steps,
        compiled=compiled,
        captured=captured,
        choices=tuple(choices),
        rules=tuple(rules),
    )


def as_it_began(s: Settings, was: dict) -> Settings:
    """The settings of a run that goes on, with those of `was`, its first ones, that say how it
    began. Its shape is the same, in the words of then."""
    kept = {name: was[name] for name in ["init_from", *SHAPE] if name in was}
    if not s.new_data:  # a position means the same samples; before this setting, no grid moved
        kept["shift_windows"] = was.get("shift_windows", False)
    return replace(s, **kept)


def refuse_what_no_memory_holds(s: Settings, shapes: GPT, world_size: int):
    """ValueError, before anything is made, for a step on a CPU that needs twice this machine's
    memory: the system would kill the process without a word.

    What a GPU does not hold is seen in a dry pass, which ends with a message. Where the
    micro-batch is not decided yet, it is one sequence.
    """
    memory = physical_memory()
    if s.device != "cpu" or not memory:
        return
    size = s.micro_batch_size or 1
    needed = step_memory(replace(s, micro_batch_size=size), shapes, world_size).peak
    if needed > 2 * memory:
        table = f", ngram_rows ({s.ngram_rows:,})" if s.ngram_rows else ""
        raise ValueError(
            f"a step needs about {needed / 1e9:,.0f} GB, this machine has {memory / 1e9:,.0f}: "
            f"lower n_layer ({s.n_layer}), n_embd ({s.n_embd}), block_size ({s.block_size})"
            f"{table} or micro_batch_size ({size}); --dry_run shows what takes how much"
        )


def physical_memory() -> int:
    """Bytes of this machine's memory; 0 if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def training_flops(model: GPT, s: Settings) -> int:
    """Operations for one token, forward and backward. That costs two forward passes, or one where
    the weights need no gradients."""
    passes = 2 if s.lora_rank else 3
    return passes * model.flops_per_token(s.block_size, training=False)


def decide_compile(s: Settings, runtime: devices.Runtime, flops_left: float) -> tuple[bool, str]:
    """Whether to compile, and why. A dry run has no word on it: whether a compiler works, and
    whether a run is too short for it, is seen where it runs."""
    if s.dry_run:
        return s.compile == "true" or (s.compile == "auto" and runtime.device.type == "cuda"), ""
    seconds = 60 * s.minutes  # or not known
    peak = peak_flops(runtime.device, runtime.dtype)
    if peak and not s.minutes:
        seconds = flops_left / (0.3 * peak * runtime.world_size)
    return devices.choose_compile(s.compile, runtime.device, seconds)


# Kernels of a block's passes, its products among them: as many as Inductor launches for an H100
# (tests/cuda/test_lowered.py: 507 for the 12 blocks of gpt2_124m), and those of an uncompiled one
KERNELS_OF_BLOCK = {"true": 42, "false": 140}
LAUNCH_SECONDS = 8e-6  # an estimate, with what Python does for each


def decide_graphs(s: Settings, runtime: devices.Runtime, model: GPT) -> tuple[bool, str]:
    """Whether a micro-batch's passes become one CUDA graph, and why. In a run by minutes the dial
    asks; else not unasked, since what Python does in model.py is done once then; where it would
    help, that is said."""
    if s.dry_run:
        return False, ""
    obstacle = ""
    if runtime.device.type != "cuda":
        obstacle = "it takes a GPU"
    elif runtime.world_size > 1:
        obstacle = "it takes a process alone"
    elif s.activation_checkpointing != "none":
        obstacle = "activation_checkpointing reads random numbers between kernels"
    if obstacle:
        return False, f"no CUDA graph ({obstacle})" if s.cuda_graphs else ""
    if s.cuda_graphs:
        chosen = s.minutes and "cuda_graphs" not in s.given  # by the dial, with its reason
        return True, "a CUDA graph a pass" if chosen else "a CUDA graph a pass (as asked)"
    peak = peak_flops(runtime.device, runtime.dtype)
    if not peak or not is_bound_by_launches(s, model, peak):
        return False, ""
    why = "launching kernels takes longer than they do"
    return False, f"no CUDA graph ({why}; --cuda_graphs=true to try)"


def is_bound_by_launches(s: Settings, model: GPT, peak: float) -> bool:
    """Whether the host takes longer to launch the kernels of a micro-batch's passes than a GPU, at
    40% of its peak in FLOP/s, to compute them."""
    computing = s.micro_batch_size * s.block_size * training_flops(model, s) / (0.4 * peak)
    return computing < LAUNCH_SECONDS * KERNELS_OF_BLOCK[s.compile] * s.n_layer


# -----------------------------------------------------------------------------
# Micro-batches


def choose_micro_batch(
    s: Settings, model: GPT, runtime: devices.Runtime, device_memory: float = 0.0
) -> tuple[int, str]:
    """The most sequences that a pass should hold, within memory and as far as it helps; and why.

    The answer divides each rank's share of s.batch_size, and is the same on all ranks.
    """
    share = max(1, s.batch_size // runtime.world_size)
    most = max(1, 65536 // s.block_size)
    sizes = [size for size in range(1, min(share, most) + 1) if share % size == 0]

    def memory(size: int) -> StepMemory:
        return step_memory(replace(s, micro_batch_size=size), model, runtime.world_size)

    if runtime.device.type == "cuda":
        free = device_memory or torch.cuda.mem_get_info(runtime.device)[0]
        fit = [size for size in sizes if memory(size).peak <= 0.8 * free]
    else:  # a gigabyte of activations; more is no faster there
        one, two = memory(1), memory(2)
        per_sequence = two.activations + two.working - one.activations - one.working
        fit = [size for size in sizes if size * per_sequence <= 1.3e9]
    largest = max(fit, default=1)
    fitting = min(ranks.gather(largest))
    why = "all of a step" if fitting == share else "the most that memory and speed suggest"
    return fitting, f"micro_batch_size {fitting} ({why})"


# -----------------------------------------------------------------------------
# Published rules

# The run that they pass through, config/modern_124m.toml's.
TOKENS = 2.5e9
STEP_TOKENS = 2**19
WIDTH = 768
ADAMW_RATE = 0.004
MUON_RATE = 0.02
WEIGHT_DECAY = 0.1


def follow_rules(s: Settings, model: GPT) -> tuple[Settings, list[str]]:
    """Fill in the settings that are left to rules (0; weight_decay: -1), with a line about each."""
    lines = []
    tokens = s.tokens
    if not tokens and not s.max_steps:
        weights = matrix_weights(model)
        tokens = 20 * weights  # Chinchilla's rule
        why = f"20 for each of {weights:,} weights in matrix products (arXiv 2203.15556)"
        lines.append(f"tokens {tokens:,}: {why}")

    batch_size = s.batch_size
    if not batch_size:
        batch_size = batch_by_rule(tokens, s.max_steps, s.block_size)
        why = "~ tokens^0.383 (arXiv 2505.13738), the nearest power of two"
        lines.append(f"batch_size {batch_size:,}: {why}")
    step_tokens = batch_size * s.block_size

    max_steps = s.max_steps
    if tokens:
        max_steps = math.ceil(tokens / step_tokens)
        lines.append(f"max_steps {max_steps:,}: {tokens:,} tokens, {step_tokens:,} a step")
    run_tokens = max_steps * step_tokens
    batch = math.sqrt(step_tokens / STEP_TOKENS)

    learning_rate = s.learning_rate
    if not learning_rate:
        if s.optimizer == "adamw":
            flops = run_tokens * model.flops_per_token(s.block_size)
            learning_rate = rounded(0.3118 * flops**-0.125)
            why = "0.3118 FLOPs^-0.125 (DeepSeek LLM, arXiv 2401.02954)"
        else:
            learning_rate = rounded(ADAMW_RATE * batch * math.sqrt(WIDTH / s.n_embd))
            why = "~ sqrt(batch) (arXiv 2205.10287) / sqrt(width) (nanochat's sweeps)"
        lines.append(f"learning_rate {learning_rate:,}: {why}")

    muon_learning_rate = s.muon_learning_rate
    if not muon_learning_rate:
        muon_learning_rate = rounded(MUON_RATE * batch)
        why = "~ sqrt(batch), for any width (arXiv 2409.20325)"
        lines.append(f"muon_learning_rate {muon_learning_rate:,}: {why}")

    weight_decay = s.weight_decay
    if weight_decay < 0:  # so that weights forget over the same share of the run
        weight_decay = rounded(WEIGHT_DECAY * batch * TOKENS / run_tokens)
        why = "~ sqrt(batch) / tokens (arXiv 2405.13698)"
        lines.append(f"weight_decay {weight_decay:,}: {why}")

    settled = replace(
        s,
        tokens=0,  # max_steps says it from here on, also in settings.toml
        batch_size=batch_size,
        max_steps=max_steps,
        learning_rate=learning_rate,
        muon_learning_rate=muon_learning_rate,
        weight_decay=weight_decay,
    )
    return settled, lines


def matrix_weights(model: GPT) -> int:
    """Weights in matrix products; a table that is only looked up in does not count."""
    blocks = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    return blocks + model.head_weight.numel()


def batch_by_rule(tokens: int, max_steps: int, block_size: int) -> int:
    """Sequences in a step: tokens of a step grow as tokens^0.383 of the run.

    Where max_steps are given, tokens = max_steps batch, which is solved for the batch.
    """
    power = 0.383
    if tokens:
        growth = (tokens / TOKENS) ** power
    else:
        growth = (max_steps * STEP_TOKENS / TOKENS) ** (power / (1 - power))
    return 2 ** max(0, round(math.log2(growth * STEP_TOKENS / block_size)))


def rounded(value: float) -> float:
    """To three digits, as it is printed and kept."""
    return float(f"{value:.3g}")
