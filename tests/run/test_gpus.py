"""What lathe/run/gpus.py promises: the row of a device's name, or nothing rather than a wrong figure."""

import torch

from lathe.run.gpus import GPUS, known_gpu, peak_flops


def test_a_device_is_found_by_the_name_that_cuda_gives_it():
    assert known_gpu("NVIDIA H100 PCIe").half_tflops == 756.0
    assert known_gpu("NVIDIA H100 80GB HBM3").half_tflops == 989.5
    assert known_gpu("NVIDIA GH200 480GB").memory_gb == 96
    assert known_gpu("NVIDIA GeForce GTX 1080") is None


def test_every_row_is_found_by_its_own_name():
    for gpu in GPUS:
        assert known_gpu(gpu.name) is gpu


def test_peaks_are_per_dtype_and_unknown_off_the_table(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    assert peak_flops(gpu, torch.bfloat16) == 312e12
    assert peak_flops(gpu, torch.float32) == 19.5e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce GTX 1080")
    assert peak_flops(gpu, torch.bfloat16) is None
    assert peak_flops(torch.device("cpu"), torch.float32) is None
