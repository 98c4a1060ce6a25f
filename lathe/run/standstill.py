"""A run that learns nothing is stopped: what a compiler got wrong does not show in the loss."""

from dataclasses import dataclass

import torch

WATCHED = 100  # steps after the start of the process
ZERO_GRADIENTS = 5  # in a row, each exactly zero
EQUAL_LOSSES = 20  # in a row, equal to the last bit
HIGHEST_RATE = 10.0  # with more, weights leave the numbers that can be computed with
SMALLEST_RATE = 1e-6  # below that, weights may move less than a loss in float32 shows


@dataclass
class Standstill:
    """Looks at the numbers of each update, which training reads anyway.

    Neither happens to a run that learns. A gradient is exactly zero only if the loss is, too, and
    batches differ, so their losses do; they are alike for as long as the weights are zero that
    zero_init made so, at a learning rate of 0 or nearly so: such steps say nothing.
    """

    compiled: bool
    n_seen: int = 0
    zero_gradients: int = 0  # in a row, up to now
    equal_losses: int = 0
    loss: float | None = None  # of the update before

    def look(self, step: int, lr: float, numbers: dict[str, float]):
        """Raises ValueError if training stands still. numbers: what train_step has measured."""
        self.n_seen += 1
        if self.n_seen > WATCHED or numbers["skipped"]:
            return
        loss = numbers["loss"]
        grad_norm = numbers["grad_norm"]
        learnable = loss > 0  # at 0 all is known
        self.zero_gradients = self.zero_gradients + 1 if learnable and grad_norm == 0 else 0
        as_before = learnable and loss == self.loss and lr >= SMALLEST_RATE
        self.equal_losses = self.equal_losses + 1 if as_before else 0
        self.loss = loss
        if self.zero_gradients == ZERO_GRADIENTS:
            steps = f"steps {step - ZERO_GRADIENTS + 1} to {step}"
            raise ValueError(
                f"training does nothing: all gradients are exactly zero in {steps}, "
                f"with a loss of {loss:.4f}; {self.likely_cause('takes part in the loss', lr)}"
            )
        if self.equal_losses == EQUAL_LOSSES:
            steps = f"steps {step - EQUAL_LOSSES} to {step}"
            raise ValueError(
                f"training does nothing: the loss is {loss:.7g} in each of {steps}, "
                f"with a gradient of {grad_norm:.4g}; "
                f"{self.likely_cause('reaches the optimizer', lr)}"
            )

    def likely_cause(self, missing: str, lr: float) -> str:
        if lr > HIGHEST_RATE:
            return f"the learning rate of {lr:.3g} is far too high: lower --learning_rate"
        if self.compiled:
            version = torch.__version__
            return f"likely torch.compile of torch {version} is wrong here: try --compile=false"
        return f"no weight that is trained {missing}: look at what was changed in the code"
