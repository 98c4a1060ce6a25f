"""Which tests may be skipped where; under .ci/run any other skip is a failure.

A skip that nobody expects hides what is no longer tested: a browser that went missing, a package.
"""

import os
import re
import sys

from lathe import ROOT

HAS_SHARED = (ROOT.parent / "shared" / "data").is_dir()  # data that is not in the repository
IS_LINUX = sys.platform == "linux"

# (reason, as a regular expression; whether it is expected on this machine)
EXPECTED = [
    ("no CUDA device", True),
    ("this build of torch has a CUDA of its own", True),
    ("LD_PRELOAD|no C compiler for calls that fail", not IS_LINUX),
    ("no C\\+\\+ compiler for the imaginary CUDA device", not IS_LINUX),
    (
        "tiktoken's gpt2 files|GPT-2's (encoding|vocabulary)|gpt2 vocabulary|tokenizer gpt2",
        not HAS_SHARED,
    ),
    ("tiny Shakespeare is not at", not HAS_SHARED),
    ("no golden losses for torch", True),  # of a torch that is not the pinned one
    ("triton is not in .triton|what is lowered was counted", True),  # has a CI job of its own
    ("no Chromium here", not IS_LINUX),
    ("lm_eval is not installed", not IS_LINUX),
    ("/proc|glibc|ps --ppid|mounting a small tmpfs", not IS_LINUX),
    # documented commands, see test_docs.py
    ("sets up this run|needs the network|needs GPUs|needs several machines", True),
    ("asks at a terminal|needs an account", True),
]
EXPECTED_REASONS = [reason for reason, expected in EXPECTED if expected]


def unexpected(skips: list[tuple[str, str]]) -> list[str]:
    """Lines about the skips, (test, reason), that no entry above expects here."""
    return [
        f"{test}: {reason}"
        for test, reason in skips
        if not any(re.search(expected, reason) for expected in EXPECTED_REASONS)
    ]


def in_ci() -> bool:
    """Whether .ci/run started this: a user may have CI set, and not what .ci/run installs."""
    return os.environ.get("LATHE_CI") == "true"
