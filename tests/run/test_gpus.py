"""What lathe/run/gpus.py promises: the row of a device's name, or nothing rather than a wrong figure."""

import pytest
import torch

from lathe.run.gpus import GPUS, known_gpu, peak_flops

# Names that torch.cuda.get_device_name gives, and the row each is
LISTED = {
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 80GB HBM2e": "H100 HBM2e",
    "NVIDIA H100 NVL": "H100 NVL",
    "NVIDIA H200": "H200",
    "NVIDIA H200 NVL": "H200 NVL",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA B200": "B200",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100 80GB PCIe": "A100",
    "NVIDIA A100-SXM4-40GB": "A100 40GB",
    "NVIDIA A100-PCIE-40GB": "A100 40GB",
    "A100-SXM4-40GB": "A100 40GB",
    "NVIDIA A10G": "A10G",
    "NVIDIA A40": "A40",
    "NVIDIA L40S": "L40S",
    "NVIDIA L40": "L40",
    "NVIDIA L4": "L4",
    "Tesla V100-SXM2-16GB": "V100",
    "Tesla V100-PCIE-16GB": "V100",
    "Tesla V100-FHHL-16GB": "V100",
    "Tesla V100-SXM2-32GB": "V100 32GB",
    "Tesla V100-DGXS-32GB": "V100 32GB",
    "Tesla T4": "T4",
    "NVIDIA GeForce RTX 3090": "RTX 3090",
    "GeForce RTX 3090": "RTX 3090",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
}
# Other models, laptops' versions, slices (MIG) and shares (vGPU) of one, other makers'
NOT_LISTED = """
NVIDIA RTX A4000|NVIDIA RTX A4500|NVIDIA RTX A400|NVIDIA RTX A1000|NVIDIA RTX A6000|NVIDIA A10|NVIDIA A16|NVIDIA A2
NVIDIA A30|NVIDIA A800-SXM4-80GB|NVIDIA A800 40GB Active|NVIDIA A100X|A100-SXM-64GB|NVIDIA A100-SXM4-40GB MIG 1g.5gb
NVIDIA H100 80GB HBM3 MIG 3g.40gb|GRID A100-10C|NVIDIA A40-48Q|GRID T4-16Q|GRID V100D-32Q|NVIDIA L40S-48Q
NVIDIA H20|NVIDIA H20-3e|NVIDIA H800|NVIDIA H800 PCIe|NVIDIA H100 64GB HBM2|NVIDIA H100 96GB HBM3|NVIDIA GH200 144G HBM3e
NVIDIA GB200|NVIDIA GB10|NVIDIA B100|NVIDIA B300 SXM6 AC|NVIDIA GB300|NVIDIA L2|NVIDIA L20|NVIDIA L40G|Tesla V100S-PCIE-32GB
NVIDIA T4G|NVIDIA T400|NVIDIA T400 4GB|NVIDIA T400E|NVIDIA T600|NVIDIA T1000 8GB|Tesla P100-PCIE-16GB|Tesla K80|Tesla M40
NVIDIA GeForce RTX 3090 Ti|NVIDIA GeForce RTX 4090 D|NVIDIA GeForce RTX 5090 D|NVIDIA GeForce RTX 5090 D v2
NVIDIA GeForce RTX 4090 Laptop GPU|NVIDIA GeForce RTX 5090 Laptop GPU|NVIDIA GeForce RTX 3080 Ti Laptop GPU
NVIDIA GeForce RTX 4080|NVIDIA GeForce RTX 4080 SUPER|NVIDIA GeForce RTX 3060|NVIDIA GeForce GTX 1080|NVIDIA GeForce GTX 1660 Ti
NVIDIA RTX 4000 Ada Generation|NVIDIA RTX 4000 SFF Ada Generation|NVIDIA RTX 6000 Ada Generation|NVIDIA RTX A5000 Laptop GPU
NVIDIA RTX PRO 6000 Blackwell Workstation Edition|NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition|Quadro RTX 8000
NVIDIA TITAN RTX|NVIDIA TITAN V|AMD Instinct MI300X|AMD Instinct MI250X / MI250|AMD Radeon RX 7900 XTX|Orin|
"""


@pytest.mark.parametrize("name", LISTED)
def test_a_device_has_the_row_of_its_own_model(name):
    assert known_gpu(name).name == LISTED[name]


@pytest.mark.parametrize("name", NOT_LISTED.strip("\n").replace("\n", "|").split("|"))
def test_a_device_of_another_model_has_none(name):
    assert known_gpu(name) is None


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_every_row_is_found_by_its_own_name_and_is_a_real_devices(gpu):
    assert known_gpu(gpu.name) is gpu
    assert gpu.name in LISTED.values()
    assert gpu.single_tflops <= (gpu.tf32_tflops or gpu.single_tflops) <= gpu.half_tflops


def test_peaks_are_per_dtype_and_unknown_off_the_table(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    assert peak_flops(gpu, torch.bfloat16) == 312e12
    assert peak_flops(gpu, torch.float32) == 156e12, "training multiplies float32 in TF32"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
    assert peak_flops(gpu, torch.float32) == 15.7e12, "which has no TF32"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce GTX 1080")
    assert peak_flops(gpu, torch.bfloat16) is None
    assert peak_flops(torch.device("cpu"), torch.float32) is None
