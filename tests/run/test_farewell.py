"""What a run says at its end: commands that work."""

import sys
from pathlib import Path

import pytest

from lathe import ROOT
from lathe.commands import command_line, python
from lathe.run.farewell import resume_command
from lathe.settings import Settings


@pytest.mark.parametrize(
    ("world", "of_node", "begin"),
    [
        ("", "", "python train.py 'my run/settings.toml' --init_from=resume"),
        ("2", "2", "torchrun --standalone --nproc-per-node=2 train.py 'my run/settings.toml' "),
        ("16", "8", "torchrun --nnodes=2 --nproc-per-node=8 train.py 'my run/settings.toml' "),
    ],
)
def test_a_run_goes_on_by_the_command_that_it_says(world, of_node, begin, monkeypatch):
    for name, value in (("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", of_node)):
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.chdir(ROOT)
    command = resume_command(Settings(out_dir="my run", parallel="fsdp"), "--max_steps=8")
    assert command.startswith(begin) and command.endswith(" --init_from=resume --max_steps=8")


def test_a_command_has_the_python_that_runs_and_a_path_from_here(tmp_path, monkeypatch):
    """Whether its environment is activated or not, and wherever one stands."""
    executable = tmp_path.resolve() / "env" / "bin" / "python"
    executable.parent.mkdir(parents=True)
    executable.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(executable))
    monkeypatch.setenv("PATH", "/usr/bin")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    quoted = "'--prompt=it'\"'\"'s'"
    assert command_line("sample.py", "--prompt=it's").endswith(f"{ROOT / 'sample.py'} {quoted}")
    monkeypatch.chdir(tmp_path)
    assert python() == "env/bin/python"
    monkeypatch.setenv("PATH", str(executable.parent))
    assert python() == "python"
