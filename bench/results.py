"""One format for everything that bench/ measures: a table on the screen, and the same in bench/RESULTS.md."""

import os
import platform
import re
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

from lathe.run.provenance import cpu_name, git_commit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "RESULTS.md"


def machine() -> str:
    """This machine in words: processor, cores, memory, GPU if there is one."""
    words = cpu_name()
    if hasattr(os, "sysconf"):
        words += f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    import torch

    return words + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU")


def record(title: str, header: list[str], rows: list[list], notes: str = "", save: bool = True):
    """Print a table and, with `save`, append it to bench/RESULTS.md with all that is needed to repeat it."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print("\n".join(lines), flush=True)
    if not save:
        return
    command = shlex.join(["python", "bench/" + Path(sys.argv[0]).name, *sys.argv[1:]])
    command = re.sub(r"(^|[ =])/\S*/", r"\1.../", command)  # where things lie on this machine says nothing
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "numpy"))
    about = f"{time.strftime('%Y-%m-%d')}, {machine()}; Python {platform.python_version()}, {versions}"
    about += f"; commit {git_commit() or 'unknown'}"
    text = [f"\n## {title}\n", *lines, f"\n`{command}`  \n{about}"]
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write("\n".join(text) + (f"  \n{notes}" if notes else "") + "\n")


TOLD: list[list] = []  # [what, figure], in order


def tell(what: str, figure: str):
    """Show a figure as soon as it is known, and keep it for record_told."""
    TOLD.append([what, figure])
    print(f"{what:<52} {figure}", file=sys.stderr, flush=True)


def record_told(title: str, notes: str = "", save: bool = True):
    """record() what was told since the last time."""
    record(title, ["what", "figure"], TOLD, notes, save)
    TOLD.clear()
