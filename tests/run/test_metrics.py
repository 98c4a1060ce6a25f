"""What lathe/run/metrics.py promises: valid JSON in which each step stands once."""

import json
import math
import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_rows import eval_row, train_row
from tiny_run import command

from lathe.run.metrics import MetricsLog, open_samples, read_metrics


def steps(rows: list[dict]) -> list[int]:
    return [row["step"] for row in rows]


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


def test_a_metric_more_is_one_key_more(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.log(train_row(1, weight_norm=3.5))
    assert read_metrics(log.path) == ([train_row(1, weight_norm=3.5)], [])


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


def test_a_resume_says_how_many_lines_are_damaged(tmp_path):
    """A last line that is half-written is none of them: its step is yet to come."""
    rows = [json.dumps(train_row(step)) for step in (1, 2, 3)]
    damaged = [rows[0], rows[1][:20], "\0\0\0", "", "[1]", '{"loss": 3}', rows[2], rows[0][:9]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(damaged))
    samples = [json.dumps({"step": 1, "text": "a"}), "x", json.dumps({"step": 2, "text": "b"})]
    (tmp_path / "samples.jsonl").write_text("\n".join(samples))
    said = []
    log = MetricsLog(tmp_path / "metrics.jsonl", resume_step=3, say=said.append)
    log.close()
    assert steps(read_metrics(log.path)[0]) == [1, 3]
    open_samples(tmp_path / "samples.jsonl", 2, said.append).close()
    assert [line.removeprefix(f"{tmp_path}/") for line in said] == [
        "metrics.jsonl: 4 lines are damaged and left out",
        "samples.jsonl: 1 line is damaged and left out",
    ]


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
    child = command("-c", script)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=120)
    rows, _ = read_metrics(path)
    assert len(rows) >= 1000 and steps(rows) == list(range(1, len(rows) + 1))
