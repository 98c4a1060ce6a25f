"""The table by n-grams: its rows, what it may look at, and what of it is learned."""

import itertools
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import make_dataset
from tiny_run import settings as settings_of_run

import train
from lathe import cli
from lathe.ngrams import NGrams
from lathe.optim.adagrad import Adagrad
from lathe.use.caches import last_ids
from lathe.use.network import model_config
from model import GPT, GPTConfig, KVCache

V = 7
SMALL = dict(vocab_size=V, block_size=24, n_layer=1, n_head=2, n_embd=16, ngram_rows=500)


def table(**changed) -> NGrams:
    c = GPTConfig(**{**SMALL, **changed})
    return NGrams(c.vocab_size, c.ngram_order, c.ngram_rows, c.n_embd, c.ngram_dropout)


def rows_of(ngrams: NGrams, idx: torch.Tensor) -> torch.Tensor:
    """(B, T, orders), of ids (B, T) that begin a document."""
    return ngrams.find_rows(ngrams.with_earlier(idx, None), torch.arange(idx.shape[1]))


def loud(**changed) -> GPT:
    """A network whose table, too, says something."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SMALL, "zero_init": False, **changed})).eval()
    torch.nn.init.normal_(model.transformer.ngrams.weight)
    return model


def test_each_ngram_has_a_row_of_its_own_where_there_are_rows_for_all():
    # 8 ids with "none": 64 pairs and 512 triples in 512 rows, 4,096 of four in no more than these
    idx = torch.tensor(list(itertools.product(range(V), repeat=4)))
    rows = rows_of(table(ngram_rows=512, ngram_order=4), idx)
    assert len(rows[:, 3, 0].unique()) == V**2
    assert len(rows[:, 3, 1].unique()) == V**3
    shared = rows[:, 3, 2].bincount(minlength=3 * 512)[2 * 512 :]
    assert len(shared) == 512 and shared.max() < 25  # 2,401 of four, 4.7 to a row
    # Those of different orders never share
    for order in range(3):
        assert (rows[:, :, order] // 512 == order).all()


@given(
    vocab_size=st.sampled_from((2, 60, 66, 50_257)),
    rows=st.sampled_from((30, 32, 1000, 16_384)),
    order=st.integers(2, 6),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_token_of_an_ngram_changes_its_row_and_no_other_does(vocab_size, rows, order, seed):
    torch.manual_seed(seed)
    ngrams = table(vocab_size=vocab_size, ngram_rows=rows, ngram_order=order)
    idx = torch.randint(vocab_size, (1, 12))
    found = rows_of(ngrams, idx)
    changed_ones = []
    for i in range(12):
        changed = idx.clone()
        changed[0, i] = (idx[0, i] + 1 + seed % max(1, vocab_size - 1)) % vocab_size
        differs = (rows_of(ngrams, changed) != found)[0]  # (12, orders)
        changed_ones.append(differs[i:, :].any().item() or (changed == idx).all().item())
        assert not differs[:i].any()
        for n in range(2, order + 1):
            assert not differs[i + n :, n - 2].any()
    assert sum(changed_ones) >= 11  # two may have one hash


def test_what_a_position_gets_depends_on_no_later_token_and_no_other_document():
    model = loud(document_token=0)
    ids = torch.tensor([[0, 3, 4, 0, 3, 4, 5, 6, 1, 2]])
    with torch.no_grad():
        both = model(ids)
        again = model(ids[:, 3:])  # the second document alone
        torch.testing.assert_close(both[:, 3:], again, rtol=0, atol=1e-5)
        torch.testing.assert_close(both[:, :6], model(ids[:, :6]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("cuts", [(1,) * 12, (5, 7), (1, 1, 10), (11, 1)])
def test_pieces_through_a_cache_get_what_the_whole_does(order, cuts):
    model = loud(ngram_order=order)
    ids = torch.randint(V, (3, 12))
    cache = KVCache(model.config, 3, 12)
    with torch.no_grad():
        whole = model(ids)
        pieces = [model.logits(model.features(part, cache)) for part in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-5)


def test_what_a_cache_remembers_of_texts_shorter_than_it():
    assert last_ids([], 4) == [0, 0, 0, 0]
    assert last_ids([1, 2], 4) == [0, 0, 1, 2]
    assert last_ids((1, 2, 3, 4, 5), 4) == [2, 3, 4, 5]


def test_an_untrained_table_changes_nothing():
    torch.manual_seed(0)
    plain = GPT(GPTConfig(**SMALL | dict(ngram_rows=0, zero_init=False)))
    model = GPT(GPTConfig(**SMALL | dict(zero_init=False)))
    model.load_state_dict(plain.state_dict(), strict=False)
    ids = torch.randint(V, (2, 24))
    assert torch.equal(model(ids), plain(ids))


def test_sparse_and_dense_gradients_train_alike():
    ids = torch.randint(V, (4, 25))
    weights = []
    for sparse in (True, False):
        model = loud(ngram_rows=50).train()
        ngrams = model.transformer.ngrams
        ngrams.sparse = sparse
        optimizer = Adagrad([dict(params=[ngrams.weight])], lr=0.1)
        for step in range(4):
            for part in ids.roll(step, dims=1).split(2):  # accumulated
                model(part[:, :-1], part[:, 1:], reduction="sum").backward()
            assert ngrams.weight.grad.is_sparse == sparse
            optimizer.step(torch.tensor(step == 2))  # one is skipped
            optimizer.zero_grad()
        weights.append(ngrams.weight.detach().clone())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_a_row_that_is_not_used_stays_as_it_is():
    model = loud(ngram_rows=50)
    ngrams = model.transformer.ngrams
    before = ngrams.weight.detach().clone()
    ids = torch.tensor([[1, 2, 3, 1, 2, 3]])
    used = rows_of(ngrams, ids).unique()
    optimizer = Adagrad([dict(params=[ngrams.weight])], lr=0.1)
    model(ids, ids.roll(-1, dims=1)).backward()
    optimizer.step()
    moved = (ngrams.weight != before).any(dim=1).nonzero().flatten()
    assert torch.equal(moved, used)
    # A row's first step: its gradient at mean square 1, times the rate
    step = (ngrams.weight.detach() - before)[used]
    torch.testing.assert_close(step.square().mean(dim=1).sqrt(), torch.full((len(used),), 0.1))


def test_rows_are_dropped_in_training_alone_and_others_make_up_for_them():
    model = loud(ngram_dropout=0.5, ngram_order=2)
    ngrams = model.transformer.ngrams
    ids = torch.randint(V, (8, 24))
    positions = torch.arange(24)
    plain = ngrams.eval()(ids, positions, None).to_input
    torch.manual_seed(0)
    dropped = ngrams.train()(ids, positions, None).to_input
    ratio = (dropped / plain).unique()
    assert len(ratio.round(decimals=3).unique()) == 2  # 0 or twice
    assert ratio.min() == 0 and ratio.max().item() == pytest.approx(2, rel=1e-3)


# -----------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    "setting",
    ["ngram_order=1", "ngram_rows=-1", "ngram_dropout=1", "ngram_dropout=nan"]
    + ["ngram_learning_rate=-1", "ngram_learning_rate=nan", "ngram_order=17", "ngram_rows=1.5"],
)
def test_a_value_that_cannot_be_is_named_in_one_line(setting, tmp_path, capsys):
    words = [f"--dataset={make_dataset(tmp_path / 'data')}", f"--out_dir={tmp_path / 'run'}"]
    with pytest.raises((SystemExit, ValueError)) as end:
        train.main([*words, f"--{setting}"])
    said = capsys.readouterr().err if end.type is SystemExit else str(end.value)
    assert setting.partition("=")[0] in said and said.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_a_table_that_no_memory_holds_is_refused_before_it_is_allocated(tmp_path):
    dataset = make_dataset(tmp_path / "data")
    asked = settings_of_run(dataset, tmp_path / "run", ngram_rows=2_000_000_000)
    with pytest.raises(ValueError, match="a step needs about .*ngram_rows .2,000,000,000."):
        train.train(asked)


def test_a_table_by_pairs_of_an_earlier_version_is_refused_and_its_absence_is_not(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text("bigram_rows = 0\nmax_steps = 3\n")
    assert set(cli.read_preset(str(path), {"max_steps": int, "ngram_rows": int})) == {"max_steps"}
    path.write_text("bigram_rows = 300\n")
    with pytest.raises(ValueError, match="bigram_rows is 300.*leave it out.*ngram_rows"):
        cli.read_preset(str(path), {"max_steps": int, "ngram_rows": int})
    model = asdict(GPTConfig(**SMALL | dict(ngram_rows=0)))
    assert model_config({"model": model | {"bigram_rows": 0}}, path) == GPTConfig(**model)
    with pytest.raises(ValueError, match="has bigram_rows=300.*train again with ngram_rows"):
        model_config({"model": model | {"bigram_rows": 300}}, path)
