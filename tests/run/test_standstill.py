"""What lathe/run/standstill.py promises: a run that learns nothing stops, one that learns is left alone."""

from subprocess import Popen

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ROOT, arguments, command, finished, free_ports, losses, settings

import train
from lathe.run.standstill import EQUAL_LOSSES, WATCHED, ZERO_GRADIENTS, Standstill

# What a compiler does that is wrong, in a process of its own: the loss is right, the gradients not.
PROGRAM = """
import sys
import train
from lathe import cli
from lathe.settings import Settings

build = train.build_model

def build_model(*arguments):
    model = build(*arguments)
    for p in model.parameters():
        {fault}
    return model

train.build_model = build_model
cli.run(train.train, cli.parse(Settings, sys.argv[1:], **train.PARSER))
"""


def start(dataset: str, out, env: dict[str, str] | None = None, **changed) -> Popen:
    """A training run whose gradients a hook makes zero."""
    words = arguments(dataset, out, **changed)
    program = PROGRAM.format(fault="p.register_hook(lambda grad: grad * 0)")
    return command("-c", program, *words, env={"PYTHONPATH": str(ROOT), **(env or {})})


def last_words(process: Popen) -> str:
    code, _, err = finished(process)
    assert code == 1 and "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_a_run_whose_gradients_are_all_zero_stops_and_says_so(dataset, tmp_path):
    said = last_words(start(dataset, tmp_path / "run"))
    assert "all gradients are exactly zero in steps 1 to 5" in said
    assert "5.549" in said and "compile" not in said
    assert len(losses(tmp_path / "run")) < 2 * ZERO_GRADIENTS


def test_the_compiler_is_suspected_where_there_is_one():
    watch = Standstill(compiled=True)
    numbers = dict(loss=5.0, grad_norm=0.0, skipped=False)
    with pytest.raises(ValueError, match="--compile=false") as error:
        for step in range(11, 11 + ZERO_GRADIENTS):
            watch.look(step, 0.1, numbers)
    assert f"torch {torch.__version__}" in str(error.value) and "steps 11 to 15" in str(error.value)


def test_weights_that_do_not_move_stop_the_run(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("lathe.optim.optimizer.Optimizer.step", lambda self, skip=None: None)
    with pytest.raises(ValueError, match=r"the loss is 5\.549\d* in each of steps 1 to 21"):
        train.train(settings(dataset, tmp_path / "run", max_steps=40))


@pytest.mark.parametrize(
    "changed",
    [
        dict(learning_rate=0.0, muon_learning_rate=0.0),
        dict(learning_rate=1e-9, optimizer="adamw"),
        dict(max_steps=120, warmup_steps=24, learning_rate=1e-5, optimizer="adamw"),
        dict(document_mask=True, grad_clip=0.0),
    ],
)
def test_a_run_that_means_to_be_slow_is_left_alone(dataset, tmp_path, changed):
    s = settings(dataset, tmp_path / "run", **{"max_steps": 45, "eval_interval": 1000, **changed})
    assert train.train(s) == 0


def test_a_fine_tuned_run_is_left_alone(dataset, tmp_path):
    """LoRA's first step: all gradients of one half are zero. Then one that goes on."""
    assert train.train(settings(dataset, tmp_path / "run")) == 0
    tuned = settings(dataset, tmp_path / "tuned", init_from=str(tmp_path / "run"), lora_rank=2)
    assert train.train(tuned) == 0


def test_what_is_learned_by_heart_is_no_standstill():
    watch = Standstill(compiled=False)
    for step in range(WATCHED):
        watch.look(step, 0.1, dict(loss=0.0, grad_norm=0.0, skipped=False))


@given(st.data())
def test_the_run_stops_exactly_when_so_many_in_a_row_are_zero(data):
    """Whatever comes before: skipped steps, single zeros, a loss that repeats less often."""
    steps = data.draw(
        st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=WATCHED)
    )
    watch = Standstill(compiled=True)
    zeros = repeats = 0
    loss = None
    for step, (is_zero, same_loss, skipped) in enumerate(steps, 1):
        now = loss if same_loss and loss is not None else float(step)
        numbers = dict(loss=now, grad_norm=0.0 if is_zero else 1.0, skipped=skipped)
        if not skipped:
            zeros = zeros + 1 if is_zero else 0
            repeats = repeats + 1 if now == loss else 0
            loss = now
        if not skipped and (zeros == ZERO_GRADIENTS or repeats == EQUAL_LOSSES):
            with pytest.raises(ValueError, match="training does nothing"):
                watch.look(step, 0.1, numbers)
            return
        watch.look(step, 0.1, numbers)


@pytest.mark.slow
def test_two_ranks_stop_alike(dataset, tmp_path):
    (port,) = free_ports(1)
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    ranks = [start(dataset, tmp_path / "run", env=env[rank]) for rank in range(2)]
    said = [last_words(rank) for rank in ranks]
    assert all("all gradients are exactly zero in steps 1 to 5" in line for line in said), said
