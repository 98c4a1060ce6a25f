"""Losses: equal to the plain sum, whatever the batches, and comparable across tokenizers."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_run import command, finished, free_ports

import evaluate
from lathe import ROOT
from lathe.data.dataset import open_dataset
from lathe.data.shards import write_dataset
from lathe.run import checkpoint, devices
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.tokenizer import load_tokenizer
from lathe.use.find_model import find_model
from lathe.use.hf import export as hf_export
from lathe.use.validation import validation
from model import GPT, GPTConfig
from prepare import pairs

TEXT = "Grüße: the quick brown fox jumps over the lazy dog, again and again.\n" * 12
CPU = devices.Runtime(torch.device("cpu"), torch.float32)


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
    model, dataset = (
        small_model(),
        open_dataset(make_dataset(tmp_path, [text[:320]])),
    )  # ten whole windows
    nats = by_hand(model, [256, *text[:320].encode()])
    found = validation(model, dataset, CPU, micro_batch_size=3)
    assert found["tokens"] == len(nats) == 320
    assert found["loss"] == pytest.approx(sum(nats) / 320, rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(
        found["loss"] / math.log(2), rel=1e-6
    )  # a byte is a token


@pytest.mark.parametrize("micro_batch_size", [1, 2, 7, 64])
def test_figures_do_not_depend_on_the_batches(tmp_path, micro_batch_size, monkeypatch):
    model, dataset = small_model(), open_dataset(make_dataset(tmp_path, [TEXT, "x", TEXT[:100]]))
    one = validation(model, dataset, CPU, micro_batch_size=4)
    monkeypatch.setattr("lathe.use.validation.TOKENS_PER_PASS", 1)
    other = validation(model, dataset, CPU, micro_batch_size=micro_batch_size)
    assert other["tokens"] == one["tokens"] == dataset.val.n_tokens - 1
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert other["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-6)


def test_end_of_text_counts_in_the_loss_but_not_in_bits_per_byte(tmp_path):
    """A uniform model needs 8 bits and a bit for each byte, however many documents the bytes are cut into."""
    model = small_model(zero_init=True)  # logits are all zero
    dataset = open_dataset(make_dataset(tmp_path, ["a"] * 50))
    found = validation(model, dataset, CPU, micro_batch_size=4)
    assert found["loss"] == pytest.approx(math.log(257), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)


def test_eval_tokens_reads_the_same_windows_each_time(tmp_path):
    model, dataset = small_model(), open_dataset(make_dataset(tmp_path, [TEXT]))
    first = validation(model, dataset, CPU, micro_batch_size=4, eval_tokens=96)
    again = validation(model, dataset, CPU, micro_batch_size=2, eval_tokens=96)
    assert first["tokens"] == again["tokens"] == 96
    assert first["loss"] == pytest.approx(again["loss"], rel=1e-6)


def test_training_mode_comes_back_and_an_interruption_gives_nothing(tmp_path):
    model, dataset = small_model(dropout=0.5).train(), open_dataset(make_dataset(tmp_path, [TEXT]))
    found = validation(model, dataset, CPU, micro_batch_size=4)
    assert model.training and found == validation(
        model, dataset, CPU, micro_batch_size=4
    )  # no dropout
    assert validation(model, dataset, CPU, micro_batch_size=4, interrupted=lambda: True) is None
    assert model.training


@pytest.mark.parametrize("stride", [1, 5, 31, 32])
def test_a_stride_scores_every_token_once_with_what_its_window_has_before_it(
    tmp_path, stride, monkeypatch
):
    model, dataset = small_model(), open_dataset(make_dataset(tmp_path, [TEXT[:150]]))
    ids = torch.tensor([256, *TEXT[:150].encode()])
    nats, end = [], 0
    while end < len(ids) - 1:
        begin, end = end, min(end + (stride if end else 32), len(ids) - 1)
        window = ids[max(0, end - 32) : end + 1]
        with torch.no_grad():
            logp = (
                model(window[None, :-1])[0]
                .double()
                .log_softmax(-1)
                .gather(1, window[1:, None])[:, 0]
            )
        nats += (-logp[-(end - begin) :]).tolist()
    for batch in (1, 7):
        monkeypatch.setattr("lathe.use.validation.TOKENS_PER_PASS", 1)
        found = validation(model, dataset, CPU, batch, stride=stride)
        assert found["tokens"] == len(nats) == len(ids) - 1
        assert found["loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-6)
    if stride < 32:
        assert (
            found["by_position"][0]["tokens"] == 1
        )  # only the very first target has a single token before it
    few = validation(model, dataset, CPU, 4, eval_tokens=64, stride=stride)
    assert 64 - stride < few["tokens"] <= 64 + 32


def test_loss_by_position_is_the_loss_of_the_targets_with_so_much_before_them(tmp_path):
    model, dataset = small_model(), open_dataset(make_dataset(tmp_path, [TEXT[:300], TEXT[:50]]))
    ids = [i for text in (TEXT[:300], TEXT[:50]) for i in (256, *text.encode())]
    nats = by_hand(model, ids)
    found = validation(model, dataset, CPU, micro_batch_size=3)
    assert [(row["from"], row["to"]) for row in found["by_position"]] == [
        (1, 1),
        (2, 2),
        (3, 4),
        (5, 8),
        (9, 16),
        (17, 32),
    ]
    for row in found["by_position"]:
        mine = [
            x
            for i, x in enumerate(nats)
            if row["from"] <= i % 32 + 1 <= row["to"] and i // 32 < len(nats) // 32
        ]
        n = len(nats) % 32  # of the last window, which reaches back over the one before it
        mine += [
            x
            for i, x in enumerate(by_hand(model, ids[-33:]))
            if i >= 32 - n and row["from"] <= i + 1 <= row["to"]
        ]
        assert row["tokens"] == len(mine) and row["loss"] == pytest.approx(
            sum(mine) / len(mine), rel=1e-6
        )


@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "gpt2"])
def test_bits_per_byte_of_the_uniform_model_are_the_closed_form(tokenizer, tmp_path, monkeypatch):
    """Each token costs log2(V) bits, so n tokens of b bytes cost n log2(V) / b bits a byte."""
    if tokenizer == "gpt2":
        if not (ROOT.parent / "shared" / "data" / "tiktoken").is_dir():
            pytest.skip("the gpt2 vocabulary is not here: ../shared/data/tiktoken")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(ROOT.parent / "shared" / "data" / "tiktoken"))
    tokenizer = (
        train_bpe(count_pieces([TEXT]), 300) if tokenizer == "bpe" else load_tokenizer(tokenizer)
    )
    write_dataset(tmp_path, tokenizer, [TEXT], [TEXT, "short"])
    model = small_model(vocab_size=tokenizer.vocab_size, zero_init=True)  # logits are all zero
    found = validation(model, open_dataset(tmp_path), CPU, micro_batch_size=4)
    n, n_bytes = (
        sum(map(length, (TEXT, "short")))
        for length in (lambda t: len(tokenizer.encode(t)), lambda t: len(t.encode()))
    )
    assert found["bits_per_byte"] == pytest.approx(
        n * math.log2(tokenizer.vocab_size) / n_bytes, rel=1e-6
    )
    assert n_bytes / n > 1.5 or tokenizer.name == "byte"


def test_losses_equal_those_of_transformers_on_the_exported_model(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = find_model(run / "run").load()
    hf_export.export(model, load_tokenizer("byte"), tmp_path / "exported")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    ids = torch.tensor([256, *TEXT.encode(), 256, *b"short"])
    nats = []
    for begin in range(0, len(ids) - 1, 32):
        end = min(begin + 32, len(ids) - 1)
        x = ids[
            max(0, end - 32) : end + 1
        ]  # the last window reaches back, so that it is a whole one
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(
                theirs(x[None, :-1]).logits[0], x[1:], reduction="none"
            )
        nats += losses[-(end - begin) :].tolist()
    found = validation(model, open_dataset(run / "data"), CPU, micro_batch_size=8)
    assert found["tokens"] == len(nats) and found["loss"] == pytest.approx(
        sum(nats) / len(nats), abs=1e-5
    )


def on_ranks(n: int, *arguments: str) -> dict:
    """What the command prints as n ranks."""
    group = (
        {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
        if n > 1
        else {}
    )
    ranks = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]
    processes = [command("evaluate.py", *arguments, env=environment) for environment in ranks]
    done = [finished(process) for process in processes]
    assert [code for code, _, _ in done] == [0] * n, done
    assert all(out == "" for _, out, _ in done[1:])  # one speaks
    return json.loads(done[0][1])


@pytest.mark.slow
def test_ranks_share_the_work_and_agree(run, tmp_path):
    """Losses to a part in a million, tasks exactly, on one rank and on two."""
    items = ROOT / "tests" / "items"
    names = ("hellaswag", "arc_easy", "lambada", "exact_match")
    arguments = [
        f"--out_dir={run / 'run'}",
        f"--dataset={run / 'data'}",
        "--device=cpu",
        "--by_position=true",
        "--stride=9",
    ]
    arguments += ["--tasks", *(f"{name}:{items / name}.jsonl" for name in names)]
    one, two = on_ranks(1, *arguments), on_ranks(2, *arguments)
    assert (one["stride"], one["block_size"], one["tokens"]) == (9, 32, two["tokens"])
    for key in ("loss", "perplexity", "bits_per_byte"):
        assert two[key] == pytest.approx(one[key], rel=1e-6)
    for a, b in zip(one["by_position"], two["by_position"], strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    assert list(one["tasks"]) == list(names)
    for name in names:
        a, b = one["tasks"][name], two["tasks"][name]
        assert a.keys() == b.keys() and a["items"] > 2 and "acc_stderr" in a
        for key in a.keys() - {"items_per_second"}:
            assert a[key] == (
                pytest.approx(b[key], rel=1e-6) if isinstance(a[key], float) else b[key]
            )
    assert (
        one["tasks"]["hellaswag"]["cut"] == 5
    )  # bytes are many: a context of 32 holds none of these whole


@pytest.mark.slow
def test_the_command_prints_one_json_object(run):
    code, out, err = finished(command("evaluate.py", f"--out_dir={run / 'run'}"))
    assert code == 0, err
    found = json.loads(out)
    assert found["step"] == 7 and found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    again = validation(small_model(), open_dataset(run / "data"), CPU, micro_batch_size=8)
    assert found["loss"] == pytest.approx(again["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_dataset_of_another_tokenizer_is_refused(run, tmp_path):
    from lathe.text.tokenizer import train_char

    write_dataset(tmp_path / "chars", train_char([TEXT]), [TEXT], [TEXT])
    words = (f"--out_dir={run / 'run'}", f"--dataset={tmp_path / 'chars'}")
    code, out, err = finished(command("evaluate.py", *words))
    assert code == 1 and out == ""
    assert len(err.splitlines()) == 1 and "tokenizer" in err and "prepare it with" in err


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
        evaluate.main([f"--out_dir={run / 'run'}", "--device=cpu", option])


def test_pairs_are_scored_on_their_completions_and_know_no_stride(run, tmp_path, capsys):
    rows = [{"prompt": f"{i} is", "completion": " so"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = f"--input={tmp_path / 'pairs.jsonl'} --out={tmp_path / 'pairs'} --tokenizer=byte --workers=1"
    pairs.main([*options.split(), "--val_fraction=0.5"])
    arguments = [f"--out_dir={run / 'run'}", f"--dataset={tmp_path / 'pairs'}", "--device=cpu"]
    with pytest.raises(ValueError, match="stride is 8: .* leave it out"):
        evaluate.main([*arguments, "--stride=8"])
    capsys.readouterr()
    assert evaluate.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["tokens"] == 4 * open_dataset(tmp_path / "pairs").meta["totals"]["val"]["documents"]
    )  # " so" and end-of-text


def test_a_missing_run_is_one_line_that_says_what_to_do():
    code, _, err = finished(command("evaluate.py", "--out_dir=nowhere"))
    said = "evaluate.py: error: nowhere does not exist: give a run's out_dir, or train one with python train.py\n"
    assert (code, err) == (1, said)
