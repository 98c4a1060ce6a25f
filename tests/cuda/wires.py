"""What rank 0 of many sends in a step: python wires.py JOB..., each WORLD-ddp or WORLD-fsdp

A process group that sends nothing stands for the others, 8 to a node; the network, DDP or FSDP2, and the
optimizers are the real ones, on the CPU, but send in the types that a GPU does. Prints as JSON {job:
{"weights": their bytes, "matrices": those of Muon's parameters, "sent": {phase: {collective: [count,
bytes]}}}} of the third step, which is like all others.

A fault is put into a job WORLD-ddp-FAULT: `extra`, an all-gather more in each forward pass;
`buffers`, DDP that passes its buffers on; `float32`, everything sent in that.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

from lathe.optim import orthogonal, sharing
from lathe.optim.build import build_optimizers
from lathe.optim.muon import Muon
from lathe.optim.optimizer import Optimizer
from lathe.optim.schedule import set_rates
from lathe.run import parallel as parallel_file
from lathe.run import ranks
from lathe.run.devices import Runtime
from lathe.run.parallel import parallelize, total_norm
from model import GPT, GPTConfig

# The shapes of a 124M network at a twelfth of its width: 12 layers count for Muon's exchange.
CONFIG = dict(vocab_size=512, block_size=32, n_layer=12, n_head=2, n_embd=64)
MICRO_STEPS = 2


class Wires(TorchDispatchMode):
    """Counts collectives and their bytes, as tensors that go in or come out of one rank."""

    def __init__(self):
        super().__init__()
        self.phase = ""
        self.sent: dict = defaultdict(lambda: defaultdict(lambda: [0, 0]))

    def add(self, name: str, n_bytes: int):
        entry = self.sent[self.phase][name]
        entry[0] += 1
        entry[1] += n_bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # it then comes again, as what is done to its local parts
        name = str(func)
        if "c10d" in name and "wait" not in name:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            sizes = [t.numel() * t.element_size() for t in tensors]
            short = name.split(".")[1].strip("_")
            self.add(short, max(sizes, default=0))
        return func(*args, **(kwargs or {}))


def count_buckets(network: nn.parallel.DistributedDataParallel, wires: Wires):
    """DDP's reducer, which is in C++, is only seen by a hook."""

    def hook(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        wires.add("DDP's bucket", buffer.numel() * buffer.element_size())
        future = torch.futures.Future()
        future.set_result(buffer)
        return future

    network.register_comm_hook(None, hook)


def step(
    network: nn.Module, optimizers: list[Optimizer], wires: Wires, extra: bool, world: int
) -> None:
    """A step of train.py: two micro-batches, the norm, numbers for the host, the optimizers."""
    x = torch.randint(CONFIG["vocab_size"], (1, 32))
    for micro in range(MICRO_STEPS):
        is_last = micro == MICRO_STEPS - 1
        with nullcontext() if is_last else getattr(network, "no_sync", nullcontext)():
            wires.phase = "forward"
            loss = network(x, x, reduction="sum")
            if extra:
                dist.all_gather_into_tensor(torch.empty(world), loss.detach().view(1))
            wires.phase = "backward"
            loss.backward()
    parameters = list(network.parameters())
    wires.phase = "norm"
    norm = total_norm(parameters)
    nn.utils.clip_grads_with_norm_(parameters, 1.0, norm, foreach=True)
    wires.phase = "numbers"
    ranks.sum_by_name({"loss": loss.detach(), "stops_asked": torch.zeros(())})
    wires.phase = "optimizers"
    skip = torch.zeros((), dtype=torch.bool)  # a fake exchange leaves whatever was in memory
    for optimizer in optimizers:
        optimizer.step(skip)
        optimizer.zero_grad()


@contextmanager
def types_of_a_gpu() -> Iterator[None]:
    """Inside, exchanges are in bfloat16."""

    def bfloat16(_: object) -> torch.dtype:
        return torch.bfloat16

    with (
        mock.patch.object(orthogonal, "iteration_dtype", bfloat16),
        mock.patch.object(sharing, "iteration_dtype", bfloat16),
        mock.patch.object(parallel_file, "wire_dtype", bfloat16),
    ):
        yield


def n_bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def count(world: int, parallel: str, fault: str = "") -> dict:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    torch.manual_seed(0)
    model = GPT(GPTConfig(**CONFIG)).train()
    weights = n_bytes(model.parameters())
    runtime = Runtime(torch.device("cpu"), torch.float32, 0, world)
    network = parallelize(model, model.transformer.h, parallel, False, runtime)
    if fault == "buffers":
        network = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizers = build_optimizers(
        model.named_parameters(), "muon", 0.004, 0.02, 0.1, (0.9, 0.95), 0.95, model.fused_rows()
    )
    (muon,) = [o for o in optimizers if isinstance(o, Muon)]
    matrices = n_bytes(muon.param_groups[0]["params"])
    set_rates(optimizers, 1.0)
    wires = Wires()
    if parallel == "ddp":
        count_buckets(network, wires)
    with wires:
        for _ in range(3):  # DDP orders its buckets anew after the first
            wires.sent.clear()
            step(network, optimizers, wires, fault == "extra", world)
    dist.destroy_process_group()
    return {"weights": weights, "matrices": matrices, "sent": wires.sent}


def main():
    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = "8"
    report = {}
    for job in sys.argv[1:]:
        world, *rest = job.split("-")
        with nullcontext() if "float32" in rest else types_of_a_gpu():
            report[job] = count(int(world), *rest)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
