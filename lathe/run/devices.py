"""Device, dtype and compiler of this process: what was chosen, and why."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

import torch

from lathe.run.ranks import join_ranks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Runtime:
    """What was chosen for this process."""

    device: torch.device
    dtype: torch.dtype  # of matrix products, in autocast; weights are float32
    rank: int = 0  # which of the job's processes this one is
    world_size: int = 1  # how many there are
    reasons: list[str] = field(default_factory=list)  # what was chosen and why, in words
    lag: int = 0  # steps under way while results of an earlier one are read: no GPU waits for that

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type

    def autocast(self) -> AbstractContextManager:
        """Inside, matrix products are in `dtype`, sensitive operations in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def start(
    device: str, dtype: str, timeout_seconds: float = 600.0, training: bool = False
) -> Runtime:
    """Find device and dtype, and under torchrun join the other ranks.

    These talk through NCCL on CUDA, gloo elsewhere. On a CPU only training goes below float32
    unasked: other figures should not depend on the processor. Raises ValueError for what this
    machine does not have, OSError if the other ranks are not there in time.
    """
    # Before CUDA is touched: fewer gaps between tensors in a GPU's memory.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))

    chosen, device_reason = choose_device(device, local_rank)
    if world_size > 1 and device.startswith("cuda:"):
        raise ValueError(
            f"device is {device!r} under torchrun: use --device=cuda, each rank takes its own"
        )
    chosen_dtype, dtype_reason = choose_dtype(dtype, chosen, training)
    on_gpu = chosen.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32
    if world_size > 1:
        backend = "nccl" if on_gpu else "gloo"
        join_ranks(backend, rank, world_size, timedelta(seconds=timeout_seconds))
    return Runtime(
        chosen,
        chosen_dtype,
        rank,
        world_size,
        reasons=[device_reason, dtype_reason],
        lag=1 if on_gpu else 0,
    )


# -----------------------------------------------------------------------------
# Device


def choose_device(name: str, local_rank: int = 0) -> tuple[torch.device, str]:
    """("auto", "cpu", "cuda", "cuda:N" or "mps") -> device and the reason.

    "cuda" is the GPU of this rank. Raises ValueError if the device is not there.
    """
    kind = best_kind_of_device() if name == "auto" else name
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", kind):
        raise ValueError(f"device is {name!r}: choose auto, cpu, cuda, cuda:N or mps")
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device("cuda", local_rank)

    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {name!r}, but torch sees no CUDA device: use --device=auto or --device=cpu"
        )
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device is {str(device)!r}, but there are {count} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "device is 'mps', but torch finds no Apple GPU here: use --device=auto or --device=cpu"
        )

    if name != "auto":
        reason = "as asked"
    elif device.type == "cuda":  # only here: before it was known to be there, it had no name
        reason = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        reason = "Apple GPU"
    else:
        reason = f"no GPU found; {torch.get_num_threads()} threads"
    return device, f"device {device} ({reason})"


def best_kind_of_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


# -----------------------------------------------------------------------------
# Dtype


def choose_dtype(
    name: str, device: torch.device, training: bool = False
) -> tuple[torch.dtype, str]:
    """("auto", "float32", "bfloat16" or "float16") -> dtype and the reason.

    Raises ValueError where it cannot run.
    """
    if name == "auto":
        return best_dtype(device, training)
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}: choose auto, {', '.join(DTYPES)}")
    if name == "bfloat16" and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise ValueError(
                f"dtype is bfloat16, but {torch.cuda.get_device_name(device)} does not have it "
                f"(compute capability {major}.{minor}, 8.0 needed): "
                "use --dtype=float16 or --dtype=float32"
            )
    if name == "float16" and device.type == "cpu":
        raise ValueError(
            "dtype is float16, which needs a GPU: on a CPU use --dtype=float32 or --dtype=bfloat16"
        )
    return DTYPES[name], f"{name} (as asked)"


def best_dtype(device: torch.device, training: bool) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return torch.bfloat16, "bfloat16 (tensor cores)"
        if capability >= (7, 0):
            return torch.float16, "float16 with loss scaling (this GPU has no bfloat16)"
        return torch.float32, "float32 (this GPU has no 16-bit tensor cores)"
    if not training:
        return torch.float32, "float32"
    if device.type == "cpu" and cpu_has_bfloat16():
        reason = "this processor multiplies it twice as fast as float32"
        return torch.bfloat16, f"bfloat16 ({reason})"
    return torch.float32, f"float32 ({device.type} has nothing faster)"


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16 (AVX512-BF16 or AMX);
    elsewhere they are slow."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


# -----------------------------------------------------------------------------
# Attention


@contextmanager
def without_plans() -> Iterator[None]:
    """Inside, cuDNN does not attend: on an H100 it would, and takes half a second to plan for a
    shape that it has not seen. Training and evaluation have one each; prompts and items have many.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


# -----------------------------------------------------------------------------
# The same bits each time

CUBLAS_WORKSPACES = (":4096:8", ":16:8")  # with which cuBLAS adds up in a fixed order


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Inside, a GPU computes the same bits each time, and an operation that cannot is an error.

    To be entered before CUDA is touched: cuBLAS reads its variable once. What is chosen by timing
    (Inductor's kernels) is chosen by rule, cuDNN does not attend (its backward pass adds up in any
    order), and gradients of embeddings are added up in order, not as they come.
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in CUBLAS_WORKSPACES:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACES[0]
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # read as the compiler is imported
    with without_plans():
        torch.use_deterministic_algorithms(True)
        # Else all memory that is allocated would be filled first, in case it is read unwritten.
        torch.utils.deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


@contextmanager
def in_any_order() -> Iterator[None]:
    """Inside, deterministic_algorithms is off: for sampled text, which nothing is computed from.
    torch refuses its running sums on a GPU (cumsum), although those of a row are of one order."""
    if not torch.are_deterministic_algorithms_enabled():
        yield  # to say so once more would import torch's compiler: a second
        return
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)


def describe_determinism(device: torch.device) -> str:
    """What deterministic means here, and costs."""
    if device.type == "cpu":
        return "deterministic (as any run on a CPU)"
    if device.type == "mps":
        return "deterministic (where an Apple GPU can be; an operation that cannot stops the run)"
    return (
        "deterministic (the same bits on the same GPUs and versions; costs speed: attention "
        "without cuDNN, sums in a fixed order, nothing chosen by timing)"
    )


# -----------------------------------------------------------------------------
# Compiler


def choose_compile(
    name: str, device: torch.device, planned_seconds: float = 0.0
) -> tuple[bool, str]:
    """("auto", "true" or "false") -> whether to torch.compile, and the reason.

    planned_seconds: a guess of how long the whole job runs uncompiled, 0 if unknown; compiling
    costs up to a minute. Without a working compiler the answer is no, even if "true" was asked for.
    """
    if name == "false":
        return False, "not compiled (as asked)"
    if name == "auto" and device.type != "cuda":
        reason = f"rarely pays back on {device.type}; --compile=true to try"
        return False, f"not compiled ({reason})"
    if name == "auto" and 0 < planned_seconds < 120:
        return False, "not compiled (the run is shorter than compiling would take)"
    fault = compiler_fault(device)
    if fault is not None:
        return False, f"not compiled ({fault})"
    if name == "true":
        return True, "compiled (as asked)"
    return True, "compiled"


def compiler_fault(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, found by compiling one addition; None if it can."""
    if device.type == "cpu" and not has_cpp_compiler():
        return "no C++ compiler found: install g++ or clang"
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the tool chain throws, training goes on without it
        reason = str(error).strip().splitlines()[0][:100]
        return f"torch.compile does not work here: {reason}"
    return None


def has_cpp_compiler() -> bool:
    if os.environ.get("CXX"):
        return True
    return any(shutil.which(name) for name in ("g++", "clang++", "cl"))
