"""What the commands that measure promise about their arithmetic; the figures themselves are bench/RESULTS.md's."""

import pytest
from tiny_run import ROOT, SMALL, make_dataset

from bench import ablate, results, train_speed
from bench.ablate import Point

SLOW = "slow: learning_rate=0.00001, optimizer=adamw"


def test_an_arm_has_a_name_or_its_settings_are_the_name():
    assert ablate.read_arm(SLOW) == ("slow", ["--learning_rate=0.00001", "--optimizer=adamw"])
    assert ablate.read_arm("init_from=hf:x,seed=2") == (
        "init_from=hf:x,seed=2",
        ["--init_from=hf:x", "--seed=2"],
    )


def test_the_way_to_a_target_is_read_between_evaluations():
    curve = [Point(10, 3.0, 1.0), Point(20, 2.0, 2.0), Point(30, 2.5, 3.0), Point(40, 1.0, 4.0)]
    assert ablate.reached(curve, 2.5) == Point(15, 2.5, 1.5)
    assert ablate.reached(curve, 3.5) == curve[0]
    assert ablate.reached(curve, 2.0) == curve[1]
    point = ablate.reached(curve, 1.5)
    assert point.step == pytest.approx(30 + 10 * 2 / 3)
    assert point.seconds == pytest.approx(3 + 2 / 3)
    assert ablate.reached(curve, 0.9) is None


def test_a_mean_comes_with_its_standard_error():
    assert ablate.mean_and_error([1.0, 2.0, 3.0], 2) == "2.00 +- 0.58"
    assert (ablate.mean_and_error([1.0], 1), ablate.mean_and_error([], 1)) == ("1.0", "-")


def test_figures_told_one_by_one_become_one_entry(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    figures = results.Figures()
    figures.tell("speed", "3 MB/s")
    assert "3 MB/s" in capsys.readouterr().err, "as soon as it is known"
    figures.record("Data", "A note.")
    entry = (tmp_path / "RESULTS.md").read_text()
    assert "## Data" in entry and "| speed | 3 MB/s |" in entry and "commit" in entry
    assert entry.endswith("A note.\n")


def test_the_time_in_which_nothing_ran_on_the_device_is_counted_once():
    kernels = [
        (100, 10),
        (105, 20),
        (150, 50),
        (160, 10),
        (240, 10),
    ]  # overlapping, and one within another
    events = [{"cat": "kernel", "ts": ts, "dur": dur} for ts, dur in kernels]
    events += [{"cat": "cpu_op", "ts": 0, "dur": 1000}, {"ph": "M", "name": "process_name"}]
    assert train_speed.waiting(events) == pytest.approx(1 - (25 + 50 + 10) / 150)
    assert (
        train_speed.waiting(
            [{"cat": "cpu_op", "ts": 0, "dur": 10}, {"cat": "cpu_op", "ts": 15, "dur": 5}]
        )
        == 0.25
    )


@pytest.mark.slow
def test_a_step_is_timed_and_profiled(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    words = [
        str(ROOT / "config" / "quickstart.toml"),
        f"--dataset={data}",
        "--steps=12",
        "--repeats=1",
        "--waits=true",
    ]
    assert (
        train_speed.main(
            [*words, "--save=false", "--extra=--n_layer=1 --block_size=32 --dtype=float32"]
        )
        == 0
    )
    note, *table = capsys.readouterr().out.splitlines()
    header, row = ([cell.strip() for cell in table[i].split("|")[1:-1]] for i in (0, 2))
    row = dict(zip(header, row, strict=True))
    speed, ms = float(row["tokens/s"].replace(",", "")), float(row["ms/step"])
    assert speed * ms / 1000 == pytest.approx(16 * 32, rel=0.01) and row["MFU"] == "-"
    assert 0 < float(note.split()[3].rstrip("%")) < 100


@pytest.mark.slow
def test_a_recipe_is_compared_with_itself(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    extra = " ".join(f"--{name}={value}" for name, value in {**SMALL, "warmup_steps": 0}.items())
    words = [
        str(ROOT / "config" / "quickstart.toml"),
        f"--dataset={data}",
        f"--extra={extra}",
        "--seeds=2",
    ]
    assert ablate.main([*words, "--evals=4", "--save=false", "--at_once=2", "--without", SLOW]) == 0
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert table[3][0] == "slow"
    base, arm = (dict(zip(table[0], row, strict=True)) for row in table[2:])
    assert float(arm["final val loss"].split()[0]) > float(base["final val loss"].split()[0])
    assert (base["reached"], arm["reached"]) == ("1 of 2", "0 of 2") and arm[
        "seconds to target"
    ] == "-"
    assert float(arm["less the base's"].split()[0]) > 0
