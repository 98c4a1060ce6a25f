"""What lathe/run/process.py promises: random state, advice where memory ends, and how a process stops."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from tiny_run import command, finished
from torch import nn

from lathe.run.process import (
    StopSignals,
    memory_levers,
    random_state,
    seed_everything,
    set_random_state,
)


def test_random_state_comes_back():
    seed_everything(3)
    state = random_state(torch.device("cpu"))
    first = torch.rand(3)
    set_random_state(state, torch.device("cpu"))
    assert torch.equal(first, torch.rand(3))


def test_out_of_memory_becomes_advice_and_other_errors_stay():
    settings = SimpleNamespace(micro_batch_size=4)
    with pytest.raises(ValueError, match="micro_batch_size .now 4."), memory_levers(settings):
        torch.empty(1 << 50)
    with pytest.raises(ValueError, match="^out of memory: lower"), memory_levers(settings):
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes"), memory_levers(settings):
        nn.Linear(3, 3)(torch.ones(4))


def test_a_signal_is_remembered_and_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher repeats what the terminal sent: one wish
        assert stop.received == signal.SIGTERM and stop.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_kind_of_signal_does_not_break_off_the_save_that_the_first_began():
    """Slurm sends SIGUSR1 and later SIGTERM; torchrun passes a SIGHUP on as SIGTERM."""
    with StopSignals(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == signal.SIGUSR1


def test_a_hangup_that_nohup_has_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(lambda text: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_the_middle_of_a_print_is_remembered():
    def interrupted_print(text: str):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter>")

    with StopSignals(interrupted_print) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM


def test_the_second_ctrl_c_ends_a_process_that_is_stuck():
    code = (
        "import os, time\n"
        "from lathe.run.process import StopSignals\n"
        "def say(text): os.write(1, (text + '\\n').encode())\n"  # print() cannot interrupt itself
        "with StopSignals(say):\n"
        "    say('ready')\n"
        "    while True: time.sleep(0.01)\n"
    )
    process = command("-c", code)
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    assert "SIGINT received" in process.stdout.readline()
    assert process.poll() is None
    time.sleep(1.2)
    os.kill(process.pid, signal.SIGINT)
    assert finished(process)[0] == 130


def test_the_watchdog_tells_what_hung_and_where():
    code = (
        "import time, torch\n"
        "from lathe.run.process import Watchdog\n"
        "from lathe.run.devices import Runtime\n"
        "run = Runtime(torch.device('cpu'), torch.float32, rank=3, world_size=4)\n"
        "dog = Watchdog(3.0, run)\n"
        "for _ in range(35):\n"
        "    dog.alive('training step 7')\n"
        "    time.sleep(0.1)\n"
        "print('alive', flush=True)\n"
        "def stuck(): time.sleep(600)\n"
        "stuck()\n"
    )
    status, out, err = finished(command("-c", code))
    assert status == 1 and out == "alive\n"
    assert "rank 3: no progress for 3 s while training step 7" in err and "in stuck" in err
