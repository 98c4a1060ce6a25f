"""One rank of a job, for the tests: python rank.py JOBS.json runs its training runs one after the other.

JOBS.json: [{"port", "settings": {name: value}, "fault": [kind, rank, number of a forward pass in training], "from":
[folder of another run, step]}]. Faults happen to the process for real: its loss becomes NaN or a thousandfold, it is
killed, it sleeps. "from" makes out_dir a copy of that run as it was when the checkpoint of that step was its newest.
"""

import gc
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

import train
from lathe import cli
from lathe.settings import Settings


def inject(model, kind: str, at: int):
    count = 0

    def before(module, args):
        nonlocal count
        count += module.training
        if count == at and module.training:
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "hang":
                time.sleep(3600)

    def after(module, args, loss):
        factor = {"nan": float("nan"), "spike": 1000.0}.get(kind, 1.0)
        return loss * factor if count == at and module.training else loss

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)


def as_it_was(out_dir: str, source: str, step: int):
    shutil.copytree(source, out_dir)
    Path(out_dir, "checkpoints", "best").unlink()
    for folder in Path(out_dir, "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)


def main():
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", 0))
    for job in json.load(open(sys.argv[1])):
        if "port" in job:
            os.environ["MASTER_PORT"] = str(job["port"])
        if job.get("from") and rank == 0:
            as_it_was(job["settings"]["out_dir"], *job["from"])
        build = train.build_model
        if (
            job.get("fault")
            and job["fault"][1] == rank
            and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        ):

            def faulty(*args, build=build, fault=job["fault"]):
                model = build(*args)
                inject(model, fault[0], fault[2])
                return model

            train.build_model = faulty
        code = train.train(Settings(**job["settings"]))
        train.build_model = build
        gc.unfreeze()
        gc.collect()  # the group of this job is gone before that of the next comes
    return code


if __name__ == "__main__":
    cli.run(main)
