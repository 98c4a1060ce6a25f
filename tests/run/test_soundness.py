"""What lathe/run/soundness.py promises: a flipped bit, a number that is none and a changed file are noticed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from kinds_of_runs import KINDS, make_data, settings_of
from tiny_run import ROOT, command, finished, free_ports, rows, run_ranks, settings
from torch import nn

import train
from lathe.run import checkpoint, soundness
from lathe.run.devices import Runtime
from lathe.run.soundness import Findings, Soundness, bits_sum, describe, not_finite

EACH = 2  # flips of each kind; bench/RESULTS.md has fifty


def run_flips(folder: Path, dataset: str, targets: list[str], **changed) -> list[list[dict]]:
    """What each of two ranks says of each run."""
    asked = settings(dataset, folder / "run", rank_timeout=60, **changed)
    job = {"settings": vars(asked), "targets": targets, "ports": free_ports(len(targets))}
    path = folder / "job.json"
    path.write_text(json.dumps({**job, "step": 5, "rank": 1}))
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        env = {**place, "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        processes.append(command("tests/flips.py", path, env=env))
    said = []
    for process in processes:
        code, out, err = finished(process, timeout=300)
        assert code == 0, err[-3000:]
        # Beside what flips.py says stdout has results of the run
        said.append([json.loads(line) for line in out.splitlines() if line.startswith("{")])
    return said


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.exhaustive)])
def test_a_bit_that_flips_in_one_rank_of_two_ends_the_run_before_it_is_saved(
    dataset, tmp_path, optimizer
):
    targets = ["weight", "moment", "gradient", "batch"] * EACH + ["table", "its moment", ""]
    changed = dict(optimizer=optimizer, max_steps=10, eval_interval=10, checkpoint_interval=4)
    changed["ngram_rows"] = 100
    first, second = run_flips(tmp_path, dataset, targets, **changed)
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        assert one == other  # all ranks end alike
        run = tmp_path / f"run-{i}"
        newest, _ = checkpoint.newest_checkpoint(run)
        if not one["target"]:
            assert one["noticed"] == "" and checkpoint.step_of(newest) == 10
            continue
        if one["target"] == "gradient" and not one["noticed"]:
            assert (
                checkpoint.step_of(newest) == 10
            )  # its lowest bits vanish in what they are added to
            continue
        assert "step 8 is not saved" in one["noticed"], one
        assert f"the last good checkpoint is {newest}" in one["noticed"]
        assert checkpoint.step_of(newest) == 4
        if one["target"] == "batch":
            assert "rank 1 trained on another batch at step 6" in one["noticed"]


# -----------------------------------------------------------------------------
# No false alarm

CLEAN_STEPS = 560  # of each kind: 10,000 of all
CLEAN = dict(log_interval=100, eval_interval=40, eval_tokens=64, checkpoint_interval=30)
TWO_THREADS = ("muon", "bfloat16")  # which wait for each other on a busy machine
LIVES = [200, 390, CLEAN_STEPS]  # the steps at which a run is stopped, to be resumed


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    make_data(folder)
    return folder


def kinds_on(n_ranks: int) -> list[str]:
    return [name for name, kind in KINDS.items() if kind.n_ranks == n_ranks]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", kinds_on(1))
def test_clean_steps_raise_no_alarm(data, tmp_path, monkeypatch, capsys, name):
    """With ten times as many replays as usual, some with two threads: sums could come out otherwise."""
    checks = []
    replays = []
    check = Soundness.check
    replay = Soundness.replay
    monkeypatch.setattr(soundness, "MICRO_STEPS_BETWEEN_REPLAYS", 40)
    monkeypatch.setattr(Soundness, "check", lambda *args: checks.append(check(*args)))
    monkeypatch.setattr(Soundness, "replay", lambda *args: replays.append(replay(*args)) or 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2 if name in TWO_THREADS else 1)
    begins = {}
    try:
        for end in LIVES:
            # max_steps is part of the schedule, but of no check
            asked = settings_of(KINDS[name], data, tmp_path, **CLEAN, max_steps=end, **begins)
            assert train.train(asked) == 0
            begins = {"init_from": "resume"}
    finally:
        torch.set_num_threads(before)
    assert len(checks) > CLEAN_STEPS / 30
    assert not any(replays)
    assert KINDS[name].changed.get("dropout") or len(replays) > CLEAN_STEPS / 50
    assert len(rows(tmp_path, "val_loss")) >= CLEAN_STEPS // 40


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", kinds_on(2))
def test_clean_steps_of_two_ranks_raise_no_alarm(data, tmp_path, name):
    jobs = []
    for end in LIVES:
        begins = {"init_from": "resume"} if jobs else {}
        asked = settings_of(KINDS[name], data, tmp_path / "run", **CLEAN, max_steps=end, **begins)
        jobs.append({"settings": vars(asked)})
    for code, _, err in run_ranks(KINDS[name].n_ranks, tmp_path, *jobs, timeout=900):
        assert code == 0, err[-3000:]
        assert "twice" not in err
    assert len(rows(tmp_path / "run", "val_loss")) >= CLEAN_STEPS // 40


# -----------------------------------------------------------------------------
# One process


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["weight", "moment"])
def test_what_is_not_finite_is_not_published_and_auto_goes_on_from_before(
    dataset, tmp_path, monkeypatch, value, what
):
    asked = settings(dataset, tmp_path, max_steps=12, checkpoint_interval=4, eval_interval=12)
    step_of_training = train.train_step

    def poisoned(run: train.Run):
        numbers = step_of_training(run)
        if run.state.step == 6:
            if what == "weight":
                run.parameters[0].data.flatten()[3] = value
            else:
                state = next(iter(run.optimizers[0].state.values()))
                next(t for t in state.values() if t.dim()).flatten()[3] = value
        return numbers

    monkeypatch.setattr(train, "train_step", poisoned)
    with pytest.raises(ValueError, match="step 8 is not saved: .* not finite.*step-0000004"):
        train.train(asked)
    assert [checkpoint.step_of(p) for p in checkpoint.list_checkpoints(tmp_path)] == [4]
    monkeypatch.undo()
    asked = settings(
        dataset, tmp_path, max_steps=12, checkpoint_interval=4, eval_interval=12, init_from="auto"
    )
    assert train.train(asked) == 0
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))


def test_data_that_changes_under_a_run_is_noticed(dataset, tmp_path, monkeypatch):
    shutil.copytree(dataset, tmp_path / "data")
    asked = settings(str(tmp_path / "data"), tmp_path / "run", max_steps=8, eval_interval=8)
    step_of_training = train.train_step

    def overwriting(run: train.Run):
        numbers = step_of_training(run)
        if run.state.step == 6:
            (shard,) = (tmp_path / "data").glob("train*.bin")
            with open(shard, "r+b") as file:
                file.seek(2000)
                file.write(bytes(len(shard.read_bytes()) - 2000))
        return numbers

    monkeypatch.setattr(train, "train_step", overwriting)
    with pytest.raises(ValueError, match="rank 0 trained on another batch at step"):
        train.train(asked)


class Rounding(torch.autograd.Function):
    """Every second time, its gradient has a bit flipped."""

    times = 0

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        Rounding.times += 1
        grad = grad.clone()
        if Rounding.times % 2:
            grad.view(torch.int32).flatten()[0] ^= 1
        return grad


class Net(nn.Module):
    def __init__(self, flaky: bool, sparse: bool):
        super().__init__()
        self.embed = nn.Embedding(7, 3, sparse=sparse)
        self.flaky = flaky

    def forward(self, x: torch.Tensor, y: torch.Tensor, reduction: str) -> torch.Tensor:
        out = self.embed(x)
        if self.flaky:
            out = Rounding.apply(out)
        return (out * (1 + y[..., None])).sum()


class TwoBatches:
    """What a replay asks for."""

    def fetch(self, seen: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.arange(6).reshape(2, 3)
        return ids, ids


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("flaky", [False, True])
def test_a_processor_that_computes_two_things_from_one_is_noticed(flaky, sparse):
    watch = Soundness(TwoBatches(), 6, 1)
    torch.manual_seed(0)
    net = Net(flaky, sparse)
    before = torch.get_rng_state()
    runtime = Runtime(torch.device("cpu"), torch.float32)
    assert watch.replay(net, runtime, 0, 0) == int(flaky)
    assert torch.equal(torch.get_rng_state(), before)
    assert net.embed.weight.grad is None


def test_training_computes_batches_twice_now_and_then_and_changes_nothing(
    dataset, tmp_path, monkeypatch
):
    plain = settings(dataset, tmp_path / "plain", max_steps=12, eval_interval=4)
    assert train.train(plain) == 0
    replays = []
    monkeypatch.setattr(soundness, "MICRO_STEPS_BETWEEN_REPLAYS", 10)
    replay = Soundness.replay

    def counted(*words):
        replays.append(replay(*words))
        return replays[-1]

    monkeypatch.setattr(Soundness, "replay", counted)
    assert train.train(settings(dataset, tmp_path / "often", max_steps=12, eval_interval=4)) == 0
    assert replays == [0, 0, 0]
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("plain", "often")]
    assert losses[0] == losses[1]


def test_every_flipped_bit_changes_the_sum():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        numbers = torch.randn(50).to(dtype)
        before = bits_sum(numbers)
        integers = numbers.view(soundness.INTEGERS[numbers.element_size()])
        for bit in range(8 * numbers.element_size() - 1):
            integers[bit % 50] ^= 1 << bit
            assert bits_sum(numbers) != before
            integers[bit % 50] ^= 1 << bit
        assert bits_sum(numbers) == before


def test_a_row_of_a_sparse_gradient_that_moves_changes_the_sum():
    rows = torch.tensor([[1, 4, 1]])
    values = torch.ones(3, 2)
    options = dict(size=(8, 2), check_invariants=True)
    orders = (rows, rows.flip(1), rows + 1)
    gradients = [torch.sparse_coo_tensor(r, values, **options) for r in orders]
    there, in_another_order, elsewhere = map(bits_sum, gradients)
    assert there == in_another_order != elsewhere


def test_names_of_what_is_not_finite():
    tensors = {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")]), "n": torch.tensor([3])}
    tensors |= {"c": torch.full((2, 2), -float("inf")), "none": torch.ones(0)}
    assert not_finite(tensors) == ["b", "c"]
    assert not_finite({}) == []


def test_the_rank_that_differs_is_named_where_a_majority_tells():
    usual = Findings([], {"w": 1, "v": 2})
    other = Findings([], {"w": 1, "v": 3})
    assert describe([usual, usual]) == ""
    assert describe([usual, usual, other]).startswith("rank 2 has other numbers")
    assert "in 1 tensor, v for one" in describe([usual, usual, other])
    assert describe([usual, other]).startswith("the ranks have other numbers")
