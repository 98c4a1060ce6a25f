"""This process: its random state, its memory, and how it is told to stop."""

import faulthandler
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch

from lathe.run.devices import Runtime


@contextmanager
def memory_levers(settings):
    """Turn "out of memory" inside into a ValueError that says what would help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # OutOfMemoryError is a RuntimeError; the CPU raises a plain one
        told = str(error).lower()
        if isinstance(error, RuntimeError) and "out of memory" not in told and "allocate memory" not in told:
            raise
        reason = str(error).strip().splitlines()[0][:120]
        raise ValueError(
            f"out of memory ({reason}): lower --micro_batch_size (now {settings.micro_batch_size or 'automatic'}) or "
            "--block_size, or try --activation_checkpointing=full, --dtype=bfloat16, --parallel=fsdp on more devices"
        ) from None


def seed_everything(seed: int):
    """Seed Python's and torch's generators, on every device."""
    random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """The generators' state, as plain values and tensors that torch.load(weights_only=True) accepts."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state: dict, device: torch.device):
    """Inverse of random_state; a device that had no generator then keeps its own."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if device.type in state:
        getattr(torch, device.type).set_rng_state(state[device.type])


class StopSignals:
    """Remembers that SIGINT, SIGTERM or SIGUSR1 came, so that the loop can finish its step and save. Another one, more
    than a second later, ends the process at once. Use as a context manager; the old handlers come back behind it."""

    NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # SIGUSR1: Slurm's warning before a time limit

    def __init__(self, say: Callable[[str], None]):
        self.say, self.received, self._when = say, None, 0.0
        self._old = {}

    def __enter__(self) -> "StopSignals":
        for name in self.NAMES:
            if hasattr(signal, name):
                self._old[name] = signal.signal(getattr(signal, name), self._handle)
        return self

    def __exit__(self, *_):
        for name, handler in self._old.items():
            signal.signal(getattr(signal, name), handler)

    def _handle(self, number, _frame):
        if self.received is None:
            self.received, self._when = signal.Signals(number), time.monotonic()
            self.say(f"{self.received.name} received: finishing this step, then saving (again: stop at once)")
        elif time.monotonic() - self._when > 1:  # Ctrl-C reaches a rank from the terminal and again through torchrun
            os._exit(128 + number)

    @property
    def asked(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        return 128 + self.received if self.received else 0


class Watchdog:
    """Ends this process if alive() is not called for `seconds`: says what it was doing, dumps every thread's stack to
    stderr and exits with 1. A rank that hangs stalls all others in their next exchange, so they all report."""

    def __init__(self, seconds: float, run: Runtime):
        self.seconds, self.run, self.doing = seconds, run, "starting"
        self._armed, self._timer = -math.inf, None

    def alive(self, doing: str):
        self.doing = doing
        setting = time.monotonic() - self._armed > min(1.0, self.seconds / 10)  # not each time: it takes 0.1 ms
        if setting and self.run.world_size > 1:  # who waits for a single process sees it, and may want it to be slow
            self.off()
            self._armed = time.monotonic()
            self._timer = threading.Timer(self.seconds, self._tell)
            self._timer.daemon = True
            self._timer.start()
            # In C, so that it works even where a stuck call keeps Python's lock.
            faulthandler.dump_traceback_later(self.seconds + 0.5, exit=True)

    def _tell(self):
        print(f"rank {self.run.rank}: no progress for {self.seconds:g} s while {self.doing}; stacks:", file=sys.stderr)

    def off(self):
        if self._timer is not None:
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()
            self._timer = None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_):
        self.off()


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: on the device if it keeps count, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name == "nt":
        return 0  # Windows keeps no such count
    if sys.platform == "linux":  # where getrusage counts what the parent held when it started this process
        with open("/proc/self/status") as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
