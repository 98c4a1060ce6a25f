"""What several test files ask for: pytest.mark.usefixtures("one_thread", "seeded")."""

import pytest
import torch


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
