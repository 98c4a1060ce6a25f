"""What is known of GPUs: peak speed and memory."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """A row of the table. Speeds are dense peaks, without sparsity, in TFLOP/s."""

    name: str  # what CUDA's name of the device contains
    half_tflops: float  # matrix products of 16-bit numbers, on tensor cores
    single_tflops: float  # of float32 numbers, as torch runs them by default
    memory_gb: int


# Sources: the makers' data sheets. The first row whose name is part of the device's name counts, so
# "H100 PCIe" stands before "H100". A device that is not listed gets no MFU rather than a wrong one.
GPUS = [
    Gpu("GH200", half_tflops=989.5, single_tflops=67.0, memory_gb=96),
    Gpu("H200", half_tflops=989.5, single_tflops=67.0, memory_gb=141),
    Gpu("H100 PCIe", half_tflops=756.0, single_tflops=51.0, memory_gb=80),
    Gpu("H100 NVL", half_tflops=835.5, single_tflops=60.0, memory_gb=94),
    Gpu("H100", half_tflops=989.5, single_tflops=67.0, memory_gb=80),
    Gpu("B200", half_tflops=2250.0, single_tflops=75.0, memory_gb=180),
    Gpu("A100", half_tflops=312.0, single_tflops=19.5, memory_gb=80),
    Gpu("A10G", half_tflops=70.0, single_tflops=31.2, memory_gb=24),
    Gpu("A40", half_tflops=149.7, single_tflops=37.4, memory_gb=48),
    Gpu("L40S", half_tflops=362.05, single_tflops=91.6, memory_gb=48),
    Gpu("L4", half_tflops=121.0, single_tflops=30.3, memory_gb=24),
    Gpu("V100", half_tflops=125.0, single_tflops=15.7, memory_gb=16),
    Gpu("T4", half_tflops=65.0, single_tflops=8.1, memory_gb=16),
    Gpu("RTX 3090", half_tflops=71.0, single_tflops=35.6, memory_gb=24),
    Gpu("RTX 4090", half_tflops=165.2, single_tflops=82.6, memory_gb=24),
    Gpu("RTX 5090", half_tflops=209.5, single_tflops=104.8, memory_gb=32),
]


def known_gpu(name: str) -> Gpu | None:
    """The row for a device of this name; None if it is not in the table."""
    for gpu in GPUS:
        if gpu.name in name:
            return gpu
    return None


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The device's dense peak in FLOP/s for matrix products of this dtype; None if not known."""
    if device.type != "cuda":
        return None
    gpu = known_gpu(torch.cuda.get_device_name(device))
    if gpu is None:
        return None
    tflops = gpu.single_tflops if dtype == torch.float32 else gpu.half_tflops
    return tflops * 1e12
