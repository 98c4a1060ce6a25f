"""Losses: equal to the plain sum, whatever the batches, and comparable across tokenizers."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lathe import ROOT
from lathe.data.dataset import Dataset, open_dataset
from lathe.data.shards import write_dataset
from lathe.run import devices
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.tokenizer import load_tokenizer
from lathe.use.hf.export import export
from lathe.use.validation import validation
from model import GPT, GPTConfig

TEXT = "Grüße: the quick brown fox jumps over the lazy dog, again and again.\n" * 12
BYTES = load_tokenizer("byte")
EOT = BYTES.eot_id
CPU = devices.Runtime(torch.device("cpu"), torch.float32)
CONTEXT = 32
TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken"


def of_documents(folder: Path, val: list[str]) -> Dataset:
    """A dataset of bytes with these documents for validation."""
    write_dataset(folder, BYTES, [TEXT], val)
    return open_dataset(folder)


def small_model(**changes) -> GPT:
    torch.manual_seed(0)
    shape = dict(vocab_size=257, n_layer=2, n_head=2, n_embd=32, zero_init=False)
    return GPT(GPTConfig(block_size=CONTEXT, **shape | changes)).eval()


def nats_of(model: GPT, window: Tensor) -> list[float]:
    """Of each id of the window (T + 1,) after its first."""
    with torch.no_grad():
        logprobs = model(window[None, :-1])[0].double().log_softmax(-1)
    return (-logprobs.gather(1, window[1:, None])[:, 0]).tolist()


def by_hand(model: GPT, ids: list[int]) -> list[float]:
    """Nats of each id after the first, in windows that do not overlap."""
    nats = []
    for begin in range(0, len(ids) - 1, CONTEXT):
        nats += nats_of(model, torch.tensor(ids[begin : begin + CONTEXT + 1]))
    return nats


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_loss_and_bits_per_byte_equal_the_sums_by_hand(tmp_path):
    text = ("pack my box with five dozen liquor jugs; " * 8)[:320]  # ten whole windows
    model = small_model()
    nats = by_hand(model, [EOT, *text.encode()])
    found = validation(model, of_documents(tmp_path, [text]), CPU, micro_batch_size=3)
    assert found["tokens"] == len(nats) == 320
    assert found["loss"] == pytest.approx(mean(nats), rel=1e-6)
    bits_per_token = found["loss"] / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits_per_token, rel=1e-6)  # a byte is a token


@pytest.mark.parametrize("micro_batch_size", [1, 2, 7, 64])
def test_figures_do_not_depend_on_the_batches(tmp_path, micro_batch_size, monkeypatch):
    model = small_model()
    dataset = of_documents(tmp_path, [TEXT, "x", TEXT[:100]])
    one = validation(model, dataset, CPU, micro_batch_size=4)
    monkeypatch.setattr("lathe.data.batches.TOKENS_PER_PASS", 1)
    other = validation(model, dataset, CPU, micro_batch_size)
    assert other["tokens"] == one["tokens"] == dataset.val.n_tokens - 1
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert other["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-6)


def test_end_of_text_counts_in_the_loss_but_not_in_bits_per_byte(tmp_path):
    """A uniform model needs 8 bits and a bit for each byte, however many documents they are in."""
    model = small_model(zero_init=True)  # logits are all zero
    found = validation(model, of_documents(tmp_path, ["a"] * 50), CPU, micro_batch_size=4)
    assert found["loss"] == pytest.approx(math.log(257), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)


@pytest.mark.parametrize("name", ["byte", "bpe", "gpt2"])
def test_bits_per_byte_of_the_uniform_model_are_the_closed_form(name, tmp_path, monkeypatch):
    """Each token costs log2(V) bits, so n tokens of b bytes cost n log2(V) / b bits a byte."""
    if name == "gpt2" and not TIKTOKEN_FILES.is_dir():
        pytest.skip(f"the gpt2 vocabulary is not in {TIKTOKEN_FILES}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    if name == "bpe":
        tokenizer = train_bpe(count_pieces([TEXT]), 300)
    else:
        tokenizer = load_tokenizer(name)
    documents = [TEXT, "short"]
    write_dataset(tmp_path, tokenizer, [TEXT], documents)
    model = small_model(vocab_size=tokenizer.vocab_size, zero_init=True)  # logits are all zero
    found = validation(model, open_dataset(tmp_path), CPU, micro_batch_size=4)
    n_tokens = sum(len(tokenizer.encode(text)) for text in documents)
    n_bytes = sum(len(text.encode()) for text in documents)
    bits = n_tokens * math.log2(tokenizer.vocab_size)
    assert found["bits_per_byte"] == pytest.approx(bits / n_bytes, rel=1e-6)
    assert n_bytes / n_tokens > 1.5 or name == "byte"


def test_eval_tokens_reads_the_same_windows_each_time(tmp_path):
    model = small_model()
    dataset = of_documents(tmp_path, [TEXT])
    first = validation(model, dataset, CPU, micro_batch_size=4, eval_tokens=96)
    again = validation(model, dataset, CPU, micro_batch_size=2, eval_tokens=96)
    assert first["tokens"] == again["tokens"] == 96
    assert first["loss"] == pytest.approx(again["loss"], rel=1e-6)


def test_training_mode_comes_back_and_an_interruption_gives_nothing(tmp_path):
    model = small_model(dropout=0.5).train()
    dataset = of_documents(tmp_path, [TEXT])
    found = validation(model, dataset, CPU, micro_batch_size=4)
    assert model.training
    assert found == validation(model, dataset, CPU, micro_batch_size=4)  # no dropout
    assert validation(model, dataset, CPU, micro_batch_size=4, interrupted=lambda: True) is None
    assert model.training


@pytest.mark.parametrize("stride", [1, 5, 31, 32])
def test_a_stride_scores_every_token_once_with_what_its_window_has_before_it(
    tmp_path, stride, monkeypatch
):
    model = small_model()
    dataset = of_documents(tmp_path, [TEXT[:150]])
    ids = torch.tensor([EOT, *TEXT[:150].encode()])
    nats = []
    end = 0
    while end < len(ids) - 1:
        begin = end
        end = min(begin + (stride if begin else CONTEXT), len(ids) - 1)
        window = ids[max(0, end - CONTEXT) : end + 1]
        nats += nats_of(model, window)[-(end - begin) :]
    monkeypatch.setattr("lathe.data.batches.TOKENS_PER_PASS", 1)
    for micro_batch_size in (1, 7):
        found = validation(model, dataset, CPU, micro_batch_size, stride=stride)
        assert found["tokens"] == len(nats) == len(ids) - 1
        assert found["loss"] == pytest.approx(mean(nats), rel=1e-6)
    if stride < CONTEXT:  # only the very first target has a single token before it
        assert found["by_position"][0]["tokens"] == 1
    few = validation(model, dataset, CPU, 4, eval_tokens=64, stride=stride)
    assert 64 - stride < few["tokens"] <= 64 + CONTEXT


def test_loss_by_position_is_the_loss_of_the_targets_with_so_much_before_them(tmp_path):
    model = small_model()
    documents = [TEXT[:300], TEXT[:50]]
    ids = [i for text in documents for i in (EOT, *text.encode())]
    nats_at = {n: [] for n in range(1, CONTEXT + 1)}  # {tokens before the target: nats}
    n_last = (len(ids) - 1) % CONTEXT
    for i, value in enumerate(by_hand(model, ids[: len(ids) - n_last])):
        nats_at[i % CONTEXT + 1].append(value)
    last_window = torch.tensor(ids[-(CONTEXT + 1) :])  # reaches back over the one before it
    for i, value in enumerate(nats_of(model, last_window)):
        if i >= CONTEXT - n_last:
            nats_at[i + 1].append(value)

    found = validation(model, of_documents(tmp_path, documents), CPU, micro_batch_size=3)
    ranges = [(row["from"], row["to"]) for row in found["by_position"]]
    assert ranges == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)]
    for row in found["by_position"]:
        nats = [value for n in range(row["from"], row["to"] + 1) for value in nats_at[n]]
        assert row["tokens"] == len(nats)
        assert row["loss"] == pytest.approx(mean(nats), rel=1e-6)


def test_losses_equal_those_of_transformers_on_the_exported_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = small_model()
    export(model, BYTES, tmp_path / "exported")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    ids = torch.tensor([EOT, *TEXT.encode(), EOT, *b"short"])
    nats = []
    for begin in range(0, len(ids) - 1, CONTEXT):
        end = min(begin + CONTEXT, len(ids) - 1)
        window = ids[max(0, end - CONTEXT) : end + 1]  # the last one reaches back
        nats += nats_of(lambda idx: theirs(idx).logits, window)[-(end - begin) :]
    dataset = of_documents(tmp_path / "data", [TEXT, "short"])
    found = validation(model, dataset, CPU, micro_batch_size=8)
    assert found["tokens"] == len(nats)
    assert found["loss"] == pytest.approx(mean(nats), abs=1e-5)
