"""A run's folder: what is saved in it, which of that is whole, and what is loaded back.

    out_dir/settings.toml  metrics.jsonl  samples.jsonl
    out_dir/checkpoints/step-0000500/   model.safetensors  optimizer.pt  state.json  tokenizer files
    out_dir/checkpoints/best            the name of the best step's folder

A checkpoint is written into a temporary folder, forced to disk, read back and compared with the
checksums of what was in memory, and only then given its name. So a folder named step-N is complete,
or it was damaged afterwards; verify() tells. Any number of ranks reads it.

That is format 1: whole tensors, which rank 0 writes. In format 2, of a sharded model, each rank has
written its rows of them (run/sharded_save.py), of a job of N ranks those of rank R into

    model.rankR-of-N.safetensors  optimizer.rankR-of-N.safetensors

and optimizer.pt has the rest. state.json says N, as `pieces`. run/pieces.py reads either.
An optimizer's tensors there are PARAMETER/NAME, such as transformer.wte.weight/exp_avg; with
averaged weights (optim/average.py) the other ones are average/PARAMETER.
"""

import math
import platform
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lathe import hints
from lathe.data.dataset import Dataset
from lathe.reading import check_kinds, is_of, reading
from lathe.run import ranks
from lathe.run.files import (
    CheckedFile,
    crc32,
    flush_to_disk,
    read_json_with_checksum,
    replace_folder,
    utf8_path,
    write_atomically,
    write_json_with_checksum,
)
from lathe.run.pieces import SavedTensor, open_tensors
from lathe.run.tensor_file import write_safetensors
from lathe.settings import Settings
from lathe.terminal import print_note
from lathe.text.tokenizer import Tokenizer
from model import GPTConfig

WHOLE, IN_PIECES = 1, 2  # formats
FORMATS = (WHOLE, IN_PIECES)
AVERAGE = "average"  # in pieces of the optimizer's: the weights that model.safetensors has not
Files = dict[str, dict[str, int]]  # {name: {"size": bytes, "crc32": checksum}}


# -----------------------------------------------------------------------------
# Names


STEP_NAME = re.compile(r"step-\d{7,}")


def step_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / "checkpoints" / f"step-{step:07d}"


def temporary_path(out_dir: str | Path, step: int) -> Path:
    """Where a checkpoint is until it is whole."""
    final = step_path(out_dir, step)
    return final.with_name(f".{final.name}.tmp")


def piece_name(what: str, rank: int, n_ranks: int) -> str:
    """Of the file with a rank's rows; what: "model" or "optimizer"."""
    return f"{what}.rank{rank}-of-{n_ranks}.safetensors"


def list_checkpoints(out_dir: str | Path) -> list[Path]:
    """Folders named like checkpoints, oldest first, whole or not."""
    paths = (Path(out_dir) / "checkpoints").glob("step-*")
    folders = [path for path in paths if path.is_dir() and STEP_NAME.fullmatch(path.name)]
    return sorted(folders, key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def best_checkpoint(out_dir: str | Path) -> Path | None:
    """The checkpoint that checkpoints/best names, if it is there."""
    folder = Path(out_dir) / "checkpoints"
    try:
        name = (folder / "best").read_text().strip()
    except (OSError, ValueError):  # not there, or not text
        return None
    if STEP_NAME.fullmatch(name) and (folder / name).is_dir():
        return folder / name
    return None


def mark_best(out_dir: str | Path, checkpoint: Path):
    """Let checkpoints/best name this checkpoint, atomically."""
    write_atomically(Path(out_dir) / "checkpoints" / "best", checkpoint.name + "\n")


# -----------------------------------------------------------------------------
# Saving


def publish(out_dir: str | Path, save: Callable[[], Path], best: bool, keep: int) -> str:
    """Save, then let `best` name it if it is, then delete older ones. Returns a line about it."""
    began = time.perf_counter()
    folder = save()
    if best:
        mark_best(out_dir, folder)
    prune(out_dir, keep)
    seconds = time.perf_counter() - began
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return f"saved {folder}: {megabytes:,.1f} MB on disk and verified in {seconds:.2f} s"


def save(
    out_dir: str | Path,
    weights: dict[str, Tensor],
    optimizer: dict,
    state: dict,
    tokenizer: Tokenizer,
) -> Path:
    """Write a checkpoint of step state["step"], in place of an older one; returns its folder.

    weights: names and tensors, on the CPU. optimizer: whatever torch.load(weights_only=True) reads
    back. state: JSON values. Raises OSError, with what is needed and free, if the disk is full;
    nothing of it is left then, and older checkpoints stay untouched.
    """
    final = step_path(out_dir, state["step"])
    temporary = temporary_path(out_dir, state["step"])
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_files(temporary, weights, optimizer, state, tokenizer)
        verify(temporary)
        flush_to_disk(temporary)
        replace_folder(temporary, final)
    except (OSError, RuntimeError, ValueError) as error:  # torch's for a full disk: RuntimeError
        written = 0
        if temporary.exists():
            written = sum(path.stat().st_size for path in temporary.iterdir())
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(tensor.nbytes for tensor in [*weights.values(), *tensors_in(optimizer)])
        there = next(folder for folder in (final, *final.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        reason = str(error).splitlines()[0]
        raise OSError(
            f"checkpoint {final} could not be written: {needed:,} bytes needed, "
            f"{written:,} written, {free:,} free ({reason}); older checkpoints are untouched"
        ) from error
    return final


def write_files(
    folder: Path, weights: dict[str, Tensor], optimizer: dict, state: dict, tokenizer: Tokenizer
):
    """All files of a checkpoint, on the disk when this returns."""
    files = {
        "model.safetensors": write_file(
            folder / "model.safetensors", lambda file: write_safetensors(file, weights)
        ),
        "optimizer.pt": write_file(
            folder / "optimizer.pt", lambda file: write_optimizer(file, optimizer)
        ),
    }
    write_rest(folder, files, {"format": WHOLE, **state}, tokenizer)


def write_file(path: Path, write: Callable[[CheckedFile], None]) -> dict[str, int]:
    """Size and checksum of what write(file) gives to a new file, which is then on the disk."""
    with CheckedFile(path) as file:
        write(file)
    return {"size": file.size, "crc32": file.crc32}


def write_rest(folder: Path, files: Files, state: dict, tokenizer: Tokenizer):
    """The tokenizer, and last state.json, with size and checksum of each file, those of `files`
    as they were in memory."""
    tokenizer.save(folder)
    for path in folder.iterdir():
        if path.name not in files:
            flush_to_disk(path)
            files[path.name] = {"size": path.stat().st_size, "crc32": crc32(path)}
    write_json_with_checksum(folder / "state.json", {**state, "files": files})


def write_optimizer(file: CheckedFile, optimizer: dict):
    # Without the zip file's own checksums, which torch.load never compares.
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(optimizer, file)
    finally:
        torch.serialization.set_crc32_options(True)


def open_weights(path: Path) -> dict[str, SavedTensor]:
    """The tensors of a checkpoint's network by name, read when asked for."""
    return open_tensors(tensor_paths(path, "model"))


def load_optimizer(path: Path) -> dict:
    """What was given to save as `optimizer`, on the CPU; nothing in it can run code.

    Its large tensors come to memory when they are asked for: those of a file in pieces are
    SavedTensors, others are mapped.
    """
    file = path / "optimizer.pt"
    with reading(file), utf8_path(file) as name:
        saved = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(saved, dict):
        raise ValueError(f"{file} holds no optimizer's state but {type(saved).__name__}")
    if is_in_pieces(read_state(path)):
        state = {}
        for name, tensor in open_tensors(tensor_paths(path, "optimizer")).items():
            parameter, _, key = name.rpartition("/")
            state.setdefault(parameter, {})[key] = tensor
        if AVERAGE in state:
            saved["average"]["other"] = state.pop(AVERAGE)
        saved["optimizer"] = state
    return saved


def tensor_paths(path: Path, what: str) -> list[Path]:
    """The files that hold a checkpoint's tensors; what: "model" or "optimizer"."""
    state = read_state(path)
    if not is_in_pieces(state):
        return [path / f"{what}.safetensors"]
    n_ranks = state.get("pieces")
    if not isinstance(n_ranks, int) or not 1 <= n_ranks <= len(state["files"]):
        raise ValueError(f"{path} is damaged: state.json says it is in {n_ranks} pieces")
    return [path / piece_name(what, rank, n_ranks) for rank in range(n_ranks)]


def is_in_pieces(state: dict) -> bool:
    return state["format"] == IN_PIECES


def describe(
    settings: Settings, train: Any, config: GPTConfig, dataset: Dataset, world_size: int
) -> dict:
    """What state.json says of a checkpoint. `train`, where the run is: train.py's TrainState."""
    val_loss = None
    if train.evaluation.get("step") == train.step:
        val_loss = train.evaluation.get("val_loss")
    return {
        "step": train.step,
        "samples": train.samples,
        "train": asdict(train),
        "model": asdict(config),
        "settings": asdict(settings),
        "dataset": {"path": settings.dataset, "fingerprint": dataset.fingerprint},
        "tokenizer": {"name": dataset.tokenizer_name, "fingerprint": dataset.tokenizer_fingerprint},
        "template": dataset.template,  # of the chats that it was trained on, see text/chat.py
        "val_loss": val_loss,
        "world_size": world_size,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def tensors_in(nest: Any) -> list[Tensor]:
    """All tensors in a nest of dicts, lists and tuples."""
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, dict):
        nest = nest.values()
    elif not isinstance(nest, (list, tuple)):
        return []
    return [tensor for inner in nest for tensor in tensors_in(inner)]


# -----------------------------------------------------------------------------
# Checking


def read_state(path: Path) -> dict:
    """state.json of a checkpoint. ValueError if it is missing, damaged or of another format."""
    try:
        state = read_json_with_checksum(path / "state.json")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if state.get("format") not in FORMATS:
        formats = " and ".join(map(str, FORMATS))
        raise ValueError(
            f"{path} has checkpoint format {state.get('format')!r:.40}, "
            f"this version reads {formats}"
        )
    try:
        check_state(state)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return state


def check_state(state: dict):
    """ValueError unless a state.json that matches its checksum has what is read from it: it may
    have been made by anybody."""
    where = "state.json"
    check_kinds(where, state, {"step": int, "files": dict})
    check_kinds(where, state, OTHER_PARTS, optional=True)
    for part, kinds in KINDS_OF_PARTS.items():
        check_kinds(f"{where}: {part}", state.get(part) or {}, kinds, optional=True)
    train = state.get("train") or {}
    if state["step"] < 0 or train.get("samples", 0) < 0:
        raise ValueError(f"{where}: step or samples are below 0")
    if not all(is_of(norm, float) for norm in train.get("grad_norms", [])):
        raise ValueError(f"{where}: train: grad_norms holds what is no number")
    for name, file in state["files"].items():
        if not isinstance(file, dict):
            raise ValueError(f"{where}: files: {name!r:.40} is {file!r:.40}, not an object")
        check_kinds(f"{where}: files: {name!r:.40}", file, {"size": int, "crc32": int})


OTHER_PARTS = {
    "model": dict,
    "settings": dict,
    "train": dict,
    "dataset": dict,
    "tokenizer": dict,
    "val_loss": float,
    "template": str,
    "pieces": int,
}
KINDS_OF_PARTS = {
    "settings": {
        "seed": int,
        "out_dir": str,
        "init_from": str,
        "optimizer": str,
        "lora_rank": int,
        "lora_alpha": float,
    },
    "train": {
        "step": int,
        "samples": int,
        "best_val_loss": float,
        "evaluation": dict,
        "skipped": int,
        "grad_norms": list,
        "wandb_run_id": str,
    },
    "dataset": {"path": str, "fingerprint": str},
    "tokenizer": {"name": str, "fingerprint": str},
}


def check_resumable(path: Path):
    """ValueError unless a checkpoint has all that a run goes on with."""
    state = read_state(path)
    needed = {"settings": dict, "train": dict, "dataset": dict}
    check_kinds(f"{path} is damaged: state.json", state, needed)
    where = f"{path} is damaged: state.json: "
    check_kinds(f"{where}settings", state["settings"], {"seed": int, "out_dir": str})
    check_kinds(f"{where}dataset", state["dataset"], {"path": str, "fingerprint": str})


def check_sizes(path: Path, optimizer: bool = True) -> dict:
    """The cheap half of verify: state.json is whole, each file has its size. Returns the state.

    optimizer=False: its state may be missing, in what was stripped for others to use.
    """
    state = read_state(path)
    for name, expected in state["files"].items():
        file = path / name
        if file.name != name:
            raise ValueError(f"{path} is damaged: it names {name!r}, which is no file of its own")
        if not file.is_file() and name.startswith("optimizer."):
            if not optimizer:
                continue
            raise ValueError(
                f"{path} has no {name}, without which no run goes on: train its weights further "
                f"with --init_from={path} and another --out_dir"
            )
        if not file.is_file():
            raise ValueError(f"{path} is damaged: {name} is missing")
        size = file.stat().st_size
        if size != expected["size"]:
            raise ValueError(
                f"{path} is damaged: {name} has {size:,} bytes, {expected['size']:,} were written"
            )
    return state


def verify(path: Path, optimizer: bool = True, rank: int = 0, n_ranks: int = 1) -> dict:
    """Read every byte of a checkpoint against its checksums; returns its state.

    optimizer=False leaves its state alone, two thirds of a checkpoint, for those who only want the
    weights. Of n_ranks that verify it together each reads some of the files, rank after rank in
    turn. Raises ValueError, naming the fault.
    """
    state = check_sizes(path, optimizer)
    names = [name for name in state["files"] if optimizer or not name.startswith("optimizer.")]
    check_bytes(path, {name: state["files"][name] for name in names[rank::n_ranks]})
    return state


def verify_on_all(path: Path, optimizer: bool = True) -> dict:
    """verify, shared by all ranks of a job, each of which calls it; they raise alike."""
    fault = None
    state = {}
    try:
        state = verify(path, optimizer, *ranks.own_number())
    except (ValueError, OSError) as error:
        fault = str(error)
    faults = [fault for fault in ranks.gather(fault) if fault is not None]
    if faults:
        raise ValueError(faults[0])
    return state


def check_bytes(path: Path, files: Files):
    """Raises ValueError for the first of a checkpoint's files that is not as it was written."""
    with ThreadPoolExecutor(2) as pool:
        checksums = list(pool.map(crc32, [path / name for name in files]))
    for name, checksum in zip(files, checksums, strict=True):
        if checksum != files[name]["crc32"]:
            raise ValueError(f"{path} is damaged: {name} does not match its checksum")


# -----------------------------------------------------------------------------
# Finding. Under torchrun every rank of a job calls these: all find the same, and share the reading.


def find_checkpoint(folder: str | Path) -> Path:
    """The checkpoint meant by a run's folder (its best) or by a checkpoint's own.

    For its weights: optimizer state is not read. A damaged best is replaced by the newest whole
    one. Raises FileNotFoundError or ValueError, saying what was found.
    """
    folder = Path(folder)
    candidates = ranks.on_main(lambda: list_candidates(folder))
    if candidates == [folder]:
        verify_on_all(folder, optimizer=False)
        return folder
    path, faults = first_whole(candidates, optimizer=False)
    if path is None:
        raise ValueError(f"no checkpoint in {folder} is whole: {'; '.join(faults)}")
    for fault in faults:
        if ranks.is_main():
            print_note(f"skipped: {fault}")
    return path


def list_candidates(folder: Path) -> list[Path]:
    """The folder, if it is a checkpoint's; of a run's, its best, and then from the newest on."""
    if (folder / "state.json").is_file():
        return [folder]
    candidates = list_checkpoints(folder)[::-1]
    if not candidates:
        raise FileNotFoundError(hints.instead_of_run(folder))
    best = best_checkpoint(folder)
    if best is not None:
        candidates.remove(best)
        candidates.insert(0, best)
    return candidates


def newest_checkpoint(out_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies (None if none does), and the faults of newer ones."""
    return first_whole(ranks.on_main(lambda: list_checkpoints(out_dir)[::-1]))


def first_whole(paths: list[Path], optimizer: bool = True) -> tuple[Path | None, list[str]]:
    """The first of these that verifies (None if none does), and the faults of those before it."""
    faults = []
    for path in paths:
        try:
            verify_on_all(path, optimizer)
            return path, faults
        except ValueError as error:
            faults.append(str(error))
    return None, faults


def best_val_loss(out_dir: str | Path) -> float:
    """Of the checkpoint that checkpoints/best names; infinite if it is missing or damaged."""
    path = ranks.on_main(lambda: best_checkpoint(out_dir))
    if path is None:
        return math.inf
    try:
        return verify_on_all(path)["val_loss"]
    except ValueError:
        return math.inf


# -----------------------------------------------------------------------------
# Clearing away


def prune(out_dir: str | Path, keep: int):
    """Delete all whole checkpoints but the newest `keep` and the best.

    Damaged ones are neither counted nor deleted: they may be all that is left of something.
    """
    best = best_checkpoint(out_dir)
    whole = []  # newest first
    for path in reversed(list_checkpoints(out_dir)):
        try:
            check_sizes(path)
        except ValueError:
            continue
        if path != best:
            whole.append(path)
    for path in whole[max(1, keep) :]:
        # First out of the name, then away: a crash in between leaves no half checkpoint under a
        # good name.
        doomed = path.rename(path.with_name(f".{path.name}.tmp"))
        shutil.rmtree(doomed, ignore_errors=True)


def remove_all(out_dir: str | Path) -> list[str]:
    """Delete a run's checkpoints, for another one that starts in its place, and nothing else.

    Returns the names of what is there beside them, of other programs: it stays.
    """
    folder = Path(out_dir) / "checkpoints"
    for path in list_checkpoints(out_dir):
        if is_ours(path):
            shutil.rmtree(path, ignore_errors=True)
    if not list_checkpoints(out_dir):
        (folder / "best").unlink(missing_ok=True)
    return sorted(path.name for path in folder.glob("*"))


def refuse_others_folder(out: Path):
    """ValueError if a run would write over files of somebody else, or into a dataset's folder."""
    if out.is_file():
        raise ValueError(f"out_dir {out} is a file: name a folder")
    if hints.is_dataset(out) and not hints.is_run(out):
        raise ValueError(f"out_dir {out} holds a dataset: choose another --out_dir for the run")
    if hints.is_run(out) or (out / "starts.jsonl").exists() or (out / "metrics.jsonl").exists():
        return  # a run's, of which the first checkpoint may be missing
    for name in ("settings.toml", "samples.jsonl", "report.html"):
        if (out / name).exists():
            raise ValueError(
                f"out_dir {out} has {name}, but no run that wrote it: choose another --out_dir"
            )


def is_ours(folder: Path) -> bool:
    """Whether a folder that is named like a checkpoint is one, whole or damaged."""
    return not folder.is_symlink() and (folder / "state.json").is_file()


def sweep(out_dir: str | Path):
    """Clear away what a process killed while saving has left. Only for the holder of the lock."""
    folder = Path(out_dir) / "checkpoints"
    for old in folder.glob(".step-*.old"):  # of replace_folder
        final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)  # killed between two renames: the one to be replaced is still whole
    for temporary in [*folder.glob(".step-*.tmp"), *folder.glob(".best.tmp")]:
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink()
