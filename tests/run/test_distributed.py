"""What several processes promise: the batches, losses and weights of one, however they share the work."""

import math
import os
import signal

import pytest
import torch
from tiny_run import (
    ROOT,
    arguments,
    command,
    finished,
    free_ports,
    job,
    losses,
    make_dataset,
    rows,
    run_ranks,
    settings,
    wait_for_step,
)

import train
from lathe.run import checkpoint
from lathe.use.network import load_weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
KINDS = [(parallel, optimizer) for parallel in ("ddp", "fsdp") for optimizer in ("adamw", "muon")]
OFTEN = dict(checkpoint_interval=5, keep_checkpoints=10)
NGRAMS = dict(ngram_rows=301, ngram_order=4, **OFTEN)  # 903 rows: shards of several sizes
TASKS = dict(
    eval_tasks=[f"{name}:{ROOT}/tests/items/{name}.jsonl" for name in ("hellaswag", "exact_match")]
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with every run of these tests: few jobs of many runs, since starting processes takes the time.

    one-*: one process. ddp2-muon, fsdp2-muon: two ranks, no dropout. drop-*: two ranks, dropout, straight; -resumed:
    the same from step 10 on. nan-*: NaN on rank 1 in step 5. moved-*: across numbers of ranks and kinds.
    """
    here = tmp_path_factory.mktemp("world")
    data = make_dataset(here / "data")

    def make(name, **changed):
        return job(data, here / name, **changed)

    for optimizer in ("adamw", "muon"):
        train.train(
            settings(data, here / f"one-{optimizer}", optimizer=optimizer, **OFTEN, **TASKS)
        )
    train.train(settings(data, here / "one-ngrams", **NGRAMS))
    two = [make(f"{parallel}2-ngrams", parallel=parallel, **NGRAMS) for parallel in ("ddp", "fsdp")]
    for parallel, optimizer in KINDS:
        kind = dict(
            parallel=parallel, optimizer=optimizer, sample_tokens=4 if optimizer == "muon" else 0
        )
        straight = f"drop-{parallel}-{optimizer}"
        if optimizer == "muon":  # whose state is both Muon's and AdamW's
            two.append(make(f"{parallel}2-muon", **kind, **OFTEN, **TASKS))
        two.append(make(straight, dropout=0.1, **kind))
        two.append(make(f"{straight}-resumed", go_on=(here / straight, 10), dropout=0.1, **kind))
    for parallel in ("ddp", "fsdp"):
        every = dict(checkpoint_interval=1, keep_checkpoints=20, max_steps=8, parallel=parallel)
        two.append(
            make(f"nan-{parallel}", fault=("nan", 1, 1 + 2 * 4 + 1), **every)
        )  # the dry pass is the first
    full = dict(activation_checkpointing="full", parallel="fsdp", max_steps=6)
    two.append(
        make(
            "moved-1-2fsdp",
            go_on=(here / "one-adamw", 5),
            optimizer="adamw",
            **{**full, "max_steps": 20},
        )
    )
    for code, _, err in run_ranks(2, here, *two):
        assert code == 0, err[-3000:]

    one = settings(data, here / "moved-2ddp-1", init_from="resume", **OFTEN)
    from rank import as_it_was

    as_it_was(one.out_dir, str(here / "ddp2-muon"), 5)
    assert train.train(one) == 0
    one = settings(data, here / "moved-2fsdp-1-ngrams", init_from="resume", **NGRAMS)
    as_it_was(one.out_dir, str(here / "fsdp2-ngrams"), 5)
    assert train.train(one) == 0
    four = [make(f"{p}4-muon", parallel=p) for p in ("ddp", "fsdp")]
    sharded = dict(NGRAMS, parallel="fsdp")
    from_two = (here / "fsdp2-ngrams", 10)
    four.append(make("moved-2fsdp-4fsdp-ngrams", go_on=from_two, **sharded))
    four.append(
        make("moved-2ddp-1-4fsdp", go_on=(here / "moved-2ddp-1", 10), parallel="fsdp", **OFTEN)
    )
    for code, _, err in run_ranks(4, here, *four):
        assert code == 0, err[-3000:]
    return here


def weights(out, step: int) -> dict[str, torch.Tensor]:
    path = checkpoint.step_path(out, step)
    checkpoint.verify(path)
    return load_weights(path)


@pytest.mark.parametrize("name", ["ddp2-muon", "fsdp2-muon", "ddp4-muon", "fsdp4-muon"])
def test_the_losses_of_several_ranks_are_those_of_one(world, name):
    alone, together = losses(world / "one-muon"), losses(world / name)
    assert (
        len(together) == 20
        and max(abs(a - b) for a, b in zip(alone, together, strict=True)) <= 1e-5
    )
    for a, b in zip(
        rows(world / "one-muon", "val_loss"), rows(world / name, "val_loss"), strict=True
    ):
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-5) and a["step"] == b["step"]
        scores = {key: value for key, value in b.items() if "/" in key}
        assert scores.items() <= a.items() and len(scores) == (3 if "2" in name else 0)


@pytest.mark.parametrize("name", ["ddp2-ngrams", "fsdp2-ngrams"])
def test_ranks_that_share_a_table_by_ngrams_learn_what_one_does(world, name):
    """Whose gradients of the table are sparse, and theirs dense."""
    alone, together = losses(world / "one-ngrams"), losses(world / name)
    assert len(together) == 20
    assert max(abs(a - b) for a, b in zip(alone, together, strict=True)) <= 1e-5
    for step in (5, 20):
        expected, table = (
            weights(world / run, step)["transformer.ngrams.weight"] for run in ("one-ngrams", name)
        )
        assert expected.any() and expected.shape[0] == 903
        torch.testing.assert_close(table, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("parallel, optimizer", KINDS)
def test_two_ranks_go_on_bit_for_bit_where_they_stopped(world, parallel, optimizer):
    straight, resumed = (world / f"drop-{parallel}-{optimizer}{end}" for end in ("", "-resumed"))
    assert losses(resumed) == losses(straight) and len(losses(straight)) == 20
    a, b = weights(straight, 20), weights(resumed, 20)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert losses(straight) != losses(world / f"one-{optimizer}")  # the dropout did something


@pytest.mark.parametrize(
    "moved, straight",
    [
        ("moved-2ddp-1", "one-muon"),
        ("moved-2ddp-1-4fsdp", "one-muon"),
        ("moved-1-2fsdp", "one-adamw"),
        ("moved-2fsdp-1-ngrams", "one-ngrams"),
        ("moved-2fsdp-4fsdp-ngrams", "one-ngrams"),
    ],
)
def test_a_run_moves_between_numbers_of_ranks_and_kinds(world, moved, straight):
    assert [row["step"] for row in rows(world / moved)] == list(range(1, 21))
    assert (
        max(
            abs(a - b) for a, b in zip(losses(world / moved), losses(world / straight), strict=True)
        )
        <= 1e-5
    )
    shapes = [
        {n: t.shape for n, t in weights(world / name, 20).items()} for name in (moved, straight)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_nan_on_one_rank_makes_every_rank_skip_that_step(world, parallel):
    out = world / f"nan-{parallel}"
    assert [row["loss"] is None for row in rows(out)] == [step == 5 for step in range(1, 9)]
    before, after = weights(out, 4), weights(out, 5)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert checkpoint.read_state(checkpoint.step_path(out, 5))["train"]["skipped"] == 1
    for step in range(1, 9):
        assert all(t.isfinite().all() for t in weights(out, step).values())
    assert math.isfinite(losses(out)[-1]) and not all(
        torch.equal(after[n], weights(out, 6)[n]) for n in after
    )


def test_sharded_ranks_sample_what_one_process_samples(world):
    texts = {(world / name / "samples.jsonl").read_text() for name in ("ddp2-muon", "fsdp2-muon")}
    assert len(texts) == 1 and texts.pop().count("\n") == 6  # 3 samples at steps 10 and 20


def test_two_agents_with_a_rendezvous_are_two_nodes_and_stop_at_slurms_signal(world):
    """What scripts/slurm.sh starts on two nodes, here as two torchrun processes on one, until its time is up."""
    (port,) = free_ports(1)
    out = world / "nodes"
    agents = [
        command(
            "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=7", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",
            "train.py", *arguments(str(world / "data"), out, max_steps=100_000, eval_interval=100_000),
            env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )
        for _ in range(2)
    ]  # fmt: skip
    wait_for_step(agents[0], out, 3)
    for agent in agents:
        os.kill(agent.pid, signal.SIGUSR1)
    # By themselves: of ranks that torchrun has to kill, after 30 s, the last step is not saved.
    said = [finished(agent) for agent in agents]
    assert not any(out for _, out, _ in said)
    assert any("SIGUSR1 received" in err and "--init_from=resume" in err for _, _, err in said), (
        said
    )
    path, faults = checkpoint.newest_checkpoint(out)
    state = checkpoint.read_state(path)
    assert not faults and state["world_size"] == 2 and state["step"] == rows(out)[-1]["step"]


def test_a_batch_that_the_ranks_cannot_share_names_sizes_that_work(world):
    results = run_ranks(
        2, world, job(str(world / "data"), world / "uneven", batch_size=7, micro_batch_size=1)
    )
    assert {code for code, _, _ in results} == {1}
    err = results[0][2]
    assert "batch_size=7" in err and "6 or 8" in err and "Traceback" not in err


def test_fsdp_without_torchrun_says_how(world):
    with pytest.raises(ValueError, match="torchrun --nproc-per-node=2 train.py"):
        train.train(settings(str(world / "data"), world / "alone", parallel="fsdp"))


def test_nobody_at_the_master_address(world):
    (port,) = free_ports(1)
    s = settings(str(world / "data"), world / "unreachable", rank_timeout=2)
    words = [f"--{name}={value}" for name, value in vars(s).items() if value != ""]
    env = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    code, _, err = finished(command(ROOT / "train.py", *words, env=env))
    last = err.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in err
    assert f"MASTER_ADDR=127.0.0.1 MASTER_PORT={port}" in last and "2 s" in last
