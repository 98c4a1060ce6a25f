"""What is known of GPUs: peak speed and memory."""

import torch

# Dense peak of tensor cores without sparsity, in TFLOP/s (16-bit, float32 as torch runs it by default), and memory in
# GB. Sources: the makers' data sheets. A device that is not listed gets no MFU rather than a wrong one.
GPUS = {
    "GH200": (989.5, 67.0, 96), "H200": (989.5, 67.0, 141), "H100 PCIe": (756.0, 51.0, 80),
    "H100 NVL": (835.5, 60.0, 94), "H100": (989.5, 67.0, 80), "B200": (2250.0, 75.0, 180), "A100": (312.0, 19.5, 80),
    "A10G": (70.0, 31.2, 24), "A40": (149.7, 37.4, 48), "L40S": (362.05, 91.6, 48), "L4": (121.0, 30.3, 24),
    "V100": (125.0, 15.7, 16), "T4": (65.0, 8.1, 16), "RTX 3090": (71.0, 35.6, 24), "RTX 4090": (165.2, 82.6, 24),
    "RTX 5090": (209.5, 104.8, 32),
}  # fmt: skip


def known_gpu(name: str) -> tuple[float, float, int] | None:
    """The row of GPUS for a device of this name; None if it is not in the table."""
    return next((figures for key, figures in GPUS.items() if key in name), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The device's dense peak in FLOP/s for matrix products of this dtype; None if it is not known."""
    figures = known_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return figures and (figures[1] if dtype == torch.float32 else figures[0]) * 1e12
