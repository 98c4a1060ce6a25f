"""What an earlier version wrote is read, sampled from and resumed as on its first day."""

import json
import shutil
from pathlib import Path

import kept_run
import pinned
import pytest

pytestmark = pytest.mark.slow
EXPECTED = json.loads((kept_run.KEPT / "expected.json").read_text(encoding="utf-8"))
EXACT = EXPECTED["torch"] == pinned.TORCH and not pinned.why_not_exact()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(kept_run.KEPT, tmp_path / "kept")


def test_kept_datasets_are_whole(folder: Path):
    kept_run.verify(folder)


def test_a_kept_run_samples_the_same_ids(folder: Path):
    assert kept_run.sampled(folder) == EXPECTED["sampled"]


def test_a_kept_run_has_the_same_validation_loss(folder: Path):
    tolerance = 0.0 if EXACT else 1e-5
    expected = pytest.approx(EXPECTED["evaluated"], rel=tolerance, abs=0.0)
    assert kept_run.evaluated(folder) == expected


def test_a_kept_run_goes_on_with_the_same_losses(folder: Path):
    found = kept_run.resumed(folder)
    first = kept_run.STEPS + 1
    said = pinned.first_difference(EXPECTED["resumed"], found, begin=first, exact=EXACT)
    assert not said, said
