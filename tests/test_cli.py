"""Promises of lathe/cli.py: presets and a command line in one way, one line for a mistake."""

import os
import random
import re
import string
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_type_hints

import pytest

import evaluate
import huggingface
from lathe import ROOT
from lathe.aliases import ALIASES
from lathe.cli import parse, run, to_toml
from lathe.corpus.options import Options
from lathe.fields import PathName, read_comments
from lathe.settings import Settings
from pages.options import ModelOptions, RunOptions
from prepare import examples, pairs, python_stdlib, shakespeare_char, verify
from sample import Options as SampleOptions

NAMES = [f.name for f in fields(Settings)]


def train(*argv):
    return parse(Settings, list(argv), prog="train.py", presets=True)


def command(script, *argv, **environment):
    """A real process that runs `script` with lathe importable."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    arguments = [sys.executable, "-c", script, *argv]
    return subprocess.run(
        arguments, capture_output=True, encoding="utf-8", env=environment, cwd=ROOT, timeout=60
    )


IMPORTS = """
import sys
from lathe import cli
from lathe.settings import Settings
"""
TRAIN = IMPORTS + "cli.parse(Settings, prog='train.py', presets=True)"


def program(body: str) -> str:
    """A command whose main() does this."""
    return IMPORTS + f"def main():\n    {body}\ncli.run(main)\n"


@pytest.fixture
def mistake(capsys):
    """mistake(*argv) is the one line that a wrong command line prints before it exits with 2."""

    def line(*argv, parse=train):
        with pytest.raises(SystemExit) as exit:
            parse(*argv)
        printed = capsys.readouterr()
        assert exit.value.code == 2
        assert printed.out == ""
        assert printed.err.endswith("\n") and len(printed.err.splitlines()) == 1, printed.err
        assert printed.err.startswith("train.py: error: ")
        return printed.err.strip()

    return line


# -----------------------------------------------------------------------------
# What is understood


@pytest.mark.parametrize(
    "argv, name, value",
    [
        (["--n_layer=3"], "n_layer", 3),
        (["--n_layer", "3"], "n_layer", 3),
        (["--n-layer=3"], "n_layer", 3),
        (["--max_steps=1e3"], "max_steps", 1000),
        (["--max_steps", "2.0"], "max_steps", 2),
        (["--seed=1e16"], "seed", 10**16),
        (["--seed=9007199254740993"], "seed", 9007199254740993),
        (["--learning_rate", "1e-3"], "learning_rate", 1e-3),
        (["--learning_rate=1"], "learning_rate", 1.0),
        (["--sample_prompt=a=b"], "sample_prompt", "a=b"),
        (["--sample_prompt", "two words"], "sample_prompt", "two words"),
        (["--sample_prompt="], "sample_prompt", ""),
        (["--sample_prompt", ""], "sample_prompt", ""),
        (["--sample_prompt=--bias"], "sample_prompt", "--bias"),
        (["--sample_prompt", "-1"], "sample_prompt", "-1"),
        (["--sample_prompt=None"], "sample_prompt", "None"),
        (["--wandb_log"], "wandb_log", True),
        (["--wandb_log", "--n_layer=3"], "wandb_log", True),
        (["--optimizer=adamw"], "optimizer", "adamw"),
        (["--n_layer=3", "--n_layer=5"], "n_layer", 5),
        *[([f"--bias={word}"], "bias", True) for word in ("true", "True", "TRUE", "1", "yes")],
        *[(["--qk_norm", word], "qk_norm", False) for word in ("false", "False", "0", "no", "NO")],
        *[([f"--compile={word}"], "compile", "true") for word in ("true", "True", "1")],
        *[([f"--compile={word}"], "compile", "false") for word in ("false", "False", "0")],
    ],
)
def test_a_setting_may_be_spelled_in_any_usual_way(argv, name, value):
    parsed = getattr(train(*argv), name)
    assert parsed == value and type(parsed) is type(value)


def test_no_arguments_give_the_defaults():
    assert train() == Settings()


def test_a_setting_that_was_not_given_keeps_its_default():
    assert train("--n_layer=3", "--bias") == replace(Settings(), n_layer=3, bias=True)


def test_presets_apply_in_order_and_before_the_command_line(tmp_path):
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(
        "n_layer = 1\nn_head = 1\nn_embd = 64\nmax_steps = 1e2\ncompile = false\nbias = true\n"
    )
    two.write_text("n_head = 2\nn_embd = 128\n")
    settings = train(str(one), str(two), "--n_embd=256")
    assert (settings.n_layer, settings.n_head, settings.n_embd) == (1, 2, 256)
    assert (settings.max_steps, settings.compile, settings.bias) == (100, "false", True)
    assert train("--n_embd=256", str(one)).n_embd == 256


def test_a_bare_flag_leaves_the_preset_after_it_alone(tmp_path):
    (tmp_path / "one.toml").write_text("n_layer = 1\n")
    settings = train("--bias", str(tmp_path / "one.toml"))
    assert settings.bias and settings.n_layer == 1


def test_a_preset_with_a_byte_order_mark_loads(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfn_layer = 2\r\n")
    assert train(str(tmp_path / "bom.toml")).n_layer == 2


# -----------------------------------------------------------------------------
# What is refused, and how


def edits(name):
    """All names at one deletion, insertion, substitution or transposition from `name`."""
    letters = string.ascii_lowercase + string.digits + "_"
    cuts = [(name[:i], name[i:]) for i in range(len(name) + 1)]
    typos = {a + b[1:] for a, b in cuts if b} | {a + c + b for a, b in cuts for c in letters}
    typos |= {a + c + b[1:] for a, b in cuts if b for c in letters}
    typos |= {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    return sorted(typos - set(NAMES) - set(ALIASES))


TYPOS = [(name, typo) for name in NAMES for typo in edits(name)]


def test_typos_on_the_command_line_are_answered_with_the_right_name(mistake):
    sample = random.Random(1).sample(TYPOS, 150)
    right = [
        name in re.findall(r"--(\w+)", mistake(f"--{typo}=1").partition(";")[2])
        for name, typo in sample
    ]
    assert sum(right) >= 0.95 * len(sample)


def test_typos_in_a_preset_are_answered_with_the_file_and_the_right_name(mistake, tmp_path):
    preset, sample, right = tmp_path / "mine.toml", random.Random(2).sample(TYPOS, 100), 0
    for name, typo in sample:
        preset.write_text(f"n_layer = 2\n{typo} = 1\n")
        line = mistake(str(preset))
        assert f"{preset}: unknown setting {typo};" in line
        right += name in re.findall(r"\w+", line.partition(";")[2])
    assert right >= 0.95 * len(sample)


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("max_iters", "--max_steps"),
        ("gradient_accumulation_steps", "--batch_size and --micro_batch_size"),
        ("eval_iters", "--eval_tokens"),
        ("start", "sample.py --prompt"),
        ("lr", "--learning_rate"),
        ("bs", "--batch_size"),
        ("lr_decay_iters", "--decay_fraction"),
        ("min_lr", "--min_lr_fraction"),
        ("warmup_iters", "--warmup_steps"),
        ("decay_lr", "--lr_schedule"),
        ("always_save_checkpoint", "--checkpoint_interval and --keep_checkpoints"),
        ("eval_only", "evaluate.py"),
        ("backend", "--device and --parallel"),
        ("num_layers", "--n_layer"),
        ("hidden_size", "--n_embd"),
        ("context_length", "--block_size"),
        ("max_itres", "--max_steps"),
        ("temperature", "sample.py --temperature"),
        ("no_qk_norm", "--qk_norm=false"),
        ("N_LAYER", "--n_layer"),
        ("beta", "--beta1 or --beta2"),
    ],
)
def test_names_of_other_trainers_are_answered_with_ours(mistake, typed, meant):
    assert f"did you mean {meant}?" in mistake(f"--{typed}=1")


@dataclass
class Sampling:
    """A command with fewer settings than training has."""

    # --- text
    prompt: str = ""  # text to go on from
    stop: list[str] = field(default_factory=list)  # end where one of these appears
    stop_ids: list[int] = field(default_factory=list)  # or one of these
    input: list[str] = field(default_factory=lambda: ["-"])  # files, - for standard input
    top_k: int = 0  # 0 = all
    temperature: float = 1.0  # 0 = greedy
    stream: bool = True  # print as it comes
    format: Literal["text", "jsonl"] = "text"  # of what is printed


def sample(*argv):
    return parse(Sampling, list(argv), prog="train.py")


def test_a_hint_names_only_what_the_command_has_or_the_command_that_has_it(mistake):
    assert mistake("--start=x", parse=sample).endswith("did you mean --prompt?")
    assert mistake("--temp=0.5", parse=sample).endswith("did you mean --temperature?")
    assert mistake("--max_iters=3", parse=sample).endswith("did you mean train.py --max_steps?")
    assert mistake("--n_layer=3", parse=sample).endswith("did you mean train.py --n_layer?")


@pytest.mark.parametrize(
    "argv, values",
    [
        (["--input", "a", "-", "b"], ["a", "-", "b"]),
        (["--input=a", "--input=b c"], ["a", "b c"]),
        (["--input", "a", "-5", "--top_k=3"], ["a", "-5"]),
        (["--input=--x", "--input="], ["--x", ""]),
        ([], ["-"]),
    ],
)
def test_a_list_takes_several_values_in_either_way(argv, values):
    assert sample(*argv).input == values


def test_every_item_of_a_list_is_converted(mistake):
    assert sample("--stop_ids", "1", "2e1", "--stop_ids=-3").stop_ids == [1, 20, -3]
    line = mistake("--stop_ids", "1", "x", parse=sample)
    assert "--stop_ids: 'x' is not a whole number (help: or one of these)" in line


def test_lists_and_quotes_survive_as_a_preset(tmp_path):
    settings = Sampling(stop=["\n\n", 'say "x"'], prompt="a # b")
    (tmp_path / "s.toml").write_text(to_toml(settings), encoding="utf-8")
    assert parse(Sampling, [str(tmp_path / "s.toml")], presets=True) == settings


def test_bare_words_are_the_values_of_the_positional_setting(mistake):
    assert parse(Sampling, ["a", "--top_k=3", "-"], positional="input").input == ["a", "-"]
    assert "unexpected argument 'a'" in mistake("a", parse=sample)


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--n_layer=abc"], "--n_layer: 'abc' is not a whole number (help: transformer blocks)"),
        (["--n_layer=1.5"], "'1.5' is not a whole number"),
        (["--n_layer=1e-1"], "'1e-1' is not a whole number"),
        (["--n_layer="], "'' is not a whole number"),
        (["--learning_rate=fast"], "'fast' is not a number"),
        (["--bias=maybe"], "'maybe' is not true or false"),
        (["--dtype=bfloat61"], "one of auto, float32, bfloat16, float16; did you mean bfloat16?"),
        (["--compile=perhaps"], "one of auto, true, false"),
        (["--sample_prompt=ok", "--n_head", "x\ny"], r"--n_head: 'x\ny' is not a whole number"),
        (["--seed"], "--seed needs a value"),
        (["--seed", "--bias"], "--seed needs a value"),
        (["--batch=3"], "unknown setting --batch; did you mean --batch_size?"),
        (["--n_lay\x1b[31mer=3"], r"--n_lay\x1b[31mer"),
        (["-n_layer=3"], "settings are written --name=value"),
        (["n_layer=3"], "settings are written --name=value"),
        (["--n_layer=0"], "--n_layer: n_layer is 0; it must be at least 1"),
        (["--learning_rate=nan"], "--learning_rate: learning_rate is nan"),
        (["--weight_decay=-2"], "weight_decay is -2.0"),
        (["--max_steps=1e30"], "max_steps is 1"),
        (["--dropout=1.5"], "dropout is 1.5; it must be at least 0 and below 1"),
    ],
)
def test_a_wrong_value_names_setting_value_and_what_is_expected(mistake, argv, said):
    assert said in mistake(*argv)


@pytest.mark.parametrize(
    "text, said",
    [
        ("n_layer = 'x'", "n_layer: 'x' is not a whole number (help: transformer blocks)"),
        ("n_layer = true", "n_layer: 'True' is not a whole number"),
        ("bias = 3", "bias: '3' is not true or false"),
        ("dtype = 'fp8'", "dtype: 'fp8' is not one of"),
        ("n_layer = 0", "n_layer: n_layer is 0; it must be at least 1"),
        ("n_layer = [1, 2]", "n_layer is a table or a list"),
        ("[dtype]\na = 1", "dtype is a table or a list"),
        ("n_layer 3", "not a TOML file"),
        ("max_iters = 3", "unknown setting max_iters; did you mean max_steps?"),
        ("lr = 1e-3", "unknown setting lr; did you mean learning_rate?"),
        ("start = 'x'", "unknown setting start; did you mean sample.py --prompt?"),
    ],
)
def test_a_mistake_in_a_preset_names_the_file(mistake, tmp_path, text, said):
    (tmp_path / "mine.toml").write_text(text)
    assert f"{tmp_path / 'mine.toml'}: {said}" in mistake(str(tmp_path / "mine.toml"))


def test_a_preset_that_does_not_exist_is_answered_with_those_that_do(mistake):
    line = mistake("config/nope.toml")
    assert "no preset 'config/nope.toml'" in line
    for path in (ROOT / "config").glob("*.toml"):
        assert path.stem in line


def test_a_preset_that_is_not_text_is_one_line(mistake, tmp_path):
    (tmp_path / "bad.toml").write_bytes(b"n_layer = \xff\n")
    assert "bad.toml: not a TOML file" in mistake(str(tmp_path / "bad.toml"))


# -----------------------------------------------------------------------------
# The commands as processes


def test_help_shows_every_setting_with_type_default_and_help_as_plain_text():
    done = command(TRAIN, "--help", FORCE_COLOR="1", TERM="xterm", COLUMNS="100")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: train.py [PRESET.toml ...] [--name=value ...]\n")
    assert "\x1b" not in done.stdout
    shown = " ".join(done.stdout.split())
    for name, comment in read_comments(Settings).items():
        kind = r"(STR|INT|FLOAT|PATH|PATH \.\.\.|STR \.\.\.|{[\w,]+})"
        pattern = rf"--{name} {kind} {re.escape(comment.help)} \(default: "
        assert re.search(pattern, shown), name


@pytest.mark.parametrize("columns, most", [("", 80), ("20", 60), ("80", 80), ("120", 120)])
def test_help_is_as_wide_as_the_terminal(columns, most):
    lines = command(TRAIN, "--help", COLUMNS=columns).stdout.splitlines()
    assert most - 10 < max(len(line) for line in lines) <= most


def test_help_stands_beside_a_setting_or_above_it(capsys):
    @dataclass
    class Letter:
        # --- address
        # where it goes,
        # by post
        to: str = ""
        # not this
        post_code: int = 0  # 5 digits, "# 7" for abroad
        # --- text
        lines: list[int] = field(default_factory=lambda: [1, 2])  # numbers of lines

    @dataclass
    class Draft(Letter):
        lines: list[int] = field(default_factory=list)  # those that are kept

    found = {name: (c.help, c.section) for name, c in read_comments(Letter).items()}
    assert found == {
        "to": ("where it goes, by post", "address"),
        "post_code": ('5 digits, "# 7" for abroad', "address"),
        "lines": ("numbers of lines", "text"),
    }
    assert read_comments(Draft)["to"] == read_comments(Letter)["to"]
    assert read_comments(Draft)["lines"].help == "those that are kept"
    assert read_comments(Draft)["lines"].section == "text"


def test_help_of_a_command_without_sections_is_one_box(capsys):
    @dataclass
    class Plain:
        to: str = ""  # folder to write, 100% of it
        seed: int = 1  # of the choices

    with pytest.raises(SystemExit) as exit:
        parse(Plain, ["--help"], prog="x.py", description="Does x.")
    shown = capsys.readouterr().out
    assert exit.value.code == 0 and shown.startswith(
        "usage: x.py [--name=value ...]\n\nDoes x.\n\n"
    )
    assert (
        "--to STR" in shown
        and "folder to write, 100% of it (default: '')" in shown
        and shown.count("options") == 1
    )


def test_help_imports_nothing_beside_the_standard_library():
    """So that it is there at once: torch takes seconds."""
    modules = "print(*{name.partition('.')[0] for name in sys.modules})"
    bare = set(command("import sys\n" + modules).stdout.split())
    show = IMPORTS + "try: cli.parse(Settings, ['--help'])\nexcept SystemExit: pass\n"
    imported = set(command(show + modules).stdout.splitlines()[-1].split())
    assert imported - bare - set(sys.stdlib_module_names) == {"lathe"}


@pytest.mark.parametrize("rank, lines", [("0", 1), ("1", 0)])
def test_under_torchrun_only_rank_0_prints_a_mistake(rank, lines):
    done = command(TRAIN, "--n_layre=3", RANK=rank, WORLD_SIZE="2")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == lines and done.stdout == ""


@pytest.mark.parametrize(
    "body, code, stderr",
    [
        (
            "raise ValueError('dataset is empty;\\n  make one')",
            1,
            "-c: error: dataset is empty; make one\n",
        ),
        ("open('/no/such/file')", 1, "-c: error: /no/such/file: No such file or directory\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("return 3", 3, ""),
        ("return None", 0, ""),
        ("sys.exit(5)", 5, ""),
    ],
)
def test_run_turns_the_end_of_main_into_one_line_and_an_exit_code(body, code, stderr):
    done = command(program(body))
    assert (done.returncode, done.stderr) == (code, stderr)


def test_run_shows_the_traceback_of_a_bug_and_of_a_mistake_on_request():
    bug = command(program("1 / 0"))
    assert bug.returncode == 1 and "Traceback" in bug.stderr
    mistake = program("raise ValueError('x')")
    assert "Traceback" in command(mistake, LATHE_TRACEBACK="1").stderr
    assert "Traceback" not in command(mistake).stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "body, first",
    [("for k in range(10**6): print(k)", "0"), ("cli.parse(Settings, ['--help'])", "usage:")],
)
def test_a_closed_pipe_ends_a_command_without_a_word(body, first):
    pipe = f'"{sys.executable}" -c "{program(body)}" | head -c 10'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        pipe, shell=True, capture_output=True, encoding="utf-8", env=environment, timeout=60
    )
    assert done.stdout.startswith(first) and done.stderr == ""


@pytest.mark.slow
def test_a_rank_that_fails_alone_is_heard():
    done = command(program("raise ValueError('disk full')"), RANK="2")
    assert done.returncode == 1 and done.stderr == "-c: rank 2: error: disk full\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake, said", [("--n_layre=3", "did you mean --n_layer?"), ("--n_layer=3", "no such data")]
)
def test_a_mistake_that_all_ranks_share_is_printed_once_under_torchrun(tmp_path, mistake, said):
    script = tmp_path / "train.py"
    script.write_text(program("cli.parse(Settings); raise ValueError('no such data')"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [*torchrun, str(script), mistake]
    done = subprocess.run(
        arguments, capture_output=True, encoding="utf-8", env=environment, cwd=tmp_path, timeout=120
    )
    assert done.returncode != 0
    assert done.stderr.count(said) == 1
    assert done.stderr.count("train.py: error:") == 1


# -----------------------------------------------------------------------------
# Names of files


@dataclass
class Paths:
    """Options that are paths, and one that is not."""

    out: PathName = ""  # a folder
    input: list[PathName] = field(default_factory=list)  # files
    text: str = ""  # no path


def test_the_home_folder_is_meant_wherever_a_path_may_begin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    for given, meant in {
        "~": "/home/me",
        "~/data": "/home/me/data",
        "hf:~/gpt2": "hf:/home/me/gpt2",
        "raw:~/t:~/data": "raw:/home/me/t:/home/me/data",
        "~/a:0.7,~/b:0.3": "/home/me/a:0.7,/home/me/b:0.3",
        "exact_match:~/a b.jsonl": "exact_match:/home/me/a b.jsonl",
        "~nobody-of-this-name/x": "~nobody-of-this-name/x",
        "a~/b": "a~/b",
        "https://host/~me/a.txt": "https://host/~me/a.txt",
    }.items():
        assert parse(Paths, [f"--out={given}"]).out == meant
        assert parse(Paths, ["--input", "x", given]).input == ["x", meant]
        assert parse(Paths, [f"--text={given}"]).text == given
    (tmp_path / "~").mkdir()
    assert parse(Paths, ["--out=~"]).out == "./~"  # there is such a folder


def test_every_path_of_every_command_may_begin_at_home():
    """By the words of the help: who adds an option for a file or folder gives it the type."""
    for cls in (
        Settings,
        SampleOptions,
        evaluate.Options,
        huggingface.Options,
        Options,
        pairs.Options,
        examples.Options,
        python_stdlib.Options,
        shakespeare_char.Options,
        verify.Options,
        RunOptions,
        ModelOptions,
    ):
        types = get_type_hints(cls)
        for name, comment in read_comments(cls).items():
            is_path = re.search(r"\b(folders?|files?|page to write|FILE|NAME)\b", comment.help)
            if is_path and types[name] not in (int, bool, float):
                assert types[name] in (PathName, list[PathName]) or name in NO_PATHS, (cls, name)


NO_PATHS = ("format", "field", "prompt_field", "completion_field")


def test_a_name_that_is_no_utf_8_is_a_path_and_no_text(mistake, tmp_path):
    latin = os.fsdecode(b"caf\xe9")
    assert parse(Paths, [f"--out={latin}"]).out == latin
    path = tmp_path / "settings.toml"
    path.write_text(to_toml(Paths(out=latin, input=[latin, "b"])), encoding="utf-8")
    assert parse(Paths, [str(path)], presets=True) == Paths(out=latin, input=[latin, "b"])
    assert "--sample_prompt: not UTF-8 at byte 5 (e9)" in mistake(f"--sample_prompt=\u00fc{latin}")


@pytest.mark.parametrize("said", ["", "1 GB is more than there is"])
def test_missing_memory_is_one_line(said, capsys):
    def main():
        raise MemoryError(said)

    with pytest.raises(SystemExit) as end:
        run(main)
    printed = capsys.readouterr().err
    assert end.value.code == 1
    assert printed.rstrip().endswith("error: out of memory" + (said and f": {said}"))
    assert len(printed.splitlines()) == 1
