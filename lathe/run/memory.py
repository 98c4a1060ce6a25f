"""Bytes that a training step holds on a device, counted from shapes: nothing is run.

These are the tensors. What comes beside them is left out: an allocator's reserves, CUDA's context;
on a CPU the interpreter with its libraries, and gaps between tensors.
"""

from dataclasses import dataclass

import torch

from lathe.optim.build import build_optimizers
from lathe.optim.muon import Muon
from lathe.settings import Settings
from model import GPT, LOGIT_BYTES_ON_GPU, LOGITS_AT_ONCE, SHORT_CONTEXT, GPTConfig


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device during a training step."""

    weights: float
    gradients: float
    muon: float  # its momentum
    adamw: float  # its two moments
    activations: float  # what the backward pass of one micro-batch needs
    working: float  # the part of it that exists only while a block is gone back through
    logits: float  # pieces of them, and the head's gradient
    updates: float  # what Muon computes beside its momentum
    checkpoint: float  # weights and optimizer state, copied to the CPU while they are written
    keeps_gradients: bool  # whether they are there while a micro-batch is read

    @property
    def peak(self) -> float:
        """The most at any time: at the loss, in the last block's backward pass, or in an update."""
        at_loss = self.activations - self.working + self.logits
        in_pass = max(at_loss, self.activations)
        if self.keeps_gradients:
            in_pass += self.gradients
        in_update = self.gradients + self.updates
        return self.weights + self.muon + self.adamw + max(in_pass, in_update)


def step_memory(s: Settings, model: GPT, world_size: int) -> StepMemory:
    """What a step of micro-batches of s.micro_batch_size holds; settings as a plan resolves them.

    The model may be on the meta device.
    """
    config = model.config
    half = s.dtype != "float32"
    tokens = s.micro_batch_size * s.block_size
    shards = 1
    if s.parallel == "fsdp":
        shards = world_size
    weights = 4 * model.n_params()
    muon, adamw = trained_bytes(s.optimizer, model)

    # In the backward pass a block's gradients exist too, and what checkpointing had left out of it.
    working = tokens * number_size(half) * (2 * c_fc_width(config) + config.n_embd)
    if s.activation_checkpointing != "none":
        working += tokens * block_activations(config, s.block_size, "none", s.device, half)
    block = block_activations(config, s.block_size, s.activation_checkpointing, s.device, half)
    activations = tokens * (config.n_layer * block + 4 * config.n_embd) + working
    if half:  # 16-bit copies of the matrices
        activations += 2 * sum(p.numel() for p in model.parameters() if p.dim() == 2)

    # Momentum looked ahead, the orthogonal matrices, and what decays; or, where the iterations that
    # make them orthogonal run in float32, their results so far.
    muon_copies = 3
    if s.device == "cpu":
        muon_copies = 4
    accumulates = s.batch_size > s.micro_batch_size * world_size
    in_buckets = s.parallel == "ddp" and world_size > 1  # which DDP allocates once
    return StepMemory(
        weights=weights / shards,
        gradients=(muon + adamw) / shards,
        muon=muon / shards,
        adamw=2 * adamw / shards,
        activations=activations,
        working=working,
        logits=logit_bytes(model, tokens, s.device, half),
        updates=muon_copies * muon / shards,
        checkpoint=weights + muon + 2 * adamw,
        keeps_gradients=accumulates or in_buckets,
    )


def trained_bytes(optimizer: str, model: GPT) -> tuple[int, int]:
    """Bytes of the parameters that Muon updates, and of those that AdamW does."""
    groups = build_optimizers(
        model.named_parameters(), optimizer, 0, 0, 0, (0.9, 0.95), 0.9, model.fused_rows()
    )
    muon = adamw = 0
    for each in groups:
        n_bytes = 4 * sum(p.numel() for group in each.param_groups for p in group["params"])
        if isinstance(each, Muon):
            muon += n_bytes
        else:
            adamw += n_bytes
    return muon, adamw


def number_size(half: bool) -> int:
    """Bytes of a number in matrix products: 16-bit ones under autocast."""
    return 2 if half else 4


def c_fc_width(config: GPTConfig) -> int:
    """Columns that the first layer of an MLP computes: swiglu's gates and values are one matrix."""
    if config.activation == "swiglu":
        return 2 * config.n_hidden
    return config.n_hidden


def logit_bytes(model: GPT, tokens: int, device: str, half: bool) -> float:
    """Logits and their gradients, where the loss is computed."""
    config = model.config
    n_logits = tokens * config.padded_vocab_size
    if device == "cuda":  # whose pieces are added up at the end
        pieces = min(8 * n_logits, LOGIT_BYTES_ON_GPU)
        n_pieces = max(1, 2 * number_size(half) * n_logits / LOGIT_BYTES_ON_GPU)
        head = (4 + number_size(half) * n_pieces) * model.head_weight.numel()
        return pieces + head + tokens * config.n_embd * number_size(half)
    if n_logits <= LOGITS_AT_ONCE:
        return 3 * 4 * n_logits
    # In pieces; the forward pass makes the gradients of the head and of its input then.
    pieces = 2 * 4 * min(n_logits, 4 * LOGITS_AT_ONCE)
    head = 2 * 4 * model.head_weight.numel()
    return pieces + head + tokens * config.n_embd * number_size(half)


def block_activations(
    config: GPTConfig, block_size: int, checkpointing: str, device: str, half: bool
) -> float:
    """Bytes per token that a block keeps for its backward pass.

    checkpointing: the setting activation_checkpointing. half: matrix products take and give 16-bit
    numbers (autocast); the norms and the residual stream stay in float32.
    """
    C = config.n_embd
    size = number_size(half)
    c_fc = c_fc_width(config)
    q = config.n_head * config.head_dim
    kv = config.n_kv_head * config.head_dim
    block_input = 4 * C
    if checkpointing == "full":
        return block_input
    if checkpointing == "selective":  # and the results of matrix products and attention
        return block_input + size * (q + 2 * kv + q + c_fc + 2 * C)

    on_cpu = device == "cpu"
    # A norm keeps its input or output, the product after it its own input. These are one tensor
    # where model.py's own RMSNorm runs.
    if config.norm == "rmsnorm" and not config.norm_weight and on_cpu and not half:
        norms = 2 * C * 4
    else:
        norms = 2 * C * (4 + size)
    scales = 4 * (2 + 2 * config.n_head + config.n_kv_head)  # one for each norm

    attention = size * q  # its result
    if config.qk_norm:
        attention += size * (q + kv)  # normed queries and keys
    short = SHORT_CONTEXT[torch.bfloat16 if half else torch.float32]
    if on_cpu and block_size <= short:
        # Plain products: q, and keys and values for each of its heads; the weights, dropout's mask
        # and what that leaves of them.
        tables = 1
        if config.dropout:
            tables = 3
        attention += size * (3 * q + tables * config.n_head * block_size)
    elif on_cpu and config.dropout:  # which the fused kernel lacks there: its steps, in float32
        attention += 4 * (q + 2 * kv) + 3 * 4 * config.n_head * block_size
    else:
        attention += size * (q + 2 * kv)
        if config.position == "rope":
            attention += size * (q + kv)

    mlp = size * 2 * c_fc
    masks = 0
    if config.dropout and on_cpu:  # whose masks are numbers
        masks = 2 * C * size
    elif config.dropout:
        masks = 2 * C
    return norms + scales + attention + mlp + masks
