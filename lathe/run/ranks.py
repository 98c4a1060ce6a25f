"""The other processes of a job: joining them, and exchanging values."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# -----------------------------------------------------------------------------
# The group


def join_ranks(backend: str, rank: int, world_size: int, timeout: timedelta):
    """Form the process group. Raises OSError, naming the address, if that fails."""
    address = os.environ.get("MASTER_ADDR", "")
    port = os.environ.get("MASTER_PORT", "0")
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    on_one_node = os.environ.get("LOCAL_WORLD_SIZE") == str(world_size)
    try:
        store = None
        if attempt != "0" and on_one_node:
            # torchrun's store still has the addresses of the ranks that died: each attempt gets
            # names of its own. On several nodes the counts can differ; there
            # TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps (scripts/slurm.sh).
            torchrun_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            is_server = rank == 0 and not torchrun_serves
            store = dist.TCPStore(address, int(port), world_size, is_server, timeout)
            store = dist.PrefixStore(attempt, store)
        # Without device_id: NCCL takes the device that start() has set, and no barrier guesses one.
        # With it, exchanges are known to hang at random (pytorch/pytorch issue 153960).
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    except (dist.DistError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise OSError(
            f"rank {rank} found no way to the other {world_size - 1} ranks at "
            f"MASTER_ADDR={address} MASTER_PORT={port} within {timeout.total_seconds():.0f} s: "
            f"check that address and that every rank was started ({reason})"
        ) from None


def stop():
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        # gloo's threads need Python's lock to let go of the last tensors; the end of the group has
        # it and waits for them (seen as a deadlock in torch 2.13), so they get time to do it first.
        time.sleep(0.2)
        dist.destroy_process_group()


def job_id() -> str | None:
    """What torchrun's attempts at one job have in common, and other jobs have not; None without
    torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name == "none":  # no --rdzv-id was given: the agent, which lives as long as the job
        return f"agent {os.getppid()}"
    return name


# -----------------------------------------------------------------------------
# Numbers


def sum_over_ranks(*values: float | Tensor) -> list[float]:
    """Each value summed in float64 over all ranks (unchanged in a single process)."""
    values = [float(value) for value in values]
    if not dist.is_initialized():
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return add_ranks(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def add_ranks(numbers: Tensor) -> Tensor:
    """The same for a tensor, on its device, without waiting for it."""
    if dist.is_initialized():
        numbers = numbers.double()
        dist.all_reduce(numbers)
    return numbers


def sum_by_name(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each number summed over all ranks, in one exchange, without waiting for it."""
    sums = add_ranks(torch.stack(list(numbers.values())))
    return dict(zip(numbers, sums.unbind(), strict=True))


class Later:
    """Numbers that a device may still be computing.

    read() waits for them, and for nothing begun after them.
    """

    def __init__(self, numbers: Tensor):
        self.numbers = numbers.detach().to("cpu", non_blocking=numbers.is_cuda)
        self.copied: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> list:
        if self.copied is not None:
            self.copied.synchronize()
        return self.numbers.tolist()


class LaterByName:
    """The same for numbers that have names: all are copied at once, and read() gives a dict."""

    def __init__(self, numbers: dict[str, Tensor]):
        self.names = list(numbers)
        self.later = Later(torch.stack(list(numbers.values())))

    def read(self) -> dict[str, float]:
        return dict(zip(self.names, self.later.read(), strict=True))


# -----------------------------------------------------------------------------
# Anything else


def gather(value: Any) -> list:
    """The values of all ranks, in order, on every rank: anything that can be pickled."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def own_number() -> tuple[int, int]:
    """(rank, number of ranks) of this process."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def is_main() -> bool:
    """Whether this is rank 0, or the only process."""
    rank, _ = own_number()
    return rank == 0


def on_main(action: Callable[[], Any]) -> Any:
    """Call action() on rank 0. What it returns, or the ValueError or OSError it raises, comes to
    every rank."""
    answer = None
    if is_main():
        try:
            answer = action()
        except (ValueError, OSError) as error:
            answer = error
    answer = gather(answer)[0]
    if isinstance(answer, Exception):
        raise answer
    return answer


def while_main_works(name: str, work: Callable[[], None], alive: Callable[[str], None]):
    """work() on rank 0, however long it takes; the others wait, and say that they are alive.
    name: of this piece of work, which happens once.

    An exchange would give up after the group's timeout; this asks the store by which the ranks
    found each other. What work() raises is raised on rank 0 alone, whose end is the job's.
    """
    if not dist.is_initialized():
        work()
        return
    store = dist.PrefixStore("done", dist.distributed_c10d._get_default_store())
    if is_main():
        work()
        store.set(name, "")
        return
    while not store.check([name]):
        alive(f"waiting for rank 0: {name}")
        time.sleep(0.01)


class Notes:
    """Short texts that the ranks leave for rank 0, at any time and from any thread.

    Through the store by which they found each other: an exchange from a second thread would get
    between those of training, unless it had a process group of its own, and so a second network.
    """

    def __init__(self, name: str):
        store = dist.distributed_c10d._get_default_store()
        self.store = dist.PrefixStore(name, store)

    def leave(self, text: str):
        self.store.set(str(dist.get_rank()), text)

    def take(self, rank: int) -> str | None:
        """What that rank has left, once; None if there is nothing yet."""
        key = str(rank)
        if not self.store.check([key]):
            return None
        text = self.store.get(key).decode()
        self.store.delete_key(key)
        return text
