"""What is compiled: how many graphs, that none breaks, and that it computes what is not compiled."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from graphs import masked_in_blocks
from tiny_run import ONE_THREAD, command, finished, free_ports, losses, make_dataset, rows, settings

import model
import train
from model import GPT, GPTConfig

HERE = Path(__file__).resolve().parent
OFTEN = dict(max_steps=6, eval_interval=3, dtype="bfloat16", eval_tokens=128)

RUNS = {
    "plain": dict(sample_tokens=8),
    "full": dict(activation_checkpointing="full", document_mask=True),
    "blocks": dict(document_mask=True, n_head=4, n_kv_head=2, blocks=True),
    "blocks, full": dict(activation_checkpointing="full", document_mask=True, blocks=True),
    "blocks, selective": dict(activation_checkpointing="selective", document_mask=True, blocks=True),
    "selective": dict(activation_checkpointing="selective", dropout=0.1),
    "gpt2": dict(
        position="learned", norm="layernorm", activation="gelu_tanh", bias=True, tie_weights=True,
        logit_softcap=15.0, ngram_rows=100,
    ),
}  # fmt: skip
RANKS = {
    "ddp": dict(parallel="ddp", sample_tokens=8),
    "fsdp": dict(parallel="fsdp", sample_tokens=8),
    "ddp, blocks": dict(parallel="ddp", document_mask=True, blocks=True, n_embd=256),
    "fsdp, blocks": dict(parallel="fsdp", document_mask=True, blocks=True, sample_tokens=8),
}
if os.environ.get("LATHE_EXHAUSTIVE") != "1":
    for each in ("blocks, full", "blocks, selective"):
        del RUNS[each]
    for each in ("ddp, blocks", "fsdp, blocks"):
        del RANKS[each]
ONE_MORE = {"one more": dict(fault="a number")}
SAMPLES = {"samples": dict(parallel="fsdp", sample_tokens=8, fault="samples")}


def start_ranks(n: int, folder: Path, runs: dict[str, dict]) -> list[dict]:
    """What each of n processes of graphs.py reports."""
    ports = free_ports(len(runs))
    jobs = {}
    for (name, changed), port in zip(runs.items(), ports, strict=True):
        jobs[name] = {**OFTEN, **changed, "port": port}
    path = folder / f"jobs-{n}.json"
    path.write_text(json.dumps(jobs))
    processes = []
    for rank in range(n):
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n)}
        env["MASTER_ADDR"] = "127.0.0.1"
        processes.append(command(HERE / "graphs.py", folder, path, env=env if n > 1 else {}))
    reports = []
    for process in processes:
        code, out, err = finished(process, 500)
        assert code == 0, err[-3000:]
        reports.append(json.loads(out))
    return reports


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    make_dataset(folder / "data")
    return folder


@pytest.fixture(scope="module")
def compiled(folder) -> dict:
    (report,) = start_ranks(1, folder, RUNS | ONE_MORE)
    return report


@pytest.fixture(scope="module")
def on_two_ranks(folder) -> dict:
    reports = start_ranks(2, folder, RANKS | SAMPLES)
    assert reports[0] == reports[1]
    return reports[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_training_and_evaluation_are_a_graph_each(compiled, name):
    """Over accumulated micro-batches, evaluations, samples and saves."""
    assert compiled[name] == {"graphs": 2, "breaks": {}}


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_two_ranks_compile_no_more(on_two_ranks, name):
    """fsdp compiles each block alone, and blocks are alike; samples are drawn uncompiled."""
    assert on_two_ranks[name]["graphs"] <= 2 and not on_two_ranks[name]["breaks"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name in RUNS if name != "selective"), *RANKS])
def test_what_is_compiled_learns_the_same(folder, compiled, on_two_ranks, name):
    changed = (RUNS | RANKS)[name]
    one_process = {k: v for k, v in changed.items() if k not in ("parallel", "blocks")}
    out = folder / f"{name}-eager"
    s = settings(str(folder / "data"), out, **{**OFTEN, **one_process, "compile": "false"})
    assert train.train(s) == 0
    assert losses(folder / name) == pytest.approx(losses(out), abs=0.02)
    ours = [row["val_loss"] for row in rows(folder / name, "val_loss")]
    assert ours == pytest.approx([row["val_loss"] for row in rows(out, "val_loss")], abs=0.02)
    norms = [[row["grad_norm"] for row in rows(f)] for f in (folder / name, out)]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


@pytest.mark.slow
def test_one_graph_more_is_seen(compiled, on_two_ranks):
    assert compiled["one more"]["graphs"] > 2 and on_two_ranks["samples"]["graphs"] > 2


# -----------------------------------------------------------------------------
# Gradients

LARGE = dict(vocab_size=300, block_size=16, n_layer=2, n_head=2, n_embd=32)
KINDS = {
    "modern": {},
    "gpt2": {**model.GPT2, "logit_softcap": 15.0},
    "documents": {"document_token": 7},
    "blocks": {"document_token": 7, "n_head": 4, "n_kv_head": 2},
}


def gradients(kind: str, compiled: bool) -> dict[str, torch.Tensor]:
    """Of two accumulated micro-batches; the loss in pieces. Inductor's own: tests/test_model.py."""
    torch.manual_seed(0)
    network = GPT(GPTConfig(**{**LARGE, **KINDS[kind], "zero_init": False}))
    if compiled:
        network.compile(backend="aot_eager")
    for _ in range(2):
        x = torch.randint(300, (4, 16))
        y = torch.randint(300, (4, 16)).masked_fill(x % 5 == 0, model.IGNORE)
        network(x, y, reduction="sum").backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_uncompiled_step(kind, monkeypatch, one_thread):
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", 320 * 8)
    plain = gradients(kind, compiled=False)
    with masked_in_blocks() if kind == "blocks" else nullcontext():
        compiled = gradients(kind, compiled=True)
    for name, grad in plain.items():
        assert torch.allclose(compiled[name], grad, rtol=1e-4, atol=1e-5), name
        assert grad.abs().sum() > 0, name


# -----------------------------------------------------------------------------
# In-place work on what a Function returns: torch 2.11 to 2.13 lose gradients by it (issue 180642)


def functions() -> list[type]:
    """Every autograd.Function of the network."""
    found = [value for value in vars(model).values() if isinstance(value, type)]
    return [value for value in found if issubclass(value, torch.autograd.Function)]


def returned_versions(monkeypatch, run) -> dict[str, set[int]]:
    """{Function: how often tensors that it returned had been worked on in place}."""
    versions: dict[str, set[int]] = {}
    for function in functions():

        def watched(ctx, *args, name=function.__name__, forward=function.forward):
            out = forward(ctx, *args)
            tensors = out if isinstance(out, tuple) else (out,)
            versions.setdefault(name, set()).update(t._version for t in tensors)
            return out

        monkeypatch.setattr(function, "forward", staticmethod(watched))
    run()
    return versions


def a_step():
    gradients("modern", compiled=False)


def test_no_function_returns_what_it_has_worked_on_in_place(monkeypatch):
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", 320 * 8)
    versions = returned_versions(monkeypatch, a_step)
    assert set(versions) == {function.__name__ for function in functions()}
    assert all(counts == {0} for counts in versions.values()), versions


def test_in_place_work_on_what_is_returned_is_seen(monkeypatch):
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", 320 * 8)
    forward = model.ChunkedCrossEntropy.forward

    def in_place(ctx, *args):
        total = forward(ctx, *args)
        total -= 0.0
        return total

    monkeypatch.setattr(model.ChunkedCrossEntropy, "forward", staticmethod(in_place))
    versions = returned_versions(monkeypatch, a_step)
    assert versions["ChunkedCrossEntropy"] == {1}


# -----------------------------------------------------------------------------
# Decoding

DECODE = """
import json, sys
import torch
torch.set_num_threads(1)
from functools import partial
torch.compile = partial(torch.compile, backend="eager")
from tiny_run import loud_model
from torch._dynamo.utils import counters
from lathe.use.generation import generate
from lathe.use.sampling import Sampling
model = loud_model(64, block_size=1024)
graphs = []
for prompt, n in json.loads(sys.argv[1]):
    list(generate(model, [[1] * prompt], 1, n, Sampling(seed=1), compiled=True))
    graphs.append(counters["stats"]["unique_graphs"])
print(json.dumps([graphs, dict(counters["graph_break"])]))
"""


@pytest.mark.slow
def test_decoding_compiles_a_graph_a_view_and_none_for_another_prompt():
    prompts = [(5 + i, 20) for i in range(12)] + [(5, 1000)]
    env = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]), **ONE_THREAD}
    code, out, err = finished(command("-c", DECODE, json.dumps(prompts), env=env), 300)
    assert code == 0 and "recompile_limit" not in err, err[-2000:]
    graphs, breaks = json.loads(out)
    assert graphs == [1] * 12 + [1 + 8] and not breaks
