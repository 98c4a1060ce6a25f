"""The plan of the house: which file may import which, and how long the two that are read first may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up. A file may import project files from lower floors; on floor 3 train.py stands above the others.
FLOORS = [
    {"model", "lora", "optimizer", "tokenizer", "runtime", "metrics", "config"},
    {"data", "checkpoint", "quantize"},
    {"huggingface"},
    {"sample", "prepare"},
    {"tasks"},
    {"evaluate", "visualize"},
    {"plan"},
    {"train"},
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
SCRIPTS = [p for p in ROOT.glob("*.py") if p.stem in FLOOR]


def imports(path: Path) -> set[str]:
    """Project files that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found & set(FLOOR)


def test_every_file_at_the_top_has_a_floor():
    assert {p.stem for p in ROOT.glob("*.py")} <= set(FLOOR)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_imports_run_downwards(path):
    above = {name for name in imports(path) if FLOOR[name] >= FLOOR[path.stem]} - {"config"}
    assert not above, f"{path.name} imports {above}, which do not stand below it"
    if FLOOR[path.stem] == 0:
        assert not imports(path), f"{path.name} is on the ground floor, where no file imports another"


def test_prepare_writes_through_data_and_tokenizer_alone():
    for path in (ROOT / "prepare").glob("*.py"):
        assert imports(path) <= {"config", "data", "tokenizer", "prepare"}, path.name


@pytest.mark.parametrize("name, most", [("model", 400), ("train", 450)])
def test_the_two_files_read_first_stay_short(name, most):
    assert len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= most


def test_nothing_runs_stored_code():
    """No pickle, eval or exec of the project's own; torch.load only with weights_only."""
    for path in [*ROOT.glob("*.py"), *(ROOT / "prepare").glob("*.py"), *(ROOT / "config").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert "pickle" not in names, path.name
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec"), f"{path.name}:{node.lineno}"
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), f"{path.name}:{node.lineno}"


def test_importing_a_script_only_defines(tmp_path):
    """No file is written, nothing is printed, no device or process group is touched."""
    names = ", ".join(sorted(p.stem for p in SCRIPTS))
    code = f"import {names}\nimport torch\nassert not torch.distributed.is_initialized()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done.stderr.decode()[-2000:]
    assert not list(tmp_path.iterdir())
