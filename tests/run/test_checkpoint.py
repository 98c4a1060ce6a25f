"""What lathe/run/checkpoint.py promises: a folder with a step's name is whole, and the newest whole one is found."""

import json
import os
import random
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import ROOT, command, finished

from lathe.run import checkpoint
from lathe.run.files import write_json_with_checksum
from lathe.text.tokenizer import load_tokenizer
from lathe.use.network import load_weights

TOKENIZER = load_tokenizer("byte")


def state_of(step: int, size: int = 64) -> tuple[dict, dict, dict]:
    """(weights, optimizer, state) whose every number tells the step."""
    weights = {
        "a": torch.full((size, 3), float(step)),
        "b": torch.full((5,), float(step), dtype=torch.bfloat16),
    }
    return (
        weights,
        {"moment": {"a": torch.full((size, 3), step / 2)}, "random": (1, "x")},
        {"step": step},
    )


def save(out: Path, step: int, size: int = 64) -> Path:
    return checkpoint.save(out, *state_of(step, size), TOKENIZER)


def names(out: Path) -> set[str]:
    return {p.name for p in (out / "checkpoints").iterdir()}


# Saving and loading


def test_what_was_saved_is_loaded(tmp_path):
    path = save(tmp_path, 7)
    assert path.name == "step-0000007" and names(tmp_path) == {path.name}
    weights, optimizer, _ = state_of(7)
    for loaded in (load_weights(path), load_file(path / "model.safetensors")):
        assert all(
            torch.equal(weights[n], loaded[n]) and weights[n].dtype == loaded[n].dtype
            for n in weights
        )
    assert torch.equal(checkpoint.load_optimizer(path)["moment"]["a"], optimizer["moment"]["a"])
    assert (
        checkpoint.verify(path)["step"] == 7
        and load_tokenizer(path).fingerprint == TOKENIZER.fingerprint
    )


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 7, 64)
    path = save(tmp_path, 7, 32)
    assert len(load_weights(path)["a"]) == 32 and names(tmp_path) == {path.name}


def test_the_newest_whole_ones_and_the_best_stay(tmp_path):
    paths = [save(tmp_path, step) for step in range(1, 7)]
    checkpoint.mark_best(tmp_path, paths[1])
    (paths[4] / "optimizer.pt").unlink()
    checkpoint.prune(tmp_path, 2)
    # 6 and 4 are the newest whole ones, 2 the best; 5 is damaged: not counted and not deleted
    assert names(tmp_path) == {f"step-000000{step}" for step in (2, 4, 5, 6)} | {"best"}
    assert checkpoint.best_checkpoint(tmp_path) == paths[1]


def test_prune_never_deletes_the_last_whole_one(tmp_path):
    path = save(tmp_path, 1)
    checkpoint.prune(tmp_path, 0)
    assert checkpoint.newest_checkpoint(tmp_path) == (path, [])


def test_folders_that_only_look_like_checkpoints_are_passed_over(tmp_path):
    path = save(tmp_path, 3)
    for name in ("step-9", "step-0000009", "step-0000008.tmp", "stop-0000007"):
        (path.parent / name).mkdir()
    (path.parent / "step-0000010").write_text("a file")
    found, faults = checkpoint.newest_checkpoint(tmp_path)
    assert found == path and len(faults) == 1 and "step-0000009 is damaged" in faults[0]


def test_another_format_is_named(tmp_path):
    path = save(tmp_path, 3)
    write_json_with_checksum(path / "state.json", {**checkpoint.read_state(path), "format": 99})
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        checkpoint.find_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoints"):
        checkpoint.find_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoint.find_checkpoint(tmp_path / "nowhere")


def test_a_damaged_best_is_replaced_by_the_newest_whole_one(tmp_path):
    paths = [save(tmp_path, step) for step in (1, 2)]
    checkpoint.mark_best(tmp_path, paths[0])
    assert checkpoint.find_checkpoint(tmp_path) == paths[0]
    flip(paths[0] / "model.safetensors", 1000)
    assert checkpoint.find_checkpoint(tmp_path) == paths[1]


def test_a_strangers_code_is_not_run(tmp_path):
    path = save(tmp_path, 1)

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"optimizer": Code()}, path / "optimizer.pt")
    with pytest.raises(Exception, match="[Uu]nsupported|weights_only|Weights only"):
        checkpoint.load_optimizer(path)
    assert not (tmp_path / "ran").exists()


# Damage


def flip(path: Path, bit: int):
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def test_every_flipped_bit_and_every_cut_is_found_and_the_one_before_is_used(tmp_path):
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    rng = random.Random(0)
    files = sorted(p.name for p in new.iterdir())
    for _ in range(100):
        name = rng.choice(files)
        whole = (new / name).read_bytes()
        flip(new / name, rng.randrange(8 * len(whole)))
        found, faults = checkpoint.newest_checkpoint(tmp_path)
        assert (
            found == old
            and len(faults) == 1
            and "step-0000002 is damaged" in faults[0]
            and name in faults[0]
        )
        (new / name).write_bytes(whole)
    for name in files:
        whole = (new / name).read_bytes()
        for share in (0, 0.3, 0.9, 0.999):
            (new / name).write_bytes(whole[: min(int(share * len(whole)), len(whole) - 2)])
            found, faults = checkpoint.newest_checkpoint(tmp_path)
            assert found == old and len(faults) == 1 and name in faults[0]
        (new / name).unlink()
        assert checkpoint.newest_checkpoint(tmp_path)[0] == old
        (new / name).write_bytes(whole)
    assert checkpoint.newest_checkpoint(tmp_path) == (new, [])


def test_a_bit_that_flips_while_saving_is_found_before_the_folder_has_its_name(tmp_path):
    class Careless:
        """Damages a file between its writing and its reading back."""

        def __init__(self, name: str):
            self.name = name

        def save(self, folder: Path):
            TOKENIZER.save(folder)
            flip(folder / self.name, 5000)

    old = save(tmp_path, 1)
    for name in ("model.safetensors", "optimizer.pt"):
        with pytest.raises(OSError, match=f"could not be written.*{name} does not match"):
            checkpoint.save(tmp_path, *state_of(2), Careless(name))
    assert names(tmp_path) == {old.name}


# Killed while saving

KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from lathe.run import checkpoint
from lathe.use.network import load_weights
from tests.run.test_checkpoint import save

out, rng = Path(sys.argv[1]), random.Random(1)
for trial in range(40):
    before = checkpoint.newest_checkpoint(out)[0]
    step = int(before.name[5:]) if before else 0
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        checkpoint.sweep(out)
        for step in range(step + 1, step + 10_000):
            path = save(out, step, 20_000)
            checkpoint.mark_best(out, path)
            checkpoint.prune(out, 2)
            os.write(tell, b"%d\\n" % step)
    os.read(ready, 100)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(tell)
    published = int((os.read(ready, 100_000) or b"0").split()[-1])
    found, faults = checkpoint.newest_checkpoint(out)
    assert not faults, faults
    assert int(found.name[5:]) >= max(step, published), (found, step, published)
    assert torch.equal(load_weights(found)["a"], torch.full((20_000, 3), float(found.name[5:])))
    checkpoint.sweep(out)
    left = {p.name for p in (out / "checkpoints").iterdir()}
    assert all(name == "best" or checkpoint.STEP_NAME.fullmatch(name) for name in left), left
    assert checkpoint.best_checkpoint(out) is not None
print("40 of 40")
"""


@pytest.mark.slow
def test_forty_kills_at_random_moments_lose_no_checkpoint(tmp_path):
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    code, out, err = finished(command("-c", KILLED, tmp_path, env=env), 120)
    assert (code, out) == (0, "40 of 40\n"), err


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    path = save(tmp_path, 5)
    path.rename(path.with_name(".step-0000005.old"))
    checkpoint.sweep(tmp_path)
    assert checkpoint.newest_checkpoint(tmp_path) == (path, [])


# A disk that is full


def test_a_full_disk_leaves_the_old_checkpoint_and_no_remains(tmp_path):
    old = save(tmp_path, 1)
    pid = os.fork()
    if pid == 0:  # a limit on the size of files, in a child, since it cannot be lifted again
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            save(tmp_path, 2, 100_000)
        except OSError as error:
            told = str(error)
            needed = f"{2 * 1_200_000 + 10:,} bytes needed"
            code = 0 if needed in told and " free (" in told and "\n" not in told else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert names(tmp_path) == {old.name} and checkpoint.newest_checkpoint(tmp_path) == (old, [])


def test_a_small_disk_that_fills_up(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        old = save(disk, 1)
        with pytest.raises(
            OSError, match="bytes needed, .* free .*older checkpoints are untouched"
        ):
            save(disk, 2, 60_000)
        assert names(disk) == {old.name} and checkpoint.newest_checkpoint(disk) == (old, [])
    finally:
        subprocess.run(["umount", disk], check=True)


# For people


def test_state_is_json_that_people_can_read(tmp_path):
    path = save(tmp_path, 3)
    state = json.loads((path / "state.json").read_text())
    assert state["step"] == 3 and set(state["files"]) | {"state.json"} == {
        p.name for p in path.iterdir()
    }
