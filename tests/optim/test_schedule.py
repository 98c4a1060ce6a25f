"""What schedules promise, over all lengths of runs, warmups and decays."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.optim.schedule import lr_factor

runs = dict(
    max_steps=st.integers(1, 5000),
    warmup=st.integers(0, 2000),
    decay=st.floats(0, 1),
    low=st.floats(0, 1),
    schedule=st.sampled_from(("wsd", "cosine", "constant")),
)
many = settings(max_examples=200, derandomize=True)


@many
@given(st.data(), *runs.values())
def test_the_rate_stays_between_its_bounds(data, max_steps, warmup, decay, low, schedule):
    step = data.draw(st.integers(0, max_steps - 1))
    factor = lr_factor(step, max_steps, schedule, warmup, decay, low)
    assert 0 <= factor <= 1
    assert factor > 0 or low == 0
    if step >= max_steps // 5:  # warmup takes at most a fifth of the run
        assert factor >= low - 1e-12
    if step >= min(warmup, max_steps // 5):
        assert lr_factor(step + 1, max_steps, schedule, warmup, decay, low) <= factor + 1e-12


@many
@given(*runs.values())
def test_the_rate_ends_at_its_minimum(max_steps, warmup, decay, low, schedule):
    """The step after the last would have it: the last update is one decrement above."""
    end = lr_factor(max_steps, max_steps, schedule, warmup, decay, low)
    assert end == pytest.approx(1.0 if schedule == "constant" else low, abs=1e-9)
    if schedule == "wsd":
        last = lr_factor(max_steps - 1, max_steps, schedule, 0, decay, low)
        assert last - low <= (1 - low) / max(1.0, decay * max_steps) + 1e-9


@many
@given(st.data(), *runs.values())
def test_warmup_is_linear_and_starts_above_zero(data, max_steps, warmup, decay, low, schedule):
    rises = min(warmup, max_steps // 5)
    step = data.draw(st.integers(0, rises))
    assert lr_factor(step, max_steps, "constant", warmup, decay, low) == pytest.approx(
        (step + 1) / (rises + 1)
    )
    late = data.draw(st.integers(rises, max_steps))
    assert lr_factor(late, max_steps, "constant", warmup, decay, low) == 1


@many
@given(st.data(), *runs.values())
def test_wsd_is_flat_and_then_a_straight_line(data, max_steps, warmup, decay, low, schedule):
    bend = max_steps - max(1.0, decay * max_steps)
    step = data.draw(st.integers(min(warmup, max_steps // 5), max_steps))
    line = 1.0 if step <= bend else low + (1 - low) * (max_steps - step) / (max_steps - bend)
    assert lr_factor(step, max_steps, "wsd", warmup, decay, low) == pytest.approx(line)


@many
@given(st.integers(1, 1000), st.integers(0, 500), st.floats(0, 1))
def test_cosine_is_half_way_down_at_half_the_way_after_warmup(quarter, warmup, low):
    warmup = min(warmup, quarter)  # at most a fifth of the run
    rate = [
        lr_factor(warmup + i * quarter, warmup + 4 * quarter, "cosine", warmup, 0.2, low)
        for i in range(5)
    ]
    down = (1 + math.sqrt(0.5)) / 2  # a quarter of the way
    assert rate == pytest.approx([low + (1 - low) * x for x in (1, down, 0.5, 1 - down, 0)])


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="lr_schedule is 'linear': choose wsd, cosine or constant"):
        lr_factor(5, 10, "linear", 0, 0.2, 0.0)
