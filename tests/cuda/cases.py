"""Training runs on the imaginary device: python cases.py LIBRARY FOLDER CASES.json

CASES.json: {name: {setting: value}}; a run's folder is FOLDER/name, its data FOLDER/data. Among the
settings are, too, `fault`, one of faults.py, and `as_compiled`: the code is what the compiler would
take. Prints {name: what became of it} as JSON.
"""

import sys

import no_gpu

if __name__ == "__main__":
    no_gpu.load(sys.argv[1])

import json
import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from unittest import mock

import imaginary
import torch
from imaginary import DEVICE, ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import faults
from tiny_run import settings

import model
import train


@contextmanager
def code_for_a_compiler() -> Iterator[None]:
    """Inside, model.py believes that it is compiled; blocks of a mask are so small that there are
    several."""
    with (
        mock.patch.object(torch.compiler, "is_compiling", lambda: True),
        mock.patch.object(model, "flex_attention", imaginary.attention_in_blocks),
        mock.patch.object(model, "BLOCK", 4),
    ):
        yield


def run_case(folder: Path, name: str, changed: dict) -> dict:
    DEVICE.__init__()
    fault = changed.pop("fault", "")
    code_taken = code_for_a_compiler() if changed.pop("as_compiled", False) else nullcontext()
    if changed.get("init_from") in os.listdir(folder):  # another case's run
        changed["init_from"] = str(folder / changed["init_from"])
    s = settings(str(folder / "data"), folder / name, **{"device": "cuda", **changed})
    error = ""
    code = None
    try:
        with code_taken, faults.planted(fault), imaginary.Imaginary():
            code = train.train(s)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
        traceback.print_exc()
    waits = Counter(DEVICE.waits)
    return {
        "code": code,
        "error": error,
        "replayed": DEVICE.replayed,
        "waits": [[what, line, n] for (what, line), n in waits.items()],
        "made": [
            [name, str(dtype), list(shape), n] for (name, dtype, shape), n in DEVICE.made.items()
        ],
    }


def main():
    torch.set_num_threads(1)
    imaginary.install()
    folder = Path(sys.argv[2])
    cases = json.loads(Path(sys.argv[3]).read_text())
    with redirect_stdout(sys.stderr):
        results = {name: run_case(folder, name, changed) for name, changed in cases.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
