"""Training on pairs: windows, targets and gradients of what is scored alone."""

import random

import numpy as np
import pytest
import tiny_run
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paired import PAIRS, prepare

from lathe.data.batches import TrainBatches, count_val_windows, val_windows
from lathe.data.dataset import Stream, open_dataset
from model import GPT, IGNORE, GPTConfig

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


@pytest.mark.parametrize("damage", ["shorter", "other"])
def test_a_damaged_mask_is_found(tmp_path, damage):
    prepare(tmp_path, PAIRS)
    path = tmp_path / "data" / "train_000000.mask"
    path.write_bytes(path.read_bytes()[:-1] + b"\0" * (damage == "other"))
    with pytest.raises(ValueError, match=r"train_000000\.mask (is truncated or|was) changed"):
        open_dataset(tmp_path / "data", verify=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train_000000\.mask is missing"):
        open_dataset(tmp_path / "data")


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 20),
    st.data(),
)
def test_windows_score_each_target_once_and_cut_no_pair_that_fits(lengths, block_size, data):
    tokens, mask = [], []
    for n_prompt, n_completion in lengths:
        tokens += [0, *range(1, 1 + n_prompt + n_completion)]
        mask += [1] + [0] * n_prompt + [1] * n_completion
    tokens, mask = np.array([*tokens, 0], np.uint16), np.array([*mask, 1], np.uint8)
    at = sorted(data.draw(st.sets(st.integers(1, len(tokens) - 1), max_size=2)))
    stream = Stream(np.split(tokens, at), np.split(mask, at))
    stream.eot_id = 0
    spans = stream.spans(block_size)
    assert spans.n_longer == sum(1 + p + c > block_size for p, c in lengths)
    seen = np.zeros(len(tokens), int)
    for begin, end in zip(spans.begins, spans.ends, strict=True):
        assert 0 < end - begin <= block_size and mask[begin + 1 : end + 1].any()
        seen[begin + 1 : end + 1] += 1
    assert ((seen == 1) | (mask == 0) | (np.arange(len(tokens)) == 0)).all() and seen.max() == 1
    begins = np.flatnonzero(tokens == 0)
    for (p, c), begin in zip(lengths, begins, strict=False):
        inside = (spans.begins <= begin) & (begin + 1 + p + c <= spans.ends)
        assert inside.any() == (1 + p + c <= block_size)
    order = [list(val_windows(stream, block_size, 0, 2, rank, 2)) for rank in range(2)]
    targets = [y[y != IGNORE].tolist() for rank in order for _, y in rank]
    assert sorted(sum(targets, [])) == sorted(tokens[1:][mask[1:] == 1].tolist())
    assert count_val_windows(stream, block_size, 0) == len(spans)


def test_the_count_of_targets_is_what_the_ranks_fetch(tmp_path):
    random.seed(1)
    rows = [
        {"prompt": "p" * random.randint(1, 20), "completion": "c" * random.randint(1, 30)}
        for _ in range(40)
    ]
    dataset = prepare(tmp_path, rows)
    ranks = [TrainBatches(dataset, 24, 8, 2, 5, "cpu", rank, 2) for rank in range(2)]
    assert ranks[0].n_longer == sum(1 + len(r["prompt"]) + len(r["completion"]) > 24 for r in rows)
    seen = 0
    for step in range(6):
        fetched = sum(
            int((b.fetch(8 * step, micro)[1] != IGNORE).sum()) for b in ranks for micro in range(2)
        )
        assert fetched == ranks[0].count_targets(8 * step) == ranks[1].count_targets(8 * step) > 0
        seen += fetched
    assert seen > 0


def test_pairs_shorter_than_a_block_are_trained_on(tmp_path):
    dataset = prepare(tmp_path, PAIRS[:2])
    batches = TrainBatches(dataset, 500, 2, 2, 0, "cpu")
    x, y = batches.fetch(0, 0)
    assert (
        batches.count_targets(0)
        == 2 * sum(len(row["completion"]) + 1 for row in PAIRS[:2])
        == int((y != IGNORE).sum())
    )


def test_pairs_mix_with_text_of_which_all_is_scored(tmp_path):
    prepare(tmp_path, PAIRS, val_fraction=0.3)
    text = tiny_run.make_dataset(tmp_path / "text")
    mixture = open_dataset(f"{text}:0.5,{tmp_path / 'data'}:0.5")
    batches = TrainBatches(mixture, 32, 8, 8, 0, "cpu")
    rows = [row for step in range(8) for row in batches.fetch(8 * step, 0)[1].clone()]
    scored = [(row != IGNORE).float().mean().item() for row in rows]
    assert sum(share == 1 for share in scored) == 32 and all(
        0 < share < 1 for share in scored if share != 1
    )
    found = sum(int((y != IGNORE).sum()) for _, y in val_windows(mixture.val, 32, 0, 4))
    parts = [open_dataset(text).val.n_tokens, open_dataset(tmp_path / "data").val.n_tokens]
    assert parts[0] < found < sum(parts)


def test_gradients_with_masked_prompts_are_those_of_the_completions_by_hand(tmp_path):
    """Bar 5. By hand: each pair alone, the log-probabilities of its completion and end-of-text summed."""
    dataset = prepare(tmp_path, PAIRS)
    tokenizer, block_size = dataset.tokenizer(), 64
    config = dict(
        vocab_size=257, block_size=block_size, n_layer=2, n_head=2, n_embd=32, zero_init=False
    )
    model = GPT(GPTConfig(**config)).double()
    by_hand, n = 0.0, 0
    for row in PAIRS:
        prompt, completion = (
            tokenizer.encode(row["prompt"]),
            [*tokenizer.encode(row["completion"]), tokenizer.eot_id],
        )
        ids = torch.tensor([[tokenizer.eot_id, *prompt, *completion[:-1]]])
        logprobs = model(ids)[0].double().log_softmax(-1)[len(prompt) :]
        by_hand = by_hand - logprobs.gather(1, torch.tensor(completion).unsqueeze(1)).sum()
        n += len(completion)
    (by_hand / n).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.config.document_token = tokenizer.eot_id
    batches = TrainBatches(dataset, block_size, 2, 1, 0, "cpu")
    windows = len(dataset.train.spans(block_size))
    assert windows > 1
    epoch = TrainBatches(dataset, block_size, windows, 1, 0, "cpu")
    assert epoch.count_targets(0) == n and batches.count_targets(0) < n
    for micro in range(windows):
        (model(*epoch.fetch(0, micro), reduction="sum") / epoch.count_targets(0)).backward()
    for name, p in model.named_parameters():
        assert (p.grad - expected[name]).abs().max() <= 1e-6, name
