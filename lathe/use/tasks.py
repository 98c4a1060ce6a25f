"""Test sets with right answers: multiple choice, the last word, and exact match.

A task is named NAME, which fetches the published test set through `datasets`, or NAME:FILE for JSON lines with the
fields of that test set. Prompts and figures are those of lm-evaluation-harness without examples in the prompt (0-shot),
so scores compare with published ones; hellaswag_nanogpt is the way of build-nanogpt's script.
"""

import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lathe.run import devices, ranks
from lathe.run.parallel import callable_by_method
from lathe.run.progress import with_bar
from lathe.text.chat import chat_prompt
from lathe.text.tokenizer import Tokenizer
from lathe.use.prompts import read_json_lines
from lathe.use.scoring import MORE_TOKENS, answers, pieces, score, tokens_at_once
from model import GPT


@dataclass
class Item:
    """One question: `choices` are the texts that may follow `context`; one for the last word and exact match."""

    context: str
    choices: list[str]
    answer: int = 0
    stop: str = ""  # exact match: text that ends an answer, beside end-of-text
    where: str = ""  # file and line


# Formats


def clean(text: str) -> str:
    """HellaSwag without the marks of the pages that its sentences came from."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def hellaswag(row: dict) -> Item:
    context = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return Item(context, [clean(ending) for ending in row["endings"]], int(row["label"]))


def arc(row: dict) -> Item:
    question, choices, key = row["question"], row.get("choices"), row["answerKey"]
    if isinstance(question, dict):  # AI2's own files; `datasets` has columns
        question, choices = question["stem"], {k: [c[k] for c in question["choices"]] for k in ("label", "text")}
    choices = row["choices"] if choices is None else choices
    if key not in choices["label"]:
        raise ValueError(f"answerKey is {key!r}, the choices are {', '.join(choices['label'])}")
    return Item(f"Question: {question}\nAnswer:", list(choices["text"]), choices["label"].index(key))


def mmlu(row: dict) -> Item:
    about = f"The following are multiple choice questions (with answers) about {row['subject'].replace('_', ' ')}."
    if len(row["choices"]) != 4:
        raise ValueError(f"it has {len(row['choices'])} choices, not 4")
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True)]
    context = "\n".join([about, "", row["question"].strip(), *lines, "Answer:"])
    return Item(context, list("ABCD"), int(row["answer"]))


def last_word(row: dict) -> Item:
    context, _, word = row["text"].rpartition(" ")
    return Item(context, [word])


class Format(NamedTuple):
    """How a row becomes an item, where the test set is (path, configuration and split in `datasets`), what its figures
    are. norm: acc_norm divides a choice's log-probability by its "characters" or "tokens"."""

    read: Callable[[dict], Item]
    source: tuple[str, str | None, str] | None
    about: str
    norm: str = ""


HARNESS = "lm-evaluation-harness, 0-shot"
PER_CHARACTER = f"{HARNESS}; acc_norm per character"
FORMATS = {
    "hellaswag": Format(hellaswag, ("Rowan/hellaswag", None, "validation"), PER_CHARACTER, "characters"),
    "hellaswag_nanogpt": Format(
        lambda row: Item(row["ctx"], list(row["endings"]), int(row["label"])), ("Rowan/hellaswag", None, "validation"),
        "build-nanogpt; acc by the sum, acc_norm by the mean over tokens", "tokens",
    ),
    "arc_easy": Format(arc, ("allenai/ai2_arc", "ARC-Easy", "test"), PER_CHARACTER, "characters"),
    "arc_challenge": Format(arc, ("allenai/ai2_arc", "ARC-Challenge", "test"), PER_CHARACTER, "characters"),
    "piqa": Format(
        lambda row: Item(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(row["label"])),
        ("baber/piqa", None, "validation"), PER_CHARACTER, "characters",
    ),
    "mmlu": Format(mmlu, ("cais/mmlu", "all", "test"), f"{HARNESS}; the choices are letters"),
    "lambada": Format(
        last_word, ("EleutherAI/lambada_openai", "default", "test"),
        f"{HARNESS}; every token of the last word the likeliest; perplexity per word",
    ),
    "exact_match": Format(
        lambda row: Item(row["prompt"], [row["completion"]], stop=row.get("stop", "")), None,
        "the likeliest text up to its end, equal but for spaces around it",
    ),
}  # fmt: skip


def read_items(spec: str, limit: int = 0) -> list[Item]:
    """The items of a task NAME or NAME:FILE, the first `limit` of them (0 = all). Raises ValueError or OSError for an
    unknown name and, with file and line, for a row without the fields or an answer that is none of the choices."""
    name, _, file = spec.partition(":")
    if name not in FORMATS:
        raise ValueError(f"tasks: {name!r} is none of {', '.join(FORMATS)}; a file of your own is NAME:FILE")
    if file and not Path(file).is_file():
        raise FileNotFoundError(f"tasks: {spec}: there is no such file")
    rows, items = read_json_lines(file) if file else fetch_rows(name), []
    for where, row in rows[: limit or None]:
        try:
            item = FORMATS[name].read(row)
            texts = [item.context, item.stop, *item.choices]
        except KeyError as error:
            found = ", ".join(row) or "none"
            raise ValueError(f"{where}: no field {error}, which {name} needs; the fields there are {found}") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{where} is no row of {name}: {error}") from None
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where} is no row of {name}: what should be text is not")
        if not 0 <= item.answer < len(item.choices):
            raise ValueError(f"{where}: the answer is {item.answer}, the choices are 0 to {len(item.choices) - 1}")
        if not all(choice.strip() for choice in item.choices):
            raise ValueError(f"{where}: an answer to choose or to give is empty")
        item.where = where
        items.append(item)
    if not items:
        raise ValueError(f"tasks: {spec} has no items")
    return items


def fetch_rows(name: str) -> list[tuple[str, dict]]:
    """[(where, row)] of a published test set."""
    if FORMATS[name].source is None:
        raise ValueError(f"tasks: {name} has no test set of its own: give a file, {name}:FILE")
    path, configuration, split = FORMATS[name].source
    try:
        from datasets import load_dataset

        rows = load_dataset(path, configuration, split=split)
    except Exception as error:  # no package, no network, no such split: `datasets` raises what it likes
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise OSError(
            f"tasks: {name} cannot be fetched ({reason}): where there is a network, save the {split} split of {path}"
            f"{f' ({configuration})' if configuration else ''} as JSON lines (`datasets`: to_json), and give it as "
            f"{name}:FILE"
        ) from None
    return [(f"{path}, {split} row {n}", row) for n, row in enumerate(rows)]


# Tasks


class Task:
    """A test set, encoded once: measure() may be called many times.

    Items longer than the context lose their beginning; `cut` counts them. A prompt to be answered comes behind the ids
    `begin`, and in the chat template of that name, if any; texts to choose among stand alone, as in the harness. Raises
    ValueError for text that has no ids.
    """

    def __init__(
        self, spec: str, tokenizer: Tokenizer, begin: list[int], block_size: int, limit: int = 0, template: str = ""
    ):
        self.name, self.tokenizer, self.begin, self.template = spec.partition(":")[0], tokenizer, begin, template
        self.items = ranks.on_main(lambda: read_items(spec, limit))
        self.exact = self.name == "exact_match"
        self.pairs, self.cut = [], 0  # pairs: of each item, (context, continuation) ids of its choices
        room = block_size + (not self.exact)  # of a given text nobody reads the last token
        for item in self.items:
            try:
                pairs = self.encode(item)
            except ValueError as error:
                raise ValueError(f"{item.where}: {error}") from None
            self.cut += any(len(context) + len(ids) > room for context, ids in pairs)
            for i, (context, ids) in enumerate(pairs):
                kept, n = [*context, *ids][-room:], min(len(ids), room - 1)
                pairs[i] = kept[:-n], kept[-n:]
            self.pairs.append(pairs)
        if self.cut:
            said = f"{self.cut} of {len(self.items)} items exceed the context of {block_size} tokens: their ends count"
            ranks.on_main(lambda: print(f"{spec}: {said}", file=sys.stderr))

    def encode(self, item: Item) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) ids of each choice."""
        encode, nothing = self.tokenizer.encode, [self.tokenizer.eot_id]
        if self.exact:
            text, _ = chat_prompt([{"role": "user", "content": item.context}], self.template)
            return [([*self.begin, *encode(text)] or nothing, encode(item.choices[0]))]
        text = item.context.rstrip()  # spaces at its end belong to what follows: BPE joins them with it
        context = encode(text)
        wholes = [(encode(f"{item.context} {choice}"), choice) for choice in item.choices]
        return [(context or nothing, whole[len(context) :] or encode(choice)) for whole, choice in wholes]

    def work(self, model: GPT, batch: list[int], ends: tuple[int, ...]) -> list:
        """Of each of these items, its answer, or the scores of its choices."""
        pairs = [pair for i in batch for pair in self.pairs[i]]
        if not self.exact:
            scores = iter(score(model, pairs))
            return [[next(scores) for _ in self.pairs[i]] for i in batch]
        limits = [len(ids) + MORE_TOKENS for _, ids in pairs]
        stops = [self.items[i].stop for i in batch]
        return answers(model, self.tokenizer, [prompt for prompt, _ in pairs], limits, stops, ends)

    def measure(
        self, model: GPT, run: devices.Runtime, ends: tuple[int, ...] = (), sharded: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> dict | None:  # fmt: skip
        """{"format", "items", "cut", "acc", "acc_stderr", ...}; None if interrupted() became true on any rank.

        The ranks share the batches, or do all of them together where each holds a shard of the weights. ends: ids that
        end an answer.
        """
        began, was_training = time.perf_counter(), model.training
        model.eval()
        if self.exact:
            lengths = [len(prompt) + len(ids) + MORE_TOKENS for ((prompt, ids),) in self.pairs]
        else:  # a context is read once; where it is cut, each choice has its own
            lengths = [sum(map(len, {tuple(context) for context, _ in pairs})) for pairs in self.pairs]
        batches, found = pieces(lengths, tokens_at_once(run.device)), {}
        share, rank = (1, 0) if sharded else (run.world_size, run.rank)
        turns = range(0, len(batches), share)  # as many on every rank
        with run.autocast(), callable_by_method(model, "features"):
            for turn in with_bar(turns, self.name, len(turns), run.is_main):
                if stopped := interrupted():
                    break
                for batch in batches[turn + rank : turn + rank + 1]:
                    found |= zip(batch, self.work(model, batch, ends), strict=True)
        model.train(was_training)
        if stopped:
            return None
        found = {i: value for part in ranks.gather(found) for i, value in part.items()}
        found = [found[i] for i in range(len(self.items))]
        figures = self.answered(found) if self.exact else self.scored(found)
        about = {"format": FORMATS[self.name].about, "items": len(self.items), "cut": self.cut}
        return {**about, **figures, "items_per_second": round(len(self.items) / (time.perf_counter() - began), 2)}

    def answered(self, texts: list[str]) -> dict:
        right = [text.strip() == item.choices[0].strip() for text, item in zip(texts, self.items, strict=True)]
        figures = accuracy("acc", right)
        if False in right:  # one is enough to see a mistake that all share
            item, text = self.items[right.index(False)], texts[right.index(False)]
            figures["first_wrong"] = {"prompt": item.context, "completion": item.choices[0], "answer": text}
        return figures

    def scored(self, scores: list[list[tuple[float, bool]]]) -> dict:
        """Figures of multiple choice, or of the last word. Of equally likely choices the first counts."""
        if self.name == "lambada":
            nats = [-logprob for ((logprob, _),) in scores]
            perplexity = math.exp(min(700.0, statistics.fmean(nats)))
            error = perplexity * standard_error(nats)  # of the mean, carried through exp
            right = accuracy("acc", [likeliest for ((_, likeliest),) in scores])
            return right | {"perplexity": perplexity, "perplexity_stderr": error}
        norm, right, right_norm = FORMATS[self.name].norm, [], []
        for item, pairs, of_item in zip(self.items, self.pairs, scores, strict=True):
            sums = [logprob for logprob, _ in of_item]
            lengths = [len(ids) for _, ids in pairs] if norm == "tokens" else list(map(len, item.choices))
            means = [a / n for a, n in zip(sums, lengths, strict=True)]
            right.append(sums.index(max(sums)) == item.answer)
            right_norm.append(means.index(max(means)) == item.answer)
        return accuracy("acc", right) | (accuracy("acc_norm", right_norm) if norm else {})


def standard_error(values: list[float]) -> float:
    """Of the mean of independent values; 0 for a single one, of which nothing is known."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def accuracy(name: str, right: list[bool]) -> dict[str, float]:
    right = [float(r) for r in right]
    return {name: statistics.fmean(right), f"{name}_stderr": standard_error(right)}


def open_tasks(
    specs: list[str], tokenizer: Tokenizer, begin: list[int], block_size: int, limit: int = 0, template: str = ""
) -> dict[str, Task]:
    """{name: Task}, by its whole NAME:FILE where a name comes twice."""
    names = [spec.partition(":")[0] for spec in specs]
    keys = [name if names.count(name) == 1 else spec for name, spec in zip(names, specs, strict=True)]
    return {
        key: Task(spec, tokenizer, begin, block_size, limit, template) for key, spec in zip(keys, specs, strict=True)
    }
