"""The recipes of CONTRIBUTING.md, each a diff, applied to a copy of the house and run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import SMALL, rows

from lathe import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.+?)\n.*?^```diff\n(.*?)^```", TEXT, re.S | re.M))


def apply_diff(diff: str, house: Path):
    """Change files: ` # file, where in it` stands over lines that stay, go (-) or come (+)."""
    for hunk in re.split(r"\n\n(?= # )", diff.strip("\n")):
        heading, *lines = hunk.splitlines()
        name = heading.removeprefix(" # ").partition(",")[0]
        before = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
        after = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
        path = house / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        assert before or not text, f"{name} is there, and the recipe does not say where in it"
        if before:
            assert text.count(before) == 1, (
                f"{name} does not have the lines that the recipe changes"
            )
            after = text.replace(before, after)
        path.write_text(after, encoding="utf-8")


@pytest.fixture
def house(tmp_path) -> Path:
    """A copy of what a recipe may change."""
    for name in ("lathe", "pages", "prepare", "config"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for path in [*ROOT.glob("*.py"), ROOT / "README.md", ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)
    return tmp_path


def run(house: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=house, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done


def train(house: Path, dataset: str, out: str, **changed: object) -> subprocess.CompletedProcess:
    settings = {**SMALL, "dataset": dataset, "out_dir": out, "max_steps": 10, **changed}
    return run(house, "train.py", *(f"--{name}={value}" for name, value in settings.items()))


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out)]


def a_setting(house: Path, dataset: str):
    assert "token embeddings are multiplied by this" in run(house, "train.py", "--help").stdout
    (house / "mine.toml").write_text("embedding_scale = 3.0\n")
    settings = {**SMALL, "dataset": dataset, "out_dir": "run", "max_steps": 2}
    run(house, "train.py", "mine.toml", *(f"--{name}={value}" for name, value in settings.items()))
    assert "\nembedding_scale = 3.0  # token" in (house / "run/settings.toml").read_text()
    state = json.loads((house / "run/checkpoints/step-0000002/state.json").read_text())
    assert state["model"]["embedding_scale"] == state["settings"]["embedding_scale"] == 3.0
    run(house, "sample.py", "--out_dir=run", "--device=cpu", "--max_new_tokens=3")


def a_metric(house: Path, dataset: str):
    train(house, dataset, "run")
    norms = [row["embedding_norm"] for row in rows(house / "run")]
    assert len(norms) == 10 and all(norm > 0 for norm in norms) and norms[0] != norms[-1]


def a_schedule(house: Path, dataset: str):
    train(house, dataset, "run", lr_schedule="sqrt", decay_fraction=0.5, min_lr_fraction=0.0)
    rates = [row["lr"] for row in rows(house / "run")]
    peak = max(rates)
    assert rates[5] == peak
    assert rates[-1] == pytest.approx(peak * (1 - 0.8**0.5))


def a_term_in_the_loss(house: Path, dataset: str):
    warned = train(house, dataset, "with", max_steps=2).stderr
    assert "the loss was changed" in warned
    shutil.copy(ROOT / "model.py", house)
    assert "the loss was changed" not in train(house, dataset, "without", max_steps=2).stderr
    with_term, without = losses(house / "with"), losses(house / "without")
    assert with_term[0] > without[0]
    assert with_term[1] != without[1]


def a_corpus(house: Path, dataset: str):
    run(house, "prepare/licenses.py")
    shown = run(house, "prepare/verify.py", "data/licenses").stdout
    assert "all checks passed" in shown and "Python" in shown


def a_task(house: Path, dataset: str):
    train(house, dataset, "run", max_steps=2)
    row = {"passage": "Cats sleep.", "question": "do cats sleep", "label": 1}
    (house / "boolq.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    words = ["--out_dir=run", "--device=cpu", "--tasks=boolq:boolq.jsonl"]
    scores = json.loads(run(house, "evaluate.py", *words).stdout)["tasks"]["boolq"]
    assert scores["items"] == 3 and scores["acc"] in (0.0, 1.0)


CHECKS = {
    "A setting": a_setting,
    "A metric": a_metric,
    "A schedule": a_schedule,
    "A term in the loss": a_term_in_the_loss,
    "A corpus": a_corpus,
    "A task": a_task,
}


def test_each_recipe_has_its_check():
    assert list(RECIPES) == list(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("title", CHECKS)
def test_a_recipe_works_as_written(title, house, dataset):
    apply_diff(RECIPES[title], house)
    CHECKS[title](house, dataset)


@pytest.mark.slow
@pytest.mark.parametrize("title", CHECKS)
def test_a_recipe_reads_as_the_house_does(title, house):
    apply_diff(RECIPES[title], house)
    for words in (["check"], ["format", "--check"]):
        run(house, "-m", "ruff", *words, ".")
