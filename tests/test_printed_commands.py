"""Every command that an output prints works as printed, in the state in which it was printed.

Here the first hour goes by: each command that is printed is collected, and given as it is.
"""

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import ONE_THREAD, ROOT, make_dataset

import train
from lathe.terminal import fit
from prepare import examples

exhaustive = pytest.mark.exhaustive
pytestmark = pytest.mark.usefixtures("one_thread")

# Appended to commands that train: less of the same, so that it is over soon.
LESS = ["--max_steps=4", "--eval_interval=2", "--eval_tokens=64", "--sample_tokens=4"]
SMALL = [*LESS, "--n_layer=1", "--n_embd=16", "--batch_size=2", "--block_size=16"]
OPENING = re.compile(r"(?:\S*/)?(?:python[\d.]*|torchrun)(?= +\S*\.py)")
SENTENCE = "The quick brown fox jumps over the lazy dog. "


def commands_in(text: str) -> list[list[str]]:
    """The words of each command in what was printed, in a line of its own or in a sentence."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        begin = OPENING.search(line)
        if begin is not None:
            commands.append(shlex.split(line[begin.start() :]))
    return commands


class Session:
    """Somebody at a shell who types what is printed."""

    def __init__(self, capsys: pytest.CaptureFixture):
        self.capsys = capsys

    def type(self, script: str, *words: str) -> list[list[str]]:
        """Runs python SCRIPT WORDS; the commands that it prints."""
        return self.run([sys.executable, str(ROOT / script), *map(str, words)])

    def run(self, words: list[str], more: list[str] | None = None) -> list[list[str]]:
        """Runs a command as it was printed, or with `more` behind it; the commands that it prints."""
        python, script, *rest = words
        assert os.path.samefile(python, sys.executable), python
        path = Path(script).resolve().relative_to(ROOT)
        module = importlib.import_module(".".join(path.with_suffix("").parts))
        assert module.main([*rest, *(more or [])]) in (0, None), words
        printed = self.capsys.readouterr()
        return commands_in(printed.err + printed.out)


@pytest.fixture
def session(tmp_path, monkeypatch, capsys) -> Session:
    """In an empty folder, in an environment that is not activated."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return Session(capsys)


def scripts(commands: list[list[str]]) -> list[str]:
    return [Path(words[1]).name for words in commands]


def after_make_run(session: Session):
    """A run of other data in the folder that bare train.py writes to."""
    other = make_dataset(Path("data/other"))
    session.type("train.py", f"--dataset={other}", *SMALL)
    assert Path("out/quickstart/checkpoints").is_dir()


@pytest.mark.parametrize(
    "tokenizer", ["char", *(pytest.param(t, marks=exhaustive) for t in ("byte", "bpe:300"))]
)
def test_what_prepare_prints_trains_and_what_that_prints_works(tokenizer, session):
    after_make_run(session)
    Path("my text.txt").write_text(SENTENCE * 40)
    prepare = ["prepare/text.py", "--input", "my text.txt", "--out", "data/my text"]
    prepare += ["--tokenizer", tokenizer]
    (trains,) = session.type(*prepare)
    (again,) = session.type(*prepare)  # up to date: the same word on how to go on
    assert trains == again
    printed = session.run(trains, SMALL)
    assert scripts(printed) == ["sample.py", "evaluate.py", "train.py"]
    for words in printed[:2]:
        assert session.run(words) == []
    resumed = session.run(printed[2])
    assert scripts(resumed) == ["sample.py", "evaluate.py", "train.py"]
    for words in resumed:
        session.run(words)
    (another,) = session.type(
        "prepare/text.py",
        "--input",
        "my text.txt",
        "--out",
        "data/my text",
        "--tokenizer",
        tokenizer,
    )
    assert another != trains  # its folder is taken by now
    session.run(another, SMALL)


@exhaustive
def test_what_a_run_by_minutes_prints_works(session):
    """As prepare prints it, but for a few seconds in place of minutes."""
    Path("notes.txt").write_text(SENTENCE * 40)
    asked = ["--input", "notes.txt", "--out", "data/notes", "--tokenizer", "char"]
    (trains,) = session.type("prepare/text.py", *asked)
    printed = session.run(trains, ["--minutes=0.1", "--sample_tokens=4"])
    assert scripts(printed) == ["sample.py", "evaluate.py", "train.py"]
    assert "--minutes=0.2" in printed[2]
    for words in printed:
        session.run(words)


@pytest.mark.parametrize("n_words", [1, 30])
def test_what_prepare_prints_for_a_small_text_trains(n_words, session):
    Path("notes.txt").write_text("a few words " * n_words)
    asked = ["--input", "notes.txt", "--out", "data/notes", "--tokenizer", "byte"]
    (trains,) = session.type("prepare/text.py", *asked, "--val_fraction", "0.3")
    session.run(trains, [*LESS, "--n_layer=1", "--n_embd=16", "--batch_size=2"])


def test_what_prepare_prints_for_pairs_goes_on_from_the_run_whose_tokenizer_they_have(session):
    after_make_run(session)
    rows = [f'{{"prompt": "say {i}", "completion": "{i}, {i}"}}\n' for i in range(60)]
    Path("pairs.jsonl").write_text("".join(rows))
    for tokenizer, template in (("out/quickstart", "chat"), ("byte", "plain")):
        out = f"data/{template}"
        asked = ["--input", "pairs.jsonl", "--out", out, "--tokenizer", tokenizer]
        (trains,) = session.type("prepare/pairs.py", *asked, "--template", template)
        starts_from_run = "--init_from=out/quickstart" in trains
        assert starts_from_run == (template == "chat")
        printed = session.run(trains, LESS if starts_from_run else SMALL)
        assert len(printed) == 3
        for words in printed:
            session.run(words)


def test_what_a_stopped_run_prints_goes_on_with_it(session, monkeypatch):
    data = make_dataset(Path("data/other"))
    set_lr: Callable = train.set_lr

    def stop_in_step_3(run: train.Run) -> float:
        if run.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return set_lr(run)

    words = [f"--dataset={data}", "--out_dir=out/it's mine", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(train, "set_lr", stop_in_step_3)
        assert train.main(words) == 130
    err = session.capsys.readouterr().err
    (go_on,) = commands_in(err)
    assert err.rstrip().splitlines()[-1].endswith("--init_from=resume")  # is the last thing seen
    printed = session.run(go_on)
    assert len(printed) == 3
    for words in printed:
        session.run(words)


def test_what_other_commands_print_works(session):
    after_make_run(session)
    for script, words in (
        ("evaluate.py", ["--out_dir=out/quickstart"]),
        ("sample.py", ["--out_dir=out/quickstart", "--max_new_tokens=4"]),
        ("huggingface.py", ["export", "--out_dir=out/quickstart", "--to=out/exported"]),
        ("visualize.py", ["run", "out/quickstart"]),
        ("visualize.py", ["model", "--out_dir=out/quickstart", "--prompt=the cat"]),
        ("prepare/verify.py", ["data/other"]),
        ("train.py", [f"--dataset={Path('data/other')}", "--dry_run", *SMALL]),
    ):
        for printed in session.type(script, *words):
            session.run(printed)


def test_the_dataset_of_a_preset_is_trained_by_it(session, monkeypatch):
    """prepare/examples.py: the preset has what the task needs, bare train.py's settings have not."""
    monkeypatch.setattr("prepare.examples.TEST_ITEMS", 20)
    small = replace(examples.TASKS["reverse"], train_items=400)
    monkeypatch.setitem(examples.TASKS, "reverse", small)
    (trains,) = session.type("prepare/examples.py", "reverse")
    assert trains[2:] == [str(ROOT / "config" / "example_reverse.toml")]
    assert len(session.run(trains, LESS)) == 3


def test_a_command_broken_to_fit_a_terminal_is_the_same_command(monkeypatch):
    words = ["/a/b/python", "train.py", "--out_dir=it's mine", "--prompt=two  words", "--x=1"]
    line = "next:\n  " + " ".join(map(shlex.quote, words))
    for columns in (20, 40, 60, 200):
        monkeypatch.setattr("lathe.terminal.columns_of", lambda stream, n=columns: n)
        assert commands_in(fit(line, sys.stderr)) == [words]


@pytest.mark.slow
def test_a_printed_command_works_in_a_shell(session, tmp_path):
    """As it is printed, with an environment that is not activated."""
    data = make_dataset(Path("data/other"))
    assert train.main([f"--dataset={data}", "--out_dir=out/a run", *SMALL]) == 0
    said = session.capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "evaluate.py" in line]
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, capture_output=True, env=os.environ | ONE_THREAD
    )
    assert done.returncode == 0 and b'"loss"' in done.stdout, done.stderr
