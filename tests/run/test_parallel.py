"""What lathe/run/parallel.py promises: activations that are computed again are the same ones."""

import pytest
import torch

from lathe.run.parallel import checkpoint_activations
from model import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1)


@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forgotten_activations_change_no_loss_and_no_gradient(mode, dtype):
    def loss_and_gradients(mode):
        torch.manual_seed(1)
        model = GPT(SMALL)
        if mode != "none":
            checkpoint_activations(model.transformer.h, mode)
        x = torch.randint(61, (4, 16))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(x, x)
        loss.backward()
        return loss, [p.grad for p in model.parameters()]

    plain, again = loss_and_gradients("none"), loss_and_gradients(mode)
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))


def test_forgotten_activations_save_memory():
    def kept(mode):
        """Bytes that the backward pass of a forward pass holds on to."""
        torch.manual_seed(1)
        model, saved = GPT(SMALL), {}
        if mode != "none":
            checkpoint_activations(model.transformer.h, mode)
        x = torch.randint(61, (8, 16))

        def pack(t):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = model(x, x)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        assert loss.isfinite()
        return sum(size for place, size in saved.items() if place not in weights)

    assert kept("full") < kept("none") / 3 and kept("selective") < kept("none")
