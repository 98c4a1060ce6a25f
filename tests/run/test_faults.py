"""A run under faults, in real processes: signals, kills, hangs, restarts, a full disk, too little memory."""

import json
import os
import signal
from pathlib import Path

import pytest
from tiny_run import (
    ROOT,
    arguments,
    command,
    finished,
    job,
    losses,
    make_dataset,
    rows,
    run_ranks,
    wait_for_step,
)

from lathe.data.shards import write_dataset
from lathe.run import checkpoint
from lathe.text.tokenizer import load_tokenizer
from lathe.use.network import load_weights

pytestmark = pytest.mark.slow
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
LONG = dict(max_steps=100_000, eval_interval=100_000)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def much_to_validate(tmp_path_factory) -> str:
    """A dataset whose evaluation takes many passes."""
    folder = tmp_path_factory.mktemp("data") / "val"
    write_dataset(
        folder, load_tokenizer("byte"), ["the cat sat on the mat " * 40], ["rain and sun " * 40_000]
    )
    return str(folder)


def newest_step(out) -> int:
    path, faults = checkpoint.newest_checkpoint(out)
    assert not faults
    return checkpoint.read_state(path)["step"]


def ranks_of(process) -> list[int]:
    """Process ids of a launcher's children, rank 0 first."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid:
                environment = (folder / "environ").read_bytes().split(b"\0")
                found[next(int(v[5:]) for v in environment if v.startswith(b"RANK="))] = int(
                    folder.name
                )
        except (OSError, StopIteration):  # it ended, or is no rank
            continue
    return [found[rank] for rank in sorted(found)]


def nothing_lost(out, err: str):
    """The newest checkpoint is of the last step that was taken, and it says how to go on."""
    assert newest_step(out) == rows(out)[-1]["step"], err[-2000:]
    assert [row["step"] for row in rows(out)] == list(range(1, newest_step(out) + 1))
    assert "--init_from=resume" in err and "Traceback" not in err.replace("torch/distributed", "")


# Signals


@pytest.mark.parametrize("who", ["torchrun", "one rank"])
def test_sigterm_to_the_job_or_to_one_rank_loses_no_step(data, tmp_path, who):
    process = command(*TORCHRUN, "train.py", *arguments(data, tmp_path, **LONG))
    wait_for_step(process, tmp_path, 5)
    os.kill(process.pid if who == "torchrun" else ranks_of(process)[1], signal.SIGTERM)
    _, out, err = finished(process)
    assert out == ""
    assert newest_step(tmp_path) == rows(tmp_path)[-1]["step"] and "--init_from=resume" in err
    if who == "one rank":
        assert (
            err.count("exitcode  : 143") == 2 or "143" in err
        )  # both ranks stopped, not only the one that was told


def test_a_signal_during_a_long_evaluation(much_to_validate, tmp_path):
    run = tmp_path / "run"
    often = dict(max_steps=6, eval_interval=3)
    faulty = job(much_to_validate, run, fault=("signal in an evaluation", 0, 2), **often)
    ((code, _, err),) = run_ranks(1, tmp_path, faulty)
    assert code == 143
    assert newest_step(run) == 3 and rows(run, "val_loss") == [], err
    # the evaluation that was broken off is made up for before step 4
    resumed = arguments(much_to_validate, run, max_steps=4, eval_tokens=160, init_from="resume")
    code, _, err = finished(command("train.py", *resumed, "--eval_interval=3"))
    assert code == 0 and [row["step"] for row in rows(run, "val_loss")] == [3, 4], err


def test_two_signals_while_saving_all_the_time(data, tmp_path):
    often = dict(max_steps=100_000, eval_interval=100_000, checkpoint_interval=1)
    process = command("train.py", *arguments(data, tmp_path, **often))
    wait_for_step(process, tmp_path, 5)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGHUP)  # which may still find the process, or not
    code, _, err = finished(process)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGHUP)  # whichever was seen first
    nothing_lost(tmp_path, err)
    assert {
        p.name for p in (tmp_path / "checkpoints").iterdir() if not p.name.startswith("step-")
    } <= {"best"}


# Kills


def test_three_kills_and_resumes_leave_every_step_once(data, tmp_path):
    words = arguments(
        data, tmp_path, max_steps=60, eval_interval=20, checkpoint_interval=3, init_from="auto"
    )
    for step in (8, 22, 41):
        process = command("train.py", *words)
        wait_for_step(process, tmp_path, step)
        process.kill()
        process.communicate()
    code, _, err = finished(command("train.py", *words))
    assert code == 0, err
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 61))
    assert [row["step"] for row in rows(tmp_path, "val_loss")] == [20, 40, 60]
    names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert all(name == "best" or checkpoint.STEP_NAME.fullmatch(name) for name in names)


def test_a_folder_in_use_is_refused_with_the_holders_name(data, tmp_path):
    first = command("train.py", *arguments(data, tmp_path, **LONG))
    wait_for_step(first, tmp_path, 1)
    second = command("train.py", *arguments(data, tmp_path, init_from="auto"))
    code, _, err = finished(second)
    assert code == 1 and err.count("\n") == 1 and f"in use by process {first.pid} on" in err
    first.kill()
    first.communicate()
    code, _, err = finished(
        command("train.py", *arguments(data, tmp_path, init_from="auto", max_steps=2))
    )
    assert code == 0, err


@pytest.mark.parametrize("kind", ["kill", "hang"])
def test_a_rank_that_dies_or_hangs_ends_the_job(data, tmp_path, kind):
    faulty = job(
        data, tmp_path / "run", fault=(kind, 1, 30), rank_timeout=12, checkpoint_interval=5
    )
    (code0, _, err0), (code1, _, err1) = run_ranks(2, tmp_path, faulty)
    assert code0 != 0 and code1 != 0
    assert "File " in err0 and "train.py" in err0  # where rank 0 was
    if kind == "hang":
        assert "rank 1: no progress for 12 s while training step" in err1 and "in before" in err1
    # What was whole before step 15, and nothing of a broken state.
    assert newest_step(tmp_path / "run") == 10


def test_a_killed_rank_is_started_again_and_the_job_goes_on_by_itself(data, tmp_path):
    faulty = job(
        data,
        tmp_path / "run",
        fault=("kill", 1, 30),
        checkpoint_interval=5,
        init_from="auto",
        rank_timeout=60,
    )
    (tmp_path / "jobs.json").write_text(json.dumps([faulty]))
    process = command(
        *TORCHRUN,
        "--max-restarts=2",
        "tests/rank.py",
        tmp_path / "jobs.json",
        env={"PYTHONPATH": str(ROOT)},
    )
    wait_for_step(process, tmp_path / "run", 13)
    code, _, err = finished(process)
    assert code == 0, err[-3000:]
    assert "resuming from" in err
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 21))
    starts = [
        json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in starts] == [0, 10]


def test_ranks_that_wait_for_rank_0_to_sample_are_not_taken_for_hung(data, tmp_path):
    slow = job(
        data,
        tmp_path / "run",
        fault=("slow samples", 0, 0),
        rank_timeout=3,
        eval_interval=10,
        sample_tokens=22,  # more than four seconds, twice
        num_samples=1,
    )
    for code, _, err in run_ranks(2, tmp_path, slow, timeout=120):
        assert code == 0, err[-3000:]
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 21))


# Things that run out


def test_a_full_disk_ends_the_run_with_one_line_and_the_old_checkpoint(data, tmp_path):
    """The first save fits the limit on the size of files, made between the saves; the second does not."""
    code = (
        "from lathe import cli\n"
        "import resource, sys, threading, time, pathlib, train\n"
        "def limit(out):\n"
        "    while not (out / 'checkpoints' / 'step-0000005').exists(): time.sleep(0.005)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "threading.Thread(target=limit, args=(pathlib.Path(sys.argv[1]),), daemon=True).start()\n"
        "cli.run(lambda: train.main(sys.argv[2:]))\n"
    )
    words = arguments(
        data, tmp_path / "run", max_steps=4000, log_interval=100, checkpoint_interval=5
    )
    status, _, err = finished(command("-c", code, tmp_path / "run", *words))
    last = err.strip().splitlines()[-1]
    assert status == 1 and "Traceback" not in err
    assert "could not be written" in last and "bytes needed" in last and "free" in last
    assert newest_step(tmp_path / "run") >= 5
    assert all(not p.name.startswith(".") for p in (tmp_path / "run" / "checkpoints").iterdir())


def test_too_little_memory_is_told_before_the_first_step_with_the_levers(data, tmp_path):
    code = (
        "from lathe import cli\n"
        "import resource, sys, train\n"
        "train.torch.set_num_threads(1)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)\n"
        "cli.run(lambda: train.main(sys.argv[1:]))\n"
    )
    words = arguments(
        data, tmp_path / "run", n_embd=256, n_layer=8, batch_size=512, micro_batch_size=512
    )
    status, _, err = finished(command("-c", code, *words))
    assert status == 1 and "Traceback" not in err, err
    last = err.strip().splitlines()[-1]
    for lever in (
        "--micro_batch_size (now 512)",
        "--block_size",
        "--activation_checkpointing=full",
        "--dtype=bfloat16",
    ):
        assert lever in last
    # Trying the memory or the first step itself may be what meets the limit: no step is told of.
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.exists() or metrics.read_text() == ""
    again = arguments(data, tmp_path / "run", max_steps=2)
    status, _, err = finished(command("train.py", *again))
    assert status == 0 and len(rows(tmp_path / "run")) == 2, err


# Numbers that are not finite, and spikes


def test_too_many_skipped_steps_stop_the_run_and_name_data_and_checkpoint(data, tmp_path):
    faulty = job(data, tmp_path / "run", fault=("nan", 0, 1 + 4 * 12 + 1), max_skipped_steps=1)
    ((code, _, err),) = run_ranks(1, tmp_path, faulty)
    last = err.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in err
    assert "up to step 13 (samples 96 to 103)" in last and "step-0000010" in last
    assert "step 13 skipped" in err and "from ranks [0]" in err
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 13))


def test_a_spike_is_skipped_where_asked_and_training_goes_on(data, tmp_path):
    spike = dict(fault=("spike", 0, 1 + 4 * 29 + 1), max_steps=32, eval_interval=32)
    often = dict(checkpoint_interval=1, keep_checkpoints=4)
    jobs = [
        job(data, tmp_path / "0.0", **spike),
        job(data, tmp_path / "20.0", skip_spikes=20.0, **spike, **often),
    ]
    ((code, _, err),) = run_ranks(1, tmp_path, *jobs)
    assert code == 0 and "step 30 skipped" in err and "times the usual" in err
    before, after = (
        load_weights(checkpoint.step_path(tmp_path / "20.0", step)) for step in (29, 30)
    )
    assert all((before[name] == after[name]).all() for name in before)
    assert (
        checkpoint.read_state(checkpoint.step_path(tmp_path / "20.0", 32))["train"]["skipped"] == 1
    )
    assert (
        checkpoint.read_state(checkpoint.step_path(tmp_path / "0.0", 32))["train"]["skipped"] == 0
    )
    assert losses(tmp_path / "20.0")[:29] == losses(tmp_path / "0.0")[:29]
