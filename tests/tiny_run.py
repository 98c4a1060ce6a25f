"""A corpus and a network so small that a whole training run takes a second; shared by the tests of training."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch

from lathe.data.shards import write_dataset
from lathe.settings import Settings
from lathe.text.tokenizer import load_tokenizer
from model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(
    block_size=16, n_layer=2, n_head=2, n_embd=32, batch_size=8, micro_batch_size=2, max_steps=20, warmup_steps=2,
    eval_interval=10, log_interval=1, sample_tokens=0, device="cpu", dtype="float32", compile="false",
)  # fmt: skip
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def loud_model(vocab_size: int, seed: int = 0, **changes) -> GPT:
    """An untrained network with opinions: loud enough that every token matters."""
    torch.manual_seed(seed)
    shape = dict(
        vocab_size=vocab_size, block_size=48, n_layer=2, n_head=2, n_embd=32, zero_init=False
    )
    model = GPT(GPTConfig(**shape | changes)).eval()
    for name, p in model.named_parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=1.0 if "wte" in name else 0.3)
    return model


def make_dataset(folder: Path, tokenizer: str = "byte") -> str:
    words = "the cat sat on a mat and saw seven sunny seas while rain ran down every lane".split()
    text = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 40)) for i in range(1, 41)]
    write_dataset(folder, load_tokenizer(tokenizer), text[:36], text[36:])
    return str(folder)


def settings(dataset: str, out_dir, **changed) -> Settings:
    return Settings(**{**SMALL, "dataset": dataset, "out_dir": str(out_dir), **changed})


def arguments(dataset: str, out_dir, **changed) -> list[str]:
    """A command line that says the same; what it leaves out is the default preset's."""
    said = {**SMALL, "dataset": dataset, "out_dir": out_dir, **changed}
    return [f"--{name}={value}" for name, value in said.items()]


def command(*words, env=None, folder=ROOT, **options) -> subprocess.Popen:
    """A process of the project, started in a folder with one thread; stdout and stderr are pipes of text."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=folder, env={**os.environ, **ONE_THREAD, **(env or {})}, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def finished(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); the process and its children are killed at the timeout."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{err}") from None
    return process.returncode, out, err


def rows(out_dir, kind: str = "loss") -> list[dict]:
    """Rows of metrics.jsonl that have this key."""
    lines = Path(out_dir, "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if kind in row]


def losses(out_dir) -> list[float]:
    return [row["loss"] for row in rows(out_dir)]


def wait_for_step(process: subprocess.Popen, out_dir, step: int, timeout: float = 120):
    """Return as soon as metrics.jsonl has a row of this step or a later one."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        path = Path(out_dir, "metrics.jsonl")
        if path.exists() and any(
            f'"step": {n},' in path.read_text() for n in range(step, step + 50)
        ):
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"step {step} was not reached:\n{process.communicate()[1]}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def run_ranks(
    n: int, folder: Path, *jobs: dict, timeout: float = 300, starts_in: list[Path] | None = None
) -> list[tuple[int, str, str]]:
    """Start n processes of rank.py that go through the jobs, each in a folder of its own if told.

    Returns what became of each: exit code, stdout, stderr.
    """
    starts_in = starts_in or [ROOT] * n
    env = {"PYTHONPATH": str(ROOT)}
    if n > 1:
        env |= {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1"}
        ports = free_ports(len(jobs))
        jobs = [{**each, "port": port} for each, port in zip(jobs, ports, strict=True)]
    path = folder / f"jobs-{os.urandom(4).hex()}.json"
    path.write_text(json.dumps(jobs))
    processes = []
    for rank in range(n):
        if n > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        script = ROOT / "tests" / "rank.py"
        processes.append(command(script, path, env=env, folder=starts_in[rank]))
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(lambda process: finished(process, timeout), processes))


def job(
    dataset: str, out_dir, fault: tuple | None = None, go_on: tuple | None = None, **changed
) -> dict:
    """A run for run_ranks. fault: (kind, rank, number of the forward pass); go_on: (run, step)."""
    source = None
    if go_on:
        run, step = go_on
        source = (str(run), step)
        changed["init_from"] = "resume"
    asked = settings(dataset, out_dir, **{"rank_timeout": 60, **changed})
    return {"settings": vars(asked), "fault": fault, "from": source}
