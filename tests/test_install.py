"""What installing promises: it says something at once, and picks the build of torch that serves here."""

import http.server
import importlib.metadata
import importlib.util
import platform
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiny_run import ROOT, command, finished

SCRIPT = ROOT / "scripts" / "install.py"


def load(path: Path):
    """A script that is no module of the house, as one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = load(SCRIPT)


@pytest.fixture
def index():
    """An index of wheels on this machine: its address, and the page that it shows."""
    page = {"text": ""}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page["text"].encode())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", page
    server.shutdown()
    server.server_close()


def wheel(version: str, machine: str = platform.machine(), python: str = "") -> str:
    tag = python or f"cp{sys.version_info[0]}{sys.version_info[1]}"
    name = f"torch-{version}%2Bcpu-{tag}-{tag}-manylinux_2_28_{machine}.whl"
    return f'<a href="/whl/cpu/{name}#sha256=0">{name}</a>\n'


@pytest.mark.parametrize(
    ("wheels", "is_there"),
    [
        ([wheel("2.13.0")], True),
        ([wheel("2.12.0"), wheel("2.13.0")], True),
        ([wheel("2.12.0"), wheel("2.13.0.1")], False),
        ([wheel("2.13.0", machine="riscv128")], False),
        ([wheel("2.13.0", python="cp27")], False),
        ([], False),
    ],
)
def test_the_build_for_cpus_is_taken_where_its_index_has_it(wheels, is_there, index, monkeypatch):
    address, page = index
    page["text"] = "".join(wheels)
    monkeypatch.setattr(install, "CPU_INDEX", address)
    assert install.Probe("torch==2.13.0").is_there() == is_there


def test_an_index_that_does_not_answer_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(install, "SECONDS_TO_ANSWER", 0.2)
    with socket.socket() as listens_only:
        listens_only.bind(("127.0.0.1", 0))
        listens_only.listen()
        port = listens_only.getsockname()[1]
        monkeypatch.setattr(install, "CPU_INDEX", f"http://127.0.0.1:{port}")
        assert not install.Probe("torch==2.13.0").is_there()
    monkeypatch.setattr(install, "CPU_INDEX", "http://no.such.host.invalid")
    assert not install.Probe("torch==2.13.0").is_there()


def test_the_pin_is_that_of_requirements():
    files = [str(ROOT / "requirements.txt"), str(ROOT / "requirements-dev.txt")]
    assert install.torch_pin(files) in (ROOT / "requirements.txt").read_text().splitlines()


def test_a_terminal_is_told_at_once_and_what_is_there_is_not_fetched_again(tmp_path):
    """With the environment that runs this test, which has it all."""
    version = importlib.metadata.version("torch").partition("+")[0]
    needs = tmp_path / "needs.txt"
    needs.write_text(f"# what this needs\ntorch=={version}  # pinned\nnumpy>=2.0\n")
    process = command(SCRIPT, sys.prefix, needs, env={"PATH": "/usr/bin:/bin"})
    assert process.stdout.readline().startswith(f"install: what {needs} need, for Python")
    code, out, err = finished(process)
    assert code == 0 and f"torch=={version} is there" in out and "installed in " in out, err


def test_uv_is_tried_first_and_pip_where_it_fails(tmp_path, capfd):
    """A uv that fails, as one does that does not know the index which pip is configured for."""
    (tmp_path / "uv").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "uv").chmod(0o755)
    version = importlib.metadata.version("numpy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        install.Installer(sys.executable).run(f"numpy=={version}")
    said = capfd.readouterr().out
    assert said.index("uv pip install") < said.index("uv could not, pip tries")
    assert "install: pip install numpy" in said


def test_pip_install_e_puts_the_house_on_the_path(tmp_path):
    backend = load(ROOT / "scripts" / "build_backend.py")
    wheel_name = backend.build_editable(str(tmp_path))
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", tmp_path / wheel_name, site], check=True
    )
    assert done.returncode == 0
    assert (site / "lathe.pth").read_text() == f"{ROOT}\n"
    (lathe,) = importlib.metadata.distributions(path=[str(site)])
    assert lathe.name == "lathe" and any(r.startswith("torch==") for r in lathe.requires)
    assert {str(file) for file in lathe.files} >= {"lathe.pth", "lathe-0.dist-info/RECORD"}
    with pytest.raises(SystemExit, match="nothing to install but this: pip install -e ."):
        backend.get_requires_for_build_wheel()
