"""What a run says at its end: commands that work."""

import pytest

from lathe.run.farewell import resume_command
from lathe.settings import Settings


@pytest.mark.parametrize(
    ("world", "of_node", "begin"),
    [
        ("", "", "python train.py 'my run'/settings.toml --init_from=resume"),
        ("2", "2", "torchrun --standalone --nproc-per-node=2 train.py 'my run'/settings.toml "),
        ("16", "8", "torchrun --nnodes=2 --nproc-per-node=8 train.py 'my run'/settings.toml "),
    ],
)
def test_a_run_goes_on_by_the_command_that_it_says(world, of_node, begin, monkeypatch):
    for name, value in (("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", of_node)):
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    command = resume_command(Settings(out_dir="my run", parallel="fsdp"), " --max_steps=8")
    assert command.startswith(begin) and command.endswith(" --init_from=resume --max_steps=8")
