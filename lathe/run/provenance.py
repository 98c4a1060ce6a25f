"""What repeats a process: its command, machine, versions and commit."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from lathe import ROOT


def log_start(path, step, device, processes, versions, **more):
    """Append to starts.jsonl what repeats this process: its step, command, machine, versions and commit.

    The lines of a run from scratch (step 0) replace those that are there."""
    launcher = f"torchrun --nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', 1)}" if processes > 1 else "python"
    row = {
        "step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": f"{launcher} {shlex.join(sys.argv)}", "device": device if device != "cpu" else cpu_name(),
        "processes": processes, "commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions, "system": platform.platform(terse=True)}, **more,
    }  # fmt: skip
    with open(path, "a" if step else "w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(row) + "\n")


def cpu_name():
    """The processor's name and how many cores this process may use."""
    try:
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not Linux, or a processor that does not say
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name.strip()}, {cores} cores"


def git_commit():
    """The commit that this code is, with + behind it if files differ from it; None where git cannot tell."""
    command = "git describe --always --abbrev=12 --exclude=* --dirty=+".split()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
