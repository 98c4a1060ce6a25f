"""The clock of a run by minutes: how many steps there is time for, corrected as the run goes on.

Start-up, evaluations, samples, saves and the end of the process are inside the budget. What a step
takes is seen from the steps since the last look, of which there are ever more towards the end, so
that the last one comes on time whether the machine slows down or speeds up. Where the last
evaluation took much less than was put aside for it, the run goes on.
"""

import math
import time
from dataclasses import dataclass
from itertools import count

from lathe.optim.schedule import Leg
from lathe.run import ranks

# Left over at the end: looks are some steps apart, and the process has to close what is open.
SPARE_SHARE = 0.012
SPARE_SECONDS = 0.5
SPARE_OF_RANKS = 0.4  # more of that under torchrun, which looks now and then who has ended
LOOKS = 8  # the next one comes after this part of what is left
LATE = 2.0  # times what the steps until a look should take; then there is one at once
FIRST_LOOK = 2  # steps of a process, the first of which is slow
KEPT_SECONDS = 4.0  # of training that say what a step takes
MUCH = 0.08  # of the budget: what is left after the last evaluation is trained on from here on
AHEAD = 0.1  # so much more of the way than of the time is done: then the run goes back on its way
SURPRISE = 4  # steps; where more were to follow, none is the last before another look
PAUSE_SECONDS = 0.6  # of samples and page, before the first ones are measured
SAVE_SECONDS = 0.2


@dataclass(frozen=True)
class Mark:
    """A look at the clock in training."""

    step: int  # updates done
    trained: float  # seconds of this process until then, pauses left out


class Clock:
    """What of a budget is spent, and how many steps the rest is for.

    budget: seconds, of all processes of the run together, of which earlier ones have spent
    `spent_before`. began: time.monotonic() as this one began; step: updates done by then.
    evaluation_steps: how many steps take as long as the losses of an evaluation, about.
    """

    def __init__(
        self, budget: float, spent_before: float, began: float, step: int, evaluation_steps: float
    ):
        self.budget = budget
        self.spent_before = spent_before
        self.began = began
        self.first_step = step
        self.next_look = step + FIRST_LOOK
        self.evaluation_steps = evaluation_steps
        self.ending_steps = 0.0  # what the last evaluation takes longer than others, in steps
        self.spaces_evaluations = False  # whether their interval follows the number of steps
        self.pause: float | None = None  # of the last evaluation with samples and page, if any
        self.pause_step = 0.0  # seconds of a step at that time
        self.step_seconds = 0.0  # at the last look
        self.quick_step_seconds = 0.0  # or what one took since the look before, if that is less
        self.save = SAVE_SECONDS  # of the last save, which the end waits for; first a guess
        self._next_look_due = math.inf  # in seconds of training
        self._last_evaluation = 0.0  # seconds of training until then
        self._pauses = 0.0  # seconds of this process in which nothing was trained
        self._marks: list[Mark] = []  # the newest looks, oldest first

    def spent(self) -> float:
        return self.spent_before + time.monotonic() - self.began

    def is_over(self) -> bool:
        return self.spent() > self.budget

    def begin(self, step: int):
        """Training begins, now."""
        self._marks = [Mark(step, self._trained())]

    def paused(self, seconds: float, is_evaluation: bool):
        """Nothing was trained for so long."""
        self._pauses += seconds
        if is_evaluation:
            self.pause = seconds
            self.pause_step = self.quick_step_seconds
            self._last_evaluation = self._trained()

    def look(self, step: int, eval_interval: int, leg: Leg) -> Leg:
        """The leg that begins before update `step`: the one so far where it comes out the same."""
        self.step_seconds = step_seconds = self._step_seconds(step)
        pause = self._next_pause()
        left = self._left_beside(pause)
        n_steps = max(1, steps_beside_evaluations(left, step_seconds, pause, step, eval_interval))
        before = leg.last_step - step
        if (
            n_steps == 1 and before > SURPRISE
        ):  # that may be one slow step: there is a look after it
            n_steps = 2
        if abs(n_steps - before) <= 0.01 * before:
            return leg
        return self._new_leg(step, n_steps, left, leg)

    def go_on(self, step: int, leg: Leg) -> Leg:
        """After the last evaluation, before update `step`: a leg more where much time is left.

        A machine that was slow and is quick again needs less for that evaluation than was put
        aside. Else it is the leg so far. Another evaluation follows.
        """
        self.step_seconds = self._step_seconds(step)
        left = self._left_beside(self._next_pause())
        if left < MUCH * self.budget:
            return leg
        self.next_look = step + 1
        self._next_look_due = math.inf
        n_steps = max(2, round(left / self.step_seconds))  # a look comes before the last of them
        return self._new_leg(step, n_steps, left, leg)

    def _left_beside(self, pause: float) -> float:
        """Seconds for steps and evaluations beside the last one, which takes `pause`."""
        spare = SPARE_SECONDS + SPARE_SHARE * self.budget
        if ranks.own_number()[1] > 1:
            spare += SPARE_OF_RANKS
        ending = pause + self.ending_steps * self.quick_step_seconds + self.save
        return self.budget - spare - self.spent() - ending

    def _new_leg(self, step: int, n_steps: int, left: float, leg: Leg) -> Leg:
        """Of so many steps, in the seconds left."""
        # Where the end was put off again and again, the share would round to the whole way.
        share = min(leg.share_at(step), 1 - 1e-9)
        # The end was near and no longer is: steps of the lowest rates would learn nothing.
        of_time = max(0.0, 1 - left / self.budget)
        if share > of_time + AHEAD:
            share = of_time
        return Leg(step, share, step + n_steps)

    def set_next_look(self, step: int, last_step: int):
        """Soon at the beginning, when little is known, and ever more often towards the end."""
        done = step - self.first_step
        n_steps = max(1, min(done // 2, (last_step - step) // LOOKS))
        self.next_look = step + n_steps
        self._next_look_due = self._trained() + LATE * n_steps * self.step_seconds

    def is_overdue(self) -> bool:
        """Whether the next look should have come by now: steps have become much slower."""
        return self._trained() > self._next_look_due

    def _next_pause(self) -> float:
        """Of an evaluation: as long as the last one, and longer where steps are by now, too.

        By the newest steps where these are quicker: a run that begins its last evaluation for the
        sake of a machine that was slow ends far too early.
        """
        if self.pause is None:
            return PAUSE_SECONDS + self.evaluation_steps * self.quick_step_seconds
        if self._trained() - self._last_evaluation < KEPT_SECONDS:
            # What is seen of steps lags behind: the evaluation may have met the slower machine.
            self.pause_step = max(self.pause_step, self.quick_step_seconds)
        speed = self.quick_step_seconds
        return self.pause * speed / (self.pause_step or speed)

    def _trained(self) -> float:
        return time.monotonic() - self.began - self._pauses

    def _step_seconds(self, step: int) -> float:
        now = Mark(step, self._trained())
        if self.is_overdue():  # what steps took before says no more
            del self._marks[:-1]
        self._marks.append(now)
        while len(self._marks) > 2 and now.trained - self._marks[1].trained > KEPT_SECONDS:
            del self._marks[0]
        mean = seconds_a_step(self._marks[0], now)
        self.quick_step_seconds = min(mean, seconds_a_step(self._marks[-2], now))
        return mean


def seconds_a_step(first: Mark, last: Mark) -> float:
    return max(1e-6, (last.trained - first.trained) / (last.step - first.step))


def steps_beside_evaluations(
    seconds: float, step_seconds: float, pause: float, step: int, eval_interval: int
) -> int:
    """How many steps there is time for after `step`, beside evaluations of `pause` seconds each.

    None is held less than half an interval before the last step.
    """
    n_steps = 0
    for n_evaluations in count():
        in_time = round((seconds - n_evaluations * pause) / step_seconds)
        following = (step // eval_interval + n_evaluations + 1) * eval_interval
        # With one step more that one would be held, too.
        most = math.ceil(following + eval_interval / 2) - 1 - step
        n_steps = max(n_steps, min(in_time, most))
        if in_time <= most:
            return n_steps
