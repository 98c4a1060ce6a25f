"""Datasets that any machine can make by itself."""

import subprocess
import sys
from pathlib import Path

from lathe import ROOT

OWN_DATA = {"data/python_stdlib": "prepare/python_stdlib.py"}  # what any machine can make by itself, and by what
OWN_DATA |= {f"data/example_{t}": f"prepare/examples.py {t}" for t in ("reverse", "add", "sentiment", "translate")}


def prepare_own(path):
    """Prepare a dataset of OWN_DATA if it is missing. ValueError if that fails."""
    if str(path) not in OWN_DATA or Path(path, "meta.json").exists():
        return
    script, *words = OWN_DATA[str(path)].split()
    print(f"dataset {path} is missing: running python {OWN_DATA[str(path)]}", file=sys.stderr, flush=True)
    if subprocess.run([sys.executable, ROOT / script, *words, f"--out={path}"]).returncode:
        raise ValueError(f"{path} could not be prepared: run python {OWN_DATA[str(path)]} to see why")
