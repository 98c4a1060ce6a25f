"""The imaginary device's library, built once, and training runs on it, in a process of their own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import no_gpu
import pytest
import torch
from tiny_run import command, finished, make_dataset

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """no_gpu.so; skips where it cannot be built."""
    if torch.version.cuda or torch.version.hip:
        pytest.skip(
            "this build of torch has a CUDA of its own: the imaginary one is for a CPU build"
        )
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler for the imaginary CUDA device: install g++")
    return no_gpu.build(tmp_path_factory.mktemp("no_gpu"))


@pytest.fixture(scope="session")
def run_on_cuda(library, tmp_path_factory):
    """{name: settings} -> folder with those runs, {name: what cases.py says of each}.

    before(folder) comes first, once there are data.
    """

    def run(
        cases: dict[str, dict], before: Callable[[Path], None] = lambda _: None
    ) -> tuple[Path, dict[str, dict]]:
        folder = tmp_path_factory.mktemp("imaginary")
        make_dataset(folder / "data")
        before(folder)
        (folder / "cases.json").write_text(json.dumps(cases))
        words = (library, folder, folder / "cases.json")
        code, out, err = finished(command(HERE / "cases.py", *words), 600)
        assert code == 0, err[-3000:]
        return folder, json.loads(out)

    return run
