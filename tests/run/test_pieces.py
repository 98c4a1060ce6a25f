"""What lathe/run/pieces.py promises: however a tensor was cut into files, any other cut of it is read back."""

import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lathe.run.pieces import Piece, open_tensors, write_pieces

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]


def cut(n_rows: int, n_ranks: int) -> list[tuple[int, int]]:
    """Rows of each rank, as torch.chunk deals them out; the last ranks may have none."""
    sizes = [len(part) for part in torch.zeros(n_rows).chunk(n_ranks)]
    sizes += [0] * (n_ranks - len(sizes))
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def write(folder: Path, tensors: dict[str, torch.Tensor], n_ranks: int) -> list[Path]:
    """The files of n ranks; numbers of no dimension are rank 0's."""
    paths = []
    for rank in range(n_ranks):
        pieces = {}
        for name, tensor in tensors.items():
            if tensor.dim():
                begin, end = cut(len(tensor), n_ranks)[rank]
                if begin < end:
                    pieces[name] = Piece(tensor[begin:end], begin, len(tensor))
            elif rank == 0:
                pieces[name] = Piece(tensor)
        paths.append(folder / f"rank{rank}.safetensors")
        with open(paths[-1], "wb") as file:
            write_pieces(file, pieces)
    return paths


def numbers(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(0, 100, shape).to(dtype)


shapes = st.lists(st.integers(1, 9), max_size=3)
states = st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=4)


@settings(max_examples=60)
@given(states, st.integers(1, 7), st.integers(1, 7))
def test_what_any_number_of_ranks_wrote_any_other_number_reads(state, writers, readers):
    tensors = {f"h.{i}.weight": numbers(*each) for i, each in enumerate(state)}
    with tempfile.TemporaryDirectory() as folder:
        saved = open_tensors(write(Path(folder), tensors, writers))
        assert saved.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert saved[name].shape == tensor.shape and saved[name].dtype == tensor.dtype
            assert torch.equal(saved[name][...], tensor)
            if tensor.dim():
                for begin, end in cut(len(tensor), readers):
                    rows = saved[name][begin:end]
                    assert rows.dtype == tensor.dtype and torch.equal(rows, tensor[begin:end])


def test_a_file_of_whole_tensors_is_read_like_one_of_pieces(tmp_path):
    tensors = {"a": torch.arange(12.0).view(4, 3), "b": torch.tensor(5), "c": torch.zeros(0, 2)}
    save_file(tensors, tmp_path / "whole.safetensors")
    saved = open_tensors([tmp_path / "whole.safetensors"])
    assert all(torch.equal(saved[name][...], tensors[name]) for name in tensors)
    assert torch.equal(saved["a"][1:3], tensors["a"][1:3])


def test_a_piece_is_a_safetensors_file_that_the_library_reads(tmp_path):
    tensor = torch.arange(10.0).view(5, 2)
    paths = write(tmp_path, {"a": tensor}, 2)
    assert torch.equal(torch.cat([load_file(path)["a"] for path in paths]), tensor)


def test_no_file_stays_mapped(tmp_path):
    paths = write(tmp_path, {"a": torch.ones(1000, 2)}, 3)
    rows = open_tensors(paths)["a"][100:900]
    assert rows.untyped_storage().nbytes() == 800 * 2 * 4
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()


# Pieces that do not belong together


def test_missing_rows_are_named_whichever_file_is_missing(tmp_path):
    paths = write(tmp_path, {"a": torch.arange(10.0)}, 4)  # 3, 3, 3 and 1 rows
    for i in range(4):
        with pytest.raises(ValueError, match=r"begins a at row 3|at row 6|at row 9|9 of 10 rows"):
            open_tensors(paths[:i] + paths[i + 1 :])
    with pytest.raises(ValueError, match="rank1.safetensors begins a at row 3"):
        open_tensors([*paths, paths[1]])


@pytest.mark.parametrize("other", [torch.zeros(6, 2), torch.zeros(10, 2, dtype=torch.float16)])
def test_pieces_of_different_tensors_are_refused(tmp_path, other):
    (tmp_path / "other").mkdir()
    paths = write(tmp_path, {"a": torch.zeros(10, 2)}, 2)
    others = write(tmp_path / "other", {"a": other}, 2)
    with pytest.raises(ValueError, match="has another a than rank0.safetensors"):
        open_tensors([paths[0], others[1]])


@pytest.mark.parametrize(
    "table",
    [
        "no json",
        "[1]",
        '{"a": 3}',
        '{"a": [0]}',
        '{"a": ["x", 3]}',
        '{"a": [0, 1e30]}',
        '{"a": [-2, 4]}',
        '{"a": [0, 5]}',
        '{"a": [4, 8]}',
        '{"a": [null, null]}',
        '{"a": [0, -4]}',
        json.dumps({"a": [0, math.inf]}),
        "[" * 100_000,
    ],
)
def test_a_strangers_table_is_refused_in_one_line_without_taking_memory(tmp_path, table):
    path = tmp_path / "stranger.safetensors"
    save_file({"a": torch.zeros(4, 2)}, path, metadata={"rows": table})
    with pytest.raises(ValueError, match=r"stranger.safetensors|of \S+ rows of a") as error:
        open_tensors([path])
    assert "\n" not in str(error.value)
