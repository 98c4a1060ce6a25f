"""What lathe/run/tensor_file.py promises: files that others read, and no memory for what a stranger's file only claims."""

import json
import resource
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lathe import ROOT
from lathe.run.tensor_file import host_copy, read_tensor, tensor_names, write_safetensors

TENSORS = {
    "matrix": torch.arange(12.0).view(3, 4),
    "half": torch.full((5,), 0.5, dtype=torch.bfloat16),
    "one number": torch.tensor(7),
    "nothing": torch.zeros(0, 3),
    "flags": torch.tensor([True, False, True]),
    "turned": torch.arange(6.0).view(2, 3).T,
}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def test_what_is_written_is_read_by_the_library_and_by_us(tmp_path):
    path = tmp_path / "ours.safetensors"
    with open(path, "wb") as file:
        write_safetensors(file, TENSORS)
    assert equal(load_file(path), TENSORS)
    assert equal({name: read_tensor(path, name) for name in tensor_names(path)}, TENSORS)


def test_what_the_library_writes_is_read(tmp_path):
    path = tmp_path / "theirs.safetensors"
    theirs = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(theirs, path)
    assert equal({name: read_tensor(path, name) for name in tensor_names(path)}, TENSORS)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tensor_keeps_no_map_of_its_file(tmp_path):
    """What is dropped leaves memory at once, and the file may be replaced."""
    path = tmp_path / "mapped.safetensors"
    save_file({"a": torch.ones(1000), "b": torch.ones(1000)}, path)
    tensor = read_tensor(path, "a")
    with open("/proc/self/maps") as file:
        assert str(path) not in file.read()
    assert tensor.untyped_storage().nbytes() == 4000


def test_copies_for_saving_are_copies():
    tensor = torch.ones(2, 3).T
    copy = host_copy({"a": {"b": tensor, "c": 2}})
    tensor.zero_()
    assert copy["a"]["c"] == 2 and copy["a"]["b"].tolist() == [[1, 1]] * 3
    assert copy["a"]["b"].is_contiguous()
    last = torch.ones(3)
    assert host_copy({"a": last}, copy=False)["a"].data_ptr() == last.data_ptr()


def table(**changed) -> dict:
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changed}


HUGE = 1 << 50


@pytest.mark.parametrize(
    "header, length",
    [
        (table(), HUGE),  # of the header
        (table(), 1 << 63),
        (table(shape=[HUGE // 4], data_offsets=[0, HUGE]), None),
        (table(shape=[HUGE]), None),
        (table(data_offsets=[HUGE, HUGE + 16]), None),
        (table(data_offsets=[-16, 0]), None),
        (table(data_offsets=[16, 0]), None),
        (table(dtype="F99"), None),
        (table(shape="four"), None),
        ([1, 2], None),
    ],
)
def test_sizes_beyond_the_file_are_refused_without_taking_memory(tmp_path, header, length):
    path = tmp_path / "stranger.safetensors"
    words = json.dumps(header).encode()
    length = len(words) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + words + bytes(16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="stranger.safetensors cannot be read, it is damaged or"):
        tensor_names(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_cut_or_missing_file_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut.safetensors cannot be read, it is damaged"):
        tensor_names(path)
    with pytest.raises(ValueError, match="missing.safetensors cannot be read: No such file"):
        tensor_names(tmp_path / "missing.safetensors")


def test_the_library_is_asked_in_one_place_which_knows_names_that_are_no_utf_8():
    """By its own it opens no others: see `utf8_path`."""
    for file in (ROOT / "lathe").rglob("*.py"):
        if file.name != "tensor_file.py":
            assert "safe_open" not in file.read_text(encoding="utf-8"), file
