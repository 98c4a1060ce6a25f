"""Device, dtype and compiler of this process: what was chosen, and why."""

import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

import torch

from lathe.run.gpus import peak_flops
from lathe.run.ranks import join_ranks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
