"""What lathe/run/parallel.py promises: activations that are computed again are the same ones."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lathe.run import parallel
from lathe.run.devices import Runtime
from lathe.run.parallel import checkpoint_activations, parallelize
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


# -----------------------------------------------------------------------------
# Weights that travel as bfloat16, as on GPUs


def train_a_little(model: GPT, network: nn.Module, share: slice) -> list[float]:
    """Losses of a few steps on a share of one batch."""
    torch.manual_seed(2)
    x = torch.randint(61, (4, 16))[share]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(x, x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def small_model() -> GPT:
    torch.manual_seed(1)
    shape = dict(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=32)
    return GPT(GPTConfig(**shape, zero_init=False))


def check_rank(rank: int, meeting_place: str, alone: list[float]):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting_place}", rank=rank, world_size=2)
    parallel.wire_dtype = lambda run: run.dtype
    seen = []
    model = small_model()
    runtime = Runtime(torch.device("cpu"), torch.bfloat16, rank, 2)
    network = parallelize(model.train(), model.transformer.h, "fsdp", False, runtime)
    attention = model.transformer.h[1].attn
    attention.register_forward_hook(lambda module, *_: seen.append(module.c_attn.weight.dtype))
    losses = torch.tensor(train_a_little(model, network, slice(2 * rank, 2 * rank + 2)))
    dist.all_reduce(losses)
    torch.testing.assert_close(losses / 2, torch.tensor(alone), rtol=0, atol=0.02)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    whole = model.transformer.h[0].mlp.c_fc.weight.full_tensor()
    assert not torch.equal(whole, whole.bfloat16().float())  # the shards kept all digits
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_that_send_bfloat16_train_as_one_process_does(tmp_path):
    model = small_model()
    alone = train_a_little(model.train(), model, slice(4))
    assert alone[-1] < alone[0] - 1
    torch.multiprocessing.spawn(check_rank, (str(tmp_path / "meeting"), alone), nprocs=2)


@pytest.mark.parametrize(
    "kind, dtype, expected",
    [
        ("cuda", torch.bfloat16, torch.bfloat16),
        ("cuda", torch.float16, None),  # in which gradients of many ranks might overflow
        ("cuda", torch.float32, None),
        ("cpu", torch.bfloat16, None),
    ],
)
def test_only_a_gpu_in_bfloat16_sends_16_bits(kind, dtype, expected):
    assert parallel.wire_dtype(Runtime(torch.device(kind), dtype, 0, 2)) is expected
