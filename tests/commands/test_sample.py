"""Promises of sample.py: where prompts come from, and what is printed."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from tiny_run import command as start
from tiny_run import loud_model

import sample
from lathe.run import checkpoint
from lathe.text.tokenizer import load_tokenizer, train_char
from lathe.use.quantize import choose_weights

T = 24  # context


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A checkpoint of an untrained tiny model and its tokenizer: sampling needs nothing else."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    tokenizer = train_char(["abcdefghijklmnopqrstuvwxyz ABC\n.,"])
    model = loud_model(tokenizer.vocab_size, block_size=T, n_head=4)
    state = {
        "step": 7,
        "samples": 70,
        "model": asdict(model.config),
        "settings": {},
        "val_loss": 2.5,
        "dataset": {"path": "data/letters"},
        "tokenizer": {"name": "char", "fingerprint": tokenizer.fingerprint},
    }
    checkpoint.save(folder, model.state_dict(), {}, state, tokenizer)
    return folder


def command(run_folder, capsys, *arguments):
    """(stdout, stderr) of sample.main, in this process."""
    assert sample.main([f"--out_dir={run_folder}", "--device=cpu", *arguments]) == 0
    return capsys.readouterr()


def test_stdout_holds_generated_text_alone(run_folder, capsys):
    words = ("--prompt=abc", "--max_new_tokens=20", "--ignore_eot=true")
    out, err = command(run_folder, capsys, *words)
    assert 1 < len(out) <= 21 and out.endswith("\n") and not out.startswith("abc")
    assert "20 tokens, " in err and " tokens/s, first after " in err


def test_jsonl_rows_say_everything(run_folder, capsys):
    arguments = ("--prompt=abc", "--prompt=x", "--num_samples=2", "--max_new_tokens=9")
    arguments += ("--format=jsonl", "--logprobs=3", "--seed=5")
    out, _ = command(run_folder, capsys, *arguments)
    rows = [json.loads(line) for line in out.splitlines()]
    expected = [("abc", 0), ("abc", 1), ("x", 0), ("x", 1)]
    assert [(row["prompt"], row["sample"]) for row in rows] == expected
    tokenizer = load_tokenizer(checkpoint.find_checkpoint(run_folder))
    for row in rows:
        assert row["text"] == tokenizer.decode(row["ids"])
        assert row["seed"] == 5 and row["tokens_per_second"] > 0
        assert row["finish_reason"] == ("length" if len(row["ids"]) == 9 else "stop")
        assert len(row["logprobs"]) == len(row["top_logprobs"]) == len(row["ids"])
        assert all(len(top) == 3 for top in row["top_logprobs"])
    again, _ = command(run_folder, capsys, *arguments, "--batch_size=1")
    assert [json.loads(line)["ids"] for line in again.splitlines()] == [row["ids"] for row in rows]


def test_half_a_surrogate_pair_in_a_prompt_is_said(run_folder, capsys, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "ab\\ud800"}\n')
    with pytest.raises(ValueError, match="unknown to the character tokenizer"):
        command(run_folder, capsys, f"--prompts={tmp_path / 'p.jsonl'}")
    assert "half a surrogate pair" in capsys.readouterr().err


def test_prompts_come_from_files_standard_input_and_jsonl(
    run_folder, capsys, tmp_path, monkeypatch
):
    options = ("--max_new_tokens=6", "--temperature=0")
    expected, _ = command(run_folder, capsys, "--prompt=abc\nd", *options)
    (tmp_path / "p.txt").write_text("abc\nd")
    out, _ = command(run_folder, capsys, f"--prompt_file={tmp_path / 'p.txt'}", *options)
    assert out == expected
    with open(tmp_path / "p.txt") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert command(run_folder, capsys, "--prompt", "-", *options).out == expected
    lines = '{"prompt": "abc\\nd", "id": 17}\n\n{"prompt": "zz", "id": 18}\n'
    (tmp_path / "p.jsonl").write_text(lines)
    out, _ = command(
        run_folder, capsys, f"--prompts={tmp_path / 'p.jsonl'}", "--format=jsonl", *options
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == [17, 18] and rows[0]["text"] + "\n" == expected


def test_prompts_may_hold_unicode_line_ends_and_begin_with_a_mark(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b\x85"}\r\n{"prompt": "c"}\n'.encode())
    rows = sample.read_prompts(sample.Options(prompts=str(path)))
    assert [row["prompt"] for row in rows] == ["a\u2028b\x85", "c"]


def test_a_stop_string_is_never_printed(run_folder, capsys):
    options = ("--prompt=abc", "--max_new_tokens=60", "--temperature=0", "--ignore_eot=true")
    whole, _ = command(run_folder, capsys, *options)
    stop = whole[7:10]
    out, _ = command(run_folder, capsys, *options, f"--stop={stop}")
    assert out == whole[: whole.find(stop)] + "\n"
    out, _ = command(run_folder, capsys, *options, f"--stop={stop}", "--format=jsonl")
    row = json.loads(out)
    assert row["text"] == whole[: whole.find(stop)] and row["finish_reason"] == "stop"


def test_an_empty_prompt_starts_a_document(run_folder, capsys):
    assert 1 < len(command(run_folder, capsys, "--max_new_tokens=5", "--ignore_eot=true").out) <= 6


def test_a_prompt_longer_than_the_context_is_said_to_be(run_folder, capsys):
    _, err = command(run_folder, capsys, "--prompt=" + "a" * (2 * T), "--max_new_tokens=3")
    words = f"a prompt of {2 * T + 1} tokens exceeds the context of {T}: its last {T // 2} count"
    assert words in err
    _, err = command(run_folder, capsys, "--prompt=a", f"--max_new_tokens={T}")
    assert "when full, its last half is kept" in err and err.count("last half") == 1


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16", "int8"))
def test_every_type_of_weights_generates(run_folder, capsys, dtype):
    try:
        choose_weights(dtype, torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    words = ("--max_new_tokens=8", f"--dtype={dtype}", "--ignore_eot=true")
    out, err = command(run_folder, capsys, *words)
    assert 1 < len(out) <= 9 and dtype in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--top_p=0"], "top_p is 0.0: it must be above 0 and at most 1"),
        (["--top_p=1.1"], "top_p is 1.1"),
        (["--min_p=-0.1"], "min_p is -0.1"),
        (["--temperature=-1"], "temperature is -1.0: it must be 0 (greedy) or more"),
        (["--temperature=nan"], "temperature is nan"),
        (["--top_k=-1"], "top_k is -1"),
        (["--repetition_penalty=0"], "repetition_penalty is 0.0"),
        (["--num_samples=0"], "num_samples is 0"),
        (["--max_new_tokens=0"], "max_new_tokens is 0"),
        (["--prompt=a", "--prompt_file=b"], "prompt_file and prompt are both given"),
        (["--stop="], "stop is an empty text"),
        (["--logprobs=3"], "add --format=jsonl"),
        (["--model=gpt2"], "did you mean --model=hf:gpt2?"),
        (["--top_kk=3"], "did you mean --top_k?"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit:
        sample.main(arguments)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and words in err and err.count("\n") == 1


def test_mistakes_in_prompts_are_named(run_folder, tmp_path):
    def message(*arguments):
        with pytest.raises((ValueError, OSError)) as error:
            sample.main([f"--out_dir={run_folder}", *arguments])
        return str(error.value)

    assert "'é' (U+00E9)" in message("--prompt=abé") and "'Z'" in message("--prompt=abéZ")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "latin is not UTF-8: byte 3 is 0xe9" in message(f"--prompt_file={tmp_path / 'latin'}")
    assert "nowhere" in message("--prompt_file=nowhere")
    faults = {"{}": "line 1", '{"prompt": "a"}\nx': "line 2", "\n": "no prompt", "3": "line 1"}
    for text, words in faults.items():
        (tmp_path / "p.jsonl").write_text(text)
        assert words in message(f"--prompts={tmp_path / 'p.jsonl'}")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sample.main([f"--out_dir={tmp_path / 'nothing'}"])


def test_keys_beside_a_prompt_go_on_as_they_are_or_are_refused(tmp_path):
    path = tmp_path / "p.jsonl"

    def read(row: str, **options) -> list[dict]:
        path.write_text('{"prompt": "a"}\n' + row)
        return sample.read_prompts(sample.Options(prompts=str(path), **options))

    row = '{"prompt": "a", "id": 12345678901234567890, "x": [{"y": "\\ud800\\u0000"}], "z": 0.1}'
    assert json.dumps(read(row, format="jsonl")[1]) == row
    for key in ("text", "ids", "seed", "sample", "finish_reason", "tokens_per_second"):
        with pytest.raises(ValueError, match=f"p.jsonl, line 2 has the key '{key}'.*rename it"):
            read(f'{{"prompt": "a", "{key}": 1}}', format="jsonl")
        assert len(read(f'{{"prompt": "a", "{key}": 1}}')) == 2  # text is all that is printed
    assert len(read('{"prompt": "a", "logprobs": 1}', format="jsonl")) == 2
    with pytest.raises(ValueError, match="has the key 'logprobs'"):
        read('{"prompt": "a", "logprobs": 1}', format="jsonl", logprobs=2)
    for row, fault in [
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' comes twice"),
        ('{"prompt": "a", "x": {"y": 1, "y": 2}}', "the key 'y' comes twice"),
        ('{"prompt": "a", "x": NaN}', "NaN is no number there"),
        ('{"prompt": "a", "x": 1e999}', "1e999 is too large"),
        ("[" * 100_000, "it is nested too deep"),
        ("1" * 5000, "a number has thousands of digits"),
        ('{"prompt": "a"} {"prompt": "b"}', "Extra data at column 17"),
    ]:
        with pytest.raises(ValueError, match=f"p.jsonl, line 2 is not JSON: {fault}"):
            read(row, format="jsonl")


@pytest.mark.slow
def test_a_reader_that_leaves_and_ctrl_c_end_it_in_silence(run_folder):
    words = ("sample.py", f"--out_dir={run_folder}", "--device=cpu")
    words += ("--max_new_tokens=1000000", "--ignore_eot=true")
    leaving, interrupted = start(*words), start(*words)
    assert leaving.stdout.read(5) and interrupted.stdout.read(5)
    leaving.stdout.close()
    interrupted.send_signal(signal.SIGINT)
    assert leaving.wait(60) == 141 and interrupted.wait(60) == 130
    for process in (leaving, interrupted):
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_a_dialogue_continues_retries_and_changes_settings(run_folder):
    words = ("sample.py", f"--out_dir={run_folder}", "--device=cpu", "--interactive=true")
    words += ("--ignore_eot=true", "--max_new_tokens=5")
    process = start(*words, stdin=subprocess.PIPE)
    lines = (
        "abc",
        "",
        "/again",
        "/set temperature 0",
        "/set",
        "/set top_p 7",
        "é",
        "/nonsense",
        "/top_k 5",
    )
    lines += ("abc", "abc", "/quit")
    out, err = process.communicate("\n".join(lines) + "\n", timeout=120)
    answers = [answer for answer in out.split("> ")[1:] if answer]
    assert process.returncode == 0 and len(answers) >= 5
    for said in ("temperature=0.0", "top_p is 7.0", "U+00E9", "/again", "/set top_k VALUE"):
        assert said in err
    assert answers[-1] == answers[-2] or answers[-1] == ""  # greedy by then
