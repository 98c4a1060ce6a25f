"""How long a run takes: measured, and said in words that follow from what was measured."""

from dataclasses import replace

import pytest
import torch
from tiny_run import settings

from lathe.data.dataset import open_dataset
from lathe.run.devices import Runtime
from lathe.run.timing import Timing
from lathe.use.pace import expectation, in_words, measure_pace, slow_step_advice
from lathe.use.start import plan_run

CPU = Runtime(torch.device("cpu"), torch.float32)


def plan(dataset, tmp_path, **changed):
    return plan_run(settings(dataset, tmp_path, **changed), CPU, open_dataset(dataset), None)


@pytest.mark.parametrize("n_layer", [1, 5])
def test_a_plan_is_measured_and_no_random_number_is_drawn_for_that(n_layer, dataset, tmp_path):
    before = torch.get_rng_state()
    pace = measure_pace(plan(dataset, tmp_path, n_layer=n_layer), CPU)
    assert pace.token > 0 and pace.update > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_too_large_to_build_is_not_measured(dataset, tmp_path):
    large = plan(dataset, tmp_path, n_embd=8192, n_layer=40)
    assert measure_pace(large, CPU) is None


def test_what_to_expect_adds_up(dataset, tmp_path):
    its_plan = plan(dataset, tmp_path, max_steps=100, eval_interval=40)  # 4 micro-steps each
    pace = Timing(token=2.0 / 32, update=1.0)
    data = open_dataset(dataset)
    of_val = 16 * (1 + (data.val.n_tokens - 2) // 16)
    evaluation = 2 * of_val * pace.token / 3  # of training as many, forward alone
    said = expectation(its_plan, pace, data, steps_done=0)
    assert said.startswith(
        f"about {in_words(900 + 3 * evaluation)}: 100 steps of 9 s, 3 evaluations"
    )
    assert f"({of_val:,} validation and {of_val:,} training tokens)" in said
    assert ": 60 steps of 9 s, 2 evaluations" in expectation(its_plan, pace, data, steps_done=40)


def test_a_step_of_minutes_is_said_with_a_batch_that_takes_seconds(dataset, tmp_path):
    """What a preset of one line gets on a laptop: 524,288 tokens a step."""
    its_plan = plan(dataset, tmp_path, block_size=1024, batch_size=512, micro_batch_size=8)
    said = slow_step_advice(its_plan, Timing(token=4.0 / 8192, update=0.5))
    assert "524,288 tokens takes 4.3 minutes here: --batch_size=8 makes it 4 seconds" in said
    assert slow_step_advice(its_plan, Timing(1e-6, 0.01)) == ""
    one = replace(its_plan, settings=replace(its_plan.settings, batch_size=1))
    assert slow_step_advice(one, Timing(0.1, 1.0)) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "a second"), (20.4, "20 seconds"), (89, "89 seconds"), (200, "3.3 minutes")]
    + [(3000, "50 minutes"), (9000, "2.5 hours"), (1e6, "12 days"), (1e10, "115,741 days")],
)
def test_times_are_said_in_two_digits(seconds, words):
    assert in_words(seconds) == words
