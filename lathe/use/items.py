"""Questions with right answers: where test sets are, and how a row of one becomes an item.

A task is named NAME, which fetches the published test set through `datasets`, or NAME:FILE for
JSON lines with the fields of that test set. Prompts and figures are those of
lm-evaluation-harness without examples in the prompt (0-shot), so scores compare with published
ones; hellaswag_nanogpt is the way of build-nanogpt's script. A new task is an entry of FORMATS.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from lathe.hub import why_unreachable
from lathe.reading import FAULTS
from lathe.use.inputs import read_json_lines


@dataclass
class Item:
    """One question. `choices` are the texts that may follow `context`; the last word and an exact
    answer are the only one."""

    context: str
    choices: list[str]
    answer: int = 0  # which choice is right
    stop: str = ""  # exact match: text that ends an answer, beside end-of-text
    where: str = ""  # file and line


# -----------------------------------------------------------------------------
# Formats


def hellaswag(row: dict) -> Item:
    context = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    endings = [clean(ending) for ending in row["endings"]]
    return Item(context, endings, int(row["label"]))


def clean(text: str) -> str:
    """HellaSwag without the marks of the pages that its sentences came from."""
    text = text.strip().replace(" [title]", ". ")
    before, last, after = text.rpartition("]")  # no bracket that stays open is searched from
    text = re.sub(r"\[.*?\]", "", before + last) + after
    return text.replace("  ", " ")


def hellaswag_nanogpt(row: dict) -> Item:
    return Item(row["ctx"], list(row["endings"]), int(row["label"]))


def arc(row: dict) -> Item:
    question = row["question"]
    key = row["answerKey"]
    if isinstance(question, dict):  # AI2's own files; `datasets` has columns
        labels = [choice["label"] for choice in question["choices"]]
        texts = [choice["text"] for choice in question["choices"]]
        question = question["stem"]
    else:
        labels = row["choices"]["label"]
        texts = row["choices"]["text"]
    if key not in labels:
        raise ValueError(f"answerKey is {key!r}, the choices are {', '.join(labels)}")
    return Item(f"Question: {question}\nAnswer:", list(texts), labels.index(key))


def piqa(row: dict) -> Item:
    solutions = [row["sol1"], row["sol2"]]
    return Item(f"Question: {row['goal']}\nAnswer:", solutions, int(row["label"]))


def mmlu(row: dict) -> Item:
    subject = row["subject"].replace("_", " ")
    heading = f"The following are multiple choice questions (with answers) about {subject}."
    if len(row["choices"]) != 4:
        raise ValueError(f"it has {len(row['choices'])} choices, not 4")
    choices = [f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True)]
    lines = [heading, "", row["question"].strip(), *choices, "Answer:"]
    return Item("\n".join(lines), ["A", "B", "C", "D"], int(row["answer"]))


def lambada(row: dict) -> Item:
    context, _, last_word = row["text"].rpartition(" ")
    return Item(context, [last_word])


def exact_match(row: dict) -> Item:
    return Item(row["prompt"], [row["completion"]], stop=row.get("stop", ""))


class Source(NamedTuple):
    """Where `datasets` finds a published test set."""

    path: str
    configuration: str | None
    split: str


@dataclass(frozen=True)
class Format:
    """What is known of a task.

    kind: "choice" (the likeliest of several texts), "last_word" (whether it is the likeliest text),
    or "answer" (generated, and compared as a whole).
    normalized_by: acc_norm divides a choice's log-probability by the number of its "characters" or
    "tokens"; empty = no acc_norm.
    """

    to_item: Callable[[dict], Item]
    kind: Literal["choice", "last_word", "answer"]
    about: str  # what the report says of its prompts and figures
    source: Source | None  # None: there is no published one, a file must be given
    normalized_by: Literal["", "characters", "tokens"] = ""


HARNESS = "lm-evaluation-harness, 0-shot"
PER_CHARACTER = f"{HARNESS}; acc_norm per character"
FORMATS = {
    "hellaswag": Format(
        to_item=hellaswag,
        kind="choice",
        about=PER_CHARACTER,
        source=Source("Rowan/hellaswag", None, "validation"),
        normalized_by="characters",
    ),
    "hellaswag_nanogpt": Format(
        to_item=hellaswag_nanogpt,
        kind="choice",
        about="build-nanogpt; acc by the sum, acc_norm by the mean over tokens",
        source=Source("Rowan/hellaswag", None, "validation"),
        normalized_by="tokens",
    ),
    "arc_easy": Format(
        to_item=arc,
        kind="choice",
        about=PER_CHARACTER,
        source=Source("allenai/ai2_arc", "ARC-Easy", "test"),
        normalized_by="characters",
    ),
    "arc_challenge": Format(
        to_item=arc,
        kind="choice",
        about=PER_CHARACTER,
        source=Source("allenai/ai2_arc", "ARC-Challenge", "test"),
        normalized_by="characters",
    ),
    "piqa": Format(
        to_item=piqa,
        kind="choice",
        about=PER_CHARACTER,
        source=Source("baber/piqa", None, "validation"),
        normalized_by="characters",
    ),
    "mmlu": Format(
        to_item=mmlu,
        kind="choice",
        about=f"{HARNESS}; the choices are letters",
        source=Source("cais/mmlu", "all", "test"),
    ),
    "lambada": Format(
        to_item=lambada,
        kind="last_word",
        about=f"{HARNESS}; every token of the last word the likeliest; perplexity per word",
        source=Source("EleutherAI/lambada_openai", "default", "test"),
    ),
    "exact_match": Format(
        to_item=exact_match,
        kind="answer",
        about="the likeliest text up to its end, equal but for spaces around it",
        source=None,
    ),
}


# -----------------------------------------------------------------------------
# Reading


def read_items(spec: str, limit: int = 0) -> list[Item]:
    """The items of a task NAME or NAME:FILE, the first `limit` of them (0 = all).

    Raises ValueError or OSError for an unknown name and, with file and line, for a row without the
    fields or an answer that is none of the choices.
    """
    name, _, file = spec.partition(":")
    if name not in FORMATS:
        names = ", ".join(FORMATS)
        several = ""
        if "," in name and set(name.split(",")) <= set(FORMATS):
            several = f"; several stand side by side: --tasks {name.replace(',', ' ')}"
        raise ValueError(
            f"tasks: {name!r} is none of {names}; a file of your own is NAME:FILE{several}"
        )
    if not file:
        rows = fetch_rows(name)
    elif Path(file).is_file():
        rows = read_json_lines(file)
    else:
        raise FileNotFoundError(f"tasks: {spec}: there is no such file")
    if limit:
        rows = rows[:limit]
    items = [read_item(name, row, where) for where, row in rows]
    if not items:
        raise ValueError(f"tasks: {spec} has no items")
    return items


def read_item(name: str, row: dict, where: str) -> Item:
    """The item that a row of this format makes. Raises ValueError, which begins with `where`."""
    try:
        item = FORMATS[name].to_item(row)
        texts = [item.context, item.stop, *item.choices]
    except KeyError as error:
        fields = ", ".join(row) or "none"
        raise ValueError(
            f"{where}: no field {error}, which {name} needs; the fields there are {fields}"
        ) from None
    except FAULTS as error:
        raise ValueError(f"{where} is no row of {name}: {error}") from None
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where} is no row of {name}: what should be text is not")
    last = len(item.choices) - 1
    if not 0 <= item.answer <= last:
        raise ValueError(f"{where}: the answer is {item.answer}, the choices are 0 to {last}")
    if not all(choice.strip() for choice in item.choices):
        raise ValueError(f"{where}: an answer to choose or to give is empty")
    item.where = where
    return item


def fetch_rows(name: str) -> list[tuple[str, dict]]:
    """[(where, row)] of a published test set."""
    source = FORMATS[name].source
    if source is None:
        raise ValueError(f"tasks: {name} has no test set of its own: give a file, {name}:FILE")
    unreachable = why_unreachable()
    try:
        from datasets import load_dataset

        rows = load_dataset(source.path, source.configuration, split=source.split)
    except Exception as error:  # no package, network or split: `datasets` raises what it likes
        lines = str(error).strip().splitlines()
        reason = unreachable or (lines[0][:120] if lines else type(error).__name__)
        published = f"the {source.split} split of {source.path}"
        if source.configuration:
            published += f" ({source.configuration})"
        raise OSError(
            f"tasks: {name} cannot be fetched ({reason}): where there is a network, save "
            f"{published} as JSON lines (`datasets`: to_json), and give it as {name}:FILE"
        ) from None
    return [(f"{source.path}, {source.split} row {n}", row) for n, row in enumerate(rows)]
