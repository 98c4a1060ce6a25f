"""What lathe/run/devices.py promises: what runs is there, and the reason is said in words."""

import pytest
import torch

from lathe.run import devices

CPU, GPU, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


@pytest.fixture
def machine(monkeypatch):
    """A machine that is only said to have these devices."""

    def pretend(gpus: int = 0, capability: tuple[int, int] = (9, 0), mps: bool = False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


def test_auto_takes_the_gpu_of_the_rank_then_apples_then_the_processor(machine):
    machine(gpus=2, mps=True)
    device, reason = devices.choose_device("auto", local_rank=1)
    assert device == torch.device("cuda", 1) and reason == "device cuda:1 (NVIDIA H100 PCIe)"
    machine(mps=True)
    assert devices.choose_device("auto") == (MPS, "device mps (Apple GPU)")
    machine()
    device, reason = devices.choose_device("auto")
    assert device == CPU and reason.startswith("device cpu (no GPU found; ")


def test_a_device_that_is_asked_for_is_taken_or_refused(machine):
    machine(gpus=2)
    assert devices.choose_device("cpu") == (CPU, "device cpu (as asked)")
    assert devices.choose_device("cuda:1")[0] == torch.device("cuda", 1)
    for name, rank in (("cuda:2", 0), ("cuda", 2), ("auto", 2)):
        with pytest.raises(ValueError, match="device is 'cuda:2', but there are 2 CUDA devices"):
            devices.choose_device(name, rank)
    with pytest.raises(ValueError, match="torch finds no Apple GPU here: use --device=auto"):
        devices.choose_device("mps")
    with pytest.raises(ValueError, match="device is 'gpu': choose auto, cpu, cuda, cuda:N or mps"):
        devices.choose_device("gpu")
    machine()
    with pytest.raises(ValueError, match="device is 'cuda:0', but torch sees no CUDA device"):
        devices.choose_device("cuda:0")


@pytest.mark.parametrize(
    "capability, dtype, reason",
    [
        ((8, 0), torch.bfloat16, "bfloat16 (tensor cores)"),
        ((7, 5), torch.float16, "float16 with loss scaling (this GPU has no bfloat16)"),
        ((6, 1), torch.float32, "float32 (this GPU has no 16-bit tensor cores)"),
    ],
)
def test_a_gpu_computes_in_the_best_that_it_has(machine, capability, dtype, reason):
    machine(gpus=1, capability=capability)
    assert devices.choose_dtype("auto", GPU) == (dtype, reason)


def test_a_processor_goes_below_float32_only_in_training(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert devices.choose_dtype("auto", CPU) == (torch.float32, "float32")
    assert devices.choose_dtype("auto", CPU, training=True)[0] == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    slow = devices.choose_dtype("auto", CPU, training=True)
    assert slow == (torch.float32, "float32 (cpu has nothing faster)")


def test_a_dtype_that_cannot_run_is_refused(machine):
    machine(gpus=1, capability=(7, 5))
    with pytest.raises(ValueError, match=r"does not have it \(compute capability 7.5, 8.0 needed"):
        devices.choose_dtype("bfloat16", GPU)
    with pytest.raises(ValueError, match="dtype is float16, which needs a GPU"):
        devices.choose_dtype("float16", CPU)
    with pytest.raises(ValueError, match="dtype is 'int8': choose auto, float32"):
        devices.choose_dtype("int8", CPU)
    assert devices.choose_dtype("bfloat16", CPU) == (torch.bfloat16, "bfloat16 (as asked)")


def test_short_runs_and_processors_are_not_compiled_unasked():
    assert devices.choose_compile("false", GPU) == (False, "not compiled (as asked)")
    compiled, reason = devices.choose_compile("auto", CPU)
    assert not compiled and reason.startswith("not compiled (rarely pays back on cpu")
    compiled, reason = devices.choose_compile("auto", GPU, planned_seconds=100)
    assert not compiled and "shorter than compiling would take" in reason
