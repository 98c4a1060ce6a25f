"""However often a run is stopped and resumed, it is the run that nobody stopped, bit for bit."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from kinds_of_runs import KINDS, make_data, rows_without_times, settings_of
from tiny_run import run_ranks

import train
from lathe.run import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STEPS = 24
STOPS = [3, 7, 10, 14, 17]  # between evaluations, and in the step before one
OFTEN = dict(max_steps=STEPS, eval_interval=5, keep_checkpoints=100)
IN_THE_SUITE = ("n-grams and a mask",)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    make_data(folder)
    return folder


def kinds_on(n_ranks: int) -> list:
    """Names of kinds, for parametrize."""
    names = [name for name, kind in KINDS.items() if kind.n_ranks == n_ranks]
    slow = pytest.mark.exhaustive
    return [name if name in IN_THE_SUITE else pytest.param(name, marks=slow) for name in names]


def said_by(path: Path) -> dict:
    """What state.json of a checkpoint says of the run: of every file its checksum, too."""
    state = json.loads((path / "state.json").read_text())
    state["train"].pop("wandb_run_id")
    for of_the_life in ("settings", "checksum"):
        state.pop(of_the_life)
    return state


def assert_same_at(step: int, straight: Path, resumed: Path):
    """The checkpoints of that step, of a run and of another one that was stopped there or before."""
    expected, said = (said_by(checkpoint.step_path(run, step)) for run in (straight, resumed))
    if step % OFTEN["eval_interval"] == 0 and step < STEPS:  # before its evaluation, or after it
        for state in (expected, said):
            state.pop("val_loss")
            for of_evaluation in ("evaluation", "best_val_loss"):
                state["train"].pop(of_evaluation)
    assert said == expected


def assert_same_to_the_end(straight: Path, resumed: Path):
    assert_same_at(STEPS, straight, resumed)
    for name in ("metrics.jsonl", "samples.jsonl"):
        expected = rows_without_times(straight / name)
        assert rows_without_times(resumed / name) == expected
    best = Path("checkpoints", "best")
    assert (resumed / best).read_text() == (straight / best).read_text()


def train_until(step: int, settings, monkeypatch) -> int:
    """A life of a run, which a signal ends in this step."""
    set_lr = train.set_lr

    def stop_in_its_last(run: train.Run) -> float:
        if run.state.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return set_lr(run)

    with monkeypatch.context() as patched:
        patched.setattr(train, "set_lr", stop_in_its_last)
        return train.train(settings)


@pytest.mark.parametrize("name", kinds_on(1))
def test_a_run_resumed_five_times_is_the_run_itself_bit_for_bit(data, tmp_path, monkeypatch, name):
    straight = tmp_path / "straight"
    resumed = tmp_path / "resumed"
    ask = partial(settings_of, KINDS[name], data, **OFTEN)
    assert train.train(ask(straight, checkpoint_interval=1)) == 0
    begins = {}
    for stop in STOPS:
        code = train_until(stop, ask(resumed, **begins), monkeypatch)
        assert code == 128 + signal.SIGTERM
        assert_same_at(stop, straight, resumed)
        begins = {"init_from": "resume"}
    assert train.train(ask(resumed, **begins)) == 0
    assert_same_to_the_end(straight, resumed)


@pytest.mark.parametrize("name", kinds_on(2))
def test_two_ranks_resumed_five_times_are_the_run_itself_bit_for_bit(data, tmp_path, name):
    straight = tmp_path / "straight"
    resumed = tmp_path / "resumed"
    kind = KINDS[name]
    whole = settings_of(kind, data, straight, **OFTEN, checkpoint_interval=1)
    jobs = [{"settings": vars(whole)}]
    micro_steps = whole.batch_size // (kind.n_ranks * whole.micro_batch_size)
    begun = 0
    for stop in [*STOPS, STEPS]:
        begins = {"init_from": "resume"} if begun else {}
        jobs.append({"settings": vars(settings_of(kind, data, resumed, **OFTEN, **begins))})
        if stop < STEPS:  # the first pass is the one that is tried before training
            jobs[-1]["fault"] = ("signal", 1, 2 + (stop - begun - 1) * micro_steps)
        begun = stop
    for code, _, err in run_ranks(kind.n_ranks, tmp_path, *jobs):
        assert code == 0, err[-3000:]
    for stop in STOPS:
        assert_same_at(stop, straight, resumed)
    assert_same_to_the_end(straight, resumed)
