"""Bytes that training holds on a device, counted from shapes: nothing is run.

These are the tensors of an uncompiled step. A compiled one on a GPU keeps less for its backward
pass, and has no mask of documents: that is counted, by tests/cuda/test_lowered.py; what it holds
beside is taken to be as much. What comes beside tensors is left out: an allocator's reserves,
CUDA's context; on a CPU the interpreter with its libraries, and gaps between tensors.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lathe.data.batches import windows_per_pass
from lathe.optim.build import build_optimizers, is_ngram_table
from lathe.optim.muon import Muon
from lathe.run.parallel import has_sparse_gradients
from lathe.settings import Settings
from model import (
    GPT,
    LOGIT_BYTES_ON_GPU,
    LOGITS_AT_ONCE,
    SHORT_CONTEXT,
    GPTConfig,
    fits_blocks,
)


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device during a training step."""

    weights: float
    gradients: float
    muon: float  # its momentum
    adamw: float  # its two moments; Adagrad's, a number a row, are nothing beside them
    activations: float  # what is kept for the backward pass of one micro-batch
    working: float  # beside them, while the last block is gone back through
    logits: float  # pieces of them, and the head's gradient
    updates: float  # what Muon computes beside its momentum, or Adagrad of a table by n-grams
    checkpoint: float  # weights and optimizer state, copied to the CPU while they are written
    kept: float  # gradients that are there while a micro-batch is read, or DDP's buckets for them
    leaving: float  # beside gradients, at the end of the backward pass: of embedding and head
    evaluation: float  # of a forward pass without gradients
    average: float  # averaged weights, there throughout
    last: float  # the last weights, kept aside while averaged ones are evaluated in their place

    @property
    def peak(self) -> float:
        """The most at any time: at the loss, in the last block's backward pass or at the end of it,
        in an update, in an evaluation."""
        at_any_time = (
            self.kept + self.activations + max(self.logits, self.working),
            max(self.kept, self.gradients) + self.leaving,
            self.gradients + self.updates,
            self.evaluation + self.last,
        )
        return self.weights + self.average + self.muon + self.adamw + max(at_any_time)


def step_memory(s: Settings, model: GPT, world_size: int) -> StepMemory:
    """What a step of micro-batches of s.micro_batch_size holds; settings as a plan resolves them.

    The model may be on the meta device.
    """
    if s.device == "cuda":
        return step_memory_on_gpu(s, model, world_size)
    config = model.config
    half = s.dtype != "float32"
    tokens = s.micro_batch_size * s.block_size
    shards = 1
    if s.parallel == "fsdp":
        shards = world_size
    weights = 4 * model.n_params()
    trained = trained_bytes(s.optimizer, model)
    muon = trained.muon
    adamw = trained.adamw
    table = trained.table
    if has_sparse_gradients(s.device, world_size, s.compile == "true"):
        table = 0
    gradients = (muon + adamw + table) / shards
    average = average_bytes(s, trained)

    # In the backward pass a block's gradients exist too, and what checkpointing had left out of it.
    working = tokens * number_size(half) * (2 * c_fc_width(config) + config.n_embd)
    if s.activation_checkpointing != "none":
        working += tokens * block_activations(config, s.block_size, "none", half)
    block = block_activations(config, s.block_size, s.activation_checkpointing, half)
    activations = tokens * (config.n_layer * block + 4 * config.n_embd)
    if half:  # 16-bit copies of the matrices; of a table by n-grams rows are looked up alone
        matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2}
        activations += 2 * sum(p.numel() for n, p in matrices.items() if not is_ngram_table(n))

    accumulates = s.batch_size > s.micro_batch_size * world_size
    in_buckets = s.parallel == "ddp" and world_size > 1  # which DDP allocates once
    return StepMemory(
        weights=weights / shards,
        gradients=gradients,
        muon=muon / shards,
        adamw=2 * adamw / shards,
        activations=activations,
        working=working,
        logits=logit_bytes(model, tokens, half),
        # Momentum looked ahead, results of the iterations, the matrices on the way there
        updates=max(3 * muon, 2 * table) / shards,
        checkpoint=weights + muon + 2 * adamw + average,
        kept=gradients * (accumulates or in_buckets),
        leaving=0,
        evaluation=0,  # not counted there
        average=average / shards,
        last=average / shards,
    )


def muon_parameters(optimizer: str, model: GPT) -> list[nn.Parameter]:
    groups = build_optimizers(
        model.named_parameters(), optimizer, 0, 0, 0, (0.9, 0.95), 0.9, model.fused_rows()
    )
    muons = [each for each in groups if isinstance(each, Muon)]
    return [p for muon in muons for group in muon.param_groups for p in group["params"]]


@dataclass(frozen=True)
class TrainedBytes:
    """Of the parameters that each optimizer updates."""

    muon: int
    adamw: int
    table: int  # by n-grams; Adagrad's


def trained_bytes(optimizer: str, model: GPT) -> TrainedBytes:
    muon = 4 * sum(p.numel() for p in muon_parameters(optimizer, model))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    table = 4 * sum(n for name, n in trained.items() if is_ngram_table(name))
    return TrainedBytes(muon, 4 * sum(trained.values()) - muon - table, table)


def average_bytes(s: Settings, trained: TrainedBytes) -> int:
    """Of averaged weights, where a run has them: of those that learn alone, as under LoRA."""
    return trained.muon + trained.adamw + trained.table if s.average_fraction else 0


def number_size(half: bool) -> int:
    """Bytes of a number in matrix products: 16-bit ones under autocast."""
    return 2 if half else 4


def c_fc_width(config: GPTConfig) -> int:
    """Columns that the first layer of an MLP computes: swiglu's gates and values are one matrix."""
    if config.activation == "swiglu":
        return 2 * config.n_hidden
    return config.n_hidden


def logit_bytes(model: GPT, tokens: int, half: bool) -> float:
    """Logits and their gradients, where the loss is computed."""
    config = model.config
    n_logits = tokens * config.padded_vocab_size
    if n_logits <= LOGITS_AT_ONCE:
        return 3 * 4 * n_logits
    # In pieces; the forward pass makes the gradients of the head and of its input then.
    pieces = 2 * 4 * min(n_logits, 4 * LOGITS_AT_ONCE)
    head = 2 * 4 * model.head_weight.numel()
    return pieces + head + tokens * config.n_embd * number_size(half)


def block_activations(config: GPTConfig, block_size: int, checkpointing: str, half: bool) -> float:
    """Bytes per token that a block keeps for its backward pass on a CPU.

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

    # A norm keeps its input or output, the product after it its own input. These are one tensor
    # where model.py's own RMSNorm runs.
    if config.norm == "rmsnorm" and not config.norm_weight and not half:
        norms = 2 * C * 4
    else:
        norms = 2 * C * (4 + size)
    scales = 4 * (2 + 2 * config.n_head + config.n_kv_head)  # one for each norm

    attention = size * q  # its result
    if config.qk_norm:
        attention += size * (q + kv)  # normed queries and keys
    if block_size <= SHORT_CONTEXT[torch.bfloat16 if half else torch.float32]:
        # Plain products: q, and keys and values for each of its heads; the weights, dropout's mask
        # and what that leaves of them.
        tables = 1
        if config.dropout:
            tables = 3
        attention += size * (3 * q + tables * config.n_head * block_size)
    elif config.dropout:  # which the fused kernel lacks: its steps, in float32
        attention += 4 * (q + 2 * kv) + 3 * 4 * config.n_head * block_size
    else:
        attention += size * (q + 2 * kv)
        if config.position == "rope":
            attention += size * (q + kv)

    mlp = size * 2 * c_fc
    masks = 0
    if config.dropout:  # whose masks are numbers
        masks = 2 * C * size
    return norms + scales + attention + mlp + masks


# -----------------------------------------------------------------------------
# On a GPU. tests/cuda/test_memory.py counts what the same code holds there.


@dataclass(frozen=True)
class OnGpu:
    """What decides how large things are."""

    s: Settings
    model: GPT
    product: int  # bytes of a number in matrix products, and in attention
    stream: int  # in the residual stream
    wire: int  # of weights and gradients in a pass: what FSDP's ranks send each other
    casts: float  # bytes of 16-bit copies of the blocks' matrices
    sharded: bool
    accumulates: bool  # several micro-batches make a step

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    @property
    def tokens(self) -> int:
        return self.s.micro_batch_size * self.s.block_size

    @property
    def masked(self) -> bool:
        return self.config.document_token >= 0

    def mask_bytes(self, tokens: int, dropout: float) -> float:
        """Of the mask of documents, one for all blocks; compiled there is none."""
        compiled = self.s.compile == "true" and fits_blocks(self.config, dropout)
        if not self.masked or compiled:
            return 0.0
        return tokens * self.product * self.s.block_size

    @property
    def head(self) -> int:
        """Numbers of the head that learn."""
        weight = self.model.head_weight
        return weight.numel() * weight.requires_grad

    @property
    def head_copy(self) -> float:
        """Bytes of the head in the products' type, where that is another."""
        return self.product * self.model.head_weight.numel() * (self.product != self.wire)


def on_gpu(s: Settings, model: GPT, world_size: int) -> OnGpu:
    sharded = s.parallel == "fsdp" and world_size > 1
    product = 4 if s.dtype == "float32" else 2
    wire = 2 if sharded and s.dtype == "bfloat16" else 4
    matrices = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    return OnGpu(
        s=s,
        model=model,
        product=product,
        stream=2 if s.dtype == "bfloat16" else 4,
        wire=wire,
        casts=product * matrices * (product != wire),
        sharded=sharded,
        accumulates=s.batch_size > s.micro_batch_size * world_size,
    )


def step_memory_on_gpu(s: Settings, model: GPT, world_size: int) -> StepMemory:
    gpu = on_gpu(s, model, world_size)
    shards = world_size if gpu.sharded else 1
    weights = 4 * model.n_params()
    trained = trained_bytes(s.optimizer, model)
    muon = trained.muon
    adamw = trained.adamw
    gradients = (muon + adamw + trained.table) / shards
    average = average_bytes(s, trained)
    in_buckets = s.parallel == "ddp" and world_size > 1  # which DDP allocates once
    gathered = gathered_bytes(gpu)
    return StepMemory(
        weights=weights / shards,
        gradients=gradients,
        muon=muon / shards,
        adamw=2 * adamw / shards,
        activations=kept_for_backward(gpu),
        working=going_back(gpu),
        logits=at_the_loss(gpu),
        # Results in the iterations' type, updates, and what decays
        updates=max(2.5 * muon, 2 * trained.table) / shards,
        checkpoint=weights + muon + 2 * adamw + average,
        kept=gathered + gradients * (gpu.accumulates or in_buckets),
        leaving=at_the_end(gpu) + gathered,
        evaluation=in_an_evaluation(gpu) + gathered + gradients * in_buckets,
        average=average / shards,
        last=average / shards,
    )


def gathered_bytes(gpu: OnGpu) -> float:
    """Weights that FSDP2 has put together at a time: those outside of blocks, three blocks."""
    if not gpu.sharded:
        return 0.0
    blocks = sum(p.numel() for p in gpu.model.transformer.h.parameters())
    rest = gpu.model.n_params() - blocks
    return gpu.wire * (rest + 3 * blocks / gpu.config.n_layer)


def kept_for_backward(gpu: OnGpu) -> float:
    """Blocks, the last norm's input and output, the ids."""
    c = gpu.config
    recomputed = gpu.s.activation_checkpointing
    block = block_activations_on_gpu(gpu, recomputed)
    root = 2 * gpu.stream * c.n_embd + 4 * 8
    kept = gpu.tokens * (c.n_layer * block + root)
    if gpu.masked:  # and rows of the table of positions
        kept += gpu.mask_bytes(gpu.tokens, c.dropout)
        kept += gpu.tokens * (2 * 8 + 8 * c.head_dim * (c.position == "rope"))
    if recomputed == "none":
        kept += gpu.casts
    return kept


def logit_pieces(gpu: OnGpu, tokens: int) -> tuple[int, float]:
    """How many pieces the loss of so many tokens is computed in, and the logits of each."""
    n_logits = tokens * gpu.config.padded_vocab_size
    pieces = max(1, math.ceil(8 * n_logits / LOGIT_BYTES_ON_GPU))  # of logits and their gradient
    return pieces, n_logits / pieces


def at_the_loss(gpu: OnGpu) -> float:
    """Logits and their gradient, and the gradients of the features and of the head."""
    pieces, n_logits = logit_pieces(gpu, gpu.tokens)
    in_loss = 2 * 4 * n_logits  # scores, and logarithms of probabilities
    if gpu.config.logit_softcap:
        in_loss += 2 * 4 * n_logits
    # The gradient in the products' type; the head's so far, and what a piece adds
    after = gpu.product * n_logits + (4 + gpu.product) * gpu.head
    if pieces > 1:
        in_loss += after
    n_bytes = max(in_loss, after) + gpu.head_copy + gpu.tokens * gpu.stream * gpu.config.n_embd
    if gpu.s.activation_checkpointing != "none":  # autocast's copies end with the forward pass
        n_bytes += gpu.casts
    return n_bytes


def going_back(gpu: OnGpu) -> float:
    """Gradients of the last MLP, of the stream and the head; what recomputing brings back."""
    c = gpu.config
    recomputed = gpu.s.activation_checkpointing
    n_bytes = gpu.tokens * (gpu.product * c_fc_width(c) + 2 * gpu.stream * c.n_embd)
    n_bytes += gpu.wire * gpu.head
    if c.tie_weights and gpu.accumulates:  # waits for the gradient of the embedding
        n_bytes += gpu.wire * gpu.head
    if recomputed != "none":
        whole = block_activations_on_gpu(gpu, "none")
        n_bytes += gpu.tokens * (whole - block_activations_on_gpu(gpu, recomputed))
        n_bytes += gpu.casts / c.n_layer
    return n_bytes


def at_the_end(gpu: OnGpu) -> float:
    """Beside all gradients the embedding's, before it is added to them."""
    c = gpu.config
    table = gpu.model.transformer.wte.weight
    learned = table.numel() * table.requires_grad
    n_bytes = gpu.wire * learned + gpu.tokens * (4 + gpu.stream) * c.n_embd
    if c.tie_weights and gpu.accumulates:
        n_bytes += gpu.wire * gpu.head
    if gpu.sharded:  # whole ones, and as they are sent
        n_bytes += 2 * gpu.wire * (learned + gpu.head)
    return n_bytes


def in_an_evaluation(gpu: OnGpu) -> float:
    c = gpu.config
    tokens = windows_per_pass(gpu.s.micro_batch_size, gpu.s.block_size) * gpu.s.block_size
    _, n_logits = logit_pieces(gpu, tokens)
    in_block = gpu.product * tokens * 2 * c_fc_width(c) + gpu.mask_bytes(tokens, dropout=0.0)
    in_loss = 2 * 4 * n_logits + gpu.head_copy
    if c.logit_softcap:
        in_loss += 4 * n_logits
    return max(in_block, in_loss) + 3 * tokens * gpu.stream * c.n_embd + gpu.casts


def block_activations_on_gpu(gpu: OnGpu, recomputed: str) -> float:
    """Bytes per token that a block keeps for its backward pass.

    recomputed: the setting activation_checkpointing.
    """
    c = gpu.config
    C = c.n_embd
    c_fc = c_fc_width(c)
    q = c.n_head * c.head_dim
    kv = c.n_kv_head * c.head_dim
    block_input = gpu.stream * C
    if recomputed == "full":
        return block_input
    if recomputed == "selective":  # and the results of matrix products and attention
        return block_input + gpu.product * (q + 2 * kv + q + c_fc + 2 * C)

    # A norm keeps its input, the product after it its own.
    norms = 2 * C * (gpu.stream + gpu.product)
    scales = 4 * (2 + 2 * c.n_head + c.n_kv_head)  # of norms, and of softmax

    attention = gpu.product * (q + 2 * kv + q)  # what it reads of, its result
    if c.position == "rope" or c.qk_norm:
        attention += gpu.product * (q + kv)  # turned and normed
    if c.qk_norm and c.norm_weight:
        attention += gpu.product * (q + kv)  # before the gains
    if c.position == "rope" and gpu.masked and gpu.product == 2:
        attention += 2 * 2 * c.head_dim  # cosines and sines of each token's position

    mlp = gpu.product * 2 * c_fc
    if gpu.s.compile == "true":  # what the products give and read, and nothing between
        mlp = gpu.product * (c_fc + c.n_hidden)
    elif c.activation == "relu2" and gpu.product == 2:
        mlp += 4 * c_fc  # autocast squares in float32
    masks = 2 * C if c.dropout else 0
    low = 4 * gpu.s.lora_rank * gpu.product  # of four matrices
    return norms + scales + attention + mlp + masks + low
