"""Memory of a step on CUDA, without a GPU: python live_memory.py LIBRARY CASES.json

CASES.json: {name: {setting: value}}, beside settings also `world`, `vocab_size` and a `fault` of
faults.py; compile="true": documents are masked as in what is compiled. Fake tensors, which have shapes and no numbers, go through the real train_step and a pass
of an evaluation on the imaginary device, where a process group that sends nothing stands for other
ranks. Prints {name: {"planned": bytes, "counted": {phase: bytes}}} as JSON: the most that lived at once, in
blocks of 512 bytes, as CUDA's allocator rounds them up.
"""

import sys

import no_gpu

if __name__ == "__main__":
    no_gpu.load(sys.argv[1])

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import imaginary
import torch
import torch._subclasses.fake_tensor as fake_tensor
import torch.distributed as dist
from blocks import attention_in_graph
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import device_mesh
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path[:0] = [str(imaginary.ROOT)]

import faults

import model as model_file
import train
from lathe.data.batches import windows_per_pass
from lathe.optim.build import is_ngram_table
from lathe.optim.schedule import set_rates
from lathe.run.devices import DTYPES, Runtime
from lathe.run.memory import step_memory
from lathe.run.parallel import checkpoint_activations, parallelize
from lathe.run.passes import Passes
from lathe.run.soundness import Soundness
from lathe.settings import Settings
from lathe.use import lora, network
from lathe.use.start import choose_network
from model import GPT

CUDA = torch.device("cuda", 0)
STEPS = 3  # the third is like all others: state is there, and DDP has ordered its buckets anew


# -----------------------------------------------------------------------------
# What is alive


class Live(TorchDispatchMode):
    """Bytes of the device's storages that are alive, and the most of them in each phase."""

    supports_higher_order_operators = True

    def __init__(self):
        super().__init__()
        self.now = 0
        self.phase = ""
        self.most: dict[str, int] = {}
        self.sizes: dict[int, int] = {}  # by storage

    def most_of(self, phase: str, function: Callable) -> Callable:
        """The function, with which a phase begins."""

        def begin_and_call(*args: Any) -> Any:
            self.begin(phase)
            return function(*args)

        return begin_and_call

    def begin(self, phase: str):
        self.phase = phase
        self.most[phase] = max(self.now, self.most.get(phase, 0))

    def set_size(self, key: int, n_bytes: int):
        rounded = -(-n_bytes // 512) * 512
        self.now += rounded - self.sizes.get(key, 0)
        self.sizes[key] = rounded
        self.most[self.phase] = max(self.now, self.most.get(self.phase, 0))

    def add(self, tensor: Tensor):
        storage = tensor.untyped_storage()
        if tensor.device.type == "cuda" and storage._cdata not in self.sizes:
            self.set_size(storage._cdata, storage.nbytes())
            weakref.finalize(storage, self.drop, storage._cdata)

    def drop(self, key: int):
        self.now -= self.sizes.pop(key, 0)  # 0: of a case before

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # it then comes again, as what is done to its local parts
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


LIVE = Live()
resize_of_torch = torch.UntypedStorage.resize_


def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
    """FSDP2 lets go of whole weights by making their memory nothing."""
    resized = resize_of_torch(storage, size)
    if storage._cdata in LIVE.sizes:
        LIVE.set_size(storage._cdata, size)
    return resized


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """imaginary.py's, where a mask has all the rows that a kernel reads."""
    if attn_mask is not None:
        shape = (*query.shape[:3], key.shape[2])
        attn_mask = attn_mask.expand(shape)
    return imaginary.attention_of_a_gpu(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
    )


# -----------------------------------------------------------------------------
# A run without data


def on_device(model: GPT):
    """Give a network of shapes weights and tables on the device."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                weights = torch.empty(p.shape, device=CUDA)
                module._parameters[name] = nn.Parameter(weights, p.requires_grad)
        for name, table in module._buffers.items():
            module._buffers[name] = torch.empty(table.shape, dtype=table.dtype, device=CUDA)
    model.to = lambda _: model  # it is there


class ReducerAsBegun:
    """DDP's reducer, but that ranks do not agree on another order of buckets of the same sizes:
    they would read numbers for that."""

    def __init__(self, reducer: dist.Reducer):
        self.reducer = reducer

    def _rebuild_buckets(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reducer, name)


def keep_own(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What DDP asks in place of other ranks."""
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def real_mesh(*args: Any, **options: Any) -> DeviceMesh:
    """FSDP2's, whose numbers it reads."""
    with fake_tensor.unset_fake_temporarily():
        return init_device_mesh(*args, **options)


def build_run(s: Settings, model: GPT, world: int) -> train.Run:
    """The parts of a Run that train_step uses, with fake weights on the device."""
    runtime = Runtime(CUDA, DTYPES[s.dtype], 0, world)
    on_device(model)
    blocks = model.transformer.h
    checkpoint_activations(blocks, s.activation_checkpointing)
    net = parallelize(model.train(), blocks, s.parallel, False, runtime)
    if hasattr(net, "register_comm_hook"):
        net.register_comm_hook(None, keep_own)
        net.reducer = ReducerAsBegun(net.reducer)
        net.logger = SimpleNamespace(set_runtime_stats_and_log=lambda: None)  # which has no clock
    optimizers = train.make_optimizers(s, model)
    set_rates(optimizers, 1.0)
    x = torch.zeros(s.micro_batch_size, s.block_size, dtype=torch.long, device=CUDA)
    parameters = [p for p in model.parameters() if p.requires_grad]
    scaler = torch.amp.GradScaler("cuda", enabled=s.dtype == "float16")
    none = SimpleNamespace(alive=lambda _: None, asked=False, failed=False)
    micro_steps = s.batch_size // (s.micro_batch_size * world)
    plan = SimpleNamespace(settings=s, world_size=world, micro_steps=micro_steps)
    in_buckets = train.accumulates_in_buckets(plan)
    passes = Passes(net, parameters, scaler, runtime, in_buckets)
    batches = SimpleNamespace(count_targets=lambda _: 1, fetch=lambda *_: (x, x))
    return SimpleNamespace(
        settings=s,
        state=train.TrainState(),
        runtime=runtime,
        plan=plan,
        batches=batches,
        soundness=Soundness(batches, x.numel(), world),
        model=model,
        network=net,
        passes=passes,
        parameters=parameters,
        clipped=[
            p
            for name, p in model.named_parameters()
            if p.requires_grad and not is_ngram_table(name)
        ],
        optimizers=optimizers,
        scaler=scaler,
        watchdog=none,
        progress=SimpleNamespace(within=lambda *_: None),
        signals=none,
        clock=None,
        writer=none,
    )


def shapes_of(s: Settings, vocab_size: int) -> GPT:
    config = choose_network(replace(s, lora_rank=0), vocab_size, vocab_size - 1, None)
    shapes = network.without_weights(config)
    if s.lora_rank:
        with torch.device("meta"):
            lora.adapt(shapes, s.lora_rank, s.lora_alpha)
    return shapes


def go_through_phases(run: train.Run):
    """Train, and evaluate; the last step's phases are kept."""
    hooks = [
        run.network.register_forward_pre_hook(lambda *_: LIVE.begin("forward")),
        run.network.register_forward_hook(lambda *_: LIVE.begin("backward")),
    ]
    for _ in range(STEPS):
        LIVE.most.clear()
        train.train_step(run)
    for hook in hooks:
        hook.remove()
    LIVE.begin("evaluation")
    s = run.settings
    n_windows = windows_per_pass(s.micro_batch_size, s.block_size)
    x = torch.zeros(n_windows, s.block_size, dtype=torch.long, device=CUDA)
    run.model.eval()
    with torch.no_grad(), run.runtime.autocast():
        run.model(x, x, reduction="none")


def fits_blocks(model: GPT, _: Tensor) -> bool:
    dropout = model.config.dropout if model.training else 0.0
    return model_file.fits_blocks(model.config, dropout)


@contextmanager
def masked_as_compiled(s: Settings) -> Iterator[None]:
    """Inside, documents are masked as in what is compiled, if this is to be."""
    if s.compile != "true":
        yield
        return
    with (
        mock.patch.object(GPT, "masks_documents_in_blocks", fits_blocks),
        mock.patch.object(model_file, "flex_attention", attention_in_graph),
    ):
        yield


def run_case(changed: dict) -> dict:
    fault = changed.pop("fault", "")
    world = changed.pop("world", 1)
    vocab_size = changed.pop("vocab_size", 50257)
    s = Settings(**{"device": "cuda", "dtype": "bfloat16", **changed})
    LIVE.__init__()
    if world > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    model = shapes_of(s, vocab_size)
    planned = step_memory(s, model, world).peak
    with faults.planted(fault), masked_as_compiled(s), FakeTensorMode(), LIVE:
        run = build_run(s, model, world)
        go_through_phases(run)
        del run, model
    if world > 1:
        dist.destroy_process_group()
    return {"planned": planned, "counted": LIVE.most}


def no_kernel(*_: object) -> None:
    raise AssertionError("fake tensors need none")


def use_kernels_of_a_gpu() -> torch.library.Library:
    """Operations that are one kernel on a GPU are one, not the several that torch has for devices
    that lack it."""
    library = torch.library.Library("aten", "IMPL")
    for name in ("silu_backward", "_fused_rms_norm", "_fused_rms_norm_backward"):
        library.impl(name, no_kernel, "CUDA")
    return library


def main():
    torch.set_num_threads(1)
    imaginary.install()
    _library = use_kernels_of_a_gpu()
    F.scaled_dot_product_attention = attention
    fake_tensor.init_gpu_context = lambda *_: None
    torch.UntypedStorage.resize_ = resize
    train.total_norm = LIVE.most_of("update", train.total_norm)
    device_mesh.init_device_mesh = real_mesh
    # Ranks with fake weights cannot compare them before they begin.
    nn.parallel.DistributedDataParallel = partial(DistributedDataParallel, init_sync=False)
    cases = json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps({name: run_case(changed) for name, changed in cases.items()}))


if __name__ == "__main__":
    main()
