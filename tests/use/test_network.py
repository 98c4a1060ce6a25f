"""What lathe/use/network.py promises: a network without memory for it, and each rank's part of what it begins with."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.optim.optimizer import cut_rows
from lathe.use.network import initial_rows, without_weights
from model import CHOICES, GPT, GPTConfig

SMALL = dict(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=36)
pytestmark = pytest.mark.usefixtures("one_thread")

configs = st.builds(
    GPTConfig,
    **{name: st.just(value) for name, value in SMALL.items()},
    **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
    norm_weight=st.booleans(),
    bias=st.booleans(),
    tie_weights=st.booleans(),
    zero_init=st.booleans(),
    ngram_rows=st.sampled_from([0, 50]),
)


@settings(max_examples=40)
@given(configs, st.integers(1, 40))
def test_the_ranks_draw_together_what_one_process_draws(config, n_ranks):
    torch.manual_seed(5)
    whole = dict(GPT(config).named_parameters())
    after = torch.rand(3)
    for rank in {0, n_ranks // 2, n_ranks - 1}:
        torch.manual_seed(5)
        rows = initial_rows(config, rank, n_ranks)
        assert torch.equal(torch.rand(3), after)
        assert rows.keys() == whole.keys()
        for name, p in whole.items():
            begin, end = cut_rows(len(p), rank, n_ranks)
            assert torch.equal(rows[name], p[begin:end]), name


@given(st.integers(1, 200), st.integers(1, 70))
def test_rows_are_cut_as_torch_cuts_them(n_rows, n_ranks):
    parts = torch.arange(n_rows).chunk(n_ranks)
    for rank in range(n_ranks):
        begin, end = cut_rows(n_rows, rank, n_ranks)
        expected = parts[rank].tolist() if rank < len(parts) else []
        assert list(range(begin, end)) == expected


def test_a_network_without_weights_takes_no_random_numbers():
    torch.manual_seed(5)
    model = without_weights(GPTConfig(**SMALL))
    assert all(p.is_meta for p in model.parameters())
    assert not any(table.is_meta for table in model.buffers())
    assert torch.initial_seed() == 5
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
