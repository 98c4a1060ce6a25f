"""The arms of a comparison: a preset, settings and a revision of the code each, and their runs."""

import json
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.processes import run_child
from lathe import ROOT
from lathe.run.metrics import Row, read_metrics
from lathe.settings import Settings

# Settings that say how a comparison is run, and not what is compared
OF_THE_COMPARISON = {
    "out_dir": "runs go to folders that are removed again",
    "overwrite": "each run has a folder of its own",
    "dry_run": "runs are to be trained",
}
DEFAULT_PRESET = "quickstart"  # train.py's own
LENGTHS = ("max_steps", "tokens", "epochs")  # on the command line they go before a preset's minutes
# Run in a revision's folder: all settings of a command line, as that revision reads it
READ_SETTINGS = """
import json, sys
from dataclasses import asdict
from lathe import cli
from lathe.settings import Settings
settings = cli.parse(Settings, sys.argv[1:], prog="train.py", presets=True)
print(json.dumps(asdict(settings)))
"""
# The same: a dataset that any machine can make is made if it is missing, others must be there
OPEN_DATASET = """
import sys
from lathe import cli
from lathe.corpus.own import prepare_own
from lathe.data.dataset import open_dataset
def ready(path):
    prepare_own(path)
    open_dataset(path)
cli.run(ready, sys.argv[1])
"""
# What train.py says where it gives up on a run that does not learn
GIVES_UP = ("steps in a row were skipped", "training does nothing", "is not saved: ")


# -----------------------------------------------------------------------------
# What was written


@dataclass(frozen=True)
class Words:
    """An arm as it was written: "speedrun muon_momentum=0.9 @HEAD~1"."""

    text: str
    presets: list[str]
    settings: list[str]  # --name=value
    revision: str = ""  # of git; "" = the files as they are here


def read_words(text: str) -> Words:
    """Raises ValueError for what is no preset, setting or revision, and for two revisions."""
    presets = []
    settings = []
    revisions = []
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    for word in words:
        if word.startswith("@"):
            revisions.append(word[1:])
        elif "=" in word or word.startswith("-"):
            settings.append("--" + word.lstrip("-"))
        else:
            presets.append(word)
    if len(revisions) > 1:
        raise ValueError(f"{text!r} names {len(revisions)} revisions: one is run at a time")
    for setting in settings:
        name = setting[2:].partition("=")[0].replace("-", "_")
        if name in OF_THE_COMPARISON:
            raise ValueError(f"{text!r} sets {name}: leave it out, {OF_THE_COMPARISON[name]}")
    return Words(text, presets, settings, "".join(revisions))


def completed(words: Words, first: Words) -> Words:
    """An arm after the first: where it names no preset, it has the first one's and its settings."""
    if words.presets:
        return words
    settings = [*first.settings, *words.settings]
    return Words(words.text, first.presets, settings, words.revision)


def with_dashes(argv: list[str], options: set[str]) -> list[str]:
    """A command's words, with those that are training settings and no options of its own as bare
    words: `compare.py speedrun --n_layer=3` means the arm n_layer=3."""
    bare = []
    for word in argv:
        name = word.lstrip("-").split("=")[0].split(" ")[0].replace("-", "_")
        is_setting = name in Settings.__dataclass_fields__ and name not in options
        bare.append(word.lstrip("-") if word.startswith("--") and is_setting else word)
    return bare


# -----------------------------------------------------------------------------
# What it means


@dataclass
class Arm:
    """What one side of a comparison runs."""

    name: str  # A, B, ...
    text: str
    folder: Path  # of the code
    commit: str  # of a revision; "" = the files as they are
    command: list[str]  # presets and settings
    settings: dict  # all of them, as its code reads its command
    steps: int  # as they say; what is run instead may differ
    tokens_per_step: int
    flops_per_token: float
    vocab_size: int

    @property
    def flops_per_step(self) -> float:
        return self.flops_per_token * self.tokens_per_step

    @property
    def by_minutes(self) -> bool:
        """Whether train.py itself finds how many steps there is time for, and what to train."""
        given = {word[2:].partition("=")[0] for word in self.command}
        return bool(self.settings.get("minutes")) and given.isdisjoint(LENGTHS)

    @property
    def first_seed(self) -> int:
        return self.settings["seed"]

    def describe(self) -> str:
        code = f", at {self.commit}" if self.commit else ""
        return f"{self.name}: {' '.join(self.command)}{code}"


def open_arm(name: str, words: Words, common: list[str], contexts: ExitStack) -> Arm:
    """Raises ValueError, in one line that names the arm, for what its code refuses."""
    try:
        folder, commit = open_revision(words.revision, contexts)
        presets = words.presets or [DEFAULT_PRESET]
        command = [*presets, *common, *words.settings]
        settings = json.loads(ask_code(folder, READ_SETTINGS, *command))
        ask_code(folder, OPEN_DATASET, settings["dataset"])
        plan = ask([sys.executable, str(folder / "train.py"), *command, "--dry_run"])
        return Arm(name, words.text, folder, commit, command, settings, **read_plan(plan))
    except ValueError as error:
        raise ValueError(f"{name} ({words.text or DEFAULT_PRESET}): {error}") from None


def open_revision(revision: str, contexts: ExitStack) -> tuple[Path, str]:
    """Its files, in a folder that is removed when contexts end, and its commit."""
    if not revision:
        return ROOT, ""
    commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if not commit:
        raise ValueError(f"git knows no revision {revision!r} here")
    parent = Path(contexts.enter_context(tempfile.TemporaryDirectory(prefix="lathe-compare-")))
    folder = parent / commit[:12]
    git("worktree", "add", "--detach", str(folder), commit)
    contexts.callback(git, "worktree", "remove", "--force", str(folder))
    if not (folder / "train.py").exists() or not (folder / "lathe" / "settings.py").exists():
        raise ValueError(f"revision {revision} has no train.py and lathe/settings.py")
    return folder, git("rev-parse", "--short=12", commit)


def git(*words: str) -> str:
    """What git prints of this repository; '' if it fails."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"a revision needs git: {error}") from None
    return done.stdout.strip() if done.returncode == 0 else ""


def ask(command: list[str], **environment: str) -> str:
    """What a command prints. Raises ValueError with its own last line of complaint."""
    try:
        return run_child(command, Path.cwd(), **environment).output
    except ValueError as error:
        raise ValueError(complaint(str(error))) from None


def ask_code(folder: Path, code: str, *words: str) -> str:
    """The last line that a piece of Python prints, which imports a revision's code."""
    # -P: not what lies in the folder where one happens to be
    output = ask([sys.executable, "-P", "-c", code, *words], PYTHONPATH=str(folder))
    return (output.strip().splitlines() or [""])[-1]


def complaint(output: str) -> str:
    """The line of what a command printed that says why it stopped."""
    lines = [line for line in output.strip().splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\S+: (rank \d+: )?error: ", line)]
    line = (errors or lines)[-1]
    return re.sub(r"^\S+: (rank \d+: )?error: ", "", line)


def read_plan(text: str) -> dict:
    """The figures in what `train.py --dry_run` prints."""
    read = re.search(r"^tokens +([\d,]+) in ([\d,]+) steps", text, re.M)
    flops = re.search(r"^FLOPs +([\d,]+) per token", text, re.M)
    vocabulary = re.search(r"^vocabulary +([\d,]+)", text, re.M)
    if not (read and flops and vocabulary):
        raise ValueError("its train.py --dry_run does not say tokens, FLOPs and vocabulary")
    tokens, steps = number(read[1]), number(read[2])
    return {
        "steps": steps,
        "tokens_per_step": tokens // steps,
        "flops_per_token": number(flops[1]),
        "vocab_size": number(vocabulary[1]),
    }


def number(text: str) -> int:
    return int(text.replace(",", ""))


# -----------------------------------------------------------------------------
# Its runs


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    seed: int
    steps: int
    loss: float | None  # of validation at its end, nats per token; None if it diverged
    bits_per_byte: float | None
    seconds: float  # of the whole process
    train_seconds: float  # from its first step's row to its last one's
    gave_up: str = ""  # what it said, where it ended before its time since it learned nothing


def run_arm(
    arm: Arm, steps: int, seed: int, more: list[str], environment: dict[str, str]
) -> Outcome:
    """Train an arm from its start, evaluate at its end and keep nothing else of it.

    steps: 0 = as many as there is time for, where `more` says the minutes. more: further settings,
    of which those count that the arm's code has. Raises ValueError, in one line, if it fails for
    another reason than that it does not learn.
    """
    length = []
    if steps:
        length = [f"--max_steps={steps}", "--tokens=0", "--epochs=0"]
        length += [f"--eval_interval={steps}", f"--checkpoint_interval={steps}"]
    wanted = [*length, *more, "--sample_tokens=0", "--eval_train_tokens=0", f"--seed={seed}"]
    known = [word for word in wanted if word[2:].partition("=")[0] in arm.settings]
    with tempfile.TemporaryDirectory(prefix="lathe-compare-") as scratch:
        command = [sys.executable, str(arm.folder / "train.py"), *arm.command, *known]
        command.append(f"--out_dir={scratch}/run")
        if arm.settings["init_from"] in ("auto", "resume"):
            command.append("--init_from=scratch")
        metrics = Path(scratch, "run", "metrics.jsonl")
        seconds = 0.0
        gave_up = ""
        try:
            child = run_child(command, Path.cwd(), **environment)
            seconds = child.seconds
        except ValueError as error:
            line = complaint(str(error))
            if not any(words in line for words in GIVES_UP):
                raise ValueError(f"{arm.name} ({arm.text}): {line}") from None
            gave_up = line
        rows, evaluations = read_metrics(metrics)
    last = evaluations[-1] if evaluations else {}
    return Outcome(
        seed=seed,
        steps=steps or last.get("step", 0),
        loss=last.get("val_loss"),
        bits_per_byte=last.get("val_bits_per_byte"),
        seconds=seconds or (rows[-1]["elapsed"] if rows else 0.0),
        train_seconds=train_seconds(rows),
        gave_up=gave_up,
    )


def train_seconds(rows: list[Row]) -> float:
    return rows[-1]["elapsed"] - rows[0]["elapsed"] if rows else 0.0
