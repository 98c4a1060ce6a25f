"""What a run takes, known before it is trained: compute, memory, hours, cost (`python train.py --dry_run`); how much of
a step goes through the network at a time; and the settings that follow from its size and the number of tokens."""

import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lathe.data.batches import even_split
from lathe.data.dataset import open_dataset
from lathe.optim.build import build_optimizers
from lathe.optim.muon import Muon
from lathe.run import checkpoint, devices, ranks
from lathe.run.gpus import GPUS, known_gpu
from lathe.run.process import peak_memory
from lathe.use.hf import find as hf_find
from lathe.use.validation import TOKENS_PER_PASS
from model import GPT, LOGITS_AT_ONCE, SHORT_CONTEXT

# The run that the rules below pass through, config/modern_124m.toml's: tokens in all, tokens a step, width, and rates.
TOKENS, STEP_TOKENS, WIDTH, ADAMW_RATE, MUON_RATE, DECAY = 2.5e9, 2**19, 768, 0.004, 0.02, 0.1


def derive(s, model: GPT) -> list[str]:
    """Fill in the settings that are left to published rules (0; weight_decay: -1); returns a line about each."""
    said = []

    def put(name: str, value: float, rule: str):
        setattr(s, name, float(f"{value:.3g}") if isinstance(value, float) else value)
        said.append(f"{name} {getattr(s, name):,}: {rule}")

    if not s.tokens and not s.max_steps:  # Chinchilla's rule; a table that is only looked up in does not count
        weights = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2) + model.head_weight.numel()
        put("tokens", 20 * weights, f"20 for each of {weights:,} weights in matrix products (arXiv 2203.15556)")
    if not s.batch_size:  # where max_steps are given, tokens = max_steps batch: solved for the batch
        power = 0.383
        share = (s.tokens or s.max_steps * STEP_TOKENS) / TOKENS
        share **= power if s.tokens else power / (1 - power)
        sequences = 2 ** max(0, round(math.log2(share * STEP_TOKENS / s.block_size)))
        put("batch_size", sequences, "~ tokens^0.383 (arXiv 2505.13738), the nearest power of two")
    step_tokens = s.batch_size * s.block_size
    if s.tokens:
        put("max_steps", math.ceil(s.tokens / step_tokens), f"{s.tokens:,} tokens, {step_tokens:,} a step")
        s.tokens = 0  # max_steps says it from here on, also in settings.toml
    tokens, batch = s.max_steps * step_tokens, math.sqrt(step_tokens / STEP_TOKENS)
    if not s.learning_rate and s.optimizer == "adamw":
        flops = tokens * model.flops_per_token(s.block_size)
        put("learning_rate", 0.3118 * flops**-0.125, "0.3118 FLOPs^-0.125 (DeepSeek LLM, arXiv 2401.02954)")
    if not s.learning_rate:
        rate = ADAMW_RATE * batch * math.sqrt(WIDTH / s.n_embd)
        put("learning_rate", rate, "~ sqrt(batch) (arXiv 2205.10287) / sqrt(width) (nanochat's sweeps)")
    if not s.muon_learning_rate:
        put("muon_learning_rate", MUON_RATE * batch, "~ sqrt(batch), for any width (arXiv 2409.20325)")
    if s.weight_decay < 0:  # so that weights forget over the same share of the run
        put("weight_decay", DECAY * batch * TOKENS / tokens, "~ sqrt(batch) / tokens (arXiv 2405.13698)")
    return said


def kept_by_block(s, c, device: str, half: bool) -> float:
    """Bytes per token that a block keeps for its backward pass (s: activation_checkpointing, block_size; c: GPTConfig).

    half: matrix products take and give 16-bit numbers (autocast); the norms and the residual stream stay in float32.
    """
    size = 2 if half else 4
    q, kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    c_fc = c.n_hidden * (2 if c.activation == "swiglu" else 1)
    if s.activation_checkpointing == "full":  # its input
        return 4 * c.n_embd
    if s.activation_checkpointing == "selective":  # and the results of matrix products and attention
        return 4 * c.n_embd + size * (q + 2 * kv + q + c_fc + 2 * c.n_embd)
    # A norm keeps its input or output, the product behind it its own input: one tensor where model.py's RMSNorm runs.
    shared = c.norm == "rmsnorm" and not c.norm_weight and device == "cpu" and not half
    norms = 2 * c.n_embd * (4 if shared else 4 + size)
    attention = size * ((q + kv) * c.qk_norm + q)  # normed queries and keys; the result
    if device == "cpu" and s.block_size <= SHORT_CONTEXT[torch.bfloat16 if half else torch.float32]:
        # Plain products: q, and keys and values for each of its heads; the weights, dropout's mask and what is left.
        attention += size * (3 * q + (3 if c.dropout else 1) * c.n_head * s.block_size)
    elif device == "cpu" and c.dropout:  # which the fused kernel does not have there: its steps, in float32
        attention += 4 * (q + 2 * kv) + 3 * 4 * c.n_head * s.block_size
    else:
        attention += size * (q + 2 * kv + (q + kv) * (c.position == "rope"))
    mlp = size * 2 * c_fc
    masks = 2 * c.n_embd * (size if device == "cpu" else 1) if c.dropout else 0
    return norms + attention + mlp + masks + 4 * (2 + 2 * c.n_head + c.n_kv_head)  # the last: a scale for each norm


@dataclass
class Memory:
    """Bytes on one device during a training step, or, on a CPU, of one process."""

    weights: float
    gradients: float
    muon: float  # its momentum
    adamw: float  # its two moments
    activations: float  # of one micro-batch: what the backward pass needs
    logits: float  # pieces of them, and the head's gradient
    updates: float  # what Muon computes beside its momentum
    copy: float  # of weights and optimizer state, in the CPU's memory, while a checkpoint is written
    process: float = 0.0  # CPU: the interpreter with its libraries
    evaluation: float = 0.0  # CPU: what an evaluation holds
    saved_midway: bool = False  # whether the copy is ever made: the last save needs none
    carried: bool = False  # whether gradients stay from one micro-batch to the next

    @property
    def peak(self) -> float:
        """The most at any time: at a loss, in Muon's step or, on a CPU, in an evaluation."""
        holes = HOLES if self.process else 1
        at_loss = holes * self.activations + self.logits + self.gradients * self.carried
        most = max(at_loss, holes * (self.gradients + self.updates), holes * self.evaluation)
        still = COPY_LEFT * self.copy if self.process and self.saved_midway else 0
        return self.process + self.weights + self.muon + self.adamw + most + still


# Of a CPU's process, measured: its heap against what is in use, since glibc keeps gaps between tensors; and
# the share of a checkpoint's copy that is not on the disk yet at the next peak.
HOLES, COPY_LEFT = 1.4, 0.55
LOADED_LATER = 60e6  # libraries that a run loads after its start, the page's for one


def memory(s, model: GPT, device: str, half: bool, world_size: int, val_tokens: int = TOKENS_PER_PASS) -> Memory:
    """What a step of micro-batches of s.micro_batch_size holds. The model may be on the meta device.

    val_tokens: how many an evaluation reads.
    """
    c, shards = model.config, world_size if s.parallel == "fsdp" else 1
    state = {True: 0, False: 0}  # is it Muon's: bytes of its parameters
    for o in build_optimizers(model.named_parameters(), s.optimizer, 0, 0, 0, (0.9, 0.95), 0.9, model.fused_rows()):
        state[isinstance(o, Muon)] += 4 * sum(p.numel() for group in o.param_groups for p in group["params"])
    size, weights, tokens = 2 if half else 4, 4 * model.n_params(), s.micro_batch_size * s.block_size
    c_fc = c.n_hidden * (2 if c.activation == "swiglu" else 1)
    # In the backward pass one block's gradients exist too, and what checkpointing had left out of it.
    again = kept_by_block(replace(s, activation_checkpointing="none"), c, device, half)
    working = size * (2 * c_fc + c.n_embd) + again * (s.activation_checkpointing != "none")
    activations = tokens * (c.n_layer * kept_by_block(s, c, device, half) + 4 * c.n_embd + working)
    if half:  # 16-bit copies of the matrices
        activations += 2 * sum(p.numel() for p in model.parameters() if p.dim() == 2)
    logits = 3 * 4 * tokens * c.padded_vocab_size
    if tokens * c.padded_vocab_size > LOGITS_AT_ONCE:  # in pieces; the forward pass makes the head's gradient then
        logits = 2 * 4 * min(tokens * c.padded_vocab_size, 4 * LOGITS_AT_ONCE)
        logits += 2 * 4 * model.head_weight.numel() + tokens * c.n_embd * size
    found = Memory(
        weights / shards, sum(state.values()) / shards, state[True] / shards, 2 * state[False] / shards,
        activations, logits, 3 * state[True] / shards, weights + state[True] + 2 * state[False],
        saved_midway=min(s.eval_interval, s.checkpoint_interval or s.eval_interval) < s.max_steps,
        carried=s.batch_size > s.micro_batch_size,
    )  # fmt: skip
    if device == "cpu":
        wide, vocabulary = c_fc + 2 * c.n_hidden + 3 * c.n_embd, 2 * c.padded_vocab_size
        at_once = min(val_tokens, TOKENS_PER_PASS)
        found.evaluation = 4 * max(at_once * wide, min(at_once * vocabulary, 2 * LOGITS_AT_ONCE))
    return found


def auto_micro_batch(s, model: GPT, run: devices.Runtime, room: float = 0) -> int:
    """The most sequences that a forward and backward pass should hold: within memory, and no more than helps speed.

    room: bytes of the device; 0 = those free now. The answer divides each rank's share of s.batch_size, and is the same
    on all ranks.
    """
    device, half = run.device.type, run.dtype != torch.float32
    one, two = (memory(replace(s, micro_batch_size=n), model, device, half, run.world_size) for n in (1, 2))
    if device == "cuda":
        room = 0.8 * (room or torch.cuda.mem_get_info(run.device)[0]) - (one.peak - one.activations + one.gradients)
    else:
        room = 1.3e9  # more is no faster there
    most = max(1, min(int(room / (two.activations - one.activations)), 65536 // s.block_size))
    share = max(1, s.batch_size // run.world_size)
    fitting = min(ranks.gather(max(m for m in range(1, share + 1) if share % m == 0 and m <= most)))
    why = "all of a step" if fitting == share else "the most that memory and speed suggest"
    run.reasons.append(f"micro_batch_size {fitting} ({why})")
    return fitting


@dataclass
class Unprepared:
    """Stands in for a dataset that is not there yet."""

    path: str

    @property
    def vocab_size(self) -> int:
        """GPT-2's, or that of prepare/python_stdlib.py or prepare/shakespeare_char.py."""
        return {"python_stdlib": 1024, "shakespeare_char": 66}.get(Path(self.path).name, 50257)


def dry_run(s, build_model: Callable) -> int:
    """Print what the run would take, a line a figure; nothing is trained or written. build_model: train.py's.

    Raises ValueError or OSError where the run itself would, as far as that shows before it starts.
    """
    run, gpu = planned(s)
    process = peak_memory(torch.device("cpu")) + LOADED_LATER if run.device.type == "cpu" else 0
    dataset, start = Unprepared(s.dataset), None
    if s.init_from in ("resume", "auto"):
        start = checkpoint.newest_checkpoint(s.out_dir)[0]
    elif s.init_from != "scratch":
        of_hf = s.init_from.startswith("hf:")
        start = hf_find.find(s.init_from) if of_hf else checkpoint.find_checkpoint(s.init_from)
    try:
        dataset = open_dataset(s.dataset)
    except FileNotFoundError:
        if start is not None:  # whose vocabulary it must share
            raise
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights that are loaded do not reach a network without memory
        model = build_model(s, dataset, start)
    rules = derive(s, model)
    s.micro_batch_size = s.micro_batch_size or auto_micro_batch(s, model, run, gpu[3] * 1e9 if gpu else 0)
    micro_steps = even_split(s.batch_size, s.micro_batch_size, run.world_size)

    c, tokens = model.config, s.max_steps * s.batch_size * s.block_size
    per_token = model.flops_per_token(s.block_size, training=False) * (2 if s.lora_rank else 3)
    blocks = sum(p.numel() for p in model.transformer.h.parameters())
    vocabulary = f"{dataset.vocab_size:,}, assumed: dataset {s.dataset} is not prepared"
    val_tokens = s.eval_tokens or TOKENS_PER_PASS
    if not isinstance(dataset, Unprepared):
        val_tokens = min(val_tokens, dataset.val.n_tokens)
        epochs = tokens / dataset.train.n_tokens
        vocabulary = f"{dataset.vocab_size:,}; {dataset.train.n_tokens:,} training tokens, read {epochs:.3g} times"
    devices = f"{run.world_size} device{'s' if run.world_size > 1 else ''}"
    held = memory(s, model, run.device.type, run.dtype != torch.float32, run.world_size, val_tokens)
    held.process = process
    lines = [
        ("parameters", f"{model.n_params():,}; {blocks:,} in {c.n_layer} blocks of width {c.n_embd}"),
        ("vocabulary", vocabulary),
        *(("derived", rule) for rule in rules),
        ("tokens", f"{tokens:,} in {s.max_steps:,} steps; {tokens / model.n_params():.3g} per parameter"),
        ("step", f"{s.batch_size} sequences of {s.block_size} = {s.micro_batch_size} at a time x {micro_steps} "
                 f"accumulated x {devices}"),
        ("FLOPs", f"{per_token:,} per token, {tokens * per_token:.4g} in all"),
        *memory_lines(held, gpu),
        *time_lines(s, run, gpu, tokens * per_token),
    ]  # fmt: skip
    if int(os.environ.get("RANK", 0)) == 0:
        print("\n".join(f"{name:<16}{figure}" for name, figure in lines))
    return 0


def planned(s) -> tuple[devices.Runtime, tuple | None]:
    """The devices that a plan is for: those of s.gpus, such as 8xH100, or else this process's; and of the GPU, if
    it is known, its name, TFLOP/s in 16 and in 32 bits, and GB."""
    if not s.gpus:
        device, _ = devices.choose_device(s.device)
        dtype, _ = devices.choose_dtype(s.dtype, device, training=True)
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    else:
        count, name = re.fullmatch(r"(?:(\d+) *x *)?(.*)", s.gpus.strip(), re.IGNORECASE).groups("1")
        name = next((gpu.name for gpu in GPUS if gpu.name.lower() == name.lower()), None)
        if name is None or int(count) < 1:
            names = ", ".join(gpu.name for gpu in GPUS)
            raise ValueError(f"gpus is {s.gpus!r}: write how many and which, 8xH100; known: {names}")
        device, world_size = torch.device("cuda"), int(count)
        dtype = torch.bfloat16 if s.dtype == "auto" else devices.DTYPES[s.dtype]
    if s.parallel == "fsdp" and world_size < 2:
        raise ValueError("parallel is fsdp, which shards over devices: plan for several, --gpus=8xH100")
    gpu = known_gpu(name)
    figures = (name, gpu.half_tflops, gpu.single_tflops, gpu.memory_gb) if gpu else None
    return devices.Runtime(device, dtype, world_size=world_size), figures


def amount(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


def memory_lines(m: Memory, gpu: tuple | None) -> list[tuple[str, str]]:
    parts = {
        "weights": m.weights, "gradients": m.gradients, "Muon": m.muon, "AdamW": m.adamw,
        "activations": m.activations, "logits": m.logits, "Muon's step": m.updates,
    }  # fmt: skip
    fits = ""
    if gpu:
        fits = f" of {gpu[3]} GB" + (": it DOES NOT FIT" if m.peak > 0.95e9 * gpu[3] else "")
    process = f", {amount(m.process)} of it Python and libraries" if m.process else ""
    return [
        ("memory", f"{amount(m.peak)} per device at the most{fits}{process}"),
        *((f"  {name}", amount(value)) for name, value in parts.items() if value),
        ("  checkpoint", f"{amount(m.copy)} on disk, and in the first process's memory while it is written"),
    ]


def time_lines(s, run: devices.Runtime, gpu: tuple | None, flops: float) -> list[tuple[str, str]]:
    if gpu is None:
        return [("time", f"unknown on this {run.device.type}; --gpus=8xH100 plans for others")]
    name, half, single, _ = gpu
    peak = single if run.dtype == torch.float32 else half
    hours = flops / (run.world_size * peak * 1e12 * s.mfu) / 3600
    lines = [("time", f"{hours:,.3g} hours on {run.world_size} x {name} at {s.mfu:.0%} of {peak:g} TFLOP/s each")]
    if s.dollars_per_hour:
        cost = hours * run.world_size * s.dollars_per_hour
        lines.append(("cost", f"${cost:,.2f}: {hours * run.world_size:,.3g} GPU hours at ${s.dollars_per_hour:g}"))
    return lines
