"""A folder that one process at a time may write to."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lathe import ROOT
from lathe.run.lock import lock_folder

HOLD = """
import sys, time
from pathlib import Path
from lathe.run.lock import lock_folder
with lock_folder("out_dir", Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_of_a_folder_is_refused_by_name_until_the_first_is_gone(tmp_path: Path):
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout.readline() == "held\n"
    holder = f"out_dir .* is in use by process {process.pid} on .*choose another --out_dir"
    with pytest.raises(OSError, match=holder), lock_folder("out_dir", tmp_path):
        pass
    process.kill()
    process.communicate()
    for _ in range(2):
        with lock_folder("out_dir", tmp_path):
            pass


@pytest.mark.parametrize("fate", ["deleted", "renamed", "lock removed", "lock of another"])
def test_a_folder_that_is_no_longer_the_one_that_is_held_is_noticed(tmp_path: Path, fate: str):
    folder = tmp_path / "run"
    with lock_folder("out_dir", folder) as held:
        held.check()
        if fate == "deleted":
            shutil.rmtree(folder)
        elif fate == "renamed":
            folder.rename(tmp_path / "elsewhere")
        else:
            (folder / "lock").unlink()
        if fate == "lock of another":
            with lock_folder("out_dir", folder), pytest.raises(OSError, match="another file lock"):
                held.check()
        else:
            with pytest.raises(OSError, match=f"out_dir {folder} is gone"):
                held.check()
