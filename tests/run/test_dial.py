"""What the dial promises of its choices, on machines of many speeds that the tests imagine."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import make_dataset

from lathe import cli
from lathe.data.dataset import open_dataset
from lathe.run import devices, dial, timing
from lathe.run.timing import Timing
from lathe.settings import Settings
from lathe.use.start import plan_run
from model import GPT, GPTConfig

CPU = devices.Runtime(torch.device("cpu"), torch.float32)
many = settings(max_examples=5, derandomize=True, deadline=None)


def machine(flops: float):
    """How long a pass takes where so many operations a second are done."""

    def timing_of(config: GPTConfig, s: Settings, runtime: devices.Runtime) -> Timing:
        with torch.device("meta"):
            model = GPT(config)
        return Timing(model.flops_per_token() / flops, 40 * dial.n_updated(model) / flops)

    return timing_of


def turned(
    minutes: float, flops: float = 5e10, n_tokens: int = 4_000_000, vocab_size: int = 512,
    runtime: devices.Runtime = CPU, network_is_given: bool = False, timing_of: Callable | None = None,
    **given,
) -> dial.Dialled:  # fmt: skip
    s = Settings(minutes=minutes, **given)
    object.__setattr__(s, "given", {name: f"--{name}" for name in given})

    def network(s: Settings) -> GPTConfig:
        return GPTConfig(vocab_size=vocab_size, **{name: getattr(s, name) for name in SHAPE})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dial, "known_timing", timing_of or machine(flops))
        text = dial.Text(n_tokens, n_tokens, n_tokens // 10)
        return dial.turn_dial(s, runtime, network, text, 2.0, network_is_given)


SHAPE = ("n_layer", "n_embd", "n_head", "block_size", "qk_norm", "dropout")
SHAPE += ("ngram_rows", "ngram_order")
BY_HAND = {
    "n_layer": 3,
    "n_embd": 80,
    "n_head": 5,
    "block_size": 48,
    "qk_norm": True,
    "dropout": 0.3,
    "batch_size": 7,
    "learning_rate": 0.005,
    "muon_learning_rate": 0.01,
    "muon_momentum": 0.7,
    "beta1": 0.7,
    "weight_decay": 0.5,
    "warmup_steps": 3,
    "eval_interval": 11,
    "eval_tokens": 1000,
    "log_interval": 5,
}


@many
@given(st.sets(st.sampled_from(sorted(BY_HAND))), st.floats(0.2, 60), st.floats(1e9, 1e12))
def test_what_is_given_by_hand_stays(names, minutes, flops):
    given = {name: BY_HAND[name] for name in names}
    dialled = turned(minutes, flops, **given)
    for name, value in given.items():
        assert getattr(dialled.settings, name) == value
        assert f"{name} {value}: as given" in dialled.lines
    for name in set(BY_HAND) - set(given) - {"n_layer", "n_embd", "n_head", "log_interval"}:
        assert any(line.startswith(f"{name} ") for line in dialled.lines), name


@many
@given(st.floats(0.2, 100), st.floats(1.2, 4), st.floats(1e9, 1e12), st.integers(1000, 10**9))
def test_more_minutes_never_make_a_smaller_network(minutes, factor, flops, n_tokens):
    less = turned(minutes, flops, n_tokens)
    more = turned(factor * minutes, flops, n_tokens)
    n_embd, n_layer = more.config.n_embd, more.config.n_layer
    assert (n_embd, n_layer) >= (less.config.n_embd, less.config.n_layer)


@many
@given(st.floats(0.2, 60), st.floats(1e9, 3e11), st.integers(3, 5000))
def test_a_text_may_be_as_small_as_it_likes(minutes, flops, n_tokens):
    dialled = turned(minutes, flops, n_tokens)
    assert dialled.config.block_size < n_tokens
    assert dialled.settings.max_steps >= 1


@many
@given(st.floats(0.5, 60), st.floats(1e9, 3e11))
def test_the_plan_fits_into_the_budget(minutes, flops):
    dialled = turned(minutes, flops)
    s = dialled.settings
    seconds = s.max_steps * dialled.timing.step(s.batch_size * dialled.config.block_size)
    assert 0.5 * 60 * minutes < seconds < 60 * minutes or s.max_steps == 1


def line_on_ngrams(dialled: dial.Dialled) -> str:
    (line,) = [line for line in dialled.lines if line.startswith("ngram_rows ")]
    return line


def test_a_table_by_ngrams_is_offered_where_it_pays_and_taken_where_it_is_asked_for():
    words = turned(2)
    assert words.config.ngram_rows == words.settings.ngram_rows == 0
    assert "--ngram_rows=65536" in line_on_ngrams(words)
    assert "--ngram_rows=16384" in line_on_ngrams(turned(2, vocab_size=65, n_tokens=6_000_000))
    often = turned(2, n_tokens=20_000)
    many_ranks = turned(2, runtime=replace(CPU, world_size=2))
    wide = turned(2, n_embd=512, n_head=8)
    for without in (often, many_ranks, wide):
        assert without.settings.ngram_rows == 0 and "--" not in line_on_ngrams(without)

    asked = turned(2, ngram_rows=65_536)
    assert asked.config.ngram_rows == asked.settings.ngram_rows == 65_536
    assert asked.config.ngram_order == asked.settings.ngram_order == 3
    assert asked.settings.ngram_dropout == 0 and "as given" in line_on_ngrams(asked)
    characters = turned(2, vocab_size=65, ngram_rows=300)
    assert characters.config.ngram_order == characters.settings.ngram_order == 5
    twice = turned(2, n_tokens=700_000, ngram_rows=300)
    assert twice.settings.ngram_dropout == 0.5
    by_hand = turned(2, ngram_rows=300, ngram_order=4, ngram_dropout=0.1)
    assert by_hand.config.ngram_order == by_hand.settings.ngram_order == 4
    assert by_hand.settings.ngram_dropout == 0.1


@pytest.mark.parametrize(
    "changed, share, why",
    [
        ({}, 0.5, "0.5 of it for given weights"),
        (dict(lora_rank=8), 0.25, "0.25 of it for LoRA"),
    ],
)
def test_weights_that_are_given_take_a_share_of_the_rates_and_the_reason_is_said(
    changed, share, why
):
    shape = dict(n_layer=3, n_embd=128, n_head=2, block_size=128, qk_norm=False)
    new = turned(2, **shape)
    given = turned(2, network_is_given=True, **shape, **changed)
    assert given.settings.max_steps == new.settings.max_steps
    names = ["learning_rate"] if changed else ["learning_rate", "muon_learning_rate"]
    for name in names:
        asked = share * getattr(new.settings, name)
        assert getattr(given.settings, name) == pytest.approx(asked, rel=0.01)
        (line,) = [line for line in given.lines if line.startswith(f"{name} ")]
        assert why in line
    assert bool(changed) != any(line.startswith("muon_") for line in given.lines)
    assert any("forget less of the old" in line for line in given.lines)
    assert not any(" of it " in line for line in new.lines)
    by_hand = turned(2, network_is_given=True, learning_rate=0.003, **shape, **changed)
    assert by_hand.settings.learning_rate == 0.003


@pytest.mark.parametrize("too_much", [dict(batch_size=100_000), dict(block_size=200_000)])
def test_a_step_that_would_outlast_the_run_is_refused_by_name(too_much):
    (name,) = too_much
    with pytest.raises(ValueError, match=f"{name} .00,000.* s.*more minutes"):
        turned(0.3, **too_much)


def test_a_small_step_that_was_timed_in_a_busy_moment_is_not_refused():
    assert turned(0.1, flops=1e6).settings.max_steps == 1


def test_heads_given_alone_get_a_width_that_they_divide(tmp_path, monkeypatch):
    monkeypatch.setattr(dial, "known_timing", machine(5e10))
    asked = cli.parse(Settings, ["--minutes=1", "--n_head=5"], presets=True)
    dataset = open_dataset(make_dataset(tmp_path / "data"))
    plan = plan_run(asked, CPU, dataset, None)
    assert plan.config.n_head == 5 and plan.config.n_embd % 5 == 0


def test_adamw_takes_lower_rates_for_matrices_than_muon_leaves_it():
    shape = dict(n_layer=3, n_embd=128, n_head=2, block_size=128)
    muon, adamw = turned(2, **shape), turned(2, **shape, optimizer="adamw")
    share = adamw.settings.learning_rate / muon.settings.learning_rate
    assert share == pytest.approx(dial.SHARE_WITHOUT_MUON, rel=0.01)
    assert any("of it without Muon" in line for line in adamw.lines)
    assert not any(line.startswith("muon_") for line in adamw.lines)


@many
@given(st.integers(2_000, 10**7), st.floats(0.2, 20), st.sampled_from(["muon", "adamw"]))
def test_weights_forget_within_a_reading_of_the_text(n_tokens, minutes, optimizer):
    s = turned(minutes, n_tokens=n_tokens, optimizer=optimizer).settings
    rate = s.muon_learning_rate if optimizer == "muon" else s.learning_rate
    reading = n_tokens / (s.batch_size * s.block_size)
    remembered = 1 / (rate * s.weight_decay)
    most = min(reading, 3 * s.max_steps)
    assert max(10, min(most, 25)) / 1.06 <= remembered <= 1.06 * max(10, most)
    if could_hold(s, n_tokens) <= 16:
        assert remembered == pytest.approx(max(10, most), rel=0.06)
    assert s.dropout == 0


def could_hold(s: Settings, n_tokens: int) -> float:
    """Weights of blocks for each token of the text, times how often that is read."""
    with torch.device("meta"):
        blocks = GPT(GPTConfig(512, **{name: getattr(s, name) for name in SHAPE})).transformer.h
    n_weights = sum(p.numel() for p in blocks.parameters())
    n_read = s.max_steps * s.batch_size * s.block_size
    return n_weights / n_tokens * n_read / n_tokens


def test_a_network_that_could_hold_its_text_forgets_it_sooner():
    def memory(n_tokens: int, **given) -> tuple[float, float]:
        """Steps, and those of a reading."""
        s = turned(2, n_tokens=n_tokens, batch_size=8, block_size=64, **given).settings
        return 1 / (s.muon_learning_rate * s.weight_decay), n_tokens / (8 * 64)

    small = dict(n_layer=2, n_embd=64, n_head=1)
    large = dict(n_layer=4, n_embd=192, n_head=3)
    remembered, reading = memory(100_000, flops=1e10, **small)
    assert remembered == pytest.approx(reading, rel=0.06)
    remembered, reading = memory(100_000, flops=4e10, **large)
    assert 30 < remembered < 0.6 * reading
    remembered, reading = memory(100_000, flops=1e13, **large)  # read fifty times as often
    assert remembered == pytest.approx(25, rel=0.06)
    remembered, reading = memory(10_000, flops=1e13, **large)  # a reading is fewer steps
    assert remembered == pytest.approx(reading, rel=0.06)


GPU = devices.Runtime(torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize(
    "launch, given, captured",
    [
        (1e-2, {}, True),
        (1e-9, {}, False),  # the kernels take longer
        (1e-2, {"cuda_graphs": False}, False),
        (1e-2, {"activation_checkpointing": "full"}, False),
    ],
)
def test_on_a_gpu_passes_are_captured_where_launching_takes_longer(launch, given, captured):
    def timing_of(config: GPTConfig, s: Settings, runtime: devices.Runtime) -> Timing:
        return Timing(token=1e-8, update=1e-3, launch=launch)

    shape = dict(n_layer=1, n_embd=64, n_head=1)
    dialled = turned(1, runtime=GPU, timing_of=timing_of, **shape, **given)
    s = dialled.settings
    assert s.cuda_graphs == captured
    assert any(line.startswith("cuda_graphs True: launching") for line in dialled.lines) == captured
    passes = s.batch_size * s.block_size * 1e-8
    step = 1e-3 + (passes if captured else max(passes, launch))
    assert 45 < s.max_steps * step < 60


def test_given_weights_decay_little():
    s = turned(2, n_tokens=20_000, network_is_given=True).settings
    assert s.weight_decay == 0.1


def test_a_network_is_timed_as_it_trains(monkeypatch):
    monkeypatch.setattr(timing, "MEASURED_SECONDS", 0.0)
    runtime = devices.Runtime(torch.device("cpu"), torch.float32)
    config = GPTConfig(vocab_size=32, block_size=16, n_layer=1, n_head=1, n_embd=16)
    speed = timing.time_network(config, Settings(), runtime)
    assert 0 < speed.token < 1 and 0 < speed.update < 10


def test_what_was_measured_in_a_busy_hour_is_forgotten(tmp_path, monkeypatch):
    file = tmp_path / "speeds.json"
    monkeypatch.setattr(timing, "speeds_file", lambda: file)
    runtime = devices.Runtime(torch.device("cpu"), torch.float32)
    config = GPTConfig(vocab_size=32, block_size=16, n_layer=1, n_head=1, n_embd=16)
    key = timing.speed_key(config, Settings(), runtime)
    for remembered in (Timing(0.9, 90.0), Timing(1e-12, 1e-12)):
        timing.keep_speed(file, key, remembered)
        speed = timing.known_timing(config, Settings(), runtime)
        assert speed.token < 0.1 and speed.update < 10
        assert speed == timing.remembered(file, key)
    assert speed == remembered  # it was quicker once: the machine is busy now


def test_what_is_measured_is_remembered_and_rubbish_is_not(tmp_path: Path):
    file = tmp_path / "cache" / "speeds.json"
    measured = Timing(1e-5, 1e-3)
    timing.keep_speed(file, "a", measured)
    known = timing.read_speeds(file)
    assert Timing(known["a"]["token"], known["a"]["update"]) == measured
    for rubbish in ("", "{", "[]", '{"a": 3}', '{"a": {"token": "x"}}', "[" * 10**5):
        file.write_text(rubbish)
        assert timing.read_speeds(file) == {}
    timing.keep_speed(file / "no" / "folder", "a", measured)  # said nothing, kept nothing
