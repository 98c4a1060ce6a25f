"""What train.py promises to one process: whole runs of a tiny network, most of them inside this process."""

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rank import as_it_was
from tiny_run import (
    ROOT,
    arguments,
    command,
    finished,
    losses,
    make_dataset,
    rows,
    settings,
    wait_for_step,
)

import evaluate
import huggingface
import sample
import train
from lathe import cli
from lathe.data.batches import count_val_windows
from lathe.data.dataset import open_dataset
from lathe.data.shards import write_dataset
from lathe.run import checkpoint, devices
from lathe.settings import Settings
from lathe.text.tokenizer import load_tokenizer
from lathe.use.find_model import find_model
from lathe.use.network import load_weights
from lathe.use.validation import validation
from pages.run_reader import RunReader
from train import TrainState

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished_run(dataset, tmp_path_factory) -> Path:
    """A run of 20 steps with dropout; saved at 10 and 20."""
    out = tmp_path_factory.mktemp("run") / "straight"
    assert train.train(settings(dataset, out, dropout=0.1)) == 0
    return out


def weights(out) -> dict[str, torch.Tensor]:
    return load_weights(checkpoint.newest_checkpoint(out)[0])


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def one_line_error(dataset, out, **changed) -> str:
    """What the command says, as a user sees it: exit code 1 and one line."""
    with pytest.raises((ValueError, OSError)) as caught:
        train.train(settings(dataset, out, **changed))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Whole runs


def test_exactly_max_steps_updates_with_the_last_evaluated_and_saved(finished_run):
    assert [row["step"] for row in rows(finished_run)] == list(range(1, 21))
    assert [row["step"] for row in rows(finished_run, "val_loss")] == [10, 20]
    newest, faults = checkpoint.newest_checkpoint(finished_run)
    assert newest.name == "step-0000020" and not faults
    state = checkpoint.verify(newest)
    assert state["step"] == 20 and state["samples"] == 160 == 20 * 8


def test_max_steps_that_no_interval_divides_are_still_evaluated_and_saved(dataset, tmp_path):
    assert (
        train.train(settings(dataset, tmp_path, max_steps=7, eval_interval=5, log_interval=4)) == 0
    )
    assert [row["step"] for row in rows(tmp_path, "val_loss")] == [5, 7]
    assert [row["step"] for row in rows(tmp_path)] == [1, 4, 7]
    assert checkpoint.newest_checkpoint(tmp_path)[0].name == "step-0000007"


def test_training_learns(finished_run):
    assert losses(finished_run)[-1] < losses(finished_run)[0] - 1


def test_the_gap_is_between_both_splits_under_the_same_weights(finished_run, dataset):
    data = open_dataset(dataset)
    model = find_model(str(finished_run)).load()
    cpu = devices.Runtime(torch.device("cpu"), torch.float32)
    ten, twenty = rows(finished_run, "val_loss")
    n_tokens = 16 * count_val_windows(data.val, 16, 0)
    sample = validation(model, data, cpu, 2, n_tokens, split="train")
    assert n_tokens - 16 <= sample["tokens"] <= n_tokens  # the last window may be shorter
    assert twenty["train_loss"] == pytest.approx(sample["loss"], rel=1e-5)
    assert twenty["train_loss"] != ten["train_loss"]
    page = RunReader(finished_run, 100).read()
    gaps = [row["val_loss"] - row["train_loss"] for row in (ten, twenty)]
    assert page["evaluations"]["gap"] == gaps and page["summary"]["gap"] == gaps[1]


def test_a_run_that_learns_by_heart_shows_a_gap(tmp_path):
    """Two pages that have nothing in common: the loss of batches lags, the gap does not hide it."""
    write_dataset(tmp_path / "data", load_tokenizer("byte"), ["abcdefgh" * 40], ["zyxwvuts" * 40])
    run = dict(max_steps=20, eval_interval=20, learning_rate=0.01, eval_train_tokens=64)
    assert train.train(settings(str(tmp_path / "data"), tmp_path / "run", **run)) == 0
    (last,) = rows(tmp_path / "run", "val_loss")
    assert last["val_loss"] > last["train_loss"] + 1
    assert last["train_loss"] < losses(tmp_path / "run")[-1]
    (tmp_path / "none").mkdir()
    without = settings(str(tmp_path / "data"), tmp_path / "none", max_steps=1, eval_train_tokens=0)
    assert train.train(without) == 0
    (last,) = rows(tmp_path / "none", "val_loss")
    summary = RunReader(tmp_path / "none", 9).read()["summary"]
    assert "train_loss" not in last and summary["gap"] is None


def test_tokens_per_second_leaves_out_evaluations_and_saves(dataset, tmp_path, monkeypatch):
    clock = SimpleNamespace(
        seconds=0.0, monotonic=time.monotonic, perf_counter=lambda: clock.seconds
    )

    def taking(seconds, work):
        def timed(*args):
            clock.seconds += seconds
            return work(*args)

        return timed

    monkeypatch.setattr(train, "time", clock)
    for name, seconds in (("train_step", 2.0), ("measure", 100.0), ("save", 30.0)):
        monkeypatch.setattr(train, name, taking(seconds, getattr(train, name)))
    often = dict(max_steps=8, eval_interval=4, log_interval=3, checkpoint_interval=2)
    assert train.train(settings(dataset, tmp_path, **often)) == 0
    assert [(row["step"], row["tokens"]) for row in rows(tmp_path)] == [
        (1, 128),
        (3, 384),
        (6, 768),
        (8, 1024),
    ]
    assert {row["tokens_per_second"] for row in rows(tmp_path)} == {128 / 2.0}


def test_tokens_per_second_leaves_out_the_time_in_which_a_process_was_stopped(
    dataset, tmp_path, monkeypatch
):
    clock = SimpleNamespace(
        seconds=0.0, monotonic=time.monotonic, perf_counter=lambda: clock.seconds
    )
    step_of_training = train.train_step

    def stopped_in_some(run: train.Run):
        clock.seconds += 2.0
        if run.state.step in (4, 7):
            clock.seconds += 1000.0
            os.kill(os.getpid(), signal.SIGCONT)
        return step_of_training(run)

    monkeypatch.setattr(train, "time", clock)
    monkeypatch.setattr(train, "train_step", stopped_in_some)
    for log_interval in (1, 3):
        out = tmp_path / str(log_interval)
        assert train.train(settings(dataset, out, max_steps=9, log_interval=log_interval)) == 0
        assert {row["tokens_per_second"] for row in rows(out)} == {128 / 2.0}


def test_what_a_step_measures_is_in_the_log_and_on_the_line(dataset, tmp_path, monkeypatch, capsys):
    step = train.train_step
    more = {"half": torch.tensor(0.5)}
    monkeypatch.setattr(train, "train_step", lambda run: step(run) | more)
    assert train.train(settings(dataset, tmp_path, max_steps=3)) == 0
    assert [row["half"] for row in rows(tmp_path)] == [0.5] * 3
    assert capsys.readouterr().err.count(" | half 0.5 | ") == 3


def test_results_read_a_step_late_as_on_a_gpu_change_nothing(
    finished_run, dataset, tmp_path, monkeypatch
):
    start = devices.start
    monkeypatch.setattr(
        devices, "start", lambda *args, **options: replace(start(*args, **options), lag=1)
    )
    assert train.train(settings(dataset, tmp_path, dropout=0.1)) == 0
    for kind, keys in (
        ("loss", ("step", "tokens", "loss", "lr", "grad_norm")),
        ("val_loss", ("step", "val_loss")),
    ):
        late, usual = (
            [[row[key] for key in keys] for row in rows(out, kind)]
            for out in (tmp_path, finished_run)
        )
        assert late == usual
    assert same(weights(tmp_path), weights(finished_run))
    now, then = (
        checkpoint.load_optimizer(checkpoint.step_path(out, 10)) for out in (tmp_path, finished_run)
    )
    assert all(same(now["optimizer"][name], then["optimizer"][name]) for name in then["optimizer"])


def test_a_signal_and_too_many_skips_are_seen_a_step_late(dataset, tmp_path, monkeypatch):
    start, build, passes = devices.start, train.build_model, 0

    def faulty(*args):
        def spoil(module, args, loss):
            nonlocal passes
            passes += module.training
            if passes == 1 + 4 * 3 + 1:  # after a dry pass, four a step: in step 4
                os.kill(os.getpid(), signal.SIGTERM)
            return loss * (math.nan if stopped and module.training else 1)

        model = build(*args)
        model.register_forward_hook(spoil)
        return model

    monkeypatch.setattr(
        devices, "start", lambda *args, **options: replace(start(*args, **options), lag=1)
    )
    monkeypatch.setattr(train, "build_model", faulty)
    stopped = False
    assert train.train(settings(dataset, tmp_path)) == 128 + signal.SIGTERM
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]
    assert checkpoint.newest_checkpoint(tmp_path)[0].name == "step-0000005"
    stopped = True
    said = one_line_error(dataset, tmp_path, init_from="resume", max_skipped_steps=2)
    assert "2 steps in a row were skipped, up to step 7 (samples 48 to 55)" in said


def test_a_run_leaves_only_the_files_it_promises(finished_run):
    names = {p.name for p in finished_run.iterdir()} - {"report.html"}
    assert names == {
        "settings.toml",
        "metrics.jsonl",
        "starts.jsonl",
        "samples.jsonl",
        "checkpoints",
        "lock",
    }
    folders = {p.name for p in (finished_run / "checkpoints").iterdir()}
    assert folders == {"step-0000010", "step-0000020", "best"}


def test_settings_toml_repeats_the_run(finished_run, tmp_path):
    again = cli.parse(
        Settings, [str(finished_run / "settings.toml"), f"--out_dir={tmp_path}"], **train.PARSER
    )
    assert train.train(again) == 0
    assert losses(tmp_path) == losses(finished_run)
    assert same(weights(tmp_path), weights(finished_run))


def test_samples_at_evaluations_use_the_same_prompt_and_say_so(dataset, tmp_path, capsys):
    train.train(
        settings(
            dataset, tmp_path, max_steps=4, eval_interval=2, sample_tokens=5, sample_prompt="the"
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["sample"], row["prompt"]) for row in lines] == [
        (step, i, "the") for step in (2, 4) for i in range(3)
    ]
    assert capsys.readouterr().out == ""


def test_a_run_that_is_not_compiled_never_imports_the_compiler(dataset, tmp_path):
    """A second of processor time, which `import torch` itself does not take; with samples, a page,
    averaged weights and a save."""
    words = arguments(dataset, tmp_path / "run", sample_tokens=4, average_fraction=0.5)
    program = (
        "import sys, train\n"
        f"assert train.main({words!r}) == 0\n"
        "print(*{name.split('.')[1] for name in sys.modules if name.startswith('torch.')})\n"
        "print('sympy' in sys.modules)"
    )
    code, out, err = finished(command("-c", program))
    assert code == 0, err[-2000:]
    *_, imported, has_sympy = out.splitlines()
    assert "_higher_order_ops" in imported.split(), "as torch's own modules are seen here"
    assert not {"_dynamo", "_inductor"} & set(imported.split())
    assert has_sympy == "False"


def test_tasks_at_evaluations_say_what_evaluate_says(dataset, tmp_path, capsys):
    names = ("hellaswag", "lambada", "exact_match")
    tasks = [f"{name}:{ROOT}/tests/items/{name}.jsonl" for name in names]
    assert train.train(settings(dataset, tmp_path / "run", eval_tasks=tasks)) == 0
    assert "| hellaswag/acc 0." in capsys.readouterr().err
    ten, twenty = rows(tmp_path / "run", "val_loss")
    assert (
        evaluate.main(
            [
                f"--out_dir={checkpoint.step_path(tmp_path / 'run', 20)}",
                "--device=cpu",
                "--tasks",
                *tasks,
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert "loss" not in found and found["dtype"] == "float32"  # a loss takes a dataset
    kept = ("acc", "acc_norm", "perplexity")
    scores = [
        (name, key, value) for name, of in found["tasks"].items() for key, value in of.items()
    ]
    expected = {f"{name}/{key}": value for name, key, value in scores if key in kept}
    assert len(expected) == 5 and expected == {key: twenty[key] for key in twenty if "/" in key}
    assert ten.keys() == twenty.keys() and ten["lambada/perplexity"] != twenty["lambada/perplexity"]


def test_a_task_that_cannot_be_read_ends_a_run_before_its_first_step(dataset, tmp_path):
    assert "nowhere: there is no such file" in one_line_error(
        dataset, tmp_path / "x", eval_tasks=["piqa:nowhere"]
    )


@pytest.mark.parametrize("micro", [1, 4, 8])
def test_micro_batches_only_cut_a_batch_up(finished_run, dataset, tmp_path, micro):
    train.train(settings(dataset, tmp_path, micro_batch_size=micro, max_steps=5))
    train.train(settings(dataset, tmp_path / "2", micro_batch_size=2, max_steps=5))
    for a, b in zip(losses(tmp_path), losses(tmp_path / "2"), strict=True):
        assert a == pytest.approx(b, abs=2e-6)


# Stopping and going on


def test_eight_steps_and_a_resume_are_twenty_steps_bit_for_bit(
    finished_run, dataset, tmp_path, monkeypatch
):
    """With dropout: so the generators' state came back too. The stop comes as a signal."""
    set_lr = train.set_lr

    def stop_in_step_8(run):
        if run.state.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return set_lr(run)

    monkeypatch.setattr(train, "set_lr", stop_in_step_8)
    code = train.train(settings(dataset, tmp_path, dropout=0.1))
    assert code == 128 + signal.SIGTERM
    assert checkpoint.newest_checkpoint(tmp_path)[0].name == "step-0000008"
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))
    monkeypatch.undo()

    assert train.train(settings(dataset, tmp_path, dropout=0.1, init_from="resume")) == 0
    assert losses(tmp_path) == losses(finished_run)
    assert [r["val_loss"] for r in rows(tmp_path, "val_loss")] == [
        r["val_loss"] for r in rows(finished_run, "val_loss")
    ]
    assert same(weights(tmp_path), weights(finished_run))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_exits_with_128_plus_its_number(dataset, tmp_path, number):
    process = command(
        "train.py", *arguments(dataset, tmp_path, max_steps=100000, eval_interval=100000)
    )
    wait_for_step(process, tmp_path, 5)
    os.kill(process.pid, number)
    code, out, err = finished(process, timeout=60)
    assert code == 128 + number and out == "" and "Traceback" not in err
    saved = checkpoint.newest_checkpoint(tmp_path)[0]
    assert int(saved.name[5:]) == rows(tmp_path)[-1]["step"] and "--init_from=resume" in err


def test_a_run_with_a_table_by_ngrams_resumes_speaks_and_is_exported(dataset, tmp_path, capsys):
    table = dict(ngram_rows=300, document_mask=True, dropout=0.1, max_steps=12, eval_interval=6)
    assert train.train(settings(dataset, tmp_path / "straight", **table)) == 0
    as_it_was(str(tmp_path / "resumed"), str(tmp_path / "straight"), 6)
    assert train.train(settings(dataset, tmp_path / "resumed", init_from="resume", **table)) == 0
    assert losses(tmp_path / "resumed") == losses(tmp_path / "straight")
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "straight"))
    with pytest.raises(ValueError, match="ngram_rows 300 -> 0"):
        train.train(
            settings(
                dataset, tmp_path / "resumed", init_from="resume", **{**table, "ngram_rows": 0}
            )
        )
    capsys.readouterr()
    run = f"--out_dir={tmp_path / 'straight'}"
    folder = f"hf:{tmp_path / 'hf'}"
    huggingface.main(["export", run, f"--to={tmp_path / 'hf'}"])
    capsys.readouterr()
    said = []
    for model in ([run], [run, "--dtype=int8"], [run, "--dtype=bfloat16"], [f"--model={folder}"]):
        words = [*model, "--prompt=the", "--device=cpu", "--temperature=0", "--max_new_tokens=20"]
        assert sample.main(words) == 0
        said.append(capsys.readouterr().out)
    assert len(said[0]) > 5 and said[0][:3] == said[1][:3] == said[2][:3]
    assert said[3] == said[0]
    tuned = dict(init_from=folder, ngram_dropout=0.3, max_steps=2, eval_interval=1)
    assert train.train(settings(dataset, tmp_path / "tuned", **tuned)) == 0
    model = checkpoint.read_state(checkpoint.newest_checkpoint(tmp_path / "tuned")[0])["model"]
    assert (model["ngram_rows"], model["ngram_order"], model["ngram_dropout"]) == (300, 5, 0.3)
    assert not same(weights(tmp_path / "tuned"), weights(tmp_path / "straight"))


def test_auto_starts_from_scratch_and_then_goes_on_and_then_is_complete(dataset, tmp_path, capsys):
    auto = dict(init_from="auto", max_steps=4, eval_interval=2)
    assert train.train(settings(dataset, tmp_path, **auto)) == 0
    assert train.train(settings(dataset, tmp_path, **{**auto, "max_steps": 6})) == 0
    assert "resuming from" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    before = weights(tmp_path)
    assert train.train(settings(dataset, tmp_path, **{**auto, "max_steps": 6})) == 0
    assert "complete at step 6" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6] and same(
        before, weights(tmp_path)
    )


def test_another_runs_folder_gives_its_weights_and_its_shape_but_not_its_position(
    finished_run, dataset, tmp_path
):
    tuned = settings(dataset, tmp_path, init_from=str(finished_run), n_embd=16, max_steps=2, learning_rate=1e-9,
                     muon_learning_rate=1e-9, weight_decay=0.0)  # fmt: skip
    assert train.train(tuned) == 0
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    for name, tensor in weights(finished_run).items():
        assert torch.allclose(tensor, weights(tmp_path)[name], atol=1e-6)


def test_what_a_restart_needs_is_in_the_checkpoint(finished_run):
    state = checkpoint.read_state(finished_run / "checkpoints" / "step-0000020")
    held = TrainState(**state["train"])
    assert held.step == 20 and held.samples == 160 and math.isfinite(held.best_val_loss)
    assert {
        "model",
        "settings",
        "dataset",
        "tokenizer",
        "versions",
        "world_size",
        "files",
    } <= state.keys()


# Mistakes: one line that names what is wrong, and nothing lost


def test_a_folder_with_a_run_is_not_overwritten(finished_run, dataset):
    before = (finished_run / "metrics.jsonl").read_bytes()
    assert "--overwrite=true" in one_line_error(dataset, finished_run)
    assert before == (finished_run / "metrics.jsonl").read_bytes()


def test_overwrite_starts_over(dataset, tmp_path):
    train.train(settings(dataset, tmp_path, max_steps=6, eval_interval=3))
    assert train.train(settings(dataset, tmp_path, max_steps=2, overwrite=True)) == 0
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step-0000002"]


def test_resume_without_a_checkpoint(dataset, tmp_path):
    error = one_line_error(dataset, tmp_path / "new", init_from="resume")
    assert str(tmp_path / "new") in error and "--init_from=scratch" in error


def test_weights_from_a_folder_that_does_not_exist(dataset, tmp_path):
    assert str(tmp_path / "nowhere") in one_line_error(
        dataset, tmp_path / "x", init_from=str(tmp_path / "nowhere")
    )


def test_a_missing_dataset_names_the_command_that_makes_it(tmp_path):
    assert "prepare/shakespeare_char.py" in one_line_error(
        str(tmp_path / "shakespeare_char"), tmp_path / "x"
    )
    assert "prepare/text.py" in one_line_error(str(tmp_path / "my_text"), tmp_path / "x")


def test_a_batch_that_does_not_come_out_even_names_sizes_that_do(dataset, tmp_path):
    error = one_line_error(dataset, tmp_path, batch_size=10, micro_batch_size=4)
    assert "batch_size=10" in error and "8 or 12" in error


def test_another_tokenizer_than_the_checkpoints(finished_run, tmp_path):
    other = make_dataset(tmp_path / "gpt2", str(char_table(tmp_path)))
    for init_from in ("resume", str(finished_run)):
        out = finished_run if init_from == "resume" else tmp_path / "x"
        error = one_line_error(other, out, init_from=init_from, dropout=0.1, new_data=True)
        assert "tokenizer" in error and "--tokenizer=" in error
        assert ("--out_dir=out/gpt2" in error) == (init_from == "resume")


def char_table(folder: Path) -> Path:
    from lathe.text.tokenizer import train_char

    train_char(["abcdefghijklmnopqrstuvwxyz "]).save(folder)
    return folder


@pytest.mark.parametrize(
    "changed", [dict(n_layer=3), dict(n_embd=64, n_head=4), dict(activation="gelu")]
)
def test_another_shape_cannot_resume_and_old_and_new_are_shown(finished_run, dataset, changed):
    error = one_line_error(dataset, finished_run, init_from="resume", dropout=0.1, **changed)
    held = checkpoint.read_state(finished_run / "checkpoints" / "step-0000020")["model"]
    for name, value in changed.items():
        assert f"{name} {held[name]} -> {value}" in error


def test_another_seed_or_dataset_cannot_resume_unless_said(finished_run, dataset, tmp_path):
    assert "seed was 1337, is now 7" in one_line_error(
        dataset, finished_run, init_from="resume", dropout=0.1, seed=7
    )
    longer = tmp_path / "longer"
    from lathe.data.shards import write_dataset
    from lathe.text.tokenizer import load_tokenizer

    write_dataset(
        longer, load_tokenizer("byte"), ["some other text " * 50], ["and some to validate"]
    )
    error = one_line_error(str(longer), finished_run, init_from="resume", dropout=0.1)
    assert "dataset was" in error and "--new_data=true" in error
    train.train(settings(dataset, tmp_path / "run", max_steps=2))
    said = settings(str(longer), tmp_path / "run", max_steps=3, init_from="resume", new_data=True)
    assert train.train(said) == 0 and len(losses(tmp_path / "run")) == 3


def test_rates_and_schedule_change_on_resume_and_are_printed(dataset, tmp_path, capsys):
    train.train(settings(dataset, tmp_path, max_steps=2))
    changed = settings(
        dataset,
        tmp_path,
        max_steps=4,
        init_from="resume",
        learning_rate=0.001,
        lr_schedule="constant",
    )
    assert train.train(changed) == 0
    printed = capsys.readouterr().err
    for text in ("learning_rate 0.004 -> 0.001", "lr_schedule wsd -> constant", "max_steps 2 -> 4"):
        assert text in printed
    assert rows(tmp_path)[-1]["lr"] == 0.001


def test_float16_on_a_cpu_is_refused(dataset, tmp_path):
    assert "dtype is float16" in one_line_error(dataset, tmp_path, dtype="float16")


def test_bfloat16_on_a_cpu_trains(dataset, tmp_path):
    assert train.train(settings(dataset, tmp_path, dtype="bfloat16", max_steps=5)) == 0
    assert all(map(math.isfinite, losses(tmp_path)))
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}


def test_an_unwritable_folder(dataset, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "cannot be written" in one_line_error(dataset, tmp_path / "file" / "run")


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(dataset, tmp_path, capsys):
    train.train(settings(dataset, tmp_path))
    damage(tmp_path / "checkpoints" / "step-0000020" / "optimizer.pt")
    assert train.train(settings(dataset, tmp_path, init_from="auto")) == 0
    printed = capsys.readouterr().err
    assert "step-0000020 is damaged: optimizer.pt" in printed and "resuming from" in printed
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 21))
    assert checkpoint.verify(tmp_path / "checkpoints" / "step-0000020")["step"] == 20


def test_auto_does_not_start_over_where_every_checkpoint_is_damaged(dataset, tmp_path):
    train.train(settings(dataset, tmp_path, max_steps=2))
    damage(tmp_path / "checkpoints" / "step-0000002" / "model.safetensors")
    error = one_line_error(dataset, tmp_path, init_from="auto")
    assert "no whole checkpoint" in error and (tmp_path / "checkpoints" / "step-0000002").exists()


def damage(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_without_a_compiler_compile_is_left_out_with_the_reason(dataset, tmp_path):
    process = command(
        "train.py",
        *arguments(dataset, tmp_path, max_steps=1, compile="true"),
        env={"PATH": str(tmp_path), "CXX": ""},
    )
    code, _, err = finished(process)
    assert code == 0 and "not compiled (no C++ compiler found" in err


@pytest.mark.slow
def test_mistakes_end_in_one_line_without_a_traceback(tmp_path):
    """The command itself, through cli.run: exit code 1, one line on stderr, nothing on stdout."""
    code, out, err = finished(command("train.py", *arguments(tmp_path / "none", tmp_path / "run")))
    assert (
        code == 1
        and out == ""
        and err.count("\n") == 1
        and err.startswith("train.py: error: dataset ")
    )


def test_deterministic_changes_no_bit_on_a_cpu(dataset, tmp_path, capsys):
    plain, asked = tmp_path / "plain", tmp_path / "asked"
    assert train.train(settings(dataset, plain, dropout=0.1)) == 0
    assert train.train(settings(dataset, asked, dropout=0.1, deterministic=True)) == 0
    assert losses(plain) == losses(asked) and same(weights(plain), weights(asked))
    assert "deterministic (as any run on a CPU)" in capsys.readouterr().err
    assert not torch.are_deterministic_algorithms_enabled()  # any more


# On a GPU, in bfloat16 and compiled

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ON_GPU = dict(
    device="cuda", dtype="bfloat16", compile="true", checkpoint_interval=1, keep_checkpoints=30
)


@gpu
@needs_cuda
@pytest.mark.slow
def test_on_a_gpu_a_deterministic_resume_goes_on_bit_for_bit(dataset, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    same_bits = dict(dropout=0.1, deterministic=True, **ON_GPU)
    assert train.train(settings(dataset, straight, **same_bits)) == 0
    as_it_was(str(resumed), str(straight), 10)
    assert train.train(settings(dataset, resumed, init_from="resume", **same_bits)) == 0
    assert losses(resumed) == losses(straight) and same(weights(resumed), weights(straight))


@gpu
@needs_cuda
@pytest.mark.slow
def test_on_a_gpu_a_step_without_a_finite_gradient_is_skipped(dataset, tmp_path, monkeypatch):
    build, passes = train.build_model, 0

    def faulty(*args):
        model = build(*args)

        def hook(grad):
            nonlocal passes
            passes += 1
            return (
                grad * float("nan") if passes == 1 + 4 * 4 + 1 else grad
            )  # a dry pass, four a step: in step 5

        model.transformer.wte.weight.register_hook(hook)
        return model

    monkeypatch.setattr(train, "build_model", faulty)
    assert train.train(settings(dataset, tmp_path, max_steps=8, **ON_GPU)) == 0
    held = [load_weights(checkpoint.step_path(tmp_path, step)) for step in range(1, 9)]
    assert same(held[3], held[4]) and not same(held[4], held[5])
    assert all(t.isfinite().all() for step in held for t in step.values())
    assert rows(tmp_path)[-1]["skipped"] == 1


@gpu
@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize(
    "changed", [{"compile": "false"}, {}, {"dropout": 0.1, "dtype": "float16"}]
)
def test_on_a_gpu_captured_passes_learn_the_same(dataset, tmp_path, capsys, changed):
    """With dropout, too: a replay draws what the kernels would have drawn one by one."""
    for graphs in (False, True):
        out = tmp_path / str(graphs)
        s = settings(dataset, out, **{**ON_GPU, "cuda_graphs": graphs, **changed})
        assert train.train(s) == 0
    assert "no CUDA graph" not in capsys.readouterr().err.split("a CUDA graph a pass")[1]
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), abs=0.03)


@gpu
@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_on_a_gpu_no_step_waits_for_the_device(dataset, tmp_path, monkeypatch, cuda_graphs):
    lr_factor = train.lr_factor

    def strict(step, *schedule):  # at the beginning of each step
        torch.cuda.set_sync_debug_mode("error" if 3 <= step < 8 else "default")
        return lr_factor(step, *schedule)

    monkeypatch.setattr(train, "lr_factor", strict)
    changed = {**ON_GPU, "checkpoint_interval": 0, "cuda_graphs": cuda_graphs}
    assert train.train(settings(dataset, tmp_path, **changed)) == 0
    assert len(rows(tmp_path)) == 20


@pytest.mark.parametrize("was, now", [("muon", "adamw"), ("adamw", "muon")])
def test_a_run_is_not_resumed_with_another_optimizer(dataset, tmp_path, was, now):
    brief = dict(max_steps=2, eval_tokens=16)
    assert train.train(settings(dataset, tmp_path, optimizer=was, **brief)) == 0
    with pytest.raises(ValueError, match=f"optimizer {was} -> {now}; go on with --optimizer={was}"):
        train.train(settings(dataset, tmp_path, optimizer=now, init_from="resume"))
    folder = checkpoint.step_path(tmp_path, 2)
    again = settings(
        dataset, tmp_path / "again", optimizer=now, init_from=str(folder), **brief
    )  # as the message says
    assert train.train(again) == 0


# -----------------------------------------------------------------------------
# Averaged weights


def test_averaged_weights_are_used_where_they_do_better_and_a_resume_goes_on_bit_for_bit(
    dataset, tmp_path, capsys
):
    """At a high rate that does not fall the mean does far better than the last weights."""
    wild = dict(
        average_fraction=0.6, lr_schedule="constant", learning_rate=0.05, max_steps=20, dropout=0.1
    )
    straight = tmp_path / "straight"
    assert train.train(settings(dataset, straight, **wild)) == 0
    said = capsys.readouterr().err
    assert "with the last" in said and "averaged weights of 12 steps" in said
    newest, _ = checkpoint.newest_checkpoint(straight)
    saved = checkpoint.load_optimizer(newest)["average"]
    assert saved["model_is_average"] and saved["n"] == 12
    evaluation = rows(straight, "val_loss")[-1]
    model = find_model(str(straight)).load()
    cpu = devices.start("cpu", "float32")
    again = validation(model, open_dataset(dataset), cpu, 2, 0)
    assert again["loss"] == pytest.approx(evaluation["val_loss"], rel=1e-6)

    resumed = tmp_path / "resumed"
    as_it_was(str(resumed), str(straight), 10)
    assert train.train(settings(dataset, resumed, init_from="resume", **wild)) == 0
    assert losses(resumed) == losses(straight)
    assert same(weights(resumed), weights(straight))

    # With more steps it is the last weights that go on, not their mean.
    longer = tmp_path / "longer"
    assert train.train(settings(dataset, longer, **{**wild, "max_steps": 24})) == 0
    on = {**wild, "max_steps": 24, "init_from": "resume"}
    assert train.train(settings(dataset, straight, **on)) == 0
    assert losses(straight) == losses(longer)
