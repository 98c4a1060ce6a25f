"""Rules of a stranger's tokenizer, tried in a process of their own before this one uses them.

A pattern may backtrack for ever, a replacement fill the memory, and the libraries that run them can
be interrupted by nobody: some faults end the process without asking. So what is not known to be
harmless cuts some nasty texts in a process that may take a second and some memory, no more.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lathe import ROOT
from lathe.terminal import print_result
from lathe.text.patterns import SAME_IN_TIKTOKEN

SECONDS = 1.0  # of processor time, for all texts together
PATIENCE = 60.0  # seconds of the clock: a busy machine is slow, not wrong
MEMORY = 400_000_000  # bytes more than the libraries take
LARGEST_GROWTH = 64  # how many times as long a text may become without a trial
KNOWN = {*SAME_IN_TIKTOKEN, *SAME_IN_TIKTOKEN.values()}


def needs_trial(steps: list[dict]) -> bool:
    """Whether steps of a tokenizer.json could take for ever, or all memory."""
    growth = 1
    for step in steps:
        pattern = step.get("pattern")
        if isinstance(pattern, dict) and pattern.get("Regex", "") not in ("", *KNOWN):
            return True
        for what in ("content", "prepend"):
            growth *= max(1, len(step.get(what) or ""))
    return growth > LARGEST_GROWTH


def try_rules(
    library: Literal["tiktoken", "tokenizers"], rules: str | dict, texts: list[str], path: Path
):
    """ValueError, which names the file, unless these rules cut all texts soon.

    rules: tiktoken's pattern, or the parts of a tokenizer.json that come before its model.
    """
    done = run_apart("trial", {"library": library, "rules": rules, "texts": texts})
    if done is not None and done.returncode == 0:
        return
    reason = f"they take more than {SECONDS:.0f} second or {MEMORY / 1e6:.0f} MB for some texts"
    if done is not None and done.stdout:
        reason = json.loads(done.stdout)["fault"]
    raise ValueError(f"{path}: its rules cannot be used to cut text: {reason}")


def run_apart(name: str, job: dict) -> subprocess.CompletedProcess | None:
    """What became of main() of the module `name` of this folder in a process of its own, which
    bounds itself and gets the job as JSON on stdin; None if it took too long all the same."""
    command = [sys.executable, "-c", f"from lathe.text import {name}; {name}.main()"]
    stdin = json.dumps(job).encode()
    try:
        return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return None


# -----------------------------------------------------------------------------
# In the other process


def main():
    """Cut the texts that stdin names. Exit code 0, or 1 with the reason on stdout, or a signal."""
    job = json.load(sys.stdin)
    open_rules = {"tiktoken": open_tiktoken, "tokenizers": open_tokenizers}[job["library"]]
    try:
        # What the libraries take by themselves, which is theirs alone
        open_rules({} if job["library"] == "tokenizers" else ".|\n")("a")
        bound()
        cut = open_rules(job["rules"])
        for text in job["texts"]:
            cut(text)
    except BaseException as error:  # a panic of Rust's is no Exception
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print_result(json.dumps({"fault": lines[0][:200]}))
        sys.exit(1)


def bound():
    """From here on, a signal ends this process after SECONDS, and memory ends soon."""
    try:
        import resource
        import signal
    except ImportError:  # Windows, where PATIENCE is all there is
        return
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        held = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))


def open_tiktoken(pattern: str) -> Callable[[str], None]:
    import tiktoken

    all_bytes = {bytes([i]): i for i in range(256)}
    encoding = tiktoken.Encoding(
        "trial", pat_str=pattern, mergeable_ranks=all_bytes, special_tokens={}
    )

    def cut(text: str):
        if bytes(encoding.encode(text, disallowed_special=())) != text.encode():
            raise ValueError(f"the pattern {pattern[:60]!r} leaves text out, such as {text[:20]!r}")

    return cut


def open_tokenizers(rules: dict) -> Callable[[str], None]:
    from tokenizers import Tokenizer

    model = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}
    whole = {"added_tokens": [], **rules, "model": model}
    library = Tokenizer.from_str(json.dumps(whole))
    return lambda text: library.encode(text, add_special_tokens=False)
