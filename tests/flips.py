"""One rank of a job that trains again and again, each time with one bit flipped in one rank.

python flips.py JOB.json: {"settings", "ports": [one for each time], "targets": [weight, moment, gradient, batch, table, its moment; one
for each time], "step": of the flip, "rank": whose}. Prints a line of JSON for each time: what became of it on this rank.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import train
from lathe.run import ranks
from lathe.settings import Settings

INTEGERS = {2: torch.int16, 4: torch.int32}


def flip(tensor: Tensor, chance: random.Random):
    """One bit of one of its numbers."""
    numbers = tensor.detach().view(INTEGERS[tensor.element_size()]).flatten()
    bit = 1 << chance.randrange(8 * tensor.element_size() - 1)  # the sign would not fit the type
    numbers[chance.randrange(len(numbers))] ^= bit


class Flip:
    """One bit, once, where `target` says, around the update after `step` updates."""

    def __init__(self, target: str, step: int, chance: random.Random):
        self.target = target
        self.step = step
        self.chance = chance
        self.step_of_training = train.train_step
        self.norm = train.total_norm

    def __enter__(self):
        train.train_step = self.train_step

    def __exit__(self, *_: object):
        train.train_step = self.step_of_training
        train.total_norm = self.norm

    def train_step(self, run: train.Run) -> dict[str, Tensor]:
        is_time = run.state.step == self.step
        if is_time and self.target == "gradient":
            train.total_norm = self.norm_after_flip
        if is_time and self.target == "batch":
            run.batches.fetch = self.other_batch(run.batches.fetch)
        numbers = self.step_of_training(run)
        if is_time and self.target == "weight":
            flip(self.chance.choice(run.parameters), self.chance)
        if is_time and self.target in ("table", "its moment"):
            table = run.model.transformer["ngrams"].weight
            adagrad = run.optimizers[-1]
            flip(
                table if self.target == "table" else adagrad.state[table]["sum_of_squares"],
                self.chance,
            )
        if is_time and self.target == "moment":
            optimizer = self.chance.choice(run.optimizers)
            state = optimizer.state[self.chance.choice(list(optimizer.state))]
            moments = [t for t in state.values() if isinstance(t, Tensor) and t.dim()]
            flip(self.chance.choice(moments), self.chance)
        return numbers

    def norm_after_flip(self, parameters: list[Tensor]) -> Tensor:
        train.total_norm = self.norm
        flip(self.chance.choice([p.grad for p in parameters]), self.chance)
        return self.norm(parameters)

    def other_batch(self, fetch: Callable) -> Callable:
        waiting = [True]

        def fetch_once_otherwise(seen: int, micro: int) -> tuple[Tensor, Tensor]:
            x, y = fetch(seen, micro)
            if waiting:
                waiting.clear()
                numbers = self.chance.choice([x, y]).flatten()
                numbers[self.chance.randrange(len(numbers))] ^= 1 << self.chance.randrange(7)
            return x, y

        return fetch_once_otherwise


def main():
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    rank = int(os.environ["RANK"])
    for i, (target, port) in enumerate(zip(job["targets"], job["ports"], strict=True)):
        os.environ["MASTER_PORT"] = str(port)
        settings = Settings(**{**job["settings"], "out_dir": f"{job['settings']['out_dir']}-{i}"})
        step = job["step"] if rank == job["rank"] and target else -1
        noticed = ""
        with Flip(target, step, random.Random(i)):
            try:
                train.train(settings)
            except ValueError as error:
                noticed = str(error)
                if dist.is_initialized():
                    ranks.stop()
        print(json.dumps({"target": target, "noticed": noticed}), flush=True)


if __name__ == "__main__":
    main()
