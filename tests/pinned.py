"""Commands of the project, run so that any x86 machine with AVX2 gives the same bits.

The figures of a run depend on the order in which a processor adds up. The variables below make
torch, oneDNN and MKL choose the same kernels on all such processors: ATEN_CPU_CAPABILITY and
MKL_CBWR decide, oneDNN has no part in float32 yet. One thread makes the same sums.
"""

import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from lathe import ROOT

TRAIN, SAMPLE, EVALUATE = "train.py", "sample.py", "evaluate.py"
PREPARE_TEXT, PREPARE_PAIRS, VERIFY = "prepare/text.py", "prepare/pairs.py", "prepare/verify.py"
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
TORCH = torch.__version__.partition("+")[0]
# Relative, ten times what 50 steps of a tiny run differ by with other kernels and threads.
LOOSE = {"loss": 0.005, "grad_norm": 0.3}
Series = dict[str, list[float]]  # loss and grad_norm of a run's steps


def run(script: str, *arguments: str, folder: Path) -> str:
    """stdout of a command of the project, started in this folder. AssertionError if it fails."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, f"{script} {' '.join(arguments)}:\n{done.stderr}"
    return done.stdout


def why_not_exact() -> str:
    """Why the last digits may differ here from those in the repository; empty if they may not."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"this is {sys.platform} on {platform.machine()}, not Linux on x86-64"
    if "avx2" not in Path("/proc/cpuinfo").read_text().split():
        return "this processor has no AVX2"
    return "" if torch.backends.mkl.is_available() else "this torch is built without MKL"


def series(run_folder: Path) -> Series:
    """Losses and gradient norms of a run's training steps."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(rows[0]["step"], rows[-1]["step"] + 1))
    return {key: [row[key] for row in rows] for key in ("loss", "grad_norm")}


def first_difference(expected: Series, found: Series, begin: int = 1, exact: bool = True) -> str:
    """Which number of two series differs first, with both; empty if none does."""
    for key, numbers in expected.items():
        if len(numbers) != len(found[key]):
            return f"{len(found[key])} numbers of {key} in place of {len(numbers)}"
    for i in range(len(expected["loss"])):
        for key in expected:
            a, b = expected[key][i], found[key][i]
            if not math.isclose(a, b, rel_tol=0.0 if exact else LOOSE[key]):
                return f"step {begin + i}: {key} is {b!r}, it was {a!r}"
    return ""
