"""Made-up rows of test sets, and what they ask as others write it; shared by the tests of tasks."""

import json
import random
import re
from pathlib import Path

import torch

from model import GPT

WORDS = (
    "the a cat dog sun rain house tree sings runs falls opens under over with slowly red small "
    "old never"
).split()


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def greedy(model: GPT, ids: list[int], n: int) -> list[int]:
    """The n likeliest tokens after these, one after the other."""
    ids = list(ids)
    with torch.no_grad():
        for _ in range(n):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[-n:]


def made_up(name: str, n: int) -> list[dict]:
    """n rows of this format, of random words; some are longer than a context of 96 tokens."""
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    def hellaswag() -> dict:
        a = words(3, 60) + ". [header] " + words(2, 9)
        b = draw.choice(["", "she", "the DOG"])
        return {
            "activity_label": words(1, 2) + " [title] " + words(1, 2),
            "ctx_a": a,
            "ctx_b": b,
            "ctx": f"{a} {b}".strip(),
            "endings": [words(1, 9) + " [step] " + words(1, 9) + "." for _ in range(4)],
            "label": "2",
        }

    def arc() -> dict:
        k = draw.choice([3, 4, 5])
        labels = list(draw.choice(["ABCDE", "12345"])[:k])
        choices = {"text": [words(1, 6) for _ in labels], "label": labels}
        return {"question": words(5, 70) + "?", "choices": choices, "answerKey": labels[-1]}

    def mmlu() -> dict:
        return {
            "question": f" {words(5, 60)} ",
            "subject": "high_school_" + draw.choice(WORDS),
            "answer": 3,
            "choices": [words(1, 8) for _ in range(4)],
        }

    def piqa() -> dict:
        return {"goal": words(4, 70), "sol1": words(2, 12), "sol2": words(2, 12), "label": 1}

    def lambada() -> dict:
        return {"text": words(20, 90)}

    make = {
        "hellaswag": hellaswag,
        "hellaswag_nanogpt": hellaswag,
        "arc_easy": arc,
        "mmlu": mmlu,
        "piqa": piqa,
        "lambada": lambada,
    }[name]
    return [make() for _ in range(n)]


def their_prompt(name: str, row: dict) -> tuple[str, list[str]]:
    """(context, choices) as lm-evaluation-harness and build-nanogpt write them."""
    if name == "hellaswag":

        def preprocess(text: str) -> str:
            text = re.sub("\\[.*?\\]", "", text.strip().replace(" [title]", ". "))
            return text.replace("  ", " ")

        context = row["activity_label"] + ": " + row["ctx_a"] + " " + row["ctx_b"].capitalize()
        return preprocess(context), [preprocess(x) for x in row["endings"]]
    if name == "hellaswag_nanogpt":
        return row["ctx"], row["endings"]
    if name == "mmlu":
        subject = " ".join(row["subject"].split("_"))
        context = (
            f"The following are multiple choice questions (with answers) about {subject}.\n\n"
            + row["question"].strip()
            + "\n"
        )
        for letter, choice in zip("ABCD", row["choices"], strict=True):
            context += f"{letter}. {choice}\n"
        return context + "Answer:", [*"ABCD"]
    if name == "piqa":
        return "Question: " + row["goal"] + "\nAnswer:", [row["sol1"], row["sol2"]]
    if name == "lambada":
        words = row["text"].split(" ")
        return " ".join(words[:-1]), words[-1:]
    return "Question: " + row["question"] + "\nAnswer:", row["choices"]["text"]
