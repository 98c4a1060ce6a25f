"""The plan of the house: which room may import which, and what importing a file does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lathe import ROOT

# From the ground up. A file may import from lower floors, and from its own floor as long as no circle comes about.
FLOORS = [
    {"lathe"},  # settings, cli, aliases
    {"lathe.text", "model"},
    {"lathe.data", "lathe.optim", "lathe.run"},
    {"lathe.corpus", "lathe.use"},
    {"pages"},
    {"train", "sample", "evaluate", "visualize", "huggingface", "prepare"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
COMMANDS = ("train", "sample", "evaluate", "visualize", "huggingface")
FOLDERS = ("lathe", "pages", "prepare")


def modules() -> dict[str, Path]:
    """{dotted name: file} of the project's own files, tests and bench left out."""
    files = [*ROOT.glob("*.py"), *(f for folder in FOLDERS for f in (ROOT / folder).rglob("*.py"))]
    names = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


MODULES = modules()
FOR_OTHERS = {"lathe.use.hf.modeling_ngrams"}  # which is copied into exports, and not imported here


def room(module: str) -> str:
    """The longest name of a room that the module lies in."""
    while module not in FLOOR:
        module, dot, _ = module.rpartition(".")
        assert dot, "a file outside of every room"
    return module


def imports(module: str) -> set[str]:
    """Project modules that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            of_package = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= of_package or {node.module}
    return found & set(MODULES)


def test_every_file_lies_in_a_room():
    for module in MODULES:
        room(module)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downwards(module):
    mine = FLOOR[room(module)]
    above = {name for name in imports(module) if FLOOR[room(name)] > mine}
    assert not above, f"{module} imports {above}, which stand above it"


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a circle, [] if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(edges[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in edges if (found := visit(name, []))), [])


def test_no_files_import_each_other():
    assert not circle({module: imports(module) - {module} for module in MODULES})


def test_no_rooms_import_each_other():
    edges: dict[str, set[str]] = {name: set() for name in FLOOR}
    for module in MODULES:
        edges[room(module)] |= {room(name) for name in imports(module)} - {room(module)}
    assert not circle(edges)


def test_the_network_imports_torch_alone():
    """But for the table by n-grams, where that is asked for."""
    tree = ast.parse((ROOT / "model.py").read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    outside = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name.split(".")[0] for name in outside} == {"torch"}


def test_nothing_runs_stored_code():
    """No pickle, eval or exec of the project's own; torch.load only with weights_only."""
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert "pickle" not in names, name
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec"), f"{name}:{node.lineno}"
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), f"{name}:{node.lineno}"


def test_only_scripts_in_folders_touch_the_search_path():
    for name, path in MODULES.items():
        if room(name) != "prepare":
            assert "sys.path" not in path.read_text(encoding="utf-8"), name


def test_importing_a_file_only_defines(tmp_path):
    """No file is written, nothing is printed, no device or process group is touched."""
    names = ", ".join(sorted(set(MODULES) - FOR_OTHERS))
    code = f"import {names}\nimport torch\nassert not torch.distributed.is_initialized()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done.stderr.decode()[
        -2000:
    ]
    assert not list(tmp_path.iterdir())


def test_code_for_other_programs_needs_nothing_of_the_project():
    for name in FOR_OTHERS:
        assert not imports(name)
        assert not [other for other in MODULES if name in imports(other)]
