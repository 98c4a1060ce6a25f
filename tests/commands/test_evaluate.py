"""The command: one JSON object, the same on any number of ranks; what does not fit is said."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_run import command, finished, free_ports, loud_model

import evaluate
from lathe import ROOT
from lathe.data.dataset import open_dataset
from lathe.data.shards import write_dataset
from lathe.run import checkpoint, devices
from lathe.text.tokenizer import load_tokenizer, train_char
from lathe.use.validation import validation
from prepare import pairs

TEXT = "Grüße: the quick brown fox jumps over the lazy dog, again and again.\n" * 12
BYTES = load_tokenizer("byte")
MODEL = loud_model(BYTES.vocab_size, block_size=32)
ITEMS = ROOT / "tests" / "items"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, BYTES, [TEXT], [TEXT, "short"])
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> Path:
    """A run's folder with one checkpoint of an untrained model, which names the dataset."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    state = {
        "step": 7,
        "model": asdict(MODEL.config),
        "settings": {"dataset": str(data)},
        "tokenizer": {"name": "byte", "fingerprint": BYTES.fingerprint},
    }
    checkpoint.save(folder, MODEL.state_dict(), {}, state, BYTES)
    return folder


def test_the_command_prints_one_json_object(run, data):
    code, out, err = finished(command("evaluate.py", f"--out_dir={run}"))
    assert code == 0, err
    found = json.loads(out)
    cpu = devices.Runtime(torch.device("cpu"), torch.float32)
    expected = validation(MODEL, open_dataset(data), cpu, micro_batch_size=8)
    assert found.pop("loss") == pytest.approx(expected["loss"], rel=1e-6)
    assert found.pop("perplexity") == pytest.approx(math.exp(expected["loss"]), rel=1e-6)
    assert found.pop("bits_per_byte") == pytest.approx(expected["bits_per_byte"], rel=1e-6)
    assert found == {
        "checkpoint": str(run / "checkpoints" / "step-0000007"),
        "step": 7,
        "dtype": "float32",
        "dataset": str(data),
        "split": "val",
        "tokens": expected["tokens"],
        "block_size": 32,
        "stride": 32,
    }


def on_ranks(n: int, *arguments: str) -> dict:
    """What the command prints as n ranks."""
    group = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    processes = []
    for rank in range(n):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), **group}
        processes.append(command("evaluate.py", *arguments, env=environment))
    done = [finished(process) for process in processes]
    assert [code for code, _, _ in done] == [0] * n, done
    assert all(out == "" for _, out, _ in done[1:])  # one speaks
    return json.loads(done[0][1])


@pytest.mark.slow
def test_ranks_share_the_work_and_agree(run, data):
    """Losses to a part in a million, tasks exactly, on one rank and on two."""
    names = ("hellaswag", "arc_easy", "lambada", "exact_match")
    arguments = [f"--out_dir={run}", f"--dataset={data}", "--device=cpu"]
    arguments += ["--by_position=true", "--stride=9"]
    arguments += ["--tasks", *(f"{name}:{ITEMS / name}.jsonl" for name in names)]
    one = on_ranks(1, *arguments)
    two = on_ranks(2, *arguments)
    assert (one["stride"], one["block_size"], one["tokens"]) == (9, 32, two["tokens"])
    for key in ("loss", "perplexity", "bits_per_byte"):
        assert two[key] == pytest.approx(one[key], rel=1e-6)
    for of_one, of_two in zip(one["by_position"], two["by_position"], strict=True):
        assert of_one == pytest.approx(of_two, rel=1e-6)
    assert list(one["tasks"]) == list(two["tasks"]) == list(names)
    for name in names:
        of_one = one["tasks"][name]
        of_two = two["tasks"][name]
        del of_one["items_per_second"], of_two["items_per_second"]
        assert of_one["items"] > 2 and "acc_stderr" in of_one
        assert of_one.keys() == of_two.keys()
        for key, value in of_one.items():
            expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            assert of_two[key] == expected
    # Bytes are many: a context of 32 holds none of these whole.
    assert one["tasks"]["hellaswag"]["cut"] == 5


def test_tasks_alone_need_no_dataset(run, capsys):
    arguments = ["--device=cpu", "--tasks", f"lambada:{ITEMS / 'lambada.jsonl'}", "--limit=2"]
    assert evaluate.main([f"--out_dir={run}", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "loss" not in found and found["tasks"]["lambada"]["items"] == 2


def test_pairs_are_scored_on_their_completions_and_know_no_stride(run, tmp_path, capsys):
    rows = [{"prompt": f"{i} is", "completion": " so"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--tokenizer=byte", "--workers=1", "--val_fraction=0.5"]
    pairs.main([f"--input={tmp_path / 'pairs.jsonl'}", f"--out={tmp_path / 'pairs'}", *options])
    arguments = [f"--out_dir={run}", f"--dataset={tmp_path / 'pairs'}", "--device=cpu"]
    with pytest.raises(ValueError, match="stride is 8: .* leave it out"):
        evaluate.main([*arguments, "--stride=8"])
    capsys.readouterr()
    assert evaluate.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    n_documents = open_dataset(tmp_path / "pairs").meta["totals"]["val"]["documents"]
    assert found["tokens"] == 4 * n_documents  # " so" and end-of-text


# -----------------------------------------------------------------------------
# Refusals


def test_a_dataset_of_another_tokenizer_is_refused(run, tmp_path):
    write_dataset(tmp_path, train_char([TEXT]), [TEXT], [TEXT])
    message = r"prepared with tokenizer char .* the model speaks byte .* --tokenizer=.*step-0000007"
    with pytest.raises(ValueError, match=message):
        evaluate.main([f"--out_dir={run}", f"--dataset={tmp_path}", "--device=cpu"])


@pytest.mark.parametrize(
    "option, message",
    [
        ("--stride=33", "stride is 33: beyond block_size \\(32\\)"),
        ("--block_size=33", "block_size is 33: the model's context is 32"),
        ("--tasks=piqa:nowhere", "nowhere: there is no such file"),
    ],
)
def test_what_does_not_fit_is_said(run, option, message):
    with pytest.raises((ValueError, OSError), match=message):
        evaluate.main([f"--out_dir={run}", "--device=cpu", option])


@pytest.mark.parametrize(
    "option, message",
    [
        ("--limit=-1", "limit is -1: it must be 0 or more"),
        ("--micro_batch_size=0", "micro_batch_size is 0: it must be 1 or more"),
        ("--model=gpt2", "model is 'gpt2': did you mean --model=hf:gpt2?"),
    ],
)
def test_a_wrong_value_is_wrong_use(option, message, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate.main([option])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model", "--out_dir"])
def test_a_hugging_face_model_names_no_dataset(option):
    with pytest.raises(ValueError, match="give --dataset=FOLDER"):
        evaluate.main([f"{option}=hf:nobody/nothing"])


def test_a_missing_run_is_one_line_that_says_what_to_do():
    code, _, err = finished(command("evaluate.py", "--out_dir=nowhere"))
    assert code == 1
    assert err.startswith("evaluate.py: error: nowhere does not exist") and err.count("\n") == 1
