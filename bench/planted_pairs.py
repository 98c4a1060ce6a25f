"""How often bench/compare.py is wrong: 20 pairs of which is known who is better, if anyone.

    python bench/planted_pairs.py --dataset=data/shakespeare_char

Ten pairs differ in what does not matter (seeds, rounding, what is logged), ten by 0.5 to 1.3% of
the loss, as 12 seeds beside those that are used here say. Runs are trained within this process:
what decides is compare's own, with its default chance of error.
"""

import io
import sys
import tempfile
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.arms import Arm, Outcome, open_arm, read_words, train_seconds
from bench.compare import Options, Runs, Verdict, compare, with_error
from bench.results import record
from lathe import cli
from lathe.run.metrics import read_metrics

BED = "shakespeare_char_cpu max_steps=60 eval_tokens=20000"
EQUAL = [  # what A and B have beside the bed
    ("", "log_interval=1"),
    ("", "keep_checkpoints=5"),
    ("", "micro_batch_size=8"),
    ("", "micro_batch_size=4"),
    ("", "seed=5000"),
    ("seed=6000", "seed=7000"),
    ("", "beta2=0.9501"),
    ("", "rope_theta=10010"),
    ("", "norm_eps=0.0000100001"),
    ("seed=3000", "micro_batch_size=8 seed=3000"),
]
WORSE = [  # by percent of the loss: +1.11, +1.15, +1.32, +0.54, +0.5
    "muon_momentum=0.95",
    "learning_rate=0.015",
    "qk_norm=false",
    "n_hidden=128",
    "muon_momentum=0.9 learning_rate=0.02",
]
DIFFERENT = [("", words) for words in WORSE]
DIFFERENT += [(f"{words} seed=4000", "seed=4000") for words in WORSE]


@dataclass
class OwnOptions:
    """How long to look."""

    dataset: str = "data/shakespeare_char"  # that all read
    minutes: float = 1.0  # of each comparison
    seeds: int = 16  # pairs of runs of each comparison, at most
    save: bool = True  # append the table to bench/RESULTS.md


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(OwnOptions, argv, prog="bench/planted_pairs.py", description=__doc__)
    rows = []
    n_wrong = 0
    n_close = 0
    truths = ["equal"] * len(EQUAL) + ["worse"] * len(WORSE) + ["better"] * len(WORSE)
    for (words_of_a, words_of_b), truth in zip(EQUAL + DIFFERENT, truths, strict=True):
        verdict = compare_pair(words_of_a, words_of_b, options)
        is_close = verdict.verdict == "too close"
        is_wrong = not is_close and verdict.verdict != truth
        n_wrong += is_wrong
        n_close += is_close and truth != "equal"
        arms = f"{words_of_a or 'bed'} / {words_of_b}"
        difference = with_error(verdict.difference)
        row = [arms, truth, verdict.verdict, difference, str(verdict.difference.n)]
        rows.append([*row, f"{verdict.seconds:.0f}", "WRONG" if is_wrong else ""])
        print(rows[-1], file=sys.stderr, flush=True)
    notes = f"{n_wrong} wrong; {n_close} of {len(DIFFERENT)} differences were left open."
    header = ["A / B", "truth", "verdict", "difference", "pairs", "seconds", "wrong"]
    record("Comparisons of planted pairs", header, rows, notes, options.save)
    return 1 if n_wrong else 0


def compare_pair(words_of_a: str, words_of_b: str, options: OwnOptions) -> Verdict:
    arms = [f"{BED} {words}" for words in (words_of_a, words_of_b)]
    asked = Options(arms, minutes=options.minutes, seeds=options.seeds)
    common = [f"--dataset={options.dataset}"]
    with ExitStack() as contexts:
        a, b = (
            open_arm(name, read_words(words), common, contexts)
            for name, words in zip("AB", arms, strict=True)
        )
    return compare(Runs(a, [b], asked, train_here), b, asked)


def train_here(arm: Arm, steps: int, seed: int) -> Outcome:
    """As run_arm, in this process."""
    import train

    with tempfile.TemporaryDirectory() as scratch:
        command = [*arm.command, f"--seed={seed}", f"--eval_interval={steps}"]
        command += [f"--checkpoint_interval={steps}", "--sample_tokens=0"]
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            train.main([*command, f"--out_dir={scratch}/run"])
        rows, evaluations = read_metrics(Path(scratch, "run", "metrics.jsonl"))
    last = evaluations[-1]
    loss = last["val_loss"]
    seconds = train_seconds(rows)
    return Outcome(seed, steps, loss, last["val_bits_per_byte"], seconds, seconds)


if __name__ == "__main__":
    cli.run(main)
