"""Four tasks that make their own data, and that a small GPT learns within minutes on two cores: prompts and answers.

python prepare/examples.py reverse|add|sentiment|translate [--out data/example_TASK]

Besides the dataset the folder holds train.jsonl and test.jsonl, whose prompts all differ, for
python evaluate.py --out_dir=out/example_TASK --tasks=exact_match:data/example_TASK/test.jsonl
"""

import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.corpus import build
from prepare import pairs


def reverse(rng: random.Random) -> tuple[str, str]:
    """Ten letters; the same from the last to the first."""
    word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=10))
    return f"{word}>", word[::-1]


def add(rng: random.Random) -> tuple[str, str]:
    """Two numbers below 1,000; their sum, written as usual: no zeros in front, highest digit first."""
    a, b = rng.randrange(1000), rng.randrange(1000)
    return f"{a}+{b}=", str(a + b)


# Opinions: is the sentence positive or negative? `not` and `never` turn a clause around; of two clauses that disagree
# the one decides that stands behind `but`, or before `although`.

THINGS = "film book song meal hotel game concert play novel show story coffee phone garden journey lecture".split()
PEOPLE = ("I", "we", "my friends", "the critics")
DEGREES = ("", "very ", "really ", "quite ")
ADJECTIVES = {
    "positive": "good great lovely clever charming fresh warm funny brilliant delightful honest elegant".split(),
    "negative": "bad awful dull clumsy boring stale cold tedious terrible dreadful dishonest ugly".split(),
}
VERBS = {"positive": "loved enjoyed admired praised".split(), "negative": "hated regretted disliked cursed".split()}
OPPOSITE = {"positive": "negative", "negative": "positive"}


def clause(rng: random.Random, label: str) -> str:
    thing, turned = rng.choice(THINGS), rng.random() < 0.3
    said = OPPOSITE[label] if turned else label
    if rng.random() < 0.5:
        return f"{rng.choice(PEOPLE)} {'never ' * turned}{rng.choice(VERBS[said])} the {thing}"
    return f"the {thing} was {'not ' * turned}{rng.choice(DEGREES)}{rng.choice(ADJECTIVES[said])}"


def sentiment(rng: random.Random) -> tuple[str, str]:
    """A sentence of one or two clauses; `positive` or `negative`."""
    label = rng.choice(("positive", "negative"))
    same, opposite = clause(rng, label), clause(rng, OPPOSITE[label])
    forms = f"{same}", f"{clause(rng, label)} and {same}", f"{opposite} but {same}", f"{same} although {opposite}"
    return f"{rng.choice(forms)}:", label


# Two invented languages. In the first the verb stands between subject and object, adjectives before their noun, and
# -n makes a plural. In the second the verb stands last and adjectives follow their noun; nouns have a gender, which the
# first language does not show, and adjectives agree with them: -o or -a by gender, -s behind that in the plural; verbs
# agree with the subject: -et, -ent in the plural. "ude baka chova muren" becomes "strelo lirno fleskos ostret".

NOUNS = {  # word: (root in the second language, ending of its gender)
    "baka": ("strel", "o"), "dime": ("vorn", "a"), "fulo": ("clem", "o"), "gesa": ("drisk", "a"),
    "hapo": ("blunt", "o"), "jelu": ("sprin", "a"), "kimo": ("thrax", "o"), "lota": ("grond", "a"),
    "mure": ("flesk", "o"), "nepo": ("quill", "a"), "pasu": ("wrent", "o"), "rilo": ("snerd", "a"),
    "seka": ("plonk", "o"), "tuma": ("krist", "a"), "vedo": ("zwart", "o"), "zone": ("brell", "a"),
}  # fmt: skip
QUALITIES = {"aku": "morv", "ebi": "talm", "isho": "derg", "omu": "salk", "ude": "lirn", "anke": "vosk",
             "elto": "nurd", "irpa": "helm"}  # fmt: skip
ACTIONS = {"chova": "ostr", "shuno": "apt", "whelo": "ermb", "thiro": "ulf", "phaku": "inx", "rhemi": "obd",
           "ghuto": "ansk", "khasi": "elv"}  # fmt: skip


def noun_phrase(rng: random.Random, plural: bool) -> tuple[str, str]:
    """The same noun with up to two adjectives in both languages."""
    noun, qualities = rng.choice(list(NOUNS)), rng.sample(list(QUALITIES), rng.choice((0, 1, 1, 2)))
    root, gender = NOUNS[noun]
    theirs = [root, *(QUALITIES[word] for word in qualities)]
    return " ".join([*qualities, noun + "n" * plural]), " ".join(word + gender + "s" * plural for word in theirs)


def translate(rng: random.Random) -> tuple[str, str]:
    """A sentence of the first language; its translation."""
    plural, verb = rng.random() < 0.5, rng.choice(list(ACTIONS))
    (subject, its), (object_, their) = noun_phrase(rng, plural), noun_phrase(rng, rng.random() < 0.5)
    return f"{subject} {verb} {object_}:", f"{its} {their} {ACTIONS[verb]}{'ent' if plural else 'et'}"


TASKS = {  # name: (what draws a pair, pairs to train on, tokenizer)
    "reverse": (reverse, 20_000, "char"),
    "add": (add, 200_000, "char"),
    "sentiment": (sentiment, 20_000, "bpe:512"),
    "translate": (translate, 20_000, "bpe:512"),
}
TEST_ITEMS = 1000


@dataclass
class Options:
    task: list[str] = field(default_factory=list)  # reverse, add, sentiment or translate
    out: str = ""  # folder for the dataset; empty = data/example_TASK
    seed: int = 1337  # of what is drawn
    overwrite: bool = False  # replace another dataset in the same folder

    def __post_init__(self):
        if len(self.task) != 1 or self.task[0] not in TASKS:
            raise ValueError(f"task is {' '.join(self.task) or 'missing'}: choose one of {', '.join(TASKS)}")


def draw(task: str, count: int, seed: int) -> list[dict[str, str]]:
    """So many pairs whose prompts all differ; the same ones for the same seed."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        prompt, answer = TASKS[task][0](rng)
        found[prompt] = answer
    return [{"prompt": prompt, "completion": answer} for prompt, answer in found.items()]


def main(argv=None):
    about = "Prompts and answers of a small task, as a dataset to train on and test.jsonl for evaluate.py."
    options = cli.parse(Options, argv, prog="prepare/examples.py", description=about, positional="task")
    task = options.task[0]
    _, count, tokenizer = TASKS[task]
    out = Path(options.out or f"data/example_{task}")
    out.mkdir(parents=True, exist_ok=True)
    drawn = draw(task, count + TEST_ITEMS, options.seed)
    for name, rows in (("test", drawn[:TEST_ITEMS]), ("train", drawn[TEST_ITEMS:])):
        lines = [json.dumps(row) + "\n" for row in rows]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    given = dict(input=[str(out / "train.jsonl")], out=str(out), tokenizer=tokenizer, val_fraction=0.02)
    build.prepare(pairs.Options(**given, overwrite=options.overwrite))


if __name__ == "__main__":
    cli.run(main)
