"""A run's folder: what is saved in it, which of that is whole, and what is loaded back.

    out_dir/settings.toml  metrics.jsonl  samples.jsonl
    out_dir/checkpoints/step-0000500/   model.safetensors  optimizer.pt  state.json  tokenizer files
    out_dir/checkpoints/best            the name of the best step's folder

A checkpoint is written into a temporary folder, forced to disk, read back and compared with the checksums of what was
in memory, and only then given its name. So a folder named step-N is complete, or it was damaged afterwards; verify()
tells. It holds whole tensors, however many ranks wrote or read it.
"""

import json
import math
import platform
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from lathe.run.files import (
    CheckedFile,
    crc32,
    flush_to_disk,
    replace_folder,
    write_json_with_checksum,
)
from lathe.run.tensor_file import write_safetensors
from model import GPTConfig

FORMAT = 1
STEP_NAME = re.compile(r"step-(\d{7,})")


# Saving


def step_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / "checkpoints" / f"step-{step:07d}"


def describe(settings, train, config: GPTConfig, dataset, world_size: int) -> dict:
    """state.json of a checkpoint. `settings` and `train`, where the run is, are dataclasses."""
    now = train.evaluation if train.evaluation.get("step") == train.step else {}
    return {
        "step": train.step, "samples": train.samples, "train": asdict(train), "model": asdict(config),
        "settings": asdict(settings), "dataset": {"path": settings.dataset, "fingerprint": dataset.fingerprint},
        "tokenizer": {"name": dataset.tokenizer_name, "fingerprint": dataset.tokenizer_fingerprint},
        "template": dataset.template,  # of the chats that it was trained on, see text/chat.py
        "val_loss": now.get("val_loss"), "world_size": world_size,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip


def save(out_dir: str | Path, weights: dict[str, Tensor], optimizer: dict, state: dict, tokenizer) -> Path:
    """Write a checkpoint of step state["step"] and return its folder; an older one of the same step is replaced.

    weights: names and tensors, on the CPU. optimizer: whatever torch.load(weights_only=True) reads back.
    state: JSON values. tokenizer: has save(folder). Raises OSError, with what is needed and free, if the disk is full;
    nothing is left behind then, and older checkpoints stay untouched.
    """
    final = step_path(out_dir, state["step"])
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {}
        with CheckedFile(temporary / "model.safetensors", files) as file:
            write_safetensors(file, weights)
        with CheckedFile(temporary / "optimizer.pt", files) as file:
            torch.serialization.set_crc32_options(False)  # the zip file's own, which torch.load never compares
            torch.save(optimizer, file)
            torch.serialization.set_crc32_options(True)
        tokenizer.save(temporary)
        for path in set(temporary.iterdir()) - {temporary / name for name in files}:
            flush_to_disk(path)
            files[path.name] = {"size": path.stat().st_size, "crc32": crc32(path)}
        write_json_with_checksum(temporary / "state.json", {"format": FORMAT, **state, "files": files})
        verify(temporary)
        flush_to_disk(temporary)
        replace_folder(temporary, final)
    except (OSError, RuntimeError, ValueError) as error:  # torch hides a full disk in a RuntimeError
        written = sum(p.stat().st_size for p in temporary.iterdir()) if temporary.exists() else 0
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.numel() * t.element_size() for t in [*weights.values(), *tensors_in(optimizer)])
        there = next(folder for folder in (final, *final.parents) if folder.is_dir())
        raise OSError(
            f"checkpoint {final} could not be written: {needed:,} bytes needed, {written:,} written, "
            f"{shutil.disk_usage(there).free:,} free ({str(error).splitlines()[0]}); older checkpoints are untouched"
        ) from error
    return final


def publish(out_dir: str | Path, weights: dict, optimizer: dict, state: dict, tokenizer, best: bool, keep: int) -> str:
    """save, then let `best` name it if it is, and only then delete older ones. Returns a line about it."""
    began = time.perf_counter()
    folder = save(out_dir, weights, optimizer, state, tokenizer)
    if best:
        mark_best(out_dir, folder)
    prune(out_dir, keep)
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return f"saved {folder}: {megabytes:,.1f} MB on disk and verified in {time.perf_counter() - began:.2f} s"


def tensors_in(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for v in inner for t in tensors_in(v)]


def mark_best(out_dir: str | Path, folder: Path):
    """Let checkpoints/best name this checkpoint, atomically."""
    path = Path(out_dir) / "checkpoints" / "best"
    temporary = path.with_name(".best.tmp")
    temporary.write_text(folder.name + "\n")
    flush_to_disk(temporary)
    temporary.replace(path)


def prune(out_dir: str | Path, keep: int):
    """Delete all whole checkpoints but the newest `keep` and the best.

    Damaged ones are neither counted nor deleted: they may be all that is left of something.
    """
    best, good = best_checkpoint(out_dir), []
    for path in reversed(list_checkpoints(out_dir)):
        with suppress(ValueError):
            sizes_match(path)
            good += [path] * (path != best)
    for path in good[max(1, keep) :]:
        # First out of the name, then away: a crash in between leaves no half checkpoint under a good name.
        doomed = path.rename(path.with_name(f".{path.name}.tmp"))
        shutil.rmtree(doomed, ignore_errors=True)


def sweep(out_dir: str | Path):
    """Clear away what a process that was killed while saving has left. Only for the holder of the run's lock."""
    folder = Path(out_dir) / "checkpoints"
    for path in folder.glob(".step-*.old"):
        final = path.with_name(path.name[1:-4])
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(final)  # killed between two renames: the one to be replaced is still whole
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


# Finding and checking


def list_checkpoints(out_dir: str | Path) -> list[Path]:
    """Folders named like checkpoints, oldest first, whole or not."""
    folder = Path(out_dir) / "checkpoints"
    found = [(int(m[1]), p) for p in folder.glob("step-*") if p.is_dir() and (m := STEP_NAME.fullmatch(p.name))]
    return [p for _, p in sorted(found)]


def read_state(path: Path) -> dict:
    """state.json of a checkpoint. Raises ValueError if it is missing, damaged or of another format."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        checksum = state.pop("checksum")
        text = json.dumps(state, sort_keys=True)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: state.json is missing or unreadable ({type(error).__name__})") from None
    if zlib.crc32(text.encode()) != checksum:
        raise ValueError(f"{path} is damaged: state.json does not match its checksum")
    if state.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {state.get('format')}, this version reads {FORMAT}")
    return state


def sizes_match(path: Path) -> dict:
    """The cheap half of verify: state.json is whole and every file has its size. Returns the state."""
    state = read_state(path)
    for name, facts in state["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{path} is damaged: {name} is missing")
        if file.stat().st_size != facts["size"]:
            raise ValueError(
                f"{path} is damaged: {name} has {file.stat().st_size:,} bytes, {facts['size']:,} were written"
            )
    return state


def verify(path: Path, optimizer: bool = True) -> dict:
    """Read every byte of a checkpoint against its checksums; returns its state. Raises ValueError naming the fault.

    optimizer=False leaves its state alone, two thirds of a checkpoint, for those who only want the weights.
    """
    state = sizes_match(path)
    files = {name: facts for name, facts in state["files"].items() if optimizer or name != "optimizer.pt"}
    with ThreadPoolExecutor(2) as pool:
        sums = pool.map(crc32, [path / name for name in files])
    for (name, facts), found in zip(files.items(), sums, strict=True):
        if found != facts["crc32"]:
            raise ValueError(f"{path} is damaged: {name} does not match its checksum")
    return state


def first_whole(paths: Iterable[Path], optimizer: bool = True) -> tuple[Path | None, list[str]]:
    """The first of these checkpoints that verifies (None if none does), and what is wrong with those before it."""
    faults = []
    for path in paths:
        try:
            verify(path, optimizer)
            return path, faults
        except ValueError as error:
            faults.append(str(error))
    return None, faults


def newest_checkpoint(out_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies (None if none does), and what is wrong with those that are newer."""
    return first_whole(reversed(list_checkpoints(out_dir)))


def best_checkpoint(out_dir: str | Path) -> Path | None:
    """The checkpoint that checkpoints/best names, if it is there."""
    try:
        name = (Path(out_dir) / "checkpoints" / "best").read_text().strip()
    except OSError:
        return None
    path = Path(out_dir) / "checkpoints" / name
    return path if STEP_NAME.fullmatch(name) and path.is_dir() else None


def best_val_loss(out_dir: str | Path) -> float:
    """Of the checkpoint that checkpoints/best names; infinite if there is none, or a damaged one."""
    path = best_checkpoint(out_dir)
    try:
        return math.inf if path is None else verify(path)["val_loss"]
    except ValueError:
        return math.inf


def find_checkpoint(folder: str | Path) -> Path:
    """The checkpoint meant by a run's folder (its best) or by a checkpoint's own.

    For its weights: optimizer state is not read. A damaged best is replaced by the newest whole one. Raises
    FileNotFoundError or ValueError, saying what was found.
    """
    folder = Path(folder)
    if (folder / "state.json").is_file():
        verify(folder, optimizer=False)
        return folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: give a run's out_dir, or train one with python train.py")
    newest_first = list_checkpoints(folder)[::-1]
    if not newest_first:
        raise FileNotFoundError(f"{folder} holds no checkpoints (expected {folder}/checkpoints/step-N)")
    best = best_checkpoint(folder)
    path, faults = first_whole(sorted(newest_first, key=lambda path: path != best), optimizer=False)
    if path is None:
        raise ValueError(f"no checkpoint in {folder} is whole: {'; '.join(faults)}")
    for fault in faults:
        print(f"skipped: {fault}", file=sys.stderr)
    return path


def load_optimizer(path: Path) -> dict:
    """What was given to save as `optimizer`, on the CPU; nothing in it can run code."""
    return torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
