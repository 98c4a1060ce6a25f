"""When paired differences say enough: an interval that holds at every look.

A t-test repeated until it is significant calls equal things different sooner or later. Here the
chance of that is bounded over all looks together, so that one may stop whenever one likes.
"""

import math
import statistics
from dataclasses import dataclass

# Variance of the effects that are expected, as multiples of the pairs' standard deviation. The
# interval holds whatever the effect is; it is narrowest for effects of about this size.
EXPECTED_EFFECT = 10.0


@dataclass(frozen=True)
class Interval:
    """What n differences say of their mean."""

    n: int
    mean: float
    error: float  # the mean's standard error; inf of one difference
    low: float  # -inf where nothing can be said yet
    high: float

    @property
    def sign(self) -> int:
        """-1 or 1 if the mean is surely below or above 0, else 0."""
        return (self.low > 0) - (self.high < 0)

    def within(self, margin: float) -> bool:
        """Whether the mean is surely less than `margin` away from 0."""
        return -margin < self.low and self.high < margin


def interval(differences: list[float], error: float) -> Interval:
    """The interval of an anytime-valid t-test: in a sequence of normal differences of any variance,
    the chance that it ever misses their true mean, at any n, is `error` at most.

    The means that it leaves out are those against which a likelihood ratio has reached 1 / error:
    of the t-statistic under effects drawn from N(0, EXPECTED_EFFECT) to that under none, which is a
    martingale under none (Lai 1976, Ann. Statist. 4(2); Wang and Ramdas 2023, arXiv 2310.03722).
    Raises ValueError for no differences at all.
    """
    if not differences:
        raise ValueError("no differences")
    n = len(differences)
    mean = statistics.fmean(differences)
    if n == 1:
        return Interval(n, mean, math.inf, -math.inf, math.inf)
    standard_error = statistics.stdev(differences) / math.sqrt(n)
    width = largest_t(n, error) * standard_error if standard_error else 0.0
    if math.isinf(largest_t(n, error)):
        width = math.inf
    return Interval(n, mean, standard_error, mean - width, mean + width)


def largest_t(n: int, error: float) -> float:
    """The t-statistic of n differences at which the likelihood ratio is 1 / error; inf if none is.

    The ratio is r^(-1/2) ((1 + t^2/v) / (1 + t^2/(v r)))^(n/2), with v = n - 1 and r = 1 + n times
    EXPECTED_EFFECT: it grows with t^2, towards r^((n-1)/2).
    """
    v = n - 1
    r = 1 + n * EXPECTED_EFFECT
    log_power = 2 / n * (math.log(1 / error) + math.log(r) / 2)
    if log_power >= math.log(r):
        return math.inf
    power = math.exp(log_power)
    return math.sqrt(v * (power - 1) / (1 - power / r))
