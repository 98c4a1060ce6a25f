"""Promises of a run by minutes about time, on a clock that the tests turn."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lathe.optim.schedule import Leg, is_near_end, position, read_pace
from lathe.run import clock
from lathe.run.clock import Clock

many = settings(max_examples=60, derandomize=True, deadline=None)


class Machine:
    """Trains by a clock of its own: what steps take changes at a share of the budget, and once more
    at `end`."""

    def __init__(
        self,
        budget: float,
        before: float,
        after: float,
        turn: float,
        pause: float,
        end: float = math.inf,
    ):
        self.now = 1000.0
        self.budget = budget
        self.before = before
        self.after = after
        self.turn = 1000.0 + turn * budget
        self.end = 1000.0 + end * budget  # from then on it is as before
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
        self.evaluated = []
        while step < legs[-1].last_step or self.goes_on(run, step, legs):
            if step >= run.next_look:
                leg = run.look(step, interval, legs[-1])
                run.set_next_look(step, leg.last_step)
                if leg != legs[-1]:
                    legs.append(leg)
            self.now += self.step_now()
            step += 1
            if run.is_overdue():
                run.next_look = step
            last = legs[-1].last_step
            if step >= last:
                self.evaluate(run)
            if step % interval or step >= last:
                continue
            if not is_near_end(step, interval / 2, last, [str(leg) for leg in legs]):
                self.evaluate(run)
                self.evaluated.append(step)
        self.now += 0.4  # the end of the process
        return legs

    def goes_on(self, run: Clock, step: int, legs: list[Leg]) -> bool:
        leg = run.go_on(step, legs[-1])
        if leg == legs[-1]:
            return False
        legs.append(leg)
        return True

    def evaluate(self, run: Clock):
        """It takes longer, too, where steps do."""
        pause = self.pause * self.step_now() / self.before
        self.now += pause
        run.paused(pause, is_evaluation=True)

    def step_now(self) -> float:
        return self.after if self.turn <= self.now < self.end else self.before


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
    # Where none came before it, what the last evaluation takes is a guess.
    late = 1.02 if machine.evaluated else 1.04
    assert 0.90 * budget <= took <= late * budget


@pytest.mark.parametrize("slower", [5.0, 20.0, 60.0])
def test_a_machine_that_comes_to_a_crawl_is_noticed_at_once(slower):
    """As two ranks do beside busy processes: the next look was hundreds of steps away."""
    machine = Machine(60.0, 0.02, 0.02 * slower, 0.4, 0.02)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", machine)
        machine.train(2500, interval=10_000)
    assert 0.90 * 60 <= machine.now - 1000.0 <= 1.02 * 60


@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    budget=st.sampled_from([60.0, 120.0]),
    step=st.floats(0.02, 0.2),
    slower=st.floats(2.0, 20.0),
    turn=st.floats(0.1, 0.9),
    length=st.floats(0.01, 0.5),
    pause=st.floats(0.2, 6.0),
)
def test_a_run_that_was_slow_for_a_while_does_not_end_far_too_early(
    budget, step, slower, turn, length, pause
):
    machine = Machine(budget, step, slower * step, turn, pause, turn + length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", machine)
        legs = machine.train(round(budget / step), interval=round(0.53 * budget / step))
    took = machine.now - 1000.0
    assert 0.90 * budget <= took
    # What an evaluation takes was seen, and the machine was quick again long before the last one.
    if machine.evaluated and machine.end < machine.now - 2 * slower * pause:
        assert took <= 1.02 * budget
    read_pace([str(leg) for leg in legs])


def test_a_run_that_had_nearly_ended_goes_back_to_where_its_time_is():
    """Else the steps that are added would all be of the lowest rates."""
    run = Clock(120.0, 0.0, 1000.0, 0, evaluation_steps=3.0)
    machine = Machine(120.0, 0.1, 0.1, 1.0, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", machine)
        run.begin(0)
        machine.now += 60.0  # 100 slow steps, and an evaluation
        run.paused(0.5, is_evaluation=True)
        ended = Leg(0, 0.0, 100)
        leg = run.go_on(100, ended)
        assert leg.share == pytest.approx(0.5, abs=0.05) and leg.last_step > 180
        assert run.next_look == 101
        machine.now += 55.0
        run.paused(54.0, is_evaluation=True)
        assert run.go_on(110, ended) == ended, "little is left"


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


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    budget=st.sampled_from([12.0, 60.0, 300.0]),
    interval=st.integers(20, 5000),
    step=st.floats(0.02, 0.3),
    pause=st.floats(0.1, 1.5),
)
def test_no_evaluation_comes_just_before_the_last_on_a_steady_machine(
    budget, interval, step, pause
):
    assume(interval * step > 2 * pause)
    machine = Machine(budget, step, step, 1.0, pause)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", machine)
        legs = machine.train(round(budget / step), interval)
    last = legs[-1].last_step
    expected = [n for n in range(interval, last, interval) if last - n >= interval / 2]
    # The steps to come are known to a hundredth of those left.
    assert machine.evaluated in (expected, expected[:-1])
    assert all(last - n >= 0.4 * interval for n in machine.evaluated)


def test_a_repeat_by_its_legs_evaluates_where_the_run_did():
    machine = Machine(60.0, 0.05, 0.02, 0.5, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", machine)
        legs = machine.train(800, interval=170)
    pace = [str(leg) for leg in legs]
    last = legs[-1].last_step
    again = [n for n in range(170, last, 170) if not is_near_end(n, 85, last, pace)]
    assert again == machine.evaluated != []
    assert not is_near_end(last - 1, 85, last, []), "without a clock each interval counts"


def test_without_legs_a_step_is_where_it_is():
    assert position(7, 20, []) == position(7, 20, ["0 0.0 10"])
    assert position(7, 20, []).step == 7


@pytest.mark.parametrize(
    "pace", [["x"], ["0 0.0"], ["1 0.0 5"], ["0 0.0 5", "0 0.1 9"], ["0 1.0 5"], ["5 0.0 5"], [""]]
)
def test_a_pace_that_is_none_is_refused_by_name(pace):
    with pytest.raises(ValueError, match="pace has"):
        read_pace(pace)
