"""The command: an export that is checked, and does in every other command what its run does."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from exports import CHARACTERS, CONTEXT, tiny_model

import evaluate
import huggingface
import sample
from lathe.run import checkpoint, devices
from lathe.settings import Settings
from lathe.use import start
from lathe.use.hf.weights import load_model
from prepare import text as prepare_text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder with one checkpoint of an untrained network."""
    folder = tmp_path_factory.mktemp("hf") / "run"
    model = tiny_model()
    state = {
        "step": 7,
        "samples": 70,
        "model": asdict(model.config),
        "settings": {},
        "val_loss": 2.5,
        "dataset": {"path": "data/letters"},
        "tokenizer": {"name": "char", "fingerprint": CHARACTERS.fingerprint},
    }
    checkpoint.save(folder, model.state_dict(), {}, state, CHARACTERS)
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "exported"
    assert huggingface.main(["export", f"--out_dir={run}", f"--to={folder}"]) == 0
    return folder


def test_export_verifies_and_writes_a_card(run, tmp_path, capsys):
    pytest.importorskip("transformers")
    arguments = ["export", f"--out_dir={run}", f"--to={tmp_path / 'out'}"]
    huggingface.main([*arguments, "--verify=true"])
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}\n"
    assert "through transformers: " in err and "token ids are equal for" in err
    assert "greedy text of 9 tokens is equal for a plain prompt" in err
    assert "\r" not in err
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "2.5000 nats" in card and "data/letters" in card and "Qwen3ForCausalLM" in card


def test_only_an_old_export_is_replaced_and_only_if_asked(run, tmp_path):
    def export(folder: Path, *more: str):
        huggingface.main(["export", f"--out_dir={run}", f"--to={folder}", *more])

    export(tmp_path / "out")
    with pytest.raises(ValueError, match="holds an export.* --overwrite=true"):
        export(tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_size
    export(tmp_path / "out", "--overwrite=true", "--dtype=bfloat16")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < before

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("x")
    (tmp_path / "theirs").mkdir()  # a model that was downloaded
    (tmp_path / "theirs" / "config.json").write_text("{}")
    (tmp_path / "out" / "notes.txt").write_text("x")
    for target in ("own", "own/thesis.txt", "theirs", "out"):
        with pytest.raises(ValueError, match=f"to is {tmp_path / target}, .*: (choose|name)"):
            export(tmp_path / target, "--overwrite=true")
    assert (tmp_path / "own" / "thesis.txt").read_text() == "x"


def test_a_wrong_command_is_named_once(capsys):
    with pytest.raises(SystemExit) as end:
        huggingface.main(["foo"])
    assert end.value.code == 2
    message = "`foo` is no command: the one there is is `export`; the other way, train.py "
    line = capsys.readouterr().err
    assert line.startswith(f"huggingface.py: error: {message}") and line.count("\n") == 1


def test_a_gguf_file_is_written_beside_a_folder_or_alone(run, tmp_path, capsys):
    folder, file = tmp_path / "out", tmp_path / "new" / "model.gguf"
    arguments = ["export", f"--out_dir={run}", f"--gguf={file}"]
    huggingface.main([*arguments, f"--to={folder}"])
    out, err = capsys.readouterr()
    assert out == f"{file}\n{folder}\n"
    assert "read back equal" in err
    whole = file.stat().st_size
    with pytest.raises(ValueError, match="gguf is .*model.gguf, which exists"):
        huggingface.main(arguments)
    huggingface.main([*arguments, "--overwrite=true", "--gguf_type=f16"])
    assert file.stat().st_size < whole
    assert [path.name for path in file.parent.iterdir()] == ["model.gguf"]

    file.write_text("a thesis")
    with pytest.raises(ValueError, match="which exists"):
        huggingface.main([*arguments, "--overwrite=true"])
    assert file.read_text() == "a thesis"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "to is empty.*--to=FOLDER.*--gguf=FILE"),
        (["--gguf=out.gguf", "--verify"], "verify compares a folder"),
        (["--to=out", "--for=ollama"], "--for: .*ollama.*llama.cpp"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        huggingface.main(["export", *options])
    assert re.search(message, capsys.readouterr().err)


def test_export_ends_with_the_call_of_each_client_that_holds_the_model(run, tmp_path, capsys):
    folder, file = tmp_path / "out", tmp_path / "model.gguf"
    huggingface.main(["export", f"--out_dir={run}", f"--to={folder}", f"--gguf={file}"])
    err = capsys.readouterr().err
    for call in (
        'transformers: model.generate(**tokenizer("<|endoftext|>Once"',
        f"mlx-lm: mlx_lm.generate --model {folder} --max-tokens ",
        '--ignore-chat-template --prompt "<|endoftext|>Once"',
        f'llama.cpp: llama-completion -m {file} -no-cnv -p "Once"',
    ):
        assert call in err


def test_a_folder_says_the_same_as_the_run_it_came_from(run, exported, capsys):
    options = ["--prompt=abc", "--max_new_tokens=12", "--num_samples=2", "--device=cpu"]
    sample.main([f"--out_dir={run}", *options])
    expected = capsys.readouterr().out
    sample.main([f"--model=hf:{exported}", *options])
    assert capsys.readouterr().out == expected


def test_a_folder_scores_as_the_run_it_came_from(run, exported, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("abc def, ghi.\n" * 200, encoding="utf-8")
    tokenizer = checkpoint.find_checkpoint(run)
    options = [f"--out={tmp_path / 'data'}", f"--tokenizer={tokenizer}", "--val_fraction=0.2"]
    prepare_text.main([str(tmp_path / "text.txt"), *options])
    capsys.readouterr()
    losses = []
    for model in (f"--out_dir={run}", f"--model=hf:{exported}"):
        evaluate.main([model, f"--dataset={tmp_path / 'data'}", "--device=cpu"])
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="--dataset"):
        evaluate.main([f"--model=hf:{exported}"])


def test_training_begins_with_the_folders_weights(exported):
    class Letters:  # what a plan asks of a dataset
        path = "data/letters"
        vocab_size = CHARACTERS.vocab_size
        tokenizer_name = "char"
        tokenizer_fingerprint = CHARACTERS.fingerprint

        @staticmethod
        def tokenizer():
            return CHARACTERS

    asked = Settings(init_from=f"hf:{exported}", block_size=CONTEXT, dropout=0.1)
    beginning = start.open_start(start.find_start(asked, print), CONTEXT)
    runtime = devices.Runtime(torch.device("cpu"), torch.float32)
    plan = start.plan_run(asked, runtime, Letters, beginning)
    model = start.build_model(plan, beginning)
    for name, tensor in load_model(exported).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert model.config.dropout == 0.1
    assert (asked.n_embd, plan.settings.n_embd) == (768, 32)

    Letters.tokenizer_fingerprint = "another"
    with pytest.raises(ValueError, match="tokenizer"):
        start.plan_run(asked, runtime, Letters, beginning)
