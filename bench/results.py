"""One format for all figures of bench/: a table on the screen, the same in bench/RESULTS.md."""

import json
import os
import platform
import re
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

from lathe import ROOT
from lathe.run.provenance import cpu_name, git_commit

RESULTS = ROOT / "bench" / "RESULTS.md"


def record(title: str, header: list[str], rows: list[list], notes: str = "", save: bool = True):
    """Print a table and, with `save`, append it to RESULTS.md with all that repeats it."""
    table = markdown_table(header, rows)
    print(table, flush=True)
    for row in rows:
        write_figure({"figure": title, **dict(zip(header, row, strict=True)), "notes": notes})
    if not save:
        return
    entry = f"\n## {title}\n\n{table}\n\n`{command()}`  \n{circumstances()}"
    if notes:
        entry += f"  \n{notes}"
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(entry + "\n")


def write_figure(figure: dict):
    """Add a line of JSON to the file that LATHE_FIGURES names, if one is named."""
    file_name = os.environ.get("LATHE_FIGURES")
    if file_name:
        with open(file_name, "a", encoding="utf-8") as file:
            file.write(json.dumps(figure) + "\n")


class Figures:
    """Figures that are shown as soon as they are known, and recorded as one table at the end."""

    def __init__(self):
        self.rows: list[list[str]] = []

    def tell(self, what: str, figure: str):
        self.rows.append([what, figure])
        print(f"{what:<52} {figure}", file=sys.stderr, flush=True)

    def record(self, title: str, notes: str = "", save: bool = True):
        record(title, ["what", "figure"], self.rows, notes, save)


def markdown_table(header: list[str], rows: list[list]) -> str:
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("| " + " | ".join(padded) + " |")
    rule = "|".join("-" * (width + 2) for width in widths)
    lines.insert(1, f"|{rule}|")
    return "\n".join(lines)


def command() -> str:
    """This process's command. Where things lie on this machine says nothing: /a/b/c is .../c."""
    words = ["python", "bench/" + Path(sys.argv[0]).name, *sys.argv[1:]]
    return re.sub(r"(^|[ =])/\S*/", r"\1.../", shlex.join(words))


def circumstances() -> str:
    """Date, machine, versions and commit, on one line."""
    import torch

    machine = cpu_name()
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        machine += f", {memory / 2**30:.0f} GiB"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    python = platform.python_version()
    versions = f"Python {python}, torch {version('torch')}, numpy {version('numpy')}"
    commit = git_commit() or "unknown"
    return f"{time.strftime('%Y-%m-%d')}, {machine}, {gpu}; {versions}; commit {commit}"
