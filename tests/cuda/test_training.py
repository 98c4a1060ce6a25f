"""What training promises on CUDA, held without a GPU: imaginary.py says how."""

import math
from pathlib import Path

import pytest
from rank import as_it_was
from tiny_run import ROOT, losses, rows, settings

import train
from lathe.run import checkpoint

ITEMS = ROOT / "tests" / "items"
TASKS = [f"{name}:{ITEMS}/{name}.jsonl" for name in ("hellaswag", "lambada", "exact_match")]
LIKE_THE_CPU = dict(dtype="float32", max_steps=8, eval_interval=4, sample_tokens=20)
BRIEF = dict(max_steps=4, eval_interval=2, dtype="bfloat16")

MASKED = dict(document_mask=True, n_head=4, n_kv_head=2, head_dim=32, dtype="float32")

# A case for each setting that changes what a device does. Micro-batches of 2 make 4 accumulated.
CASES = {
    "adamw": dict(optimizer="adamw", **LIKE_THE_CPU),
    "muon": dict(sample_tokens=8),
    "float16": dict(dtype="float16", skip_spikes=10.0),
    "one micro-batch": dict(micro_batch_size=8),
    "full": dict(activation_checkpointing="full"),
    "selective": dict(activation_checkpointing="selective"),
    "document_mask": dict(document_mask=True, sample_tokens=8),
    "masked": MASKED,
    "masked in blocks": dict(as_compiled=True, **MASKED),
    "grouped": dict(n_head=4, n_kv_head=2, sample_tokens=8),
    "dropout": dict(dropout=0.1),
    "gpt2": dict(
        position="learned", norm="layernorm", norm_weight=True, activation="gelu_tanh", bias=True,
        tie_weights=True, logit_softcap=15.0, ngram_rows=100, sample_tokens=8,
    ),
    "saves": dict(checkpoint_interval=1, sample_tokens=8),
    "tasks": dict(eval_tasks=TASKS, block_size=256, batch_size=2),
    "deterministic": dict(
        deterministic=True, ngram_rows=100, dropout=0.1, sample_tokens=8, eval_tasks=TASKS[:1],
        block_size=256, batch_size=2,
    ),
    "lora": dict(lora_rank=4, init_from="muon"),
    "captured": dict(optimizer="adamw", cuda_graphs=True, **LIKE_THE_CPU),
    "captured, float16": dict(
        dtype="float16", skip_spikes=10.0, dropout=0.1, document_mask=True, cuda_graphs=True
    ),
    "resumed": dict(optimizer="adamw", init_from="resume", **LIKE_THE_CPU),
}  # fmt: skip

# Faults that are put into the step, and the wait that each makes
WAITS = {
    "item": "a number read",
    "bool": "a number read",
    "tolist": "a copy to the host",
    "cpu": "a copy to the host",
    "a mask": "index by numbers of the device",
    "a copy": "a copy to the device",
}
FAULTS = {fault: dict(fault=fault, eval_interval=10) for fault in WAITS}
FAULTS["a CPU tensor"] = dict(fault="a CPU tensor")
for fault in ("a batch of the capture", "a wait in the capture"):
    FAULTS[fault] = dict(fault=fault, optimizer="adamw", cuda_graphs=True, **LIKE_THE_CPU)
FAULTS["nobody waits"] = dict(fault="nobody waits")
FAULTS["a sum in any order"] = dict(fault="a sum in any order", deterministic=True)
FAULTS["a float mask a layer"] = dict(fault="a float mask a layer", document_mask=True)

# Where the host may wait for the device: FILE:FUNCTION.
AT_THE_START = {
    ("a copy to the device", "lathe/run/parallel.py:parallelize"),
    ("a copy to the device", "lathe/optim/optimizer.py:like_parameter"),
    ("synchronize", "lathe/run/passes.py:__init__"),
    ("a number read", "lathe/run/passes.py:difference_of_gradients"),
}
IN_A_STEP = {  # for what was asked for a step earlier, or a copy before the last
    ("an event", "lathe/data/batches.py:fetch"),
    ("an event", "lathe/run/ranks.py:read"),
}
AT_A_PAUSE = {
    ("an event, with nothing queued after it", "lathe/run/ranks.py:read"),
    ("a copy to the device", "lathe/data/batches.py:val_windows"),
    ("a copy to the device", "lathe/use/validation.py:validation"),
    ("a copy to the host", "lathe/use/validation.py:add_batch"),
    ("a copy to the host", "lathe/run/tensor_file.py:host_copy"),
    ("a number read", "train.py:save"),  # the loss scale of float16
    ("a copy to the host", "lathe/run/soundness.py:batches_that_differ"),
    ("a copy to the host", "lathe/run/soundness.py:read_together"),
    ("a number read", "lathe/run/soundness.py:read_together"),
}
FOR_SAMPLES = {
    ("a copy to the device", "lathe/use/decoder.py:admit"),
    ("a copy to the device", "lathe/use/decoder.py:prefill"),
    ("a copy to the device", "lathe/use/decoder.py:_read"),
    ("a number read", "lathe/use/decoder.py:prefill"),
    ("synchronize", "lathe/use/decoder.py:_capture"),
}
FOR_TASKS = {
    ("a copy to the device", "lathe/use/caches.py:__init__"),
    ("a copy to the device", "lathe/use/scoring.py:pad_rows"),
    ("a copy to the device", "lathe/use/scoring.py:read_contexts"),
    ("index by numbers of the device", "lathe/use/scoring.py:score_rows"),
    ("a copy to the host", "lathe/use/scoring.py:score_rows"),
}
ALLOWED = AT_THE_START | IN_A_STEP | AT_A_PAUSE | FOR_SAMPLES | FOR_TASKS


def waits_of(result: dict) -> dict[tuple[str, str], int]:
    return {(what, line): n for what, line, n in result["waits"]}


@pytest.fixture(scope="module")
def runs(run_on_cuda):
    """Folder with all cases; `on-cpu` is the case adamw on the CPU, and `resumed` begins in the
    middle of that."""

    def before(folder: Path):
        s = settings(str(folder / "data"), folder / "on-cpu", optimizer="adamw", **LIKE_THE_CPU)
        assert train.train(s) == 0
        as_it_was(str(folder / "resumed"), s.out_dir, 4)

    cases = {name: {**BRIEF, **changed} for name, changed in (CASES | FAULTS).items()}
    return run_on_cuda(cases, before=before)


@pytest.mark.parametrize("name", CASES)
def test_a_run_trains_evaluates_and_saves(runs, name):
    folder, results = runs
    assert (results[name]["code"], results[name]["error"]) == (0, "")
    values = losses(folder / name)
    assert all(math.isfinite(loss) for loss in values) and values[-1] < values[0]
    path, faults = checkpoint.newest_checkpoint(folder / name)
    assert checkpoint.read_state(path)["step"] == len(values) and not faults


@pytest.mark.parametrize("name", CASES)
def test_the_host_waits_only_where_it_may(runs, name):
    _, results = runs
    others = set(waits_of(results[name])) - ALLOWED
    assert not others


def test_a_step_waits_for_nothing_but_what_the_one_before_it_measured(runs):
    _, results = runs
    waits = waits_of(results["one micro-batch"])
    for_numbers = waits[("an event", "lathe/run/ranks.py:read")]
    until_idle = waits[("an event, with nothing queued after it", "lathe/run/ranks.py:read")]
    assert for_numbers + until_idle == 4 and until_idle == 2  # which are the two evaluations


@pytest.mark.parametrize("name", ["adamw", "captured", "resumed"])
def test_cuda_computes_what_a_cpu_does(runs, name):
    """Losses, validation, and text: that goes through graphs which were captured."""
    folder, _ = runs
    for kind in ("loss", "val_loss"):
        ours, theirs = ([row[kind] for row in rows(folder / n, kind)] for n in (name, "on-cpu"))
        assert ours == pytest.approx(theirs, abs=2e-6)
    ours, theirs = ((folder / n / "samples.jsonl").read_text() for n in (name, "on-cpu"))
    assert ours == theirs and ours.count("\n") == 6


def test_a_graph_is_replayed_for_each_micro_batch(runs):
    """Of 4 a step; before the first, two for its gradients to be compared. Samples have graphs of
    their own."""
    _, results = runs
    plain = results["adamw"]["replayed"]
    assert results["captured"]["replayed"] - plain == 4 * 8 + 2
    assert results["captured, float16"]["replayed"] == 4 * 4 + 2


def test_what_cannot_be_captured_or_differs_is_not(runs):
    folder, results = runs
    plain = results["adamw"]["replayed"]
    for fault, n_compared in (("a batch of the capture", 2), ("a wait in the capture", 0)):
        assert (results[fault]["code"], results[fault]["replayed"]) == (0, plain + n_compared)
        assert losses(folder / fault) == losses(folder / "adamw")


def float_masks(result: dict) -> int:
    """How many masks of whole windows, in floating point, were made."""
    return sum(
        n
        for operation, dtype, shape, n in result["made"]
        if operation == "masked_fill_" and dtype == "torch.bfloat16" and shape[1:] == [1, 16, 16]
    )


def test_a_mask_is_made_once_for_all_layers(runs):
    _, results = runs
    # 4 micro-batches in each of 4 steps, one in the dry pass, one of each split in 2 evaluations
    assert float_masks(results["document_mask"]) == 4 * 4 + 1 + 2 * 2


def masks(result: dict) -> int:
    """How many tensors with a number for each query and key of a window were made."""
    return sum(n for _, _, shape, n in result["made"] if shape[-2:] == [16, 16] and len(shape) < 5)


def test_documents_in_blocks_are_masked_without_a_mask(runs):
    """On the device are none of the numbers that the plain way has; the losses are its own."""
    folder, results = runs
    assert losses(folder / "masked in blocks") == pytest.approx(losses(folder / "masked"), abs=1e-5)
    assert masks(results["masked"]) > 50 and masks(results["masked in blocks"]) == 0


def types_of_sums(result: dict) -> set[str]:
    """Of what is added up position by position, (micro-batch, 16, 32): the residual stream."""
    return {
        dtype
        for operation, dtype, shape, _ in result["made"]
        if operation == "add" and shape[1:] == [16, 32]
    }


def test_the_residual_stream_is_bfloat16_where_products_are(runs):
    """float16, of a smaller range, stays in the products."""
    _, results = runs
    assert "torch.bfloat16" in types_of_sums(results["one micro-batch"])
    assert types_of_sums(results["float16"]) == {"torch.float32"}
    assert types_of_sums(results["adamw"]) == {"torch.float32"}


def test_cudnn_plans_for_few_shapes(runs):
    """Training and evaluation have a shape each; what is scored or sampled has any."""
    _, results = runs
    for name in ("tasks", "muon"):
        shapes = {
            tuple(shape)
            for operation, _, shape, _ in results[name]["made"]
            if operation == "_scaled_dot_product_cudnn_attention" and len(shape) == 4
        }
        assert len(shapes) == 2, shapes


def operations(result: dict) -> set[str]:
    return {operation for operation, *_ in result["made"]}


def test_a_deterministic_run_attends_without_cudnn(runs):
    """Whose backward pass adds up in any order. Other such operations would have ended the run."""
    _, results = runs
    made = operations(results["deterministic"])
    assert not any("cudnn" in operation for operation in made)
    assert any("efficient_attention" in operation for operation in made)
    assert any("cudnn" in operation for operation in operations(results["dropout"]))


def test_a_sum_in_any_order_is_seen(runs):
    _, results = runs
    error = results["a sum in any order"]["error"]
    assert "cumsum has no deterministic implementation, in train.py:train_step" in error


# -----------------------------------------------------------------------------
# Faults that were put in


@pytest.mark.parametrize("fault", WAITS)
def test_a_wait_in_the_step_is_seen(runs, fault):
    _, results = runs
    seen = set(waits_of(results[fault])) - ALLOWED
    assert seen == {(WAITS[fault], "train.py:train_step")}


def test_a_tensor_of_the_cpu_in_the_step_is_seen(runs):
    _, results = runs
    error = results["a CPU tensor"]["error"]
    assert "at least two devices, cuda:0 and cpu" in error and "train.py:train_step" in error


def test_numbers_that_nobody_waited_for_are_seen(runs):
    folder, _ = runs
    assert None in losses(folder / "nobody waits")  # not a number


def test_a_float_mask_a_layer_is_seen(runs):
    _, results = runs
    assert float_masks(results["a float mask a layer"]) == 2 * (4 * 4 + 1 + 2 * 2)
