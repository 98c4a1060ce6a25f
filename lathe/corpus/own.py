"""Datasets that any machine can make by itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

from lathe import ROOT
from lathe.commands import command_line
from lathe.corpus.report import CALLED_BY_TRAINING
from lathe.run.lock import InUseError, lock_folder
from lathe.terminal import fit, print_note

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
    said = False
    while True:
        try:
            # One at a time: what makes a dataset may write its texts before it holds the folder.
            with lock_folder("out", Path(path).parent):
                if not Path(path, "meta.json").exists():
                    run_command(path, command)
                return
        except InUseError as error:
            if not said:
                print_note(f"{error} (it prepares a dataset: waiting for it)")
            said = True
            time.sleep(0.2)


def run_command(path: str | Path, command: str):
    print_note(fit(f"dataset {path} is missing: running python {command}", sys.stderr))
    script, *words = command.split()
    environment = {**os.environ, CALLED_BY_TRAINING: "1"}
    done = subprocess.run([sys.executable, ROOT / script, *words, f"--out={path}"], env=environment)
    if done.returncode != 0:
        again = command_line(script, *words)
        raise ValueError(f"{path} could not be prepared: run {again} to see why")
