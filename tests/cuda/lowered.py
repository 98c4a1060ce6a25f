"""What Inductor makes of a pass for an H100, without one: python lowered.py LIBRARY JOBS.json [show]

JOBS.json: {name: {"preset": ..., "rows": B, "evaluate": true, "update": true, "documents": true,
"settings": {name: value}, "fault": one of FAULTS}}, all but preset and rows optional. Prints {name:
{graph: a Count}} as JSON; `show` prints what each kernel moves, too, to stderr.

AOTAutograd traces the network, its loss and the backward pass on fake CUDA tensors, in bfloat16
autocast; Inductor lowers both graphs by an H100's properties. The code is counted, never run: of
triton, which `make lowering` puts into .triton, only the parser is used. Trying kernels against
each other and padding products, which need the device, are off.
"""

import sys
from pathlib import Path

import no_gpu

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / ".triton")]
    no_gpu.load(sys.argv[1])

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.compile_fx as compile_fx
import torch._inductor.config as inductor
import torch._inductor.debug
import torch._inductor.graph
import torch._inductor.scheduler
import torch._inductor.utils
import torch._subclasses.fake_tensor as fake_tensor
import torch.cuda.amp.common
import torch.utils._triton
from blocks import attention_in_graph
from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn import functional as F

import model
from lathe import cli
from lathe.optim import muon
from lathe.settings import Settings

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    gcnArchName="",
    L2_cache_size=50 << 20,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    clock_rate=1980000,
    memory_clock_rate=2619000,
    memory_bus_width=5120,
)
VOCABULARY = 50257


@dataclass
class Count:
    """Of one graph."""

    nodes: int  # before lowering
    kernels: int  # different ones that Triton would compile
    launches: int  # of them
    atomics: int  # additions in them whose order the device chooses
    gigabytes: float  # that they read and write
    products: int  # matrix products and attention, which libraries do
    logits: int  # pieces of them, or of their gradient, that exist at a time
    kept: float  # gigabytes that a forward pass makes for the backward one
    attention: int  # different kernels of it that are made from a template
    masks: int  # tensors that hold a number for each query and key


class NoGuard:
    def __init__(self, *_: object):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_: object):
        return False


def pretend():
    """Have torch believe that it could compile for an H100."""
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    fake_tensor.init_gpu_context = lambda *_: None
    answers = dict(
        get_device_properties=H100,
        get_device_capability=(H100.major, H100.minor),
        get_device_name=H100.name,
        get_compute_capability=90,
        current_device=0,
        device_count=1,
        is_bf16_supported=True,
        synchronize=None,
        _lazy_init=None,
    )
    interface = device_interface.CudaInterface
    for name, answer in answers.items():

        def reply(*_: object, answer: object = answer, **__: object) -> object:
            return answer

        setattr(torch.cuda, name, reply)
        setattr(interface, name, staticmethod(reply))
    interface.is_available = staticmethod(lambda: True)
    torch.cuda.device = interface.device = torch.cuda._DeviceGuard = NoGuard
    device_interface.caching_worker_device_properties["cuda"] = [H100]
    device_interface.caching_worker_current_devices["cuda"] = 0
    torch.utils._triton.has_triton = lambda: True
    torch.utils._triton.triton_hash_with_backend = lambda: "none"
    for module in (torch._inductor.utils, torch._inductor.scheduler, compile_fx):
        module.has_triton = lambda: True
    inductor.fx_graph_cache = False
    inductor.compile_threads = 1
    inductor.joint_graph_constant_folding = False  # these two would run something
    inductor.shape_padding = False
    torch.compiler.is_compiling = lambda: True  # what aot_function does, is done in compiling
    F.scaled_dot_product_attention = attention_of_cudnn
    model.flex_attention = attention_in_graph


def attention_of_cudnn(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What an H100 takes, whose choice would ask the device."""
    dtype = torch.get_autocast_dtype("cuda")
    q, k, v = (t.to(dtype) for t in (q, k, v))
    grad = torch.is_grad_enabled()
    operation = torch.ops.aten._scaled_dot_product_cudnn_attention
    return operation(q, k, v, attn_mask, grad, dropout_p, is_causal, scale=scale)[0]


def bytes_made(graph: torch.fx.Graph) -> int:
    """Of what a graph returns, but for what it was given or has views of."""
    (returned,) = graph.output_node().args

    def sizes(nodes: list) -> dict[int, int]:
        values = [node.meta.get("val") for node in nodes if isinstance(node, torch.fx.Node)]
        storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
        return {storage._cdata: storage.nbytes() for storage in storages}

    given = sizes(graph.find_nodes(op="placeholder"))
    return sum(n for key, n in sizes(returned).items() if key not in given)


def count(lowering: torch._inductor.graph.GraphLowering, code: str, graph: torch.fx.Graph) -> Count:
    moved: list[tuple[float, str]] = []  # gigabytes, what is computed
    products = 0
    _, per_node, _ = lowering.count_bytes()
    for node, words in per_node:
        if getattr(getattr(node, "node", None), "python_kernel_name", None) is not None:
            products += 1
            continue
        origins = {str(o.target) for part in node.get_nodes() for o in part.node.origins}
        names = sorted(o.removeprefix("aten.").partition(".")[0] for o in origins)
        moved.append((4 * words / 1e9, " ".join(names)))
    if sys.argv[3:] == ["show"]:
        lines = [f"{gigabytes:7.3f} GB  {names[:100]}" for gigabytes, names in moved]
        print("\n".join(lines), file=sys.stderr)
    width = model.GPTConfig(VOCABULARY).padded_vocab_size
    T = model.GPTConfig.block_size
    return Count(
        nodes=len(graph.nodes),
        kernels=len(re.findall(r"^triton_\w+ = async_compile", code, re.M)),
        launches=len(re.findall(r"^\s+triton_\w+\.run\(", code, re.M)),
        atomics=code.count("tl.atomic_add"),
        gigabytes=round(sum(gigabytes for gigabytes, _ in moved), 2),
        products=products,
        kept=round(bytes_made(graph) / 1e9, 2),
        logits=len(re.findall(rf"= empty_strided_cuda\(\(\d{{3,}}, {width}\)", code)),
        attention=len(re.findall(r"^triton_tem_\w+ = async_compile", code, re.M)),
        masks=len(re.findall(rf"= empty_strided_cuda\(\([\d, ]*\b{T}, {T}\),", code)),
    )


def lowered(function: Callable, mode: FakeTensorMode, counts: dict[str, Count]) -> Callable:
    """The function, which puts into counts what Inductor makes of it when it is called: of its
    graphs `forward` and `backward`, or without gradients of `inference`."""

    def compiler(phase: str) -> Callable:
        def compile_graph(graph: torch.fx.GraphModule, inputs: list) -> Callable:
            inference = phase == "inference"
            as_traced = graph.forward  # what follows changes it
            with V.set_fake_mode(mode):
                compile_fx._recursive_post_grad_passes(graph, is_inference=inference)
                lowering = torch._inductor.graph.GraphLowering(
                    graph,
                    example_inputs=inputs,
                    is_inference=inference,
                    is_backward=phase == "backward",
                    shape_env=mode.shape_env,
                    graph_id=len(counts),
                )
                context = torch._inductor.debug.DebugContext()
                with context, V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]):
                    lowering.run(*inputs)
                    code = lowering.codegen()[0].value
                    counts[phase] = count(lowering, code, graph.graph)
            return make_boxed_func(as_traced)

        return compile_graph

    def partition(joint: torch.fx.GraphModule, *args: Any, **options: Any) -> tuple:  # noqa: ANN401
        compile_fx._recursive_joint_graph_passes(joint)
        return min_cut_rematerialization_partition(joint, *args, compiler="inductor", **options)

    return aot_function(
        function,
        fw_compiler=compiler("forward"),
        bw_compiler=compiler("backward"),
        inference_compiler=compiler("inference"),
        partition_fn=partition,
        decompositions=select_decomp_table(),
        keep_inference_input_mutations=True,
    )


def new_mode() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)


def lower_pass(network: model.GPT, rows: int, evaluate: bool) -> dict[str, Count]:
    """Network and loss on (rows, block_size) ids, back and forth or for an evaluation."""
    counts: dict[str, Count] = {}
    with new_mode() as mode:
        state = {}
        for name, t in [*network.named_parameters(), *network.named_buffers()]:
            learned = isinstance(t, torch.nn.Parameter)
            state[name] = torch.empty(t.shape, device="cuda", requires_grad=learned)
        x = torch.empty(rows, network.config.block_size, dtype=torch.long, device="cuda")
        reduction = "none" if evaluate else "sum"

        def run_pass(state: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(network, state, (x, x), {"reduction": reduction})

        with torch.autocast("cuda", torch.bfloat16):
            with torch.no_grad() if evaluate else nullcontext():
                loss = lowered(run_pass, mode, counts)(state, x)
        if not evaluate:
            loss.backward()
    return counts


def lower_update(network: model.GPT) -> dict[str, Count]:
    """What Muon does beside its products."""
    shapes = [p.shape for p in network.transformer.h.parameters() if p.dim() == 2]
    first: dict[str, Count] = {}
    second: dict[str, Count] = {}
    with new_mode() as mode, torch.no_grad():
        params, momenta, grads = ([torch.empty(s, device="cuda") for s in shapes] for _ in range(3))
        orthogonal = [p.bfloat16() for p in params]
        factors = [p[:, :1].clone() for p in params]
        skip = torch.empty((), dtype=torch.bool, device="cuda")
        rate = torch.empty(())
        lowered(muon.looked_ahead, mode, first)(momenta, grads, 0.95, skip)
        lowered(muon.moved, mode, second)(params, orthogonal, factors, rate, rate, skip)
    return {"look_ahead": first["inference"], "move": second["inference"]}


# -----------------------------------------------------------------------------
# Faults that the ceilings must see: (name in model.py, what stands there instead)


def scattered(scores: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    loss, grad = model.cross_entropy_and_gradient(scores.float(), *rest)
    return loss, grad.to(scores.dtype)


FAULTS: dict[str, tuple[str, object]] = {
    "a softmax in memory": ("cross_entropy_by_comparison", scattered),
    "a float32 stream": ("residual_dtype", lambda x: x.dtype),
    "norms that return float32": ("outside_autocast", lambda x: nullcontext()),
    "a bias in the product": ("before_activation", lambda layer, x: layer(x)),
    "many pieces": ("LOGIT_BYTES_ON_GPU", 1 << 27),
    "a mask in memory": ("fits_blocks", lambda c, dropout: False),
}


def config_of(preset: str, changed: dict, documents: bool) -> model.GPTConfig:
    words = [preset, *(f"--{name}={value}" for name, value in changed.items())]
    s = cli.parse(Settings, words, prog="train.py", presets=True)
    names = {f.name for f in fields(model.GPTConfig)} & {f.name for f in fields(Settings)}
    document_token = VOCABULARY - 1 if documents else -1
    shape = {name: getattr(s, name) for name in names}
    return model.GPTConfig(VOCABULARY, document_token, **shape)


def main():
    pretend()
    report = {}
    for name, job in json.loads(sys.argv[2]).items():
        config = config_of(job["preset"], job.get("settings", {}), job.get("documents", False))
        change = nullcontext()
        if "fault" in job:
            change = mock.patch.object(model, *FAULTS[job["fault"]])
        with change:
            with torch.device("meta"):
                network = model.GPT(config)
            if job.get("update"):
                counts = lower_update(network)
            else:
                counts = lower_pass(network, job["rows"], job.get("evaluate", False))
        report[name] = {phase: asdict(each) for phase, each in counts.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
