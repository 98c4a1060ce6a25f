"""Silent corruption, found: a bit that flipped in one rank's memory, a number that is not finite, a
processor that computes the same thing twice and gets two results.

At each evaluation and each save the ranks compare checksums of what all of them hold, the batches
of late steps are read from disk again, and now and then the last micro-batch is computed twice.
What does not fit ends the run before it is saved: its last checkpoint is good. The idea of a step
computed again is lm-resiliency's; that ranks of DDP hold the same bits follows from all of them
adding the same numbers.
"""

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lathe.data.batches import TrainBatches
from lathe.optim.optimizer import is_sharded, local
from lathe.run import ranks
from lathe.run.devices import Runtime
from lathe.run.process import random_state, set_random_state

TOKENS_READ_AGAIN = 1 << 22  # of the latest micro-batches, at each check: 8 MB of a disk
MICRO_STEPS_BETWEEN_REPLAYS = 400  # a replay computes two: half a percent
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


@dataclass(frozen=True)
class UsedBatch:
    """A micro-batch that was trained on."""

    step: int  # of which it was a part
    seen: int  # samples before that step
    micro: int
    checksum: Tensor  # int64 (), on the device


@dataclass
class Findings:
    """What a rank says of itself; all ranks see those of all."""

    not_finite: list[str]  # names of tensors
    checksums: dict[str, int]  # by the tensor's name; empty where ranks hold different parts
    other_batches: list[int] = field(default_factory=list)  # steps


class Soundness:
    """Keeps what the checks of one rank need."""

    def __init__(self, batches: TrainBatches, tokens_per_micro_batch: int, world_size: int):
        self.batches = batches
        self.world_size = world_size
        self.checked_step: int | None = None
        self.micro_steps = 0  # since the last replay
        most = max(1, TOKENS_READ_AGAIN // (tokens_per_micro_batch * world_size))
        self.used: deque[UsedBatch] = deque(maxlen=most)

    def use(self, step: int, seen: int, micro: int, x: Tensor, y: Tensor):
        """Remember a micro-batch by its sum: no wait, and one number."""
        self.micro_steps += 1
        self.used.append(UsedBatch(step, seen, micro, checksum_of_batch(x, y)))

    def check(self, step: int, tensors: dict[str, Tensor], last_good: Callable[[], str]):
        """Raises ValueError, on every rank, with rank, step and tensor, if something is wrong.

        tensors: weights and optimizer state, by name.
        """
        self.checked_step = step
        own = Findings(
            not_finite=not_finite(tensors),
            checksums=checksums(tensors) if self.world_size > 1 else {},
            other_batches=self.batches_that_differ(),
        )
        fault = describe(ranks.gather(own))
        if fault:
            raise ValueError(
                f"step {step} is not saved: {fault}; the last good checkpoint is {last_good()}, "
                "--init_from=resume goes on from it"
            )

    def batches_that_differ(self) -> list[int]:
        """Steps of which a batch, read again, is not the one that was trained on."""
        if not self.used:
            return []
        again = []
        for batch in self.used:
            x, y = self.batches.fetch(batch.seen, batch.micro)
            again.append(checksum_of_batch(x, y))
        then = torch.stack([batch.checksum for batch in self.used])
        differ = (torch.stack(again) != then).tolist()
        steps = {batch.step for batch, differs in zip(self.used, differ, strict=True) if differs}
        self.used.clear()
        return sorted(steps)

    def replay_is_due(self) -> bool:
        return self.micro_steps >= MICRO_STEPS_BETWEEN_REPLAYS

    def replay(self, model: nn.Module, runtime: Runtime, seen: int, micro: int) -> int:
        """Compute a micro-batch twice; in how many tensors the gradients differ: 0 where sound.

        Neither weights, gradients nor random numbers of training change.
        """
        self.micro_steps = 0
        state = random_state(runtime.device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        sums = []
        for _ in range(2):
            set_random_state(state, runtime.device)
            x, y = self.batches.fetch(seen, micro)
            with runtime.autocast():
                loss = model(x, y, reduction="sum")
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            sums.append([bits_sum(g) for g in gradients if g is not None])
        set_random_state(state, runtime.device)
        first, second = (torch.stack(sums_of_run) for sums_of_run in sums)
        return int((first != second).sum())


def checksum_of_batch(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(x.sum(), y.sum(), alpha=3)  # so that what moves from one to the other shows


def bits_sum(tensor: Tensor) -> Tensor:
    """int64 (): the sum of a tensor's numbers read as integers, which every flipped bit changes. Of
    a sparse one, of its values and of where they belong."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce()
        return bits_sum(tensor.values()) + bits_sum(tensor.indices())
    tensor = tensor.contiguous()
    return tensor.view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def checksums(tensors: dict[str, Tensor]) -> dict[str, int]:
    """By name; those of shards are left out, since no other rank has the same."""
    whole = {name: t for name, t in tensors.items() if not is_sharded(t) and t.numel()}
    if not whole:
        return {}
    sums = read_together([bits_sum(t) for t in whole.values()])
    return dict(zip(whole, sums, strict=True))


def read_together(numbers: list[Tensor]) -> list:
    """The numbers on the host, with one wait for a device."""
    if len({n.device for n in numbers}) > 1:  # counts of steps stay on the host
        return [n.item() for n in numbers]
    return torch.stack(numbers).tolist()


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that have a number that is none, or infinite."""
    numbers = {}
    for name, tensor in tensors.items():
        part = local(tensor)
        if part.is_floating_point() and part.numel():
            numbers[name] = part.detach()
    if not numbers:
        return []
    largest = torch._foreach_norm(list(numbers.values()), float("inf"))
    values = read_together([n.float() for n in largest])
    return [name for name, value in zip(numbers, values, strict=True) if not math.isfinite(value)]


def describe(findings: list[Findings]) -> str:
    """What is wrong, with the first rank of which it is known; "" if nothing is."""
    for rank, found in enumerate(findings):
        if found.not_finite:
            names = found.not_finite
            return f"{count(names)} of rank {rank} not finite, {names[0]} for one"
        if found.other_batches:
            steps = found.other_batches
            return (
                f"rank {rank} trained on another batch at step {steps[0]} than its data has: its "
                "memory or the file changed"
            )
    differing = [
        name
        for name in findings[0].checksums
        if len({found.checksums.get(name) for found in findings}) > 1
    ]
    if not differing:
        return ""
    values = [found.checksums.get(differing[0]) for found in findings]
    usual, n_usual = Counter(values).most_common(1)[0]
    others = [str(rank) for rank, value in enumerate(values) if value != usual]
    who = f"rank {', '.join(others)} has"
    if 2 * n_usual <= len(values):  # no majority: nobody can tell which is right
        who = "the ranks have"
    return (
        f"{who} other numbers than the others in {count(differing)}, {differing[0]} for one: "
        "memory or a processor is at fault"
    )


def count(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
