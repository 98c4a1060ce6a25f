"""What a run begins with is settled before its first step: what cannot be met is refused, or its change told."""

import json
import shutil

import pytest
from tiny_run import arguments, make_dataset, rows

import train
from lathe.text.tokenizer import train_char

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
