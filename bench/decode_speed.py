"""Sampling speed of a network of GPT-2's shape, against transformers and nanoGPT.

    python bench/decode_speed.py --peer=PATH_TO_NANOGPT      everything that this machine can show
    python bench/decode_speed.py --only batch1 --repeats=3
    python bench/decode_speed.py --only quality --run=out/modern --dataset=data/python_stdlib

batch1: one text, against transformers' generate, and the share of the limit that memory sets: each
token reads every weight once. context: one text at 64 and at 500 tokens, against nanoGPT. ten:
nanoGPT's default command, 10 samples of 500 tokens; of nanoGPT's, which come one by one, a single
one is timed and counted ten times. quality: validation loss of a trained run with each type of
weights. start: from the command to the first token, and peak memory. gpu: tokens per second and
share of the bandwidth on CUDA.

Contestants run in turn, `repeats` times; the medians are shown. Weights are random, 124M of them.
Without --peer, context, ten and start are left out or, named in --only, show lathe alone.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.gpt2 import Shape
from lathe import cli
from lathe.fields import PathName

Part = Literal["batch1", "context", "ten", "quality", "start", "gpu"]


@dataclass
class Options(Shape):
    """What to time."""

    # --- measurement
    only: list[Part] = field(default_factory=list)  # empty = all that are possible
    peer: PathName = ""  # folder of nanoGPT
    run: PathName = ""  # trained run, for quality
    dataset: PathName = ""  # its prepared dataset; empty = the run's own
    tokens: int = 200  # new tokens of a text
    repeats: int = 5
    read_mib: int = 1024  # memory that is read to find its bandwidth
    save: bool = True  # append the tables to bench/RESULTS.md


PARSER = dict(prog="bench/decode_speed.py", description=__doc__)
if __name__ == "__main__":  # torch takes seconds; --help and mistakes need not wait
    options = cli.parse_before_imports(Options, **PARSER)

import statistics
import tempfile
import time
from dataclasses import asdict

import torch

from bench import nanogpt
from bench.gpt2 import VOCAB_SIZE, random_gpt2
from bench.processes import Child, run_child
from bench.results import record
from bench.turns import in_turn
from lathe import ROOT
from lathe.data.dataset import open_dataset
from lathe.run import checkpoint, devices
from lathe.text.tokenizer import load_tokenizer
from lathe.use.find_model import find_model
from lathe.use.generation import generate
from lathe.use.quantize import choose_weights, prepare_weights
from lathe.use.sampling import Sampling
from lathe.use.validation import validation
from model import GPT, GPTConfig

SAMPLING = dict(temperature=0.8, top_k=200)
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # of a weight


def main(argv: list[str] | None = None) -> int:
    return measure(cli.parse(Options, argv, **PARSER))


def measure(options: Options) -> int:
    measures = {
        "batch1": measure_batch1,
        "context": measure_context,
        "ten": measure_ten,
        "quality": measure_quality,
        "start": measure_start,
        "gpu": measure_gpu,
    }
    for part in options.only or get_args(Part):
        needed = missing(part, options)
        if needed:
            print(f"{part}: left out, it needs {needed}", file=sys.stderr)
        else:
            measures[part](options)
    return 0


def missing(part: str, options: Options) -> str:
    """What a part needs and does not have; "" if it can be measured."""
    if part == "quality" and not options.run:
        return "--run"
    if part in ("context", "ten", "start") and not options.only and not options.peer:
        return "--peer"
    if part == "gpu" and not torch.cuda.is_available():
        return "a CUDA device"
    return ""


# -----------------------------------------------------------------------------
# Decoding, timed


@dataclass
class Seconds:
    whole: float
    after_first: float  # after the first tokens


def decode(
    model: GPT, n_context: int, n_new: int, n_samples: int = 1, compiled: bool = False
) -> Seconds:
    """Time n_new tokens after n_context, of so many samples at once."""
    prompt = list(range(1, n_context + 1))
    began = time.perf_counter()
    steps = generate(
        model,
        [prompt],
        n_samples,
        n_new,
        Sampling(**SAMPLING),
        batch_size=n_samples,
        compiled=compiled,
    )
    n_tokens = len(next(steps))
    first = time.perf_counter()
    for tokens in steps:
        n_tokens += len(tokens)
    end = time.perf_counter()
    assert n_tokens == n_new * n_samples
    return Seconds(end - began, end - first)


def possible_types() -> list[str]:
    """Types of weights that this processor can decode with."""
    types = []
    for dtype in BYTES:
        try:
            choose_weights(dtype, torch.device("cpu"))
            types.append(dtype)
        except ValueError as error:
            print(error, file=sys.stderr)
    return types


def read_bandwidth(mebibytes: int, device: str = "cpu") -> float:
    """Bytes per second of summing so much memory: the best of several."""
    data = torch.ones(mebibytes << 18, device=device)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        data.sum().item()
        best = max(best, data.nbytes / (time.perf_counter() - began))
    return best


def bytes_read(c: GPTConfig, dtype: str, positions: float, on_cpu: bool = True) -> float:
    """By one token: the matrices, and keys and values of the positions before it."""
    of_weight = BYTES[dtype]
    of_head_weight = 2 if on_cpu and dtype == "int8" else of_weight
    of_cached = 4 if on_cpu else 2
    matrices = c.n_layer * (4 * c.n_embd**2 + 2 * c.n_embd * c.n_hidden)
    head = c.n_embd * c.padded_vocab_size
    cached = 2 * c.n_layer * c.n_kv_head * c.head_dim * positions
    return matrices * of_weight + head * of_head_weight + cached * of_cached


# -----------------------------------------------------------------------------
# batch1


def measure_batch1(options: Options):
    n_new = options.tokens
    n_context = 16
    models = {dtype: prepare_weights(random_gpt2(options), dtype) for dtype in possible_types()}
    peers = {dtype: transformers_model(options, dtype) for dtype in ("float32", "bfloat16")}
    contestants = {}
    for dtype, model in models.items():
        contestants[f"lathe {dtype}"] = lambda model=model: (
            n_new / decode(model, n_context, n_new).whole
        )
    for dtype, peer in peers.items():
        contestants[f"transformers {dtype}"] = lambda peer=peer: (
            n_new / decode_by_transformers(peer, n_context, n_new)
        )
    speeds = in_turn(options.repeats, contestants, warm_up=True)
    medians = {name: statistics.median(of_one) for name, of_one in speeds.items()}
    bandwidth = read_bandwidth(options.read_mib)

    config = models["float32"].config
    base = medians["transformers float32"]
    rows = []
    for name, speed in medians.items():
        dtype = name.split()[1]
        same_type = medians.get(f"transformers {dtype}", base)
        limit = bandwidth / bytes_read(config, dtype, n_context + n_new / 2)
        rows.append(
            [
                name,
                f"{speed:.1f}",
                f"{speed / base:.2f}",
                f"{speed / same_type:.2f}",
                f"{speed / limit:.0%}",
            ]
        )
    record(
        "Decoding one text",
        [
            "one text",
            "tokens/s",
            "x transformers float32",
            "x transformers same type",
            "of the memory limit",
        ],
        rows,
        f"GPT-2 {options.size_name}, {n_new} new tokens after {n_context}; memory read at "
        f"{bandwidth / 1e9:.1f} GB/s, {torch.get_num_threads()} threads.",
        options.save,
    )


def transformers_model(shape: Shape, dtype: str) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**shape.sizes)).eval().to(getattr(torch, dtype))


@torch.inference_mode()
def decode_by_transformers(model: torch.nn.Module, n_context: int, n_new: int) -> float:
    """Seconds."""
    ids = torch.arange(1, n_context + 1).unsqueeze(0)
    began = time.perf_counter()
    model.generate(
        ids,
        do_sample=True,
        min_new_tokens=n_new,
        max_new_tokens=n_new,
        pad_token_id=0,
        **SAMPLING,
    )
    return time.perf_counter() - began


# -----------------------------------------------------------------------------
# context, ten


@torch.no_grad()
def decode_by_nanogpt(model: torch.nn.Module, n_context: int, n_new: int) -> float:
    """Seconds."""
    ids = torch.arange(1, n_context + 1).unsqueeze(0)
    began = time.perf_counter()
    model.generate(ids, n_new, **SAMPLING)
    return time.perf_counter() - began


def nanogpt_model(options: Options) -> torch.nn.Module:
    return nanogpt.load_model(options.peer, vocab_size=VOCAB_SIZE, **options.sizes)


def measure_context(options: Options):
    model = prepare_weights(random_gpt2(options), "float32")
    peer = nanogpt_model(options) if options.peer else None
    rows = []
    for n_context, n_by_peer in ((64, 16), (500, 8)):
        contestants = {
            "lathe": lambda n_context=n_context: 40 / decode(model, n_context, 41).after_first
        }
        if peer is not None:
            contestants["nanoGPT"] = lambda n_context=n_context, n_by_peer=n_by_peer: (
                n_by_peer / decode_by_nanogpt(peer, n_context, n_by_peer)
            )
        speeds = in_turn(options.repeats, contestants, warm_up=True)
        medians = {name: statistics.median(of_one) for name, of_one in speeds.items()}
        row = [n_context, f"{medians['lathe']:.1f}", "-", "-"]
        if peer is not None:
            row[2] = f"{medians['nanoGPT']:.2f}"
            row[3] = f"{medians['lathe'] / medians['nanoGPT']:.1f}"
        rows.append(row)
    record(
        "Decoding at a context, float32",
        ["tokens of context", "lathe tokens/s", "nanoGPT tokens/s", "ratio"],
        rows,
        f"GPT-2 {options.size_name}; tokens after the first.",
        options.save,
    )


def measure_ten(options: Options):
    model = prepare_weights(random_gpt2(options), "float32")
    seconds = min(decode(model, 1, 500, n_samples=10).whole for _ in range(2))
    rows = [["lathe", f"{seconds:.1f}", "-"]]
    if options.peer:
        by_peer = 10 * decode_by_nanogpt(nanogpt_model(options), 1, 500)
        rows[0][2] = f"{by_peer / seconds:.1f}"
        rows.append(["nanoGPT (one sample, times ten)", f"{by_peer:.0f}", 1])
    record(
        "10 samples of 500 tokens, float32",
        ["", "seconds", "speed"],
        rows,
        f"GPT-2 {options.size_name}.",
        options.save,
    )


# -----------------------------------------------------------------------------
# quality


def measure_quality(options: Options):
    source = find_model(options.run)
    dataset = open_dataset(options.dataset or source.state["settings"]["dataset"])
    run = devices.Runtime(torch.device("cpu"), torch.float32)
    losses = {}
    for dtype in possible_types():
        model = prepare_weights(source.load(), dtype)
        losses[dtype] = validation(model, dataset, run, micro_batch_size=8)["loss"]
    rows = []
    for dtype, loss in losses.items():
        rows.append([dtype, f"{loss:.5f}", f"{loss / losses['float32'] - 1:+.3%}"])
    record(
        "Validation loss by type of weights",
        ["weights", "loss", "against float32"],
        rows,
        f"{source.folder.name}.",
        options.save,
    )


# -----------------------------------------------------------------------------
# start


def measure_start(options: Options):
    model = random_gpt2(options)
    common = ["--num_samples=1", "--max_new_tokens=1", "--device=cpu", "--dtype=float32"]
    with tempfile.TemporaryDirectory() as work:
        save_checkpoint(model, work)
        sample = [sys.executable, "sample.py", f"--out_dir={work}", *common]
        contestants = {"lathe": lambda: run_child([*sample, "--prompt=Hello"], ROOT)}
        if options.peer:
            save_nanogpt_checkpoint(options, work)
            contestants["nanoGPT"] = lambda: run_child([*sample, "--start=Hello"], options.peer)
        children = in_turn(options.repeats, contestants, warm_up=True)
    allowed = 1.3 * 4 * model.n_params() + 400e6
    record(
        "From the command to its first token",
        ["", "seconds", "peak MB"],
        [start_row(name, of_one) for name, of_one in children.items()],
        f"GPT-2 {options.size_name}, float32, files in memory; 1.3 x weights + 400 MB is "
        f"{allowed / 1e6:,.0f} MB.",
        options.save,
    )


def save_checkpoint(model: GPT, out_dir: str):
    tokenizer = load_tokenizer("gpt2")
    state = {
        "step": 1,
        "samples": 1,
        "model": asdict(model.config),
        "settings": {},
        "val_loss": None,
        "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
    }
    checkpoint.save(out_dir, model.state_dict(), {}, state, tokenizer)


def save_nanogpt_checkpoint(options: Options, out_dir: str):
    arguments = {
        **options.sizes,
        "block_size": 1024,
        "bias": True,
        "vocab_size": VOCAB_SIZE,
        "dropout": 0.0,
    }
    weights = nanogpt_model(options).state_dict()
    torch.save({"model": weights, "model_args": arguments}, Path(out_dir, "ckpt.pt"))


def start_row(name: str, children: list[Child]) -> list[str]:
    seconds = statistics.median(child.seconds for child in children)
    peak_bytes = max(child.peak_bytes for child in children)
    return [name, f"{seconds:.2f}", f"{peak_bytes / 1e6:,.0f}"]


# -----------------------------------------------------------------------------
# gpu


@dataclass
class OnGPU:
    """A network that decodes on CUDA."""

    name: str
    shape: Shape
    n_samples: int
    compiled: bool


def measure_gpu(options: Options):
    small = Shape()
    large = Shape(n_layer=48, n_head=25, n_embd=1600)
    cases = [
        OnGPU("124M", small, n_samples=1, compiled=False),
        OnGPU("124M", small, n_samples=1, compiled=True),
        OnGPU("124M", small, n_samples=64, compiled=True),
        OnGPU("1.5B", large, n_samples=1, compiled=True),
    ]
    bandwidth = read_bandwidth(options.read_mib, "cuda")
    rows = []
    for case in cases:
        rows.append(gpu_row(case, options.repeats, bandwidth))
        print(" | ".join(map(str, rows[-1])), flush=True)  # the next may take minutes to compile
    record(
        "Decoding on CUDA, bfloat16",
        ["network", "texts", "", "tokens/s", "of bandwidth", "s before the first"],
        rows,
        f"memory read at {bandwidth / 1e12:.2f} TB/s",
        options.save,
    )


def gpu_row(case: OnGPU, repeats: int, bandwidth: float) -> list:
    model = prepare_weights(random_gpt2(case.shape).to("cuda"), "bfloat16")

    def seconds(n_new: int) -> float:
        return decode(model, 16, n_new, case.n_samples, case.compiled).whole

    before_first = seconds(8)
    # Every call captures its graphs anew: a long text minus a short one leaves decoding.
    short = 64
    long = 256
    speeds = []
    for _ in range(repeats):
        of_short = seconds(short)
        of_long = seconds(long)
        speeds.append(case.n_samples * (long - short) / (of_long - of_short))
    speed = statistics.median(speeds)
    positions = 16 + (short + long) / 2 * case.n_samples
    n_bytes = bytes_read(model.config, "bfloat16", positions, on_cpu=False)
    return [
        case.name,
        case.n_samples,
        "compiled" if case.compiled else "captured",
        f"{speed:,.0f}",
        f"{speed / case.n_samples * n_bytes / bandwidth:.0%}",
        f"{before_first:.1f}",
    ]


if __name__ == "__main__":
    cli.run(measure, options)
