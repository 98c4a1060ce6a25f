"""This process: its device, dtype and compiler, its random state, the other ranks, and how it is told to stop."""

import faulthandler
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.checkpoint import create_selective_checkpoint_contexts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Dense peak of tensor cores without sparsity, in TFLOP/s (16-bit, float32 as torch runs it by default), and memory in
# GB. Sources: the makers' data sheets. A device that is not listed gets no MFU rather than a wrong one.
GPUS = {
    "GH200": (989.5, 67.0, 96), "H200": (989.5, 67.0, 141), "H100 PCIe": (756.0, 51.0, 80),
    "H100 NVL": (835.5, 60.0, 94), "H100": (989.5, 67.0, 80), "B200": (2250.0, 75.0, 180), "A100": (312.0, 19.5, 80),
    "A10G": (70.0, 31.2, 24), "A40": (149.7, 37.4, 48), "L40S": (362.05, 91.6, 48), "L4": (121.0, 30.3, 24),
    "V100": (125.0, 15.7, 16), "T4": (65.0, 8.1, 16), "RTX 3090": (71.0, 35.6, 24), "RTX 4090": (165.2, 82.6, 24),
    "RTX 5090": (209.5, 104.8, 32),
}  # fmt: skip


@dataclass
class Runtime:
    """What was chosen for this process. `reasons` says, in words, why."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world_size: int = 1
    reasons: list[str] = field(default_factory=list)
    lag: int = 0  # steps that are under way while the results of an earlier one are read; a GPU must not wait for that

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def autocast(self):
        """Forward passes run inside this: matrix products in `dtype`, sensitive operations in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def describe(self) -> str:
        """One line: what runs where, and why."""
        return ", ".join(self.reasons) + (f", {self.world_size} processes" if self.world_size > 1 else "")

    def decide_compile(self, name: str, planned_flops: float) -> bool:
        """choose_compile for this device and so much work on all ranks, with the answer added to the reasons."""
        peak = peak_flops(self.device, self.dtype)
        answer, reason = choose_compile(
            name, self.device, planned_flops / (0.3 * peak * self.world_size) if peak else 0
        )
        self.reasons.append(reason)
        return answer


def choose_device(name: str, local_rank: int = 0) -> tuple[torch.device, str]:
    """("auto", "cpu", "cuda", "cuda:N" or "mps") -> device and the reason. Raises ValueError if it is not there."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    asked, name = name, name if name != "auto" else "cuda" if cuda else "mps" if mps else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device is {name!r}: choose auto, cpu, cuda, cuda:N or mps")
    device = torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)
    if device.type == "cuda" and not cuda:
        raise ValueError(f"device is {name!r}, but torch sees no CUDA device: use --device=auto or --device=cpu")
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ValueError(f"device is {str(device)!r}, but there are {torch.cuda.device_count()} CUDA devices")
    if name == "mps" and not mps:
        raise ValueError("device is 'mps', but torch finds no Apple GPU here: use --device=auto or --device=cpu")
    reason = "as asked"
    if asked == "auto":  # named last: a rank without a device of its own has been refused above
        reason = f"no GPU found; {torch.get_num_threads()} threads"
        if name != "cpu":
            reason = torch.cuda.get_device_name(device) if cuda else "Apple GPU"
    return device, f"device {device} ({reason})"


def choose_dtype(name: str, device: torch.device, training: bool = False) -> tuple[torch.dtype, str]:
    """("auto", "float32", "bfloat16" or "float16") -> dtype and the reason. Raises ValueError where it cannot run."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if name == "auto":
        if device.type == "cpu" and training and cpu_has_bfloat16():
            return torch.bfloat16, "bfloat16 (this processor multiplies it twice as fast as float32)"
        if capability is None:
            return torch.float32, f"float32 ({device.type} has nothing faster)" if training else "float32"
        if capability >= (8, 0):
            return torch.bfloat16, "bfloat16 (tensor cores)"
        if capability >= (7, 0):
            return torch.float16, "float16 with loss scaling (this GPU has no bfloat16)"
        return torch.float32, "float32 (this GPU has no 16-bit tensor cores)"
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}: choose auto, {', '.join(DTYPES)}")
    if name == "bfloat16" and capability is not None and capability < (8, 0):
        raise ValueError(
            f"dtype is bfloat16, but {torch.cuda.get_device_name(device)} does not have it (compute capability "
            f"{capability[0]}.{capability[1]}, 8.0 needed): use --dtype=float16 or --dtype=float32"
        )
    if name == "float16" and device.type == "cpu":
        raise ValueError("dtype is float16, which needs a GPU: on a CPU use --dtype=float32 or --dtype=bfloat16")
    return DTYPES[name], f"{name} (as asked)"


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16 (AVX512-BF16 or AMX); elsewhere they are slow."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_compile(name: str, device: torch.device, planned_seconds: float = 0.0) -> tuple[bool, str]:
    """("auto", "true" or "false") -> whether to torch.compile, and the reason.

    planned_seconds: a guess of how long the whole job runs uncompiled; compiling costs up to a minute. Without a
    working compiler the answer is no, with the reason, even if "true" was asked for.
    """
    if name == "false":
        return False, "not compiled (as asked)"
    if name == "auto":
        if device.type != "cuda":
            return False, f"not compiled (rarely pays back on {device.type}; --compile=true to try)"
        if 0 < planned_seconds < 120:
            return False, "not compiled (the run is shorter than compiling would take)"
    missing = compiler_fault(device)
    if missing:
        return False, f"not compiled ({missing})"
    return True, "compiled" + (" (as asked)" if name == "true" else "")


def compiler_fault(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, found by compiling one addition; None if it can."""
    if device.type == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++", "cl")))):
        return "no C++ compiler found: install g++ or clang"
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the tool chain throws, training goes on without it
        return f"torch.compile does not work here: {str(error).strip().splitlines()[0][:100]}"
    return None


def start(device: str, dtype: str, timeout_seconds: float = 600.0, training: bool = False) -> Runtime:
    """Find the device and the dtype, and under torchrun join the other ranks (NCCL on CUDA, gloo elsewhere).

    On a CPU only training goes below float32 unasked: other figures should not depend on the processor. Raises
    ValueError for what this machine does not have, OSError if the other ranks are not there in time.
    """
    # Before CUDA is touched: fewer gaps between tensors in a GPU's memory.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen, device_reason = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1 and device.startswith("cuda:"):
        raise ValueError(f"device is {device!r} under torchrun: use --device=cuda, each rank takes its own")
    kind, dtype_reason = choose_dtype(dtype, chosen, training)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32
    if world > 1:
        join_ranks("nccl" if chosen.type == "cuda" else "gloo", rank, world, timedelta(seconds=timeout_seconds))
    lag = 1 if chosen.type == "cuda" else 0
    return Runtime(chosen, kind, rank, world, [device_reason, dtype_reason], lag)


def join_ranks(backend: str, rank: int, world: int, timeout: timedelta):
    """Form the process group. Raises OSError, naming the address, if that fails."""
    address, attempt = os.environ.get("MASTER_ADDR", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    port, store = os.environ.get("MASTER_PORT", "0"), None
    try:
        if attempt != "0" and os.environ.get("LOCAL_WORLD_SIZE") == str(world):
            # torchrun's store still holds the addresses of the ranks that died: give each attempt names of its own. On
            # several nodes the counts can differ; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps (scripts/slurm.sh).
            mine = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and rank == 0
            store = dist.PrefixStore(attempt, dist.TCPStore(address, int(port), world, mine, timeout))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    except (dist.DistError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise OSError(
            f"rank {rank} found no way to the other {world - 1} ranks at MASTER_ADDR={address} MASTER_PORT={port} "
            f"within {timeout.total_seconds():.0f} s: check that address and that every rank was started ({reason})"
        ) from None


def stop():
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        # gloo's threads need Python's lock to let go of the last tensors; the end of the group holds it and waits for
        # them (seen as a deadlock in torch 2.13), so they get time to do it first.
        time.sleep(0.2)
        dist.destroy_process_group()


def sum_over_ranks(*values: float | Tensor) -> list[float]:
    """Each value summed in float64 over all ranks (unchanged in a single process)."""
    values = [float(value) for value in values]
    if not dist.is_initialized():
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return add_ranks(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def add_ranks(numbers: Tensor) -> Tensor:
    """The same for a tensor, on its device, without waiting for it."""
    if dist.is_initialized():
        numbers = numbers.double()
        dist.all_reduce(numbers)
    return numbers


class Later:
    """Numbers that a device may still be computing. read() waits for them, and for nothing begun after them."""

    def __init__(self, numbers: Tensor):
        self.numbers, self.copied = numbers.detach().to("cpu", non_blocking=numbers.is_cuda), None
        if numbers.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> list:
        if self.copied is not None:
            self.copied.synchronize()
        return self.numbers.tolist()


def gather(value) -> list:
    """The values of all ranks, in order, on every rank; value may be anything that can be pickled."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(action: Callable):
    """Call action() on rank 0; what it returns, or the ValueError or OSError it raises, comes to every rank."""
    answer = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            answer = action()
        except (ValueError, OSError) as error:
            answer = error
    answer = gather(answer)[0]
    if isinstance(answer, Exception):
        raise answer
    return answer


def full_copy(value, keep: bool, copy: bool = True):
    """A nest of dicts with copies of its tensors on the CPU, sharded ones put together. Every rank calls it; only those
    with `keep` get an answer, the others None. A tensor at a time, so that no device holds more than it must. copy:
    False spares the memory where the tensors are on the CPU and will not change any more."""
    if isinstance(value, dict):
        copies = {key: full_copy(inner, keep, copy) for key, inner in value.items()}
        return copies if keep else None
    if isinstance(value, Tensor):
        whole = value.detach()
        whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
        return whole.to("cpu", copy=copy, memory_format=torch.contiguous_format) if keep else None
    return value


# Matrix products and attention: what selective activation checkpointing keeps, since they cost the most to do again.
KEPT_OPERATIONS = ("mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu",
                   "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
                   "_scaled_dot_product_cudnn_attention")  # fmt: skip


def checkpoint_activations(blocks: list[nn.Module], mode: str):
    """Trade time for memory: in training, blocks forget their activations (mode "full"), or all of them but the results
    of matrix products and attention ("selective"), and compute them again in the backward pass (arXiv 1604.06174)."""
    if mode == "none":
        return
    extra = {}
    if mode == "selective":
        kept = [getattr(torch.ops.aten, name).default for name in KEPT_OPERATIONS]
        extra = {"context_fn": partial(create_selective_checkpoint_contexts, kept)}
    for block in blocks:
        block.forward = partial(recomputed_in_training, block, block.forward, extra)


def recomputed_in_training(block: nn.Module, forward: Callable, extra: dict, *args):
    return recomputed(forward, *args, use_reentrant=False, **extra) if block.training else forward(*args)


def parallelize(model: nn.Module, blocks: list[nn.Module], parallel: str, compiled: bool, run: Runtime) -> nn.Module:
    """Put the model on its device, compiled if asked; returns what to call in training, the model itself or its DDP.

    parallel="fsdp": parameters, their gradients and so the optimizer's state are cut into one shard a rank (FSDP2) and
    put together block by block as they are needed. Every rank must then call the model whenever one does.
    """
    if parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(run.device.type, (run.world_size,))
        for block in blocks:
            if compiled:
                block.compile()  # the sharding's hooks stand between the blocks
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)  # what is outside of blocks; moves it all to the device, block by block
        return model
    model.to(run.device)
    if compiled:
        model.compile()
    if run.world_size == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def dry_pass(network: nn.Module, x: Tensor, y: Tensor, run: Runtime):
    """One forward and backward pass that leaves no trace, so that compiling is done and a lack of memory shows before
    the first step."""
    before = random_state(run.device)
    with run.autocast():
        loss = network(x, y, reduction="sum")
    loss.backward()
    network.zero_grad(set_to_none=True)
    set_random_state(before, run.device)


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, also where each rank holds a part of them."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


@contextmanager
def callable_by_method(model: nn.Module, method: str):
    """Inside, a sharded model puts itself together also for model.method(...), not only for model(...)."""
    if hasattr(model, "unshard"):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(model, method)
    try:
        yield
    finally:
        vars(model).pop(method, None)


@contextmanager
def memory_levers(settings):
    """Turn "out of memory" inside into a ValueError that says what would help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # OutOfMemoryError is a RuntimeError; the CPU raises a plain one
        told = str(error).lower()
        if isinstance(error, RuntimeError) and "out of memory" not in told and "allocate memory" not in told:
            raise
        reason = str(error).strip().splitlines()[0][:120]
        raise ValueError(
            f"out of memory ({reason}): lower --micro_batch_size (now {settings.micro_batch_size or 'automatic'}) or "
            "--block_size, or try --activation_checkpointing=full, --dtype=bfloat16, --parallel=fsdp on more devices"
        ) from None


def seed_everything(seed: int):
    """Seed Python's and torch's generators, on every device."""
    random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """The generators' state, as plain values and tensors that torch.load(weights_only=True) accepts."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state: dict, device: torch.device):
    """Inverse of random_state; a device that had no generator then keeps its own."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if device.type in state:
        getattr(torch, device.type).set_rng_state(state[device.type])


class StopSignals:
    """Remembers that SIGINT, SIGTERM or SIGUSR1 came, so that the loop can finish its step and save. Another one, more
    than a second later, ends the process at once. Use as a context manager; the old handlers come back behind it."""

    NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # SIGUSR1: Slurm's warning before a time limit

    def __init__(self, say: Callable[[str], None]):
        self.say, self.received, self._when = say, None, 0.0
        self._old = {}

    def __enter__(self) -> "StopSignals":
        for name in self.NAMES:
            if hasattr(signal, name):
                self._old[name] = signal.signal(getattr(signal, name), self._handle)
        return self

    def __exit__(self, *_):
        for name, handler in self._old.items():
            signal.signal(getattr(signal, name), handler)

    def _handle(self, number, _frame):
        if self.received is None:
            self.received, self._when = signal.Signals(number), time.monotonic()
            self.say(f"{self.received.name} received: finishing this step, then saving (again: stop at once)")
        elif time.monotonic() - self._when > 1:  # Ctrl-C reaches a rank from the terminal and again through torchrun
            os._exit(128 + number)

    @property
    def asked(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        return 128 + self.received if self.received else 0


class Watchdog:
    """Ends this process if alive() is not called for `seconds`: says what it was doing, dumps every thread's stack to
    stderr and exits with 1. A rank that hangs stalls all others in their next exchange, so they all report."""

    def __init__(self, seconds: float, run: Runtime):
        self.seconds, self.run, self.doing = seconds, run, "starting"
        self._armed, self._timer = -math.inf, None

    def alive(self, doing: str):
        self.doing = doing
        setting = time.monotonic() - self._armed > min(1.0, self.seconds / 10)  # not each time: it takes 0.1 ms
        if setting and self.run.world_size > 1:  # who waits for a single process sees it, and may want it to be slow
            self.off()
            self._armed = time.monotonic()
            self._timer = threading.Timer(self.seconds, self._tell)
            self._timer.daemon = True
            self._timer.start()
            # In C, so that it works even where a stuck call keeps Python's lock.
            faulthandler.dump_traceback_later(self.seconds + 0.5, exit=True)

    def _tell(self):
        print(f"rank {self.run.rank}: no progress for {self.seconds:g} s while {self.doing}; stacks:", file=sys.stderr)

    def off(self):
        if self._timer is not None:
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()
            self._timer = None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_):
        self.off()


def known_gpu(name: str) -> tuple[float, float, int] | None:
    """The row of GPUS for a device of this name; None if it is not in the table."""
    return next((figures for key, figures in GPUS.items() if key in name), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The device's dense peak in FLOP/s for matrix products of this dtype; None if it is not known."""
    figures = known_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return figures and (figures[1] if dtype == torch.float32 else figures[0]) * 1e12


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: on the device if it keeps count, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name == "nt":
        return 0  # Windows keeps no such count
    if sys.platform == "linux":  # where getrusage counts what the parent held when it started this process
        with open("/proc/self/status") as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
