"""Lets torch without CUDA believe in one CUDA device: no_gpu.cpp, compiled and loaded."""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().with_name("no_gpu.cpp")


def torch_folder() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent


def build(folder: Path) -> Path:
    """Compile no_gpu.cpp against the torch that is installed: some seconds, with g++."""
    library = folder / "no_gpu.so"
    torch = torch_folder()
    subprocess.run(
        ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torch}/include", SOURCE,
         f"-L{torch}/lib", "-lc10", "-ltorch_cpu", "-o", library],
        check=True,
    )  # fmt: skip
    return library


def load(library: str | Path):
    assert "torch" not in sys.modules, "torch asks once, when it is imported, whether there is CUDA"
    ctypes.CDLL(str(torch_folder() / "lib" / "libtorch_cpu.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))
