"""The clock of a run by minutes: how many steps there is time for, corrected as the run goes on.

Start-up, evaluations, samples, saves and the end of the process are inside the budget. What a step
takes is seen from the steps since the last look, of which there are ever more towards the end, so
that the last one comes on time whether the machine slows down or speeds up.
"""

import time
from dataclasses import dataclass
from itertools import count

from lathe.optim.schedule import Leg

# Left over at the end: looks are some steps apart, and the process has to close what is open.
SPARE_SHARE = 0.012
SPARE_SECONDS = 0.6
LOOKS = 8  # the next one comes after this part of what is left
FIRST_LOOK = 2  # steps of a process, the first of which is slow
KEPT_SECONDS = 4.0  # of training that say what a step takes
PAUSE_SECONDS = 1.0  # of samples and page, before the first ones are measured
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
        self.pause: float | None = None  # of the last evaluation with samples and page, if any
        self.save = SAVE_SECONDS  # of the last save, which the end waits for; first a guess
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

    def look(self, step: int, eval_interval: int, leg: Leg) -> Leg:
        """The leg that begins before update `step`: the one so far where it comes out the same."""
        step_seconds = self._step_seconds(step)
        spare = SPARE_SECONDS + SPARE_SHARE * self.budget
        pause = self.pause
        if pause is None:
            pause = PAUSE_SECONDS + self.evaluation_steps * step_seconds
        ending = pause + self.ending_steps * step_seconds + self.save
        left = self.budget - spare - self.spent() - ending
        n_steps = round(left / step_seconds)
        for n_evaluations in count(1):
            if (step + n_steps - 1) // eval_interval - step // eval_interval < n_evaluations:
                break
            n_steps = round((left - n_evaluations * pause) / step_seconds)
        n_steps = max(1, n_steps)
        before = leg.last_step - step
        if abs(n_steps - before) <= 0.01 * before:
            return leg
        return Leg(step, leg.share_at(step), step + n_steps)

    def set_next_look(self, step: int, last_step: int):
        """Soon at the beginning, when little is known, and ever more often towards the end."""
        done = step - self.first_step
        self.next_look = step + max(1, min(done // 2, (last_step - step) // LOOKS))

    def _trained(self) -> float:
        return time.monotonic() - self.began - self._pauses

    def _step_seconds(self, step: int) -> float:
        now = Mark(step, self._trained())
        self._marks.append(now)
        while len(self._marks) > 2 and now.trained - self._marks[1].trained > KEPT_SECONDS:
            del self._marks[0]
        first = self._marks[0]
        return max(1e-6, (now.trained - first.trained) / (step - first.step))
