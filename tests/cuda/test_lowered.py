"""What a GPU would do beside its products: kernels and bytes of the code that is made for an H100."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pinned import TORCH
from tiny_run import ROOT, command, finished

from lathe import cli
from lathe.run.memory import step_memory
from lathe.run.plan import NETWORK
from lathe.settings import Settings
from model import GPT, GPTConfig

HERE = Path(__file__).resolve().parent

# Micro-batches of 60 sequences of 1,024 tokens. What another torch makes is not counted here.
COUNTED_WITH = "2.13.0"
VOCABULARY = 50257


@dataclass
class Ceiling:
    kernels: int  # different ones, over all graphs
    gigabytes: float  # moved by them
    logits: int = 2  # pieces of them, or of their gradients, that exist at a time
    masks: int = 0  # tensors with a number for each query and key


CEILINGS = {
    "gpt2": Ceiling(kernels=36, gigabytes=69.5),
    "gpt2 evaluates": Ceiling(kernels=18, gigabytes=26.9),
    "modern": Ceiling(kernels=32, gigabytes=72.7),
    "modern evaluates": Ceiling(kernels=20, gigabytes=35.1),
    "two layers": Ceiling(kernels=36, gigabytes=24.2),
    "documents": Ceiling(kernels=36, gigabytes=24.8),
    "documents evaluates": Ceiling(kernels=18, gigabytes=11.4),
    "muon": Ceiling(kernels=4, gigabytes=2.9, logits=0),  # beside its products
}
SHORT = dict(preset="gpt2_124m", settings={"n_layer": 2})
DOCUMENTS = dict(preset="modern_124m", documents=True, settings={"n_layer": 2, "n_kv_head": 2})
JOBS = {
    "gpt2": dict(preset="gpt2_124m"),
    "gpt2 evaluates": dict(preset="gpt2_124m", evaluate=True),
    "modern": dict(preset="modern_124m"),
    "modern evaluates": dict(preset="modern_124m", evaluate=True),
    "two layers": SHORT,
    "documents": DOCUMENTS,
    "documents evaluates": {**DOCUMENTS, "evaluate": True},
    "muon": dict(preset="modern_124m", update=True),
}
FAULTS = [
    "a softmax in memory",
    "a float32 stream",
    "norms that return float32",
    "a bias in the product",
    "many pieces",
]
IN_DOCUMENTS = "a mask in memory"


@pytest.fixture(scope="module")
def reports(library) -> dict[str, dict]:
    if not (ROOT / ".triton" / "triton").is_dir():
        pytest.skip("triton is not in .triton: make lowering")
    if TORCH != COUNTED_WITH:
        pytest.skip(f"what is lowered was counted with torch {COUNTED_WITH}, this is {TORCH}")
    jobs = JOBS | {fault: {**SHORT, "fault": fault} for fault in FAULTS}
    jobs[IN_DOCUMENTS] = {**DOCUMENTS, "fault": IN_DOCUMENTS}
    jobs = {name: {**job, "rows": 60} for name, job in jobs.items()}
    code, out, err = finished(command(HERE / "lowered.py", library, json.dumps(jobs)), 1800)
    assert code == 0, err[-3000:]
    return json.loads(out)


def excess(graphs: dict[str, dict], ceiling: Ceiling) -> dict[str, float]:
    """What is above its ceiling."""
    totals = {
        "kernels": sum(graph["kernels"] for graph in graphs.values()),
        "gigabytes": round(sum(graph["gigabytes"] for graph in graphs.values()), 2),
        "logits": max(graph["logits"] for graph in graphs.values()),
        "masks": max(graph["masks"] for graph in graphs.values()),
    }
    return {name: total for name, total in totals.items() if total > getattr(ceiling, name)}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_pass_moves_no_more_than_it_must(reports, name):
    assert not excess(reports[name], CEILINGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_what_moves_more_is_seen(reports, fault):
    assert excess(reports[fault], CEILINGS["two layers"])


@pytest.mark.slow
def test_documents_have_an_attention_kernel_of_their_own(reports):
    """One in each direction for all layers, made of a template; no mask goes to memory."""
    for name in ("documents", "documents evaluates"):
        assert [graph["attention"] for graph in reports[name].values()] == [1] * len(reports[name])
    assert all(graph["attention"] == 0 for graph in reports["modern"].values())
    assert "masks" in excess(reports[IN_DOCUMENTS], CEILINGS["documents"])


def planned_for_backward(name: str) -> float:
    """Bytes that a plan counts on; with the gradients of the loss, which it counts elsewhere."""
    job = JOBS[name]
    words = [job["preset"], "--device=cuda", "--dtype=bfloat16", "--compile=true"]
    words += [f"--{key}={value}" for key, value in job.get("settings", {}).items()]
    words += ["--micro_batch_size=60", "--batch_size=60"]
    s = cli.parse(Settings, words, prog="train.py", presets=True)
    shape = {name: getattr(s, name) for name in NETWORK}
    document_token = VOCABULARY - 1 if job.get("documents") else -1
    with torch.device("meta"):
        network = GPT(GPTConfig(VOCABULARY, document_token, **shape))
    of_head = 4 * network.head_weight.numel()
    of_features = 2 * 60 * 1024 * s.n_embd
    return step_memory(s, network, 1).activations + of_head + of_features


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "modern", "two layers", "documents"])
def test_what_is_kept_for_the_backward_pass_is_planned(reports, name):
    kept = 1e9 * reports[name]["forward"]["kept"]
    assert 0.92 <= planned_for_backward(name) / kept <= 1.10
