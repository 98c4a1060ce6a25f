"""What bounds a step on many GPUs, before there is one: products, memory, or the network.

Bytes and operations are counted from shapes. How much of a GPU's peaks is reached, and how GPUs are
joined, is assumed, and said with each figure.
"""

import math
from collections import Counter
from dataclasses import dataclass

from lathe.optim import sharing
from lathe.optim.orthogonal import POLAR_EXPRESS
from lathe.run.gpus import Gpu
from lathe.run.memory import muon_parameters, step_memory
from lathe.settings import Settings
from model import GPT

NODE = 8  # GPUs that are joined by NVLink, or what they have for it
NETWORK_GBPS = 50  # GB/s of a GPU to other nodes: 400 Gbit/s for each
PRODUCTS_REACH = 0.65  # of the peak: large products of bfloat16 on an H100
MEMORY_REACHES = 0.87  # of the data sheet's GB/s: a copy on an H100


# -----------------------------------------------------------------------------
# Bytes between GPUs


@dataclass(frozen=True)
class Traffic:
    """Bytes that go into or come out of one GPU's collectives in a step."""

    gradients: float  # all-reduced (ddp), or gathered as sums of shards (fsdp)
    weights: float  # put together (fsdp)
    muon: float  # what it exchanges; with ddp within a node where that has ranks enough


def step_traffic(s: Settings, model: GPT, world_size: int) -> Traffic:
    """For settings as a plan resolves them, on GPUs. tests/cuda/test_wires.py counts the same."""
    if world_size == 1:
        return Traffic(0, 0, 0)
    muon = muon_exchange(s, model, world_size)
    if s.parallel == "ddp":
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return Traffic(gradients=4 * trained, weights=0, muon=muon)
    size = 2 if s.dtype == "bfloat16" else 4
    micro_steps = s.batch_size // (s.micro_batch_size * world_size)
    blocks = sum(p.numel() for p in model.transformer.h.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Blocks are put together twice, for the forward and the backward pass.
    weights = micro_steps * size * (model.n_params() + blocks)
    return Traffic(gradients=micro_steps * size * trained, weights=weights, muon=muon)


def muon_exchange(s: Settings, model: GPT, world_size: int) -> float:
    shapes = Counter(tuple(p.shape) for p in muon_parameters(s.optimizer, model))
    size = 2  # as iteration_dtype on GPUs that have bfloat16
    if s.parallel == "ddp":
        shared = world_size >= sharing.SHARED_FROM
        return size * shared * sum(n * m * k for (m, n), k in shapes.items())
    n_bytes = 0
    for (m, n), count in shapes.items():
        rounds = math.ceil(count / world_size)
        n_bytes += 2 * size * world_size * rounds * math.ceil(m / world_size) * n
    return n_bytes


def network_seconds(s: Settings, traffic: Traffic, gpu: Gpu, world_size: int) -> float:
    """An all-reduce is a scatter and a gather: its bytes go twice."""
    slowest = gpu.link_gbps if world_size <= NODE else min(gpu.link_gbps, NETWORK_GBPS)
    for_muon = gpu.link_gbps if s.parallel == "ddp" else slowest
    times = 2 if s.parallel == "ddp" else 1
    n_bytes = times * traffic.gradients + traffic.weights
    return (n_bytes / slowest + traffic.muon / for_muon) / 1e9


# -----------------------------------------------------------------------------
# Operations and bytes of one GPU


def step_flops(s: Settings, model: GPT, flops_per_token: float, world_size: int) -> float:
    """Operations in products of one GPU, Muon's and what is recomputed included."""
    flops = s.batch_size * s.block_size / world_size * flops_per_token
    if s.activation_checkpointing == "full":  # one forward pass more
        flops += s.batch_size * s.block_size / world_size * model.flops_per_token(training=False)
    in_muon = 0
    for p in muon_parameters(s.optimizer, model):
        low, high = min(p.shape), max(p.shape)
        in_muon += len(POLAR_EXPRESS) * (4 * low**2 * high + 2 * low**3)
    sharers = world_size if s.parallel == "fsdp" else min(world_size, NODE)
    if s.parallel == "ddp" and world_size < sharing.SHARED_FROM:
        sharers = 1
    return flops + in_muon / sharers


def step_memory_traffic(s: Settings, model: GPT, world_size: int) -> float:
    """Bytes that kernels beside products read and write on one GPU, compiled.

    2.75 times what the backward pass needs and twice the logits: within an eighth what Inductor's
    code for an H100 moves (tests/cuda/test_lowered.py), 69.5 GB for gpt2_124m and 72.7 for
    modern_124m in micro-batches of 60.
    """
    memory = step_memory(s, model, world_size)
    micro_steps = s.batch_size // (s.micro_batch_size * world_size)
    size = 4 if s.dtype == "float32" else 2
    logits = 2 * size * s.micro_batch_size * s.block_size * model.config.padded_vocab_size
    in_micro_step = 2.75 * memory.activations + logits
    # Weights, gradients and moments are read, and all but gradients written; Muon's matrices twice
    state = memory.weights + memory.muon + memory.adamw
    in_update = 2 * state + memory.gradients + 2 * memory.updates
    return micro_steps * in_micro_step + in_update


# -----------------------------------------------------------------------------
# The step


@dataclass(frozen=True)
class Bounds:
    """Seconds of a step that each takes at least, and what they are computed from."""

    flops: float
    tflops: float  # the GPU's peak
    products: float
    memory_bytes: float
    memory: float
    traffic: Traffic
    network: float

    @property
    def on_gpu(self) -> float:
        return self.products + self.memory

    @property
    def least(self) -> float:
        """What a step takes at least."""
        return max(self.on_gpu, self.network)

    @property
    def bound_by(self) -> str:
        """Kernels come one after the other; the network works beside them, but for the first and
        the last of what it sends."""
        if self.network > self.on_gpu:
            return "network"
        return "products" if self.products >= self.memory else "memory traffic"


def find_bounds(
    s: Settings, model: GPT, flops_per_token: float, gpu: Gpu, tflops: float, world_size: int
) -> Bounds:
    """tflops: the GPU's peak in the type of the products."""
    flops = step_flops(s, model, flops_per_token, world_size)
    memory_bytes = step_memory_traffic(s, model, world_size)
    traffic = step_traffic(s, model, world_size)
    return Bounds(
        flops=flops,
        tflops=tflops,
        products=flops / (PRODUCTS_REACH * tflops * 1e12),
        memory_bytes=memory_bytes,
        memory=memory_bytes / (MEMORY_REACHES * gpu.memory_gbps * 1e9),
        traffic=traffic,
        network=network_seconds(s, traffic, gpu, world_size),
    )
