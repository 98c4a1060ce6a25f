"""Run the suite under every torch and Python that requirements.txt claims, and at its lower bounds.

    python tests/versions.py                              each below, an hour on two cores
    python tests/versions.py --only torch2.11 -- -m "not slow" tests/run
    make test-versions                                    the first of these

Each combination has an environment of its own in .versions/, made when it is first asked for (a
CUDA build of torch takes 5 GB; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu is smaller).
What stands after -- goes to pytest. One line a combination; after those that fail, what failed.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from environments import failures, pytests_words, run_pytest

from lathe import cli

FOLDER = ROOT / ".versions"
REQUIREMENTS = ["requirements.txt", "requirements-dev.txt"]


@dataclass(frozen=True)
class Versions:
    """What an environment has: of other packages the newest, or the oldest that are claimed."""

    python: str
    torch: str
    oldest: bool = False


# requirements.txt says which torch are claimed: this file holds one release of each.
COMBINATIONS = {
    "torch2.11": Versions("3.11", "2.11.0"),
    "torch2.11_python3.12": Versions("3.12", "2.11.0"),  # the usual machine with a GPU
    "torch2.12": Versions("3.12", "2.12.1"),
    "torch2.13": Versions("3.11", "2.13.0"),
    "torch2.13_python3.12": Versions("3.12", "2.13.0"),
    "oldest": Versions("3.11", "2.11.0", oldest=True),
}


@dataclass
class Options:
    only: list[str] = field(default_factory=list)  # names of combinations; none = all
    remake: bool = False  # make the environments anew, for newer releases of other packages

    def __post_init__(self):
        for name in self.only:
            if name not in COMBINATIONS:
                names = ", ".join(COMBINATIONS)
                raise ValueError(f"only is {name}; the combinations are {names}")


def requirement_lines(versions: Versions) -> list[str]:
    """Our requirements with this torch, and with lower bounds as pins where those are wanted."""
    lines = []
    for file in REQUIREMENTS:
        for line in (ROOT / file).read_text().splitlines():
            line = line.split("#")[0].strip()
            if line.startswith("torch=="):
                line = f"torch=={versions.torch}"
            elif versions.oldest:
                line = line.replace(">=", "==")
            if line:
                lines.append(line)
    return lines


def make_environment(name: str, versions: Versions) -> Path:
    """Its Python. Raises ValueError where that cannot be had, or a package cannot be installed."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if complete.exists():
        return python
    base = shutil.which(f"python{versions.python}")
    if base is None:
        raise ValueError(f"there is no python{versions.python} on this machine")
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
    lines = requirement_lines(versions)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *lines], capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"pip install failed:\n{done.stderr.strip()[-1500:]}")
    complete.write_text("\n".join(lines) + "\n")
    return python


def run_suite(python: Path, words: list[str]) -> tuple[bool, str]:
    """Whether the suite passes, and what pytest printed."""
    environment = {**os.environ, "VIRTUAL_ENV": str(python.parent.parent)}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    done = run_pytest(python, ["-n", "auto", "--dist", "loadfile", *words], environment)
    return done.returncode == 0, done.stdout


def summary(printed: str) -> str:
    """Pytest's last line, such as 1520 passed, 54 skipped in 400.00s."""
    lines = re.findall(r"^.*\d+ (?:passed|failed|errors?|skipped).*$", printed, re.M)
    return lines[-1].strip("= ") if lines else "no test ran"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    argv, words = pytests_words(argv, default=[])
    options = cli.parse(Options, argv, prog="tests/versions.py", description=__doc__)
    if options.remake:
        shutil.rmtree(FOLDER, ignore_errors=True)
    failed = []
    for name in options.only or COMBINATIONS:
        began = time.monotonic()
        try:
            python = make_environment(name, COMBINATIONS[name])
        except ValueError as error:
            passed, printed, outcome = False, str(error), "no environment"
        else:
            passed, printed = run_suite(python, words)
            outcome = summary(printed)
        verdict = "passed" if passed else "FAILED"
        print(f"{name:22} {verdict} in {time.monotonic() - began:.0f} s: {outcome}", flush=True)
        if not passed:
            failed.append(name)
            print("\n".join("    " + line for line in failures(printed)), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
