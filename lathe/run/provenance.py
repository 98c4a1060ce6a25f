"""What repeats a process: its command, machine, versions and commit, in starts.jsonl."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lathe import ROOT
from lathe.run.files import write_atomically


def log_start(
    path: Path,
    step: int,
    device: str,
    processes: int,
    versions: dict[str, str],
    job: str | None = None,
    **figures: Any,
):
    """Append to starts.jsonl what repeats this process, and figures that hold for all of it.

    job: what torchrun's attempts at it have in common. The lines of a run from scratch (step 0)
    replace those that are there.
    """
    launcher = "python"
    if processes > 1:
        launcher = f"torchrun --nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', 1)}"
    row = {
        "step": step,
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": f"{launcher} {shlex.join(sys.argv)}",
        "device": cpu_name() if device == "cpu" else device,
        "processes": processes,
        **({"job": job} if job else {}),
        "commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            **versions,
            "system": platform.platform(terse=True),
        },
        **figures,
    }
    earlier = ""
    if step and path.exists():
        earlier = path.read_text(encoding="utf-8", errors="backslashreplace")
    write_atomically(path, earlier + json.dumps(row) + "\n")


def cpu_name() -> str:
    """The processor's name and how many cores this process may use."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        text = ""
    model = re.search(r"model name\s*: (.+)", text)
    if model is not None:
        name = model[1]
    else:  # nor does every processor say
        name = platform.processor() or platform.machine()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return f"{name.strip()}, {cores} cores"


def git_commit() -> str | None:
    """The commit that this code is, with + after it if files differ from it; None where git cannot
    tell."""
    command = "git describe --always --abbrev=12 --exclude=* --dirty=+".split()
    try:
        process = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None
