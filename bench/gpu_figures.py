"""What a GPU can do, and what it makes of the parts of a step: some four minutes.

    python bench/gpu_figures.py                   on a CUDA device, for 60 sequences of 1,024 tokens
    python bench/gpu_figures.py --small=true      in sizes for a CPU

Ceilings: a copy, and the matrix products of GPT-2's shapes. Attention: forward and backward, by
each of torch's kernels; within documents with a mask in memory and, on a GPU, by blocks. Loss:
forward and backward of the projection to logits and the cross-entropy, with how far its gradients
are from those of float32, and the most memory. Each figure is a line of JSON on stdout. What fails
says so, and the rest goes on.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli


@dataclass
class Options:
    """What to measure."""

    small: bool = False  # sizes for a CPU


PARSER = dict(prog="bench/gpu_figures.py", description=__doc__)
if __name__ == "__main__":  # torch takes seconds; --help and mistakes need not wait
    options = cli.parse_before_imports(Options, **PARSER)

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpt2 import VOCAB_SIZE
from bench.results import write_figure
from model import (
    GPT,
    GPT2,
    GPTConfig,
    as_bias,
    document_begins,
    document_blocks,
    document_mask,
    fused_attention,
)

KERNELS = ["CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"]


@dataclass(frozen=True)
class Sizes:
    device: str
    n_sequences: int
    n_tokens: int  # of a sequence
    vocab_size: int
    n_embd: int
    copied_bytes: int

    @property
    def n_rows(self) -> int:
        return self.n_sequences * self.n_tokens


LARGE = Sizes("cuda", 60, 1024, VOCAB_SIZE, 768, 1 << 30)
SMALL = Sizes("cpu", 2, 16, 500, 48, 1 << 16)


def main(argv: list[str] | None = None) -> int:
    return measure(cli.parse(Options, argv, **PARSER))


def measure(options: Options) -> int:
    if not options.small and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here: --small=true runs on a CPU")
    sizes = SMALL if options.small else LARGE
    torch.set_float32_matmul_precision("high")
    name = "cpu" if options.small else torch.cuda.get_device_name()
    tell("machine", device=name, torch=torch.__version__)
    measures = (
        measure_copy, measure_products, measure_attention, measure_documents, measure_losses,
    )  # fmt: skip
    done = [attempt(measure.__name__, lambda m=measure: m(sizes)) for measure in measures]
    return 0 if all(done) else 1


def attempt(name: str, work: Callable[[], None]) -> bool:
    """Whether it could be done; if not, a figure says why."""
    try:
        work()
    except (RuntimeError, ValueError) as error:
        tell("failed", part=name, why=f"{type(error).__name__}: {error}"[:300])
        return False
    return True


def tell(figure: str, **about: object):
    about = {k: round(v, 4) if isinstance(v, float) else v for k, v in about.items()}
    print(json.dumps({"figure": figure, **about}), flush=True)
    write_figure({"figure": figure, **about})


def milliseconds(work: Callable[[], object], device: str, repeats: int = 10) -> float:
    """Of one call, after two that do not count."""
    work()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / repeats


# -----------------------------------------------------------------------------
# Ceilings


def measure_copy(sizes: Sizes):
    source = torch.empty(sizes.copied_bytes, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source), sizes.device)
    tell("copy", terabytes_per_second=2 * sizes.copied_bytes / ms / 1e9)


def measure_products(sizes: Sizes):
    """(rows, width) @ (width, outputs) in bfloat16."""
    rows = sizes.n_rows
    wide = sizes.n_embd
    padded = (sizes.vocab_size + 127) // 128 * 128
    shapes = [(wide, 3 * wide), (wide, 4 * wide), (4 * wide, wide), (wide, padded)]
    shapes.append((wide, sizes.vocab_size))  # no multiple of 8
    for width, outputs in shapes:
        a = torch.randn(rows, width, device=sizes.device, dtype=torch.bfloat16)
        b = torch.randn(outputs, width, device=sizes.device, dtype=torch.bfloat16)
        ms = milliseconds(lambda a=a, b=b: a @ b.T, sizes.device)
        teraflops = 2 * rows * width * outputs / ms / 1e9
        tell("product", rows=rows, width=width, outputs=outputs, teraflops=teraflops)


def measure_attention(sizes: Sizes):
    for heads, head_dim in ((12, 64), (6, 128)):
        shape = (sizes.n_sequences, sizes.n_tokens, heads, head_dim)
        q, k, v = (
            torch.randn(shape, device=sizes.device, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        )

        def step(q: Tensor = q, k: Tensor = k, v: Tensor = v):
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            out.backward(out.detach())

        def measure(
            kernel: str, step: Callable = step, heads: int = heads, head_dim: int = head_dim
        ):
            allowed = sdpa_kernel(getattr(SDPBackend, kernel)) if kernel else nullcontext()
            with allowed:
                ms = milliseconds(step, sizes.device)
            tell("attention", heads=heads, head_dim=head_dim, kernel=kernel or "chosen", ms=ms)

        for kernel in ["", *KERNELS] if sizes.device == "cuda" else [""]:
            attempt(f"attention {kernel}", lambda kernel=kernel, measure=measure: measure(kernel))


def measure_documents(sizes: Sizes):
    """Documents of 256 tokens on average; blocks need a compiler for a GPU."""
    shape = (sizes.n_sequences, 6, sizes.n_tokens, 128)
    q, k, v = (
        torch.randn(shape, device=sizes.device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    starts = torch.rand(sizes.n_sequences, sizes.n_tokens, device=sizes.device) < 1 / 256
    begins = document_begins(starts.long(), document_token=1)

    def masked() -> Tensor:
        return fused_attention(q, k, v, as_bias(document_mask(begins), q.dtype), 0.0)

    def in_blocks() -> Tensor:
        return fused_attention(q, k, v, document_blocks(begins), 0.0)

    def step(attend: Callable[[], Tensor]) -> list[Tensor]:
        out = attend()
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), out.detach())]

    forms = {"a mask in memory": masked}
    if sizes.device == "cuda":
        forms["blocks, compiled"] = torch.compile(in_blocks)
    exact = step(masked)
    for name, attend in forms.items():
        error = relative_error(step(attend), exact)
        if sizes.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        ms = milliseconds(lambda attend=attend: step(attend), sizes.device)
        peak = torch.cuda.max_memory_allocated() / 1e9 if sizes.device == "cuda" else 0.0
        tell("documents", form=name, ms=ms, difference=error, peak_gigabytes=peak)


# -----------------------------------------------------------------------------
# The loss


def measure_losses(sizes: Sizes):
    """A network of one layer as the model computes its loss, and the same with all logits at once;
    compiled on a GPU, as training is."""
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 12, "n_embd": sizes.n_embd, "block_size": sizes.n_tokens}
    model = GPT(GPTConfig(vocab_size=sizes.vocab_size, **{**GPT2, **shape})).to(sizes.device)
    idx = torch.randint(sizes.vocab_size, (sizes.n_sequences, sizes.n_tokens), device=sizes.device)

    def as_trained() -> Tensor:
        return model(idx, idx, reduction="sum")

    def all_logits() -> Tensor:
        logits = model(idx).flatten(0, 1)  # (B * T, vocab_size)
        return F.cross_entropy(logits.float(), idx.flatten(), reduction="sum")

    exact = gradients(model, as_trained, sizes, dtype=None)
    forms = {"as trained, eager": as_trained, "all logits, eager": all_logits}
    if sizes.device == "cuda":
        forms["as trained, compiled"] = torch.compile(as_trained)
        forms["all logits, compiled"] = torch.compile(all_logits)
    for name, loss in forms.items():
        began = time.perf_counter()
        found = gradients(model, loss, sizes)
        first = time.perf_counter() - began
        if sizes.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        ms = milliseconds(lambda loss=loss: gradients(model, loss, sizes), sizes.device, repeats=5)
        peak = torch.cuda.max_memory_allocated() / 1e9 if sizes.device == "cuda" else 0.0
        tell(
            "loss",
            form=name,
            first_seconds=first,
            ms=ms,
            gradient_error=relative_error(found, exact),
            peak_gigabytes=peak,
        )


def gradients(
    model: GPT,
    loss: Callable[[], Tensor],
    sizes: Sizes,
    dtype: torch.dtype | None = torch.bfloat16,
) -> list[Tensor]:
    """Of all weights; dtype: what autocast computes in, None for float32."""
    model.zero_grad()
    with torch.autocast(sizes.device, dtype) if dtype else nullcontext():
        value = loss()
    value.backward()
    return [p.grad for p in model.parameters()]


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    difference = sum((a - b).square().sum() for a, b in zip(found, exact, strict=True))
    size = sum(b.square().sum() for b in exact)
    return float((difference / size).sqrt())


if __name__ == "__main__":
    cli.run(main)
