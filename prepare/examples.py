"""Four tasks that make their own data, and that a small GPT learns within minutes on two cores:
prompts and answers.

python prepare/examples.py reverse|add|sentiment|translate [--out data/example_TASK]

Besides the dataset the folder holds train.jsonl and test.jsonl, whose prompts all differ, for
python evaluate.py --out_dir=out/example_TASK --tasks=exact_match:data/example_TASK/test.jsonl
"""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.corpus import build
from lathe.fields import PathName
from prepare import pairs


def reverse(rng: random.Random) -> tuple[str, str]:
    """Ten letters; the same from the last to the first."""
    word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=10))
    return f"{word}>", word[::-1]


def add(rng: random.Random) -> tuple[str, str]:
    """Two numbers below 1,000; their sum, as usual: no zeros in front, highest digit first."""
    a, b = rng.randrange(1000), rng.randrange(1000)
    return f"{a}+{b}=", str(a + b)


# -----------------------------------------------------------------------------
# Opinions: is the sentence positive or negative?
#
# `not` and `never` turn a clause around; of two clauses that disagree the one decides that stands
# after `but`, or before `although`.

THINGS = """
    film book song meal hotel game concert play novel show story coffee phone garden journey lecture
""".split()
PEOPLE = ("I", "we", "my friends", "the critics")
DEGREES = ("", "very ", "really ", "quite ")
ADJECTIVES = {
    "positive": """
        good great lovely clever charming fresh warm funny brilliant delightful honest elegant
    """.split(),
    "negative": """
        bad awful dull clumsy boring stale cold tedious terrible dreadful dishonest ugly
    """.split(),
}
VERBS = {
    "positive": "loved enjoyed admired praised".split(),
    "negative": "hated regretted disliked cursed".split(),
}
OPPOSITE = {"positive": "negative", "negative": "positive"}


def clause(rng: random.Random, label: str) -> str:
    """A clause of this opinion, sometimes by denying the opposite one."""
    thing = rng.choice(THINGS)
    denies = rng.random() < 0.3
    if denies:
        label = OPPOSITE[label]
    if rng.random() < 0.5:
        person = rng.choice(PEOPLE)
        verb = rng.choice(VERBS[label])
        return f"{person} {'never ' if denies else ''}{verb} the {thing}"
    degree = rng.choice(DEGREES)
    adjective = rng.choice(ADJECTIVES[label])
    return f"the {thing} was {'not ' if denies else ''}{degree}{adjective}"


def sentiment(rng: random.Random) -> tuple[str, str]:
    """A sentence of one or two clauses; `positive` or `negative`."""
    label = rng.choice(("positive", "negative"))
    same = clause(rng, label)
    opposite = clause(rng, OPPOSITE[label])
    also_same = clause(rng, label)
    sentence = rng.choice(
        (
            same,
            f"{also_same} and {same}",
            f"{opposite} but {same}",
            f"{same} although {opposite}",
        )
    )
    return f"{sentence}:", label


# -----------------------------------------------------------------------------
# Two invented languages
#
# In the first the verb stands between subject and object, adjectives before their noun, and -n
# makes a plural. In the second the verb stands last and adjectives follow their noun; nouns have a
# gender, which the first language does not show, and adjectives agree with them: -o or -a by
# gender, -s after that in the plural; verbs agree with the subject: -et, -ent in the plural.
# "ude baka chova muren" becomes "strelo lirno fleskos ostret".

NOUNS = {  # word: (root in the second language, ending of its gender)
    "baka": ("strel", "o"), "dime": ("vorn", "a"), "fulo": ("clem", "o"), "gesa": ("drisk", "a"),
    "hapo": ("blunt", "o"), "jelu": ("sprin", "a"), "kimo": ("thrax", "o"), "lota": ("grond", "a"),
    "mure": ("flesk", "o"), "nepo": ("quill", "a"), "pasu": ("wrent", "o"), "rilo": ("snerd", "a"),
    "seka": ("plonk", "o"), "tuma": ("krist", "a"), "vedo": ("zwart", "o"), "zone": ("brell", "a"),
}  # fmt: skip
QUALITIES = {
    "aku": "morv", "ebi": "talm", "isho": "derg", "omu": "salk", "ude": "lirn", "anke": "vosk",
    "elto": "nurd", "irpa": "helm",
}  # fmt: skip
ACTIONS = {
    "chova": "ostr", "shuno": "apt", "whelo": "ermb", "thiro": "ulf", "phaku": "inx",
    "rhemi": "obd", "ghuto": "ansk", "khasi": "elv",
}  # fmt: skip


def noun_phrase(rng: random.Random, plural: bool) -> tuple[str, str]:
    """The same noun with up to two adjectives in both languages."""
    noun = rng.choice(list(NOUNS))
    n_adjectives = rng.choice((0, 1, 1, 2))
    adjectives = rng.sample(list(QUALITIES), n_adjectives)
    root, gender = NOUNS[noun]
    plural_of_noun = "n" if plural else ""
    ending = f"{gender}s" if plural else gender
    first = [*adjectives, noun + plural_of_noun]
    second = [root + ending]
    for adjective in adjectives:
        second.append(QUALITIES[adjective] + ending)
    return " ".join(first), " ".join(second)


def translate(rng: random.Random) -> tuple[str, str]:
    """A sentence of the first language; its translation."""
    subject_is_plural = rng.random() < 0.5
    verb = rng.choice(list(ACTIONS))
    subject, subject_translated = noun_phrase(rng, subject_is_plural)
    object_is_plural = rng.random() < 0.5
    object_, object_translated = noun_phrase(rng, object_is_plural)
    verb_translated = ACTIONS[verb] + ("ent" if subject_is_plural else "et")
    sentence = f"{subject} {verb} {object_}:"
    return sentence, f"{subject_translated} {object_translated} {verb_translated}"


# -----------------------------------------------------------------------------
# The command


@dataclass(frozen=True)
class Task:
    draw_pair: Callable[[random.Random], tuple[str, str]]  # (prompt, answer)
    train_items: int
    tokenizer: str


TASKS = {
    "reverse": Task(reverse, 20_000, "char"),
    "add": Task(add, 200_000, "char"),
    "sentiment": Task(sentiment, 20_000, "bpe:512"),
    "translate": Task(translate, 20_000, "bpe:512"),
}
TEST_ITEMS = 1000


@dataclass
class Options:
    task: list[str] = field(default_factory=list)  # reverse, add, sentiment or translate
    out: PathName = ""  # folder for the dataset; empty = data/example_TASK
    seed: int = 1337  # of what is drawn
    overwrite: bool = False  # replace another dataset in the same folder

    def __post_init__(self):
        if len(self.task) != 1 or self.task[0] not in TASKS:
            given = " ".join(self.task) or "missing"
            raise ValueError(f"task is {given}: choose one of {', '.join(TASKS)}")


def draw(task: str, count: int, seed: int) -> list[dict[str, str]]:
    """So many pairs whose prompts all differ; the same ones for the same seed."""
    rng = random.Random(seed)
    answers = {}
    while len(answers) < count:
        prompt, answer = TASKS[task].draw_pair(rng)
        answers[prompt] = answer
    return [{"prompt": prompt, "completion": answer} for prompt, answer in answers.items()]


def main(argv: list[str] | None = None):
    options = cli.parse(
        Options,
        argv,
        prog="prepare/examples.py",
        description="Prompts and answers of a small task, as a dataset to train on and test.jsonl "
        "for evaluate.py.",
        positional="task",
    )
    name = options.task[0]
    task = TASKS[name]
    out = Path(options.out or f"data/example_{name}")
    build.refuse_to_replace(out)
    for file in (out / "test.jsonl", out / "train.jsonl"):
        if file.exists() and not (out / "tokenizer.json").is_file():
            raise ValueError(f"out={out} has {file.name}, of somebody else: name another folder")
    out.mkdir(parents=True, exist_ok=True)
    rows = draw(name, TEST_ITEMS + task.train_items, options.seed)
    write_rows(out / "test.jsonl", rows[:TEST_ITEMS])
    write_rows(out / "train.jsonl", rows[TEST_ITEMS:])
    build.prepare(
        pairs.Options(
            input=[str(out / "train.jsonl")],
            out=str(out),
            tokenizer=task.tokenizer,
            val_fraction=0.02,
            overwrite=options.overwrite,
        )
    )


def write_rows(path: Path, rows: list[dict[str, str]]):
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
