"""This process: its random state, its memory, and how it is told to stop."""

import faulthandler
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch

from lathe.output import nonblocking_descriptor
from lathe.run.devices import Runtime
from lathe.settings import Settings
from lathe.terminal import print_note

# -----------------------------------------------------------------------------
# Random state


def seed_everything(seed: int):
    """Seed Python's and torch's generators, on every device."""
    random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """The generators' state, as values and tensors that torch.load(weights_only=True) accepts."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict, device: torch.device):
    """Inverse of random_state; a device that had no generator then keeps its own."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


# -----------------------------------------------------------------------------
# Memory


@contextmanager
def memory_levers(settings: Settings) -> Iterator[None]:
    """Turn "out of memory" inside into a ValueError that says what would help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines()
        reason = f" ({lines[0][:120]})" if lines else ""
        micro_batch_size = settings.micro_batch_size or "automatic"
        raise ValueError(
            f"out of memory{reason}: lower --micro_batch_size (now {micro_batch_size}) or "
            "--block_size, or try --activation_checkpointing=full, --dtype=bfloat16, "
            "--parallel=fsdp on more devices"
        ) from None


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, MemoryError):
        return True
    message = str(error).lower()  # a GPU's OutOfMemoryError, or on the CPU a plain RuntimeError
    return "out of memory" in message or "allocate memory" in message


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: on the device if it keeps count, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name == "nt":
        return 0  # Windows keeps no such count
    if sys.platform == "linux":
        # Here getrusage counts what the parent held when it started this process.
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):  # "VmHWM:   123456 kB"
                    return 1024 * int(line.split()[1])
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# -----------------------------------------------------------------------------
# Stopping


class StopSignals:
    """Remembers that a signal came which asks to stop: the loop can finish its step and save.

    SIGINT or SIGTERM again, more than a second later, ends the process at once. Another signal does
    not: Slurm sends SIGUSR1 and then SIGTERM, torchrun passes on as SIGTERM what the terminal sent.
    A context manager; the old handlers come back after it.
    """

    # The user and the machine; the terminal closes (unless that is ignored, as nohup has it); a
    # batch system's warnings before a time limit; the limit of processor time.
    NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    IMPATIENT = ("SIGINT", "SIGTERM")

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.received: signal.Signals | None = None
        self.continued = False  # after having been stopped: Ctrl-Z, a batch system that suspends
        self._received_at = 0.0
        self._old_handlers = {}

    @property
    def asked(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """0, or the one by which a shell knows the signal."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> "StopSignals":
        for name in self.NAMES:
            number = getattr(signal, name, None)  # Windows has few
            if number is None or is_ignored_for_good(number):
                continue
            self._old_handlers[number] = signal.signal(number, self._handle)
        if hasattr(signal, "SIGCONT"):
            number = signal.SIGCONT
            self._old_handlers[number] = signal.signal(number, self._remember_pause)
        return self

    def __exit__(self, *_: object):
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _remember_pause(self, _number: int, _frame: FrameType | None):
        self.continued = True

    def _handle(self, number: int, _frame: FrameType | None):
        now = time.monotonic()
        if self.received is None:
            self.received = signal.Signals(number)
            self._received_at = now
            name = self.received.name
            again = " (again: stop at once)" if name in self.IMPATIENT else ""
            with suppress(RuntimeError):  # the signal may have come in the middle of a print()
                self.say(f"{name} received: finishing this step, then saving{again}")
        elif number == self.received and self.received.name in self.IMPATIENT:
            # Not sooner: Ctrl-C reaches a rank from the terminal and again through torchrun.
            if now - self._received_at > 1:
                os._exit(128 + number)


def is_ignored_for_good(number: int) -> bool:
    """Whether a run outlives it: nohup has SIGHUP ignored."""
    is_ignored = signal.getsignal(number) is signal.SIG_IGN
    return is_ignored and signal.Signals(number).name == "SIGHUP"


class Watchdog:
    """Ends this process if alive() is not called for `seconds`.

    It says what it was doing, dumps every thread's stack to stderr and exits with 1. A rank that
    hangs stalls all others in their next exchange, so they all report. A single process is left
    alone: who waits for it sees it, and may want it to be slow.
    """

    def __init__(self, seconds: float, run: Runtime):
        self.seconds = seconds
        self.run = run
        self.doing = "starting"
        self._armed_at = -math.inf
        self._stacks = nonblocking_descriptor(sys.stderr)
        self._timer: threading.Timer | None = None

    def alive(self, doing: str):
        self.doing = doing
        if self.run.world_size == 1:
            return
        now = time.monotonic()
        if now - self._armed_at <= min(1.0, self.seconds / 10):
            return  # not each time: it takes 0.1 ms
        self.off()
        self._armed_at = now
        self._timer = threading.Timer(self.seconds, self._report)
        self._timer.daemon = True
        self._timer.start()
        # In C, so that it works even where a stuck call keeps Python's lock.
        faulthandler.dump_traceback_later(self.seconds + 0.5, exit=True, file=self._stacks)

    def _report(self):
        print_note(
            f"rank {self.run.rank}: no progress for {self.seconds:g} s while {self.doing}; stacks:"
        )

    def off(self):
        if self._timer is not None:
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()
            self._timer = None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object):
        self.off()
        if isinstance(self._stacks, int):
            os.close(self._stacks)
