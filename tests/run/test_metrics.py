"""Promises of lathe/run's metrics: each step stands once, in valid JSON; pipes get plain lines; no tracker stops a run."""

import json
import math
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe import ROOT
from lathe.run.metrics import MetricsLog, read_metrics
from lathe.run.mirrors import Mirrors
from lathe.run.progress import eval_line, train_line


def train_row(step, **changed):
    row = {"step": step, "tokens": step * 1000, "loss": 2.5, "lr": 1e-3, "grad_norm": 0.5}
    return row | {"tokens_per_second": 10000.0, "elapsed": 1.0 * step} | changed


def eval_row(step, **changed):
    return {
        "step": step,
        "val_loss": 2.25,
        "val_bits_per_byte": 1.5,
        "elapsed": 1.0 * step,
    } | changed


def steps(rows):
    return [row["step"] for row in rows]


def process(script, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", script], env=environment, text=True, **streams)


# --- metrics.jsonl


def test_rows_are_read_back_as_they_were_written(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    rows = [eval_row(0), train_row(10, mfu=0.4), train_row(20), eval_row(20)]
    for row in rows:
        log.log(row)
    assert read_metrics(log.path) == (
        [rows[1], rows[2]],
        [rows[0], rows[3]],
    )  # flushed, though not closed
    log.close()
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == rows


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(
        train_row(
            1,
            loss=math.nan,
            lr=math.inf,
            grad_norm=np.float32(-math.inf),
            tokens_per_second=np.float32(2),
        )
    )
    log.close()

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads(log.path.read_text(), parse_constant=refuse)
    assert row == train_row(1, loss=None, lr=None, grad_norm=None, tokens_per_second=2.0)


def test_a_resume_drops_the_rows_after_its_checkpoint_and_a_half_written_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (10, 20, 30, 40):
        log.log(train_row(step))
        log.log(eval_row(step))
    log.close()
    with open(path, "a") as file:
        file.write('{"step": 50, "tokens": 5')
    log = MetricsLog(path, resume_step=20)
    log.log(train_row(30, loss=1.0))
    log.close()
    train, evaluation = read_metrics(path)
    assert steps(train) == [10, 20, 30] and steps(evaluation) == [10, 20]
    assert train[-1]["loss"] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_run_from_scratch_begins_with_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.log(eval_row(0))
    log.close()
    MetricsLog(path).close()
    assert path.read_text() == ""


def test_a_step_that_is_evaluated_again_after_a_resume_stands_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.log(eval_row(20))
    log.close()
    log = MetricsLog(path, resume_step=20)
    log.log(eval_row(20))
    log.log(train_row(20))
    log.close()
    assert [len(rows) for rows in read_metrics(path)] == [1, 1]


@hypothesis.settings(deadline=None)
@given(
    lives=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 40)), max_size=5
    )
)
def test_each_step_stands_once_after_any_crashes_and_resumes(tmp_path_factory, lives):
    """A life: where it resumes (at most where the last one came to), its steps, the bytes that a crash cuts off."""
    path, reached = tmp_path_factory.mktemp("run") / "metrics.jsonl", 0
    for resume, length, cut in lives:
        before = set(steps(read_metrics(path)[0]))
        resume = min(resume, reached)
        log = MetricsLog(path, resume)
        for step in range(resume + 1, resume + length + 1):
            log.log(train_row(step))
        log.close()
        lost = {step for step in range(1, resume + 1) if step not in before}
        assert steps(read_metrics(path)[0]) == [
            step for step in range(1, resume + length + 1) if step not in lost
        ]
        path.write_bytes(path.read_bytes()[: -cut or None])
        reached = max(steps(read_metrics(path)[0]), default=0)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_leaves_complete_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    script = (
        "from lathe.run import metrics\n"
        f"log = metrics.MetricsLog({str(path)!r})\n"
        "for step in range(1, 10**9):\n"
        "    log.log({'step': step, 'loss': 1.0})\n"
        "    if step == 1000: print('ready', flush=True)\n"
    )
    child = process(script)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    rows, _ = read_metrics(path)
    assert len(rows) >= 1000 and steps(rows) == list(range(1, len(rows) + 1))


# --- lines and bar


def test_lines_say_what_the_row_says():
    line = train_line(train_row(100, mfu=0.4567), 2000)
    assert line == (
        "step  100/2000 | loss 2.5000 | lr 1.00e-03 | grad 0.50 | 10,000 tok/s | 100 ms | mfu 45.7% | eta 0:03:10"
    )
    assert eval_line(eval_row(100, elapsed=3725.2), 2000) == (
        "step  100/2000 | val loss 2.2500 | 1.5000 bits per byte | 1:02:05 elapsed"
    )


def test_lines_stand_rows_without_mfu_bits_or_finite_loss():
    line = train_line(train_row(1, loss=math.nan), 10)
    assert "loss nan" in line and "mfu" not in line
    assert "bits" not in eval_line(eval_row(1, val_bits_per_byte=None), 10)


RUN = f"""
import sys; from lathe.run.progress import Progress
train = {train_row(2)!r}; evaluation = {eval_row(3)!r}
say = Progress(3, enabled=%s); say.print("hello")
with Progress(3, 1, enabled=%s) as progress:
    progress.step(2); progress.train(train)
    progress.step(3); progress.print("between"); progress.evaluation(evaluation)
"""


def test_a_pipe_gets_plain_lines():
    out, err = process(RUN % (True, True), FORCE_COLOR="1").communicate(timeout=30)
    assert out == "" and "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    assert lines == ["hello", train_line(train_row(2), 3), "between", eval_line(eval_row(3), 3)]


def test_other_ranks_print_nothing():
    assert process(RUN % (False, False)).communicate(timeout=30) == ("", "")


def on_terminal(script, **environment):
    """What a process writes to a terminal of 120 columns that is its stderr."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment}
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    )
    os.close(theirs)
    text = b""
    while select.select([ours], [], [], 30)[0]:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        text += chunk
    os.close(ours)
    assert child.wait(timeout=30) == 0
    return text.decode()


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar_and_whole_lines():
    shown = on_terminal(RUN % (True, True), NO_COLOR="1")
    assert "1/3" in shown and "3/3" in shown and "loss 2.5000, 10,000 tok/s" in shown
    lines = [line.rpartition("\r")[2] for line in shown.split("\r\n")]
    assert {"hello", "between", eval_line(eval_row(3), 3)} <= set(lines)
    assert "\x1b[3" not in shown  # no colour


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_without_cursor_gets_lines():
    shown = on_terminal(RUN % (True, True), TERM="dumb")
    assert "\r" not in shown.replace("\r\n", "\n")
    assert train_line(train_row(2), 3) in shown


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_other_work_has_a_bar_on_a_terminal_only():
    script = "from lathe.run import progress\nassert sum(progress.with_bar(range(4), 'evaluating', 4)) == 6"
    assert "evaluating: " in (shown := on_terminal(script)) and "0/4" in shown
    assert on_terminal(script, TERM="dumb") == ""
    assert process(script, FORCE_COLOR="1").communicate(timeout=30) == ("", "")


# --- mirrors


@dataclass
class Tracking:
    out_dir: str
    wandb_log: bool = False
    wandb_project: str = "lathe"
    wandb_run_name: str = ""
    tensorboard_log: bool = False


def test_trackers_are_not_imported_unless_asked_for(tmp_path):
    script = (
        "import sys, types\n"
        "settings = types.SimpleNamespace(wandb_log=False, tensorboard_log=False)\n"
        "from lathe.run.mirrors import Mirrors\n"
        "mirrors = Mirrors(settings, 'id')\n"
        "mirrors.log({'step': 1, 'loss': 2.0}); mirrors.close()\n"
        "print([name for name in ('wandb', 'tensorboard', 'torch', 'tqdm') if name in sys.modules])\n"
    )
    assert process(script).communicate(timeout=30) == ("[]\n", "")


def test_a_tracker_that_is_missing_or_fails_says_so_once_and_training_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    said = []
    mirrors = Mirrors(
        Tracking(str(tmp_path), wandb_log=True, tensorboard_log=True), "id", say=said.append
    )
    for step in (1, 2):
        mirrors.log(train_row(step))
    mirrors.close()
    assert len(said) == 2 and all("\n" not in line for line in said)
    assert said[0].startswith("wandb is off, training goes on: ") and said[0].endswith(
        "pip install wandb"
    )
    assert said[1].startswith("tensorboard is off, training goes on: ")


def test_tensorboard_holds_the_rows_and_a_resume_hides_what_it_repeats(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings, said = Tracking(str(tmp_path), tensorboard_log=True), []
    for resume_step, loss in ((0, 3.0), (2, 1.0)):
        mirrors = Mirrors(settings, "id", resume_step, say=said.append)
        for step in range(resume_step + 1, 5):
            mirrors.log(train_row(step, loss=loss))
        mirrors.log(eval_row(4, val_bits_per_byte=None))
        mirrors.log({"step": 4, "sample": "one\n<b>two", "report": tmp_path / "report.html"})
        mirrors.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert said == []
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (1, 3.0),
        (2, 3.0),
        (3, 1.0),
        (4, 1.0),
    ]
    assert [(e.step, e.value) for e in events.Scalars("val_loss")] == [(4, 2.25)]
    text = events.Tensors("sample/text_summary")[-1]
    assert text.tensor_proto.string_val == [b"    one\n    <b>two"]


# A training process that asks for wandb without a key, a terminal and a network; what it does then comes behind.
WANDB = """
import os, pathlib, signal, subprocess, types
from lathe.run.mirrors import Mirrors
folder = pathlib.Path(%r)
settings = types.SimpleNamespace(out_dir=str(folder), wandb_log=True, wandb_project='p', wandb_run_name='',
    tensorboard_log=False)
mirrors = Mirrors(settings, 'abc123', say=print)
page = folder / 'report.html'
page.write_text('<p>a page')
mirrors.log({'step': 1, 'loss': 2.0, 'sample': 'a < b', 'report': page})
"""


def with_wandb(tmp_path, rest):
    """(exit code, lines said, stderr) of a process that has logged to an offline run. conftest.py has removed the
    user's WANDB_ variables."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    environment = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "WANDB_SILENT": "true"}
    child = process(WANDB % str(tmp_path) + rest, **environment)
    out, err = child.communicate(timeout=120)
    return child.returncode, out.splitlines(), err


@pytest.mark.slow
def test_wandb_without_a_key_and_a_terminal_keeps_the_run_offline(tmp_path):
    code, said, err = with_wandb(tmp_path, "mirrors.close()\n")
    assert code == 0, err
    assert len(said) == 1 and said[0].startswith("wandb: this run is kept offline")
    assert len(list(tmp_path.glob("wandb/offline-run-*-abc123/*.wandb"))) == 1
    html = list(tmp_path.glob("wandb/offline-run-*-abc123/files/media/html/*.html"))
    assert {path.name.split("_")[0]: path.read_text() for path in html} == {
        "report": "<p>a page",
        "sample": "<pre>a &lt; b</pre>",
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds wandb's process through ps --ppid")
def test_a_crash_of_wandbs_own_process_is_said_once_and_training_goes_on(tmp_path):
    code, said, err = with_wandb(
        tmp_path,
        "children = subprocess.run(['ps', '--ppid', str(os.getpid()), '-o', 'pid=,comm='], capture_output=True)\n"
        "[os.kill(int(line.split()[0]), signal.SIGKILL) for line in children.stdout.splitlines() if b'wandb' in line]\n"
        "for step in range(2, 20): mirrors.log({'step': step, 'loss': 2.0})\n"
        "mirrors.close(); print('trained')\n",
    )
    assert code == 0 and "Traceback" not in err
    assert [line.split(":")[0] for line in said] == [
        "wandb",
        "wandb is off, training goes on",
        "trained",
    ]
