"""Compiled training on the CPU, counted: python graphs.py FOLDER JOB.json

JOB.json: {name: {setting: value}}; a run's folder is FOLDER/name, its data FOLDER/data. The
compiler's front end, which decides what a graph is, is the same on every device; the backend here,
aot_eager, needs no C++ compiler. Under RANK, WORLD_SIZE, ... one of several ranks. Prints {name:
{"graphs", "breaks"}} as JSON. Among the settings are, too, `blocks`: documents are masked as on a
GPU, in blocks of 4; and `fault`: "a number", what is compiled depends on a number of the host, or
"samples", sharded blocks are compiled for samples.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from unittest import mock

import torch
import torch.nn.attention.flex_attention as flex
from torch import nn

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny_run import settings

import model
import train
from lathe.run import devices

compile_of_torch = nn.Module.compile
forward = model.GPT.forward


def counted(folder: Path, name: str, changed: dict) -> dict:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    s = settings(str(folder / "data"), folder / name, **{"compile": "true", **changed})
    with redirect_stdout(sys.stderr):
        assert train.train(s) == 0
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": dict(counters["graph_break"]),
    }


@contextmanager
def masked_in_blocks() -> Iterator[None]:
    """Inside, what is compiled has documents masked as on a GPU. torch refuses gradients of that on
    a CPU, which has no kernel for them; what they are computed by without one is there."""
    with (
        mock.patch.object(flex, "_validate_device", lambda *_: None),
        mock.patch.object(model.GPT, "masks_documents_in_blocks", lambda *_: True),
        mock.patch.object(model, "SHORT_CONTEXT", {}),
        mock.patch.object(model, "BLOCK", 4),
    ):
        yield


def with_a_number_of_the_host(forward):  # noqa: ANN001, ANN201
    def changed(self, idx, targets=None, reduction="mean"):  # noqa: ANN001, ANN202
        self.n_calls = getattr(self, "n_calls", 0) + 1
        return forward(self, idx, targets, reduction) * (1 if self.n_calls % 3 else 2)

    return changed


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    job = json.loads(Path(sys.argv[2]).read_text())
    nn.Module.compile = lambda self, **options: compile_of_torch(
        self, backend="aot_eager", **options
    )
    devices.compiler_fault = lambda device: None
    model.LOGITS_AT_ONCE = 257 * 16  # the loss in pieces, as with a large vocabulary
    report = {}
    for name, changed in job.items():
        os.environ["MASTER_PORT"] = str(changed.pop("port", 0))
        fault = changed.pop("fault", "")
        if fault == "a number":
            model.GPT.forward = with_a_number_of_the_host(forward)
        if fault == "samples":
            torch.compiler.set_stance = lambda stance: nullcontext()
        with masked_in_blocks() if changed.pop("blocks", False) else nullcontext():
            report[name] = counted(folder, name, changed)
        model.GPT.forward = forward
    print(json.dumps(report))


if __name__ == "__main__":
    main()
