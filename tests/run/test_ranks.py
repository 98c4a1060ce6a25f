"""What lathe/run/ranks.py promises of one process; of several, test_distributed.py has it."""

import re

import torch

from lathe import ROOT
from lathe.run import ranks


def test_numbers_keep_their_names_on_the_way():
    numbers = {"loss": torch.tensor(2.5), "skipped": torch.tensor(1.0)}
    sums = ranks.sum_by_name(numbers)
    later = ranks.LaterByName(sums)
    assert later.read() == {"loss": 2.5, "skipped": 1.0}
    assert ranks.sum_over_ranks(3, torch.tensor(0.5)) == [3.0, 0.5]


def test_torchrun_lets_ranks_save_for_as_long_as_slurm_gives_notice():
    script = (ROOT / "scripts" / "slurm.sh").read_text()
    notice = int(re.search(r"--signal=B:USR1@(\d+)", script)[1])
    patience = int(re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", script)[1])
    assert 120 <= patience <= notice - 20
