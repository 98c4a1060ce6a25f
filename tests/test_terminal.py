"""UTF-8 in and out under any locale; on a terminal, control characters are shown and not obeyed."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ONE_THREAD, arguments, loud_model

from lathe import ROOT
from lathe.run import checkpoint
from lathe.terminal import printable, visible
from lathe.text.tokenizer import load_tokenizer

TEXT = "日本語 naïve café, 🎉 e\u0301.\n"
ENVIRONMENTS = {
    "utf-8": {"LC_ALL": "C.UTF-8"},
    "c locale": {"LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "posix": {"LC_ALL": "POSIX"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "ascii in a c locale": {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii:strict",
    },
}


def run(environment: str, *words, folder=None, input: bytes = b"", code: int = 0):
    """A finished process of the project in that environment; its streams are bytes."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **ONE_THREAD, **ENVIRONMENTS[environment]},
        input=input,
        capture_output=True,
    )
    assert done.returncode == code, done.stderr.decode(errors="replace")
    assert b"encode" not in done.stderr and b"Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def bytes_run(tmp_path_factory) -> Path:
    """A checkpoint of an untrained model of bytes, which writes whatever comes."""
    tokenizer = load_tokenizer("byte")
    model = loud_model(tokenizer.vocab_size)
    state = {
        "step": 1,
        "samples": 1,
        "model": asdict(model.config),
        "settings": {},
        "val_loss": 2.5,
        "dataset": {"path": "data/bytes"},
        "tokenizer": {"name": "byte", "fingerprint": tokenizer.fingerprint},
    }
    folder = tmp_path_factory.mktemp("terminal") / "日本語"
    checkpoint.save(folder, model.state_dict(), {}, state, tokenizer)
    return folder


# -----------------------------------------------------------------------------
# UTF-8


def test_prepare_makes_the_same_of_names_and_texts_in_every_environment(tmp_path):
    folder = tmp_path / "naïve 日本語"
    folder.mkdir()
    (folder / "é.txt").write_text(TEXT * 20, encoding="utf-8")
    (folder / "🎉.jsonl").write_text(
        "".join(json.dumps({"text": f"{TEXT} {i}"}) + "\n" for i in range(30)), encoding="utf-8"
    )
    made = set()
    for number, environment in enumerate(ENVIRONMENTS):
        out = f"{number} 語"
        words = (str(ROOT / "prepare" / "text.py"), folder.name, f"--out={out}", "--tokenizer=char")
        done = run(environment, *words, folder=tmp_path)
        assert f"{out} is ready" in done.stderr.decode("utf-8")
        meta = (tmp_path / out / "meta.json").read_text(encoding="utf-8")
        made.add(meta.replace(out, "out"))
        shown = run(environment, str(ROOT / "prepare" / "verify.py"), out, folder=tmp_path).stdout
        made.add(shown.decode("utf-8").replace(out, "out"))
    assert len(made) == 2  # one meta.json, one page about it
    assert "日" in made.pop() or "日" in made.pop()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_sample_is_the_same_bytes_in_every_environment(bytes_run, tmp_path):
    (tmp_path / "ein Prömpt.txt").write_text(TEXT, encoding="utf-8")
    words = (str(ROOT / "sample.py"), f"--out_dir={bytes_run}", "--device=cpu")
    words += ("--max_new_tokens=40", "--ignore_eot=true")
    printed = set()
    for environment in ("utf-8", "c locale", "cp1252", "ascii"):
        of_word = run(environment, *words, f"--prompt={TEXT}", folder=tmp_path)
        of_file = run(
            environment,
            *words,
            "--prompt_file=ein Prömpt.txt",
            "--format=jsonl",
            folder=tmp_path,
        )
        row = json.loads(of_file.stdout)
        assert row["prompt"] == TEXT
        printed |= {of_word.stdout, f"{row['text']}\n".encode()}
    assert len(printed) == 1
    assert any(byte > 127 for byte in printed.pop())


@pytest.mark.exhaustive
@pytest.mark.slow
def test_every_command_ends_well_in_a_c_locale(tmp_path):
    (tmp_path / "日本.txt").write_text(TEXT * 300, encoding="utf-8")

    def do(script, *words):
        return run("ascii in a c locale", str(ROOT / script), *words, folder=tmp_path)

    do("prepare/text.py", "日本.txt", "--out=dätä", "--tokenizer=bpe:300")
    changes = dict(max_steps=2, eval_interval=2, sample_tokens=8, sample_prompt="日本語")
    do("train.py", *arguments("dätä", "öut", **changes))
    assert "日本語" in (tmp_path / "öut" / "settings.toml").read_text(encoding="utf-8")
    assert json.loads(do("evaluate.py", "--out_dir=öut").stdout)["dataset"] == "dätä"
    do("visualize.py", "run", "öut")
    pytest.importorskip("transformers")
    done = do("huggingface.py", "export", "--out_dir=öut", "--to=héf", "--verify")
    assert done.stdout == "héf\n".encode()


def test_a_prompt_that_is_not_utf_8_is_refused_and_a_name_is_not(tmp_path):
    latin = "caf\udce9"  # byte E9
    command = (str(ROOT / "sample.py"), f"--prompt={latin}")
    for environment in ("utf-8", "c locale"):
        refused = run(environment, *command, code=2).stderr.decode()
        assert "error: --prompt: not UTF-8 at byte 3 (e9)" in refused
        missing = run(environment, str(ROOT / "sample.py"), f"--out_dir=no {latin}", code=1)
        assert rb"no caf\xe9 does not exist" in missing.stderr
    assert missing.stderr.count(b"\n") == 1


# -----------------------------------------------------------------------------
# Terminals


class Terminal:
    def isatty(self) -> bool:
        return True


class Pipe:
    def isatty(self) -> bool:
        return False


@given(st.text(st.characters()))
def test_a_terminal_gets_nothing_to_obey_and_a_pipe_gets_all(text):
    shown = visible(text, Terminal())
    controls = [c for c in shown if (ord(c) < 32 or 127 <= ord(c) < 160) and c not in "\t\n"]
    assert not controls
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    shown.encode()  # no half surrogates
    assert visible(text, Pipe()) == text
    # Character by character as at once: a sequence that comes in pieces is broken, too.
    assert "".join(visible(char, Terminal()) for char in text) == shown


def test_what_can_be_read_stays_as_it_is():
    text = "naïve\t日本語 🏳️‍🌈 שלום עולם \u200fمرحبا e\u0301\n"
    assert visible(text, Terminal()) == text
    assert visible("\x1b[2J\x9b31m\r\x07\x7f\u202e", Terminal()) == (
        r"\x1b[2J\x9b31m\r\x07\x7f\u202e"
    )
    assert printable("a\nb\udce9 \u200b") == r"a\nb\xe9 \u200b"


def on_terminal(
    words: list[str], folder: Path, typed: bytes = b"", code: int = 0, **environment: str
) -> bytes:
    """What a process prints where stdin, stdout and stderr are a terminal. typed: at its prompt."""
    pty = pytest.importorskip("pty")
    tty = pytest.importorskip("tty")
    parent, child = pty.openpty()
    tty.setraw(child)  # nothing is changed on its way
    termios = pytest.importorskip("termios")
    termios.tcsetwinsize(child, (40, 200))  # without a size there is no bar
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **ONE_THREAD, "TERM": "dumb", **environment},
        stdin=child,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    printed = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # the last process that had it open has ended
            break
        if not piece:
            break
        printed += piece
        if typed and printed.endswith(b"> "):
            os.write(parent, typed)
            typed = b""
    os.close(parent)
    assert process.wait() == code, printed
    return printed


@pytest.mark.slow
def test_generated_control_characters_are_shown_on_a_terminal_alone(bytes_run, tmp_path):
    words = [str(ROOT / "sample.py"), f"--out_dir={bytes_run}", "--device=cpu"]
    words += ["--max_new_tokens=400", "--ignore_eot=true", "--prompt=\x1b]0;title\x07", "--seed=3"]
    piped = run("utf-8", *words).stdout.decode()
    assert "\x1b" in piped or "\x07" in piped or "\x0c" in piped  # the model does write some
    shown = on_terminal(words, tmp_path).decode()
    assert visible(piped, Terminal()) in shown
    assert r"\x1b]0;title\x07" in shown  # the prompt, which a terminal sees, too
    assert visible(shown, Terminal()) == shown


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["utf-8", "c locale"])
def test_what_is_typed_is_utf_8(environment, bytes_run, tmp_path):
    words = [str(ROOT / "sample.py"), f"--out_dir={bytes_run}", "--device=cpu"]
    words += ["--max_new_tokens=40", "--ignore_eot=true", "--temperature=0"]
    expected = run("utf-8", *words, "--prompt=日本é").stdout.decode()
    typed = "日本é\n/quit\n".encode()
    shown = on_terminal(
        [*words, "--interactive"], tmp_path, typed, **ENVIRONMENTS[environment]
    ).decode()
    assert visible(expected, Terminal()) in shown


def test_names_of_files_are_shown_on_a_terminal(tmp_path):
    (tmp_path / "\x1b[2Ja.txt").write_text("some text " * 50)
    words = [str(ROOT / "prepare" / "text.py"), "--input", "\x1b[2Ja.txt", "--out=\x9bout"]
    shown = on_terminal([*words, "--tokenizer=byte"], tmp_path).decode()
    assert r"\x9bout is ready" in shown
    shown = shown.replace("\r", "")  # where a slow machine shows a bar
    assert visible(shown, Terminal()) == shown


TITLE = "\x1b]0;title\x07"  # a terminal that obeys has another title
CLEAR = "\x9b2J"  # and is cleared


@pytest.mark.slow
@pytest.mark.parametrize("terminal", ["dumb", "xterm"])  # without and with a bar
def test_training_shows_what_is_in_samples_and_names_on_a_terminal(dataset, tmp_path, terminal):
    asked = dict(max_steps=4, eval_interval=2, sample_tokens=60, num_samples=2)
    words = [str(ROOT / "train.py"), *arguments(dataset, tmp_path / f"{CLEAR}run", **asked)]
    words.append(f"--sample_prompt={TITLE}{CLEAR}")
    shown = on_terminal(words, tmp_path, TERM=terminal, TQDM_MININTERVAL="0").decode()
    assert r"\x1b]0;title\x07\x9b2J" in shown  # the samples
    assert r"\x9b2Jrun" in shown  # where to go on
    assert ("\r" in shown) == (terminal == "xterm")
    shown = shown.replace("\r", "").replace("\x1b[A", "")  # of one bar, and of one below another
    assert visible(shown, Terminal()) == shown


@pytest.mark.parametrize(
    "words", [["--tokenizer=byte"], ["--tokenizer=char"], ["--tokenizer=bpe:300"]]
)
def test_verify_shows_what_is_in_data_and_names_on_a_terminal(words, tmp_path):
    name = f"{CLEAR}a.jsonl"
    rows = [{"text": f"{TITLE}{CLEAR} some text {i}"} for i in range(50)]
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare = str(ROOT / "prepare" / "text.py")
    out = f"{CLEAR}out"
    run("utf-8", prepare, "--input", name, f"--out={out}", *words, folder=tmp_path)
    shown = on_terminal([str(ROOT / "prepare" / "verify.py"), out], tmp_path).decode()
    assert r"\x9b2Jout" in shown and r"\x1b]0;title\x07" in shown
    assert visible(shown, Terminal()) == shown


@pytest.mark.parametrize(
    "words, code",
    [
        (["train.py", f"--dataset={CLEAR}{TITLE}", "--device=cpu"], 1),
        (["train.py", f"{CLEAR}{TITLE}.toml"], 2),
        (["train.py", f"--{CLEAR}{TITLE}=1"], 2),
        (["train.py", f"--dtype={CLEAR}{TITLE}"], 2),
        (["sample.py", f"--out_dir={CLEAR}{TITLE}"], 1),
        (["evaluate.py", f"--out_dir={CLEAR}{TITLE}"], 1),
        (["huggingface.py", "export", f"--out_dir={CLEAR}{TITLE}", "--to=x"], 1),
        (["visualize.py", "run", f"{CLEAR}{TITLE}"], 1),
        (["visualize.py", f"{CLEAR}{TITLE}"], 2),
        (["prepare/verify.py", f"{CLEAR}{TITLE}"], 1),
        (["prepare/text.py", "--input", f"{CLEAR}{TITLE}", "--out=x"], 1),
    ],
)
def test_mistakes_are_shown_on_a_terminal(words, code, tmp_path):
    script, *rest = words
    shown = on_terminal([str(ROOT / script), *rest], tmp_path, code=code).decode()
    assert r"\x9b2J" in shown and "title" in shown
    assert visible(shown, Terminal()) == shown


def test_nothing_prints_beside_the_two_functions_that_do():
    files = [
        *ROOT.glob("*.py"),
        *(f for d in ("lathe", "pages", "prepare") for f in (ROOT / d).rglob("*.py")),
    ]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                assert file.name == "terminal.py", f"{file}:{node.lineno}"
