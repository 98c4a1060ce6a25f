"""Tiny runs of all kinds compute what golden_losses.py has written down, to the last digit."""

import json
import warnings
from pathlib import Path

import golden_losses
import pinned
import pytest


@pytest.mark.slow
def test_losses_are_the_golden_ones(tmp_path: Path):
    path = golden_losses.path_of(pinned.TORCH)
    if not path.exists():
        command = "python tests/golden_losses.py --write"
        pytest.skip(f"no golden losses for torch {pinned.TORCH}: {command} writes them")
    reason = pinned.why_not_exact()
    if reason:
        warnings.warn(f"{reason}: losses are compared to {pinned.LOOSE['loss']:.1%}", stacklevel=1)
    expected = json.loads(path.read_text(encoding="utf-8"))
    assert set(expected) == set(golden_losses.RUNS)
    found = golden_losses.measure(tmp_path)
    lines = golden_losses.differences(expected, found, exact=not reason)
    assert not lines, "\n" + "\n".join(lines)


def test_the_first_difference_is_told_with_both_numbers():
    expected = {"loss": [3.0, 2.0, 1.0], "grad_norm": [1.0, 1.0, 1.0]}
    found = {"loss": [3.0, 2.0, 1.25], "grad_norm": [1.0, 1.0000001, 1.0]}
    said = pinned.first_difference(expected, found)
    assert said == "step 2: grad_norm is 1.0000001, it was 1.0"
    said = pinned.first_difference(expected, found, begin=21, exact=False)
    assert said == "step 23: loss is 1.25, it was 1.0"
    assert pinned.first_difference(expected, expected) == ""
