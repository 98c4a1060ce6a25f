"""What lathe/run/sharded_save.py promises: a sharded model is saved by all ranks at once, whole or not at all, and
read by any number of them."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import (
    ROOT,
    command,
    finished,
    job,
    losses,
    make_dataset,
    rows,
    run_ranks,
)

from lathe.run import checkpoint
from lathe.use.find_model import find_model
from lathe.use.network import load_weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
# 12 sequences are shared by 1, 2, 3 and 4 ranks; 36 and 257 rows not evenly by
# all.
PLAIN = dict(n_embd=36, batch_size=12, max_steps=12, eval_interval=6, keep_checkpoints=10)
PLAIN["average_fraction"] = 0.75  # from step 4 on: resumes begin in the middle of it
FSDP = dict(parallel="fsdp", **PLAIN)
MICRO = {1: 6, 2: 3, 3: 2, 4: 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def world(data, tmp_path_factory):
    """Folder with the runs of these tests: `one`, of one process, and `four`, which is sharded; those
    that go on with `four` from step 6 on other numbers of ranks, sharded or not; and those that begin
    with its weights."""
    here = tmp_path_factory.mktemp("world")
    four, one, lora = (str(here / name) for name in ("four", "one", "lora-2"))
    short = FSDP | dict(lora_rank=1, max_steps=6)  # one row, which rank 1 has none of
    longer = short | dict(max_steps=8)
    by_ranks = {
        1: {"one": PLAIN},
        4: {"four": FSDP},
        3: {"four-3": dict(go_on=(four, 6), **FSDP)},
        2: {
            "four-2": dict(go_on=(four, 6), **FSDP),
            "four-2-ddp": dict(go_on=(four, 6), **PLAIN),
            "one-2": dict(go_on=(one, 6), **FSDP),
            "tuned-2": dict(init_from=four, **FSDP),
            "lora-2": dict(init_from=four, **short),
            "lora-2-longer": dict(go_on=(lora, 6), **longer),
        },
    }
    for n_ranks, runs in by_ranks.items():
        train_ranks(n_ranks, data, here, runs)
    after = {"four-1": dict(go_on=(four, 6), **PLAIN), "tuned-1": dict(init_from=four, **PLAIN)}
    train_ranks(1, data, here, after)
    return here


def train_ranks(n_ranks: int, data: str, here: Path, runs: dict[str, dict]):
    jobs = []
    for name, changed in runs.items():
        jobs.append(job(data, here / name, micro_batch_size=MICRO[n_ranks], **changed))
    for code, _, err in run_ranks(n_ranks, here, *jobs):
        assert code == 0, err[-3000:]


@pytest.fixture
def four(world, tmp_path) -> Path:
    """A copy of the sharded run, for damage."""
    return Path(shutil.copytree(world / "four", tmp_path / "four"))


def close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1e-5


# What is on the disk


def test_each_rank_has_written_its_part_and_no_more(world):
    folder = checkpoint.step_path(world / "four", 12)
    for what in ("model", "optimizer"):
        sizes = [
            (folder / f"{what}.rank{rank}-of-4.safetensors").stat().st_size for rank in range(4)
        ]
        assert max(sizes) <= sum(sizes) / 4 + 5000  # a row of each tensor, at the most
    assert not (folder / "model.safetensors").exists()
    state = checkpoint.verify(folder)
    assert (state["format"], state["pieces"], state["world_size"]) == (2, 4, 4)
    assert set(state["files"]) | {"state.json"} == {path.name for path in folder.iterdir()}


def test_a_checkpoint_of_one_process_is_as_before(world):
    folder = checkpoint.step_path(world / "four-1", 12)
    assert (folder / "model.safetensors").exists()
    assert checkpoint.read_state(folder)["format"] == 1


def test_all_weights_come_back(world):
    alone, together = (load_weights(checkpoint.step_path(world / n, 12)) for n in ("one", "four"))
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        assert tensor.dtype == together[name].dtype
        torch.testing.assert_close(tensor, together[name], rtol=0, atol=1e-4)


# Other numbers of ranks


@pytest.mark.parametrize("name", ["four", "four-3", "four-2", "four-2-ddp", "four-1", "one-2"])
def test_any_number_of_ranks_goes_on_with_it(world, name):
    assert [row["step"] for row in rows(world / name)] == list(range(1, 13))
    assert close(losses(world / name), losses(world / "one"))
    ours, theirs = (rows(world / n, "val_loss")[-1]["val_loss"] for n in (name, "one"))
    assert ours == pytest.approx(theirs, abs=1e-5)


def averages_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint has as averaged ones, whole."""
    folder = checkpoint.step_path(run, step)
    about = checkpoint.load_optimizer(folder)["average"]
    assert about["n"] == step - 3
    if about["model_is_average"]:
        return load_weights(folder, merged=False)
    return {name: tensor[...] for name, tensor in about["other"].items()}


@pytest.mark.parametrize("name", ["four", "four-3", "four-2", "four-2-ddp", "four-1", "one-2"])
def test_weights_are_averaged_on_any_number_of_ranks(world, name):
    expected = averages_of(world / "one", 12)
    averages = averages_of(world / name, 12)
    assert averages.keys() == expected.keys()
    earlier = load_weights(checkpoint.step_path(world / "one", 6), merged=False)
    for key, tensor in averages.items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-4)
        assert not torch.allclose(tensor, earlier[key], atol=1e-3)


def test_only_corrections_of_low_rank_are_averaged(world):
    folder = checkpoint.step_path(world / "lora-2-longer", 8)
    names = checkpoint.load_optimizer(folder)["average"]["other"]
    assert names and all(name.endswith(("lora_A", "lora_B")) for name in names)


def test_any_number_of_ranks_begins_with_its_weights(world):
    assert close(losses(world / "tuned-2"), losses(world / "tuned-1"))


def test_corrections_of_low_rank_are_sharded_too(world):
    assert len(losses(world / "lora-2-longer")) == 8
    before = load_weights(checkpoint.step_path(world / "four", 12))
    after = load_weights(checkpoint.step_path(world / "lora-2-longer", 8), merged=False)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name])  # bit for bit what it was
    assert any(name.endswith("lora_B") and tensor.any() for name, tensor in after.items())


# Commands


def test_the_commands_read_it(world, tmp_path):
    run = world / "four"
    page, exported = tmp_path / "page.html", tmp_path / "exported"
    lines = [
        ("sample.py", f"--out_dir={run}", "--max_new_tokens=4", "--num_samples=1"),
        ("evaluate.py", f"--out_dir={run}", "--device=cpu"),
        ("huggingface.py", "export", f"--out_dir={run}", f"--to={exported}", "--verify=true"),
        ("visualize.py", "model", f"--out_dir={run}", "--prompt=the cat", f"--out={page}"),
    ]
    printed = {}
    for line in lines:
        code, printed[line[0]], err = finished(command(*line))
        assert code == 0, err
    last = rows(run, "val_loss")[-1]["val_loss"]
    assert json.loads(printed["evaluate.py"])["loss"] == pytest.approx(last, abs=1e-5)
    assert page.stat().st_size > 10_000
    exported_model = find_model(f"hf:{exported}")
    whole = load_weights(checkpoint.step_path(run, 12))
    name = "transformer.wte.weight"
    assert torch.equal(exported_model.weights()[name], whole[name])


# Damage


def test_every_flipped_bit_and_every_cut_is_found_and_the_one_before_is_used(four):
    old, new = (checkpoint.step_path(four, step) for step in (6, 12))
    rng = random.Random(0)
    names = sorted(path.name for path in new.iterdir())
    assert len(names) == 4 + 4 + 3
    for name in names * 4:
        whole = (new / name).read_bytes()
        flipped = bytearray(whole)
        bit = rng.randrange(8 * len(whole))
        flipped[bit // 8] ^= 1 << bit % 8
        for damaged in (bytes(flipped), whole[: rng.randrange(len(whole) - 1)]):
            (new / name).write_bytes(damaged)
            found, faults = checkpoint.newest_checkpoint(four)
            assert found == old and len(faults) == 1 and name in faults[0]
        (new / name).write_bytes(whole)
    assert checkpoint.newest_checkpoint(four) == (new, [])


def test_who_wants_weights_alone_needs_no_whole_optimizer(four):
    new = checkpoint.step_path(four, 12)
    path = new / "optimizer.rank2-of-4.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert checkpoint.find_checkpoint(four).name == new.name
    path.with_name("model.rank2-of-4.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-0000012 is damaged: model.rank2-of-4"):
        checkpoint.find_checkpoint(new)


def test_ranks_that_verify_together_agree_on_what_is_damaged(data, four, tmp_path):
    """Each reads some of the files only; one of them finds the fault."""
    path = checkpoint.step_path(four, 12) / "optimizer.rank2-of-4.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    asked = FSDP | dict(init_from="resume", max_steps=8, micro_batch_size=MICRO[3])
    results = run_ranks(3, tmp_path, job(data, four, **asked))
    assert [code for code, _, _ in results] == [0, 0, 0], results[0][2][-2000:]
    said = results[0][2]
    assert said.count("skipped: ") == 1 and f"step-0000012 is damaged: {path.name}" in said
    assert "resuming from" in said and "step-0000006" in said
    assert [row["step"] for row in rows(four)] == list(range(1, 9))


# Ranks that cannot write


def ends_with_the_old_checkpoint(out: Path, results: list, step: int) -> str:
    """The last line that rank 0 printed, after a run whose save after `step` failed on each rank."""
    assert [code for code, _, _ in results] == [1] * len(results), results[0][2][-2000:]
    assert not any("Traceback" in err for _, _, err in results)
    path, faults = checkpoint.newest_checkpoint(out)
    assert not faults and checkpoint.step_of(path) == step
    assert not list((out / "checkpoints").glob(".*")), "nothing of the failed save is left"
    return results[0][2].strip().splitlines()[-1]


def test_a_disk_that_is_full_for_one_rank_fails_the_save_on_all(data, tmp_path):
    out = tmp_path / "run"
    faulty = job(data, out, fault=("full disk", 1, 1 + 7 * 2), micro_batch_size=3, **FSDP)
    results = run_ranks(2, tmp_path, faulty)
    last = ends_with_the_old_checkpoint(out, results, step=6)
    assert "step-0000012 could not be written: rank 1 on " in last
    assert "model.rank1-of-2.safetensors" in last and "bytes needed" in last and " free" in last
    assert "older checkpoints are untouched" in last


def test_a_rank_whose_files_rank_0_does_not_see_is_named(data, tmp_path):
    faulty = job(data, "run", fault=("other folder", 1, 1 + 7 * 2), micro_batch_size=3, **FSDP)
    results = run_ranks(2, tmp_path, faulty, starts_in=[tmp_path] * 2)
    last = ends_with_the_old_checkpoint(tmp_path / "run", results, step=6)
    assert "rank 1 on " in last and "model.rank1-of-2.safetensors, which rank 0 on " in last
    assert "out_dir must lie on a disk that all nodes share" in last


@pytest.mark.exhaustive
def test_folders_that_are_not_one_are_refused_before_training(data, tmp_path):
    """Two nodes, each with an out_dir of its own."""
    nodes = [tmp_path / "node0", tmp_path / "node1"]
    for node in nodes:
        node.mkdir()
    results = run_ranks(2, tmp_path, job(data, "run", **FSDP), starts_in=nodes)
    assert [code for code, _, _ in results] == [1, 1]
    last = results[0][2].strip().splitlines()[-1]
    assert "out_dir run is not one folder for all ranks" in last and "not seen by rank 1 on" in last
    assert "Traceback" not in results[0][2] and not rows_are_there(nodes)


def rows_are_there(nodes: list[Path]) -> bool:
    return any((node / "run" / "metrics.jsonl").exists() for node in nodes)


# Killed while saving


@pytest.mark.exhaustive
def test_kills_of_one_rank_or_all_at_random_moments_lose_no_checkpoint(tmp_path):
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    trials = 10
    words = (ROOT / "tests" / "saving_ranks.py", tmp_path, trials, 3, 1)
    code, out, err = finished(command(*words, env=env), 240)
    assert code == 0 and out.count("killed") == trials, err[-3000:]
    checkpoint.sweep(tmp_path)
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert all(name == "best" or checkpoint.STEP_NAME.fullmatch(name) for name in names)
