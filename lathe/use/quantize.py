"""Weights for decoding: their type, and the layout that multiplies few rows at a time fastest.

One token's work is reading every weight once, so what counts is how many bytes they are and how
fast they are read. On a CPU, activations stay float32 in every case: attention in bfloat16 is
several times slower there.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.run import devices
from lathe.use.decoding_block import EXAMPLE_TOKENS, DecodingBlock, is_as_derived
from model import GPT

PIECE_BYTES = 32 << 20  # of a matrix that is packed in one go
LAYOUT_ROWS = 16  # rows that oneDNN is to expect
LONE_ROW_TIMES = 5
TINY = 1e-30  # in place of 0, by which nothing can be divided
PROBE_TOKENS = 16  # are read to see how activations round
PROBE_OUTPUTS = 4096  # of a layer, at most, are looked at for that
ONE_DIGIT_ERROR = 0.01  # of a layer's products, up to which one digit does


class PackedLinear(nn.Module):
    """float32 or bfloat16 weights in oneDNN's blocked layout.

    The plain form is F.linear, which reads one row times a matrix on one core of a CPU; this one on
    all of them. No row depends on those beside it.

    oneDNN adds up a lone row in another order, and takes longer than for five at once: a token of
    GPT-2 124M 29.3 ms, not 27.3. So a lone row goes in five times.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.dtype = weight.dtype
        # In pieces, since packing takes three times a piece's memory for a moment.
        n_rows = max(1, PIECE_BYTES // weight[0].nbytes)
        weights = weight.split(n_rows)
        biases = [None] * len(weights) if bias is None else bias.split(n_rows)
        packed = [torch.ops.mkldnn._reorder_linear_weight(piece, LAYOUT_ROWS) for piece in weights]
        self.pieces = list(zip(packed, biases, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        typed = x.to(self.dtype)
        alone = x.numel() == x.shape[-1]
        if alone:
            typed = typed.expand(LONE_ROW_TIMES, *x.shape[1:])
        outputs = [
            multiply_packed(typed, weight, bias, "none", [], "") for weight, bias in self.pieces
        ]
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if alone:
            y = y[:1]
        return y.to(x.dtype)


multiply_packed = torch.ops.mkldnn._linear_pointwise.default


class HalfLinear(nn.Module):
    """float16 weights for float32 arithmetic, by FBGEMM."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        bias = None if bias is None else bias.float()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class Int8Linear(nn.Module):
    """Weights as 8-bit integers, and for each row one scale: its largest absolute value / 127. By
    FBGEMM, which multiplies 8 bits by 8 bits: rows of activations are rounded, too.

    A row of activations is divided by its largest absolute value, and rounded to whole steps
    between -levels and levels: one digit. With digits=2 what that leaves is a second row, of steps
    2 * levels times finer, so that a few outliers do not drown the rest. No row depends on those
    beside it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, digits: int):
        super().__init__()
        self.levels = int8_levels()
        self.digits = digits
        self.bias = torch.zeros(len(weight)) if bias is None else bias
        self.columns = column_scales(weight)
        if self.columns is not None:
            weight = weight / self.columns
        scale = (weight.float().abs().amax(dim=1) / 127).clamp(min=1e-12)
        rounded = (weight / scale.unsqueeze(1)).round_().to(torch.int8)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings(category=UserWarning):  # deprecated: pytorch issue 184982
            warnings.simplefilter("ignore")
            typed = torch._make_per_channel_quantized_tensor(rounded, scale.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(typed, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.columns is not None:
            x = x * self.columns
        largest = x.abs().amax(dim=-1, keepdim=True).clamp_(min=TINY)
        unit = x / largest  # between -1 and 1
        y = self.two_digits(unit) if self.digits == 2 else self.one_digit(unit)
        return torch.addcmul(self.bias, y, largest)

    def one_digit(self, unit: Tensor) -> Tensor:
        # Steps are unsigned, with 0 in the middle.
        return multiply_int8(unit, 1 / self.levels, self.levels + 1, self.packed)

    def two_digits(self, unit: Tensor) -> Tensor:
        steps = unit.mul_(self.levels)
        whole = steps.round()
        rest = steps.sub_(whole).mul_(2)  # of a step, between -1 and 1
        digits = torch.stack((whole.mul_(1 / self.levels), rest))  # (2, ..., in)
        first, second = self.one_digit(digits).unbind()
        return torch.add(first, second, alpha=1 / (2 * self.levels))


multiply_int8 = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default


def int8_levels() -> int:
    """Whole steps of activations on either side of 0: with fewer instructions pairs of products are
    added up in 16 bits, which must not overflow."""
    return 127 if torch.cpu._is_vnni_supported() else 63


def column_scales(weight: Tensor) -> Tensor | None:
    """(in,) by which weight (out, in) is divided, and activations are multiplied, before they are
    rounded; None if there is no need.

    A feature that is always large has small weights, which would all be rounded to 0 (SmoothQuant,
    arXiv 2211.10438, balances them likewise).
    """
    largest = weight.float().abs().amax(dim=0)
    scales = largest / largest.median().clamp(min=TINY)
    scales = torch.where((scales == 0) | ((scales > 0.25) & (scales < 4)), 1.0, scales)
    return scales if (scales != 1).any() else None


def one_digit_error(x: Tensor, weight: Tensor) -> float:
    """How much products of rows x (rows, in) change, relatively, if x is rounded to one digit."""
    columns = column_scales(weight)
    if columns is not None:
        x = x * columns
        weight = weight / columns
    step = x.abs().amax(dim=-1, keepdim=True).clamp(min=TINY) / int8_levels()
    rounding = (x / step).round() * step - x
    both = F.linear(torch.cat((x, rounding)), weight[:PROBE_OUTPUTS])
    exact, error = both.norm(dim=-1).chunk(2)
    return (error / exact.clamp(min=TINY)).mean().item()


@dataclass
class Digits:
    """How many digits the activations of each layer get, see Int8Linear."""

    layers: dict[nn.Linear, int]  # of the blocks
    head: int


@torch.inference_mode()
def choose_digits(model: GPT) -> Digits:
    """By how activations round while random tokens are read.

    Outliers are of certain features, in any text (arXiv 2208.07339).
    """

    def digits(x: Tensor, weight: Tensor) -> int:
        return 1 if one_digit_error(x.flatten(0, -2), weight) < ONE_DIGIT_ERROR else 2

    def look(layer: nn.Linear, inputs: tuple[Tensor]):
        layers[layer] = digits(inputs[0], layer.weight)

    layers = {}
    blocks = model.transformer.h
    linears = [layer for layer in blocks.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(look) for layer in linears]
    n_tokens = min(PROBE_TOKENS, model.config.block_size)
    numbers = torch.Generator().manual_seed(0)
    idx = torch.randint(model.config.vocab_size, (1, n_tokens), generator=numbers)
    head = digits(model.features(idx), model.head_weight)
    for hook in hooks:
        hook.remove()
    return Digits(layers, head)


class Int8WeightLinear(nn.Module):
    """Int8Linear without FBGEMM: activations stay as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        scale = weight.float().abs().amax(dim=1) / 127
        self.scale = scale.clamp(min=1e-12).bfloat16()  # as torch's kernel takes it
        scaled = weight / self.scale.float().unsqueeze(1)
        rounded = scaled.round().clamp(-127, 127).to(torch.int8)
        self.missing = -weight.shape[1] % 32  # torch's kernel reads 32 columns at a time
        self.weight = F.pad(rounded, (0, self.missing))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        n_rows = x.numel() // x.shape[-1]
        x = F.pad(x, (0, self.missing))
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

    digits = choose_digits(model) if dtype == "int8" and has_fbgemm() else None
    # A tied head becomes a matrix of its own: wte needs the plain layout.
    model.lm_head = pack(model.head_weight, None, dtype, digits and digits.head)

    def pack_layer(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        packed = pack(layer.weight, layer.bias, dtype, digits and digits.layers[layer])
        return packed.forward  # the plain function: a module's call adds to it

    rope = None
    if model.config.position == "rope":
        rope = model.rope[:, :EXAMPLE_TOKENS]
    blocks = model.transformer.h
    for i, block in enumerate(blocks):  # the old weights of each are let go before the next's
        if is_as_derived(block, i, rope):
            blocks[i] = DecodingBlock(block, pack_layer)
        else:
            pack_in_place(block, dtype, digits)
    return model


def pack_in_place(block: nn.Module, dtype: str, digits: Digits | None):
    """Lay out the linear layers of a block that is not as DecodingBlock has it."""
    linears = [name for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
    for name in linears:
        layer = block.get_submodule(name)
        packed = pack(layer.weight, layer.bias, dtype, digits and digits.layers[layer])
        block.set_submodule(name, packed)


def pack(weight: Tensor, bias: Tensor | None, dtype: str, digits: int | None) -> nn.Module:
    """A linear layer for a CPU, with weights of this type; digits: see Int8Linear."""
    if dtype == "float16":
        return HalfLinear(weight, bias)
    if dtype == "int8" and digits is not None:
        return Int8Linear(weight, bias, digits)
    if dtype == "int8":
        return Int8WeightLinear(weight, bias)
    float_type = devices.DTYPES[dtype]
    bias = None if bias is None else bias.to(float_type)
    return PackedLinear(weight.to(float_type), bias)
