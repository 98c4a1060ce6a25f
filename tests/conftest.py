"""What several test files ask for: pytest.mark.usefixtures("one_thread", "seeded"), and the fixture `dataset`."""

import atexit
import os
import shutil
import signal
import sys
import tempfile

# Only what a process needs to run reaches the tests and what they start, not what a user has set for
# programs and libraries. The rest is removed here, before any library has read it, not in a fixture;
# tests/environments.py runs the tests under what it may be.
KEPT = ["PATH", "HOME", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]
KEPT += ["LATHE_CI", "LATHE_EXHAUSTIVE", "CUDA_VISIBLE_DEVICES", "LATHE_SCREENSHOTS"]
KEPT += ["SYSTEMROOT", "COMSPEC", "PATHEXT", "USERPROFILE", "TEMP", "TMP"]  # Windows
KEPT_FAMILIES = ("PYTEST_", "COV_", "COVERAGE_", "OPENBLAS_")  # the last: what a processor needs
for name in list(os.environ):
    if name not in KEPT and not name.startswith(KEPT_FAMILIES):
        del os.environ[name]
if not os.path.isdir(os.path.expanduser("~")):  # where libraries keep what they have fetched
    os.environ["HOME"] = tempfile.mkdtemp(prefix="lathe-tests-")
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
sys.warnoptions.clear()  # PYTHONWARNINGS, which multiprocessing hands on
os.environ["OMP_NUM_THREADS"] = "1"  # test processes share the cores; their threads would only wait

import hypothesis
import pytest
import torch
from skips import in_ci, unexpected
from tiny_run import make_dataset

# Children inherit what is ignored, and not what is handled.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a background job
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # after nohup, which the tests still outlive
    signal.signal(signal.SIGHUP, lambda number, frame: None)


# No clock: a busy machine is slow, not wrong.
hypothesis.settings.register_profile("lathe", deadline=None)
hypothesis.settings.load_profile("lathe")


@pytest.fixture(scope="module")
def one_thread():
    """Sums come out the same, bit for bit, only for the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seeded():
    torch.manual_seed(1337)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> str:
    """A folder of bytes, as tiny_run.py makes it."""
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]):
    """Exhaustive tests run on request, and in the workflow that has no quarter of an hour."""
    if os.environ.get("LATHE_EXHAUSTIVE") == "1":
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


# -----------------------------------------------------------------------------
# Skips: see skips.py

SKIPS: list[tuple[str, str]] = []  # (test, reason), as far as they are known


def pytest_runtest_logreport(report: pytest.TestReport):
    if report.skipped and isinstance(report.longrepr, tuple):
        SKIPS.append((report.nodeid, str(report.longrepr[2])))


def pytest_sessionfinish(session: pytest.Session):
    is_worker = hasattr(session.config, "workerinput")
    if in_ci() and not is_worker and unexpected(SKIPS) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter):
    lines = unexpected(SKIPS)
    if in_ci() and lines:
        terminalreporter.section("skipped, and not expected here (tests/skips.py)")
        for line in lines:
            terminalreporter.line(line)
