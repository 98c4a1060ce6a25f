"""How often bench/compare.py is wrong: 20 pairs of which is known who is better, if anyone.

    python bench/planted_pairs.py --dataset=data/shakespeare_char

Ten pairs differ in what does not matter (seeds, rounding, what is logged), ten by 0.6 to 1.2% of
the loss, as 12 seeds beside those that are used here say. Runs are trained within this process, and
once where several comparisons share them; what decides is compare's own, with its default error.
"""

import io
import math
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.arms import Arm, Outcome, read_words, train_seconds
from bench.compare import Options, Runs, Verdict, compare, with_error
from bench.results import record
from lathe import ROOT, cli
from lathe.data.dataset import open_dataset
from lathe.run.metrics import read_metrics
from lathe.settings import Settings

BED = "shakespeare_char_cpu n_layer=1 block_size=32 max_steps=60 eval_tokens=10000"
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
WORSE = {  # by percent of the loss, over seeds 10000 to 10011
    "muon_momentum=0.95": 1.09,
    "n_head=4": 0.99,
    "qk_norm=false": 0.79,
    "beta1=0.95": 0.62,
    "muon_learning_rate=0.03": 1.21,
}


@dataclass(frozen=True)
class Planted:
    """Words of both arms beside the bed's, and what is true of B."""

    a: str
    b: str
    truth: str


def planted_pairs() -> list[Planted]:
    """All twenty, of each kind in turn."""
    equal = [Planted(a, b, "equal") for a, b in EQUAL]
    worse = [Planted("", words, "worse") for words in WORSE]
    better = [Planted(f"{words} seed=4000", "seed=4000", "better") for words in WORSE]
    return [pair for both in zip(equal, worse + better, strict=True) for pair in both]


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
    n_open = 0
    for pair in planted_pairs():
        verdict = compare_pair(pair, options)
        is_open = verdict.verdict == "too close"
        is_wrong = not is_open and verdict.verdict != pair.truth
        n_wrong += is_wrong
        n_open += is_open and pair.truth != "equal"
        arms = f"{pair.a or 'bed'} / {pair.b}"
        difference = with_error(verdict.difference)
        row = [arms, pair.truth, verdict.verdict, difference, str(verdict.difference.n)]
        rows.append([*row, f"{verdict.seconds:.0f}", "WRONG" if is_wrong else ""])
        print(rows[-1], file=sys.stderr, flush=True)
    notes = f"{n_wrong} wrong; {n_open} of the ten differences were left open."
    header = ["A / B", "truth", "verdict", "difference", "pairs", "seconds", "wrong"]
    record("Comparisons of planted pairs", header, rows, notes, options.save)
    return 1 if n_wrong else 0


def compare_pair(pair: Planted, options: OwnOptions) -> Verdict:
    texts = [f"{BED} {words}" for words in (pair.a, pair.b)]
    asked = Options(texts, minutes=options.minutes, seeds=options.seeds)
    a, b = (arm_of(name, text, options) for name, text in zip("AB", texts, strict=True))
    return compare(Runs(a, [b], asked, train_here), b, asked)


def arm_of(name: str, text: str, options: OwnOptions) -> Arm:
    """As open_arm, of this code and without a process."""
    words = read_words(text)
    command = [*words.presets, *words.settings, f"--dataset={options.dataset}"]
    settings = cli.parse(Settings, command, presets=True)
    vocab_size = open_dataset(options.dataset).vocab_size
    tokens = settings.batch_size * settings.block_size
    steps = settings.max_steps
    every = asdict(settings)
    return Arm(name, text, ROOT, "", command, every, steps, tokens, math.nan, vocab_size)


TRAINED: dict[tuple, Outcome] = {}  # by command and seed


def train_here(arm: Arm, steps: int, seed: int) -> Outcome:
    """As run_arm, in this process, if nobody has yet."""
    # its first seed, in its command, says nothing beside this one
    key = (*(word for word in arm.command if not word.startswith("--seed=")), seed)
    if key not in TRAINED:
        TRAINED[key] = train_anew(arm, steps, seed)
    return TRAINED[key]


def train_anew(arm: Arm, steps: int, seed: int) -> Outcome:
    import train

    with tempfile.TemporaryDirectory() as scratch:
        command = [*arm.command, f"--seed={seed}", f"--eval_interval={steps}"]
        command += [f"--checkpoint_interval={steps}", "--sample_tokens=0", "--eval_train_tokens=0"]
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            train.main([*command, f"--out_dir={scratch}/run"])
        rows, evaluations = read_metrics(Path(scratch, "run", "metrics.jsonl"))
    last = evaluations[-1]
    seconds = train_seconds(rows)
    return Outcome(seed, steps, last["val_loss"], last["val_bits_per_byte"], seconds, seconds)


if __name__ == "__main__":
    cli.run(main)
