"""Training speed: tokens per second, time per step, peak memory and MFU of the training command.

    python bench/train_speed.py config/shakespeare_char_cpu.toml
    python bench/train_speed.py gpt2_tiny --peer=PATH_TO_NANOGPT    in turn with nanoGPT's train.py
    python bench/train_speed.py gpt2_124m_64 --waits=true           the device's wait for the host
    python bench/train_speed.py quickstart --against=--compile=true    in turn with another setting

A run is a child process without evaluation; the figure of a run is the median over its rows of
metrics, which leave out evaluations and saves, the first third dropped as warm-up. The figure of an
arm is the median over its runs. Memory is the process's on a CPU and the device's on a GPU. With
--waits one more run is profiled: the share of its last third in which no kernel and no copy ran on
the GPU or, on a CPU, none of torch's operations.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import nanogpt
from bench.processes import absolute, run_child, train
from bench.results import record
from bench.turns import in_turn
from lathe import ROOT, cli
from lathe.fields import PathName


@dataclass(frozen=True)
class Shape:
    """What nanoGPT's network and ours are given, under the names that both have."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch_size: int  # sequences per step

    def settings(self) -> list[str]:
        return [f"--{name}={value}" for name, value in vars(self).items()]


SHAPES = {
    "gpt2_tiny": Shape(4, 4, 128, 64, 12),  # nanoGPT's CPU setting, 0.8M parameters
    "gpt2_small": Shape(6, 6, 384, 256, 16),  # its GPU setting for characters, 10M
    "gpt2_124m": Shape(12, 12, 768, 256, 4),
    "gpt2_124m_1024": Shape(12, 12, 768, 1024, 4),
    "gpt2_124m_64": Shape(12, 12, 768, 1024, 64),  # for a large GPU
}
# What makes our network nanoGPT's.
GPT2 = (
    "--position=learned --norm=layernorm --norm_weight=true --activation=gelu --qk_norm=false "
    "--bias=false --tie_weights=true --zero_init=false --optimizer=adamw --learning_rate=1e-3 "
    "--weight_decay=0.1"
)


@dataclass
class Options:
    """What to time."""

    # a preset, or a shape: gpt2_tiny, gpt2_small, gpt2_124m(_1024, _64)
    run: list[PathName] = field(default_factory=list)
    # folder of nanoGPT, with data/shakespeare_char prepared; its loop is timed alternately
    peer: PathName = ""
    # folder in its data/; one without meta.pkl has GPT-2's vocabulary
    peer_dataset: str = "shakespeare_char"
    # let nanoGPT compile; auto: on a GPU, as it does by itself
    peer_compile: Literal["auto", "true", "false"] = "auto"
    extra: str = ""  # further settings for our side, such as "--dtype=bfloat16 --compile=true"
    dataset: PathName = "data/shakespeare_char"  # what our side reads
    steps: int = 60  # optimizer steps a run
    against: str = ""  # settings of a second arm of ours, added to those of the first
    repeats: int = 3  # runs of each arm
    waits: bool = False  # one more run of ours, profiled: how much of a step the device waits
    save: bool = True  # append the table to bench/RESULTS.md

    def __post_init__(self):
        if self.peer and self.name not in SHAPES:
            raise ValueError(
                f"peer needs a shape that nanoGPT has too ({', '.join(SHAPES)}), not {self.name}"
            )

    @property
    def name(self) -> str:
        """Of the shape or preset that is timed."""
        return self.run[0] if self.run else "gpt2_tiny"


@dataclass
class Speed:
    """What is measured of a run."""

    tokens_per_second: float
    ms_per_step: float
    peak_bytes: int
    mfu: float | None  # None where it is not known


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(
        Options, argv, prog="bench/train_speed.py", description=__doc__, positional="run"
    )

    import torch

    on_gpu = torch.cuda.is_available()
    settings = our_settings(options, on_gpu)
    arms = {"lathe": lambda: time_ours(settings, options.steps, on_gpu)}
    if options.against:
        other = [*settings, *options.against.split()]
        arms[options.against] = lambda: time_ours(other, options.steps, on_gpu)
    if options.peer:
        arms["nanoGPT"] = lambda: time_nanogpt(options, on_gpu)
    speeds = in_turn(
        options.repeats,
        arms,
        describe=lambda speed: f"{speed.tokens_per_second:,.0f} tokens/s",
    )

    notes = ""
    if options.against:
        notes = f"{options.against}: {compare(speeds[options.against], speeds['lathe'])} "
    if options.peer:
        notes += compare(speeds["lathe"], speeds["nanoGPT"])
    if options.waits:
        share = measure_waiting(settings, options.steps)
        notes += f" The device waits {share:.1%} of the time (one profiled run)."
    print(notes)
    header = ["arm", "tokens/s", "range", "ms/step", "peak MiB", "MFU"]
    rows = [row_of(arm, of_arm) for arm, of_arm in speeds.items()]
    record(f"Training speed, {options.name}", header, rows, notes.strip(), options.save)
    return 0


# -----------------------------------------------------------------------------
# Runs


def our_settings(options: Options, on_gpu: bool) -> list[str]:
    """Arguments of our train.py for so many steps and hardly anything else. On a GPU they are
    compiled, as those of a run that is long enough for that."""
    shape = SHAPES.get(options.name)
    if shape is None:
        settings = [absolute(options.name)]
    else:
        settings = [*GPT2.split(), *shape.settings(), f"--micro_batch_size={shape.batch_size}"]
    compiled = ["--compile=true"] if on_gpu else []
    return [
        *settings,
        *compiled,
        *options.extra.split(),
        f"--max_steps={options.steps}",
        f"--eval_interval={10 * options.steps}",
        "--log_interval=5",
        "--sample_tokens=0",
        "--eval_tokens=1",
        f"--dataset={Path(options.dataset).resolve()}",
    ]


def time_ours(settings: list[str], steps: int, on_gpu: bool) -> Speed:
    training = train(settings)
    rows = [row for row in training.rows if row["step"] > steps / 3]
    last = rows[-1]
    speed = statistics.median(row["tokens_per_second"] for row in rows)
    tokens_per_step = last["tokens"] / last["step"]
    return Speed(
        tokens_per_second=speed,
        ms_per_step=1000 * tokens_per_step / speed,
        peak_bytes=last["memory"] if on_gpu else training.child.peak_bytes,
        mfu=last.get("mfu"),
    )


def time_nanogpt(options: Options, on_gpu: bool) -> Speed:
    """By the milliseconds that it prints for each step. Its MFU, which counts otherwise, is left
    out."""
    shape = SHAPES[options.name]
    compiled = options.peer_compile == "true" or options.peer_compile == "auto" and on_gpu
    settings = [
        *shape.settings(),
        f"--dataset={options.peer_dataset}",
        f"--device={'cuda' if on_gpu else 'cpu'}",
        f"--compile={compiled}",
        "--dropout=0.0",
        "--gradient_accumulation_steps=1",
        f"--max_iters={options.steps}",
        f"--eval_interval={10 * options.steps}",
        "--eval_iters=1",
        "--log_interval=1",
    ]
    child = nanogpt.train(options.peer, settings, tell_peak=True)
    times = nanogpt.step_times(child.output)
    ms = statistics.median(times[options.steps // 3 :])
    return Speed(
        tokens_per_second=1000 * shape.batch_size * shape.block_size / ms,
        ms_per_step=ms,
        peak_bytes=nanogpt.peak_on_gpu(child.output) if on_gpu else child.peak_bytes,
        mfu=None,
    )


# -----------------------------------------------------------------------------
# How long the device waits

# `python -c` with this, a file, a number of steps and settings trains, and writes a trace of the
# last third of the steps to the file. The rate is asked for at the beginning of each step.
WITH_TRACE = """
import sys, torch, train
trace, steps = sys.argv[1], int(sys.argv[2])
kind = torch.profiler.ProfilerActivity
profiler = torch.profiler.profile(activities=[kind.CUDA if torch.cuda.is_available() else kind.CPU])
lr_factor = train.lr_factor
def stepping(step, *schedule):
    if step == 2 * steps // 3:
        profiler.start()
    elif step == steps - 1:
        profiler.stop()
    return lr_factor(step, *schedule)
train.lr_factor = stepping
train.main(sys.argv[3:])
profiler.export_chrome_trace(trace)
"""


def measure_waiting(settings: list[str], steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        command = [sys.executable, "-c", WITH_TRACE, str(trace), str(steps), *settings]
        command += [f"--out_dir={folder}/run", "--init_from=scratch"]
        run_child(command, folder, PYTHONPATH=str(ROOT))
        return waiting(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])


def waiting(events: list[dict]) -> float:
    """The share of a trace's time in which nothing ran on the device.

    events: those of Chrome's trace format, ts and dur in microseconds.
    """
    on_gpu = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    on_cpu = [e for e in events if e.get("cat") == "cpu_op"]
    events = sorted(on_gpu or on_cpu, key=lambda event: event["ts"])
    first = events[0]["ts"]
    until = first  # up to here it is known when something ran
    idle = 0.0
    for event in events:
        idle += max(0.0, event["ts"] - until)
        until = max(until, event["ts"] + event["dur"])
    return idle / (until - first)


# -----------------------------------------------------------------------------
# The table


def row_of(arm: str, speeds: list[Speed]) -> list[str]:
    of_runs = [speed.tokens_per_second for speed in speeds]
    ms = statistics.median(speed.ms_per_step for speed in speeds)
    peak_bytes = statistics.median(speed.peak_bytes for speed in speeds)
    mfu = "-"
    if speeds[0].mfu is not None:
        mfu = f"{statistics.median(speed.mfu for speed in speeds):.1%}"
    return [
        arm,
        f"{statistics.median(of_runs):,.0f}",
        f"{min(of_runs):,.0f} - {max(of_runs):,.0f}",
        f"{ms:.1f}",
        f"{peak_bytes / 2**20:,.0f}",
        mfu,
    ]


def compare(ours: list[Speed], peers: list[Speed]) -> str:
    pairs = zip(ours, peers, strict=True)
    ratios = [run.tokens_per_second / peer.tokens_per_second for run, peer in pairs]
    return (
        f"Ratio of speeds, run by run: median {statistics.median(ratios):.2f}, "
        f"from {min(ratios):.2f} to {max(ratios):.2f}."
    )


if __name__ == "__main__":
    cli.run(main)
