"""Forward and backward pass of a micro-batch: kernel by kernel, or as one CUDA graph.

A GPU is done with a small network's kernels before the host has asked for the next ones. A graph of
them all is asked for once (docs.pytorch.org, "CUDA semantics", whole-network capture). Inductor's
own graphs (mode="reduce-overhead") are not taken: with accumulated gradients they fail, or are
wrong in silence (pytorch issues 169545, 96693).
"""

import torch
from torch import Tensor, nn

from lathe.run.devices import Runtime
from lathe.run.process import random_state, set_random_state

MOST_DIFFERENT = 0.01  # norm of what captured gradients differ by, over their own


class Passes:
    """What a step does with each of its micro-batches, and with gradients after it.

    keeps_gradients: between steps they are zeros, not nothing. DDP, whose buckets they are parts
    of, would otherwise hold those accumulated beside its buckets.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: list[nn.Parameter],
        scaler: torch.amp.GradScaler,
        runtime: Runtime,
        keeps_gradients: bool = False,
    ):
        self.network = network
        self.parameters = parameters
        self.scaler = scaler
        self.runtime = runtime
        self.keeps_gradients = keeps_gradients

    def clear_gradients(self):
        """After a step: there are none, or zeros."""
        if self.keeps_gradients:
            torch._foreach_zero_([p.grad for p in self.parameters])
            return
        for p in self.parameters:
            p.grad = None

    def add_gradients(self, x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
        """Add the gradients of factor times the loss, summed over targets, to those of the
        parameters; returns that loss. x, y: (B, T)."""
        with self.runtime.autocast():
            part = self.network(x, y, reduction="sum") * factor
        self.scaler.scale(part).backward()
        return part.detach()


class CapturedPasses:
    """Passes as a graph, which adds to the same gradients at the same addresses in each step.

    Raises RuntimeError for what cannot be captured.
    """

    def __init__(self, passes: Passes, x: Tensor, y: Tensor):
        self.gradients = [torch.zeros_like(p) for p in passes.parameters]
        self.parameters = passes.parameters
        self.take_gradients()
        self.x = x.clone()
        self.y = y.clone()
        self.factor = torch.ones((), device=x.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(side):
            for _ in range(2):  # what is compiled or allocated at first is not to be captured
                passes.add_gradients(self.x, self.y, self.factor)
            torch.cuda.synchronize()
            # Threads that write a checkpoint or copy a batch may ask CUDA for memory meanwhile.
            self.graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.loss = passes.add_gradients(self.x, self.y, self.factor)
            finally:
                self.graph.capture_end()
        torch.cuda.current_stream().wait_stream(side)

    def take_gradients(self):
        """Let zeros be the gradients, at the addresses that the graph adds to."""
        self.clear_gradients()
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient

    def clear_gradients(self):
        torch._foreach_zero_(self.gradients)

    def add_gradients(self, x: Tensor, y: Tensor, factor: float) -> Tensor:
        """As those of Passes; the loss that is returned is the next call's, too."""
        self.x.copy_(x)
        self.y.copy_(y)
        self.factor.fill_(factor)
        self.graph.replay()
        return self.loss


def capture(passes: Passes, x: Tensor, y: Tensor) -> tuple[Passes | CapturedPasses, str]:
    """The passes captured, if that gives the same gradients; or those that were given, and why.

    To be called while there are no gradients. Random numbers stay as they were.
    """
    before = random_state(x.device)
    try:
        captured = CapturedPasses(passes, x, y)
        difference = difference_of_gradients(passes, captured, x, y)
        fault = ""
        if not difference <= MOST_DIFFERENT:  # nan is not
            fault = f"its gradients would differ by {difference:.2g}"
    except RuntimeError as error:
        fault = str(error).strip().splitlines()[0][:100]
    set_random_state(before, x.device)
    if fault:
        passes.clear_gradients()
        return passes, f"no CUDA graph: {fault}"
    return captured, ""


def difference_of_gradients(
    passes: Passes, captured: CapturedPasses, x: Tensor, y: Tensor
) -> float:
    """Norm of what they differ by, over their own, after two micro-batches of other ids than were
    captured. Those of `captured` are in place afterwards, as zeros."""
    x = x // 2
    y = y // 2  # -1, which is not scored, stays that
    factors = (0.75 / x.numel(), 0.25 / x.numel())
    state = random_state(x.device)
    captured.clear_gradients()
    for factor in factors:
        captured.add_gradients(x, y, factor)
    set_random_state(state, x.device)
    passes.clear_gradients()
    for factor in factors:
        passes.add_gradients(x, y, factor)
    plain = [p.grad for p in passes.parameters]
    apart = torch._foreach_sub(captured.gradients, plain)
    difference = nn.utils.get_total_norm(apart) / nn.utils.get_total_norm(plain)
    captured.take_gradients()
    return difference.item()
