"""A model over several devices: DDP, FSDP2, recomputed activations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from lathe.run.devices import Runtime
from lathe.run.process import random_state, set_random_state
from model import GPT


def parallelize(
    model: nn.Module, blocks: list[nn.Module], parallel: str, compiled: bool, run: Runtime
) -> nn.Module:
    """Put the model on its device, compiled if asked; returns what to call in training.

    That is the model itself or its DDP. parallel="fsdp": parameters, their gradients and so the
    optimizer's state are cut into one shard a rank (FSDP2) and put together block by block as they
    are needed. Every rank must then call the model whenever one does.
    """
    if parallel == "fsdp":
        shard(model, blocks, compiled, run)
        return model
    model.to(run.device)
    if compiled:
        model.compile()
    if run.world_size == 1:
        return model
    # Buffers are tables that every rank has computed alike: there is nothing to pass on.
    return nn.parallel.DistributedDataParallel(
        model, gradient_as_bucket_view=True, broadcast_buffers=False
    )


def shard(model: nn.Module, blocks: list[nn.Module], compiled: bool, run: Runtime):
    """Cut the model into one shard a rank, on the device."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(run.device.type, (run.world_size,))
    dtype = wire_dtype(run)
    # Inputs of a block stay what they are: tables of positions are float32.
    policy = MixedPrecisionPolicy(dtype, reduce_dtype=dtype, cast_forward_inputs=False)
    for block in blocks:
        if compiled:
            block.compile()  # each alone: the sharding's hooks stand between the blocks
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # What is outside of blocks; moves it all, block by block
    fully_shard(model, mesh=mesh, mp_policy=policy)


def wire_dtype(run: Runtime) -> torch.dtype | None:
    """In which type FSDP's ranks send each other weights and gradients; None: in the weights' own.

    On a GPU bfloat16 where products are: these round weights in any case, and give such gradients.
    A rank's shards of weights, and of gradients summed over micro-batches, stay float32.
    """
    in_bfloat16 = run.device.type == "cuda" and run.dtype == torch.bfloat16
    return torch.bfloat16 if in_bfloat16 else None


@contextmanager
def callable_by_method(model: nn.Module, method: str) -> Iterator[None]:
    """Inside, a sharded model puts itself together also for model.method(...), not only for
    model(...). Its blocks, if compiled for training, run uncompiled: what is called like this has
    other shapes each time, and would compile as often."""
    if not hasattr(model, "unshard"):
        yield
        return
    from torch.distributed.fsdp import register_fsdp_forward_method

    register_fsdp_forward_method(model, method)
    is_compiled = any(module._compiled_call_impl is not None for module in model.modules())
    uncompiled = torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
    try:
        with uncompiled:
            yield
    finally:
        vars(model).pop(method, None)


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, also where each rank has a part of them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    return norm


def use_sparse_gradients(model: GPT, runtime: Runtime, compiled: bool):
    """Of a table by n-grams the rows alone that a step uses, where nobody minds: a CPU's process by
    itself, which would spend most of a step on the others."""
    table = model.transformer["ngrams"] if "ngrams" in model.transformer else None
    if table is not None:
        table.sparse = has_sparse_gradients(runtime.device.type, runtime.world_size, compiled)


def has_sparse_gradients(device: str, world_size: int, compiled: bool) -> bool:
    return device == "cpu" and world_size == 1 and not compiled


# -----------------------------------------------------------------------------
# Recomputed activations

# Matrix products and attention: what selective checkpointing keeps, since it costs most to redo.
KEPT_OPERATIONS = (
    "mm",
    "addmm",
    "bmm",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def checkpoint_activations(blocks: list[nn.Module], mode: str):
    """Trade time for memory (arXiv 1604.06174): in training, blocks forget their activations and
    compute them again in the backward pass.

    mode: "none", "full", or "selective", which keeps the results of matrix products and attention.
    """
    if mode == "none":
        return
    options = {"use_reentrant": False}
    if mode == "selective":
        kept = [getattr(torch.ops.aten, name).default for name in KEPT_OPERATIONS]
        kept.append(torch.ops.higher_order.flex_attention)  # of documents, compiled
        options["context_fn"] = partial(create_selective_checkpoint_contexts, kept)
    for block in blocks:
        block.forward = partial(recomputed_in_training, block, block.forward, options)


def recomputed_in_training(
    block: nn.Module, forward: Callable, options: dict[str, Any], *args: Any
) -> Any:
    if block.training:
        return recomputed(forward, *args, **options)
    return forward(*args)


# -----------------------------------------------------------------------------
# Before the first step


def dry_pass(network: nn.Module, x: Tensor, y: Tensor, run: Runtime):
    """One forward and backward pass that leaves no trace: compiling is done then, and a lack of
    memory shows before the first step. x, y: (B, T)."""
    before = random_state(run.device)
    with run.autocast():
        loss = network(x, y, reduction="sum")
    loss.backward()
    network.zero_grad(set_to_none=True)
    set_random_state(before, run.device)
