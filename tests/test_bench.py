"""The commands that measure: each runs, here on small sizes, and counts what it says that it counts.

The figures themselves are bench/RESULTS.md's.
"""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from tiny_run import ROOT, SMALL, command, finished, make_dataset

from bench import clients, dial_sweep, gpu, nanogpt, results, time_to_loss, train_speed
from bench import gpu_folder as gpu_folder_command
from bench.processes import run_child
from bench.turns import in_turn
from lathe import cli
from lathe.settings import Settings

COMMANDS = sorted(
    path.stem for path in (ROOT / "bench").glob("*.py") if "\n    cli.run(main)" in path.read_text()
)
KEPT_RUN = ROOT / "tests" / "kept" / "run"
TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken"
QUICKSTART = ROOT / "config" / "quickstart.toml"


# -----------------------------------------------------------------------------
# Small runs


@dataclass
class Table:
    header: list[str]
    rows: list[dict[str, str]]  # by the header

    def column(self, name: str) -> list[str]:
        return [row[name] for row in self.rows]


def tables(text: str) -> list[Table]:
    """The tables in what a command printed; one may follow another at once."""
    found = []
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if re.fullmatch(r"\|[-|]+\|", line):  # below a header
            found.append(Table(cells(lines[i - 1]), []))
        is_header = i + 1 < len(lines) and lines[i + 1].startswith("|-")
        if line.startswith("| ") and not is_header:
            row = zip(found[-1].header, cells(line), strict=True)
            found[-1].rows.append(dict(row))
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def bench(line: str) -> tuple[str, list[Table]]:
    """What a command of bench/ prints, and the tables in it; it is a process with one thread."""
    name, *words = shlex.split(line)
    code, out, err = finished(command(ROOT / "bench" / f"{name}.py", *words))
    assert code == 0, err
    return out, tables(out)


def check(table: Table, header: str, arms: list[str]):
    """A row for each arm, whose name begins so, and figures that are finite."""
    assert table.header == header.split(" | ")
    names = table.column(table.header[0])
    assert len(names) == len(arms)
    for name, arm in zip(names, arms, strict=True):
        assert name.startswith(arm)
    for row in table.rows:
        figures = " ".join(list(row.values())[1:])
        assert re.search(r"\d|identical|True", figures)
        assert not re.search(r"\b(nan|inf|None|False|DIFFERENT)\b", figures)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    """A small dataset, for training."""
    return make_dataset(tmp_path_factory.mktemp("bench") / "texts")


def training(**changed) -> str:
    """Settings of a training run that takes a second, as --extra takes them."""
    settings = {**SMALL, "n_layer": 1, "warmup_steps": 0, **changed}
    settings.pop("eval_interval")
    return shlex.quote(" ".join(f"--{name}={value}" for name, value in settings.items()))


TINY = "--n_layer=1 --n_head=2 --n_embd=32"


@pytest.mark.slow
def test_checkpoint_speed_saves_and_trains_meanwhile(tmp_path):
    line = f"checkpoint_speed {TINY} --vocab_size=64 --only save stall --repeats=2 --save=false"
    _, (table,) = bench(f"{line} --work={tmp_path}")
    arms = ["save: torch.save", "save: torch.save and fsync", "save: verified save"]
    arms += ["save: verified / torch.save", "save: verified / torch.save and fsync"]
    arms += ["stall: training waits for a save", "stall: on disk and verified"]
    arms += ["stall: a step alone, and while a save is written"]
    check(table, "what | figure", arms)
    assert not list(tmp_path.iterdir()), "nothing is left"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_checkpoint_speed_trains_on_two_ranks():
    settings = training(max_steps=4, micro_batch_size=4)
    line = f"checkpoint_speed --only scaling --runs=1 --save=false --extra={settings}"
    _, (table,) = bench(line)
    check(table, "what | figure", ["scaling: tokens/s of one rank", "scaling: two ranks / one"])


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_rank_takes_more_than_its_share_of_a_sharded_checkpoint(tmp_path):
    line = "sharded_checkpoint --n_layer=6 --n_head=8 --n_embd=512 --copy=true --readers 3 1"
    _, (table,) = bench(f"{line} --work={tmp_path} --save=false")
    check(table, "what | figure", ["save on 4 ranks", "every byte", "read on 3", "read on 1"])
    megabytes = [
        int(re.match(r"[\d,]+", text)[0].replace(",", "")) for text in table.column("figure")
    ]
    state = 6 * 70.5  # bytes of three numbers in bfloat16, and millions of parameters
    assert megabytes[0] <= state / 4 + 60
    assert megabytes[2] <= state / 3 + 60
    assert megabytes[3] <= state + 60
    assert not list(tmp_path.iterdir()), "nothing is left"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_data_speed_measures_all_its_parts(tmp_path):
    line = f"data_speed --library={ROOT / 'lathe'} --scale=0.002 --tokenizer=byte --repeats=1"
    line += f" --shakespeare={ROOT / 'LICENSE'} --work={tmp_path} --save=false"
    _, (table,) = bench(line)
    arms = ["corpus", "bare tiktoken (byte)", "prepare/text.py", "prepare / bare"]
    arms += ["2 workers / 1 worker, 0.6 MB", "CPU seconds, 1 and 2 workers", "sha256 of"]
    arms += [f"one document of 0.002 GB, {n} workers" for n in (1, 2)]
    arms += [f"2,000 tiny documents, {n} workers" for n in (1, 2)]
    arms += ["disk while preparing", "sha256 after 1 kill -9", "own BPE", "bytes per token"]
    arms += ["ids equal after save", "tiny Shakespeare", "the Python library"]
    arms += ["fetch B=12", "fetch B=32", "fetch B=64", "order of 0.02B tokens"]
    check(table, "what | figure", arms)


@pytest.mark.slow
def test_decode_speed_times_one_text_with_each_type_of_weights():
    line = f"decode_speed {TINY} --only batch1 --tokens=4 --repeats=1 --read_mib=8 --save=false"
    _, (table,) = bench(line)
    header = "one text | tokens/s | x transformers float32 | x transformers same type | "
    arms = [name for name in table.column("one text") if name.startswith("lathe")]
    assert {"lathe float32", "lathe int8"} <= set(arms)
    arms += ["transformers float32", "transformers bfloat16"]
    check(table, header + "of the memory limit", arms)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_decode_speed_shows_lathe_alone_without_a_peer():
    line = f"decode_speed {TINY} --only context ten quality --repeats=1 --save=false"
    line += f" --run={KEPT_RUN} --dataset={KEPT_RUN.parent / 'dataset'}"
    _, (context, ten, quality) = bench(line)
    header = "tokens of context | lathe tokens/s | nanoGPT tokens/s | ratio"
    check(context, header, ["64", "500"])
    check(ten, " | seconds | speed", ["lathe"])
    check(quality, "weights | loss | against float32", quality.column("weights"))
    assert quality.rows[0]["weights"] == "float32"
    assert quality.rows[0]["against float32"] == "+0.000%"


@pytest.mark.slow
@pytest.mark.skipif(
    not TIKTOKEN_FILES.is_dir(), reason=f"the gpt2 vocabulary is not in {TIKTOKEN_FILES}"
)
def test_decode_speed_times_a_whole_command(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    _, (table,) = bench(f"decode_speed {TINY} --only start --repeats=1 --save=false")
    check(table, " | seconds | peak MB", ["lathe"])


@pytest.mark.slow
def test_eval_speed_scores_in_three_ways_that_agree():
    _, (table,) = bench("eval_speed --only small --items=4 --rounds=1 --save=false")
    header = "model | one by one | item by item | in batches | batches / one by one | "
    check(table, header + "same choices | max difference, nats", ["make run's"])
    assert table.rows[0]["same choices"] == "yes"
    assert float(table.rows[0]["max difference, nats"]) < 1e-3


@pytest.mark.slow
def test_page_speed_draws_and_keeps_its_pages(tmp_path):
    line = f"page_speed {TINY} --tokenizer=byte --tokens 16 --points=200 --report_points 300 --save=false"
    _, (table,) = bench(f"{line} --out={tmp_path}")
    titles = ["model, 1 layers x 32, 16 tokens", "5 runs x 200 points"]
    titles += ["report, 300 points, from nothing", "report, 300 points, 1,000 steps later"]
    check(table, "page | CPU seconds | MB", titles)
    for name in ("model-16.html", "runs.html", "report-300.html", "report-300-later.html"):
        assert "<html" in (tmp_path / name).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_terminal_picture_draws_what_a_screen_shows(tmp_path):
    picture = tmp_path / "terminal.svg"
    shown = r"'no\rloss 2.5 | step 1/2\n  a <b> & c\n'"
    bench(f"terminal_picture --columns=40 --out={picture} printf {shown}")
    texts = ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}text")
    assert [text.text for text in texts[1:]] == ["loss 2.5 | step 1/2", "a <b> & c"]
    assert float(texts[2].get("x")) > float(texts[1].get("x"))  # indented


def test_pictures_draws_a_kept_run(tmp_path):
    bench(f"pictures {KEPT_RUN} --out={tmp_path} --prompt='ba ne da ko'")
    for name in ("curves.svg", "heads.svg"):
        assert len(list(ElementTree.parse(tmp_path / name).iter())) > 10


@pytest.mark.slow
def test_time_to_loss_says_whether_a_run_had_the_target(texts):
    line = f"time_to_loss {QUICKSTART} --dataset={texts} --seeds=1 --save=false"
    out, (table,) = bench(f"{line} --target=100 --extra={training(max_steps=6)}")
    check(table, "arm | seed | seconds | val loss | <= 100.0 | peak MiB", ["lathe"])
    (row,) = table.rows
    assert row["seed"] == "1337" and row["<= 100.0"] == "reached"
    assert f"Median {row['seconds']} s" in out


@pytest.mark.slow
def test_train_speed_times_and_profiles_steps(texts):
    extra = shlex.quote("--n_layer=1 --block_size=32 --dtype=float32")
    line = f"train_speed {QUICKSTART} --dataset={texts} --steps=12 --repeats=1 --waits=true"
    out, (table,) = bench(f"{line} --extra={extra} --save=false")
    check(table, "arm | tokens/s | range | ms/step | peak MiB | MFU", ["lathe"])
    (row,) = table.rows
    tokens_per_second = float(row["tokens/s"].replace(",", ""))
    tokens_per_step = tokens_per_second * float(row["ms/step"]) / 1000
    assert tokens_per_step == pytest.approx(16 * 32, rel=0.01)
    assert row["MFU"] == "-"
    share = re.search(r"The device waits ([\d.]+)% of the time", out)[1]
    assert 0 < float(share) < 100


def test_dial_sweep_changes_one_thing_at_a_time():
    chosen = Settings(n_layer=3, n_embd=128, n_head=2, batch_size=16, dropout=0.1)
    ways = dial_sweep.changes(asdict(chosen))
    assert len(ways) == 12
    for what, given in ways.items():
        s = cli.parse(Settings, given, prog="train.py")
        changed = {word[2:].partition("=")[0] for word in given}
        assert changed == set(s.given)
        assert any(getattr(s, name) != getattr(chosen, name) for name in changed), what
    assert ways["a size smaller"] == ["--n_layer=3", "--n_embd=96"]
    assert ways["dropout 0"] == ["--dropout=0"]


@pytest.mark.exhaustive
def test_dial_sweep_trains_the_dials_network_and_twelve_others(texts):
    out, (table,) = bench(f"dial_sweep {texts} --minutes=0.1 --at_once=2")
    assert len(table.rows) == 13
    assert all(float(row["of its time"]) > 0 for row in table.rows)
    best = min(float(row["val loss"]) for row in table.rows[1:])
    apart = best / float(table.rows[0]["val loss"]) - 1
    assert f"The best of the twelve is {apart:+.1%}" in out


# -----------------------------------------------------------------------------
# A machine with a GPU and nothing else, rehearsed


def gpu_folder(folder: Path, wheels: dict[str, str]) -> Path:
    """What bench/gpu_folder.py makes, without data; a wheel's module has the text that is given."""
    (folder / "wheels").mkdir(parents=True)
    (folder / "folder.json").write_text("{}")
    for name, text in wheels.items():
        with zipfile.ZipFile(folder / "wheels" / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", text)
    return folder


def gpu_sh(folder: Path, *words: str) -> tuple[int, list[dict], str]:
    """Exit code, figures and stderr of bench/gpu.sh."""
    script = ROOT / "bench" / "gpu.sh"
    done = subprocess.run(
        ["bash", script, folder, *words],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.slow
def test_gpu_sh_measures_a_part_and_writes_a_line_of_json_per_figure(tmp_path):
    folder = gpu_folder(tmp_path / "folder", {})
    code, figures, err = gpu_sh(folder, "figures", "--rehearse=true")
    assert code == 0, err
    assert figures[-1].pop("seconds") > 0
    assert figures[-1] == {"figure": "part", "part": "figures", "outcome": "done"}
    losses = [figure for figure in figures if figure["figure"] == "loss"]
    assert [loss["form"] for loss in losses] == ["as trained, eager", "all logits, eager"]
    assert all(0 < loss["gradient_error"] < 0.02 for loss in losses)  # of bfloat16
    kept = (folder / "figures.jsonl").read_text().splitlines()
    assert len(kept) == len(figures)


def test_gpu_sh_says_what_did_not_fit_into_its_minutes(tmp_path):
    folder = gpu_folder(tmp_path / "folder", {})
    code, figures, err = gpu_sh(folder, "decode", "quality", "--minutes=0.1")
    assert (code, figures) == (0, [])
    assert err.splitlines() == [f"no time for: bash bench/gpu.sh {folder} decode quality"]


def test_a_part_that_takes_too_long_ends_with_all_that_it_started():
    sleeping = "import subprocess, sys; print('begun', flush=True); "
    sleeping += "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    about = gpu.run_part("sleeping", [sys.executable, "-c", sleeping], seconds=1.0)
    assert about["outcome"] == "stopped after 1 s"


def test_what_the_machine_lacks_comes_from_the_wheels_and_nothing_else(tmp_path):
    wheels = {"carried_package": "WHERE = 'carried'", "numpy": "WHERE = 'carried'"}
    python = gpu.make_environment(gpu_folder(tmp_path / "folder", wheels))
    asking = "import carried_package, numpy, torch; "
    asking += "print(carried_package.WHERE, hasattr(numpy, 'WHERE'), torch.__version__)"
    said = subprocess.run([python, "-c", asking], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["carried", "False", torch.__version__]


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "name the folder"),
        (["nowhere"], "nowhere is no folder"),
        (["{folder}", "speeed"], "there is no part speeed; the parts are figures, speed"),
        (["{folder}", "--minutes=0"], "minutes is 0"),
    ],
)
def test_gpu_sh_refuses_what_it_cannot_do(words, said, tmp_path, capsys):
    folder = gpu_folder(tmp_path / "folder", {})
    with pytest.raises(SystemExit) as stop:
        gpu.main([word.replace("{folder}", str(folder)) for word in words])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_the_folder_for_a_gpu_never_replaces_what_its_command_did_not_make(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    words = [str(tmp_path), f"--peer={tmp_path}", f"--text={tmp_path / 'thesis.txt'}"]
    with pytest.raises(ValueError, match="this command did not make it"):
        gpu_folder_command.main(words)
    assert (tmp_path / "thesis.txt").exists()


def test_nanogpts_data_is_what_its_own_commands_write(tmp_path):
    content = "To be, or not to be\n" * 50
    gpu_folder_command.write_by_characters(tmp_path / "chars", content)
    meta = pickle.loads((tmp_path / "chars" / "meta.pkl").read_bytes())
    ids = {}
    for name in ("train", "val"):
        file = array("H")
        file.frombytes((tmp_path / "chars" / f"{name}.bin").read_bytes())
        ids[name] = file.tolist()
    assert "".join(meta["itos"][i] for i in ids["train"] + ids["val"]) == content
    assert len(ids["train"]) == int(0.9 * len(content))
    assert meta["vocab_size"] == len(set(content)) == len(meta["stoi"])


# -----------------------------------------------------------------------------
# Help and mistakes


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_mistakes_are_answered_before_torch_is_imported(name):
    script = ROOT / "bench" / f"{name}.py"
    asked = command("-X", "importtime", script, "--help")
    mistaken = command(script, "--no_such_setting=1")
    code, out, imported = finished(asked)
    assert code == 0
    assert out.startswith(f"usage: bench/{name}.py")
    assert not re.search(r"\| +torch$", imported, re.MULTILINE)
    code, out, err = finished(mistaken)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and "no_such_setting" in err


@pytest.mark.parametrize(
    "module, words, said",
    [
        (train_speed, [QUICKSTART, "--peer=/nanoGPT"], "peer needs a shape"),
        (time_to_loss, ["--seeds=0"], "seeds is 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(module, words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main([str(word) for word in words])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


# -----------------------------------------------------------------------------
# What is counted


def test_the_time_in_which_nothing_ran_on_the_device_is_counted_once():
    # Overlapping, and one within another: (begin, length)
    kernels = [(100, 10), (105, 20), (150, 50), (160, 10), (240, 10)]
    events = [{"cat": "kernel", "ts": begin, "dur": length} for begin, length in kernels]
    events += [{"cat": "cpu_op", "ts": 0, "dur": 1000}, {"ph": "M", "name": "process_name"}]
    assert train_speed.waiting(events) == pytest.approx(1 - (25 + 50 + 10) / 150)
    on_cpu = [{"cat": "cpu_op", "ts": 0, "dur": 10}, {"cat": "cpu_op", "ts": 15, "dur": 5}]
    assert train_speed.waiting(on_cpu) == 0.25


def test_arms_take_turns_and_a_warm_up_does_not_count(capsys):
    calls = []

    def arm(name: str):
        calls.append(name)
        return len(calls)

    arms = {"a": lambda: arm("a"), "b": lambda: arm("b")}
    measured = in_turn(2, arms, warm_up=True, describe=lambda call: f"call {call}")
    assert calls == ["a", "b"] * 3
    assert measured == {"a": [3, 5], "b": [4, 6]}
    assert "run 2 of 2, b: call 6" in capsys.readouterr().err


def test_a_child_is_measured_by_itself(tmp_path):
    code = "import os, sys; block = b'x' * 40_000_000; print(os.getcwd(), os.environ['WORD'])"
    child = run_child([sys.executable, "-c", code], tmp_path, WORD="here")
    assert child.output == f"{tmp_path} here\n"
    assert 40e6 < child.peak_bytes < 100e6, "not its parent's, which has torch"
    assert child.cpu_seconds > 0 and child.seconds > 0


def test_a_child_that_fails_is_an_error_with_its_last_words():
    with pytest.raises(ValueError, match="failed:\nno such thing"):
        run_child([sys.executable, "-c", "import sys; sys.exit('no such thing')"])


# As nanoGPT prints it.
PRINTED = """\
number of parameters: 0.80M
step 0: train loss 4.1676, val loss 4.1649
iter 0: loss 4.1852, time 1036.42ms, mfu -100.00%
iter 1: loss 4.1641, time 41.07ms, mfu -100.00%
step 250: train loss 2.0123, val loss 2.0519
iter 250: loss 2.0551, time 40.93ms, mfu 0.11%
step 500: train loss 1.9500, val loss 2.0625
peak 2048
"""


def test_what_nanogpt_prints_is_read():
    assert nanogpt.step_times(PRINTED) == [1036.42, 41.07, 40.93]
    assert nanogpt.val_losses(PRINTED) == [4.1649, 2.0519, 2.0625]
    assert nanogpt.peak_on_gpu(PRINTED) == 2048


def test_a_comparison_is_by_pairs():
    ours = [train_speed.Speed(speed, 1.0, 1, None) for speed in (100.0, 300.0)]
    peers = [train_speed.Speed(speed, 1.0, 1, None) for speed in (50.0, 100.0)]
    assert "median 2.50, from 2.00 to 3.00" in train_speed.compare(ours, peers)
    ours = [time_to_loss.Run(seconds, 1.8, 1) for seconds in (2.0, 4.0)]
    peers = [time_to_loss.Run(seconds, 1.9, 1) for seconds in (20.0, 60.0)]
    assert time_to_loss.summary(ours, []) == "Median 3.0 s"
    said = "Median 3.0 s against 40.0 s: 12.5 times faster, pair by pair 10.0 to 15.0"
    assert time_to_loss.summary(ours, peers) == said


# -----------------------------------------------------------------------------
# RESULTS.md


def test_figures_told_one_by_one_become_one_entry(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(sys, "argv", ["bench/x.py", "--peer=/a/b/nanoGPT", "--repeats=2"])
    figures = results.Figures()
    figures.tell("speed", "3 MB/s")
    assert "3 MB/s" in capsys.readouterr().err, "as soon as it is known"
    figures.record("Data", "A note.")
    entry = (tmp_path / "RESULTS.md").read_text()
    assert entry.startswith(
        "\n## Data\n\n| what  | figure |\n|-------|--------|\n| speed | 3 MB/s |"
    )
    assert "`python bench/x.py --peer=.../nanoGPT --repeats=2`" in entry
    assert "torch" in entry and "commit" in entry
    assert entry.endswith("  \nA note.\n")


@pytest.mark.exhaustive
def test_a_client_makes_of_an_export_what_we_do(monkeypatch, capsys):
    assert clients.main(["--only=transformers", "--rows=Llama, head"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\| Llama, head_dim=64 \| = +\|$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("theirs", "fault"),
    [
        ({"ids": [[2, 1]]}, "other ids for 'ab'"),
        ({"continued": ["c  d\ufffd"]}, ""),
        ({"continued": [" c  d<|endoftext|>e"]}, ""),
        ({"continued": ["c d"]}, "continued: 'c d', ours ' c  d'"),
        ({"answers": ["no"]}, "answers: 'no', ours 'yes'"),
    ],
)
def test_a_difference_between_clients_is_told(theirs, fault):
    ours = {"ids": [[1, 2]], "continued": [" c  d"], "answers": ["yes"]}
    about = {"texts": ["ab"], "end": "<|endoftext|>"}
    assert clients.first_difference(ours | about, ours | theirs) == fault


def test_options_that_name_files_know_the_home_folder():
    """As every command's: `~` in a str would be a folder of that name."""
    others = []
    for path in sorted((ROOT / "bench").glob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            option, _, about = line.partition("#")
            names_a_file = any(word in about for word in ("folder", "file of", "checkout", "reads"))
            if ": str =" in option and names_a_file:
                others.append(f"{path.name}:{number}")
    assert not others
