"""Since when a command runs: before Python began, and under torchrun before its ranks did."""

import sys

import pytest
from tiny_run import command, finished

AGE = "from lathe.run.launch import seconds_since_launch; print(seconds_since_launch())"
WAIT = "import subprocess, sys, time; time.sleep(0.3); subprocess.run([sys.executable, '-c', {!r}])"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_a_rank_counts_from_when_torchrun_was_started():
    ages = {}
    for attempt in ("", "0", "1"):
        env = {"TORCHELASTIC_RESTART_COUNT": attempt}
        _, out, _ = finished(command("-c", WAIT.format(AGE), env=env))
        ages[attempt] = float(out)
    assert ages["0"] >= 0.29, "the parent's"
    assert 0 <= ages[""] < ages["0"] and 0 <= ages["1"] < ages["0"]
