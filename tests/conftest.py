"""What several test files ask for: pytest.mark.usefixtures("one_thread", "seeded"), and the fixture `dataset`."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores; their threads would only wait

import pytest
import torch
from tiny_run import make_dataset

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # behind nohup; what the tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
