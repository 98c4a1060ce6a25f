"""What the commands that measure promise about their arithmetic; the figures themselves are bench/RESULTS.md's."""

import pytest
from tiny_run import ROOT, SMALL, make_dataset

from bench import ablate, results


def test_the_way_to_a_target_is_read_between_evaluations():
    curve = [(10, 3.0, 1.0), (20, 2.0, 2.0), (30, 2.5, 3.0), (40, 1.0, 4.0)]
    assert ablate.reached(curve, 2.5) == (15, 1.5)
    assert ablate.reached(curve, 3.5) == (10, 1.0) and ablate.reached(curve, 2.0) == (20, 2.0)
    assert ablate.reached(curve, 1.5) == pytest.approx((30 + 10 * 2 / 3, 3 + 2 / 3))
    assert ablate.reached(curve, 0.9) is None


def test_a_mean_comes_with_its_standard_error():
    assert ablate.mean_and_error([1.0, 2.0, 3.0], 2) == "2.00 +- 0.58"
    assert (ablate.mean_and_error([1.0], 1), ablate.mean_and_error([], 1)) == ("1.0", "-")


def test_figures_told_one_by_one_become_one_entry(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    results.tell("speed", "3 MB/s")
    results.record_told("Data", "A note.")
    entry = (tmp_path / "RESULTS.md").read_text()
    assert "## Data" in entry and "| speed | 3 MB/s |" in entry and "commit" in entry and entry.endswith("A note.\n")
    assert "3 MB/s" in capsys.readouterr().err and not results.TOLD


@pytest.mark.slow
def test_a_recipe_is_compared_with_itself(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    extra = " ".join(f"--{name}={value}" for name, value in {**SMALL, "warmup_steps": 0}.items())
    words = [str(ROOT / "config" / "quickstart.toml"), f"--dataset={data}", f"--extra={extra}", "--seeds=2"]
    assert ablate.main([*words, "--evals=4", "--save=false", "--without", "learning_rate=0.00001,optimizer=adamw"]) == 0
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    base, arm = (dict(zip(table[0], row, strict=True)) for row in table[2:])
    assert float(arm["final val loss"].split()[0]) > float(base["final val loss"].split()[0])
    assert (base["reached"], arm["reached"]) == ("1 of 2", "0 of 2") and arm["seconds to target"] == "-"
    assert float(arm["less the base's"].split()[0]) > 0
