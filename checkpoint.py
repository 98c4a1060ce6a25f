"""A run's folder: who holds it, what is saved in it, which of that is whole, and what is loaded back.

    out_dir/settings.toml  metrics.jsonl  samples.jsonl
    out_dir/checkpoints/step-0000500/   model.safetensors  optimizer.pt  state.json  tokenizer files
    out_dir/checkpoints/best            the name of the best step's folder

A checkpoint is written into a temporary folder, forced to disk, read back and compared with its checksums, and only
then given its name. So a folder named step-N is complete, or it was damaged afterwards; verify() tells.
"""

import json
import os
import re
import shutil
import socket
import time
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import GPT, GPTConfig

FORMAT = 1
STEP_NAME = re.compile(r"step-(\d{7,})")


# Who holds the folder


class RunLock:
    """Holds out_dir for one process, until released or the process ends, however it ends.

    Raises OSError, naming the holder, if another process has it, or if the folder cannot be written.
    """

    def __init__(self, out_dir: str | Path):
        path = Path(out_dir) / "lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a+")  # noqa: SIM115 - held open for as long as the lock is
        except OSError as error:
            raise OSError(f"out_dir {out_dir} cannot be written ({error.strerror}): choose another --out_dir") from None
        try:
            lock_exclusively(self.file)
        except OSError:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            self.file.close()
            raise OSError(
                f"out_dir {out_dir} is in use by {holder}: wait, stop it, or choose another --out_dir"
            ) from None
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self.file.flush()

    def release(self):
        self.file.truncate(0)
        self.file.close()


def lock_exclusively(file):
    """Take an advisory lock or raise OSError at once; the system frees it when the process ends."""
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 30)  # a byte far behind the text, so that others can still read who holds it
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Saving


def step_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / "checkpoints" / f"step-{step:07d}"


def save(out_dir: str | Path, weights: dict[str, Tensor], optimizer: dict, state: dict, tokenizer) -> Path:
    """Write a checkpoint of step state["step"] and return its folder; an older one of the same step is replaced.

    weights: names and tensors, each with its own storage. optimizer: whatever torch.load(weights_only=True) reads back.
    state: JSON values. tokenizer: has save(folder). Raises OSError, with what is needed and free, if the disk is full;
    nothing is left behind then, and older checkpoints stay untouched.
    """
    final = step_path(out_dir, state["step"])
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        plain = {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}
        save_file(plain, temporary / "model.safetensors", {"format": "pt"})
        torch.save(optimizer, temporary / "optimizer.pt")
        tokenizer.save(temporary)
        names = sorted(p.name for p in temporary.iterdir())
        for name in names:
            flush_to_disk(temporary / name)
        files = {name: {"size": (temporary / name).stat().st_size, "crc32": crc32(temporary / name)} for name in names}
        write_json_with_checksum(temporary / "state.json", {"format": FORMAT, **state, "files": files})
        verify(temporary)
        flush_to_disk(temporary)
        replaced = final.with_name(f".{final.name}.old.tmp")
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        flush_to_disk(final.parent)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:  # torch and safetensors hide a full disk
        written = sum(p.stat().st_size for p in temporary.iterdir()) if temporary.exists() else 0
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.numel() * t.element_size() for t in [*weights.values(), *tensors_in(optimizer)])
        free = shutil.disk_usage(final.parent).free
        raise OSError(
            f"checkpoint {final} could not be written: {needed:,} bytes needed, {written:,} written, {free:,} free "
            f"({str(error).splitlines()[0]}); older checkpoints are untouched"
        ) from error
    return final


def tensors_in(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for v in inner for t in tensors_in(v)]


def crc32(path: Path) -> int:
    """Checksum of a file's bytes: finds every flipped bit, at 4 GB/s."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def flush_to_disk(path: Path):
    """Return only when the file's (or folder's) content is on the disk itself."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json_with_checksum(path: Path, value: dict):
    """JSON for people, with a last key that holds the checksum of the rest."""
    text = json.dumps(value, sort_keys=True)
    value = {**value, "checksum": zlib.crc32(text.encode())}
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    flush_to_disk(path)


def mark_best(out_dir: str | Path, folder: Path):
    """Let checkpoints/best name this checkpoint, atomically."""
    path = Path(out_dir) / "checkpoints" / "best"
    temporary = path.with_name(".best.tmp")
    temporary.write_text(folder.name + "\n")
    flush_to_disk(temporary)
    temporary.replace(path)


def prune(out_dir: str | Path, keep: int):
    """Delete all but the newest `keep` checkpoints that verify, and the best; and what interrupted saves left behind.

    Damaged ones are neither counted nor deleted: they may be all that is left of something.
    """
    folder = Path(out_dir) / "checkpoints"
    best = best_checkpoint(out_dir)
    good = 0
    for path in reversed(list_checkpoints(out_dir)):
        if path == best:
            continue
        try:
            sizes_match(path)
        except ValueError:
            continue
        good += 1
        if good > max(1, keep):
            # First out of the name, then away: a crash in between leaves no half checkpoint under a good name.
            doomed = path.with_name(f".{path.name}.tmp")
            path.rename(doomed)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


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


def verify(path: Path) -> dict:
    """Read every byte of a checkpoint against its checksums; returns its state. Raises ValueError naming the fault."""
    state = sizes_match(path)
    for name, facts in state["files"].items():
        if crc32(path / name) != facts["crc32"]:
            raise ValueError(f"{path} is damaged: {name} does not match its checksum")
    return state


def newest_checkpoint(out_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies (None if none does), and what is wrong with those that are newer."""
    faults = []
    for path in reversed(list_checkpoints(out_dir)):
        try:
            verify(path)
            return path, faults
        except ValueError as error:
            faults.append(str(error))
    return None, faults


def best_checkpoint(out_dir: str | Path) -> Path | None:
    """The checkpoint that checkpoints/best names, if it is there."""
    try:
        name = (Path(out_dir) / "checkpoints" / "best").read_text().strip()
    except OSError:
        return None
    path = Path(out_dir) / "checkpoints" / name
    return path if STEP_NAME.fullmatch(name) and path.is_dir() else None


def find_checkpoint(folder: str | Path, prefer: str = "best") -> Path:
    """The checkpoint meant by a run's folder (its best, or with prefer="newest" its newest) or by a checkpoint's own.

    A damaged best is replaced by the newest whole one. Raises FileNotFoundError or ValueError, saying what was found.
    """
    folder = Path(folder)
    if (folder / "state.json").is_file():
        verify(folder)
        return folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: give the out_dir of a run, or train one with python train.py"
        )
    if not list_checkpoints(folder):
        raise FileNotFoundError(f"{folder} holds no checkpoints (expected {folder}/checkpoints/step-N)")
    best = best_checkpoint(folder) if prefer == "best" else None
    if best is not None:
        try:
            verify(best)
            return best
        except ValueError:
            pass
    path, faults = newest_checkpoint(folder)
    if path is None:
        raise ValueError(f"no checkpoint in {folder} is whole: {'; '.join(faults)}")
    return path


# Loading


def load_weights(path: Path) -> dict[str, Tensor]:
    """Names and tensors on the CPU. Raises ValueError if the file cannot be read."""
    try:
        return load_file(path / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path / 'model.safetensors'} cannot be read: {str(error).splitlines()[0]}") from None


def load_model(path: Path) -> GPT:
    """The network of a checkpoint, in evaluation mode on the CPU. Raises ValueError if the weights do not fit."""
    model = GPT(GPTConfig(**read_state(path)["model"]))
    try:
        model.load_state_dict(load_weights(path))
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit its settings: {' '.join(str(error).split())[:200]}"
        ) from None
    return model.eval()


def load_optimizer(path: Path) -> dict:
    """What was given to save as `optimizer`, on the CPU; nothing in it can run code."""
    return torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
