"""Run tests under the environments that users have: all are to pass under each.

    python tests/environments.py                                all quick tests under each
    python tests/environments.py --only tqdm bare -- tests/test_cli.py -m ""
    make test-environments                                      the first of these

What stands after -- goes to pytest. One line an environment; after those that fail, what failed.
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lathe import cli

# Variables that a user may have set; None removes one.
ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "c_locale": {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0"},
    "ci": {"CI": "true", "GITHUB_ACTIONS": "true"},
    "colour": {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"},
    "no_colour": {"NO_COLOR": "1", "TERM": "dumb"},
    "narrow": {"COLUMNS": "20", "LINES": "5"},
    "no_home": {"HOME": None, "USERPROFILE": None, "XDG_CACHE_HOME": None},
    "strange_home": {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null/cache"},
    "hugging_face": {
        "HF_HOME": "/dev/null/hf",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "debug",
        "HF_TOKEN": "wrong",
        "TOKENIZERS_PARALLELISM": "true",
    },
    "wandb": {
        "WANDB_MODE": "disabled",
        "WANDB_API_KEY": "0" * 40,
        "WANDB_PROJECT": "other",
        "WANDB_DIR": "/dev/null/wandb",
        "WANDB_RUN_ID": "other",
    },
    "tqdm": {"TQDM_DISABLE": "1", "TQDM_MININTERVAL": "100"},
    "threads": {"OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "7"},
    "python": {
        "PYTHONWARNINGS": "error",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "1",
    },
    "rank": {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RESTART_COUNT": "1",
    },
    "torch": {
        "TORCH_COMPILE_DISABLE": "1",
        "TORCH_LOGS": "+dynamo",
        "PYTORCH_ALLOC_CONF": "max_split_size_mb:64",
        "CUDA_VISIBLE_DEVICES": "",
        "CXX": "/nonexistent/g++",
    },
    "lathe": {"LATHE_TRACEBACK": "1"},
    "time_and_place": {"TZ": "Pacific/Kiritimati", "LC_NUMERIC": "de_DE.UTF-8"},
    "offline": {
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "TIKTOKEN_CACHE_DIR": "/dev/null/tiktoken",
    },
    "bare": {name: None for name in os.environ if name != "PATH"},  # env -i PATH=...
}


@dataclass
class Options:
    only: list[str] = field(default_factory=list)  # names of environments; none = all
    together: bool = False  # set their variables at once, for a first look

    def __post_init__(self):
        for name in self.only:
            if name not in ENVIRONMENTS:
                names = ", ".join(ENVIRONMENTS)
                raise ValueError(f"only is {name}; the environments are {names}")


def run_pytest(
    python: str | Path, words: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess:
    """The suite under another Python or environment; stdout has all that pytest printed."""
    return subprocess.run(
        [str(python), "-m", "pytest", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )


def pytests_words(argv: list[str], default: list[str]) -> tuple[list[str], list[str]]:
    """(our words, those for pytest), which stand after --."""
    if "--" not in argv:
        return argv, default
    cut = argv.index("--")
    return argv[:cut], argv[cut + 1 :]


def run_tests(changes: dict[str, str | None], words: list[str]) -> tuple[bool, str]:
    """Whether pytest passes under the changed variables, and what it printed."""
    environment = {name: os.environ.get(name) for name in os.environ} | changes
    environment = {name: value for name, value in environment.items() if value is not None}
    done = run_pytest(sys.executable, ["--durations=0", *words], environment)
    passed = done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    return passed, done.stdout


def failures(printed: str) -> list[str]:
    """Pytest's lines about what failed; all that it printed where it came to no such line."""
    return re.findall(r"^(?:FAILED|ERROR) .*", printed, re.M) or printed.splitlines()


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    argv, words = pytests_words(argv, default=["-m", "not slow"])
    options = cli.parse(Options, argv, prog="tests/environments.py", description=__doc__)
    chosen = {name: ENVIRONMENTS[name] for name in options.only or ENVIRONMENTS}
    if options.together:
        merged = {}
        for changes in chosen.values():
            merged |= changes
        chosen = {"together": merged}
    failed = []
    for name, changes in chosen.items():
        began = time.monotonic()
        passed, printed = run_tests(changes, words)
        outcome = "passed" if passed else "FAILED"
        print(f"{name:16} {outcome} in {time.monotonic() - began:.0f} s", flush=True)
        if not passed:
            failed.append(name)
            print("\n".join("    " + line for line in failures(printed)), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
