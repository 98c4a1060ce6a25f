"""The tasks that make their own data: right answers, nothing tested that was trained on, and a network that learns."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ROOT, command, finished, rows

from prepare import examples

SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("task", examples.TASKS)
def test_what_is_drawn_differs_and_is_the_same_for_the_same_seed(task):
    drawn = examples.draw(task, 300, 7)
    assert len({row["prompt"] for row in drawn}) == 300
    assert examples.draw(task, 300, 7) == drawn != examples.draw(task, 300, 8)


@given(SEEDS)
def test_reversal(seed):
    (row,) = examples.draw("reverse", 1, seed)
    assert re.fullmatch("[a-z]{10}>", row["prompt"])
    assert list(row["completion"]) == list(reversed(row["prompt"][:-1]))


@given(SEEDS)
def test_addition(seed):
    (row,) = examples.draw("add", 1, seed)
    a, b = map(int, re.fullmatch(r"(\d{1,3})\+(\d{1,3})=", row["prompt"]).groups())
    assert row["completion"] == f"{a + b:d}"


@given(SEEDS)
def test_sentiment_is_that_of_the_clause_which_counts(seed):
    (row,) = examples.draw("sentiment", 1, seed)
    text = row["prompt"].removesuffix(":")
    counts = text.split(" although ")[0].split(" but ")[-1].split(" and ")[0].split()
    good = {*examples.ADJECTIVES["positive"], *examples.VERBS["positive"]}
    turned = bool({"not", "never"} & set(counts))
    assert row["completion"] == ("positive" if bool(good & set(counts)) != turned else "negative")


@given(SEEDS)
def test_translation_keeps_the_words_and_puts_order_and_endings_right(seed):
    (row,) = examples.draw("translate", 1, seed)
    words, (*theirs, verb) = row["prompt"].removesuffix(":").split(), row["completion"].split()
    at = next(i for i, word in enumerate(words) if word in examples.ACTIONS)
    expected, plurals = [], []
    for *qualities, noun in (words[:at], words[at + 1 :]):
        plurals.append(noun not in examples.NOUNS)
        root, gender = examples.NOUNS[noun.removesuffix("n") if plurals[-1] else noun]
        roots = [root, *(examples.QUALITIES[word] for word in qualities)]
        expected += [root + gender + ("s" if plurals[-1] else "") for root in roots]
    assert theirs == expected and verb == examples.ACTIONS[words[at]] + (
        "ent" if plurals[0] else "et"
    )


def test_no_task_or_an_unknown_one(capsys):
    for words in ([], ["subtract"], ["add", "reverse"]):
        with pytest.raises(SystemExit) as stop:
            examples.main(words)
        assert (
            stop.value.code == 2 and "reverse, add, sentiment, translate" in capsys.readouterr().err
        )


@pytest.mark.slow
def test_one_command_makes_the_data_and_learns_to_reverse(tmp_path):
    code, _, err = finished(
        command(ROOT / "train.py", "example_reverse", "--device=cpu", folder=tmp_path), 300
    )
    assert code == 0 and "running python prepare/examples.py reverse" in err, err
    assert rows(tmp_path / "out/example_reverse", "exact_match/acc")[-1]["exact_match/acc"] >= 0.99
    lines = [
        line
        for name in ("test", "train")
        for line in open(tmp_path / f"data/example_reverse/{name}.jsonl")
    ]
    assert len({json.loads(line)["prompt"] for line in lines}) == len(lines), (
        "a prompt of the test was trained on"
    )
