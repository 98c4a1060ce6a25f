"""A checkpoint of a sharded model: every rank writes its own rows, and rank 0 gives it its name.

So nobody needs memory for more than its share. In the background, each rank forces its files to the
disk, reads them back, and leaves a note for rank 0 with their checksums, or with what went wrong.
Rank 0 waits for all notes, looks whether it sees all files, and publishes the checkpoint as any
other: either all of it gets its name, or older checkpoints stay untouched. There is no planning and
no exchange between the ranks: who writes what follows from how the model is cut.

Why not torch.distributed.checkpoint: it loads most flipped bits silently, its index is a pickle,
and its saves plan over all ranks (huggingface/accelerate pull request 4105: too slow for 2,800).
"""

import json
import platform
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

import torch.distributed as dist
from torch import Tensor

from lathe.run import checkpoint, ranks
from lathe.run.files import flush_to_disk, replace_folder
from lathe.run.pieces import Piece, own_pieces, write_pieces
from lathe.text.tokenizer import Tokenizer

PATIENCE = 60.0  # seconds until a network's disk must show what another node has written
LAST_WAIT = 5.0  # seconds for notes of others once this process ends by an error


# -----------------------------------------------------------------------------
# Before training: one folder for all


def check_shared(out_dir: str | Path, patience: float = 10.0):
    """Raises ValueError, naming the ranks, unless every rank sees what rank 0 writes in out_dir.

    All ranks call it. A save would find that out, too, but hours later.
    """
    folder = Path(out_dir) / "checkpoints"
    mark = folder / ranks.on_main(lambda: leave_mark(folder))
    sees = is_there(mark, size=len(mark.name), patience=patience)
    answers = ranks.gather((sees, platform.node()))
    ranks.on_main(mark.unlink)
    blind = [f"rank {rank} on {host}" for rank, (sees, host) in enumerate(answers) if not sees]
    if blind:
        main_host = answers[0][1]
        raise ValueError(
            f"out_dir {out_dir} is not one folder for all ranks: what rank 0 on {main_host} writes "
            f"there is not seen by {', '.join(blind)}; with parallel=fsdp each rank saves its own "
            "part, so give an --out_dir on a disk that all nodes share"
        )


def leave_mark(folder: Path) -> str:
    name = f".shared-{time.time_ns():x}.tmp"  # one that nobody has looked for before
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(name)
    return name


def is_there(file: Path, size: int, patience: float) -> bool:
    """Whether a file of this size is seen here; a network's disk may take a while to show it."""
    deadline = time.monotonic() + patience
    while True:
        try:
            if file.stat().st_size == size:
                return True
        except OSError:
            pass  # not yet
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


# -----------------------------------------------------------------------------
# Each rank's share


@dataclass
class Share:
    """What one rank writes of a checkpoint, on the CPU, where nothing changes it any more."""

    out_dir: Path
    step: int
    rank: int
    n_ranks: int
    weights: dict[str, Piece]
    optimizer: dict[str, Piece]
    notes: ranks.Notes

    @property
    def folder(self) -> Path:
        return checkpoint.temporary_path(self.out_dir, self.step)

    @property
    def n_bytes(self) -> int:
        pieces = [*self.weights.values(), *self.optimizer.values()]
        return sum(piece.tensor.nbytes for piece in pieces)


def take_share(
    out_dir: Path,
    step: int,
    weights: dict[str, Tensor],
    optimizer: dict[str, dict[str, Tensor]],
    copy: bool,
) -> Share:
    """This rank's share of a checkpoint that begins with this. All ranks call it.

    weights, optimizer: names and tensors as for checkpoint.save, sharded ones as DTensors. copy:
    whether training goes on and changes them. Raises OSError if its folder cannot be made.
    """
    name = ranks.on_main(lambda: make_folder(out_dir, step))
    rank = dist.get_rank()
    moments = {}
    for parameter, tensors in optimizer.items():
        for key, tensor in tensors.items():
            moments[f"{parameter}/{key}"] = tensor
    return Share(
        out_dir=out_dir,
        step=step,
        rank=rank,
        n_ranks=dist.get_world_size(),
        weights=own_pieces(weights, rank, copy),
        optimizer=own_pieces(moments, rank, copy),
        notes=ranks.Notes(name),
    )


def make_folder(out_dir: Path, step: int) -> str:
    """Make the temporary folder; returns a name for this save that no other has."""
    folder = checkpoint.temporary_path(out_dir, step)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise could_not_write(out_dir, step, str(error)) from None
    return f"save-{step}-{time.time_ns():x}"


def write_share(share: Share):
    """Write this rank's files, and leave a note of them for rank 0; also of whatever goes wrong."""
    try:
        note = {"files": write_files(share)}
    except Exception as error:  # rank 0 waits for the note, so there must be one
        note = {"fault": one_line(error)}
    share.notes.leave(json.dumps({"host": platform.node(), **note}))


def write_files(share: Share) -> checkpoint.Files:
    """Both files, on the disk and read back. Raises OSError or ValueError, naming the file."""
    files = {}
    for what, pieces in (("model", share.weights), ("optimizer", share.optimizer)):
        name = checkpoint.piece_name(what, share.rank, share.n_ranks)
        write = partial(write_pieces, pieces=pieces)
        try:
            files[name] = checkpoint.write_file(share.folder / name, write)
        except OSError as error:
            free = ""
            if share.folder.is_dir():
                free = f", {shutil.disk_usage(share.folder).free:,} free"
            reason = error.strerror or one_line(error)
            raise OSError(
                f"{share.folder / name}: {share.n_bytes:,} bytes needed{free} ({reason})"
            ) from error
    checkpoint.check_bytes(share.folder, files)
    return files


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__} "
    return kind + lines[0]


# -----------------------------------------------------------------------------
# Rank 0: all of it, or nothing


def save(share: Share, rest: dict, state: dict, tokenizer: Tokenizer, leaving: Event) -> Path:
    """Write rank 0's share and what is not cut up, and publish the whole; returns its folder.

    rest: what optimizer.pt holds, beside the optimizer's tensors. state: JSON values. leaving: see
    BackgroundWriter. Raises OSError, naming rank and file, if any rank could not write its share;
    nothing of the checkpoint is left then, and older ones stay untouched.
    """
    final = checkpoint.step_path(share.out_dir, share.step)
    write_share(share)
    try:
        files = collect(share, leaving)
        write = partial(checkpoint.write_optimizer, optimizer=rest)
        files["optimizer.pt"] = checkpoint.write_file(share.folder / "optimizer.pt", write)
        own = set(files) - {"optimizer.pt"}
        about = {"format": checkpoint.IN_PIECES, "pieces": share.n_ranks, **state}
        checkpoint.write_rest(share.folder, files, about, tokenizer)
        checkpoint.check_sizes(share.folder)
        checkpoint.check_bytes(share.folder, {name: files[name] for name in set(files) - own})
        flush_to_disk(share.folder)
        replace_folder(share.folder, final)
    except (OSError, RuntimeError, ValueError) as error:
        shutil.rmtree(share.folder, ignore_errors=True)
        raise could_not_write(share.out_dir, share.step, one_line(error)) from error
    return final


def collect(share: Share, leaving: Event) -> checkpoint.Files:
    """All ranks' files, all of which are seen here.

    Raises OSError, naming rank and file, for what could not be written or is not seen; only once
    every rank is through, so that none writes into a folder that is being cleared away.
    """
    notes = [await_note(share.notes, rank, leaving) for rank in range(share.n_ranks)]
    faults = []
    for rank, note in enumerate(notes):
        if "fault" in note:
            faults.append(f"rank {rank} on {note['host']}: {note['fault']}")
    if faults:
        others = f" (and {len(faults) - 1} other ranks)" if len(faults) > 1 else ""
        raise OSError(faults[0] + others)
    files = {}
    for rank, note in enumerate(notes):
        for name, file in note["files"].items():
            if not is_there(share.folder / name, file["size"], PATIENCE):
                raise OSError(
                    f"rank {rank} on {note['host']} has written {share.folder / name}, which "
                    f"rank 0 on {platform.node()} does not see: out_dir must lie on a disk that "
                    "all nodes share"
                )
            files[name] = file
    return files


def await_note(notes: ranks.Notes, rank: int, leaving: Event) -> dict:
    """What a rank has to say of its share. Raises OSError if this process ends before that."""
    deadline = float("inf")
    while (text := notes.take(rank)) is None:
        if leaving.is_set():
            deadline = min(deadline, time.monotonic() + LAST_WAIT)
            time.sleep(0.1)
        else:
            leaving.wait(0.05)
        if time.monotonic() > deadline:
            raise OSError(f"rank {rank} did not get to the end of its part")
    return json.loads(text)


def could_not_write(out_dir: Path, step: int, reason: str) -> OSError:
    final = checkpoint.step_path(out_dir, step)
    return OSError(
        f"checkpoint {final} could not be written: {reason}; older checkpoints are untouched"
    )
