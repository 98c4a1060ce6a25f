"""Losses: equal to the plain sum, whatever the batches, and comparable across tokenizers."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import evaluate
import runtime
from data import open_dataset, write_dataset
from model import GPT, GPTConfig
from tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXT = "Grüße: the quick brown fox jumps over the lazy dog, again and again.\n" * 12
CPU = runtime.Runtime(torch.device("cpu"), torch.float32)


def make_dataset(folder: Path, val: list[str]) -> Path:
    write_dataset(folder, load_tokenizer("byte"), [TEXT], val)
    return folder


def small_model(**kwargs) -> GPT:
    torch.manual_seed(0)
    sizes = dict(vocab_size=257, block_size=32, n_layer=2, n_head=2, n_embd=32, zero_init=False)
    return GPT(GPTConfig(**sizes | kwargs)).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder with one checkpoint of an untrained model, and the dataset that it names."""
    folder = tmp_path_factory.mktemp("evaluate")
    dataset = open_dataset(make_dataset(folder / "data", [TEXT, "short"]))
    model = small_model()
    about = {
        "step": 7, "model": vars(model.config), "settings": {"dataset": str(folder / "data")},
        "tokenizer": {"name": "byte", "fingerprint": dataset.tokenizer_fingerprint},
    }  # fmt: skip
    checkpoint.save(folder / "run", model.state_dict(), {}, about, dataset.tokenizer())
    return folder


def by_hand(model: GPT, ids: list[int]) -> list[float]:
    """Nats of each id after the first, in windows of block_size that do not overlap."""
    nats = []
    for begin in range(0, len(ids) - 1, model.config.block_size):
        window = torch.tensor(ids[begin : begin + model.config.block_size + 1])
        with torch.no_grad():
            logp = model(window[None, :-1])[0].double().log_softmax(-1)
        nats += (-logp.gather(1, window[1:, None])[:, 0]).tolist()
    return nats


def test_loss_and_bits_per_byte_equal_the_sums_by_hand(tmp_path):
    text = "pack my box with five dozen liquor jugs; " * 8
    model, dataset = small_model(), open_dataset(make_dataset(tmp_path, [text[:320]]))  # ten whole windows
    nats = by_hand(model, [256, *text[:320].encode()])
    found = evaluate.validation(model, dataset, CPU, micro_batch_size=3)
    assert found["tokens"] == len(nats) == 320
    assert found["loss"] == pytest.approx(sum(nats) / 320, rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2), rel=1e-6)  # a byte is a token


@pytest.mark.parametrize("micro_batch_size", [1, 2, 7, 64])
def test_figures_do_not_depend_on_the_batches(tmp_path, micro_batch_size, monkeypatch):
    model, dataset = small_model(), open_dataset(make_dataset(tmp_path, [TEXT, "x", TEXT[:100]]))
    one = evaluate.validation(model, dataset, CPU, micro_batch_size=4)
    monkeypatch.setattr("evaluate.TOKENS_AT_ONCE", 1)
    other = evaluate.validation(model, dataset, CPU, micro_batch_size=micro_batch_size)
    assert other["tokens"] == one["tokens"] == dataset.val.n_tokens - 1
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert other["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-6)


def test_end_of_text_counts_in_the_loss_but_not_in_bits_per_byte(tmp_path):
    """A uniform model needs 8 bits and a bit for each byte, however many documents the bytes are cut into."""
    model = small_model(zero_init=True)  # logits are all zero
    dataset = open_dataset(make_dataset(tmp_path, ["a"] * 50))
    found = evaluate.validation(model, dataset, CPU, micro_batch_size=4)
    assert found["loss"] == pytest.approx(math.log(257), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)


def test_eval_tokens_reads_the_same_windows_each_time(tmp_path):
    model, dataset = small_model(), open_dataset(make_dataset(tmp_path, [TEXT]))
    first = evaluate.validation(model, dataset, CPU, micro_batch_size=4, eval_tokens=96)
    again = evaluate.validation(model, dataset, CPU, micro_batch_size=2, eval_tokens=96)
    assert first["tokens"] == again["tokens"] == 96
    assert first["loss"] == pytest.approx(again["loss"], rel=1e-6)


def test_training_mode_comes_back_and_an_interruption_gives_nothing(tmp_path):
    model, dataset = small_model(dropout=0.5).train(), open_dataset(make_dataset(tmp_path, [TEXT]))
    found = evaluate.validation(model, dataset, CPU, micro_batch_size=4)
    assert model.training and found == evaluate.validation(model, dataset, CPU, micro_batch_size=4)  # no dropout
    assert evaluate.validation(model, dataset, CPU, micro_batch_size=4, interrupted=lambda: True) is None
    assert model.training


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "evaluate.py"), *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_prints_one_json_object(run):
    done = command(f"--out_dir={run / 'run'}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["step"] == 7 and found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    again = evaluate.validation(small_model(), open_dataset(run / "data"), CPU, micro_batch_size=8)
    assert found["loss"] == pytest.approx(again["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_dataset_of_another_tokenizer_is_refused(run, tmp_path):
    from tokenizer import train_char

    write_dataset(tmp_path / "chars", train_char([TEXT]), [TEXT], [TEXT])
    done = command(f"--out_dir={run / 'run'}", f"--dataset={tmp_path / 'chars'}")
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "tokenizer" in done.stderr and "prepare it with" in done.stderr


def test_a_missing_run_is_one_line_that_says_what_to_do():
    done = command("--out_dir=nowhere")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "evaluate.py: error: nowhere does not exist: give the out_dir of a run, or train one with python train.py"
    ]
