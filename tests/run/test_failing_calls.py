"""A run on file systems that lack something, or fail for a while: each call fails in a real process."""

import errno
import json
import shutil
import subprocess
import sys

import pytest
from tiny_run import ROOT, arguments, command, finished, losses, rows, wait_for_step

from lathe.run import checkpoint

LIMITS = dict(max_steps=20, eval_interval=5, checkpoint_interval=5, sample_tokens=4, num_samples=1)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> str:
    if sys.platform != "linux":
        pytest.skip("LD_PRELOAD is Linux's")
    path = tmp_path_factory.mktemp("failing") / "failing_calls.so"
    source = ROOT / "tests" / "failing_calls.c"
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", path, "-ldl"], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler for calls that fail")
    return str(path)


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("undisturbed")
    assert finished(command("train.py", *arguments(dataset, out_dir, **LIMITS)))[0] == 0
    return out_dir


def rule(call: str, error: int, part: str, first: int = 1, last: int = 10**6) -> str:
    return f"{call}:{error}:{part}:{first}:{last}"


def train_with(library: str, dataset: str, out_dir, *rules: str, **changed):
    """Exit code and stderr of a run in which these calls fail."""
    env = {"LD_PRELOAD": library, "LATHE_FAIL": ",".join(rules)}
    words = arguments(dataset, out_dir, **{**LIMITS, **changed})
    code, _, err = finished(command("train.py", *words, env=env))
    assert "Traceback" not in err
    return code, err


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_once_and_used(library, dataset, tmp_path, error):
    code, err = train_with(library, dataset, tmp_path, rule("flock", error, "lock"))
    assert code == 0
    assert err.count("its file system has no locks") == 1
    assert len(losses(tmp_path)) == 20


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_process_has_is_respected(library, dataset, tmp_path, error):
    code, err = train_with(library, dataset, tmp_path, rule("flock", error, "lock"))
    assert code == 1 and "is in use by another process" in err


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP])
def test_folders_that_cannot_be_forced_to_disk_are_no_failure(library, dataset, tmp_path, error):
    code, err = train_with(library, dataset, tmp_path, rule("fsync_folder", error, "checkpoints"))
    assert code == 0, err
    assert checkpoint.step_of(checkpoint.newest_checkpoint(tmp_path)[0]) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, error",
    [
        ("metrics.jsonl", errno.ENOSPC),
        ("metrics.jsonl", errno.ESTALE),
        ("samples.jsonl", errno.EIO),
        ("samples.jsonl", errno.EDQUOT),
    ],
)
def test_rows_and_samples_wait_until_they_can_be_written(
    library, dataset, tmp_path, undisturbed, name, error
):
    first, last = (6, 9) if name == "metrics.jsonl" else (2, 3)
    code, err = train_with(library, dataset, tmp_path, rule("write", error, name, first, last))
    assert code == 0
    assert err.count(f"{name} cannot be written now") == 1
    assert err.count(f"{name} is written again, and complete") == 1
    assert losses(tmp_path) == losses(undisturbed)
    texts = (tmp_path / "samples.jsonl").read_text()
    assert texts == (undisturbed / "samples.jsonl").read_text()


@pytest.mark.slow
def test_rows_that_can_never_be_written_are_said_to_be_missing(library, dataset, tmp_path):
    rules = rule("write", errno.ENOSPC, "metrics.jsonl", 18)
    code, err = train_with(library, dataset, tmp_path, rules)
    assert code == 0
    assert "metrics.jsonl lacks its last" in err
    assert checkpoint.step_of(checkpoint.newest_checkpoint(tmp_path)[0]) == 20


@pytest.mark.slow
def test_a_page_that_cannot_be_written_ends_nothing(library, dataset, tmp_path):
    rules = rule("write", errno.ENOSPC, "report.html")
    code, err = train_with(library, dataset, tmp_path, rules)
    assert code == 0 and "report.html" in err
    assert len(losses(tmp_path)) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "settings.toml",
        "metrics.jsonl",
        pytest.param("samples.jsonl", marks=pytest.mark.exhaustive),
        pytest.param("starts.jsonl", marks=pytest.mark.exhaustive),
    ],
)
def test_a_disk_that_is_full_at_a_resume_empties_no_file(
    library, dataset, tmp_path, undisturbed, name
):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    changes = dict(init_from="resume", max_steps=30)
    rules = rule("write", errno.ENOSPC, f".{name}.tmp")
    code, err = train_with(library, dataset, tmp_path, rules, **changes)
    assert code == 1
    assert err.strip().splitlines()[-1].startswith("train.py: error: ") and name in err
    assert (tmp_path / name).read_bytes() == before[name]
    assert train_with(library, dataset, tmp_path, **changes)[0] == 0
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 31))


@pytest.mark.slow
@pytest.mark.parametrize(
    "call, error, name",
    [
        ("write", errno.ENOSPC, "model.safetensors"),
        pytest.param("write", errno.EIO, "optimizer.pt", marks=pytest.mark.exhaustive),
        pytest.param("write", errno.ESTALE, "state.json", marks=pytest.mark.exhaustive),
        ("fsync", errno.EIO, "model.safetensors"),
        ("rename", errno.ESTALE, "checkpoints/step-"),
        ("write", errno.ENOSPC, "best.tmp"),
    ],
)
def test_a_save_that_fails_once_is_made_up_for(
    library, dataset, tmp_path, undisturbed, call, error, name
):
    code, err = train_with(library, dataset, tmp_path, rule(call, error, name, 2, 2))
    assert code == 0, err
    assert err.count("; trying once more") == 1
    assert losses(tmp_path) == losses(undisturbed)
    steps = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path)]
    assert steps[-1] == 20
    for path in checkpoint.list_checkpoints(tmp_path):
        checkpoint.verify(path)


@pytest.mark.slow
def test_the_last_save_is_made_up_for_too_and_two_failures_in_a_row_end_the_run(
    library, dataset, tmp_path
):
    once = dict(max_steps=6, eval_interval=6, checkpoint_interval=0)
    rules = rule("write", errno.ENOSPC, "model.safetensors", 1, 1)
    code, err = train_with(library, dataset, tmp_path / "once", rules, **once)
    assert code == 0 and "trying once more" in err
    assert checkpoint.step_of(checkpoint.newest_checkpoint(tmp_path / "once")[0]) == 6
    rules = rule("write", errno.ENOSPC, "model.safetensors", 1)
    code, err = train_with(library, dataset, tmp_path / "always", rules, **once)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("train.py: error: ") and "could not be written" in last


# -----------------------------------------------------------------------------
# What is not ours


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_what_another_program_keeps_in_the_folder_stays(dataset, tmp_path, overwrite):
    theirs = ["epoch=3.ckpt", "step-0000007", "last", ".hidden.tmp"]
    folder = tmp_path / "checkpoints"
    (folder / "step-0000007").mkdir(parents=True)
    for name in ("epoch=3.ckpt", "last", ".hidden.tmp", "step-0000007/weights.pt"):
        (folder / name).write_text("theirs")
    words = arguments(
        dataset, tmp_path, **{**LIMITS, "overwrite": overwrite, "init_from": "scratch"}
    )
    if overwrite == "false":
        (folder / "step-0000007").rename(folder / "step_7")
        theirs[1] = "step_7"
    code, _, err = finished(command("train.py", *words))
    assert code == 0, err
    assert "what is not lathe's, which stays" in err
    for name in theirs:
        assert (folder / name).exists()


@pytest.mark.slow
def test_links_in_a_folder_are_not_written_through(dataset, tmp_path, undisturbed):
    out_dir = tmp_path / "run"
    shutil.copytree(undisturbed, out_dir)
    names = ["settings.toml", "samples.jsonl", "starts.jsonl", "metrics.jsonl", "report.html"]
    for name in names:
        victim = tmp_path / f"victim-{name}"
        victim.write_bytes((out_dir / name).read_bytes())
        (out_dir / name).unlink()
        (out_dir / name).symlink_to(victim)
        hidden = tmp_path / f"hidden-{name}"
        hidden.write_text("theirs")
        (out_dir / f".{name}.tmp").symlink_to(hidden)
    before = {name: (tmp_path / f"victim-{name}").read_bytes() for name in names}
    words = arguments(dataset, out_dir, **{**LIMITS, "init_from": "resume", "max_steps": 30})
    code, _, err = finished(command("train.py", *words))
    assert code == 0, err
    for name in names:
        assert (tmp_path / f"victim-{name}").read_bytes() == before[name]
        assert (tmp_path / f"hidden-{name}").read_text() == "theirs"
        assert not (out_dir / name).is_symlink()
    lines = (out_dir / "metrics.jsonl").read_text().splitlines()
    assert len([line for line in lines if "lr" in json.loads(line)]) == 30


@pytest.mark.slow
def test_a_link_in_place_of_the_lock_is_refused(dataset, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(victim)
    words = arguments(dataset, tmp_path / "run", **LIMITS)
    code, _, err = finished(command("train.py", *words))
    assert code == 1 and "has a link in place of its file lock" in err
    assert victim.read_text() == "theirs"


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["renamed", "deleted", "lock removed"])
def test_a_folder_that_goes_away_under_a_run_ends_it_with_a_word(dataset, tmp_path, fate):
    out_dir = tmp_path / "run"
    long = dict(max_steps=100_000, checkpoint_interval=20, eval_interval=100_000)
    process = command("train.py", *arguments(dataset, out_dir, **long))
    wait_for_step(process, out_dir, 25)
    if fate == "renamed":
        out_dir.rename(tmp_path / "elsewhere")
    elif fate == "deleted":
        shutil.rmtree(out_dir, ignore_errors=True)
    else:
        (out_dir / "lock").unlink()
    code, _, err = finished(process)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("train.py: error: ") and str(out_dir) in last
    if fate != "lock removed":
        assert not (out_dir / "metrics.jsonl").exists()  # no half run begins there


@pytest.mark.slow
def test_two_runs_that_miss_the_same_dataset_prepare_it_once(tmp_path):
    """The second waits for the first."""
    small = dict(max_steps=2, eval_interval=2, n_layer=1, n_embd=32, batch_size=4)
    data = tmp_path / "house" / "data" / "example_reverse"
    house = tmp_path / "house"
    shutil.copytree(
        ROOT, house, ignore=shutil.ignore_patterns(".*", "out", "data", "gpu_folder", "__pycache__")
    )
    shutil.copytree(ROOT / "lathe" / "data", house / "lathe" / "data", dirs_exist_ok=True)
    both = []
    for name in ("a", "b"):
        words = arguments("data/example_reverse", tmp_path / name, **small)
        both.append(command("train.py", *words, folder=house))
    for process in both:
        code, _, err = finished(process)
        assert code == 0, err
    assert (data / "meta.json").exists()
