"""Sampling speed of a network of GPT-2's shape (124M, random weights), against transformers and nanoGPT.

    python bench/decode_speed.py --peer=PATH_TO_NANOGPT                    everything that this machine can show
    python bench/decode_speed.py --only batch1 --repeats=3
    python bench/decode_speed.py --only quality --run=out/modern --dataset=data/python_stdlib

batch1: one text, against transformers' generate, and the share of the limit that memory sets: each token reads every
weight once. context: one text at 64 and at 500 tokens, against nanoGPT. ten: nanoGPT's default command, 10 samples of
500 tokens; of nanoGPT's, which come one by one, a single one is timed and counted ten times. quality: validation loss
of a trained run with each type of weights. start: from the command to the first token, and peak memory. gpu: tokens
per second and share of the bandwidth on CUDA. Contestants run in turn, `repeats` times; the medians are shown.
"""

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.results import ROOT, record
from lathe import cli


@dataclass
class Options:
    """What to time."""

    only: list[str] = field(default_factory=list)  # batch1, context, ten, quality, start, gpu; empty = all possible
    peer: str = ""  # folder of nanoGPT
    run: str = ""  # trained run, for quality
    dataset: str = ""  # its prepared dataset; empty = the run's own
    tokens: int = 200  # new tokens of a text
    repeats: int = 5
    save: bool = True  # append the tables to bench/RESULTS.md


PARSER = dict(prog="bench/decode_speed.py", description=__doc__)
if __name__ == "__main__":
    options = cli.parse_before_imports(Options, **PARSER)

import torch

from lathe import cli
from lathe.data.dataset import open_dataset
from lathe.run import checkpoint, devices
from lathe.text.tokenizer import load_tokenizer
from lathe.use.find_model import find_model
from lathe.use.generation import generate
from lathe.use.quantize import choose_weights, prepare_weights
from lathe.use.sampling import Sampling
from lathe.use.validation import validation
from model import GPT, GPT2, GPTConfig

SAMPLING = dict(temperature=0.8, top_k=200)
DTYPES = ("float32", "bfloat16", "float16", "int8")
TIMED = """
import os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - began, usage.ru_maxrss)
sys.exit(status != 0)
"""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def lathe(dtype: str, shape: dict | None = None, device: str = "cpu") -> GPT:
    torch.manual_seed(0)
    return prepare_weights(GPT(GPTConfig(**GPT2, **(shape or {}))).eval().to(device), dtype)


def ours(model: GPT, context: int, tokens: int, samples: int = 1, compiled: bool = False) -> tuple[float, float]:
    """(seconds of all, seconds behind the first token) for `tokens` more behind `context` tokens, `samples` at once."""
    began = time.perf_counter()
    steps = generate(
        model, [list(range(1, context + 1))], samples, tokens, Sampling(**SAMPLING), batch_size=samples,
        compiled=compiled,
    )  # fmt: skip
    next(steps)
    first = time.perf_counter()
    made = samples + sum(map(len, steps))
    assert made == tokens * samples
    return time.perf_counter() - began, time.perf_counter() - first


def transformers_model(dtype: torch.dtype, device: str = "cpu"):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config()).eval().to(device, dtype)


@torch.inference_mode()
def theirs(model, context: int, tokens: int) -> float:
    ids = torch.arange(1, context + 1, device=model.device).unsqueeze(0)
    began = time.perf_counter()
    model.generate(ids, do_sample=True, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0, **SAMPLING)
    return time.perf_counter() - began


def nanogpt(peer: str):
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(peer) / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.GPT(module.GPTConfig(vocab_size=50257, dropout=0.0, bias=True)).eval()


def read_bandwidth(device: str = "cpu") -> float:
    """Bytes per second of summing 1 GiB: the best of several."""
    data = torch.ones(1 << 28, device=device)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        data.sum().item()
        best = max(best, data.nbytes / (time.perf_counter() - began))
    return best


def weight_bytes(model: GPT, dtype: str, positions: float) -> float:
    """Bytes that one token reads: the matrices, and keys and values of the positions before it."""
    c = model.config
    on_cpu = model.transformer.wte.weight.is_cpu
    element, head = 4 if on_cpu else 2, 2 if on_cpu and dtype == "int8" else BYTES[dtype]  # bytes of a cached number
    matrices = c.n_layer * (4 * c.n_embd**2 + 2 * c.n_embd * c.n_hidden)
    return (
        matrices * BYTES[dtype]
        + c.n_embd * c.padded_vocab_size * head
        + 2 * c.n_layer * c.n_kv_head * c.head_dim * element * positions
    )


def in_turn(repeats: int, contestants: dict) -> dict[str, list[float]]:
    """{name: what its function returned, each repeat}, all once before the clock counts."""
    for run in contestants.values():
        run()
    out = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            out[name].append(run())
    return out


def possible() -> list[str]:
    names = []
    for dtype in DTYPES:
        try:
            names.append(choose_weights(dtype, torch.device("cpu"))[0])
        except ValueError as error:
            print(error, file=sys.stderr)
    return names


def batch1(o: Options):
    n, context = o.tokens, 16
    models = {dtype: lathe(dtype) for dtype in possible()}
    contestants = {f"lathe {d}": lambda m=m: n / ours(m, context, n)[0] for d, m in models.items()}
    for dtype in ("float32", "bfloat16"):
        peer = transformers_model(getattr(torch, dtype))
        contestants[f"transformers {dtype}"] = lambda m=peer: n / theirs(m, context, n)
    speeds, bandwidth = in_turn(o.repeats, contestants), read_bandwidth()
    rows = []
    for name, found in speeds.items():
        dtype, speed = name.split()[1], statistics.median(found)
        base = statistics.median(speeds["transformers float32"])
        same = statistics.median(speeds.get(f"transformers {dtype}", [base]))
        limit = bandwidth / weight_bytes(next(iter(models.values())), dtype, context + n / 2)
        rows.append([name, f"{speed:.1f}", f"{speed / base:.2f}", f"{speed / same:.2f}", f"{speed / limit:.0%}"])
    header = ["one text", "tokens/s", "x transformers float32", "x transformers same type", "of the memory limit"]
    notes = f"GPT-2 124M, {n} new tokens behind {context}; memory read at {bandwidth / 1e9:.1f} GB/s"
    record("Decoding one text", header, rows, f"{notes}, {torch.get_num_threads()} threads.", o.save)


def context(o: Options):
    model, (_, peer) = lathe("float32"), nanogpt(o.peer)
    rows = []
    for length, n in ((64, 16), (500, 8)):

        @torch.no_grad()
        def nano(length=length, n=n):
            ids = torch.arange(1, length + 1).unsqueeze(0)
            began = time.perf_counter()
            peer.generate(ids, n, temperature=0.8, top_k=200)
            return n / (time.perf_counter() - began)

        contestants = {"lathe": lambda length=length: 40 / ours(model, length, 41)[1], "nanoGPT": nano}
        found = {name: statistics.median(v) for name, v in in_turn(o.repeats, contestants).items()}
        a, b = found["lathe"], found["nanoGPT"]
        rows.append([length, f"{a:.1f}", f"{b:.2f}", f"{a / b:.1f}"])
    header = ["tokens of context", "lathe tokens/s", "nanoGPT tokens/s", "ratio"]
    record("Decoding at a context, float32", header, rows, "GPT-2 124M; tokens behind the first.", o.save)


def ten(o: Options):
    model, (_, peer) = lathe("float32"), nanogpt(o.peer)
    seconds = min(ours(model, 1, 500, samples=10)[0] for _ in range(2))
    with torch.no_grad():
        began = time.perf_counter()
        peer.generate(torch.ones(1, 1, dtype=torch.long), 500, temperature=0.8, top_k=200)
        theirs = 10 * (time.perf_counter() - began)
    rows = [
        ["lathe", f"{seconds:.1f}", f"{theirs / seconds:.1f}"],
        ["nanoGPT (one sample, times ten)", f"{theirs:.0f}", 1],
    ]
    record("10 samples of 500 tokens, float32", ["", "seconds", "speed"], rows, "GPT-2 124M.", o.save)


def quality(o: Options):
    source = find_model(o.run)
    dataset = open_dataset(o.dataset or source.state["settings"]["dataset"])
    run, rows, base = devices.Runtime(torch.device("cpu"), torch.float32), [], None
    for dtype in possible():
        model = prepare_weights(source.load(), dtype)
        loss = validation(model, dataset, run, 8)["loss"]
        base = base or loss
        rows.append([dtype, f"{loss:.5f}", f"{loss / base - 1:+.3%}"])
    record("Validation loss by type of weights", ["weights", "loss", "against float32"], rows, f"{source.folder.name}.", o.save)


def start(o: Options):
    module, peer = nanogpt(o.peer)
    with tempfile.TemporaryDirectory() as work:
        tokenizer, model = load_tokenizer("gpt2"), GPT(GPTConfig(**GPT2))
        state = {"step": 1, "samples": 1, "model": asdict(model.config), "settings": {}, "val_loss": None}
        state["tokenizer"] = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
        checkpoint.save(work, model.state_dict(), {}, state, tokenizer)
        arguments = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, bias=True, vocab_size=50257, dropout=0.0)
        torch.save({"model": peer.state_dict(), "model_args": arguments}, Path(work) / "ckpt.pt")
        common = ["--num_samples=1", "--max_new_tokens=1", "--device=cpu", "--dtype=float32"]
        commands = {
            "lathe": ([sys.executable, "sample.py", f"--out_dir={work}", "--prompt=Hello", *common], ROOT),
            "nanoGPT": ([sys.executable, "sample.py", f"--out_dir={work}", "--start=Hello", *common], Path(o.peer)),
        }

        def child(name):
            words, folder = commands[name]
            # A small process in between: a child's peak memory counts from that of its parent.
            done = subprocess.run([sys.executable, "-c", TIMED, *words], cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
            seconds, peak = done.stdout.split()[-2:]
            return float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024)

        found = in_turn(o.repeats, {name: lambda name=name: child(name) for name in commands})
    allowed = 1.3 * 4 * model.n_params() + 400e6
    rows = [
        [name, f"{statistics.median(s for s, _ in runs):.2f}", f"{max(m for _, m in runs) / 1e6:,.0f}"]
        for name, runs in found.items()
    ]
    notes = f"GPT-2 124M, float32, files in memory; 1.3 x weights + 400 MB is {allowed / 1e6:,.0f} MB."
    record("From the command to its first token", ["", "seconds", "peak MB"], rows, notes, o.save)


def gpu(o: Options):
    bandwidth, rows = read_bandwidth("cuda"), []
    shapes = {"124M": {}, "1.5B": dict(n_layer=48, n_head=25, n_embd=1600)}
    for name, samples, compiled in (("124M", 1, False), ("124M", 1, True), ("124M", 64, True), ("1.5B", 1, True)):
        model, n = lathe("bfloat16", shapes[name], "cuda"), 256
        began = time.perf_counter()
        ours(model, 16, 8, samples, compiled)
        ready = time.perf_counter() - began
        speeds = []
        for _ in range(o.repeats):  # every call captures its graphs anew: a long text minus a short one leaves decoding
            short, long = (ours(model, 16, tokens, samples, compiled)[0] for tokens in (64, n))
            speeds.append(samples * (n - 64) / (long - short))
        speed = statistics.median(speeds)
        share = speed / samples * weight_bytes(model, "bfloat16", 16 + 160 * samples) / bandwidth
        words = [name, samples, "compiled" if compiled else "captured", f"{speed:,.0f}", f"{share:.0%}", f"{ready:.1f}"]
        rows.append(words)
        del model
    header = ["network", "texts", "", "tokens/s", "of bandwidth", "s before the first"]
    record("Decoding on CUDA, bfloat16", header, rows, f"memory read at {bandwidth / 1e12:.2f} TB/s", o.save)


def main(argv: list[str] | None = None) -> int:
    return measure(cli.parse(Options, argv, **PARSER))


def measure(o: Options) -> int:
    needs = {"batch1": "", "context": "peer", "ten": "peer", "quality": "run", "start": "peer", "gpu": ""}
    if unknown := set(o.only) - set(needs):
        raise ValueError(f"only is {', '.join(unknown)}: choose among {', '.join(needs)}")
    for name, needed in needs.items():
        if o.only and name not in o.only or not o.only and name == "gpu" and not torch.cuda.is_available():
            continue
        if needed and not getattr(o, needed):
            print(f"{name}: left out, it needs --{needed}", file=sys.stderr)
            continue
        globals()[name](o)
    return 0


if __name__ == "__main__":
    cli.run(measure, options)
