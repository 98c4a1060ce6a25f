"""Ranks of a job that saves a sharded network without end, for tests that kill them.

python saving_ranks.py OUT TRIALS RANKS SEED: in each trial RANKS processes go on from the newest
checkpoint, save step after step in the background, and are killed, all or one of them, at a random
moment. Whatever was published before must be whole then, and a rank that lives on must end by
itself. Prints a line a trial.
"""

import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_run import free_ports
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lathe.run import checkpoint, ranks, sharded_save
from lathe.run.background import BackgroundWriter
from lathe.text.tokenizer import load_tokenizer
from lathe.use.network import load_weights

ROWS, COLUMNS = 1003, 64  # shares of different heights


def save_for_ever(rank: int, n_ranks: int, port: int, out: Path, done: int, first: int):
    """One rank. Rank 0 writes the number of each step that is published to the pipe `done`."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=n_ranks)
    ranks.on_main(lambda: checkpoint.sweep(out))
    layer = nn.Linear(COLUMNS, ROWS, bias=False)
    fully_shard(layer, mesh=init_device_mesh("cpu", (n_ranks,)))
    tokenizer = load_tokenizer("byte")
    with BackgroundWriter() as writer:
        for step in range(first, first + 10_000):
            with torch.no_grad():
                layer.weight.fill_(float(step))
            writer.wait_on_all()
            if rank == 0 and step > first:
                os.write(done, b"%d\n" % (step - 1))
            moments = {"weight": {"momentum": layer.weight.detach() / 2}}
            share = sharded_save.take_share(out, step, layer.state_dict(), moments, copy=True)
            if rank:
                writer.start(lambda share=share: sharded_save.write_share(share))
                continue

            def publish(share: sharded_save.Share = share, step: int = step):
                def save() -> Path:
                    state = {"step": step}
                    return sharded_save.save(share, {}, state, tokenizer, writer.leaving)

                checkpoint.publish(out, save, best=True, keep=2)

            writer.start(publish)


def start_rank(rank: int, *arguments) -> int:
    """The id of a process that ends with 1 in place of going on here."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # should all else fail
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)  # of the ranks that lose another
            save_for_ever(rank, *arguments)
        finally:
            os._exit(1)
    return child


def trial(out: Path, n_ranks: int, rng: random.Random) -> str:
    before = checkpoint.newest_checkpoint(out)[0]
    first = checkpoint.step_of(before) + 1 if before else 1
    ready, done = os.pipe()
    (port,) = free_ports(1)
    arguments = (n_ranks, port, out, done, first)
    children = [start_rank(rank, *arguments) for rank in range(n_ranks)]
    os.close(done)
    assert select.select([ready], [], [], 60)[0], "nothing was published"
    time.sleep(rng.uniform(0, 0.15))
    victims = rng.choice([children, *([child] for child in children)])
    for child in victims:
        os.kill(child, signal.SIGKILL)
    for child in children:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (1, -signal.SIGKILL), f"a rank that lived on ended with {code}"
    published = int((os.read(ready, 100_000) or b"%d\n" % first).split()[-1])
    os.close(ready)

    found, faults = checkpoint.newest_checkpoint(out)
    assert not faults, faults
    step = checkpoint.step_of(found)
    assert step >= published, (step, published)
    expected = torch.full((ROWS, COLUMNS), float(step))
    assert torch.equal(load_weights(found)["weight"], expected)
    moment = checkpoint.load_optimizer(found)["optimizer"]["weight"]["momentum"]
    assert torch.equal(moment[...], expected / 2)
    assert checkpoint.best_checkpoint(out) is not None
    who = "all" if len(victims) > 1 else f"rank {children.index(victims[0])}"
    return f"killed {who} at step {step}"


def main():
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    trials, n_ranks, seed = map(int, sys.argv[2:])
    rng = random.Random(seed)
    for _ in range(trials):
        print(trial(out, n_ranks, rng), flush=True)


if __name__ == "__main__":
    main()
