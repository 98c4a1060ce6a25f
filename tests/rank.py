"""One rank of a job, for the tests: python rank.py JOBS.json runs its training runs one after the other.

JOBS.json: [{"port", "settings": {name: value}, "fault": [kind, rank, number of a forward pass in training], "from":
[folder of another run, step]}]. Faults happen to the process for real: its loss becomes NaN or a thousandfold, it is
killed, it sleeps, its disk is full, its out_dir is suddenly another folder than the other ranks'. "from" makes out_dir
a copy of that run as it was when the checkpoint of that step was its newest.
"""

import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import train
from lathe import cli
from lathe.run import checkpoint, sharded_save
from lathe.settings import Settings
from model import GPT


class Fault:
    """What happens in one forward pass of training: the process is killed or hangs, the loss of its
    network becomes NaN or a thousandfold, its disk fills up, or out_dir is no longer the others'.
    Or it is asked to stop, there or in one of an evaluation."""

    FACTORS = {"nan": float("nan"), "spike": 1000.0}

    def __init__(self, kind: str, number: int, out_dir: str):
        self.kind = kind
        self.out_dir = out_dir
        self.number = number  # of the pass; the first is the one that is tried before training
        self.passes = 0

    def inject(self, model: GPT):
        model.register_forward_pre_hook(self.before)
        model.register_forward_hook(self.after)

    def before(self, model: GPT, inputs: tuple):
        if model.training == (self.kind == "signal in an evaluation"):
            return
        self.passes += 1
        if self.passes == self.number:
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.kind in ("signal", "signal in an evaluation"):
                os.kill(os.getpid(), signal.SIGTERM)
            elif self.kind == "hang":
                time.sleep(3600)
            elif self.kind == "full disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
            elif self.kind == "other folder":
                os.chdir(tempfile.mkdtemp())
                for step in range(100):  # where it can write, but not for the others
                    checkpoint.temporary_path(self.out_dir, step).mkdir(parents=True)

    def after(self, model: GPT, inputs: tuple, loss: Tensor) -> Tensor:
        if model.training and self.passes == self.number:
            return loss * self.FACTORS.get(self.kind, 1.0)
        return loss


def as_it_was(out_dir: str, source: str, step: int):
    """Make out_dir a copy of the run `source` when its newest checkpoint was that of `step`."""
    shutil.copytree(source, out_dir)
    Path(out_dir, "checkpoints", "best").unlink()
    for folder in Path(out_dir, "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def build_faulty(build: Callable[..., GPT], fault: Fault, *args: Any) -> GPT:
    model = build(*args)
    fault.inject(model)
    return model


def slowly(generate: Callable[..., Iterator], *args: Any) -> Iterator:
    for tokens in generate(*args):
        time.sleep(0.2)
        yield tokens


def run_job(job: dict, rank: int) -> int:
    """Train as the job says; returns the exit code."""
    settings = job["settings"]
    if "port" in job:
        os.environ["MASTER_PORT"] = str(job["port"])
    if job.get("from") and rank == 0:
        source, step = job["from"]
        as_it_was(settings["out_dir"], source, step)
    build = train.build_model
    is_restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if job.get("fault") and not is_restart:
        kind, faulty_rank, number = job["fault"]
        if rank == faulty_rank:
            if kind == "slow samples":
                train.generate = partial(slowly, train.generate)
            fault = Fault(kind, number, settings["out_dir"])
            train.build_model = partial(build_faulty, build, fault)
    code = train.train(Settings(**settings))
    train.build_model = build
    return code


def main() -> int:
    torch.set_num_threads(1)
    sharded_save.PATIENCE = 1.0  # the disk here is no network's
    rank = int(os.environ.get("RANK", 0))
    code = 0
    for job in json.loads(Path(sys.argv[1]).read_text()):
        code = run_job(job, rank)
        gc.unfreeze()
        gc.collect()  # the group of this job is gone before that of the next comes
    return code


if __name__ == "__main__":
    cli.run(main)
