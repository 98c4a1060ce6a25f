"""What lathe/run/mirrors.py promises: wandb and TensorBoard get what is logged, and neither ends a run."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
from metrics_rows import eval_row, train_row
from tiny_run import command, finished

from lathe.run.mirrors import Mirrors


@dataclass
class Tracking:
    out_dir: str
    wandb_log: bool = False
    wandb_project: str = "lathe"
    wandb_run_name: str = ""
    tensorboard_log: bool = False


def test_trackers_are_not_imported_unless_asked_for():
    script = (
        "import sys, types\n"
        "settings = types.SimpleNamespace(wandb_log=False, tensorboard_log=False)\n"
        "from lathe.run.mirrors import Mirrors\n"
        "mirrors = Mirrors(settings, 'id')\n"
        "mirrors.log({'step': 1, 'loss': 2.0}); mirrors.close()\n"
        "print([name for name in ('wandb', 'tensorboard', 'torch', 'tqdm') if name in sys.modules])\n"
    )
    assert finished(command("-c", script)) == (0, "[]\n", "")


def test_a_tracker_that_is_missing_or_fails_says_so_once_and_training_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    said = []
    settings = Tracking(str(tmp_path), wandb_log=True, tensorboard_log=True)
    mirrors = Mirrors(settings, "id", say=said.append)
    for step in (1, 2):
        mirrors.log(train_row(step))
    mirrors.close()
    assert len(said) == 2 and all("\n" not in line for line in said)
    assert said[0].startswith("wandb is off, training goes on: ")
    assert said[0].endswith("pip install wandb")
    assert said[1].startswith("tensorboard is off, training goes on: ")


def test_tensorboard_holds_the_rows_and_a_resume_hides_what_it_repeats(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings, said = Tracking(str(tmp_path), tensorboard_log=True), []
    for resume_step, loss in ((0, 3.0), (2, 1.0)):
        mirrors = Mirrors(settings, "id", resume_step, say=said.append)
        for step in range(resume_step + 1, 5):
            mirrors.log(train_row(step, loss=loss))
        mirrors.log(eval_row(4, val_bits_per_byte=None))
        mirrors.log({"step": 4, "sample": "one\n<b>two", "report": tmp_path / "report.html"})
        mirrors.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert said == []
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (1, 3.0),
        (2, 3.0),
        (3, 1.0),
        (4, 1.0),
    ]
    assert [(e.step, e.value) for e in events.Scalars("val_loss")] == [(4, 2.25)]
    text = events.Tensors("sample/text_summary")[-1]
    assert text.tensor_proto.string_val == [b"    one\n    <b>two"]


# A training process that asks for wandb without a key, a terminal and a network; `rest` follows.
WANDB = """
import os, pathlib, signal, subprocess, types
from lathe.run.mirrors import Mirrors
folder = pathlib.Path(%r)
settings = types.SimpleNamespace(out_dir=str(folder), wandb_log=True, wandb_project='p', wandb_run_name='',
    tensorboard_log=False)
mirrors = Mirrors(settings, 'abc123', say=print)
page = folder / 'report.html'
page.write_text('<p>a page')
mirrors.log({'step': 1, 'loss': 2.0, 'sample': 'a < b', 'report': page})
"""


def with_wandb(tmp_path, rest):
    """(exit code, lines said, stderr) of a process that logs to an offline run and then does the rest."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    environment = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "WANDB_SILENT": "true"}
    script = WANDB % str(tmp_path) + rest
    code, out, err = finished(command("-c", script, env=environment, stdin=subprocess.DEVNULL))
    return code, out.splitlines(), err


@pytest.mark.slow
def test_wandb_without_a_key_and_a_terminal_keeps_the_run_offline(tmp_path):
    code, said, err = with_wandb(tmp_path, "mirrors.close()\n")
    assert code == 0, err
    assert len(said) == 1 and said[0].startswith("wandb: this run is kept offline")
    assert len(list(tmp_path.glob("wandb/offline-run-*-abc123/*.wandb"))) == 1
    html = list(tmp_path.glob("wandb/offline-run-*-abc123/files/media/html/*.html"))
    assert {path.name.split("_")[0]: path.read_text() for path in html} == {
        "report": "<p>a page",
        "sample": "<pre>a &lt; b</pre>",
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds wandb's process through ps --ppid")
def test_a_crash_of_wandbs_own_process_is_said_once_and_training_goes_on(tmp_path):
    code, said, err = with_wandb(
        tmp_path,
        "children = subprocess.run(['ps', '--ppid', str(os.getpid()), '-o', 'pid=,comm='], capture_output=True)\n"
        "[os.kill(int(line.split()[0]), signal.SIGKILL) for line in children.stdout.splitlines() if b'wandb' in line]\n"
        "for step in range(2, 20): mirrors.log({'step': step, 'loss': 2.0})\n"
        "mirrors.close(); print('trained')\n",
    )
    assert code == 0 and "Traceback" not in err
    assert [line.split(":")[0] for line in said] == [
        "wandb",
        "wandb is off, training goes on",
        "trained",
    ]
