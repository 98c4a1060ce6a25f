"""Promises of a run by minutes about time, on a clock that the tests turn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.optim.schedule import Leg, position, read_pace
from lathe.run import clock
from lathe.run.clock import Clock

many = settings(max_examples=60, derandomize=True, deadline=None)


class Machine:
    """Trains by a clock of its own: what steps take changes at a share of the budget."""

    def __init__(self, budget: float, before: float, after: float, turn: float, pause: float):
        self.now = 1000.0
        self.budget = budget
        self.before = before
        self.after = after
        self.turn = 1000.0 + turn * budget
        self.pause = pause

    def monotonic(self) -> float:
        return self.now

    def train(self, planned: int, interval: int) -> list[Leg]:
        """The legs of a whole run, which began with a plan of so many steps."""
        self.now += 2.0  # start-up
        run = Clock(self.budget, 0.0, 1000.0, 0, evaluation_steps=3.0)
        run.begin(0)
        legs = [Leg(0, 0.0, planned)]
        step = 0
        while step < legs[-1].last_step:
            if step >= run.next_look:
                leg = run.look(step, interval, legs[-1])
                run.set_next_look(step, leg.last_step)
                if leg != legs[-1]:
                    legs.append(leg)
            self.now += self.before if self.now < self.turn else self.after
            step += 1
            if step % interval == 0 and step < legs[-1].last_step:
                self.now += self.pause
                run.paused(self.pause, is_evaluation=True)
        self.now += self.pause + 0.4  # the last evaluation, and the end of the process
        return legs


@many
@given(
    budget=st.sampled_from([60.0, 300.0, 1200.0]),
    step=st.floats(0.005, 0.3),
    change=st.floats(0.4, 2.5),
    turn=st.floats(0.0, 0.97),
    mistaken=st.floats(0.2, 5.0),
    pause=st.floats(0.2, 1.5),
)
def test_a_run_ends_on_time_whatever_the_machine_does(budget, step, change, turn, mistaken, pause):
    machine = Machine(budget, step, change * step, turn, pause)
    planned = max(10, round(mistaken * budget / step))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", machine)
        machine.train(planned, interval=max(1, planned // 4))
    took = machine.now - 1000.0
    assert 0.90 * budget <= took <= 1.02 * budget


@settings(max_examples=10, derandomize=True, deadline=None)
@given(step=st.floats(0.02, 0.2), change=st.floats(0.5, 2.0), turn=st.floats(0.1, 0.9))
def test_legs_are_one_way_from_the_first_step_to_the_last(step, change, turn):
    machine = Machine(60.0, step, change * step, turn, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", machine)
        legs = machine.train(round(60 / step), interval=1000)
    pace = [str(leg) for leg in legs]
    assert read_pace(pace) == legs
    last = legs[-1].last_step
    shares = []
    for k in range(last):
        at = position(k, last, pace)
        shares.append(at.step / at.max_steps)
    assert shares[0] == 0
    assert all(a < b for a, b in zip(shares, shares[1:], strict=False))
    assert 1 - shares[-1] <= 0.3 / max(1, last**0.5)
    # Before later legs were known it was the same to the last bit.
    for n in range(1, len(legs) + 1):
        known = legs[n - 1]
        k = known.step
        assert position(k, known.last_step, pace[:n]) == position(k, last, pace)


def test_without_legs_a_step_is_where_it_is():
    assert position(7, 20, []) == position(7, 20, ["0 0.0 10"])
    assert position(7, 20, []).step == 7


@pytest.mark.parametrize(
    "pace", [["x"], ["0 0.0"], ["1 0.0 5"], ["0 0.0 5", "0 0.1 9"], ["0 1.0 5"], ["5 0.0 5"], [""]]
)
def test_a_pace_that_is_none_is_refused_by_name(pace):
    with pytest.raises(ValueError, match="pace has"):
        read_pace(pace)
