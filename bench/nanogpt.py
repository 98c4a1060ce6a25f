"""nanoGPT (github.com/karpathy/nanoGPT) as the other arm: how its code is run, what it prints."""

import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.processes import Child, run_child

if TYPE_CHECKING:
    from torch import nn

# `python -c` with this and a script's path and settings runs the script, and says what it held of
# the GPU at most.
WITH_PEAK = """
import os, runpy, sys, torch
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
print("peak", torch.cuda.max_memory_allocated())
"""


def train(peer: str, settings: list[str], tell_peak: bool = False) -> Child:
    """Run train.py of the checkout `peer`, with its preset for tiny Shakespeare and settings.

    tell_peak: it prints at its end what `peak_on_gpu` reads.
    """
    home = Path(peer).resolve()
    teller = ["-c", WITH_PEAK] if tell_peak else []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "configurator.py"):  # which it looks for where it is started
            os.symlink(home / name, f"{folder}/{name}")
        files = [str(home / "train.py"), str(home / "config" / "train_shakespeare_char.py")]
        command = [sys.executable, *teller, *files, *settings, f"--out_dir={folder}/out"]
        return run_child(command, folder)


def step_times(output: str) -> list[float]:
    """Milliseconds of each step that a training run printed."""
    return [float(ms) for ms in re.findall(r"time ([\d.]+)ms", output)]


def val_losses(output: str) -> list[float]:
    """Validation losses, which nanoGPT samples, of each evaluation."""
    return [float(loss) for loss in re.findall(r"val loss ([\d.]+)", output)]


def peak_on_gpu(output: str) -> int:
    """Bytes of the GPU's memory that a run with tell_peak held at most; 0 without a GPU."""
    return int(re.findall(r"peak (\d+)", output)[-1])


def load_model(peer: str, **shape: int) -> "nn.Module":
    """A network of its model.py with random weights, without dropout, with biases as GPT-2 has."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(peer) / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(**shape, dropout=0.0, bias=True)
    return module.GPT(config).eval()
