"""What lathe/run/progress.py promises: a bar on a terminal, plain lines in a pipe."""

import math
import os
import re
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_rows import eval_row, train_row
from tiny_run import ONE_THREAD, ROOT, arguments, command, finished

from bench.screen import Screen, seen_on_terminal
from lathe.run.progress import SHORTEST_BAR, eval_line, layout, train_line
from lathe.terminal import fit, n_columns


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
with Progress(3, 1, 1000, enabled=%s) as progress:
    progress.step(2, 2.5); progress.train(train)
    progress.step(3, 2.5); progress.print("between"); progress.evaluation(evaluation)
"""


def test_a_pipe_gets_plain_lines():
    code, out, err = finished(command("-c", RUN % (True, True), env={"FORCE_COLOR": "1"}))
    assert code == 0 and "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    assert lines == ["hello", train_line(train_row(2), 3), "between", eval_line(eval_row(3), 3)]
    assert out == eval_line(eval_row(3), 3) + "\n"  # results: `nohup ... > log` has them


def test_results_come_once_where_stdout_and_stderr_are_the_same(tmp_path):
    with open(tmp_path / "log", "w") as log:
        both = dict(stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})
        subprocess.run([sys.executable, "-c", RUN % (True, True)], check=True, **both)
    assert (tmp_path / "log").read_text().count(eval_line(eval_row(3), 3)) == 1


def test_other_ranks_print_nothing():
    assert finished(command("-c", RUN % (False, False))) == (0, "", "")


def on_terminal(script, **environment):
    """What a process writes to a terminal of 120 columns."""
    environment = {"PYTHONPATH": str(ROOT), **environment}
    code, written = seen_on_terminal([sys.executable, "-c", script], 120, ROOT, environment)
    assert code == 0, written
    return written


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar_and_whole_lines():
    shown = on_terminal(RUN % (True, True), NO_COLOR="1")
    assert "loss 2.5000 | step 2/3" in shown
    lines = [line.rpartition("\r")[2] for line in shown.split("\r\n")]
    assert {"hello", "between", eval_line(eval_row(3), 3)} <= set(lines)
    assert "\x1b[3" not in shown  # no colour


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_without_cursor_gets_lines():
    shown = on_terminal(RUN % (True, True), TERM="dumb")
    assert "\r" not in shown.replace("\r\n", "\n")
    assert train_line(train_row(2), 3) in shown


# What a reader sees, at any width

NEWS = ["loss 2.5000", "step 10/2000", "0:03:10 left", "10,000 tok/s", "epoch 0.71"]


@given(st.integers(1, 300), st.integers(1, 5))
def test_the_bar_shows_as_many_news_as_fit_and_the_loss_first(columns, n_news):
    line = layout(NEWS[:n_news], columns).replace("{bar}", "#" * SHORTEST_BAR)
    assert len(line) <= columns
    assert line.startswith(NEWS[0][:columns])
    shown = line.partition(" |#")[0].split(" | ")
    assert shown == NEWS[: len(shown)] or columns < len(NEWS[0])


SPEAKS = f"""
import sys, time; from lathe.run.progress import Progress, with_bar
train = {train_row(1, epoch=0.5, mfu=0.4)!r}; evaluation = {eval_row(1, train_loss=2.0)!r}
long = "a note that is much longer than any narrow terminal is wide, of data/some_length in it"
Progress(200).print(long)
with Progress(200, 0, 4096) as progress:
    progress.within(1, 1, 2)
    for step in range(1, 201):
        progress.step(step, 9 - step / 100)
        if step % 50 == 0:
            progress.train(train)
            for _ in with_bar(range(3), "evaluating", 3): pass
            progress.evaluation(evaluation)
        time.sleep(0.003)
    progress.close()
    command = "python train.py out/run/settings.toml --prompt='two  words' --init_from=resume"
    progress.result("done\\nnext:\\n  " + command)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_on_a_terminal_of_any_width_the_loss_is_seen_and_the_next_step_is_last(columns):
    words = [sys.executable, "-c", SPEAKS]
    code, written = seen_on_terminal(words, columns, ROOT, {"PYTHONPATH": str(ROOT)})
    assert code == 0, written
    screen = Screen(columns)
    screen.feed(written)
    assert screen.wrapped == []
    text = screen.text()
    drawn = [line for line in re.split("[\r\n]", written) if line.startswith("loss ")]
    steps = {re.search(r"step (\d+)/200", line)[1] for line in drawn}
    assert len(steps) >= 5  # it moves, and each picture of it has a loss
    assert not any("step 200/200" in line and "%" in line for line in text)  # no bar stays
    after = " ".join(text[text.index("next:") + 1 :])
    typed = shlex.split(after.replace("\\ ", " "))
    resume = ["out/run/settings.toml", "--prompt=two  words", "--init_from=resume"]
    assert typed == ["python", "train.py", *resume]  # also where it was broken to fit


@given(st.text("ab \n語", max_size=200), st.integers(4, 60))
def test_lines_are_broken_between_words_and_lose_none(text, columns):
    broken = terminal_of(columns, text)
    assert broken.split() == text.split()
    for line in broken.split("\n"):
        assert n_columns(line) <= columns or len(line.split()) <= 1


def terminal_of(columns, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lathe.terminal.columns_of", lambda stream: columns)
        return fit(text, sys.stderr)


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_other_work_has_a_bar_on_a_terminal_only():
    script = "from lathe.run import progress\nassert sum(progress.with_bar(range(4), 'evaluating', 4)) == 6"
    assert "evaluating: " in (shown := on_terminal(script)) and "0/4" in shown
    assert on_terminal(script, TERM="dumb") == ""
    assert finished(command("-c", script, env={"FORCE_COLOR": "1"})) == (0, "", "")


@pytest.mark.exhaustive
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_whole_run_on_a_terminal_wraps_nothing_and_ends_with_what_to_do_next(
    columns, dataset, tmp_path
):
    (tmp_path / "data").symlink_to(dataset)
    asked = {"out_dir": "out/run", "sample_tokens": 5, "sample_prompt": "the"}
    words = [sys.executable, ROOT / "train.py", *arguments("data", **asked)]
    code, written = seen_on_terminal(words, columns, tmp_path, ONE_THREAD)
    assert code == 0, written
    screen = Screen(columns)
    screen.feed(written)
    whole = [
        sys.executable,
        str(ROOT / "train.py"),
        str(ROOT / "evaluate.py"),
        str(ROOT / "sample.py"),
    ]
    for line in screen.wrapped:  # a word that is longer than the terminal is wide
        assert any(line.strip().startswith(path[: columns - 2]) for path in whole), line
    text = screen.text()
    assert text[-1].endswith("--max_steps=40") and "loss" in written.partition("step 1/20")[0]
