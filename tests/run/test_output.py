"""What lathe/output.py promises, on real pipes, terminals and full disks: a run outlives its readers."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tiny_run import ONE_THREAD, ROOT, arguments, free_ports, losses, rows, wait_for_step

from lathe.output import LEFT_OUT, MOST_WAITING, NonBlockingStream
from lathe.run import checkpoint

LONG = dict(max_steps=100_000, eval_interval=100_000)
SHORT = dict(max_steps=30, eval_interval=30)
ENOUGH = 150  # lines of steps, more than such a pipe and a terminal hold
SMALL_PIPE = 4096  # bytes, for pipesize


def train_command(dataset: str, out_dir: Path, **changed) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *arguments(dataset, out_dir, **changed)]


def start(words: list[str], environment: dict | None = None, **streams) -> subprocess.Popen:
    environment = {**os.environ, **ONE_THREAD, **(environment or {})}
    return subprocess.Popen(words, cwd=ROOT, env=environment, **streams)


def step_saved(out_dir: Path) -> int:
    folder, _ = checkpoint.newest_checkpoint(out_dir)
    return int(folder.name[5:])


def assert_it_stops_and_saves(
    process: subprocess.Popen, out_dir: Path, number: int, stop: Callable[[], None]
):
    """Within ten seconds, on a machine that is its own, and at the last step that it took.

    stop: what ends it. A process that gets a tenth of a core may take ten times as long.
    """
    share = share_of_a_core(process.pid)
    began = time.monotonic()
    stop()
    assert process.wait(timeout=300) == 128 + number
    assert (time.monotonic() - began) * share < SOON
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    assert step_saved(out_dir) == rows(out_dir)[-1]["step"]


SOON = 10.0  # seconds


def share_of_a_core(pid: int) -> float:
    """How much of a core a process that always had work has got since it began; 1 at most."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 1.0
    fields = stat.read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    worked = (int(fields[11]) + int(fields[12])) / ticks
    lived = float(Path("/proc/uptime").read_text().split()[0]) - int(fields[19]) / ticks
    return min(1.0, worked / lived)


# -----------------------------------------------------------------------------
# The stream


def reader_of(descriptor: int) -> list[bytes]:
    """What comes, collected by a thread until the other side is closed."""
    pieces = []

    def read():
        while data := os.read(descriptor, 1 << 16):
            pieces.append(data)

    threading.Thread(target=read, daemon=True).start()
    return pieces


def test_all_that_is_written_comes_out_in_order_where_somebody_reads():
    read_end, write_end = os.pipe()
    pieces = reader_of(read_end)
    stream = NonBlockingStream(io.TextIOWrapper(os.fdopen(write_end, "wb"), encoding="utf-8"))
    lines = [f"line {i}: größer\n" for i in range(5000)]
    for line in lines:
        assert stream.write(line) == len(line)
    stream.finish(60.0)
    assert b"".join(pieces).decode() == "".join(lines)


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_what_was_left_out_is_said():
    read_end, write_end = os.pipe()
    stream = NonBlockingStream(io.TextIOWrapper(os.fdopen(write_end, "wb"), encoding="utf-8"))
    line = "x" * 99 + "\n"
    held = 100_000 // 100 * 2  # a pipe holds 64 KiB
    n_lines = MOST_WAITING + held
    for _ in range(n_lines):
        stream.write(line)
    stream.finish(0.01)  # returns although nothing moves
    pieces = reader_of(read_end)
    stream.finish(60.0)
    stream.write("at last\n")
    stream.finish(60.0)
    text = b"".join(pieces).decode()
    said = [part for part in text.split("\n") if "left out" in part]
    assert len(said) == 1 and text.endswith("at last\n")
    n_left_out = int(said[0].split()[0].strip("[").replace(",", ""))
    assert n_left_out + text.count(line) == n_lines
    assert LEFT_OUT.format(f"{n_left_out:,} pieces") in text


def test_a_full_disk_raises_nothing():
    with open("/dev/full", "w") as file:
        stream = NonBlockingStream(file)
        stream.write("lost\n")
        stream.finish(5.0)


# -----------------------------------------------------------------------------
# Training, as a process


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_does_not_stop_training_and_sigterm_saves(dataset, tmp_path):
    process = start(
        train_command(dataset, tmp_path, **LONG), stderr=subprocess.PIPE, pipesize=SMALL_PIPE
    )
    wait_for_step(process, tmp_path, ENOUGH)
    stop = partial(process.send_signal, signal.SIGTERM)
    assert_it_stops_and_saves(process, tmp_path, signal.SIGTERM, stop)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU])
def test_whatever_ends_processes_by_warning_them_saves(dataset, tmp_path, number):
    process = start(train_command(dataset, tmp_path, **LONG), stderr=subprocess.DEVNULL)
    wait_for_step(process, tmp_path, 5)
    stop = partial(process.send_signal, number)
    assert_it_stops_and_saves(process, tmp_path, number, stop)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        "2>&1 | head -n 2",
        "2>/dev/full",
        "2>&-",
        "1>&-",
        "0<&- 1>&- 2>&-",
        "1>/dev/full 2>/dev/full",
        "2> >(sleep 0.1)",
    ],
)
def test_training_ends_well_wherever_its_output_goes(dataset, tmp_path, how):
    words = " ".join(f"'{word}'" for word in train_command(dataset, tmp_path, **SHORT))
    script = f"{words} {how}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={**os.environ, **ONE_THREAD}, capture_output=True
    )
    assert done.returncode == 0
    assert step_saved(tmp_path) == 30
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)  # nothing that was meant for stderr
    assert len(losses(tmp_path)) == 30


def start_on_a_terminal(words: list[str], before: str = "") -> tuple[subprocess.Popen, int]:
    """A process with a controlling terminal, and the terminal's other side."""
    ours, its = pty.openpty()
    code = f"import os, fcntl, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {before}"
    code += "os.execv(sys.argv[1], sys.argv[1:])"
    process = start(
        [sys.executable, "-c", code, *words],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    return process, ours


@pytest.mark.slow
def test_a_closed_terminal_stops_a_run_and_loses_no_step(dataset, tmp_path):
    process, terminal = start_on_a_terminal(train_command(dataset, tmp_path, **LONG))
    wait_for_step(process, tmp_path, 5)
    assert_it_stops_and_saves(process, tmp_path, signal.SIGHUP, partial(os.close, terminal))


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_does_not_stop_a_run(dataset, tmp_path):
    ignoring = "signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    words = train_command(dataset, tmp_path, **{**LONG, "max_steps": 400})
    process, terminal = start_on_a_terminal(words, before=ignoring)
    wait_for_step(process, tmp_path, 5)
    os.close(terminal)
    assert process.wait(timeout=120) == 0
    assert step_saved(tmp_path) == 400


@pytest.mark.slow
def test_a_terminal_that_shows_nothing_more_does_not_stop_training(dataset, tmp_path):
    """As after Ctrl-S."""
    process, terminal = start_on_a_terminal(train_command(dataset, tmp_path, **LONG))
    wait_for_step(process, tmp_path, ENOUGH)
    stop = partial(process.send_signal, signal.SIGTERM)
    assert_it_stops_and_saves(process, tmp_path, signal.SIGTERM, stop)
    os.close(terminal)


@pytest.mark.slow
def test_two_ranks_with_a_pipe_that_nobody_reads_stop_and_save(dataset, tmp_path):
    """As torchrun starts them, which itself waits for its reader."""
    (port,) = free_ports(1)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in range(2):
        place = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        words = train_command(dataset, tmp_path, **LONG)
        ranks.append(start(words, place, stderr=subprocess.PIPE, pipesize=SMALL_PIPE))
    wait_for_step(ranks[0], tmp_path, ENOUGH, timeout=120)
    stop = partial(ranks[1].send_signal, signal.SIGTERM)
    assert_it_stops_and_saves(ranks[0], tmp_path, signal.SIGTERM, stop)
    assert ranks[1].wait(timeout=60) == 128 + signal.SIGTERM
    ranks[1].stderr.close()
