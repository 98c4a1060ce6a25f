"""Datasets that any machine can make by itself."""

import subprocess
import sys
import time
from pathlib import Path

from lathe import ROOT
from lathe.run.lock import InUseError, lock_folder
from lathe.terminal import print_note

OWN_DATA = {  # folder: the command that makes it
    "data/python_stdlib": "prepare/python_stdlib.py",
    "data/example_reverse": "prepare/examples.py reverse",
    "data/example_add": "prepare/examples.py add",
    "data/example_sentiment": "prepare/examples.py sentiment",
    "data/example_translate": "prepare/examples.py translate",
}


def prepare_own(path: str | Path):
    """Prepare a dataset of OWN_DATA if it is missing. ValueError if that fails."""
    command = OWN_DATA.get(str(path))
    if command is None or Path(path, "meta.json").exists():
        return
    if wait_for_another(Path(path)):
        return
    print_note(f"dataset {path} is missing: running python {command}")
    script, *words = command.split()
    done = subprocess.run([sys.executable, ROOT / script, *words, f"--out={path}"])
    if done.returncode != 0 and not wait_for_another(Path(path)):  # which began at the same time
        raise ValueError(f"{path} could not be prepared: run python {command} to see why")


def wait_for_another(path: Path) -> bool:
    """Whether another process has prepared the dataset; waits while one does."""
    said = False
    while path.exists():
        try:
            with lock_folder("out", path):
                break
        except InUseError as error:
            if not said:
                print_note(f"{error} (it prepares the same: waiting for it)")
            said = True
            time.sleep(0.2)
    return (path / "meta.json").exists()
