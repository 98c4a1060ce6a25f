"""Is B better than A? Both trained, seed by seed, until that is clear or the time is spent.

    python bench/compare.py shakespeare_char_cpu muon_momentum=0.9
    python bench/compare.py shakespeare_char_cpu speedrun --equal=flops
    python bench/compare.py "quickstart @HEAD~1" @HEAD --equal=minutes --run_minutes=1

An arm is a preset, settings and a revision of the code (@main; without one, the files as they
are), in one word or in quotes; each after the first that names no preset has A's presets and
settings, and its own. Several are each compared with A, whose runs they share.

A pair is A and B with the same seed, so with the same samples in the same order, for equally many
steps (A's), FLOPs (as many as A's steps take) or minutes (of the whole process, start and end
included: steps are chosen so from what earlier ones took; with --minutes in an arm, train.py goes
by its own clock, for --run_minutes). Their losses over the validation split
at the end are subtracted. After each pair the interval that surely has the mean difference is
looked at (bench/sequential.py): the chance of a wrong verdict is --error at most, however many
pairs it takes. "better" and "worse" are said when 0 is outside, "too close" when all of it is
within --margin, or when minutes or seeds are spent. A run that diverges counts as one that learned
nothing.

stderr has each run, stdout a table, the verdict and, last, a line of JSON for each comparison.
"""

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.arms import (
    Arm,
    Outcome,
    Words,
    completed,
    open_arm,
    read_words,
    run_arm,
    with_dashes,
)
from bench.results import record
from bench.sequential import Interval, interval
from lathe import cli
from lathe.fields import PathName

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROBE_STEPS = 20  # of the run by which an arm's steps in a minute are first estimated


@dataclass
class Options:
    """What to compare, and for how long."""

    arms: list[str] = field(default_factory=list)  # A, B and, if any, further ones
    common: str = ""  # settings of all arms, such as "--max_steps=600 --n_layer=4"
    dataset: PathName = ""  # what all arms read; empty = their presets'
    equal: Literal["steps", "flops", "minutes"] = "steps"  # what both sides of a pair are given
    run_minutes: float = 1.0  # --equal=minutes: wall-clock of a run
    minutes: float = 10.0  # wall-clock of each comparison
    seeds: int = 40  # pairs at most
    error: float = 0.01  # chance of a wrong verdict
    margin: float = 0.1  # percent of A's loss: a difference that is surely smaller is too close
    at_once: int = 1  # runs side by side, which share the processor's threads
    save: bool = False  # append the table to bench/RESULTS.md

    def __post_init__(self):
        if len(self.arms) < 2:
            raise ValueError("name two arms: compare.py A B, such as compare.py speedrun n_layer=1")
        for name in ("seeds", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("minutes", "run_minutes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        if not 0 < self.error < 1:
            raise ValueError(f"error is {self.error}: it must lie between 0 and 1")
        if not 0 <= self.margin < 100:
            raise ValueError(f"margin is {self.margin}: it must be 0 or more and below 100")
        read_common(self.common)
        read_arms(self.arms)


OPTION_NAMES = set(Options.__dataclass_fields__)


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(
        Options,
        with_dashes(sys.argv[1:] if argv is None else argv, OPTION_NAMES),
        prog="bench/compare.py",
        description=__doc__,
        positional="arms",
    )
    with ExitStack() as contexts:
        common = read_common(options.common)
        if options.dataset:
            common.append(f"--dataset={options.dataset}")
        a, *others = [
            open_arm(LETTERS[i], words, common, contexts)
            for i, words in enumerate(read_arms(options.arms))
        ]
        measured = f"--eval_tokens={a.settings['eval_tokens']}"  # the same tokens for all arms
        environment = threads_of_each(options.at_once)

        def train(arm: Arm, steps: int, seed: int) -> Outcome:
            clock = [] if steps else [f"--minutes={options.run_minutes}"]
            return run_arm(arm, steps, seed, [measured, *clock], environment)

        runs = Runs(a, others, options, train)
        verdicts = [compare(runs, b, options) for b in others]
    title = "A and B, where the differences are B less A"
    record(title, HEADER, [row_of(verdict) for verdict in verdicts], save=options.save)
    for verdict in verdicts:
        print(verdict.sentence())
    for verdict in verdicts:
        print(json.dumps(verdict.as_json()), flush=True)
    return 0


def read_common(text: str) -> list[str]:
    """Raises ValueError for what is no setting."""
    words = read_words(text)
    if words.presets or words.revision:
        raise ValueError(f"common is {text!r}: it holds settings alone, --name=value")
    return words.settings


def read_arms(texts: list[str]) -> list[Words]:
    """Raises ValueError for two arms that are the same, and for more than have a letter."""
    first = read_words(texts[0])
    arms = [first, *(completed(read_words(text), first) for text in texts[1:])]
    if len(arms) > len(LETTERS):
        raise ValueError(f"{len(arms)} arms are more than {len(LETTERS)}")
    for i, arm in enumerate(arms):
        for other in arms[:i]:
            if replace(arm, text="") == replace(other, text=""):
                raise ValueError(
                    f"{arm.text!r} and {other.text!r} are the same run: name a preset, setting or "
                    "revision that differs"
                )
    return arms


# -----------------------------------------------------------------------------
# Equal steps, FLOPs or minutes


@dataclass(frozen=True)
class Pair:
    """A seed's run of each arm."""

    a: Outcome
    b: Outcome


class Runs:
    """The runs of all arms, each made once, with as many steps as are equal to A's.

    train: from an arm, steps (0 = by the clock) and a seed to what becomes of the run.
    """

    def __init__(
        self,
        a: Arm,
        others: list[Arm],
        options: Options,
        train: Callable[[Arm, int, int], Outcome],
    ):
        self.a = a
        self.options = options
        self.train = train
        self.in_bits = any(b.settings["dataset"] != a.settings["dataset"] for b in others)
        self.outcomes: dict[tuple[str, int], Outcome] = {}  # by arm and index of the pair
        self.pace: dict[str, Outcome] = {}  # --equal=minutes: of each arm, the last
        self.repeated = math.nan  # by how much A's first run differs from itself
        for arm in (a, *others):
            if arm.by_minutes and options.equal != "minutes":
                raise ValueError(
                    f"{arm.name} ({arm.text}) goes by minutes, so its steps are not known: give it "
                    "max_steps=N, or compare with --equal=minutes"
                )
            self.announce(arm)

    def announce(self, arm: Arm):
        say(arm.describe())
        if arm.first_seed != self.a.first_seed:
            say(f"{arm.name}: seeds from {arm.first_seed}: a pair does not share its samples")
        if arm.by_minutes:
            say(f"{arm.name}: by the clock, {self.options.run_minutes:g} minutes")
        elif self.options.equal == "minutes":
            probe = self.train(arm, PROBE_STEPS, arm.first_seed)
            if probe.loss is None:
                why = f"{PROBE_STEPS} steps, by which its speed is measured"
                raise ValueError(f"{arm.name} ({arm.text}) diverges within {why} {probe.gave_up}")
            self.pace[arm.name] = probe
            steps = self.steps_of(arm)
            say(f"{arm.name}: {steps:,} steps fit into {self.options.run_minutes:g} minutes")
        elif self.steps_of(arm) != arm.steps:
            say(f"{arm.name}: {self.steps_of(arm):,} steps in place of its own {arm.steps:,}")

    def steps_of(self, arm: Arm) -> int:
        """0 = by the clock. Raises ValueError where start and end leave no minutes for steps."""
        if arm.by_minutes:
            return 0
        if self.options.equal == "steps":
            return self.a.steps
        if self.options.equal == "flops":
            return max(1, round(self.a.steps * self.a.flops_per_step / arm.flops_per_step))
        last = self.pace[arm.name]
        a_step = last.train_seconds / (last.steps - 1)
        beside = last.seconds - last.steps * a_step
        steps = (60 * self.options.run_minutes - beside) / a_step
        if steps < 2:
            raise ValueError(
                f"run_minutes is {self.options.run_minutes:g}: {arm.name} takes {beside:.1f} s "
                f"beside its steps and {a_step:.2g} s for each; give more"
            )
        return int(steps)

    def pairs(self, b: Arm, indexes: range) -> list[Pair]:
        """The pairs with these indexes; A and B go first in turn."""
        missing = []
        for i in indexes:
            order = (self.a, b) if i % 2 == 0 else (b, self.a)
            missing += [(arm, i) for arm in order if (arm.name, i) not in self.outcomes]

        def run_one(arm: Arm, i: int):
            outcome = self.train(arm, self.steps_of(arm), arm.first_seed + i)
            self.outcomes[arm.name, i] = outcome
            if arm.name in self.pace and outcome.loss is not None:
                self.pace[arm.name] = outcome
            diverged = f"diverged {outcome.gave_up}".strip()
            loss = diverged if outcome.loss is None else f"{outcome.loss:.4f}"
            say(f"{arm.name}, seed {outcome.seed}: {loss}, {outcome.seconds:.1f} s")

        if self.options.at_once == 1:
            for arm, i in missing:
                run_one(arm, i)
        else:
            with ThreadPoolExecutor(self.options.at_once) as pool:
                list(pool.map(lambda each: run_one(*each), missing))
        return [Pair(self.outcomes[self.a.name, i], self.outcomes[b.name, i]) for i in indexes]

    def repeat(self):
        """Run A's first seed once more, unless one is all: what differs is the machine's noise."""
        if math.isnan(self.repeated) and self.options.seeds > 1:
            again = self.train(self.a, self.steps_of(self.a), self.a.first_seed)
            first = self.outcomes[self.a.name, 0]
            self.repeated = abs(self.loss(self.a, again) - self.loss(self.a, first))

    def loss(self, arm: Arm, outcome: Outcome) -> float:
        """In the comparison's unit. Raises ValueError where there is none in that unit."""
        if not self.in_bits:
            # A model that has learned nothing gives each token the same chance
            return math.log(arm.vocab_size) if outcome.loss is None else outcome.loss
        if outcome.bits_per_byte is None:
            why = "diverged" if outcome.loss is None else "has a dataset that does not count bytes"
            raise ValueError(
                f"{arm.name} {why}, and losses of two datasets compare in bits per byte alone"
            )
        return outcome.bits_per_byte


def threads_of_each(at_once: int) -> dict[str, str]:
    """The variable that shares this process's threads among runs side by side."""
    if at_once == 1:
        return {}
    available = os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, int(available) // at_once))}


def say(line: str):
    print(line, file=sys.stderr, flush=True)


# -----------------------------------------------------------------------------
# The verdict


@dataclass(frozen=True)
class Side:
    """An arm in a comparison."""

    arm: str  # as it was written
    commit: str
    loss: float  # mean of its runs
    seed_sd: float  # of its losses from seed to seed; nan of one run
    losses: list[float]
    diverged: int
    steps: list[int]
    tokens: int  # a run read, on average
    flops: float  # a run took, on average
    seconds: float  # a run took, on average


@dataclass(frozen=True)
class Verdict:
    """What a comparison says."""

    name: str  # of the arm that is compared with A
    verdict: Literal["better", "worse", "too close"]
    why: Literal["clear", "within margin", "minutes spent", "seeds spent"]
    unit: str
    equal: str
    difference: Interval  # B less A
    margin: float  # in the unit
    chance_of_error: float
    repeat: float  # noise floor: the same run again differs by this; nan where none was
    a: Side
    b: Side
    seconds: float

    def sentence(self) -> str:
        d = self.difference
        between = f"{d.low:+.4f} and {d.high:+.4f}" if math.isfinite(d.low) else "any numbers"
        close = f"{self.name} and A are too close to call ({self.why})"
        claim = close if self.verdict == "too close" else f"{self.name} is {self.verdict} than A"
        share = 100 * d.mean / self.a.loss
        text = (
            f"{claim}: {self.b.loss:.4f} against {self.a.loss:.4f} {self.unit} at equal "
            f"{self.equal}, {with_error(d)} ({share:+.2f}%), surely between {between}; "
            f"{count(d.n, 'pair')}, {self.seconds:.0f} s"
        )
        if math.isfinite(self.repeat):
            text += f". Noise floor: the same run again differs by {self.repeat:.4f}"
        if math.isfinite(self.a.seed_sd):
            text += f", A's seeds by {self.a.seed_sd:.4f} (standard deviation)"
        return text

    def as_json(self) -> dict:
        """Numbers that are not finite are null."""
        d = self.difference
        return {
            "comparison": f"{self.name} against A",
            "verdict": self.verdict,
            "why": self.why,
            "unit": self.unit,
            "equal": self.equal,
            "difference": finite(d.mean),
            "percent": finite(100 * d.mean / self.a.loss),
            "error": finite(d.error),
            "low": finite(d.low),
            "high": finite(d.high),
            "chance_of_error": self.chance_of_error,
            "margin": finite(self.margin),
            "pairs": d.n,
            "noise": {"repeat": finite(self.repeat), "seeds": finite(self.a.seed_sd)},
            "seconds": round(self.seconds, 1),
            "A": {name: finite(value) for name, value in asdict(self.a).items()},
            "B": {name: finite(value) for name, value in asdict(self.b).items()},
        }


def with_error(d: Interval) -> str:
    return f"{d.mean:+.4f}" + (f" +- {d.error:.4f}" if math.isfinite(d.error) else "")


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def finite(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


def compare(runs: Runs, b: Arm, options: Options) -> Verdict:
    """Add pairs until the answer is clear or seeds or minutes are spent."""
    began = time.monotonic()
    pairs = []
    why = "seeds spent"
    while len(pairs) < options.seeds:
        wave_began = time.monotonic()
        end = min(options.seeds, len(pairs) + max(1, options.at_once // 2))
        pairs += runs.pairs(b, range(len(pairs), end))
        wave_seconds = time.monotonic() - wave_began
        runs.repeat()
        found = weigh(runs, b, pairs, options.error)
        margin = options.margin / 100 * statistics.fmean(runs.loss(runs.a, p.a) for p in pairs)
        if found.within(margin):
            why = "within margin"
            break
        if found.sign:
            why = "clear"
            break
        if time.monotonic() - began + wave_seconds > 60 * options.minutes:
            why = "minutes spent"
            break
    verdict = "too close"
    if why == "clear":
        verdict = "better" if found.sign < 0 else "worse"
    return Verdict(
        name=b.name,
        verdict=verdict,
        why=why,
        unit="bits per byte" if runs.in_bits else "nats per token",
        equal=options.equal,
        difference=found,
        margin=margin,
        chance_of_error=options.error,
        repeat=runs.repeated,
        a=side_of(runs, runs.a, [pair.a for pair in pairs]),
        b=side_of(runs, b, [pair.b for pair in pairs]),
        seconds=time.monotonic() - began,
    )


def weigh(runs: Runs, b: Arm, pairs: list[Pair], error: float) -> Interval:
    return interval([runs.loss(b, pair.b) - runs.loss(runs.a, pair.a) for pair in pairs], error)


def side_of(runs: Runs, arm: Arm, outcomes: list[Outcome]) -> Side:
    losses = [runs.loss(arm, outcome) for outcome in outcomes]
    steps = [outcome.steps for outcome in outcomes]
    tokens = statistics.fmean(steps) * arm.tokens_per_step
    return Side(
        arm=arm.text,
        commit=arm.commit,
        loss=statistics.fmean(losses),
        seed_sd=statistics.stdev(losses) if len(losses) > 1 else math.nan,
        losses=losses,
        diverged=sum(outcome.loss is None for outcome in outcomes),
        steps=steps,
        tokens=round(tokens),
        flops=tokens * arm.flops_per_token,
        seconds=statistics.fmean(outcome.seconds for outcome in outcomes),
    )


HEADER = ["B", "A", "verdict", "A's loss", "B's loss", "difference", "seeds differ by", "pairs"]
HEADER += ["A's steps", "B's steps", "A's seconds", "B's seconds", "diverged"]


def row_of(v: Verdict) -> list[str]:
    d = v.difference
    return [
        v.b.arm,
        v.a.arm,
        v.verdict,
        f"{v.a.loss:.4f}",
        f"{v.b.loss:.4f}",
        with_error(d),
        f"{v.a.seed_sd:.4f}" if math.isfinite(v.a.seed_sd) else "-",
        str(d.n),
        f"{statistics.fmean(v.a.steps):,.0f}",
        f"{statistics.fmean(v.b.steps):,.0f}",
        f"{v.a.seconds:.1f}",
        f"{v.b.seconds:.1f}",
        f"{v.a.diverged} and {v.b.diverged}",
    ]


if __name__ == "__main__":
    cli.run(main)
