"""Commands to type next, written so that they work from where the user stands: with the Python that
runs now, whether its environment is activated or not, and from any folder."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from lathe import ROOT


def command_line(script: str, *words: str) -> str:
    """`python SCRIPT WORDS`, quoted for a shell. script: as seen from the repository's root."""
    return " ".join([python(), shlex.quote(from_here(ROOT / script)), *map(shlex.quote, words)])


def python() -> str:
    """What to type for this process's Python."""
    return program(Path(sys.executable), "python")


def torchrun() -> str:
    """What to type for this Python's torchrun."""
    installed = Path(sys.executable).parent / "torchrun"
    if not installed.exists():
        return f"{python()} -m torch.distributed.run"
    return program(installed, "torchrun")


def program(path: Path, name: str) -> str:
    """`name` where a shell finds `path` by it, else the path. Of an environment that is not
    activated, it would be another one."""
    known = shutil.which(name)
    if known is not None and Path(known).parent.resolve() == path.parent.resolve():
        return name
    return shlex.quote(from_here(path))


def from_here(path: Path) -> str:
    """A path below the working folder as it is seen from there; any other whole."""
    here = Path.cwd()
    absolute = Path(os.path.abspath(path))  # not resolved: an environment's Python is a link
    if absolute.is_relative_to(here):
        return str(absolute.relative_to(here))
    return str(absolute)
