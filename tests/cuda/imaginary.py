"""A CUDA device that is not there: its tensors say that they are on cuda:0, a CPU does the work.

After no_gpu.load(), install() and inside of Imaginary(), the project's own code runs on device=cuda
from end to end, with real numbers, and the rules of a GPU hold that a CPU would not notice:

- tensors of both devices in one operation are an error;
- what makes the host wait is written down, with the line of the project that did: DEVICE.waits;
- a copy to the host with non_blocking=True is nonsense until an event after it was waited for;
- operations that add up in any order are errors where deterministic ones are asked for;
- a captured graph is replayed on the addresses and the Python numbers of its capture.

Attention is asked for as on an H100: of cuDNN in 16 bits, of the efficient kernel in 32.
"""

import math
import re
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import torch
import torch.cuda.amp.common
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CUDA = torch.device("cuda", 0)

# Operations whose result's size depends on numbers that the host must then know
SIZED_BY_NUMBERS = ("aten.nonzero", "aten.masked_select", "aten._unique2", "aten.equal")
NO_KERNEL = ("aten.detach", "aten.alias", "aten.view", "aten.t", "aten.transpose", "aten.slice")


def project_line() -> str:
    """FILE:FUNCTION of the innermost frame that is the project's, tests/cuda left aside."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if (
            path.is_relative_to(ROOT)
            and not path.is_relative_to(HERE)
            and ".venv" not in path.parts
        ):
            return f"{path.relative_to(ROOT).as_posix()}:{frame.name}"
    return "elsewhere"


# -----------------------------------------------------------------------------
# What the device was asked for


@dataclass
class Record:
    waits: list[tuple[str, str]] = field(default_factory=list)  # (what, FILE:FUNCTION)
    launched: int = 0  # kernels
    replayed: int = 0  # graphs
    made: Counter = field(default_factory=Counter)  # by (operation, dtype, shape of its result)
    copies: int = 0  # to the host, without waiting
    pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # of them: (host's, values)
    graph: "Graph | None" = None  # that is being captured

    def wait(self, what: str):
        if self.graph is not None:
            raise RuntimeError(f"{what} while a graph is captured, in {project_line()}")
        self.waits.append((what, project_line()))

    def deliver(self, copies: int):
        """The first so many copies to the host become true."""
        delivered = self.copies - len(self.pending)
        n = max(0, copies - delivered)
        for host, values in self.pending[:n]:
            host.copy_(values)
        del self.pending[:n]

    def drain(self, what: str):
        """Wait for all that was asked for."""
        self.wait(what)
        self.deliver(self.copies)


DEVICE = Record()


class CudaTensor(Tensor):
    """Says that it is on the device; `data_` has its numbers, on the CPU."""

    data_: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: Tensor) -> "CudaTensor":
        # Normal tensors in inference mode, too: views of weights must be.
        with torch.inference_mode(False):
            tensor = Tensor._make_wrapper_subclass(
                cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(),
                dtype=data.dtype, device=CUDA,
            )  # fmt: skip
        tensor.data_ = data
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return run(func, args, kwargs or {})

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(with_lists_as_tensors(index))

    def __setitem__(self, index: Any, value: Any):
        super().__setitem__(with_lists_as_tensors(index), value)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: object) -> str:
        return f"CudaTensor({self.data_!r})"


def with_lists_as_tensors(index: Any) -> Any:
    """torch copies a list among the indices to the device, past what sees operations."""
    if isinstance(index, tuple):
        return tuple(with_lists_as_tensors(part) for part in index)
    return torch.tensor(index, device=CUDA) if isinstance(index, list) else index


class Imaginary(TorchDispatchMode):
    """Inside, tensors can be made on the device."""

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


# -----------------------------------------------------------------------------
# Operations


def plain(operation: str) -> str:
    """A name of torch's as an operation or as a module: nll_loss_forward and NLLLoss."""
    return re.sub("aten.|_|forward|backward", "", operation).lower()


def in_any_order() -> set[str]:
    """What torch refuses where deterministic algorithms are asked for, by its own list."""
    _, refused = torch.use_deterministic_algorithms.__doc__.split("operations will throw a")
    names = re.findall(
        r":(?:class|func):`torch\.(?:[\w.]+\.)?(\w+)`", refused.split("In addition")[0]
    )
    assert {"cumsum", "put_"} <= set(names) and len(names) > 20
    return {plain(name) for name in names} - {"nllloss", "resize"}  # for images, for quantized ones


IN_ANY_ORDER = in_any_order()


def refuse_any_order(name: str, tensors: list[Tensor]):
    if not torch.are_deterministic_algorithms_enabled() or plain(name) not in IN_ANY_ORDER:
        return
    if plain(name) != "cumsum" or tensors[0].is_floating_point():
        raise RuntimeError(f"{name} has no deterministic implementation, in {project_line()}")


def is_cuda(device: object) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def run(func: Callable, args: tuple, kwargs: dict) -> Any:
    """One operation, on the CPU, whose results are where CUDA would have them."""
    name = str(func.overloadpacket)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = [t for t in tensors if isinstance(t, CudaTensor)]
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    if not on_device and not is_cuda(kwargs.get("device")):
        return func(*args, **kwargs)
    if func._can_decompose():  # only in inference mode do such come here
        with Imaginary():
            return func.decompose(*args, **kwargs)
    if name == "aten._local_scalar_dense":
        DEVICE.drain("a number read")
        return func(args[0].data_)
    if name == "aten._to_copy":
        return move(func, args[0], kwargs)
    if name == "aten.copy_":
        return copy(func, *args, **kwargs)
    refuse_any_order(name, tensors)
    refuse_host_tensors(name, [t for t in tensors if not isinstance(t, CudaTensor)])
    is_mask = name in ("aten.index", "aten.index_put_") and any(
        t is not None and t.dtype == torch.bool for t in args[1]
    )
    if name in SIZED_BY_NUMBERS or is_mask:
        DEVICE.drain(f"{name.removeprefix('aten.')} by numbers of the device")
    to_host = kwargs.get("device") is not None and not is_cuda(kwargs["device"])
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": "cpu"}
    result = launch(name, ATTENTION.get(name, func), args, kwargs, on_device)
    return result if not to_host else tree_map(host_of, result)


def launch(name: str, func: Callable, args: tuple, kwargs: dict, inputs: list[CudaTensor]) -> Any:
    """Do the operation; results are new tensors of the device, or those that it worked on."""
    own_args, own_kwargs = tree_map(host_of, (args, kwargs))
    result = func(*own_args, **own_kwargs)
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    if name not in NO_KERNEL:
        DEVICE.launched += 1
        for t in outputs:
            DEVICE.made[name.removeprefix("aten."), t.dtype, tuple(t.shape)] += 1
        if DEVICE.graph is not None:
            DEVICE.graph.calls.append((func, own_args, own_kwargs, outputs))
    own = {id(t.data_): t for t in inputs}

    def on_device(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return own.get(id(leaf)) if id(leaf) in own else CudaTensor(leaf)

    return tree_map(on_device, result)


def host_of(leaf: Any) -> Any:
    return leaf.data_ if isinstance(leaf, CudaTensor) else leaf


def refuse_host_tensors(name: str, host: list[Tensor]):
    """A number without dimensions goes to a kernel by value, anything else must be on the device."""
    for t in host:
        if t.dim() > 0 or "fused" in name:
            raise RuntimeError(
                f"{name.removeprefix('aten.')}: expected all tensors to be on the same device, but "
                f"found at least two devices, cuda:0 and cpu, in {project_line()}"
            )


def move(func: Callable, source: Tensor, kwargs: dict) -> Tensor:
    """To the device, to the host, or to another type."""
    device = kwargs.get("device")
    non_blocking = kwargs.get("non_blocking", False)
    own_kwargs = {**kwargs, "device": torch.device("cpu"), "non_blocking": False}
    if not isinstance(source, CudaTensor):  # to the device
        if not non_blocking:
            DEVICE.drain("a copy to the device")
        return CudaTensor(func(source, **own_kwargs))
    if device is None or is_cuda(device):
        return launch("aten._to_copy", func, (source,), own_kwargs, [source])
    values = func(source.data_, **own_kwargs)
    if not non_blocking:
        DEVICE.drain("a copy to the host")
        return values
    host = torch.full_like(values, math.nan if values.is_floating_point() else -(10**6))
    DEVICE.pending.append((host, values))
    DEVICE.copies += 1
    return host


def copy(func: Callable, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    sides = [isinstance(t, CudaTensor) for t in (target, source)]
    if not all(sides) and not non_blocking and source.dim() > 0:
        DEVICE.drain("a copy to the device" if sides[0] else "a copy to the host")
    inputs = [t for t in (target, source) if isinstance(t, CudaTensor)]
    result = launch("aten.copy_", func, (target, source), {}, inputs)
    return result if sides[0] else target


# -----------------------------------------------------------------------------
# Attention: (forward, backward) of the kernels of a GPU, by their formulas


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, is_causal: bool,
    scale: float | None, seed: int,
) -> dict[str, Tensor]:  # fmt: skip
    """What forward and backward need: q (B, nh, T, hd), k and v (B, nkv, S, hd) in float32."""
    n = q.shape[1] // k.shape[1]
    q, k, v = q.float(), k.float(), v.float()
    keys, values = (t.repeat_interleave(n, dim=1) for t in (k, v))
    scale = scale or 1 / math.sqrt(q.shape[-1])
    scores = q @ keys.mT * scale
    if bias is not None:
        scores = scores + bias.float()
    if is_causal:
        T, S = scores.shape[-2:]
        scores = scores.masked_fill(~torch.ones(T, S, dtype=torch.bool).tril(), -math.inf)
    weights = scores.softmax(dim=-1)
    kept = torch.ones_like(weights)
    if dropout:
        drawn = torch.rand(weights.shape, generator=torch.Generator().manual_seed(seed))
        kept = (drawn >= dropout) / (1 - dropout)
    return dict(
        q=q, keys=keys, values=values, scale=scale, weights=weights, kept=kept,
        logsumexp=scores.logsumexp(dim=-1), n=n,
    )  # fmt: skip


def attend_backward(grad: Tensor, a: dict, dtype: torch.dtype) -> list[Tensor]:
    grad = grad.float()
    dv = (a["weights"] * a["kept"]).mT @ grad
    dweights = grad @ a["values"].mT * a["kept"]
    dscores = a["weights"] * (dweights - (dweights * a["weights"]).sum(dim=-1, keepdim=True))
    dq = dscores @ a["keys"] * a["scale"]
    dk = dscores.mT @ a["q"] * a["scale"]
    # heads that share a key/value head add up: (B, nkv n, S, hd) -> (B, nkv, S, hd)
    dk, dv = (t.unflatten(1, (-1, a["n"])).sum(dim=2) for t in (dk, dv))
    return [t.to(dtype) for t in (dq, dk, dv)]


def new_seed() -> Tensor:
    return torch.randint(1 << 30, ())


def cudnn(q, k, v, bias, logsumexp, dropout=0.0, is_causal=False, debug=False, *, scale=None):  # noqa: ANN001, ANN201
    seed = new_seed()
    a = attend(q, k, v, bias, dropout, is_causal, scale, int(seed))
    y = ((a["weights"] * a["kept"]) @ a["values"]).to(q.dtype)
    return y, a["logsumexp"], None, None, q.shape[2], k.shape[2], seed, seed.clone(), None


def cudnn_backward(  # noqa: ANN201
    grad, q, k, v, out, logsumexp, seed, offset, bias, cum_q, cum_k, max_q, max_k, dropout, is_causal,  # noqa: ANN001
    *, scale=None,  # noqa: ANN001
):  # fmt: skip
    return (
        *attend_backward(
            grad, attend(q, k, v, bias, dropout, is_causal, scale, int(seed)), q.dtype
        ),
    )


def efficient(q, k, v, bias, logsumexp, dropout=0.0, is_causal=False, *, scale=None):  # noqa: ANN001, ANN201
    seed = new_seed()
    a = attend(q, k, v, bias, dropout, is_causal, scale, int(seed))
    return (
        ((a["weights"] * a["kept"]) @ a["values"]).to(q.dtype),
        a["logsumexp"],
        seed,
        seed.clone(),
    )


def efficient_backward(  # noqa: ANN201
    grad, q, k, v, bias, out, logsumexp, seed, offset, dropout, which, is_causal=False, *, scale=None  # noqa: ANN001
):  # fmt: skip
    a = attend(q, k, v, bias, dropout, is_causal, scale, int(seed))
    return (*attend_backward(grad, a, q.dtype), None)


ATTENTION = {
    "aten._scaled_dot_product_cudnn_attention": cudnn,
    "aten._scaled_dot_product_cudnn_attention_backward": cudnn_backward,
    "aten._scaled_dot_product_efficient_attention": efficient,
    "aten._scaled_dot_product_efficient_attention_backward": efficient_backward,
}
attention_of_torch = F.scaled_dot_product_attention


def attention_of_a_gpu(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """F.scaled_dot_product_attention, whose choice of a kernel asks the GPU itself."""
    if not query.is_cuda:
        return attention_of_torch(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (t.to(dtype) for t in (query, key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # as torch does, in each layer anew
        zeros = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = zeros.masked_fill_(~attn_mask, -math.inf)
    if attn_mask is not None and attn_mask.dtype != query.dtype:
        raise RuntimeError(f"attn_mask is {attn_mask.dtype}, the query {query.dtype}")
    grad = torch.is_grad_enabled()
    if query.dtype == torch.float32 or not torch.backends.cuda.cudnn_sdp_enabled():
        operation = torch.ops.aten._scaled_dot_product_efficient_attention
        return operation(query, key, value, attn_mask, grad, dropout_p, is_causal, scale=scale)[0]
    operation = torch.ops.aten._scaled_dot_product_cudnn_attention
    return operation(query, key, value, attn_mask, grad, dropout_p, is_causal, False, scale=scale)[
        0
    ]


def attention_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask, enable_gqa: bool
) -> Tensor:
    """flex_attention, as its kernel goes by the lists of a BlockMask, with no mask on the device:
    blocks in neither list are left out, in full ones nothing is asked of mask_mod."""
    bias = CudaTensor(torch.where(seen_by_lists(block_mask), 0.0, -math.inf).to(query.dtype))
    operation = torch.ops.aten._scaled_dot_product_efficient_attention
    return operation(query, key, value, bias, torch.is_grad_enabled(), 0.0, False)[0]


def seen_by_lists(mask: BlockMask) -> Tensor:
    """(B, 1, T, T) booleans of the CPU. The lists of the backward pass must be those of the forward
    one, by keys, and all lie in memory as kernels read them, whatever their strides."""
    lists = [mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices]
    lists += [mask.q_num_blocks, mask.q_indices, mask.full_q_num_blocks, mask.full_q_indices]
    assert all(numbers.is_contiguous() for numbers in lists)
    partial = listed_blocks(mask.kv_num_blocks, mask.kv_indices)  # (B, 1, n, n)
    full = listed_blocks(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert partial.equal(listed_blocks(mask.q_num_blocks, mask.q_indices).mT)
    assert full.equal(listed_blocks(mask.full_q_num_blocks, mask.full_q_indices).mT)
    T = mask.seq_lengths[0]
    cells = tuple(CellType(host_of(cell.cell_contents)) for cell in mask.mask_mod.__closure__)
    mask_mod = FunctionType(mask.mask_mod.__code__, mask.mask_mod.__globals__, closure=cells)
    row = torch.arange(len(partial)).view(-1, 1, 1, 1)
    position = torch.arange(T)
    may_look = mask_mod(row, 0, position.view(-1, 1), position)  # (B, 1, T, T)
    size = mask.BLOCK_SIZE[0]

    def by_position(blocks: Tensor) -> Tensor:
        return blocks.repeat_interleave(size, 2).repeat_interleave(size, 3)[:, :, :T, :T]

    return by_position(full) | (by_position(partial) & may_look)


def listed_blocks(count: Tensor, indices: Tensor) -> Tensor:
    """(B, 1, n) and (B, 1, n, n) -> (B, 1, n, n) booleans, on the CPU."""
    count, indices = host_of(count), host_of(indices)
    is_listed = torch.arange(indices.shape[-1]) < count.unsqueeze(-1)
    return torch.zeros_like(is_listed).scatter(-1, indices.long(), is_listed)


# -----------------------------------------------------------------------------
# torch.cuda


class Event:
    """What was queued before it. Waiting for it makes copies to the host true."""

    def __init__(self, *_: object, **__: object):
        self.copies = 0
        self.launched = 0

    def record(self, *_: object):
        self.copies = DEVICE.copies
        self.launched = DEVICE.launched

    def synchronize(self):
        idle = self.launched and DEVICE.launched == self.launched
        DEVICE.wait("an event, with nothing queued after it" if idle else "an event")
        DEVICE.deliver(self.copies)


class Stream:
    def __init__(self, *_: object, **__: object):
        pass

    def wait_stream(self, _: "Stream"):
        pass

    def wait_event(self, _: Event):
        pass

    def record_event(self) -> Event:
        event = Event()
        event.record()
        return event


class Graph:
    """Operations of the capture, done again into the same memory."""

    def __init__(self):
        self.calls: list[tuple] = []

    def capture_begin(self, *_: object, **__: object):
        DEVICE.graph = self

    def capture_end(self):
        DEVICE.graph = None

    def replay(self):
        DEVICE.launched += 1
        DEVICE.replayed += 1
        for func, args, kwargs, outputs in self.calls:
            again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for output, values in zip(outputs, again, strict=True):
                if output.data_ptr() != values.data_ptr():
                    output.copy_(values)


tensor_of_torch = torch.tensor


def tensor(data: Any, *, device: object = None, **options: Any) -> Tensor:
    """torch.tensor, which fills a tensor of the CPU and copies that, past what sees operations."""
    made = tensor_of_torch(data, **options)
    return made if device is None else made.to(device)


def install():
    """Put the device where torch.cuda's functions would ask a driver."""
    cuda = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.set_device = lambda device: None
    cuda.current_device = lambda: 0
    cuda.get_device_name = lambda device=None: "NVIDIA H100 80GB HBM3"
    cuda.get_device_capability = lambda device=None: (9, 0)
    cuda.is_bf16_supported = lambda *_: True
    cuda.mem_get_info = lambda device=None: (79 * 10**9, 80 * 10**9)
    cuda.max_memory_allocated = lambda device=None: 0
    cuda.synchronize = lambda device=None: DEVICE.drain("synchronize")
    cuda.empty_cache = lambda: DEVICE.wait("empty_cache")
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.set_rng_state = lambda *_: None
    cuda.current_stream = lambda device=None: Stream()
    cuda.stream = lambda stream: nullcontext()
    cuda.Event, cuda.Stream, cuda.CUDAGraph = Event, Stream, Graph
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.tensor = tensor
    F.scaled_dot_product_attention = attention_of_a_gpu
    # Weights that move become new ones: a CPU's tensor cannot turn into one of this device.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
