"""Tasks: the figures that others compute of the same items, in whatever batches."""

import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from task_rows import WORDS, greedy, jsonl, made_up, their_prompt
from tiny_run import loud_model

from lathe import ROOT
from lathe.run import devices
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.tokenizer import Tokenizer, load_tokenizer, train_char
from lathe.use import scoring
from lathe.use.hf.export import export
from lathe.use.tasks import Task, open_tasks
from model import GPT, GPT2

CPU = devices.Runtime(torch.device("cpu"), torch.float32)
ALPHABET = "abcdefgh .\n"
CHARACTERS = train_char([ALPHABET])
EOT = CHARACTERS.eot_id

# -----------------------------------------------------------------------------
# Exact match


def answered_rows(model: GPT, tokenizer: Tokenizer) -> list[dict]:
    """Prompts of several lengths with what the model says up to a character that becomes the stop
    text."""
    rows = []
    for n in range(1, 25):
        prompt = "".join(ALPHABET[(i * n + n) % 8] for i in range(n))
        text = tokenizer.decode(greedy(model, [tokenizer.eot_id, *tokenizer.encode(prompt)], 20))
        stop = next((c for c in text[4:12] if c not in text[:4]), None)
        if stop and text[:4].strip():
            answer = text.partition(stop)[0].strip()
            rows.append({"prompt": prompt, "completion": f" {answer}\n", "stop": stop})
    return rows


def test_exact_match_counts_answers_that_are_right_to_their_end(tmp_path, monkeypatch):
    model = loud_model(CHARACTERS.vocab_size)
    rows = answered_rows(model, CHARACTERS)
    assert len(rows) >= 8
    rows[0]["completion"] += "a"  # the model says less
    rows[1]["completion"] = rows[1]["completion"].strip()[:1] + "  "  # the model says more
    spec = f"exact_match:{jsonl(tmp_path / 'rows.jsonl', rows)}"
    for cached_tokens in (1, 100, 8192):
        monkeypatch.setattr(scoring, "CACHED_TOKENS", cached_tokens)
        found = Task(spec, CHARACTERS, [EOT], 48).measure(model, CPU, (EOT,))
        p = 1 - 2 / len(rows)
        assert found["acc"] == pytest.approx(p)
        assert found["acc_stderr"] == pytest.approx(math.sqrt(p * (1 - p) / (len(rows) - 1)))
        assert (found["items"], found["cut"]) == (len(rows), 0)
        assert found["first_wrong"]["completion"] == rows[0]["completion"]
        assert found["first_wrong"]["answer"].strip() == rows[0]["completion"].strip()[:-1].strip()


def test_a_model_that_learned_chats_is_asked_in_its_template(tmp_path):
    tokenizer = load_tokenizer("byte")
    spec = f"exact_match:{jsonl(tmp_path / 'x', [{'prompt': 'Who?', 'completion': 'Me.'}])}"
    for template, text in (("chat", "User: Who?\nAssistant:"), ("plain", "Who?"), ("", "Who?")):
        (((context, ids),),) = Task(spec, tokenizer, [256], 48, 0, template).pairs
        assert context[0] == 256
        assert tokenizer.decode(context) == text and tokenizer.decode(ids) == "Me."


def test_an_item_without_ids_is_named(tmp_path):
    rows = [{"prompt": "abc", "completion": "d"}, {"prompt": "xyz", "completion": "d"}]
    spec = f"exact_match:{jsonl(tmp_path / 'rows.jsonl', rows)}"
    message = "rows.jsonl, line 2: unknown to the character tokenizer: 'x'"
    with pytest.raises(ValueError, match=message):
        Task(spec, CHARACTERS, [], 8)


def test_a_task_that_comes_twice_goes_by_its_file(tmp_path):
    files = [jsonl(tmp_path / name, [{"text": "a b"}]) for name in ("x", "y")]
    specs = [f"lambada:{file}" for file in files]
    assert list(open_tasks(specs, CHARACTERS, [], 8)) == specs
    assert list(open_tasks(specs[:1], CHARACTERS, [], 8)) == ["lambada"]


# -----------------------------------------------------------------------------
# The context


def test_of_choices_longer_than_the_context_the_last_tokens_are_scored(tmp_path, capsys):
    rows = [{"text": "abc " + "defgh" * n} for n in (1, 2, 3, 4, 9)]
    task = Task(f"lambada:{jsonl(tmp_path / 'x', rows)}", CHARACTERS, [], 16)
    assert task.cut == 3
    assert "3 of 5 items exceed the context of 16 tokens" in capsys.readouterr().err
    for row, ((context, ids),) in zip(rows, task.pairs, strict=True):
        text_ids = CHARACTERS.encode(row["text"])
        assert [*context, *ids] == text_ids[-17:]
        assert len(ids) == min(16, len(text_ids) - 3)


@pytest.mark.parametrize("length", [0, 11, 12, 13, 40])
def test_prompts_too_long_are_cut_at_their_beginning_and_counted(length, tmp_path):
    """A context of 16 holds a completion of 4 and 12 tokens before it, end-of-text included."""
    rows = [{"prompt": ("gh" * 20)[:length], "completion": "abcd"}]
    task = Task(f"exact_match:{jsonl(tmp_path / 'x', rows)}", CHARACTERS, [EOT], 16)
    (((context, ids),),) = task.pairs
    assert task.cut == (length + 1 > 12)
    assert len(context) == min(12, length + 1) and len(ids) == 4
    assert length == 0 or context[-1] == CHARACTERS.encode(rows[0]["prompt"])[-1]
    model = loud_model(CHARACTERS.vocab_size, block_size=16)
    assert task.measure(model, CPU, (EOT,))["items"] == 1


# -----------------------------------------------------------------------------
# The same as others


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(network, tokenizer, folder): GPT-2's shape, random weights, a context of 96."""
    text = " ".join(WORDS) + " Question: Answer: A. B. C. D.\n"
    tokenizer = train_bpe(count_pieces([text] * 9), 300)
    model = loud_model(tokenizer.vocab_size, **GPT2, block_size=96)
    folder = tmp_path_factory.mktemp("tasks") / "exported"
    export(model, tokenizer, folder)
    return model, tokenizer, folder


@pytest.fixture(scope="module")
def in_transformers(exported):
    """A function: of (context, choices) the figures of each choice, one forward pass each."""
    transformers = pytest.importorskip("transformers")
    _, _, folder = exported
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def figures(context: str, choice: str) -> dict:
        before = tokenizer(context)["input_ids"]
        ids = tokenizer(context + " " + choice)["input_ids"]
        n = len(ids) - len(before)
        with torch.no_grad():
            logits = network(torch.tensor([ids[-97:-1]])).logits[0, -n:]
        target = torch.tensor(ids[-n:])
        logprobs = logits.double().log_softmax(-1).gather(1, target[:, None])
        return {
            "logprob": logprobs.sum().item(),
            "is_greedy": bool((logits.argmax(-1) == target).all()),
            "tokens": n,
            "characters": len(choice),
            "cut": len(ids) > 97,
        }

    return lambda context, choices: [figures(context, choice) for choice in choices]


RIGHT_ANSWER = {"mmlu": "answer", "arc_easy": "answerKey"}  # else "label"
NORMALIZED_BY = {
    "hellaswag": "characters",
    "hellaswag_nanogpt": "tokens",
    "arc_easy": "characters",
    "piqa": "characters",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hellaswag", "hellaswag_nanogpt", "arc_easy", "piqa", "mmlu"])
def test_choices_equal_those_of_transformers(name, exported, in_transformers, tmp_path):
    """200 rows. Whichever choice transformers makes is called the right answer: then all are
    right."""
    model, tokenizer, _ = exported
    rows = made_up(name, 200)
    found = [in_transformers(*their_prompt(name, row)) for row in rows]
    divisors = {"acc": None}
    if name in NORMALIZED_BY:
        divisors["acc_norm"] = NORMALIZED_BY[name]
    key = RIGHT_ANSWER.get(name, "label")
    for figure, divisor in divisors.items():
        called = []
        for row, choices in zip(rows, found, strict=True):
            values = [c["logprob"] / (c[divisor] if divisor else 1) for c in choices]
            answer = values.index(max(values))
            if key == "answerKey":
                answer = row["choices"]["label"][answer]
            called.append({**row, key: answer})
        assert len({str(row[key]) for row in called}) > 1
        spec = f"{name}:{jsonl(tmp_path / 'rows.jsonl', called)}"
        ours = Task(spec, tokenizer, [tokenizer.eot_id], 96).measure(model, CPU)
        assert (ours[figure], ours[f"{figure}_stderr"]) == (1.0, 0.0)
        assert ours["items"] == 200
        assert ours["cut"] == sum(any(c["cut"] for c in choices) for choices in found) > 0


@pytest.mark.slow
def test_last_words_equal_those_of_transformers(exported, in_transformers, tmp_path):
    """200 rows; half of them end in a word that the model itself finds likeliest."""
    model, tokenizer, _ = exported
    rows = made_up("lambada", 200)
    for row in rows[::2]:
        ids = tokenizer.encode(row["text"])[-90:]
        word = tokenizer.decode(greedy(model, ids, 1))
        while not word.strip():
            ids = ids[:-1]
            word = tokenizer.decode(greedy(model, ids, 1))
        row["text"] = tokenizer.decode(ids) + " " + word.strip().split()[0]
    found = [in_transformers(*their_prompt("lambada", row))[0] for row in rows]
    spec = f"lambada:{jsonl(tmp_path / 'rows.jsonl', rows)}"
    ours = Task(spec, tokenizer, [], 96).measure(model, CPU)
    assert ours["acc"] == sum(word["is_greedy"] for word in found) / 200
    assert 0 < ours["acc"] < 1
    perplexity = math.exp(-sum(word["logprob"] for word in found) / 200)
    assert ours["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert ours["cut"] == sum(word["cut"] for word in found) > 0


def harness_task(name: str, question: str, target: str, choices: str, file: str) -> dict:
    """A task of lm-evaluation-harness, as in its own file, but with rows from ours."""
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": "test",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": file}},
        "doc_to_text": f"Question: {{{{{question}}}}}\nAnswer:",
        "doc_to_target": target,
        "doc_to_choice": choices,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


@pytest.mark.slow
def test_the_harness_finds_the_same_scores_on_the_exported_folder(exported, tmp_path):
    """The command in docs/use.md, with PIQA's rows and ARC's from files, which spares it the network."""
    if not all(map(importlib.util.find_spec, ("lm_eval", "accelerate"))):
        pytest.skip("lm_eval is not installed: pip install -r requirements-ci.txt")
    model, tokenizer, folder = exported
    prompts = {
        "piqa": ("goal", "label", "{{[sol1, sol2]}}"),
        "arc_easy": ("question", "{{choices.label.index(answerKey)}}", "{{choices.text}}"),
    }
    files = {name: jsonl(tmp_path / f"{name}.jsonl", made_up(name, 60)) for name in prompts}
    for name, prompt in prompts.items():
        task = harness_task(f"own_{name}", *prompt, str(files[name]))
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))  # which is YAML, too

    readme = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    line = re.search(r"^lm_eval .*", readme, re.M)[0]
    command = shlex.split(line.replace("out/exported", str(folder)))
    command[:1] = [sys.executable, "-m", "lm_eval"]
    command[command.index("--tasks") + 1] = "own_piqa,own_arc_easy"
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "found")]
    command += ["--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]

    (results,) = (tmp_path / "found").rglob("results*.json")
    found = json.loads(results.read_text())["results"]
    for name, file in files.items():
        ours = Task(f"{name}:{file}", tokenizer, [], 96).measure(model, CPU)
        theirs = found[f"own_{name}"]
        for key in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
            assert theirs[f"{key},none"] == pytest.approx(ours[key])
