"""Every command in the README and in docs/ runs, on a model small enough to run it; every line they quote exists."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny_run import SMALL

from lathe import ROOT
from lathe.data.shards import write_dataset
from lathe.text.tokenizer import train_char

README = ROOT / "README.md"
DOCS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Commands that are not run here, and why.
SKIPPED = {
    r"\bmake\b|\bpip install\b|\buv\b|\bgit clone\b|\bcd\b|activate|\bpytest\b|\bruff\b|apt-get": "sets up this run",
    r"\bsbatch\b|\bsrun\b|--nnodes|slurm": "needs several machines",
    r"--nproc[-_]per[-_]node=(gpu|[3-9])|--device=cuda|CUDA_VISIBLE": "needs GPUs",
    r"\btorchrun\b": "tests/test_distributed.py starts torchrun",
    r"hf:(?!\.?/)": "needs the network",
    r"prepare/(fineweb_edu|openwebtext|tinystories|wikitext|shakespeare_char)": "needs the network",
    r"^lm_eval ": "needs the network; tests/use/test_tasks.py has it without one, where lm_eval is installed",
    r"--wandb_log": "needs an account; tests/run/test_mirrors.py has it without one",
    r"\bbench/(?!pictures)": "measures for minutes",
    r"--interactive": "asks at a terminal; tests/commands/test_sample.py answers",
    r"\b(vllm|llama|docker|transformers-cli|open|xdg-open)\b": "is another project's command",
}


def commands(path: Path) -> list[str]:
    """Commands of the fenced sh blocks: continued lines joined, comments and prompts dropped."""
    found = []
    for block in re.findall(
        r"^```(?:sh|bash|console)\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M
    ):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = re.sub(r"\s+# .*| *&$", "", line.strip().removeprefix("$ "))
            if line and not line.startswith("#"):
                found.append(line)
    return found


# Those of the README run in order, below.
PAGES = [path for path in DOCS if path != README]
COMMANDS = list(dict.fromkeys((path, command) for path in PAGES for command in commands(path)))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    with checkout(folder):
        yield folder


@contextlib.contextmanager
def checkout(folder: Path):
    """A folder like a checkout after `make run`, only that the model is tiny."""
    for name in [
        *(p.name for p in ROOT.glob("*.py")),
        "prepare",
        "pages",
        "config",
        "docs",
        "bench",
        "tests",
        "README.md",
    ]:
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    (folder / "data").mkdir()
    # No control characters: an untrained model writes whatever it can, and the tests look for those.
    text = [f"def f{i}(x):\n    return x * {i}  # {i * i}\n" * 20 for i in range(40)]
    characters = train_char(
        [string.printable[:95] + "\n\u00e4\u00f6\u00fc\u00e9\u2014\u2019", *text]
    )
    write_dataset(folder / "data" / "python_stdlib", characters, text[:36], text[36:])
    with contextlib.chdir(folder):
        run(small("python train.py --out_dir=out/quickstart"))
        yield


def small(command: str) -> str:
    """A training command with settings that make it a matter of a second; where it reads and writes stays its own."""
    settings = {
        **SMALL,
        "block_size": 64,
        "max_steps": 2,
        "eval_tokens": 64,
        "sample_tokens": 4,
        "overwrite": "true",
    }
    settings |= {name: value for name, value in {"dataset": "data/python_stdlib", "init_from": "scratch"}.items()
                 if f"--{name}=" not in command}  # fmt: skip
    if "--minutes" in command and "--dry_run" in command:
        settings.pop("max_steps")
    else:  # two steps are as good as minutes
        command = re.sub(r" --minutes=\S+", "", command)
    return " ".join([command, *(f"--{name}={value}" for name, value in settings.items())])


def run(command: str):
    """Run a command in the current folder: by its main() if it is one Python script, which saves seconds."""
    words = shlex.split(command)
    script = Path(words[1]) if words[0] == "python" else None
    if script and script.suffix == ".py" and not set("|<>;&$") & set(command):
        name = ".".join(script.with_suffix("").parts)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                code = importlib.import_module(name).main(words[2:])
            except SystemExit as stop:
                code = stop.code
        said = out.getvalue()
        assert not code, said
    else:
        environment = {
            **os.environ,
            "PATH": f"{Path('bin').resolve()}{os.pathsep}{os.environ['PATH']}",
        }
        done = subprocess.run(
            command, shell=True, env=environment, capture_output=True, encoding="utf-8"
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
    if "sample.py" not in command:  # an untrained model writes any byte, and that is what is shown
        assert "\r" not in said and "\x1b" not in said, "no bar and no colour in a pipe"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the commands are written for a Unix shell")
@pytest.mark.parametrize("path, command", COMMANDS, ids=[f"{p.name}: {c}" for p, c in COMMANDS])
def test_a_documented_command_runs(path, command, workplace):
    for pattern, reason in SKIPPED.items():
        if re.search(pattern, command):
            pytest.skip(reason)
    if "train.py" in command:
        command = small(command)
    # Pages begin anew: what another one has exported is gone.
    for folder in re.findall(r"--to[= ](\S+)", command):
        if "--overwrite" not in command:
            shutil.rmtree(folder, ignore_errors=True)
    # What earlier lines of a text have made is there, be it only a copy.
    written = set(re.findall(r"--(?:out|to)[= ](\S+)", command))
    written |= (
        set(re.findall(r"--out_dir=(\S+)", command))
        if "train.py" in command and "resume" not in command
        else set()
    )
    for name in set(re.findall(r"\b(?:out|data)/[\w-]+", command)) - written:
        if not Path(name).exists():
            shutil.copytree(
                "out/quickstart" if name.startswith("out") else "data/python_stdlib", name
            )
    run(command)


# What the README's order needs beside its blocks: nothing is downloaded, a GPU is not asked for.
OFFLINE = {pattern: reason for pattern, reason in SKIPPED.items() if "shakespeare" not in pattern}
OFFLINE[r"prepare/(fineweb_edu|openwebtext|tinystories|wikitext)"] = "needs the network"
del OFFLINE["--interactive"]


def shortened(command: str) -> str:
    """A training command of few steps of a tiny network; what its line says of folders, and of
    where it begins, stays. A run that goes on keeps its network."""
    if "--help" in command or "--dry_run" in command:
        return command
    command = re.sub(r" --minutes=\S+", "", command)
    sizes = {**SMALL, "block_size": 64, "eval_tokens": 64, "sample_tokens": 4}
    if "--init_from=resume" in command:
        steps = {"max_steps": 4}
    elif "--init_from=" in command:  # another model's network
        shape = ("block_size", "n_layer", "n_head", "n_embd")
        steps = {name: value for name, value in sizes.items() if name not in shape} | {
            "max_steps": 2
        }
    else:
        steps = sizes | {"max_steps": 2}
    return " ".join([command, *(f"--{name}={value}" for name, value in steps.items())])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the commands are written for a Unix shell")
def test_the_readmes_blocks_run_in_order_in_one_checkout(tmp_path):
    """No --overwrite and no copies: what a line needs, the lines before it have made."""
    with checkout(tmp_path):
        Path("data/shakespeare_char").mkdir()
        play = "".join(f"ROMEO:\nBut soft, what light {i} breaks?\n\n" for i in range(400))
        Path("data/shakespeare_char/input.txt").write_text(play)  # where it is, it is not fetched
        for command in commands(README):
            if any(re.search(pattern, command) for pattern in OFFLINE):
                continue
            if "--verify" in command and importlib.util.find_spec("transformers") is None:
                command = command.replace(" --verify=true", "")
            if "train.py" in command:
                command = shortened(command)
            if "--interactive" in command:
                command = f"printf 'hello\\nexit\\n' | {command} --max_new_tokens=8"
            run(command)
        made = ("data/notes", "out/notes_more", "out/three_layers", "out/exported", "out/capitals")
        for name in (*made, "out/quickstart/model.html", "data/capitals"):
            assert Path(name).exists(), name


@pytest.mark.slow
def test_the_pictures_of_a_run_are_small_drawings(workplace, tmp_path):
    run(f"python bench/pictures.py out/quickstart --out={tmp_path}")
    for name in ("curves", "heads"):
        path = tmp_path / f"{name}.svg"
        assert path.stat().st_size < 100_000
        assert len(list(ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}path"))) >= 4


QUOTED = [
    (path, line, source)
    for path in DOCS
    for line, source in re.findall(
        r"`([^`\n]+)` in `([\w/]+\.py)`", path.read_text(encoding="utf-8")
    )
]


@pytest.mark.parametrize("path, line, source", QUOTED, ids=[f"{s}: {q}" for _, q, s in QUOTED])
def test_a_quoted_line_stands_in_its_file(path, line, source):
    assert line in (ROOT / source).read_text(encoding="utf-8"), (
        f"{path.name} quotes a line that {source} does not have"
    )


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_within_the_repository_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if not re.match(r"\w+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_tests_that_docs_faults_names_exist():
    names = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    defined = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE))
    assert len(names) > 30
    assert names <= defined, names - defined
