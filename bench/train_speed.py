"""Training speed: tokens per second, milliseconds per step, peak memory and MFU of the real training command.

    python bench/train_speed.py config/shakespeare_char_cpu.toml
    python bench/train_speed.py gpt2_tiny --peer=PATH_TO_NANOGPT     (alternately with nanoGPT's own train.py)
    python bench/train_speed.py gpt2_124m_64 --waits=true            (how long the device waits for the host)

A run is a child process without evaluation; the figure of a run is the median over its rows of metrics, which leave out
evaluations and saves, the first third dropped as warm-up. The figure of an arm is the median over its runs. Memory is
the process's on a CPU and the device's on a GPU. With --waits one more run is profiled: the share of its last third in
which no kernel and no copy ran on the GPU or, on a CPU, none of torch's operations.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.results import ROOT, record
from lathe import cli

GPT2 = "--position=learned --norm=layernorm --norm_weight=true --activation=gelu --qk_norm=false --bias=false"
GPT2 += " --tie_weights=true --zero_init=false --optimizer=adamw --learning_rate=1e-3 --weight_decay=0.1"
# Shapes that nanoGPT has too, under its names: layers, heads, width, block, sequences per step.
SHAPES = {
    "gpt2_tiny": (4, 4, 128, 64, 12),  # nanoGPT's CPU setting, 0.8M parameters
    "gpt2_small": (6, 6, 384, 256, 16),  # its GPU setting for characters, 10M
    "gpt2_124m": (12, 12, 768, 256, 4),
    "gpt2_124m_1024": (12, 12, 768, 1024, 4),
    "gpt2_124m_64": (12, 12, 768, 1024, 64),  # for a large GPU
}
# `python -c` with this and a script's path and settings runs it, and says what it held of the GPU at most.
WITH_PEAK = """
import os, runpy, sys, torch
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
print("peak", torch.cuda.max_memory_allocated())
"""
# The same for ours and a file, to which a trace of the last third of `steps` steps goes.
WITH_TRACE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import train
kind = torch.profiler.ProfilerActivity
profiler = torch.profiler.profile(activities=[kind.CUDA if torch.cuda.is_available() else kind.CPU])
steps, lr_factor = int(sys.argv[3]), train.lr_factor
def stepping(step, *schedule):  # at the beginning of each step
    if step == 2 * steps // 3:
        profiler.start()
    elif step == steps - 1:
        profiler.stop()
    return lr_factor(step, *schedule)
train.lr_factor = stepping
train.main(sys.argv[4:])
profiler.export_chrome_trace(sys.argv[2])
"""


@dataclass
class Options:
    """What to time."""

    run: list[str] = field(default_factory=list)  # a preset, or a shape: gpt2_tiny, gpt2_small, gpt2_124m(_1024, _64)
    peer: str = ""  # folder of nanoGPT, with data/shakespeare_char prepared; its loop is timed alternately
    peer_dataset: str = "shakespeare_char"  # folder in its data/; one without meta.pkl has GPT-2's vocabulary
    peer_compile: Literal["auto", "true", "false"] = "auto"  # let nanoGPT compile; auto: on a GPU, as it does by itself
    extra: str = ""  # further settings for our side, such as "--dtype=bfloat16 --compile=true"
    dataset: str = "data/shakespeare_char"  # what our side reads
    steps: int = 60  # optimizer steps a run
    repeats: int = 3  # runs of each arm
    waits: bool = False  # one more run of ours, profiled: how much of a step the device waits
    save: bool = True  # append the table to bench/RESULTS.md


def run_child(command: list[str], folder: Path, **environment: str) -> tuple[str, int, float]:
    """Run a command; returns its output, its peak memory in bytes and its seconds. Raises ValueError if it fails."""
    with open(folder / "output.txt", "w+b") as output:
        environment, began = {**os.environ, **environment}, time.perf_counter()
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status:
        raise ValueError(f"{' '.join(command)} failed:\n{text[-2000:]}")
    return text, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), seconds


def run_nanogpt(peer: str, settings: list[str], *before: str) -> tuple[str, int, float]:
    """run_child of nanoGPT's train.py and its preset for tiny Shakespeare. before: further arguments of Python's."""
    home = Path(peer).resolve()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "configurator.py"):  # which it looks for where it is started
            os.symlink(home / name, f"{folder}/{name}")
        files = [str(home / "train.py"), str(home / "config" / "train_shakespeare_char.py")]
        return run_child([sys.executable, *before, *files, *settings, f"--out_dir={folder}/out"], Path(folder))


def short_run(settings: list[str], steps: int, dataset: str, folder: str) -> list[str]:
    """Arguments of our train.py for so many steps and hardly anything else."""
    quiet = f"--max_steps={steps} --eval_interval={10 * steps} --log_interval=5 --sample_tokens=0 --eval_tokens=1"
    where = [f"--dataset={Path(dataset).resolve()}", f"--out_dir={folder}/run", "--init_from=scratch"]
    return [*settings, *quiet.split(), *where]


def ours(settings: list[str], steps: int, dataset: str) -> tuple[float, float, int, float]:
    """(tokens per second, ms per step, peak bytes, MFU or 0) of our train.py."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *short_run(settings, steps, dataset, folder)]
        _, memory, _ = run_child(command, Path(folder))
        rows = [json.loads(line) for line in open(f"{folder}/run/metrics.jsonl")]
    rows = [r for r in rows if "loss" in r and r["step"] > steps / 3]
    speed = statistics.median(r["tokens_per_second"] for r in rows)
    memory = rows[-1]["memory"] if torch.cuda.is_available() else memory
    return speed, rows[-1]["tokens"] / rows[-1]["step"] / speed * 1000, memory, rows[-1].get("mfu", 0)


def nanogpt(peer: str, shape: tuple, steps: int, dataset: str, compile: bool) -> tuple[float, float, int, float]:
    """The same of nanoGPT's train.py, from the milliseconds that it prints for each step; its MFU is left out, since it
    counts otherwise."""
    layers, heads, width, block, batch = shape
    on_gpu = torch.cuda.is_available()
    settings = f"--dataset={dataset} --device={'cuda' if on_gpu else 'cpu'} --compile={compile} --log_interval=1"
    settings += f" --eval_iters=1 --eval_interval={10 * steps} --max_iters={steps} --gradient_accumulation_steps=1"
    settings += f" --block_size={block} --batch_size={batch} --n_layer={layers} --n_head={heads} --n_embd={width}"
    text, memory, _ = run_nanogpt(peer, [*settings.split(), "--dropout=0.0"], "-c", WITH_PEAK)
    times = [float(m) for m in re.findall(r"time ([\d.]+)ms", text)][steps // 3 :]
    ms = statistics.median(times)
    memory = int(re.findall(r"peak (\d+)", text)[-1]) if on_gpu else memory
    return batch * block / ms * 1000, ms, memory, 0


def waiting(events: list[dict]) -> float:
    """The share of a trace's time in which nothing ran on the device. events: those of Chrome's trace format."""
    on_gpu = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    ran = on_gpu or [e for e in events if e.get("cat") == "cpu_op"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in ran)
    busy, begin, end = 0.0, *spans[0]
    for since, until in spans:
        if since > end:
            busy, begin = busy + end - begin, since
        end = max(end, until)
    return 1 - (busy + end - begin) / (end - spans[0][0])


def measure_waiting(settings: list[str], steps: int, dataset: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        trace = f"{folder}/trace.json"
        command = [sys.executable, "-c", WITH_TRACE, str(ROOT), trace, str(steps)]
        run_child([*command, *short_run(settings, steps, dataset, folder)], Path(folder))
        return waiting(json.load(open(trace))["traceEvents"])


def main(argv: list[str] | None = None) -> int:
    o = cli.parse(Options, argv, prog="bench/train_speed.py", description="Time training.", positional="run")
    name = (o.run or ["gpt2_tiny"])[0]
    shape = SHAPES.get(name)
    settings = [name]
    if shape:
        layers, heads, width, block, batch = shape
        settings = [*GPT2.split(), f"--n_layer={layers}", f"--n_head={heads}", f"--n_embd={width}"]
        settings += [f"--block_size={block}", f"--batch_size={batch}", f"--micro_batch_size={batch}"]
    elif o.peer:
        raise ValueError(f"peer needs a shape that nanoGPT has too ({', '.join(SHAPES)}), not {name}")
    settings += o.extra.split()
    arms = {"lathe": lambda: ours(settings, o.steps, o.dataset)}
    if o.peer:
        compiled = o.peer_compile == "true" or o.peer_compile == "auto" and torch.cuda.is_available()
        arms["nanoGPT"] = lambda: nanogpt(o.peer, shape, o.steps, o.peer_dataset, compiled)
    found = {arm: [] for arm in arms}
    for repeat in range(o.repeats):
        for arm, run in arms.items():
            found[arm].append(run())
            print(f"run {repeat + 1} of {o.repeats}, {arm}: {found[arm][-1][0]:,.0f} tokens/s", file=sys.stderr)
    rows = []
    for arm, runs in found.items():
        speed, ms, memory, mfu = (statistics.median(column) for column in zip(*runs, strict=True))
        spread = f"{min(r[0] for r in runs):,.0f} - {max(r[0] for r in runs):,.0f}"
        rows.append([arm, f"{speed:,.0f}", spread, f"{ms:.1f}", f"{memory / 2**20:,.0f}", f"{mfu:.1%}" if mfu else "-"])
    notes = ""
    if o.peer:
        pairs = [a[0] / b[0] for a, b in zip(found["lathe"], found["nanoGPT"], strict=True)]
        notes = f"Ratio of speeds, run by run: median {statistics.median(pairs):.2f}, "
        notes += f"from {min(pairs):.2f} to {max(pairs):.2f}."
    if o.waits:
        notes += (
            f" The device waits {measure_waiting(settings, o.steps, o.dataset):.1%} of the time (one profiled run)."
        )
    print(notes)
    header = ["arm", "tokens/s", "range", "ms/step", "peak MiB", "MFU"]
    record(f"Training speed, {name}", header, rows, notes.strip(), o.save)
    return 0


if __name__ == "__main__":
    cli.run(main)
