"""What lathe/run/progress.py promises: a bar on a terminal, plain lines in a pipe."""

import math
import os
import select
import subprocess
import sys

import pytest
from metrics_rows import eval_row, train_row
from tiny_run import ROOT, command, finished

from lathe.run.progress import eval_line, train_line


def test_lines_say_what_the_row_says():
    line = train_line(train_row(100, mfu=0.4567), 2000)
    assert line == (
        "step  100/2000 | loss 2.5000 | lr 1.00e-03 | grad 0.50 | 10,000 tok/s | 100 ms | mfu 45.7% | eta 0:03:10"
    )
    assert eval_line(eval_row(100, elapsed=3725.2), 2000) == (
        "step  100/2000 | val loss 2.2500 | 1.5000 bits per byte | 1:02:05 elapsed"
    )
    compared = eval_line(eval_row(100, train_loss=1.75), 2000)
    assert " | val loss 2.2500 | train loss 1.7500 | 1.5000 bits per byte | " in compared


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
    code, out, err = finished(command("-c", RUN % (True, True), env={"FORCE_COLOR": "1"}))
    assert (code, out) == (0, "") and "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    assert lines == ["hello", train_line(train_row(2), 3), "between", eval_line(eval_row(3), 3)]


def test_other_ranks_print_nothing():
    assert finished(command("-c", RUN % (False, False))) == (0, "", "")


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
    while select.select([ours], [], [], 120)[0]:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        text += chunk
    os.close(ours)
    assert child.wait(timeout=120) == 0
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
    assert finished(command("-c", script, env={"FORCE_COLOR": "1"})) == (0, "", "")
