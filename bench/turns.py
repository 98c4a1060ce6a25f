"""Arms take turns, so that what happens on the machine meanwhile happens to all of them."""

import sys
from collections.abc import Callable
from typing import TypeVar

Measured = TypeVar("Measured")


def in_turn(
    repeats: int,
    arms: dict[str, Callable[[], Measured]],
    warm_up: bool = False,
    describe: Callable[[Measured], str] | None = None,
) -> dict[str, list[Measured]]:
    """{arm: what its function returned, one for each repeat}.

    With warm_up, all are called once before what they return counts. describe: what stderr is told
    of a measurement as soon as it is there.
    """
    if warm_up:
        for measure in arms.values():
            measure()
    measured = {arm: [] for arm in arms}
    for repeat in range(repeats):
        for arm, measure in arms.items():
            measured[arm].append(measure())
            if describe is not None:
                about = describe(measured[arm][-1])
                print(f"run {repeat + 1} of {repeats}, {arm}: {about}", file=sys.stderr)
    return measured
