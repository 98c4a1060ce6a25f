"""Whole commands as child processes: what they print, how long they take, how much memory."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lathe import ROOT
from lathe.run.metrics import Row, read_metrics

# `python -c` with this, a file and a command runs the command and writes to the file what it took.
# It stands in between since a child's peak memory counts from that of its parent, which is large.
MEASURED = """
import json, os, subprocess, sys, time
began = time.perf_counter()
child = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(child.pid, 0)
seconds = time.perf_counter() - began
figures = {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss}
with open(sys.argv[1], "w") as file:
    json.dump(figures, file)
sys.exit(status != 0)
"""


@dataclass
class Child:
    """A process that has ended well."""

    output: str  # stdout and stderr, as they came
    seconds: float  # from its start to its end
    cpu_seconds: float  # of all processors, its own children included
    peak_bytes: int  # most memory that one of its processes held


def run_child(command: list[str], folder: str | Path = ROOT, **environment: str) -> Child:
    """Run a command in a folder. Raises ValueError, with the end of its output, if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        figures_file = Path(scratch, "figures.json")
        output_file = Path(scratch, "output.txt")
        with open(output_file, "wb") as file:
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, str(figures_file), *command],
                cwd=folder,
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        output = output_file.read_bytes().decode(errors="replace")
        if done.returncode:
            raise ValueError(f"{' '.join(command)} failed:\n{output[-2000:]}")
        figures = json.loads(figures_file.read_text())
    return Child(
        output=output,
        seconds=figures["seconds"],
        cpu_seconds=figures["cpu"],
        peak_bytes=figures["peak"] * (1 if sys.platform == "darwin" else 1024),
    )


@dataclass
class Training:
    """A run of our train.py that has ended well; its folder is gone."""

    child: Child
    rows: list[Row]  # training rows of its metrics
    evaluations: list[Row]


def train(
    settings: list[str], n_ranks: int = 1, work: str | Path | None = None, **environment: str
) -> Training:
    """Run train.py from scratch, in a temporary folder below `work`, with torchrun for two ranks
    or more. Paths in the settings must be absolute."""
    launcher = []
    if n_ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        command = [sys.executable, *launcher, str(ROOT / "train.py"), *settings]
        command += [f"--out_dir={folder}/run", "--init_from=scratch"]
        child = run_child(command, folder, **environment)
        rows, evaluations = read_metrics(Path(folder, "run", "metrics.jsonl"))
    return Training(child, rows, evaluations)


def absolute(path: str) -> str:
    """A path of something that exists, from the root; what else it may be (a preset's name, a
    mixture) as it is."""
    if Path(path).exists():
        return str(Path(path).resolve())
    return path
