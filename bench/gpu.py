"""Measure on a machine that has a GPU, Python, torch and no network: bench/gpu.sh starts this.

    bash bench/gpu.sh FOLDER                     the most valuable parts that fit in --minutes
    bash bench/gpu.sh FOLDER decode quality      these
    bash bench/gpu.sh FOLDER --rehearse=true     all in small sizes, on a CPU

FOLDER is made by bench/gpu_folder.py. Each figure is a line of JSON on stdout, and in --out, as
soon as it is known; what the parts print beside goes to stderr. A part has its own time limit, and
the call has one, too: what did not fit is named at the end, with the command that goes on.

figures: copies, matrix products, attention, documents, the loss. speed: GPT-2's network of 124M
against nanoGPT's code, and how long the GPU waits. modern: the modern network. tests: pytest -m
gpu. graphs: a small network kernel by kernel and as CUDA graphs. laptop: tiny Shakespeare to the
loss of nanoGPT's setting. decode: tokens per second. quality: steps to a loss, against AdamW at
three rates.
"""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lathe import cli
from lathe.fields import PathName

KILL_SECONDS = 5.0  # from asking a part to end to ending it
MODULES = {"pytest_xdist": "xdist"}  # where a wheel's name is not the module's


@dataclass
class Options:
    """What to measure."""

    folder: list[PathName] = field(default_factory=list)  # then names of parts; none = all
    minutes: float = 9.5  # of the whole call
    out: PathName = ""  # file of the figures; empty = figures.jsonl in the folder
    rehearse: bool = False  # small sizes, which run on a CPU

    def __post_init__(self):
        if not self.folder:
            raise ValueError("name the folder that bench/gpu_folder.py made: bench/gpu.sh FOLDER")
        if not Path(self.folder[0], "folder.json").exists():
            raise ValueError(f"{self.folder[0]} is no folder that bench/gpu_folder.py has made")
        for part in self.folder[1:]:
            if part not in PARTS:
                raise ValueError(f"there is no part {part}; the parts are {', '.join(PARTS)}")
        if self.minutes <= 0:
            raise ValueError(f"minutes is {self.minutes}: it must be more than 0")


# -----------------------------------------------------------------------------
# The parts


@dataclass(frozen=True)
class Part:
    """A command, with {folder} for where the folder lies."""

    words: str  # after python
    small: str  # the same in sizes for a CPU
    seconds: float  # its limit
    least: float  # with less time left it is not begun


TRAIN_SPEED = "bench/train_speed.py {shape} --peer={folder}/peer --waits=true --save=false"
MODERN = "bench/train_speed.py config/modern_124m.toml --dataset={folder}/data/shakespeare_gpt2"
GRAPHS = "bench/train_speed.py shakespeare_char --dataset={folder}/data/shakespeare_char "
GRAPHS += "--against=--cuda_graphs=true --save=false"
TO_LOSS = "bench/time_to_loss.py {preset} --target={target} --peer={folder}/peer --save=false"
# A network of 30M for 450 steps of 65,536 tokens: GPT-2's, and the modern one.
GPT2 = (
    "--n_layer=8 --n_head=8 --n_embd=512 --block_size=512 --batch_size=128 --max_steps=450 "
    "--log_interval=50 --position=learned --norm=layernorm --norm_weight=true "
    "--activation=gelu_tanh --qk_norm=false --bias=true --tie_weights=true --zero_init=false "
    "--optimizer=adamw --lr_schedule=cosine --min_lr_fraction=0.1 --learning_rate=0.002 "
    "--warmup_steps=50 --weight_decay=0.1 --muon_learning_rate=0.02 --eval_tokens=500000"
)
MODERN_ARM = (
    "position=rope norm=rmsnorm norm_weight=false activation=swiglu qk_norm=true bias=false "
    "tie_weights=false zero_init=true n_head=4 optimizer=muon lr_schedule=wsd "
    "min_lr_fraction=0.05 learning_rate=0.008"
)
COMPARE = (
    f"bench/compare.py 'gpt2_124m {GPT2}{{smaller}}' learning_rate=0.001 learning_rate=0.004 "
    f"'{MODERN_ARM}' --dataset={{folder}}/data/python_stdlib --seeds=1"
)
SMALLER = " --n_layer=1 --n_head=2 --n_embd=32 --block_size=32 --batch_size=2 --max_steps=4"
SMALLER += " --warmup_steps=1 --eval_tokens=64 --micro_batch_size=2"
TINY = "--n_layer=1 --n_head=2 --n_embd=32"

PARTS = {
    "figures": Part("bench/gpu_figures.py", "bench/gpu_figures.py --small=true", 200, 60),
    "speed": Part(
        f"{TRAIN_SPEED.replace('{shape}', 'gpt2_124m_64')} --peer_dataset=shakespeare --repeats=2 "
        "--dataset={folder}/data/shakespeare_gpt2",
        f"{TRAIN_SPEED.replace('{shape}', 'gpt2_tiny')} --steps=9 --repeats=1 "
        "--dataset={folder}/data/shakespeare_char",
        300,
        120,
    ),
    "modern": Part(
        f"{MODERN} --waits=true --save=false --repeats=1 --extra='--batch_size=60 "
        "--micro_batch_size=60 --learning_rate=0.004 --muon_learning_rate=0.02 --weight_decay=0.1'",
        f"{MODERN} --waits=true --save=false --repeats=1 --steps=9 --extra='{TINY} --batch_size=2 "
        "--block_size=32 --learning_rate=0.004 --muon_learning_rate=0.02 --weight_decay=0.1'",
        200,
        90,
    ),
    "tests": Part(
        "-m pytest -m gpu -p no:cacheprovider {gpu_tests}",
        "-m pytest -m gpu -p no:cacheprovider {gpu_tests}",
        300,
        120,
    ),
    "graphs": Part(
        f"{GRAPHS} --steps=200 --repeats=2",
        f"{GRAPHS} --steps=9 --repeats=1 --extra='{TINY} --block_size=32 --batch_size=2'",
        150,
        60,
    ),
    "laptop": Part(
        TO_LOSS.replace("{preset}", "shakespeare_char").replace("{target}", "1.4697")
        + " --seeds=2 --dataset={folder}/data/shakespeare_char",
        "bench/time_to_loss.py shakespeare_char --target=9 --seeds=1 --save=false "
        f"--dataset={{folder}}/data/shakespeare_char --extra='{TINY} --max_steps=4 "
        "--eval_interval=4 --eval_tokens=512 --warmup_steps=1 --sample_tokens=0'",
        400,
        120,
    ),
    "decode": Part(
        "bench/decode_speed.py --only gpu --save=false",
        f"bench/decode_speed.py --only context --repeats=1 --tokens=4 --save=false {TINY}",
        200,
        60,
    ),
    "quality": Part(
        COMPARE.replace("{smaller}", ""),
        COMPARE.replace("{smaller}", SMALLER),
        590,
        300,
    ),
}


# -----------------------------------------------------------------------------
# An environment of what the machine has, and of the folder's wheels where it has not


def make_environment(folder: Path) -> Path:
    """A Python that sees this one's packages and, of those in the folder, the missing ones."""
    packages = folder / "packages"
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        name = wheel.name.split("-")[0]
        if importlib.util.find_spec(MODULES.get(name, name)) is None:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(packages)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (here,) = environment.glob("lib/python*/site-packages")
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    folders.append(str(packages))
    lines = [f"import site; site.addsitedir({path!r})" for path in folders]
    (here / "machine.pth").write_text("\n".join(lines) + "\n")
    return environment / "bin" / "python"


# -----------------------------------------------------------------------------
# The call


def main(argv: list[str] | None = None) -> int:
    began = time.monotonic()
    options = cli.parse(
        Options, argv, prog="bench/gpu.py", description=__doc__, positional="folder"
    )
    folder = Path(options.folder[0]).resolve()
    out = Path(options.out or folder / "figures.jsonl").resolve()
    python = make_environment(folder)
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder / "tiktoken")
    os.environ["LATHE_FIGURES"] = str(out)
    out.touch()
    shown = len(out.read_text(encoding="utf-8"))  # figures of earlier calls
    failed = []
    left = []
    for name in options.folder[1:] or PARTS:
        part = PARTS[name]
        remaining = 60 * options.minutes - (time.monotonic() - began)
        if remaining < part.least and not options.rehearse:
            left.append(name)
            continue
        words = part.small if options.rehearse else part.words
        words = words.replace("{folder}", str(folder)).replace("{gpu_tests}", gpu_tests())
        command = [str(python), *shlex.split(words)]
        outcome = run_part(name, command, min(part.seconds, remaining))
        add_figure(out, {"figure": "part", "part": name, **outcome})
        if outcome["outcome"] != "done":
            failed.append(name)
        text = out.read_text(encoding="utf-8")
        print(text[shown:], end="", flush=True)
        shown = len(text)
    if left:
        print(
            f"no time for: bash bench/gpu.sh {options.folder[0]} {' '.join(left)}", file=sys.stderr
        )
    return 1 if failed else 0


def run_part(name: str, command: list[str], seconds: float) -> dict:
    """How a part ended: done, failed or out of time; and what pytest counted."""
    print(f"--- {name}", file=sys.stderr, flush=True)
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # so that its children end with it
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, seconds))
        outcome = "failed" if process.returncode else "done"
    except subprocess.TimeoutExpired:
        output = end(process)
        outcome = f"stopped after {seconds:.0f} s"
    print(output, file=sys.stderr, flush=True)
    about = {"outcome": outcome, "seconds": round(time.monotonic() - began, 1)}
    if "pytest" in command:
        about["tests"] = re.findall(r"^.*\d+ (?:passed|failed|skipped).*$", output, re.M)[-1:]
        about["failed"] = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
    return about


def end(process: subprocess.Popen) -> str:
    """End a part and all that it started; what it had printed."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.communicate(timeout=KILL_SECONDS)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def gpu_tests() -> str:
    """The test files that have tests for a GPU: others may import what this machine lacks."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [file for file in files if "pytest.mark.gpu" in file.read_text(encoding="utf-8")]
    return " ".join(str(file.relative_to(ROOT)) for file in marked)


def add_figure(out: Path, figure: dict):
    with open(out, "a", encoding="utf-8") as file:
        file.write(json.dumps(figure) + "\n")


if __name__ == "__main__":
    cli.run(main)
