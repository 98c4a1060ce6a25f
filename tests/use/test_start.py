"""What a run begins with is settled before its first step: what cannot be met is refused, or its change told."""

import json
import shutil

import pytest
from tiny_run import arguments, make_dataset, rows

import train
from lathe.data.shards import write_dataset
from lathe.run import checkpoint
from lathe.text.tokenizer import load_tokenizer, train_char

SHORT = dict(max_steps=4, eval_interval=2)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> str:
    """A dataset of characters that other languages do not have."""
    folder = tmp_path_factory.mktemp("characters")
    train_char(["abcdefghijklmnopqrstuvwxyz \n"]).save(folder)
    return make_dataset(tmp_path_factory.mktemp("data") / "spoken", str(folder))


@pytest.fixture(scope="module")
def short_run(dataset, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("short") / "run"
    assert train.main(arguments(dataset, out_dir, **SHORT)) == 0
    return out_dir


@pytest.mark.parametrize("prompt", ["Zürich", "日本語", "the cat\tsat"])
def test_a_prompt_that_the_tokenizer_cannot_write_is_refused_before_the_first_step(
    spoken, tmp_path, prompt
):
    words = arguments(spoken, tmp_path / "run", sample_tokens=4, sample_prompt=prompt, **SHORT)
    with pytest.raises(ValueError, match="sample_prompt is .*has no ids for"):
        train.main(words)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_prompt_without_samples_is_no_mistake(spoken, tmp_path):
    words = arguments(spoken, tmp_path / "run", sample_tokens=0, sample_prompt="Zürich", **SHORT)
    assert train.main(words) == 0


def test_a_presets_prompt_that_does_not_fit_is_left_out_and_said(spoken, tmp_path, capsys):
    preset = tmp_path / "mine.toml"
    preset.write_text('sample_prompt = "Zürich"\n', encoding="utf-8")
    words = arguments(spoken, tmp_path / "run", sample_tokens=4, num_samples=1, **SHORT)
    assert train.main([str(preset), *words]) == 0
    said = capsys.readouterr().err
    assert "Zürich" in said and "samples begin without a prompt" in said
    samples = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in samples} == {""}
    # nor does the preset that is there without being asked for keep anybody from a text of their own
    assert train.main(arguments(spoken, tmp_path / "own", **{**SHORT, "sample_tokens": 4})) == 0


@pytest.mark.parametrize(
    "setting, value", [("block_size", 8), ("n_embd", 64), ("activation", "gelu")]
)
def test_a_shape_that_is_not_the_weights_is_told(
    short_run, dataset, tmp_path, capsys, setting, value
):
    words = arguments(dataset, tmp_path / "run", init_from=short_run, **SHORT)
    words = [word for word in words if not word.startswith(f"--{setting}=")]
    preset = tmp_path / "mine.toml"
    preset.write_text(f"{setting} = {json.dumps(value)}\n")
    for out, asking in (("a", f"--{setting}={value}"), ("b", str(preset))):
        assert train.main([asking, *words, f"--out_dir={tmp_path / out}"]) == 0
        said = capsys.readouterr().err
        assert f"whatever was asked for: {setting}=" in said and f"not {value}" in said
    # whoever asks for nothing is told nothing, whatever the preset is that is there by default
    assert train.main([*words, f"--out_dir={tmp_path / 'c'}"]) == 0
    assert "whatever was asked for" not in capsys.readouterr().err


def test_a_resume_that_changes_nothing_names_no_change(dataset, tmp_path, capsys):
    changed = dict(n_head=4, n_kv_head=2, checkpoint_interval=2)
    assert train.main(arguments(dataset, tmp_path / "run", **{**SHORT, **changed})) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    capsys.readouterr()
    words = arguments(dataset, tmp_path / "run", **{**SHORT, **changed, "init_from": "resume"})
    assert train.main(words) == 0
    said = capsys.readouterr().err
    assert "resuming from" in said and "changed:" not in said
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize("others", ["ABCDEFGHIJKLMNOPQRSTUVWXYZ .", "few"])
def test_another_tokenizer_beside_the_shards_is_refused(spoken, tmp_path, others):
    shutil.copytree(spoken, tmp_path / "data")
    train_char([others]).save(tmp_path / "data")
    with pytest.raises(ValueError, match="holds another tokenizer than .* was made with"):
        train.main(arguments(tmp_path / "data", tmp_path / "run", **SHORT))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# -----------------------------------------------------------------------------
# Runs that were moved, copied or started again


def position(out_dir) -> dict:
    folder, _ = checkpoint.newest_checkpoint(out_dir)
    return json.loads((folder / "state.json").read_text())["train"]


@pytest.mark.parametrize("moved", [True, False])
def test_a_run_goes_on_in_the_folder_in_which_its_settings_lie(short_run, tmp_path, capsys, moved):
    original = tmp_path / "original"
    shutil.copytree(short_run, tmp_path / "elsewhere")
    words = [str(tmp_path / "elsewhere" / "settings.toml"), "--init_from=resume"]
    text = (short_run / "settings.toml").read_text()
    if not moved:
        shutil.copytree(short_run, original)
        (tmp_path / "elsewhere" / "settings.toml").write_text(
            text.replace(str(short_run), str(original))
        )
    before = tree(original) if not moved else tree(short_run)
    assert train.main([*words, "--max_steps=8"]) == 0
    assert "elsewhere, where " in capsys.readouterr().err
    assert position(tmp_path / "elsewhere")["step"] == 8
    assert (tree(original) if not moved else tree(short_run)) == before
    # an out_dir that is asked for is the one that is meant
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        train.main([*words, f"--out_dir={tmp_path / 'asked'}"])


def tree(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_of_a_run_has_a_wandb_run_of_its_own_and_a_moved_one_keeps_it(short_run, tmp_path):
    ours = position(short_run)["wandb_run_id"]
    copy = tmp_path / "copy"
    shutil.copytree(short_run, copy)
    go_on = ["--init_from=resume", "--max_steps=6"]
    assert train.main([str(copy / "settings.toml"), *go_on]) == 0
    copied = position(copy)["wandb_run_id"]
    assert copied != ours
    copy.rename(tmp_path / "moved")
    go_on = ["--init_from=resume", "--max_steps=8"]
    assert train.main([str(tmp_path / "moved" / "settings.toml"), *go_on]) == 0
    assert position(tmp_path / "moved")["wandb_run_id"] == copied


def test_fine_tuning_is_resumed_by_the_command_that_began_it(short_run, dataset, tmp_path):
    preset = tmp_path / "finetune.toml"
    preset.write_text(f'dataset = "{dataset}"\ndevice = "cpu"\nlearning_rate = 0.001\n')
    words = [str(preset), f"--out_dir={tmp_path / 'run'}", "--sample_tokens=0", "--batch_size=8"]
    words += ["--eval_interval=2", "--warmup_steps=0", "--micro_batch_size=8"]
    assert train.main([*words, f"--init_from={short_run}", "--max_steps=2"]) == 0
    assert train.main([*words, "--init_from=resume", "--max_steps=4"]) == 0
    assert position(tmp_path / "run")["step"] == 4
    with pytest.raises(ValueError, match="another network: .*n_embd 32 -> 64"):
        train.main([*words, "--init_from=resume", "--max_steps=6", "--n_embd=64"])


def test_torchruns_restart_goes_on_whatever_the_job_began_with(
    short_run, dataset, tmp_path, monkeypatch, capsys
):
    words = arguments(dataset, tmp_path / "run", **{**SHORT, "init_from": str(short_run)})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert train.main(words) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train.main([*words, "--max_steps=6"]) == 0
    assert "resuming from" in capsys.readouterr().err
    assert position(tmp_path / "run")["step"] == 6
    # another job's folder is not gone on with, nor is it overwritten
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-2")
    with pytest.raises(ValueError, match="already holds a run"):
        train.main([*words, "--max_steps=8"])


def test_the_best_of_other_data_is_no_measure(short_run, dataset, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    text = "".join(reversed("the cat sat on a mat and saw seven sunny seas " * 80))
    write_dataset(tmp_path / "new", load_tokenizer("byte"), [text], [text[:500]])
    words = [str(run / "settings.toml"), "--init_from=resume", "--new_data=true", "--max_steps=8"]
    assert train.main([*words, f"--dataset={tmp_path / 'new'}"]) == 0
    best = checkpoint.best_checkpoint(run)
    assert checkpoint.step_of(best) > 4
