"""What averaged weights promise: a mean, put back without a trace, and kept through a checkpoint."""

import torch
from torch import nn

from lathe.optim.average import TailAverage, pack, unpack


def model_with(value: float) -> nn.Linear:
    model = nn.Linear(3, 2)
    for p in model.parameters():
        nn.init.constant_(p, value)
    return model


def values(model: nn.Module) -> set[float]:
    return {x for p in model.parameters() for x in p.flatten().tolist()}


def averaged(*steps: float) -> tuple[TailAverage, nn.Linear]:
    model = model_with(steps[0])
    average = TailAverage(model)
    for value in steps:
        model.load_state_dict(model_with(value).state_dict())
        average.add(model)
    return average, model


def test_it_is_the_mean_of_what_was_added_since_the_reset():
    average, model = averaged(100.0, 200.0)
    average.reset()
    for value in (1.0, 2.0, 6.0):
        model.load_state_dict(model_with(value).state_dict())
        average.add(model)
    with average.in_place(model):
        assert values(model) == {3.0}
    assert values(model) == {6.0}, "the last weights are back, bit for bit"


def test_a_checkpoint_keeps_both_whichever_is_used():
    for is_better in (False, True):
        average, model = averaged(1.0, 5.0)
        packed = pack(average, dict(model.state_dict()), is_better)
        used = model_with(3.0 if is_better else 5.0)  # what the checkpoint's model file holds
        back = TailAverage(used)
        unpack(back, used, packed)
        assert values(used) == {5.0} and back.n == 2
        assert {x for w in back.weights.values() for x in w.flatten().tolist()} == {3.0}
        back.add(model_with(9.0))
        torch.testing.assert_close(back.weights["bias"], torch.full((2,), 5.0))
