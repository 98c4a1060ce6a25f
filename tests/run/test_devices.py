"""What lathe/run promises about one process."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from tiny_run import command, finished
from torch import nn

from lathe.run import ranks
from lathe.run.parallel import checkpoint_activations
from lathe.run.process import (
    StopSignals,
    memory_levers,
    random_state,
    seed_everything,
    set_random_state,
)
from model import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1)


@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forgotten_activations_change_no_loss_and_no_gradient(mode, dtype):
    def loss_and_gradients(mode):
        torch.manual_seed(1)
        model = GPT(SMALL)
        if mode != "none":
            checkpoint_activations(model.transformer.h, mode)
        x = torch.randint(61, (4, 16))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(x, x)
        loss.backward()
        return loss, [p.grad for p in model.parameters()]

    plain, again = loss_and_gradients("none"), loss_and_gradients(mode)
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))


def test_forgotten_activations_save_memory():
    def kept(mode):
        """Bytes that the backward pass of a forward pass holds on to."""
        torch.manual_seed(1)
        model, saved = GPT(SMALL), {}
        if mode != "none":
            checkpoint_activations(model.transformer.h, mode)
        x = torch.randint(61, (8, 16))

        def pack(t):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = model(x, x)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        assert loss.isfinite()
        return sum(size for place, size in saved.items() if place not in weights)

    assert kept("full") < kept("none") / 3 and kept("selective") < kept("none")


def test_random_state_comes_back():
    seed_everything(3)
    state = random_state(torch.device("cpu"))
    first = torch.rand(3)
    set_random_state(state, torch.device("cpu"))
    assert torch.equal(first, torch.rand(3))


def test_copies_for_saving_are_copies():
    tensor = torch.ones(3)
    copy = ranks.full_copy({"a": {"b": tensor, "c": 2}}, keep=True)
    tensor.zero_()
    assert copy["a"]["c"] == 2 and copy["a"]["b"].tolist() == [1, 1, 1]
    assert ranks.full_copy({"a": tensor}, keep=False) is None


def test_out_of_memory_becomes_advice_and_other_errors_stay():
    settings = SimpleNamespace(micro_batch_size=4)
    with pytest.raises(ValueError, match="micro_batch_size .now 4."), memory_levers(settings):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="shapes"), memory_levers(settings):
        nn.Linear(3, 3)(torch.ones(4))


STOPPED = """
import sys, time
from lathe.run.process import StopSignals
with StopSignals(lambda text: print(text, flush=True)) as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if stop.received and sys.argv[1] == "obey":
            break
sys.exit(stop.exit_code)
"""


def test_a_signal_is_remembered_and_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(
            os.getpid(), signal.SIGTERM
        )  # a launcher repeats what the terminal has sent: still one wish
        assert stop.received == signal.SIGTERM and stop.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_ctrl_c_ends_a_process_that_is_stuck():
    process = command("-c", STOPPED, "ignore")
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    assert "SIGINT received" in process.stdout.readline()
    assert process.poll() is None
    time.sleep(1.2)
    os.kill(process.pid, signal.SIGINT)
    assert finished(process, 10)[0] == 130


def test_the_watchdog_tells_what_hung_and_where():
    code = (
        "import time, torch\n"
        "from lathe.run.process import Watchdog\n"
        "from lathe.run.devices import Runtime\n"
        "run = Runtime(torch.device('cpu'), torch.float32, rank=3, world_size=4)\n"
        "dog = Watchdog(0.5, run)\n"
        "for _ in range(10):\n"
        "    dog.alive('training step 7')\n"
        "    time.sleep(0.1)\n"
        "print('alive', flush=True)\n"
        "def stuck(): time.sleep(60)\n"
        "stuck()\n"
    )
    status, out, err = finished(command("-c", code), 20)
    assert status == 1 and out == "alive\n"
    assert "rank 3: no progress for 0.5 s while training step 7" in err and "in stuck" in err
