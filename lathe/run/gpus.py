"""What is known of GPUs: peak speed, memory, and how fast both are reached."""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """A row of the table. Speeds are dense peaks, without sparsity, in TFLOP/s."""

    name: str  # words of CUDA's name of the device
    half_tflops: float  # matrix products of 16-bit numbers, on tensor cores
    tf32_tflops: float  # of float32 numbers where these may be rounded to TF32; 0 = has no TF32
    single_tflops: float  # of float32 numbers
    memory_gb: int
    memory_gbps: float  # GB/s to and from it
    link_gbps: float  # GB/s from one GPU of a node to the others: NVLink, or else PCIe


# Sources: the makers' data sheets. A device is a row's if its name has the words of that, and
# beside them only such as tell no models apart; of several rows it is the one with the most words.
# What is not listed, a laptop's or a slice of a device, gets no figures rather than wrong ones.
GPUS = [
    Gpu("GH200", 989.5, 494.7, 67.0, memory_gb=96, memory_gbps=4000, link_gbps=450),
    Gpu("H200", 989.5, 494.7, 67.0, memory_gb=141, memory_gbps=4800, link_gbps=450),
    Gpu("H200 NVL", 835.5, 417.7, 60.0, memory_gb=141, memory_gbps=4800, link_gbps=450),
    Gpu("H100 PCIe", 756.0, 378.0, 51.0, memory_gb=80, memory_gbps=2000, link_gbps=64),
    Gpu("H100 HBM2e", 756.0, 378.0, 51.0, memory_gb=80, memory_gbps=2000, link_gbps=64),
    Gpu("H100 NVL", 835.5, 417.7, 60.0, memory_gb=94, memory_gbps=3900, link_gbps=300),
    Gpu("H100", 989.5, 494.7, 67.0, memory_gb=80, memory_gbps=3350, link_gbps=450),
    Gpu("B200", 2250.0, 1125.0, 75.0, memory_gb=180, memory_gbps=7700, link_gbps=900),
    Gpu("A100", 312.0, 156.0, 19.5, memory_gb=80, memory_gbps=2039, link_gbps=300),
    Gpu("A100 40GB", 312.0, 156.0, 19.5, memory_gb=40, memory_gbps=1555, link_gbps=300),
    Gpu("A10G", 70.0, 35.0, 31.2, memory_gb=24, memory_gbps=600, link_gbps=32),
    Gpu("A40", 149.7, 74.8, 37.4, memory_gb=48, memory_gbps=696, link_gbps=56),
    Gpu("L40S", 362.05, 183.0, 91.6, memory_gb=48, memory_gbps=864, link_gbps=32),
    Gpu("L40", 181.05, 90.5, 90.5, memory_gb=48, memory_gbps=864, link_gbps=32),
    Gpu("L4", 121.0, 60.0, 30.3, memory_gb=24, memory_gbps=300, link_gbps=32),
    Gpu("V100", 125.0, 0, 15.7, memory_gb=16, memory_gbps=900, link_gbps=150),
    Gpu("V100 32GB", 125.0, 0, 15.7, memory_gb=32, memory_gbps=900, link_gbps=150),
    Gpu("T4", 65.0, 0, 8.1, memory_gb=16, memory_gbps=320, link_gbps=16),
    Gpu("RTX 3090", 71.0, 35.6, 35.6, memory_gb=24, memory_gbps=936, link_gbps=32),
    Gpu("RTX 4090", 165.2, 82.6, 82.6, memory_gb=24, memory_gbps=1008, link_gbps=32),
    Gpu("RTX 5090", 209.5, 104.8, 104.8, memory_gb=32, memory_gbps=1792, link_gbps=64),
]
# The maker, brands, sockets, kinds of memory, "GPU"; 480 GB are of GH200's processor
SAYS_LITTLE = re.compile("nvidia|tesla|geforce|gpu|sxm[2-5]?|pcie|dgxs|fhhl|hbm3e?|480gb")


def words_of(name: str) -> list[str]:
    return re.split(r"[\s\-_]+", name.lower().strip())


def known_gpu(name: str) -> Gpu | None:
    """The row for a device of this name; None if it is not in the table."""
    words = words_of(name)
    fitting = []
    for gpu in GPUS:
        row = words_of(gpu.name)
        rest = set(words) - {*row, f"{gpu.memory_gb}gb"}
        if set(row) <= set(words) and all(SAYS_LITTLE.fullmatch(word) for word in rest):
            fitting.append(gpu)
    return max(fitting, key=lambda gpu: len(words_of(gpu.name)), default=None)


def peak_tflops(gpu: Gpu, dtype: torch.dtype) -> float:
    """The dense peak for matrix products of this dtype, as training has them: float32 in TF32 where
    there is that (devices.start sees to it)."""
    if dtype == torch.float32:
        return gpu.tf32_tflops or gpu.single_tflops
    return gpu.half_tflops


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The device's dense peak in FLOP/s for matrix products of this dtype; None if not known."""
    if device.type != "cuda":
        return None
    gpu = known_gpu(torch.cuda.get_device_name(device))
    if gpu is None:
        return None
    return 1e12 * peak_tflops(gpu, dtype)
