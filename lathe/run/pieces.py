"""Tensors in pieces: several files, each of which has some rows of them.

A sharded model is saved by all of its ranks, each its own rows, and read by any number of them. A
file of pieces is a safetensors file. Its metadata holds, as "rows", a JSON table

    {name: [first row, rows of the whole]}

of the tensors that are cut. What is not in the table is whole, so that a file of whole tensors is
read like one of pieces.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from torch import Tensor

from lathe.optim.optimizer import is_sharded, own_rows
from lathe.run.tensor_file import DTYPE_NAMES, host_copy, opened, write_safetensors

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# What a file that is no file of pieces, or claims nonsense, can raise
BROKEN = (
    SafetensorError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
)


# -----------------------------------------------------------------------------
# Writing


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor, or all of it."""

    tensor: Tensor
    begin: int = 0  # the first row
    n_rows: int | None = None  # of the whole; None: this is the whole


def own_pieces(tensors: dict[str, Tensor], rank: int, copy: bool) -> dict[str, Piece]:
    """What this rank writes of tensors, on the CPU: its rows of those that are sharded; of the
    others, which every rank has alike, rank 0 writes all. copy: see host_copy.

    By name, since a run that was resumed has its state in another order: files stay the same.
    """
    pieces = {}
    for name, tensor in sorted(tensors.items()):
        if is_sharded(tensor):
            begin, end = own_rows(tensor)
            if begin < end:
                rows = host_copy(tensor.detach().to_local(), copy)
                pieces[name] = Piece(rows, begin, tensor.shape[0])
        elif rank == 0:
            pieces[name] = Piece(host_copy(tensor, copy))
    return pieces


def write_pieces(file: BinaryIO, pieces: dict[str, Piece]):
    table = {}
    for name, piece in pieces.items():
        if piece.n_rows is not None:
            table[name] = [piece.begin, piece.n_rows]
    tensors = {name: piece.tensor for name, piece in pieces.items()}
    write_safetensors(file, tensors, {"rows": json.dumps(table)})


# -----------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Part:
    """Rows begin to end of a tensor, in a file."""

    file: Path
    begin: int
    end: int


@dataclass(frozen=True)
class SavedTensor:
    """A tensor that lies in files. saved[...] is all of it, saved[a:b] its rows a to b, on the CPU;
    no other rows are read, and no file stays open or mapped."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]  # in the order of their rows, of which none is missing

    def __getitem__(self, rows: slice | EllipsisType) -> Tensor:
        if not self.shape:
            with opened(self.parts[0].file) as file:
                return file.get_tensor(self.name).clone()
        begin, end = 0, self.shape[0]
        if rows is not Ellipsis:
            begin, end, _ = rows.indices(self.shape[0])
        tensor = torch.empty((max(0, end - begin), *self.shape[1:]), dtype=self.dtype)
        for part in self.parts:
            first = max(begin, part.begin)
            last = min(end, part.end)
            if first < last:
                with opened(part.file) as file:
                    saved = file.get_slice(self.name)[first - part.begin : last - part.begin]
                    tensor[first - begin : last - begin] = saved
        return tensor


@dataclass(frozen=True)
class PieceHead:
    """What the head of a file says of a tensor."""

    part: Part
    dtype: torch.dtype
    shape: tuple[int, ...]  # of the whole


def open_tensors(paths: list[Path]) -> dict[str, SavedTensor]:
    """All tensors in files that belong together, by name; of the files only the heads are read.

    Raises ValueError, naming the file or the tensor, if one is damaged or rows are missing.
    """
    heads: dict[str, list[PieceHead]] = {}
    for path in paths:
        for name, piece in read_head(path).items():
            heads.setdefault(name, []).append(piece)
    tensors = {}
    for name, pieces in heads.items():
        pieces.sort(key=lambda piece: piece.part.begin)
        parts = tuple(piece.part for piece in pieces)
        check_whole(name, pieces)
        tensors[name] = SavedTensor(name, pieces[0].dtype, pieces[0].shape, parts)
    return tensors


def read_head(path: Path) -> dict[str, PieceHead]:
    """The tensors of a file. Raises ValueError if it is damaged or cannot be read."""
    pieces = {}
    try:
        with opened(path) as file:
            table = json.loads((file.metadata() or {}).get("rows", "{}"))
            for name in file.keys():  # noqa: SIM118 - it is no dict
                head = file.get_slice(name)
                height, *rest = head.get_shape() or [1]
                begin, n_rows = table.get(name, (0, height))
                shape = (int(n_rows), *rest) if head.get_shape() else ()
                part = Part(path, int(begin), int(begin) + height)
                pieces[name] = PieceHead(part, DTYPES[head.get_dtype()], shape)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except BROKEN as error:
        text = f"{path} cannot be read, it is damaged or no safetensors file: {error}"
        raise ValueError(text) from None
    return pieces


def check_whole(name: str, pieces: list[PieceHead]):
    """Raises ValueError unless these, in order, make up a tensor."""
    first = pieces[0]
    n_rows = first.shape[0] if first.shape else 1
    end = 0
    for piece in pieces:
        if (piece.shape, piece.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"{piece.part.file} has another {name} than {first.part.file.name}: "
                f"{piece.shape} {piece.dtype}, not {first.shape} {first.dtype}"
            )
        if piece.part.begin != end:
            raise ValueError(
                f"{piece.part.file} begins {name} at row {piece.part.begin}, "
                f"the files before it end at row {end}"
            )
        end = piece.part.end
    if end != n_rows:
        raise ValueError(f"{first.part.file.parent} holds {end} of {n_rows} rows of {name}")
