"""Weights laid out for decoding compute the same, within their precision."""

import pytest
import torch
from tiny_run import loud_model

from lathe.use.generation import generate
from lathe.use.quantize import choose_weights, prepare_weights
from lathe.use.sampling import Sampling
from model import GPT

T, V = 24, 61


def tiny_model(**changes) -> GPT:
    return loud_model(**dict(vocab_size=V, block_size=T, n_head=4) | changes)


@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize(
    "dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.05), ("float16", 0.01), ("int8", 0.1)]
)
def test_prepared_weights_compute_the_same_within_their_precision(dtype, tolerance, tied):
    model, idx = tiny_model(tie_weights=tied, bias=True, vocab_size=1030), torch.randint(V, (3, T))
    try:
        choose_weights(dtype, torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    with torch.inference_mode():
        expected = model(idx)
        prepared = prepare_weights(model, dtype)
        for rows in (idx, idx[:1, :1]):
            error = prepared(rows) - expected[: len(rows), : rows.shape[1]]
            assert error.abs().max() / expected.abs().max() < tolerance


def test_prepared_weights_say_the_same_text():
    texts = []
    for model in (tiny_model(), prepare_weights(tiny_model(), "float32")):
        steps = generate(model, [[1, 2]], max_new_tokens=30, sampling=Sampling(temperature=0))
        texts.append([token.id for tokens in steps for token in tokens])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_int8_is_refused_where_bfloat16_is_faster(kind):
    with pytest.raises(ValueError, match=f"int8, which is for CPUs: on {kind} .* --dtype=auto"):
        choose_weights("int8", torch.device(kind))
