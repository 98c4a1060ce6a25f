"""Measure the memory of saving and reading a sharded checkpoint: most of any rank, and the time.

    python bench/sharded_checkpoint.py                  GPT-2 XL in bfloat16: 9.4 GB of memory and
                                                        of disk, twice the memory with --copy=true
    python bench/sharded_checkpoint.py --n_layer=12 --n_head=12 --n_embd=768

As many processes as --writers hold a network and AdamW's two moments, cut up over them (FSDP2 over
gloo), and save that; then as many as each of --readers read it back and compare every number, a
single one as commands and a run without FSDP do. A rank's memory is counted from just before: what
it takes for the save, with --copy as in the middle of a run, without as at its end; and for the
state that it reads.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.fields import PathName


@dataclass
class Options:
    """What to measure."""

    n_layer: int = 48  # of the network that is saved
    n_head: int = 25
    n_embd: int = 1600
    vocab_size: int = 50257
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of weights and moments
    writers: int = 4
    readers: list[int] = field(default_factory=lambda: [4, 3, 2, 1])
    copy: bool = False  # whether training goes on and the save needs a copy
    work: PathName = ""  # folder on the disk to measure; a temporary one by default
    save: bool = True  # append the table to bench/RESULTS.md
    part: Literal["", "write", "read"] = ""  # of a process that this command starts itself


PARSER = dict(prog="bench/sharded_checkpoint.py", description=__doc__)
if __name__ == "__main__":  # torch takes seconds; --help and mistakes need not wait
    options = cli.parse_before_imports(Options, **PARSER)

import json
import tempfile
import time

import torch
from torch import Tensor

from bench.processes import run_child
from bench.results import Figures
from lathe.optim.build import build_optimizers, load_optimizer_state, optimizer_state
from lathe.optim.optimizer import Optimizer, from_own_rows, is_sharded, own_rows
from lathe.run import checkpoint, devices, ranks, sharded_save
from lathe.run.background import BackgroundWriter
from lathe.run.parallel import shard
from lathe.text.tokenizer import load_tokenizer
from lathe.use.find_model import find_model
from lathe.use.network import without_weights
from lathe.use.start import saved_rows
from model import GPT, GPTConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(argv: list[str] | None = None) -> int:
    return measure(cli.parse(Options, argv, **PARSER))


def measure(options: Options) -> int:
    if options.part == "write":
        return write(options)
    if options.part == "read":
        return read(options)
    figures = Figures()
    n_params = network(options).n_params()
    n_bytes = 3 * DTYPES[options.dtype].itemsize * n_params
    notes = (
        f"{n_params:,} parameters with AdamW's two moments in {options.dtype}, "
        f"{n_bytes / 1e9:.2f} GB; 1/{options.writers} is {n_bytes / options.writers / 1e6:,.0f} MB."
    )
    with tempfile.TemporaryDirectory(dir=options.work or None) as folder:
        saved = start(options, "write", options.writers, folder)
        figures.tell(
            f"save on {options.writers} ranks: most that one takes for it",
            f"{saved['megabytes']:,.0f} MB, {saved['seconds']:.1f} s",
        )
        began = time.perf_counter()
        checkpoint.verify(checkpoint.step_path(folder, 1))
        figures.tell("every byte against its checksum", f"{time.perf_counter() - began:.1f} s")
        for n_ranks in options.readers:
            loaded = start(options, "read", n_ranks, folder)
            figures.tell(
                f"read on {n_ranks}: most that one takes, its state included",
                f"{loaded['megabytes']:,.0f} MB, 1/{n_ranks} of the state is "
                f"{n_bytes / n_ranks / 1e6:,.0f} MB; {loaded['seconds']:.1f} s",
            )
    figures.record("A sharded checkpoint's memory", notes, options.save)
    return 0


def start(options: Options, part: str, n_ranks: int, folder: str) -> dict[str, float]:
    """Run a part on n ranks; returns the most megabytes and seconds of any of them."""
    words = [f"--{name}={value}" for name, value in asdict(options).items() if name in SHAPE]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"]
    command = [sys.executable, *launcher, __file__, f"--part={part}", f"--work={folder}", *words]
    child = run_child(command, OMP_NUM_THREADS="1")
    rows = [json.loads(line) for line in child.output.splitlines() if line.startswith("{")]
    assert len(rows) == n_ranks, child.output
    return {key: max(row[key] for row in rows) for key in ("megabytes", "seconds")}


SHAPE = ("n_layer", "n_head", "n_embd", "vocab_size", "dtype", "copy")


# -----------------------------------------------------------------------------
# What is saved: numbers that tell where they belong


def network(options: Options) -> GPT:
    config = GPTConfig(
        vocab_size=options.vocab_size,
        block_size=64,
        n_layer=options.n_layer,
        n_head=options.n_head,
        n_embd=options.n_embd,
    )
    return without_weights(config).to(DTYPES[options.dtype])


def sharded(model: GPT, run: devices.Runtime) -> GPT:
    if run.world_size > 1:
        shard(model, model.transformer.h, compiled=False, run=run)
    return model


def adamw(model: GPT) -> list[Optimizer]:
    return build_optimizers(
        model.named_parameters(), "adamw", 1e-3, 0.02, 0.1, (0.9, 0.95), 0.95, model.fused_rows()
    )


def pattern(begin: int, end: int, like: Tensor, salt: int) -> Tensor:
    """Rows begin to end of a tensor: each row's number and the salt, exact in bfloat16."""
    rows = (torch.arange(begin, end) + salt) % 251
    rows = rows.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
    return rows.expand(-1, *like.shape[1:]).contiguous()


def own_pattern(p: Tensor, salt: int) -> Tensor:
    """The pattern of a parameter, of which this rank makes its rows only."""
    if not is_sharded(p):
        return pattern(0, p.shape[0], p, salt)
    return from_own_rows(pattern(*own_rows(p), p, salt), p)


def fill(model: GPT) -> list[Optimizer]:
    """Give the network its numbers, and optimizers with theirs."""
    weights = {name: own_pattern(p, i) for i, (name, p) in enumerate(model.state_dict().items())}
    model.load_state_dict(weights, assign=True)
    optimizers = adamw(model)
    for optimizer in optimizers:
        for i, group in enumerate(optimizer.param_groups):
            for k, p in enumerate(group["params"]):
                tensors = {key: own_pattern(p.detach(), i + k + len(key)) for key in MOMENTS}
                optimizer.state[p] = {"step": torch.tensor(7.0), **tensors}
    return optimizers


def is_as_saved(model: GPT, optimizers: list[Optimizer]) -> bool:
    equal = True
    for i, p in enumerate(model.state_dict().values()):
        equal &= same(p, own_pattern(p, i))
    for optimizer in optimizers:
        for i, group in enumerate(optimizer.param_groups):
            for k, p in enumerate(group["params"]):
                state = optimizer.state[p]
                equal &= state["step"].item() == 7.0
                for key in MOMENTS:
                    equal &= same(state[key], own_pattern(p.detach(), i + k + len(key)))
    return equal


def same(a: Tensor, b: Tensor) -> bool:
    if is_sharded(a):
        a, b = a.to_local(), b.to_local()
    return torch.equal(a, b)


# -----------------------------------------------------------------------------
# What a rank does


def memory(what: str) -> float:
    """VmRSS, what is held now, or VmHWM, the most since the count began, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"no {what} in /proc/self/status")


class Count:
    """Megabytes that this process takes at the most from here on, and seconds."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        self.before = memory("VmRSS")
        self.began = time.perf_counter()

    def tell(self):
        seconds = time.perf_counter() - self.began
        row = {"megabytes": memory("VmHWM") - self.before, "seconds": seconds}
        sys.stdout.write(json.dumps(row) + "\n")  # one call, so that ranks' lines do not mix


def write(options: Options) -> int:
    run = devices.start("cpu", "float32", training=True)
    model = sharded(network(options), run)
    optimizers = fill(model)
    out = Path(options.work)
    about = {"step": 1, "model": asdict(model.config), "settings": {"optimizer": "adamw"}}
    tokenizer = load_tokenizer("byte")
    ranks.gather(None)  # the first exchange takes memory of its own
    count = Count()
    with BackgroundWriter() as writer:
        weights = model.state_dict()
        moments = optimizer_state(optimizers)
        share = sharded_save.take_share(out, 1, weights, moments, options.copy)
        if run.is_main:
            writer.start(lambda: sharded_save.save(share, {}, about, tokenizer, writer.leaving))
        else:
            writer.start(lambda: sharded_save.write_share(share))
        writer.wait_on_all()
    count.tell()
    ranks.stop()
    return 0


def read(options: Options) -> int:
    run = devices.start("cpu", "float32", training=True)
    folder = checkpoint.step_path(options.work, 1)
    source = find_model(folder, verified=True)
    model = sharded(network(options), run)
    ranks.gather(None)
    count = Count()
    if run.world_size > 1:
        model.load_state_dict(saved_rows(model, source, run.device), assign=True)
    else:
        model = source.load()
    optimizers = adamw(model)
    load_optimizer_state(optimizers, checkpoint.load_optimizer(folder)["optimizer"])
    count.tell()
    if not is_as_saved(model, optimizers):
        raise ValueError(f"rank {run.rank} has read other numbers than were saved")
    ranks.stop()
    return 0


if __name__ == "__main__":
    cli.run(measure, options)
