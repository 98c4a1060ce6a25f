"""Decoding side by side: neither caches nor company change what a sample says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import loud_model

from lathe.use.decoder import Token, pack, unpack
from lathe.use.generation import generate
from lathe.use.quantize import prepare_weights
from lathe.use.sampling import Sampling
from model import CHOICES, GPT, GPT2

T, V = 24, 61
GREEDY = Sampling(temperature=0)


def tiny_model(**changes) -> GPT:
    return loud_model(**dict(vocab_size=V, block_size=T, n_head=4) | changes)


def rows_of(steps, n_rows) -> list[list[int]]:
    rows = [[] for _ in range(n_rows)]
    for tokens in steps:
        for token in tokens:
            rows[token.row].append(token.id)
    return rows


def run(model, prompts, n_rows=None, **options):
    n_rows = n_rows or len(prompts) * options.get("num_samples", 1)
    return rows_of(generate(model, prompts, **options), n_rows)


ARCHITECTURES = [dict(position=p) for p in CHOICES["position"]]
ARCHITECTURES += [dict(n_kv_head=2), dict(GPT2), dict(ngram_rows=10**4)]
ARCHITECTURES += [dict(n_kv_head=1, norm_weight=True, tie_weights=True)]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_greedy_text_equals_that_of_the_uncached_network_past_its_context(architecture):
    """block_size + 50 tokens; when the context is full, its last half begins a new one."""
    model = tiny_model(**architecture)
    ids = [3, 1, 4]
    begin = 0
    with torch.inference_mode():
        for _ in range(T + 50):
            if len(ids) - begin > T:
                begin = len(ids) - T // 2
            ids.append(model(torch.tensor([ids[begin:]]))[0, -1].argmax().item())
    assert run(model, [[3, 1, 4]], max_new_tokens=T + 50, sampling=GREEDY) == [ids[3:]]
    assert len(set(ids)) > 3  # the model says more than one thing, so equality means something


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_row_among_others_of_any_length_equals_the_row_alone(architecture):
    model = tiny_model(**architecture)
    five = [7, 8, 9, 10, 11]
    prompts = [[5], five, list(range(T)), list(range(2 * T)), five, [1, 2]]
    how = dict(max_new_tokens=T + 9, sampling=GREEDY)
    alone = [run(model, [prompt], **how)[0] for prompt in prompts]
    for batch_size in (6, 4):
        assert run(model, prompts, batch_size=batch_size, **how) == alone


@settings(max_examples=25, derandomize=True)
@given(
    prompts=st.lists(
        st.lists(st.integers(0, V - 1), min_size=1, max_size=T + 5),
        min_size=1,
        max_size=5,
    ),
    num_samples=st.integers(1, 4),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 2**40),
)
def test_sample_i_depends_on_prompt_seed_and_i_alone(prompts, num_samples, batch_size, seed):
    model = tiny_model()
    s = Sampling(temperature=1.0, top_k=20, min_p=0.01, repetition_penalty=1.2, seed=seed)
    how = dict(max_new_tokens=12, sampling=s)
    together = run(model, prompts, num_samples=num_samples, batch_size=batch_size, **how)
    for p, prompt in enumerate(prompts):
        most = run(model, [prompt], num_samples=4, **how)
        assert together[p * num_samples : (p + 1) * num_samples] == most[:num_samples]


def test_samples_and_seeds_differ_from_each_other():
    model = tiny_model()
    rows = []
    for seed in (1, 2):
        s = Sampling(temperature=1.0, seed=seed)
        rows += run(model, [[1]], num_samples=8, max_new_tokens=10, sampling=s)
    assert len({tuple(row) for row in rows}) == 16


def test_a_row_that_ends_makes_room_for_the_next():
    model, prompts = tiny_model(), [[i] for i in range(9)]
    how = dict(max_new_tokens=15, sampling=GREEDY)
    free = run(model, prompts, **how)
    stop = free[0][4]
    stopped = run(model, prompts, stop_ids=(stop,), batch_size=2, **how)
    for whole, cut in zip(free, stopped, strict=True):
        assert cut == (whole[: whole.index(stop) + 1] if stop in whole else whole)


def test_a_row_that_the_caller_ends_says_no_more():
    model, ended, rows = tiny_model(), set(), [[], []]
    for tokens in generate(model, [[1], [2]], max_new_tokens=8, sampling=GREEDY, ended=ended):
        for token in tokens:
            rows[token.row].append(token.id)
        if len(rows[1]) == 3:
            ended.add(1)
    assert [len(row) for row in rows] == [8, 3]


def test_log_probabilities_are_the_models_own_before_any_filter():
    model, prompt = tiny_model(), [1, 2, 3]
    s = Sampling(temperature=0.3, top_k=2, frequency_penalty=5.0, logprobs=4)
    ids = list(prompt)
    for tokens in generate(model, [prompt], max_new_tokens=10, sampling=s):
        (token,) = tokens
        with torch.inference_mode():
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(expected[token.id].item(), abs=1e-5)
        assert [i for i, _ in token.top] == expected.topk(4).indices.tolist()
        likeliest = expected.topk(4).values.tolist()
        assert [p for _, p in token.top] == pytest.approx(likeliest, abs=1e-5)
        ids.append(token.id)


def test_a_drawn_token_comes_to_the_host_as_it_was():
    logits = torch.randn(2, V)
    ids = torch.tensor([3, V - 1])
    first, second = pack(ids, logits, 0).tolist()
    assert (unpack(7, first), unpack(8, second)) == (Token(7, 3), Token(8, V - 1))
    (largest,) = pack(torch.tensor([2**24 - 1]), logits[:1], 0).tolist()
    assert unpack(0, largest).id == 2**24 - 1
    logprobs = logits.log_softmax(-1)
    for n_top in (2, 10 * V):
        for row, numbers in enumerate(pack(ids, logits, n_top).tolist()):
            token, top = unpack(row, numbers), logprobs[row].topk(min(n_top, V))
            assert (token.row, token.id) == (row, ids[row])
            assert token.logprob == logprobs[row, ids[row]].item()
            assert token.top == list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def test_equal_contexts_are_read_once_and_those_of_equal_length_together():
    model, passes = tiny_model(), []
    features = model.features

    def counted(idx, cache):
        passes.append(idx.tolist())
        return features(idx, cache)

    model.features = counted
    run(model, [[1, 2], [3], [1, 2], [4, 5]], num_samples=2, max_new_tokens=1)
    assert passes == [[[1, 2], [4, 5]], [[3]]]


def test_weights_that_are_not_numbers_are_reported():
    model = tiny_model()
    model.transformer.h[0].mlp.c_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        run(model, [[1]])


def test_penalties_act_on_what_was_generated():
    model = tiny_model()
    (plain,) = run(model, [[1]], max_new_tokens=40, sampling=GREEDY)
    assert len(set(plain)) < 40
    never_twice = Sampling(temperature=0, presence_penalty=1e6)
    (ids,) = run(model, [[1]], max_new_tokens=40, sampling=never_twice)
    assert len(set(ids)) == 40


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("compiled", (False, True))
def test_replayed_cuda_graphs_say_what_the_cpu_says(architecture, compiled):
    prompts = [[5], [7, 8, 9, 10, 11], list(range(T)), [1, 2]]
    s = Sampling(temperature=0, presence_penalty=0.5, logprobs=2)
    expected = run(tiny_model(**architecture), prompts, max_new_tokens=T + 9, sampling=s)
    model = prepare_weights(tiny_model(**architecture).cuda(), "float32")
    got = run(model, prompts, max_new_tokens=T + 9, sampling=s, batch_size=3, compiled=compiled)
    assert got == expected
