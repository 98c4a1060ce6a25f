"""The safetensors format, written and read a tensor at a time."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from lathe.run.files import CheckedFile

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def write_safetensors(file: CheckedFile, tensors: dict[str, Tensor]):
    """The safetensors format: 8 bytes for the length of a JSON table of the tensors, the table, then their bytes."""
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    table, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        table[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for tensor in tensors.values():
        file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def safetensors_table(path: Path) -> dict[str, tuple[torch.dtype, list[int], int, int]]:
    """{name: (dtype, shape, first byte in the file, number of bytes)}. ValueError for a damaged file."""
    out = {}
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            table = json.loads(file.read(min(start, size) - 8))
        for name, entry in table.items():
            if name == "__metadata__":
                continue
            (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], SAFETENSORS_DTYPES[entry["dtype"]]
            if not 0 <= begin <= end <= size - start or math.prod(shape) * dtype.itemsize != end - begin:
                raise ValueError(f"tensor {name} does not fit the file's {size:,} bytes")
            out[name] = dtype, shape, start + begin, end - begin
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read, it is damaged or no safetensors file: {error}") from None
    return out


def read_tensor(path: Path, entry: tuple) -> Tensor:
    """One tensor by its entry in the file's table. Read, not mapped: what is dropped then leaves memory at once."""
    dtype, shape, begin, size = entry
    data = torch.empty(size, dtype=torch.uint8)
    with open(path, "rb") as file:
        file.seek(begin)
        if file.readinto(data.numpy()) < size:
            raise ValueError(f"{path} ends early")
    return data.view(dtype).view(shape)
