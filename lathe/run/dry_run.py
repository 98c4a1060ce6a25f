"""What a run would take, for `python train.py --dry_run`: compute, memory, hours, cost."""

import os
import re
from dataclasses import dataclass, replace

import torch

from lathe.data.batches import epoch_sizes
from lathe.data.dataset import Dataset, unprepared_parts
from lathe.optim.schedule import decay_by_reading
from lathe.run import bounds, devices
from lathe.run.gpus import GPUS, Gpu, known_gpu, peak_tflops
from lathe.run.memory import StepMemory, step_memory
from lathe.run.plan import Plan
from lathe.run.process import peak_memory
from lathe.settings import Settings

Line = tuple[str, str]  # a name and its figure


# -----------------------------------------------------------------------------
# What is planned for


@dataclass(frozen=True)
class Target:
    """The devices that a plan is for."""

    runtime: devices.Runtime
    name: str = ""  # of a GPU
    gpu: Gpu | None = None  # what is known of it
    is_here: bool = True

    @property
    def absent_memory(self) -> float:
        """Bytes of a device that cannot be asked for them; 0 where it can."""
        return 0.0 if self.is_here else 1e9 * self.gpu.memory_gb


def find_target(s: Settings) -> Target:
    """The GPUs that s.gpus names, such as 8xH100, or else this process's device.

    Raises ValueError for a GPU that is not known.
    """
    target = named_target(s) if s.gpus else own_target(s)
    if s.parallel == "fsdp" and target.runtime.world_size < 2:
        raise ValueError(
            "parallel is fsdp, which shards over devices: plan for several, --gpus=8xH100"
        )
    return target


def named_target(s: Settings) -> Target:
    count, name = re.fullmatch(r"(?:(\d+) *x *)?(.*)", s.gpus.strip(), re.IGNORECASE).groups("1")
    gpu = known_gpu(name)
    if gpu is None or int(count) < 1:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise ValueError(f"gpus is {s.gpus!r}: write how many and which, 8xH100; known: {known}")
    dtype = torch.bfloat16 if s.dtype == "auto" else devices.DTYPES[s.dtype]
    runtime = devices.Runtime(torch.device("cuda"), dtype, world_size=int(count))
    return Target(runtime, gpu.name, gpu, is_here=False)


def own_target(s: Settings) -> Target:
    device, _ = devices.choose_device(s.device)
    dtype, _ = devices.choose_dtype(s.dtype, device, training=True)
    runtime = devices.Runtime(device, dtype, world_size=int(os.environ.get("WORLD_SIZE", 1)))
    if device.type != "cuda":
        return Target(runtime)
    name = torch.cuda.get_device_name(device)
    return Target(runtime, name, known_gpu(name))


# -----------------------------------------------------------------------------
# What is printed


def describe(
    plan: Plan, target: Target, dataset: Dataset | None, measured: str | None = None
) -> list[Line]:
    """A line a figure.

    dataset: None if it is not prepared. measured: how long it takes on a device of whose speed
    nothing is known beforehand; None if it could not be measured.
    """
    s = plan.settings
    config = plan.config
    tokens = s.max_steps * plan.tokens_per_step
    flops = tokens * plan.flops_per_token
    blocks = sum(p.numel() for p in plan.shapes.transformer.h.parameters())
    shape = f"{blocks:,} in {config.n_layer} blocks of width {config.n_embd}"
    lines = [("parameters", f"{plan.n_params:,}; {shape}")]
    lines.append(("vocabulary", describe_vocabulary(plan, dataset)))
    for rule in plan.rules:
        lines.append(("derived", rule))
    for note in plan.notes:
        lines.append(("note", note))
    per_parameter = f"{tokens / plan.n_params:.3g} per parameter"
    lines.append(("tokens", f"{tokens:,} in {s.max_steps:,} steps; {per_parameter}"))
    if dataset is not None:
        lines.append(("epochs", describe_epochs(plan, dataset)))
    lines.append(("step", plan.describe_step()))
    lines.append(("FLOPs", f"{plan.flops_per_token:,} per token, {flops:.4g} in all"))
    lines += memory_lines(step_memory(s, plan.shapes, plan.world_size), target)
    lines.append(checkpoint_line(plan))
    if target.gpu is not None and plan.world_size > 1:
        lines.append(the_other_way(plan, target.gpu))
    if target.gpu is None:
        device = target.runtime.device.type
        if measured is None:
            measured = "not measured, since even two blocks of this network are large here"
        lines.append(("time", f"{measured}, on this {device}; --gpus=8xH100 plans for others"))
        return lines
    tflops = peak_tflops(target.gpu, target.runtime.dtype)
    b = bounds.find_bounds(
        s, plan.shapes, plan.flops_per_token, target.gpu, tflops, plan.world_size
    )
    lines += bound_lines(plan, target.gpu, b)
    lines += time_lines(s, target, b, flops)
    return lines


def describe_vocabulary(plan: Plan, dataset: Dataset | None) -> str:
    s = plan.settings
    size = f"{plan.config.vocab_size:,}"
    if dataset is None:
        missing = ", ".join(unprepared_parts(s.dataset))
        return f"{size}, assumed: dataset {missing} is not prepared"
    return f"{size}; {dataset.train.n_tokens:,} training tokens"


# Tokens that are read again teach as much as new ones up to about 4 epochs, and hardly anything
# after 16 (Muennighoff et al. 2023, arXiv 2305.16264).
USEFUL_EPOCHS = 16


def describe_epochs(plan: Plan, dataset: Dataset) -> str:
    """How often the text is read, and a word where that is too often to teach more."""
    s = plan.settings
    n_samples = s.max_steps * s.batch_size
    epochs = epoch_sizes(dataset, s.block_size, s.shift_windows).epochs(n_samples)
    times = f"{epochs:,.0f}" if epochs >= 100 else f"{epochs:.3g}"
    text = f"{times}: each of {dataset.train.n_tokens:,} training tokens is read "
    text += "once at most" if epochs <= 1 else f"{times} times"
    if epochs > USEFUL_EPOCHS:
        text += (
            f"; past about {USEFUL_EPOCHS} a network learns a text by heart more than anything "
            f"(arXiv 2305.16264): {less_by_heart(s, s.max_steps / epochs)}"
        )
    return text


def less_by_heart(s: Settings, steps_of_a_reading: float) -> str:
    """What helps, of what the run has not."""
    shorter = "fewer minutes" if s.minutes else f"--epochs={USEFUL_EPOCHS}"
    rate = s.muon_learning_rate if s.optimizer == "muon" else s.learning_rate
    decay = decay_by_reading(rate, steps_of_a_reading)
    if s.weight_decay >= decay / 2:
        return f"{shorter} or more text"
    return f"{shorter}, more text, or --weight_decay={decay:g}"


def in_minutes(plan: Plan, dataset: Dataset) -> Line:
    """What a run by minutes would come to."""
    s = plan.settings
    tokens = s.max_steps * plan.tokens_per_step
    epochs = tokens / dataset.train.n_tokens
    shape = f"{s.n_layer} layers of width {s.n_embd}, {plan.n_params:,} parameters"
    read = f"{tokens:,} tokens in {s.max_steps:,} steps, the text {epochs:.3g} times"
    return f"in {s.minutes:g} min", f"{shape}; {read}"


def memory_lines(memory: StepMemory, target: Target) -> list[Line]:
    peak = f"{amount(memory.peak)} per device in a training step"
    if target.gpu is not None:
        peak += f", of {target.gpu.memory_gb} GB"
        if not fits(memory, target.gpu):
            peak += ": it DOES NOT FIT"
    elif target.runtime.device.type == "cpu":
        process = peak_memory(torch.device("cpu"))
        peak += f", beside about {process / 1e9:.1f} GB for Python and its libraries"
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "Muon": memory.muon,
        "AdamW": memory.adamw,
        "average": memory.average,
        "activations": memory.activations,
        "logits": memory.logits,
        "update": memory.updates,
    }
    lines = [("memory", peak)]
    for name, n_bytes in parts.items():
        if n_bytes:
            lines.append((f"  {name}", amount(n_bytes)))
    return lines


def checkpoint_line(plan: Plan) -> Line:
    s = plan.settings
    saved = step_memory(s, plan.shapes, plan.world_size).checkpoint
    if s.parallel == "fsdp":
        share = amount(saved / plan.world_size)
        where = f"on disk; each process writes {share} of it, from a copy in its memory"
    else:
        where = "on disk, and in the first process's memory while it is written"
    return "  checkpoint", f"{amount(saved)} {where}"


def fits(memory: StepMemory, gpu: Gpu) -> bool:
    return memory.peak <= 0.95e9 * gpu.memory_gb


def the_other_way(plan: Plan, gpu: Gpu) -> Line:
    """What a device would hold if the weights were whole, or in shards."""
    other = "fsdp" if plan.settings.parallel == "ddp" else "ddp"
    settings = replace(plan.settings, parallel=other)
    memory = step_memory(settings, plan.shapes, plan.world_size)
    verdict = "" if fits(memory, gpu) else ": it DOES NOT FIT"
    return (f"  with {other}", f"{amount(memory.peak)} per device{verdict}")


def bound_lines(plan: Plan, gpu: Gpu, b: bounds.Bounds) -> list[Line]:
    """What a step takes at least, and what of it most."""
    n = plan.world_size
    speed = f"{bounds.PRODUCTS_REACH:.0%} of {b.tflops:g} TFLOP/s"
    reached = f"{bounds.MEMORY_REACHES:.0%} of {gpu.memory_gbps:,.0f} GB/s"
    lines = [
        ("products", f"{time_of(b.products)} a step: {b.flops / 1e12:,.1f} TFLOP at {speed}"),
        ("memory traffic", f"{time_of(b.memory)} a step: {amount(b.memory_bytes)} at {reached}"),
    ]
    if n > 1:
        parts = {"gradients": b.traffic.gradients, "weights": b.traffic.weights}
        parts["Muon's matrices"] = b.traffic.muon
        sent = ", ".join(f"{amount(size)} of {name}" for name, size in parts.items() if size)
        links = f"{gpu.link_gbps:g} GB/s within a node"
        if n > bounds.NODE:
            links += f", {bounds.NETWORK_GBPS} between nodes of {bounds.NODE} (assumed)"
        lines.append(("network", f"{time_of(b.network)} a step: {sent}; {links}"))
    lines.append(("bound by", describe_bound(plan, b)))
    return lines


def describe_bound(plan: Plan, b: bounds.Bounds) -> str:
    on_gpu = b.on_gpu
    if b.bound_by != "network":
        line = f"{b.bound_by}; a step takes {time_of(on_gpu)} or more"
        if plan.world_size > 1:
            line += ", and the network works meanwhile"
        return line
    line = f"network: {time_of(b.network)} a step, the GPUs' own work {time_of(on_gpu)}"
    if plan.settings.parallel == "ddp":
        return f"{line}; a larger batch_size sends as much for more tokens"
    if plan.micro_steps > 1:
        return f"{line}; larger micro-batches send less, --parallel=ddp sends once a step"
    return f"{line}; a larger batch_size sends as much for more tokens"


def time_of(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.2f} s"
    return f"{1e3 * seconds:,.3g} ms"


def time_lines(s: Settings, target: Target, b: bounds.Bounds, flops: float) -> list[Line]:
    """By the share of the peak that is reached as a rule, but no less than what bounds a step."""
    n = target.runtime.world_size
    usual_hours = flops / (n * b.tflops * 1e12 * s.mfu) / 3600
    hours = max(usual_hours, s.max_steps * b.least / 3600)
    speed = f"at {s.mfu:.0%} of {b.tflops:g} TFLOP/s each"
    if hours > usual_hours:
        speed = f"as its bound says; {usual_hours:,.3g} {speed}"
    lines = [("time", f"{hours:,.3g} hours on {n} x {target.name} {speed}")]
    if s.dollars_per_hour:
        gpu_hours = n * hours
        dollars = gpu_hours * s.dollars_per_hour
        price = f"{gpu_hours:,.3g} GPU hours at ${s.dollars_per_hour:g}"
        lines.append(("cost", f"${dollars:,.2f}: {price}"))
    return lines


def amount(n_bytes: float) -> str:
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:,.2f} GB"
    return f"{n_bytes / 1e6:,.0f} MB"
