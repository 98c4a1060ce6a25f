"""Build an environment with what requirements files name, and say what is done meanwhile.

    python3 scripts/install.py .venv requirements.txt [requirements-dev.txt ...]

`make install` runs it. torch comes as the build for CPUs where Linux has no GPU and its index can
be had: the usual index brings CUDA's libraries there, gigabytes that nothing would use. uv, where
there is one, installs the same requirements faster than pip.
"""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS_TO_ANSWER = 5.0
# Any of these is there where a GPU's driver is: NVIDIA's, AMD's, Windows' below WSL.
GPU_FILES = ("/dev/nvidia*", "/proc/driver/nvidia/version", "/dev/kfd", "/dev/dxg")
# What all of it comes to, as fetched: torch 2.13 for CPUs is 0.19 GB, with CUDA 2.8, the rest 0.2.
FETCHED = {"cpu": "about 0.4 GB", "plain": "about 0.4 GB", "cuda": "about 3 GB"}


def main() -> None:
    folder, *requirements = sys.argv[1:]
    if sys.version_info < (3, 11):  # noqa: UP036 - said in place of a SyntaxError
        version = platform.python_version()
        sys.exit(
            f"lathe needs Python 3.11 or newer, {sys.executable} is {version}: "
            "make PYTHON=python3.11 install"
        )
    began = time.monotonic()
    pin = torch_pin(requirements)
    wants_cpu = sys.platform == "linux" and not has_gpu()
    cpu_wheel = Probe(pin) if wants_cpu else None  # asks while the environment is made
    version = platform.python_version()
    say(f"what {' and '.join(requirements)} need, for Python {version}, into {folder}")
    python = make_environment(folder)
    install = Installer(python)
    if is_installed(python, pin):
        say(f"{pin} is there; the rest is 0.2 GB to fetch at most")
    elif cpu_wheel is None:
        kind = "plain" if sys.platform != "linux" else "cuda"
        why = "for the GPU that is here" if kind == "cuda" else "of this system"
        say(f"torch {why}: {FETCHED[kind]} to fetch in all")
    elif cpu_wheel.is_there():
        say(f"torch for CPUs, since no GPU is here: {FETCHED['cpu']} to fetch in all")
        install.run("--index-url", CPU_INDEX, "--no-deps", pin)
    else:
        say(
            f"no GPU is here, but {CPU_INDEX} does not answer with {pin}: torch comes from the "
            f"usual index, {FETCHED['cuda']} to fetch in all if that has CUDA's build"
        )
    words = []
    for name in requirements:
        words += ["-r", name]
    install.run(*words)
    seconds = time.monotonic() - began
    say(f"installed in {seconds:.0f} s; make run trains a first model, or {python} train.py")


def say(line: str) -> None:
    print(f"install: {line}", flush=True)


def torch_pin(requirements: list[str]) -> str:
    """torch==2.13.0, as a requirements file has it."""
    for name in requirements:
        with open(name, encoding="utf-8") as file:
            found = re.search(r"^torch==[\w.]+", file.read(), re.MULTILINE)
        if found:
            return found[0]
    sys.exit(f"install: no line torch==VERSION in {', '.join(requirements)}")


def has_gpu() -> bool:
    return any(glob.glob(pattern) for pattern in GPU_FILES) or bool(shutil.which("nvidia-smi"))


class Probe:
    """Whether the index of torch's builds for CPUs answers in time and has this one."""

    def __init__(self, pin: str):
        self.wheel = "torch-" + pin.partition("==")[2]
        self.found = False
        self.began = time.monotonic()
        self.thread = threading.Thread(target=self._ask, daemon=True)  # a resolver may hang
        self.thread.start()

    def _ask(self) -> None:
        try:
            with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=SECONDS_TO_ANSWER) as page:
                names = page.read(10_000_000).decode(errors="replace")
        except (OSError, ValueError):
            return
        tag = f"cp{sys.version_info[0]}{sys.version_info[1]}-cp"
        wheels = re.findall(re.escape(self.wheel) + r"(?:%2B|\+)cpu-" + tag + r"[^\"'<#]*", names)
        self.found = any(platform.machine() in wheel for wheel in wheels)

    def is_there(self) -> bool:
        left = self.began + SECONDS_TO_ANSWER - time.monotonic()
        self.thread.join(max(0.0, left))
        return self.found


def make_environment(folder: str) -> str:
    """The environment's Python."""
    python = os.path.join(folder, "Scripts" if os.name == "nt" else "bin", "python")
    if not os.path.exists(python):
        say(f"making {folder}")
        if subprocess.call([sys.executable, "-m", "venv", folder]):
            sys.exit(
                "install: Python's venv failed, see above; on Debian: apt install python3-venv"
            )
    return python


def is_installed(python: str, pin: str) -> bool:
    """Whether this torch is there, whichever build of it."""
    name, _, version = pin.partition("==")
    asked = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip().partition("+")[0] == version


class Installer:
    """uv, or pip where there is none, or where uv fails: it does not know pip's configuration."""

    def __init__(self, python: str):
        self.python = python
        self.uv = shutil.which("uv")

    def run(self, *words: str) -> None:
        if self.uv:
            say(f"uv pip install {' '.join(words)}")
            if not subprocess.call([self.uv, "pip", "install", "--python", self.python, *words]):
                return
            say("uv could not, pip tries")
            self.uv = None
        say(f"pip install {' '.join(words)}")
        if subprocess.call([self.python, "-m", "pip", "install", *words]):
            sys.exit("install: pip could not install it, see above")


if __name__ == "__main__":
    main()
