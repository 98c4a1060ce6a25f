"""Tasks: the same choices as computed one by one by transformers, the same figures in any batches, mistakes named."""

import importlib.util
import json
import math
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import loud_model

from lathe import ROOT
from lathe.run import devices
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.tokenizer import load_tokenizer, train_char
from lathe.use import scoring
from lathe.use.hf import export as hf_export
from lathe.use.items import FORMATS, read_items
from lathe.use.scoring import batches_by_length, score
from lathe.use.tasks import Task
from model import CHOICES, GPT, GPT2

CPU = devices.Runtime(torch.device("cpu"), torch.float32)
ALPHABET = "abcdefgh .\n"


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- exact match


def greedy(model: GPT, ids: list[int], n: int) -> list[int]:
    ids, begin = list(ids), len(ids)
    with torch.no_grad():
        for _ in range(n):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[begin:]


@pytest.fixture
def chars():
    return train_char([ALPHABET])


def answered_rows(model, tokenizer) -> list[dict]:
    """Prompts of several lengths with what the model says up to its fourth character, which is made the stop text."""
    rows = []
    for n in range(1, 25):
        prompt = "".join(ALPHABET[(i * n + n) % 8] for i in range(n))
        text = tokenizer.decode(greedy(model, [tokenizer.eot_id, *tokenizer.encode(prompt)], 20))
        stop = next((c for c in text[4:12] if c not in text[:4]), None)
        if stop and text[:4].strip():
            rows.append(
                {
                    "prompt": prompt,
                    "completion": f" {text.partition(stop)[0].strip()}\n",
                    "stop": stop,
                }
            )
    return rows


def test_exact_match_counts_answers_that_are_right_to_their_end(tmp_path, chars, monkeypatch):
    model = loud_model(chars.vocab_size)
    rows = answered_rows(model, chars)
    assert len(rows) >= 8
    rows[0]["completion"] += "a"  # the model says less
    rows[1]["completion"] = rows[1]["completion"].strip()[:1] + "  "  # the model says more
    spec = f"exact_match:{jsonl(tmp_path / 'rows.jsonl', rows)}"
    for at_once in (1, 100, 8192):
        monkeypatch.setattr(scoring, "CACHED_TOKENS", at_once)
        found = Task(spec, chars, [chars.eot_id], 48).measure(model, CPU, (chars.eot_id,))
        p = 1 - 2 / len(rows)
        assert (
            found["acc"] == pytest.approx(p) and found["items"] == len(rows) and found["cut"] == 0
        )
        assert found["acc_stderr"] == pytest.approx(math.sqrt(p * (1 - p) / (len(rows) - 1)))
        assert found["items_per_second"] > 0
        assert found["first_wrong"]["completion"] == rows[0]["completion"]
        assert found["first_wrong"]["answer"].strip() == rows[0]["completion"].strip()[:-1].strip()


def test_a_model_that_learned_chats_is_asked_in_its_template(tmp_path):
    tokenizer = load_tokenizer("byte")
    spec = f"exact_match:{jsonl(tmp_path / 'x', [{'prompt': 'Who?', 'completion': 'Me.'}])}"
    for template, text in (("chat", "User: Who?\nAssistant:"), ("plain", "Who?"), ("", "Who?")):
        (((context, ids),),) = Task(spec, tokenizer, [256], 48, 0, template).pairs
        assert tokenizer.decode(context).strip() == text and tokenizer.decode(ids) == "Me."


# ---- choices


def one_by_one(model: GPT, context: list[int], ids: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *ids][:-1]]))[0, len(context) - 1 :]
    target = torch.tensor(ids)
    own = logits.double().log_softmax(-1).gather(1, target[:, None])
    return own.sum().item(), bool((logits.argmax(-1) == target).all())


ARCHITECTURES = [dict(position=p) for p in CHOICES["position"]]
ARCHITECTURES += [dict(n_kv_head=1), dict(GPT2), dict(logit_softcap=5.0, norm_weight=True)]
ARCHITECTURES += [dict(bigram_rows=10**4)]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_scores_in_a_batch_equal_those_one_by_one(architecture, monkeypatch):
    """Contexts of all lengths, also of one token and of the whole context, each with several continuations."""
    model, random = loud_model(61, **architecture), torch.Generator().manual_seed(0)

    def ids(n):
        return torch.randint(61, (n,), generator=random).tolist()

    contexts = [ids(n) for n in (1, 2, 7, 7, 30, 47, 48)]
    pairs = [(c, ids(n)) for c in contexts for n in (1, 2, 20, 1) if len(c) + n <= 49]
    pairs += [(c, greedy(model, c, 2)) for c in contexts if len(c) < 47]
    expected = [one_by_one(model, *pair) for pair in pairs]
    assert {likeliest for _, likeliest in expected} == {True, False}
    for at_once in (4096, 200, 4):
        monkeypatch.setattr(scoring, "CACHED_TOKENS", at_once)
        for (nats, likeliest), (nats_alone, likeliest_alone) in zip(
            score(model, pairs), expected, strict=True
        ):
            assert nats == pytest.approx(nats_alone, abs=1e-4) and likeliest == likeliest_alone


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 50))
def test_batches_hold_every_row_once_and_no_more_than_they_may(lengths, at_once):
    batches = batches_by_length(lengths, at_once)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(
        len(batch) * max(lengths[i] for i in batch) <= at_once or len(batch) == 1
        for batch in batches
    )


WORDS = "the a cat dog sun rain house tree sings runs falls opens under over with slowly red small old never".split()


def made_up(n: int) -> dict[str, list[dict]]:
    """n rows of each format, of random words; some are longer than a context of 96 tokens."""
    draw = random.Random(0)

    def words(least, most):
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    def hellaswag():
        a, b = words(3, 60) + ". [header] " + words(2, 9), draw.choice(["", "she", "the DOG"])
        row = {
            "activity_label": words(1, 2) + " [title] " + words(1, 2),
            "ctx_a": a,
            "ctx_b": b,
            "ctx": f"{a} {b}".strip(),
        }
        return {
            **row,
            "endings": [words(1, 9) + " [step] " + words(1, 9) + "." for _ in range(4)],
            "label": "2",
        }

    def arc():
        k = draw.choice([3, 4, 5])
        labels = draw.choice(["ABCDE", "12345"])[:k]
        choices = {"text": [words(1, 6) for _ in labels], "label": list(labels)}
        return {"question": words(5, 70) + "?", "choices": choices, "answerKey": labels[-1]}

    def mmlu():
        row = {
            "question": f" {words(5, 60)} ",
            "subject": "high_school_" + draw.choice(WORDS),
            "answer": 3,
        }
        return {**row, "choices": [words(1, 8) for _ in range(4)]}

    kinds = {
        "hellaswag": hellaswag, "hellaswag_nanogpt": hellaswag, "arc_easy": arc, "mmlu": mmlu,
        "piqa": lambda: {"goal": words(4, 70), "sol1": words(2, 12), "sol2": words(2, 12), "label": 1},
        "lambada": lambda: {"text": words(20, 90)},
    }  # fmt: skip
    return {name: [make() for _ in range(n)] for name, make in kinds.items()}


def their_prompt(name: str, row: dict) -> tuple[str, list[str]]:
    """(context, choices) as lm-evaluation-harness and build-nanogpt write them, told a second time."""
    if name == "hellaswag":

        def preprocess(text):
            text = re.sub("\\[.*?\\]", "", text.strip().replace(" [title]", ". "))
            return text.replace("  ", " ")

        context = row["activity_label"] + ": " + row["ctx_a"] + " " + row["ctx_b"].capitalize()
        return preprocess(context), [preprocess(x) for x in row["endings"]]
    if name == "hellaswag_nanogpt":
        return row["ctx"], row["endings"]
    if name == "mmlu":
        about = "The following are multiple choice questions (with answers) about "
        about += " ".join(row["subject"].split("_")) + ".\n\n" + row["question"].strip() + "\n"
        return about + "".join(
            f"{k}. {x}\n" for k, x in zip("ABCD", row["choices"], strict=True)
        ) + "Answer:", [*"ABCD"]
    if name == "piqa":
        return "Question: " + row["goal"] + "\nAnswer:", [row["sol1"], row["sol2"]]
    if name == "lambada":
        return " ".join(row["text"].split(" ")[:-1]), [row["text"].split(" ")[-1]]
    return "Question: " + row["question"] + "\nAnswer:", row["choices"]["text"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(network, tokenizer, and both as transformers opens them): GPT-2's shape, random weights, a context of 96."""
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = train_bpe(
        count_pieces([" ".join(WORDS) + " Question: Answer: A. B. C. D.\n"] * 9), 300
    )
    model = loud_model(tokenizer.vocab_size, **GPT2, block_size=96)
    folder = tmp_path_factory.mktemp("tasks") / "exported"
    hf_export.export(model, tokenizer, folder)
    return (
        model,
        tokenizer,
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )


def in_transformers(
    network, tokenizer, context: str, choices: list[str]
) -> list[tuple[float, bool, int, bool]]:
    """(log-probability, all likeliest, tokens, cut) of each choice, one forward pass each."""
    found = []
    for choice in choices:
        before, whole = (
            tokenizer(context)["input_ids"],
            tokenizer(context + " " + choice)["input_ids"],
        )
        n, ids = len(whole) - len(before), whole[-97:]
        with torch.no_grad():
            logits = network(torch.tensor([ids[:-1]])).logits[0, -n:]
        target = torch.tensor(ids[-n:])
        sums = logits.double().log_softmax(-1).gather(1, target[:, None]).sum().item()
        found.append((sums, bool((logits.argmax(-1) == target).all()), n, len(whole) > 97))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hellaswag", "hellaswag_nanogpt", "arc_easy", "piqa", "mmlu"])
def test_choices_equal_those_of_transformers(name, exported, tmp_path):
    """200 rows. Whichever choice transformers makes is called the right answer: then all are right."""
    model, tokenizer, network, their_tokenizer = exported
    rows, spec = made_up(200)[name], f"{name}:{tmp_path / 'rows.jsonl'}"
    found = [
        (in_transformers(network, their_tokenizer, *their_prompt(name, row)), row) for row in rows
    ]
    length = {"hellaswag_nanogpt": lambda n, text: n}.get(name, lambda n, text: len(text))
    for figure in ("acc", "acc_norm") if name != "mmlu" else ("acc",):
        called = []
        for scores, row in found:
            texts = their_prompt(name, row)[1]
            values = [s / (length(n, text) if figure == "acc_norm" else 1) for (s, _, n, _), text in
                      zip(scores, texts, strict=True)]  # fmt: skip
            answer = values.index(max(values))
            key = {"mmlu": "answer", "arc_easy": "answerKey"}.get(name, "label")
            called.append(
                {**row, key: row["choices"]["label"][answer] if key == "answerKey" else answer}
            )
        assert len({str(row[key]) for row in called}) > 1
        jsonl(tmp_path / "rows.jsonl", called)
        ours = Task(spec, tokenizer, [tokenizer.eot_id], 96).measure(model, CPU)
        assert ours[figure] == 1.0 and ours[f"{figure}_stderr"] == 0.0 and ours["items"] == 200
        assert ours["cut"] == sum(any(cut for *_, cut in scores) for scores, _ in found) > 0


@pytest.mark.slow
def test_last_words_equal_those_of_transformers(exported, tmp_path):
    """200 rows; half of them end in a word that the model itself finds likeliest."""
    model, tokenizer, network, their_tokenizer = exported
    rows = made_up(200)["lambada"]
    for row in rows[::2]:
        ids = their_tokenizer(row["text"])["input_ids"][-90:]
        while len(ids) < 96 and not (word := tokenizer.decode(greedy(model, ids, 1))).strip():
            ids = ids[:-1]
        row["text"] = tokenizer.decode(ids) + " " + word.strip().split()[0]
    found = [
        in_transformers(network, their_tokenizer, *their_prompt("lambada", row))[0] for row in rows
    ]
    ours = Task(f"lambada:{jsonl(tmp_path / 'rows.jsonl', rows)}", tokenizer, [], 96).measure(
        model, CPU
    )
    assert ours["acc"] == sum(likeliest for _, likeliest, *_ in found) / 200
    assert 0 < ours["acc"] < 1
    assert ours["perplexity"] == pytest.approx(math.exp(-sum(s for s, *_ in found) / 200), rel=1e-5)
    assert ours["cut"] == sum(cut for *_, cut in found) > 0


# ---- files


ITEMS = ROOT / "tests" / "items"


def test_every_format_has_items_to_try_in_which_no_choice_is_always_right():
    for name in FORMATS:
        items = read_items(f"{name}:{ITEMS / name.removesuffix('_nanogpt')}.jsonl")
        assert len(items) >= 3
        assert len(items[0].choices) == 1 or len({item.answer for item in items}) > 1


def test_ai2s_own_files_of_arc_are_read_as_the_columns_of_datasets(tmp_path):
    row = {
        "question": "What burns?",
        "choices": {"text": ["wood", "ice"], "label": ["A", "B"]},
        "answerKey": "A",
    }
    choices = [{"text": "wood", "label": "A"}, {"text": "ice", "label": "B"}]
    theirs = {"question": {"stem": "What burns?", "choices": choices}, "answerKey": "A"}
    read = [read_items(f"arc_easy:{jsonl(tmp_path / 'x', [r])}")[0] for r in (row, theirs)]
    assert read[0] == read[1] and read[0].choices == ["wood", "ice"]


def lines(*rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


PIQA = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}
ARC = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}


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
        (
            "arc_easy",
            lines(ARC),
            "line 1 is no row of arc_easy: answerKey is 'C', the choices are A, B",
        ),
        ("exact_match", lines({"prompt": "x", "completion": " "}), "line 1: an answer .* is empty"),
        ("exact_match", lines({"prompt": 3, "completion": "x"}), "line 1 is no row of exact_match"),
        ("lambada", lines({"text": 3}), "line 1 is no row of lambada"),
        (
            "mmlu",
            lines({"question": "q", "subject": "s", "choices": list("abcde"), "answer": 1}),
            "no row of mmlu: it has 5 choices, not 4",
        ),
        ("piqa", lines([PIQA]), "line 1 is not a JSON object"),
        ("piqa", b"{", "line 1 is not JSON"),
        ("piqa", b"\xff\xfe", "line 1 is not JSON"),
        ("piqa", b"\n", "has no items"),
        ("hellaswg", b"", "'hellaswg' is none of hellaswag, "),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(name, content, message, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_items(f"{name}:{tmp_path / 'rows.jsonl'}")
    assert "\n" not in str(error.value) and ("rows.jsonl" in str(error.value) or name == "hellaswg")


def test_what_cannot_be_had_is_said_with_what_to_do(monkeypatch, chars, tmp_path):
    with pytest.raises(FileNotFoundError, match="tasks: piqa:nowhere: there is no such file"):
        read_items("piqa:nowhere")
    with pytest.raises(ValueError, match="give a file, exact_match:FILE"):
        read_items("exact_match")
    rows = [{"prompt": "abc", "completion": "d"}, {"prompt": "xyz", "completion": "d"}]
    with pytest.raises(
        ValueError, match="rows.jsonl, line 2: unknown to the character tokenizer: 'x'"
    ):
        Task(f"exact_match:{jsonl(tmp_path / 'rows.jsonl', rows)}", chars, [], 8)


@pytest.mark.slow
def test_without_a_network_a_published_test_set_is_asked_for_as_a_file(tmp_path):
    """In a process of its own: `datasets` looks at its environment once."""
    pytest.importorskip("datasets")
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    code = "from lathe import cli; from lathe.use.items import read_items; cli.run(lambda: read_items('piqa'))"
    environment = {**os.environ, **offline, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert (
        "the validation split of baber/piqa" in done.stderr
        and "give it as piqa:FILE" in done.stderr
    )


def test_of_choices_longer_than_the_context_the_last_tokens_are_scored(chars, tmp_path, capsys):
    rows = [{"text": "abc " + "defgh" * n} for n in (1, 2, 3, 4, 9)]
    task = Task(f"lambada:{jsonl(tmp_path / 'x', rows)}", chars, [], 16)
    assert (
        task.cut == 3 and "3 of 5 items exceed the context of 16 tokens" in capsys.readouterr().err
    )
    for row, ((context, ids),) in zip(rows, task.pairs, strict=True):
        whole = chars.encode(row["text"])
        assert [*context, *ids] == whole[-17:] and len(ids) == min(16, len(whole) - 3)


@pytest.mark.parametrize("length", [0, 11, 12, 13, 40])
def test_prompts_too_long_are_cut_at_their_beginning_and_counted(length, chars, tmp_path):
    """A context of 16 holds 12 prompt tokens, with end-of-text before them, and a completion of 4."""
    rows = [{"prompt": ("gh" * 20)[:length], "completion": "abcd"}]
    task = Task(f"exact_match:{jsonl(tmp_path / 'x', rows)}", chars, [chars.eot_id], 16)
    (((context, ids),),) = task.pairs
    assert task.cut == (length + 1 > 12) and len(context) == min(12, length + 1) and len(ids) == 4
    assert length == 0 or context[-1] == chars.encode(rows[0]["prompt"])[-1]
    model = loud_model(chars.vocab_size, block_size=16)
    assert task.measure(model, CPU, (chars.eot_id,))["items"] == 1


@pytest.mark.slow
def test_the_harness_finds_the_same_scores_on_the_exported_folder(exported, tmp_path):
    """The README's command, with PIQA's rows and ARC's from files, which spares it the network."""
    if (
        importlib.util.find_spec("lm_eval") is None
        or importlib.util.find_spec("accelerate") is None
    ):
        pytest.skip("lm_eval is not installed: pip install -r requirements-ci.txt")
    model, tokenizer, *_ = exported
    hf_export.export(model, tokenizer, tmp_path / "exported")
    prompts = {"piqa": ("goal", "label", "{{[sol1, sol2]}}"),
               "arc_easy": ("question", "{{choices.label.index(answerKey)}}", "{{choices.text}}")}  # fmt: skip
    for name, (question, target, choices) in prompts.items():
        path = jsonl(tmp_path / f"{name}.jsonl", made_up(60)[name])
        about = {"task": f"own_{name}", "output_type": "multiple_choice", "test_split": "test"}
        about |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}
        about |= {"doc_to_text": f"Question: {{{{{question}}}}}\nAnswer:", "doc_to_target": target}
        about |= {
            "doc_to_choice": choices,
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(about))  # which is YAML, too
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = shlex.split(
        re.search(r"^lm_eval .*", readme, re.M)[0].replace(
            "out/exported", str(tmp_path / "exported")
        )
    )
    command[:1] = [sys.executable, "-m", "lm_eval"]
    command[command.index("--tasks") + 1] = "own_piqa,own_arc_easy"
    command += [
        "--include_path",
        str(tmp_path),
        "--output_path",
        str(tmp_path / "found"),
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next((tmp_path / "found").rglob("results*.json")).read_text())["results"]
    for name in prompts:
        ours = Task(f"{name}:{tmp_path / name}.jsonl", tokenizer, [], 96).measure(model, CPU)
        for key in ("acc", "acc_norm"):
            assert found[f"own_{name}"][f"{key},none"] == pytest.approx(ours[key])
            assert found[f"own_{name}"][f"{key}_stderr,none"] == pytest.approx(
                ours[f"{key}_stderr"]
            )
