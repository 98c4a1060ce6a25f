"""Weights for decoding: their type, and the layout that multiplies few rows at a time fastest.

One token's work is reading every weight once, so what counts is how many bytes they are and how
fast they are read. On a CPU, activations stay float32 in every case: attention in bfloat16 is
several times slower there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.run import devices
from model import GPT

PIECE_BYTES = 32 << 20  # of a matrix that is packed in one go


class PackedLinear(nn.Module):
    """float32 or bfloat16 weights in oneDNN's blocked layout.

    The plain form is F.linear, which reads one row times a matrix on one core of a CPU; this one on
    all of them.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.dtype = weight.dtype
        # In pieces, since packing takes three times a piece's memory for a moment.
        n_rows = max(1, PIECE_BYTES // weight[0].nbytes)
        weights = weight.split(n_rows)
        biases = [None] * len(weights) if bias is None else bias.split(n_rows)
        packed = [torch.ops.mkldnn._reorder_linear_weight(piece, 1) for piece in weights]
        self.pieces = list(zip(packed, biases, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        typed = x.to(self.dtype)
        outputs = []
        for weight, bias in self.pieces:
            y = torch.ops.mkldnn._linear_pointwise(typed, weight, bias, "none", [], "")
            outputs.append(y)
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return y.to(x.dtype)


class HalfLinear(nn.Module):
    """float16 weights for float32 arithmetic, by FBGEMM."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        bias = None if bias is None else bias.float()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class Int8Linear(nn.Module):
    """Weights as 8-bit integers, and for each row one scale: its largest absolute value / 127; for
    a CPU.

    Activations stay as they are.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        scale = weight.float().abs().amax(dim=1) / 127
        self.scale = scale.clamp(min=1e-12).bfloat16()  # as torch's kernel takes it
        scaled = weight / self.scale.float().unsqueeze(1)
        self.weight = scaled.round().clamp(-127, 127).to(torch.int8)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        n_rows = x.numel() // x.shape[-1]
        if n_rows <= 16:
            rows = x.reshape(n_rows, -1).bfloat16()  # (..., in) -> (rows, in)
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
            y = y.view(*x.shape[:-1], -1).to(x.dtype)  # (rows, out) -> (..., out)
        else:  # for many rows at once, unpacking costs less than it saves
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


def has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for it."""
    if not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def choose_weights(name: str, device: torch.device) -> tuple[str, str]:
    """("auto", "float32", "bfloat16", "float16" or "int8") -> type of the weights and the reason.

    Raises ValueError where it cannot run.
    """
    if device.type != "cpu":
        if name == "int8":
            # By Inductor's count a layer of 3,072 x 768 moves 11.8 MB for one row, in bfloat16 4.7.
            raise ValueError(
                f"dtype is int8, which is for CPUs: on {device.type} it is slower than bfloat16; "
                "use --dtype=auto, or --device=cpu"
            )
        dtype, reason = devices.choose_dtype(name, device)
        return str(dtype).removeprefix("torch."), reason
    if name == "auto":
        faster = "float16" if has_fbgemm() else "int8"
        return "float32", f"float32 (as trained; --dtype={faster} is faster)"
    if name == "float32":
        return "float32", "float32 (as asked)"
    if name == "bfloat16" and not has_bfloat16():
        raise ValueError(
            "dtype is bfloat16, for which this processor has no instructions: use float32 or int8"
        )
    if name == "float16" and not has_fbgemm():
        raise ValueError(
            "dtype is float16, for which torch has no kernels on this processor: "
            "use float32 or bfloat16"
        )
    return name, f"{name} weights, float32 activations (as asked)"


def prepare_weights(model: GPT, dtype: str) -> GPT:
    """Cast the weights once, to a type that choose_weights allows, and on a CPU lay the matrices
    out for products with few rows.

    The model can only be run afterwards, neither trained nor saved.
    """
    on_cpu = model.head_weight.is_cpu
    float_type = torch.float32 if on_cpu else devices.DTYPES[dtype]
    for parameter in model.parameters():  # tables of positions are buffers and stay float32
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(float_type)
    if not on_cpu:
        return model
    if on_cpu and dtype == "float32" and not torch.backends.mkldnn.is_available():
        return model

    if model.lm_head is None:  # a tied head becomes a matrix: wte needs the plain layout
        model.lm_head = pack("lm_head", model.transformer.wte.weight, None, dtype)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:  # each in turn: the old weights are let go before the next are packed
        linear = model.get_submodule(name)
        model.set_submodule(name, pack(name, linear.weight, linear.bias, dtype))
    return model


def pack(name: str, weight: Tensor, bias: Tensor | None, dtype: str) -> nn.Module:
    """A linear layer for a CPU, with weights of this type."""
    if dtype == "float16":
        return HalfLinear(weight, bias)
    # The head is the largest matrix, and FBGEMM reads its 16 bits faster than torch's kernel 8.
    if dtype == "int8" and name == "lm_head" and has_fbgemm():
        return HalfLinear(weight, bias)
    if dtype == "int8":
        return Int8Linear(weight, bias)
    float_type = devices.DTYPES[dtype]
    bias = None if bias is None else bias.to(float_type)
    return PackedLinear(weight.to(float_type), bias)
