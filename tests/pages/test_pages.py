"""Promises of visualize.py: pages that load nothing, show what the run or the model did, and take any text as text."""

import base64
import gzip
import html.parser
import json
import math
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import PROGRAM, Browser
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_run import command, finished, make_dataset, settings
from torch.nn import functional as F

from lathe import ROOT, cli
from lathe.data.dataset import open_dataset
from lathe.data.shards import write_dataset
from lathe.run import devices
from lathe.settings import Settings
from lathe.text.bpe import train_bpe
from lathe.text.tokenizer import Tokenizer, load_tokenizer, train_char
from lathe.use.generation import generate
from lathe.use.hf import export as hf_export
from lathe.use.sampling import Sampling
from lathe.use.validation import validation
from model import GPT, GPT2, GPTConfig
from pages.inside import induction_scores, look_inside, read_once
from pages.model_page import model_page
from pages.options import ModelOptions
from pages.render import pack
from pages.run_page import Report, run_page
from pages.run_reader import ThinnedRows

HOSTILE = "</script><script>alert(1)</script><!-- \"'`&amp; {{ 7*7 }} \u2028\u2029 \x00\x1b[31m \u202eevil \ud83d "
HOSTILE += "\U0001f600 \r\n" + "x" * 10_000


def unpack(page: str) -> dict:
    """What pack() put into a page, as pages/common.js reads it."""
    blob = gzip.decompress(base64.b64decode(re.search(r'id="data">\s*([\w+/=]+)', page)[1]))
    (size,) = struct.unpack_from("<I", blob)
    data = json.loads(blob[4 : 4 + size])
    for name, about in data.pop("arrays").items():
        count = int(np.prod(about["shape"]))
        data[name] = np.frombuffer(blob, about["dtype"], count, 4 + size + about["at"]).reshape(
            about["shape"]
        )
    return data


# --- runs


def make_run(
    folder,
    steps=200,
    interval=10,
    losses=None,
    starts=(0,),
    samples=(),
    torn="",
    scores=(),
    **settings,
):
    """A run's folder as train.py leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.toml").write_text(
        cli.to_toml(Settings(max_steps=steps, batch_size=8, block_size=16, **settings))
    )
    with open(folder / "metrics.jsonl", "w") as file:
        elapsed = 0.0
        for step in range(1, steps + 1):
            elapsed = 1.0 if step - 1 in starts else elapsed + 0.01
            loss = 5 / math.sqrt(step) if losses is None else losses.get(step, 1.0)
            row = {
                "step": step,
                "tokens": step * 128,
                "loss": loss,
                "lr": 1e-3,
                "grad_norm": 1 / step,
            }
            row |= {"tokens_per_second": 12345.6, "elapsed": elapsed, "memory": 10**9}
            file.write(json.dumps(row) + "\n")
            if step % interval == 0:
                row = {
                    "step": step,
                    "val_loss": 5.1 / math.sqrt(step),
                    "val_bits_per_byte": 1.0,
                    "elapsed": elapsed,
                }
                row |= {name: step / steps for name in scores}
                file.write(json.dumps(row) + "\n")
        file.write(torn)
    with open(folder / "starts.jsonl", "w") as file:
        for step in starts:
            row = {
                "step": step,
                "time": "2030-01-01 00:00:00 UTC",
                "command": "python train.py",
                "device": "a machine",
            }
            row |= {
                "processes": 1,
                "commit": "abc",
                "versions": {"torch": "2"},
                "parameters": 10,
                "flops_per_token": 6,
            }
            file.write(json.dumps(row) + "\n")
    with open(folder / "samples.jsonl", "w") as file:
        for step, text in samples:
            file.write(json.dumps({"step": step, "sample": 0, "prompt": "", "text": text}) + "\n")
    return folder


def test_a_page_holds_what_the_run_recorded(tmp_path):
    page = run_page([make_run(tmp_path / "a", samples=[(10, "early"), (200, "late")])])
    (run,) = unpack(page)["runs"]
    assert run["curves"]["step"] == list(range(1, 201))
    assert run["curves"]["loss"] == pytest.approx(
        [5 / math.sqrt(s) for s in range(1, 201)], rel=1e-5
    )
    assert run["evaluations"]["tokens"] == [s * 128 for s in range(10, 201, 10)]
    assert [s["text"] for s in run["samples"]] == ["early", "late"]
    assert run["summary"]["best_val_loss"] == pytest.approx(5.1 / math.sqrt(200), rel=1e-5)
    for text in ("python train.py", "a machine", "commit abc", "2.50e", "| a | 10 | 200 |"):
        assert (text in page) == (text != "2.50e"), text


def test_time_goes_on_over_restarts_and_marks_are_kept(tmp_path):
    page = run_page([make_run(tmp_path / "a", steps=100, starts=(0, 50))])
    (run,) = unpack(page)["runs"]
    seconds = run["curves"]["seconds"]
    assert seconds == sorted(seconds) and seconds[-1] == pytest.approx(
        2 * (1 + 49 * 0.01), abs=0.01
    )
    assert [start["step"] for start in run["starts"]] == [0, 50] and "continued once" in page


def test_a_loss_that_was_not_finite_is_shown_as_a_gap(tmp_path):
    page = run_page([make_run(tmp_path / "a", losses={7: None})])
    assert unpack(page)["runs"][0]["curves"]["loss"][6] is None


def test_runs_are_compared_by_the_settings_that_differ(tmp_path):
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", n_layer=77, out_dir="elsewhere")]
    table = run_page(folders).partition('id="differing"')[2].partition("</table>")[0]
    assert (
        "n_layer" in table and ">77<" in table and "n_head" not in table and "out_dir" not in table
    )


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / side / "run") for side in ("left", "right")]
    names = [run["name"] for run in unpack(run_page(folders))["runs"]]
    assert names == list(map(str, folders))


def thinned(rows: list[dict], most: int) -> list[dict]:
    thinner = ThinnedRows(most, "loss")
    for row in rows:
        thinner.add(row)
    return thinner.rows()


def test_long_curves_are_thinned_but_keep_their_peaks():
    rows = [{"step": i, "loss": 1.0} for i in range(100_000)]
    rows[77_777]["loss"], rows[5]["loss"] = 50.0, None
    few = thinned(rows, 10_000)
    assert len(few) <= 10_001 and few[0]["step"] == 0 and few[-1]["step"] == 99_999
    assert {77_777, 5} <= {row["step"] for row in few}
    assert thinned(rows[:10_000], 10_000) == rows[:10_000]


@hypothesis_settings(max_examples=200)
@given(
    losses=st.lists(st.none() | st.integers(0, 9).map(float), min_size=1, max_size=300),
    most=st.integers(4, 40),
)
def test_thinning_keeps_of_equal_stretches_the_first_and_the_highest(losses, most):
    rows = [{"step": i, "loss": loss} for i, loss in enumerate(losses)]
    thinner = ThinnedRows(most, "loss")
    for row in rows:
        thinner.add(row)
    kept = []
    for begin in range(0, len(rows), thinner.width):
        stretch = rows[begin : begin + thinner.width]
        heights = [math.inf if row["loss"] is None else row["loss"] for row in stretch]
        kept += [stretch[i] for i in sorted({0, heights.index(max(heights))})]
    assert thinner.rows() in (kept, [*kept, rows[-1]])
    assert len(rows) <= most or most // 4 <= len(kept) <= most
    known = [loss for loss in losses if loss is not None]
    assert (thinner.lowest or {}).get("loss") == min(known, default=None)


def test_a_step_that_comes_again_stands_once_with_what_came_last():
    first_life = [{"step": i, "loss": 9.0} for i in range(1, 101)]
    second_life = [{"step": i, "loss": 2.0} for i in range(51, 121)]
    assert thinned(first_life + second_life, 1000) == first_life[:50] + second_life
    for most in (4, 10, 40):
        steps = [row["step"] for row in thinned(first_life + second_life, most)]
        assert steps == sorted(set(steps)) and steps[-1] == 120


@hypothesis_settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 100_000), max_size=6))
def test_a_report_that_is_refreshed_is_the_page_of_the_whole(tmp_path, monkeypatch, cuts):
    """Wherever a file ends at a refresh, in the midst of a line, too."""
    monkeypatch.setattr("pages.run_page.MOST_POINTS_OF_REPORT", 100)
    samples = [(step, f"at {step}") for step in range(10, 601, 10)]
    whole = make_run(tmp_path / "whole" / "run", steps=600, samples=samples)
    run = make_run(tmp_path / "grows" / "run", steps=600)
    names = ("metrics.jsonl", "samples.jsonl")
    raw = {name: (whole / name).read_bytes() for name in names}
    for name in names:
        (run / name).write_bytes(b"")
    report = Report(run)
    for cut in [*sorted(cuts), 10**9]:
        for name in names:
            with open(run / name, "ab") as file:
                file.write(raw[name][file.tell() : cut])
        assert report.refresh(now=True) is None
    page = (run / "report.html").read_text("utf-8")
    assert unpack(page)["runs"][0]["thinned"]
    Report(whole).refresh()
    assert page == (whole / "report.html").read_text("utf-8")


def test_a_refresh_reads_only_what_was_added(tmp_path):
    run = make_run(tmp_path / "run", steps=1000)
    report = Report(run)
    assert report.refresh() is None
    raw = (run / "metrics.jsonl").read_bytes()
    with open(run / "metrics.jsonl", "r+b") as file:  # what was read is not looked at again
        file.write(b"x" * len(raw))
        file.seek(0, 2)
        file.write(b'{"step": 1001, "loss": 7.0}\n')
    assert report.refresh(now=True) is None
    (shown,) = unpack((run / "report.html").read_text("utf-8"))["runs"]
    assert shown["curves"]["step"] == list(range(1, 1002)) and shown["curves"]["loss"][-1] == 7.0


@pytest.mark.parametrize("other", ["shorter", "replaced"])
def test_a_report_of_files_that_were_written_anew_begins_anew(tmp_path, other):
    run = make_run(tmp_path / "run", steps=100, samples=[(10, "old")])
    report = Report(run)
    assert report.refresh() is None
    if other == "replaced":
        for name in ("metrics.jsonl", "samples.jsonl"):
            (run / name).rename(tmp_path / name)  # its inode is still in use
    make_run(run, steps=30 if other == "shorter" else 300, samples=[])
    assert report.refresh(now=True) is None
    (shown,) = unpack((run / "report.html").read_text("utf-8"))["runs"]
    assert shown["curves"]["step"] == list(range(1, 31 if other == "shorter" else 301))
    assert shown["samples"] == []


def test_reports_take_at_most_one_percent_of_the_time(tmp_path):
    """With a clock on which each look takes 2 s, so that a refresh takes 2, and evaluations at each of them."""
    run = make_run(tmp_path / "run", steps=10)
    time = 0.0

    def clock() -> float:
        nonlocal time
        time += 2
        return time

    report = Report(run, clock)
    n_written = 0
    while time < 10_000:
        (run / "report.html").unlink(missing_ok=True)
        assert report.refresh() is None
        n_written += (run / "report.html").exists()
    assert 2 * n_written <= 0.01 * time + 2 and n_written >= 40
    (run / "report.html").unlink(missing_ok=True)
    assert report.refresh(now=True) is None  # the last one, whatever it takes
    assert (run / "report.html").exists()


def test_what_is_no_number_in_a_strangers_metrics_is_a_gap(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "loss": NaN, "lr": "high", "elapsed": [], "tokens": 1e999}\n')
        file.write('{"step": true, "loss": 1}\n{"step": "x"}\n[3]\n{"step": 22, "loss": {}}\n')
        file.write('{"step": 22, "val_loss": "low", "task/acc": null}\n')
        file.write('{"step": 23, "loss": ' + "[" * 100_000 + "\n")
    page = run_page([run])
    (shown,) = unpack(page)["runs"]
    assert shown["curves"]["step"] == list(range(1, 23))
    assert shown["curves"]["loss"][-2:] == [None, None] and shown["curves"]["lr"][-2] is None
    assert shown["summary"]["best_step"] == 20


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, 4000),
    missing=st.sets(st.sampled_from(["settings.toml", "starts.jsonl", "samples.jsonl"])),
)
def test_a_report_is_written_for_a_run_cut_off_anywhere(tmp_path, cut, missing):
    folder = make_run(tmp_path / "run", steps=20, samples=[(10, "text"), (20, "more")])
    raw = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(raw[:cut])
    (folder / "samples.jsonl").write_bytes((folder / "samples.jsonl").read_bytes()[: cut // 10])
    with open(folder / "starts.jsonl", "a") as file:
        file.write('{"step": 7}\n{"step":')
    for name in missing:
        (folder / name).unlink()
    assert Report(folder).refresh() is None
    steps = unpack((folder / "report.html").read_text("utf-8"))["runs"][0]["curves"].get("step", [])
    complete = [json.loads(line) for line in raw[:cut].split(b"\n")[:-1]]
    trained = [row["step"] for row in complete if "loss" in row]
    # A last row that lacks its line's end alone is whole, too.
    assert steps[: len(trained)] == trained and len(steps) <= len(trained) + 1


def test_a_report_that_cannot_be_written_is_said_not_raised(tmp_path):
    assert "metrics.jsonl" in Report(tmp_path).refresh()
    (make_run(tmp_path / "run") / "report.html").mkdir()
    assert "report.html" in Report(tmp_path / "run").refresh()


def test_five_long_runs_make_a_small_page(tmp_path):
    random = np.random.default_rng(0)
    folders = []
    for i in range(5):
        losses = {s: 3 + 5 / s + float(random.normal()) * 0.05 for s in range(1, 10_001)}
        folders.append(
            make_run(tmp_path / str(i), 10_000, 100, losses, samples=[(10_000, "x" * 500)])
        )
    page = run_page(folders)
    assert len(unpack(page)["runs"][4]["curves"]["loss"]) == 10_000
    assert len(page.encode()) <= 1.5e6


# --- models

SHAPES = {
    "modern": {},
    "gpt2": GPT2,
    "sinusoidal": dict(
        position="sinusoidal", norm="layernorm", activation="relu2", tie_weights=True
    ),
    "no positions": dict(position="none", logit_softcap=5.0, activation="gelu"),
    "grouped": dict(n_head=4, n_kv_head=2, head_dim=6, norm_weight=True, qk_norm=True),
    "one key head": dict(n_head=4, n_kv_head=1, qk_norm=False),
    "n-grams": dict(ngram_rows=1000),
}
TEXT = "Jane visits Africa in September."


def tiny(vocab_size=257, block_size=64, seed=0, **shape) -> GPT:
    torch.manual_seed(seed)
    shape = {**dict(n_layer=2, n_head=2, n_embd=32, zero_init=False), **shape}
    model = GPT(GPTConfig(vocab_size=vocab_size, block_size=block_size, **shape)).eval()
    with torch.no_grad():
        for p in model.parameters():  # far from uniform attention and even guesses
            p.mul_(6 if p.dim() > 1 else 1)
    return model


def inside(model, ids, **options):
    """What a page about these tokens holds, after its way through the page's own packing."""
    data = look_inside(model, BYTES, ids, ModelOptions(**options), (BYTES.eot_id,))
    return unpack(f'id="data">{pack(data)}<')


BYTES = load_tokenizer("byte")
IDS = [BYTES.eot_id, *BYTES.encode(TEXT)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_page_shows_the_model_that_runs_on_the_fast_path(shape):
    model, T = tiny(**SHAPES[shape]), len(IDS)
    data = inside(model, IDS)
    with torch.no_grad():
        logits = model(torch.tensor([IDS]))[0]  # fused attention
    # the next token's logits
    shown = [data["tokens"][i] for i in data["logit_ids"]]
    order = logits[-1].argsort(descending=True, stable=True)
    assert np.abs(data["logits"] - logits[-1].sort(descending=True).values.numpy()).max() <= 1e-4
    assert shown[0] == (BYTES.pieces[int(order[0])].decode("utf-8", "ignore") or shown[0])
    # surprisal, and the last row of the lens, which is the output
    loss = F.cross_entropy(logits[:-1], torch.tensor(IDS[1:]), reduction="none").numpy()
    assert np.abs(data["surprisal"] - loss).max() <= 1e-4
    top = logits.softmax(-1).topk(10, dim=-1).values.numpy()
    assert np.abs(data["lens_p"][-1].astype(float) - top).max() <= 1e-3
    assert data["lens_p"].shape == (model.config.n_layer + 1, T, 10)
    # attention: the maps hold the lower triangles alone, and each row adds up to one
    c = model.config
    assert data["maps"].shape == (c.n_layer, c.n_head, T * (T + 1) // 2)
    maps = np.zeros((c.n_layer, c.n_head, T, T))
    maps[:, :, *np.tril_indices(T)] = data["maps"] / 255
    assert np.abs(maps.sum(-1) - 1).max() <= 0.5 / 255 * T
    # and is what the q and k on the page make of it, which are all heads' in a model as small as this
    assert [tuple(x) for x in data["chosen"]] == [
        (i, j) for i in range(c.n_layer) for j in range(c.n_head)
    ]
    q, k, v = (torch.tensor(data[name].astype(np.float32)) for name in "qkv")
    scores = (q @ k.transpose(-1, -2) / math.sqrt(c.head_dim)).masked_fill(
        ~torch.ones(T, T).tril().bool(), -math.inf
    )
    assert np.abs(scores.softmax(-1).numpy() - maps.reshape(-1, T, T)).max() <= 0.02
    assert v.shape == (c.n_layer * c.n_head, T, c.head_dim)


def test_attention_never_looks_ahead():
    trace = read_once(tiny(), IDS).trace
    for layer in trace:
        assert layer["weights"].triu(1).abs().max() == 0
        assert layer["masked"].isneginf().triu(1).sum() == layer["masked"].isneginf().sum() > 0


def test_summed_surprisal_is_the_loss_that_evaluate_finds(tmp_path):
    model = tiny()
    write_dataset(tmp_path, BYTES, ["some text to train on " * 20], [TEXT])
    run = devices.start("cpu", "float32")
    found = validation(model, open_dataset(tmp_path), run, 2)
    data = inside(model, IDS)
    assert found["tokens"] == len(data["surprisal"])
    assert abs(float(data["surprisal"].astype(np.float64).mean()) - found["loss"]) <= 1e-4
    assert abs(data["bits_per_byte"] - found["bits_per_byte"]) <= 1e-4


def test_gradients_reach_the_embeddings_and_lengths_are_those_of_the_stream():
    model = tiny()
    data = inside(model, IDS)
    x = model.transformer.wte(torch.tensor(IDS))
    assert np.allclose(data["norms"][0].astype(float), x.norm(dim=-1).numpy(), rtol=1e-2)
    assert (data["gradients"][0][:-1] > 0).all() and (data["gradients"][:, -1] == 0).all()


def test_leaving_a_token_out_is_reading_the_text_without_it():
    model = tiny(position="learned")
    data = inside(model, IDS, leave_out=5)
    T = len(IDS)
    assert (
        data["first_left_out"] == T - 5 and np.isnan(data["influence"][: T - 5].astype(float)).all()
    )
    with torch.no_grad():
        whole = model(torch.tensor([IDS]))[0].log_softmax(-1)
        for i in range(T - 5, T):
            without = model(torch.tensor([IDS[:i] + IDS[i + 1 :]]))[0].log_softmax(-1)
            targets = [*IDS[1:], int(whole[-1].argmax())]
            for p in range(i, T):
                lost = float(whole[p, targets[p]] - without[p - 1, targets[p]])
                assert float(data["influence"][i, p]) == pytest.approx(lost, abs=0.01), (i, p)


def test_induction_is_attention_to_what_followed_the_first_copy():
    model, text = tiny(), IDS[1:9]
    trace = []
    with torch.no_grad():
        model.features(torch.tensor([[IDS[0], *text, *text]]), trace=trace)
    n, found = len(text), induction_scores(model, [IDS[0], *text])
    for layer in range(2):
        for head in range(2):
            w = trace[layer]["weights"][0, head]
            # token j stands at 1 + j and again at n + 1 + j; what followed it first stands at 2 + j
            expected = sum(float(w[n + 1 + j, 2 + j]) for j in range(n - 1)) / (n - 1)
            assert found[layer][head] == pytest.approx(expected, abs=1e-6)


def test_what_it_writes_is_what_the_sampler_writes_and_why_it_stopped_is_said():
    model = tiny()
    data = inside(model, IDS, max_new_tokens=12, temperature=0.7, seed=5)
    steps = generate(model, [IDS], 1, 12, Sampling(temperature=0.7, seed=5), (BYTES.eot_id,))
    ids = [token.id for step in steps for token in step]
    with torch.no_grad():
        p = model(torch.tensor([IDS + ids]))[0].softmax(-1)[len(IDS) - 1 : -1]
    assert data["new_p"] == pytest.approx([float(p[i, t]) for i, t in enumerate(ids)], abs=1e-4)
    assert "length asked for" in data["stopped"]
    assert "context is full" in inside(model, IDS, max_new_tokens=1000)["stopped"]
    with torch.no_grad():
        model.lm_head.weight[BYTES.eot_id] = 0
        model.lm_head.weight[: BYTES.eot_id] = 0
        features = model.features(torch.tensor([IDS]))[0, -1]
        model.lm_head.weight[BYTES.eot_id] = features * 100
    assert "end-of-text" in inside(model, IDS)["stopped"]
    assert inside(model, IDS, max_new_tokens=0)["new_p"] == []


def test_the_rest_of_a_large_vocabulary_is_kept_as_a_histogram():
    model = tiny(vocab_size=5000, n_embd=16)
    tokenizer = Tokenizer(
        "bpe", "words", [b"w%d" % i for i in range(4999)] + [b""], {"<|endoftext|>": 4999}
    )
    data = look_inside(model, tokenizer, [4999, 7, 9], ModelOptions(), (4999,))
    with torch.no_grad():
        logits = model(torch.tensor([[4999, 7, 9]]))[0, -1].double()
    assert len(data["logits"]) == 1000 and sum(count for count, _ in data["tail"]) == 4000
    for temperature in (0.5, 1.0, 2.0):
        rest = sum(count * math.exp(mean / temperature) for count, mean in data["tail"])
        exact = float((logits.sort().values[:4000] / temperature).exp().sum())
        assert rest == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("text", ["", "a", "\u00e9\U0001f600"])
def test_short_texts_have_pages_too(text):
    page = model_page(tiny(), BYTES, "tiny", {}, ModelOptions(prompt=text))
    data = unpack(page)
    assert len(data["surprisal"]) == len(text.encode())
    if text == "\u00e9\U0001f600":
        assert [data["tokens"][i] for i in data["ids"]][1:3] == ["<c3>", "<a9>"]


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(prompt="x" * 64), "65 tokens, the context is 64"),
        (dict(prompt="x" * 10_000), "10,001 tokens, the context is 64"),
        (dict(max_mb=0.01), "raise --max_mb"),
        (dict(heads=["0.2"]), "'0.2' is not one of 0.0 to 1.1"),
    ],
)
def test_what_cannot_be_shown_is_said_with_the_option_that_helps(options, said):
    with pytest.raises(ValueError, match=said):
        model_page(tiny(), BYTES, "tiny", {}, ModelOptions(**options))


def test_only_wanted_heads_are_kept_step_by_step():
    data = inside(tiny(), IDS, heads=["1.0"])
    assert data["chosen"] == [[1, 0]] and len(data["q"]) == len(data["k"]) == len(data["v"]) == 1


@pytest.mark.slow
def test_a_page_about_a_model_of_gpt2s_size_stays_small(monkeypatch):
    cache = ROOT.parent / "shared" / "data" / "tiktoken"
    if not cache.is_dir():
        pytest.skip("GPT-2's encoding is not at hand (../shared/data/tiktoken)")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    tokenizer = load_tokenizer("gpt2")
    model = GPT(GPTConfig(**GPT2))
    prompt = tokenizer.decode(tokenizer.encode(Path(ROOT / "model.py").read_text())[:63])
    page = model_page(
        model, tokenizer, "124M", {}, ModelOptions(prompt=prompt, max_new_tokens=1, leave_out=1)
    )
    assert len(unpack(page)["ids"]) == 64 and len(page.encode()) <= 1e6


# --- both pages


class References(html.parser.HTMLParser):
    """Collects whatever in a page could make a browser load something."""

    def __init__(self):
        super().__init__()
        self.found, self.policy, self.in_style = [], "", False

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        names = {
            "src",
            "href",
            "action",
            "data",
            "poster",
            "srcset",
            "background",
            "ping",
            "formaction",
            "manifest",
        }
        self.found += [f"{tag} {name}" for name in names & set(given)]
        if tag in ("link", "iframe", "object", "embed", "base", "img", "audio", "video"):
            self.found.append(tag)
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if tag == "meta" and given.get("http-equiv") == "refresh":
            self.found.append("refresh")
        if "url(" in given.get("style", ""):
            self.found.append("url in style")
        self.in_style = tag == "style"

    def handle_data(self, text):
        if self.in_style and ("url(" in text or "@import" in text):
            self.found.append("url in a sheet")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    samples = [(10, "early"), (100, HOSTILE), (200, "late")]
    runs = [
        make_run(
            folder / "one",
            samples=samples,
            starts=(0, 60),
            losses={s: None if s == 90 else 3 / s for s in range(1, 201)},
        ),
        make_run(folder / "two", steps=150, torn='{"step": 151, "los'),
        make_run(folder / "three <b>"),
    ]
    # long words: a BPE that has learned the 10,000 letters, so that they fit the context
    bpe = train_bpe({"x" * 10_000: 1, "Jane": 3}, 300)
    char = train_char([TEXT])
    written = {
        "run": run_page(runs[:1]),
        "runs": run_page(runs),
        "model": model_page(tiny(), BYTES, "tiny", {"step": 5}, ModelOptions(max_new_tokens=10)),
        "hostile": model_page(
            tiny(vocab_size=bpe.vocab_size, block_size=4096, n_layer=1, n_head=1, n_embd=8), bpe, HOSTILE[:200],
            {"dataset": HOSTILE[:100]}, ModelOptions(prompt=HOSTILE, max_mb=30, max_new_tokens=2, leave_out=1),
        ),
        "chars": model_page(tiny(vocab_size=char.vocab_size, **GPT2), char, "characters", {}, ModelOptions()),
    }  # fmt: skip
    for name, page in written.items():
        (folder / f"{name}.html").write_bytes(page.encode())
    return {name: folder / f"{name}.html" for name in written}


@pytest.mark.parametrize("name", ["run", "runs", "model", "hostile", "chars"])
def test_pages_refer_to_nothing_and_forbid_loading(pages, name):
    parser = References()
    parser.feed(pages[name].read_text(encoding="utf-8"))
    assert parser.found == []
    assert parser.policy.startswith("default-src 'none';") and "http" not in parser.policy
    assert "unsafe-inline" not in parser.policy.partition("script-src")[2]


def test_the_same_input_gives_the_same_page(pages):
    again = model_page(tiny(), BYTES, "tiny", {"step": 5}, ModelOptions(max_new_tokens=10))
    assert again.encode() == pages["model"].read_bytes()


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", ["run", "runs", "model", "chars"])
def test_pages_draw_without_a_complaint_at_any_width(pages, browser, name, width, dark):
    browser.open(pages[name], width, dark)
    assert browser.problems() == []
    assert browser.js("document.documentElement.scrollWidth") <= width
    drawn = "[...document.querySelectorAll('canvas')].filter(c => c.getClientRects().length && c.width > 1).length"
    assert browser.js(drawn) >= 6
    if folder := os.environ.get("LATHE_SCREENSHOTS"):
        browser.screenshot(Path(folder) / f"{name}-{width}-{'dark' if dark else 'light'}.png")


def test_runs_are_switched_on_and_off_and_curves_smoothed(pages, browser):
    browser.open(pages["runs"])
    picture = "document.querySelector('#chart-loss canvas').toDataURL()"
    count = "document.querySelectorAll('#chart-loss .u-series').length"
    assert browser.js(count) == 1 + 3 * 2  # the axis; training and validation of three runs
    seen = {browser.js(picture)}
    browser.click(".toggle", 1)
    assert (
        browser.js("document.querySelectorAll('.toggle')[1].getAttribute('aria-pressed')")
        == "false"
    )
    assert browser.js(count) == 1 + 2 * 2
    for selector, value in [
        ("#smooth", "0.9"),
        ("#axis", "tokens"),
        ("#axis", "seconds"),
        ("#axis", "flops"),
    ]:
        seen.add(browser.js(picture))
        browser.set(selector, value)
    for box in ("#log-x", "#log-y"):
        seen.add(browser.js(picture))
        browser.click(box)
    seen.add(browser.js(picture))
    assert len(seen) >= 7, "each control changes the picture"
    browser.click(".toggle", 1)
    assert browser.js(count) == 1 + 3 * 2
    assert browser.problems() == []


def test_a_click_on_a_heading_sorts_the_summary(pages, browser):
    browser.open(pages["runs"])
    names = "[...document.querySelectorAll('#summary tbody tr')].map(tr => tr.cells[2].textContent)"
    browser.click("#summary th button", 2)
    assert browser.js(names) == ["200", "200", "150"]
    browser.click("#summary th button", 2)
    assert browser.js(names) == ["150", "200", "200"]
    assert browser.problems() == []


def test_scores_of_tasks_have_a_chart_each(tmp_path, browser):
    runs = [
        make_run(tmp_path / "plain"),
        make_run(tmp_path / "scored", scores=("exact_match/acc", "piqa/acc_norm")),
    ]
    page = tmp_path / "page.html"
    page.write_text(run_page(runs), encoding="utf-8")
    assert unpack(page.read_text())["runs"][1]["evaluations"]["piqa/acc_norm"] == [
        i / 20 for i in range(1, 21)
    ]
    browser.open(page)
    titles = browser.js("[...document.querySelectorAll('.chart h3')].map(e => e.textContent)")
    assert titles[-2:] == ["Task exact_match/acc", "Task piqa/acc_norm"]
    assert (
        browser.js("document.querySelectorAll('[id=\"chart-piqa/acc_norm\"] .u-series').length")
        == 2
    )
    assert browser.problems() == []


def test_samples_stand_side_by_side_as_text(pages, browser):
    browser.open(pages["run"])
    texts = browser.js("[...document.querySelectorAll('#samples pre')].map(e => e.textContent)")
    assert texts[0] == "early" and texts[2] == "late"
    assert texts[1].startswith("</script><script>alert(1)</script><!--") and len(texts[1]) == 4000
    assert browser.problems() == []


def test_heads_are_chosen_sorted_and_taken_step_by_step(pages, browser):
    browser.open(pages["model"])
    data = unpack(pages["model"].read_text(encoding="utf-8"))
    head = "document.body.dataset.head"
    browser.click(".head", 3)
    assert browser.js(head) == f"1.1 softmax {len(IDS) - 1}"
    for step in ("scores", "scaled", "masked", "softmax", "sum"):
        browser.click(f"#step-{step}")
        assert browser.js(head).split()[1] == step
    browser.set("#query", "4")
    assert browser.js(head) == "1.1 sum 4"
    for kind in ("induction", "previous", "first", "distance", "entropy"):
        browser.set("#head-sort", kind)
        labels = browser.js(
            "[...document.querySelectorAll('.head')].map(e => e.getAttribute('aria-label').slice(5))"
        )
        values = [data["scores"][kind][int(x[0])][int(x[2])] for x in labels]
        assert values == sorted(values, reverse=True)
    for box in ("#no-first", "#hard"):
        browser.click(box)
    browser.click("#head-table th button", 5)
    browser.click("#lens button", 7)
    assert browser.js("document.querySelectorAll('#lens-bars .bar').length") == 10
    browser.click("#strip button", 9)
    assert browser.js("document.querySelectorAll('#token-bars .bar').length") == 10
    browser.click("#written button", 3)
    browser.set("#target", "7")
    assert browser.js("document.querySelectorAll('#influence .bar').length") > 0
    assert browser.problems() == []


def test_the_weights_a_page_shows_are_those_it_holds(pages, browser):
    browser.open(pages["model"])
    data = unpack(pages["model"].read_text(encoding="utf-8"))
    browser.click(".head", 2)
    browser.set("#query", "6")
    shown = browser.js(
        "[...document.querySelectorAll('#reads button')].filter(b => !b.hidden).map(b => b.title)"
    )
    row = data["maps"][1, 0, 6 * 7 // 2 : 7 * 8 // 2] / 255
    assert [float(x.split()[0]) for x in shown] == pytest.approx(list(100 * row), abs=0.06)


def filtered(logits, temperature=1.0, k=0, top_p=1.0, min_p=0.0):
    """Probability of the likeliest token by the sampler's rules: top-k, then top-p, then min-p."""
    p = (logits.double() / temperature).softmax(-1).sort(descending=True).values
    p = p[: k or None] / p[: k or None].sum()
    p = p[(p.cumsum(0) - p < top_p) | torch.tensor(top_p >= 1)]
    p = p[p >= min_p * p[0]]
    return float(p[0] / p.sum())


def test_sliders_give_the_probabilities_that_the_sampler_would(pages, browser):
    browser.open(pages["model"])
    with torch.no_grad():
        logits = tiny()(torch.tensor([IDS]))[0, -1]
    for sliders in (
        dict(temperature=0.5), dict(temperature=2.0), {"top-k": 3}, {"top-p": 0.5}, {"min-p": 0.3},
        {"temperature": 1.5, "top-k": 20, "top-p": 0.9, "min-p": 0.1},
    ):  # fmt: skip
        for name, neutral in (("temperature", 1), ("top-k", 0), ("top-p", 1), ("min-p", 0)):
            browser.set(f"#{name}", str(sliders.get(name, neutral)))
        wanted = filtered(
            logits,
            *(
                sliders.get(n, d)
                for n, d in (("temperature", 1), ("top-k", 0), ("top-p", 1), ("min-p", 0))
            ),
        )
        assert float(browser.js("document.body.dataset.next")) == pytest.approx(wanted, abs=1e-4), (
            sliders
        )
    assert browser.problems() == []


@pytest.mark.parametrize(
    "rows",
    ["", '{"step": 1, "loss": null, "elapsed": 0.1}\n', '{"step": 2, "val_loss": null}\n{"st'],
)
def test_a_run_that_has_hardly_begun_has_a_page(browser, tmp_path, rows):
    (tmp_path / "metrics.jsonl").write_text(rows)
    (tmp_path / "report.html").write_text(run_page([tmp_path]))
    browser.open(tmp_path / "report.html")
    assert browser.problems() == [] and "No samples were written" in browser.js(
        "document.body.innerText"
    )


def test_hostile_text_is_shown_as_text(pages, browser):
    browser.open(pages["hostile"], 390)
    assert browser.problems() == []
    text = browser.js(
        "[...document.querySelectorAll('#strip button')].map(b => b.textContent).join('')"
    )
    assert text.startswith("<|endoftext|></script><script>alert(1)</script><!--")
    assert "<U+2028>" in text.replace("<e2><80><a8>", "<U+2028>") and "49" not in text
    assert (
        browser.js("document.querySelectorAll('script').length") == 3
    )  # data, common.js, model.js
    assert browser.js("document.documentElement.scrollWidth") <= 390
    assert "</script>" in browser.js("document.title") and "</script>" in browser.js(
        "document.querySelector('h1').textContent"
    )


def test_a_browser_that_cannot_unpack_says_so_and_the_tables_stay(pages, browser, tmp_path):
    page = pages["model"].read_text(encoding="utf-8")
    begin = page.index('id="data">') + len('id="data">')
    (tmp_path / "broken.html").write_text(
        page[:begin] + "AAAA" + page[page.index("</script>", begin) :]
    )
    browser.open(tmp_path / "broken.html")
    assert "could not be drawn" in browser.js("document.getElementById('failure').textContent")
    assert browser.js("document.querySelector('table').rows.length") == 1 + len(IDS)


# --- commands


def test_training_leaves_a_page_that_tells_of_every_start(tmp_path):
    from train import train

    dataset, out = make_dataset(tmp_path / "data"), tmp_path / "run"
    train(settings(dataset, out, max_steps=10, sample_tokens=4))
    page = (out / "report.html").read_text("utf-8")
    train(settings(dataset, out, max_steps=20, sample_tokens=4, init_from="resume", log_interval=5))
    (first,), (run,) = (
        unpack(page)["runs"],
        unpack((out / "report.html").read_text("utf-8"))["runs"],
    )
    assert first["curves"]["step"] == list(range(1, 11))
    assert run["curves"]["step"] == [*range(1, 11), 15, 20] and run["evaluations"]["step"] == [
        10,
        20,
    ]
    assert [start["step"] for start in run["starts"]] == [0, 10] and run["summary"]["restarts"] == 1
    assert run["starts"][0]["command"].startswith("python ") and run["flops_per_token"] > 0
    assert min(run["curves"]["memory"]) > 0 and run["settings"]["max_steps"] == 20
    assert {sample["step"] for sample in run["samples"]} == {10, 20}
    assert "validation loss <b>" in page


def visualize(*words, **environment) -> tuple[int, str, str]:
    return finished(command("visualize.py", *words, env=environment))


def test_the_command_writes_where_it_says(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    assert visualize("run", one) == (0, f"{one / 'report.html'}\n", "")
    both = tmp_path / "both.html"
    assert visualize("run", one, two, f"--out={both}", FORCE_COLOR="1") == (0, f"{both}\n", "")
    assert len(unpack(both.read_text())["runs"]) == 2


def test_a_hugging_face_model_has_a_page_like_our_own(tmp_path):

    model, options = tiny(**GPT2), ModelOptions(max_new_tokens=5)
    hf_export.export(model, BYTES, tmp_path / "hf")
    page = tmp_path / "page.html"
    words = ("model", f"--model=hf:{tmp_path / 'hf'}", "--max_new_tokens=5", f"--out={page}")
    assert visualize(*words) == (0, f"{page}\n", "")
    theirs, ours = unpack(page.read_text()), unpack(model_page(model, BYTES, "tiny", {}, options))
    assert np.abs(theirs["surprisal"] - ours["surprisal"]).max() < 1e-4
    assert theirs["maps"].shape == ours["maps"].shape


@pytest.mark.parametrize(
    "words, code, said",
    [
        ([], 2, "neither run nor model"),
        (["rnu"], 2, "neither run nor model"),
        (["run"], 2, "which runs?"),
        (["run", "nowhere"], 1, "nowhere does not exist"),
        (["run", "tests"], 1, "tests holds no metrics.jsonl"),
        (["model", "--promt=x"], 2, "did you mean --prompt?"),
        (["model", "--out_dir=nowhere"], 1, "nowhere does not exist"),
    ],
)
def test_mistakes_get_one_line(words, code, said):
    exit_code, out, err = visualize(*words)
    assert (exit_code, out) == (code, "") and said in err and len(err.splitlines()) == 1
