"""Rows of test sets: every format is read, and a bad row is named with file and line."""

import json
import os
import subprocess
import sys

import pytest
from task_rows import jsonl

from lathe import ROOT
from lathe.use.items import FORMATS, read_items

ITEMS = ROOT / "tests" / "items"


def test_every_format_has_items_to_try_in_which_no_choice_is_always_right():
    for name in FORMATS:
        items = read_items(f"{name}:{ITEMS / name.removesuffix('_nanogpt')}.jsonl")
        assert len(items) >= 3
        assert len(items[0].choices) == 1 or len({item.answer for item in items}) > 1


def test_ai2s_own_files_of_arc_are_read_as_the_columns_of_datasets(tmp_path):
    columns = {"text": ["wood", "ice"], "label": ["A", "B"]}
    choices = [{"text": "wood", "label": "A"}, {"text": "ice", "label": "B"}]
    ours = {"question": "What burns?", "choices": columns, "answerKey": "A"}
    theirs = {"question": {"stem": "What burns?", "choices": choices}, "answerKey": "A"}
    (of_columns,) = read_items(f"arc_easy:{jsonl(tmp_path / 'x', [ours])}")
    (of_ai2,) = read_items(f"arc_easy:{jsonl(tmp_path / 'x', [theirs])}")
    assert of_columns == of_ai2 and of_columns.choices == ["wood", "ice"]


def test_a_limit_takes_the_first_items(tmp_path):
    path = jsonl(tmp_path / "x", [{"text": f"a {n}"} for n in range(5)])
    assert [item.choices for item in read_items(f"lambada:{path}", 2)] == [["0"], ["1"]]
    assert len(read_items(f"lambada:{path}")) == 5


# -----------------------------------------------------------------------------
# Bad rows


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


PIQA = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}
ARC = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}
MMLU = {"question": "q", "subject": "s", "choices": list("abcde"), "answer": 1}


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "piqa",
            lines(PIQA, {"goal": "g", "sol1": "a"}),
            r"line 2: no field 'sol2', which piqa needs.*are goal, sol1",
        ),
        ("exact_match", lines({"text": "x"}), "line 1: no field 'prompt'.*are text"),
        (
            "piqa",
            lines(PIQA, PIQA) + b"\n" + lines({**PIQA, "label": 2}),
            "line 4: the answer is 2, the choices are 0 to 1",
        ),
        ("piqa", lines({**PIQA, "label": -1}), "line 1: the answer is -1"),
        ("piqa", lines({**PIQA, "label": ""}), "line 1 is no row of piqa: .*''"),
        ("arc_easy", lines(ARC), "row of arc_easy: answerKey is 'C', the choices are A, B"),
        ("exact_match", lines({"prompt": "x", "completion": " "}), "line 1: an answer .* is empty"),
        ("exact_match", lines({"prompt": 3, "completion": "x"}), "line 1 is no row of exact_match"),
        ("lambada", lines({"text": 3}), "line 1 is no row of lambada"),
        ("mmlu", lines(MMLU), "no row of mmlu: it has 5 choices, not 4"),
        ("piqa", lines([PIQA]), "line 1 is not a JSON object"),
        ("piqa", b"{", "line 1 is not JSON"),
        ("piqa", b"\xff\xfe", "line 1 is not UTF-8 at byte 0"),
        ("piqa", b"\n", "has no items"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(name, content, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_items(f"{name}:{path}")
    assert "rows.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_had_is_said_with_what_to_do():
    with pytest.raises(ValueError, match="'hellaswg' is none of hellaswag, .* is NAME:FILE"):
        read_items("hellaswg")
    with pytest.raises(FileNotFoundError, match="tasks: piqa:nowhere: there is no such file"):
        read_items("piqa:nowhere")
    with pytest.raises(ValueError, match="give a file, exact_match:FILE"):
        read_items("exact_match")


@pytest.mark.slow
def test_without_a_network_a_published_test_set_is_asked_for_as_a_file(tmp_path):
    """In a process of its own: `datasets` looks at its environment once."""
    pytest.importorskip("datasets")
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    code = (
        "from lathe import cli; from lathe.use.items import read_items; "
        "cli.run(lambda: read_items('piqa'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **offline, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "the validation split of baber/piqa" in done.stderr
    assert "give it as piqa:FILE" in done.stderr
