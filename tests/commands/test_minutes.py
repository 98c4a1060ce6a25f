"""What --minutes promises: choices with reasons, an end on time, and a run that can be repeated by its steps."""

import json
import threading
from pathlib import Path

import pytest
import torch
from rank import as_it_was
from tiny_run import SMALL, command, finished, losses, rows, wait_for_step

import train
from lathe import cli
from lathe.optim.schedule import read_pace
from lathe.run import checkpoint, clock, timing
from lathe.settings import Settings
from lathe.use.start import which_run

pytestmark = pytest.mark.usefixtures("one_thread")

BUDGET = 0.1  # minutes
STEP = 0.05  # seconds of the tests' clock, which nothing but training steps turns
GIVEN = {
    name: value
    for name, value in SMALL.items()
    if name not in ("max_steps", "warmup_steps", "eval_interval")
}


class Hours:
    """A clock that goes on by STEP with each training step, on any machine."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        """Saves, which other threads write, take no time either."""
        return self.now if threading.current_thread() is threading.main_thread() else 0.0


@pytest.fixture
def hours(tmp_path, monkeypatch) -> Hours:
    """In place of the machine's clock where time counts; what is measured of networks is kept apart."""
    hours = Hours()
    train_step = train.train_step

    def timed_step(run: train.Run) -> dict:
        hours.now += STEP
        return train_step(run)

    monkeypatch.setattr(train, "train_step", timed_step)
    for module in (train, clock):
        monkeypatch.setattr(module, "time", hours)
    monkeypatch.setattr(timing, "speeds_file", lambda: tmp_path / "cache" / "speeds.json")
    return hours


def run(hours: Hours, monkeypatch, *words: str) -> int:
    """train.py in a new process, as far as its clock can tell; start-up takes half a second."""
    monkeypatch.setattr(train, "STARTED", hours.now - 0.5)
    return train.main(list(words))


def options(dataset: str, out, **changes) -> list[str]:
    said = {**GIVEN, "dataset": dataset, "out_dir": out, **changes}
    return [f"--{name}={value}" for name, value in said.items()]


def preset(out) -> Settings:
    return cli.parse(Settings, [str(Path(out) / "settings.toml")], presets=True)


def test_a_run_by_minutes_is_repeated_and_resumed_by_its_steps(
    dataset, tmp_path, hours, monkeypatch, capsys
):
    first = tmp_path / "first"
    words = options(dataset, first, minutes=BUDGET, dropout=0.1, checkpoint_interval=20)
    words.append("--keep_checkpoints=10")
    assert run(hours, monkeypatch, *words) == 0
    said = capsys.readouterr().err
    for name in (
        "learning_rate",
        "muon_learning_rate",
        "max_steps",
        "weight_decay",
        "eval_interval",
    ):
        assert f"\n{name} " in said, "each choice has its line"
    assert "n_embd 32: as given" in said
    assert "--minutes=0.2" in said.splitlines()[-1], "how to go on"

    kept = preset(first)
    steps = len(losses(first))
    assert kept.minutes == 0 and kept.max_steps == steps > 20
    assert read_pace(kept.pace)[-1].last_step == steps
    newest, _ = checkpoint.newest_checkpoint(first)
    state = json.loads((newest / "state.json").read_text())
    assert state["settings"]["minutes"] == BUDGET
    assert 0.5 * 60 * BUDGET < state["train"]["spent"] < 60 * BUDGET

    again = tmp_path / "again"
    assert train.main([str(first / "settings.toml"), f"--out_dir={again}"]) == 0
    assert losses(again) == losses(first)
    rates = [row["lr"] for row in rows(first)]
    assert [row["lr"] for row in rows(again)] == rates
    assert rates[-1] < 0.2 * max(rates)

    # As if it had been killed after its last save but one.
    third = tmp_path / "third"
    as_it_was(third, again, 60)
    words = [str(third / "settings.toml"), "--init_from=resume"]
    assert train.main(words) == 0
    assert losses(third) == losses(first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_run_by_minutes_captures_the_passes_of_a_small_network(
    dataset, tmp_path, hours, monkeypatch, capsys
):
    words = options(dataset, tmp_path / "run", minutes=BUDGET, device="cuda")
    assert run(hours, monkeypatch, *words) == 0
    said = capsys.readouterr().err
    assert "\ncuda_graphs True: launching kernels takes longer" in said
    assert "a CUDA graph a pass" in said and "no CUDA graph" not in said
    assert preset(tmp_path / "run").cuda_graphs
    values = losses(tmp_path / "run")
    assert values[-1] < values[0] - 0.1


def test_a_resume_goes_on_with_what_is_left(dataset, tmp_path, hours, monkeypatch, capsys):
    out = tmp_path / "run"
    words = options(dataset, out, minutes=BUDGET)
    assert run(hours, monkeypatch, *words) == 0
    steps = len(losses(out))
    capsys.readouterr()
    assert run(hours, monkeypatch, *words, "--init_from=resume") == 0
    assert f"complete at step {steps}" in capsys.readouterr().err

    # Of twice the minutes, half are left, of which this process has a part.
    longer = [str(out / "settings.toml"), "--init_from=resume", f"--minutes={2 * BUDGET}"]
    assert run(hours, monkeypatch, *longer) == 0
    more = rows(out)
    assert [row["step"] for row in more] == list(range(1, len(more) + 1))
    assert len(more) > steps
    assert more[steps]["lr"] > 2 * more[steps - 1]["lr"], "the rate rises to where half the way is"
    assert more[-1]["lr"] < more[steps]["lr"]

    by_steps = ["--init_from=resume", f"--max_steps={len(more) + 3}"]
    assert train.main([str(out / "settings.toml"), *by_steps]) == 0
    assert len(losses(out)) == len(more) + 3


def test_what_was_put_aside_for_a_slow_evaluation_is_trained_on(
    dataset, tmp_path, hours, monkeypatch, capsys
):
    """The machine was slow in the first evaluation alone: the last one was begun too early."""
    measure = train.measure
    slow = [1.2]

    def measure_slowly_once(run: train.Run) -> dict:
        hours.now += slow.pop() if slow else 0.0
        return measure(run)

    monkeypatch.setattr(train, "measure", measure_slowly_once)
    first, again = tmp_path / "first", tmp_path / "again"
    words = options(dataset, first, minutes=BUDGET, average_fraction=0.1, dropout=0.1)
    assert run(hours, monkeypatch, *words) == 0
    said = capsys.readouterr().err
    assert "s are left, more than expected: on to step" in said
    newest, _ = checkpoint.newest_checkpoint(first)
    state = json.loads((newest / "state.json").read_text())
    assert 0.80 * 60 * BUDGET < state["train"]["spent"] < 60 * BUDGET
    rates = [row["lr"] for row in rows(first)]
    assert any(a < 0.5 * b for a, b in zip(rates, rates[1:], strict=False)), "it went back"

    assert train.main([str(first / "settings.toml"), f"--out_dir={again}"]) == 0
    assert losses(again) == losses(first)


@pytest.mark.parametrize(
    "words, what",
    [
        (["--minutes=1", "--max_steps=5"], "minutes and max_steps both"),
        (["--minutes=1", "--tokens=5000"], "minutes and tokens both"),
        (["--minutes=0.01"], "minutes is 0.01"),
        (["--minutes=-1"], "minutes is -1.0"),
        (["--minutes=1", "--gpus=H100", "--dry_run"], "gpus"),
        (["--max_steps=5", "--pace", "rubbish"], "pace has 'rubbish'"),
        (["both.toml"], "minutes and max_steps both"),
    ],
)
def test_what_does_not_go_together_is_refused(dataset, tmp_path, monkeypatch, capsys, words, what):
    monkeypatch.chdir(tmp_path)
    Path("both.toml").write_text("minutes = 1\nmax_steps = 7\n")
    with pytest.raises((SystemExit, ValueError)) as refused:
        train.main([*words, f"--dataset={dataset}", "--out_dir=run", "--n_embd=32", "--n_head=2"])
    said = capsys.readouterr().err + str(refused.value)
    assert what in said
    assert not Path("run", "checkpoints").exists()


def test_the_command_line_goes_before_a_preset(tmp_path):
    (tmp_path / "steps.toml").write_text("max_steps = 7\n")
    (tmp_path / "minutes.toml").write_text("minutes = 3\n")
    notes = []

    def settled(*words: str) -> Settings:
        return which_run(cli.parse(Settings, list(words), presets=True), notes.append)

    assert settled(str(tmp_path / "steps.toml"), "--minutes=2").minutes == 2
    assert "max_steps = 7 gives way" in notes[0]
    assert settled(str(tmp_path / "minutes.toml"), "--max_steps=9").minutes == 0


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_ranks_go_by_one_clock(dataset, tmp_path):
    """A rank that had another number of steps in mind would wait for the other for ever."""
    out = tmp_path / "run"
    words = options(dataset, out, minutes=0.25)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")
    code, _, err = finished(command(*launch, *words))
    assert code == 0, err[-3000:]
    kept = preset(out)
    assert [row["step"] for row in rows(out)] == list(range(1, kept.max_steps + 1))
    assert read_pace(kept.pace)[-1].last_step == kept.max_steps > 1


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_killed_run_goes_on_with_what_was_left_when_it_saved(dataset, tmp_path):
    out = tmp_path / "run"
    words = options(dataset, out, minutes=0.3, checkpoint_interval=20)
    process = command("train.py", *words)
    wait_for_step(process, out, 50)
    process.kill()
    process.communicate()
    saved, _ = checkpoint.newest_checkpoint(out)
    spent = json.loads((saved / "state.json").read_text())["train"]["spent"]
    code, _, err = finished(command("train.py", *words, "--init_from=resume"))
    assert code == 0, err[-3000:]
    kept = preset(out)
    assert [row["step"] for row in rows(out)] == list(range(1, kept.max_steps + 1))
    newest, _ = checkpoint.newest_checkpoint(out)
    assert spent < json.loads((newest / "state.json").read_text())["train"]["spent"] < 60 * 0.3
