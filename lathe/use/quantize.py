"""Weights for decoding: their type, and the layout in which few rows at a time are multiplied fastest.

One token's work is reading every weight once, so what counts is how many bytes they are and how fast they are read. On
a CPU, activations stay float32 in every case: attention in bfloat16 is several times slower there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.run import devices
from model import GPT


class PackedLinear(nn.Module):
    """float32 or bfloat16 weights in oneDNN's blocked layout. One row times a matrix then runs on all cores of a CPU,
    whereas F.linear reads a plain layout on one."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.dtype, rows = weight.dtype, max(1, (32 << 20) // weight[0].nbytes)
        biases = [None] * -(-len(weight) // rows) if bias is None else bias.split(rows)
        # In pieces, since packing takes three times a piece's memory for a moment.
        pieces = (torch.ops.mkldnn._reorder_linear_weight(piece, 1) for piece in weight.split(rows))
        self.pieces = list(zip(pieces, biases, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(self.dtype)
        out = [torch.ops.mkldnn._linear_pointwise(y, weight, bias, "none", [], "") for weight, bias in self.pieces]
        return (out[0] if len(out) == 1 else torch.cat(out, dim=-1)).to(x.dtype)


class HalfLinear(nn.Module):
    """float16 weights for float32 arithmetic, by FBGEMM."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class Int8Linear(nn.Module):
    """Weights as 8-bit integers and one scale a row, its largest absolute value / 127; activations stay as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.scale = weight.float().abs().amax(dim=1).div(127).clamp(min=1e-12).bfloat16()  # as torch's kernel takes it
        self.weight = (weight / self.scale.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if x.is_cpu and rows <= 16:
            y = torch._weight_int8pack_mm(x.reshape(rows, -1).bfloat16(), self.weight, self.scale)
            y = y.view(*x.shape[:-1], -1).to(x.dtype)
        else:  # for many rows at once, unpacking costs less than it saves
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


def has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def choose_weights(name: str, device: torch.device) -> tuple[str, str]:
    """("auto", "float32", "bfloat16", "float16" or "int8") -> type of the weights and the reason. Raises ValueError
    where it cannot run."""
    if device.type != "cpu":
        if name == "int8":
            return "int8", "int8 weights, bfloat16 arithmetic (as asked)"
        dtype, reason = devices.choose_dtype(name, device)
        return str(dtype).removeprefix("torch."), reason
    if name == "auto":
        return "float32", f"float32 (as trained; --dtype={'float16' if has_fbgemm() else 'int8'} is faster)"
    bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if name == "bfloat16" and not bf16:
        raise ValueError("dtype is bfloat16, for which this processor has no instructions: use float32 or int8")
    if name == "float16" and not has_fbgemm():
        raise ValueError("dtype is float16, for which torch has no kernels on this processor: use float32 or bfloat16")
    return name, f"{name} weights, float32 activations (as asked)" if name != "float32" else "float32 (as asked)"


def prepare_weights(model: GPT, dtype: str) -> GPT:
    """Cast the weights once, to "float32", "bfloat16", "float16" or "int8", and on a CPU lay the matrices out for
    products with few rows. The model can only be run afterwards, neither trained nor saved."""
    on_cpu = model.head_weight.is_cpu
    half = torch.bfloat16 if dtype == "int8" else devices.DTYPES[dtype]
    for parameter in model.parameters():  # tables of positions are buffers and stay float32
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.float32 if on_cpu else half)
    plain = dtype != "int8" if not on_cpu else dtype == "float32" and not torch.backends.mkldnn.is_available()
    if plain:
        return model

    def pack(name: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
        # The head is the largest matrix, and FBGEMM reads its 16 bits faster than torch's kernel would read 8.
        if on_cpu and (dtype == "float16" or dtype == "int8" and name == "lm_head" and has_fbgemm()):
            return HalfLinear(weight, bias)
        if dtype == "int8":
            return Int8Linear(weight, bias)
        return PackedLinear(weight.to(half), None if bias is None else bias.to(half))

    if model.lm_head is None:  # a tied head is a matrix of its own here: looking a row up needs the plain layout
        model.lm_head = pack("lm_head", model.transformer.wte.weight, None)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:  # each in turn: the old weights are let go before the next are packed
        linear = model.get_submodule(name)
        model.set_submodule(name, pack(name, linear.weight, linear.bias))
    return model
