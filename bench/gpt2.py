"""A network of GPT-2's kind with random weights: 124M parameters, or as few as one asks for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes seconds
    from model import GPT

VOCAB_SIZE = 50257


@dataclass
class Shape:
    """Its sizes, as options of a command. Small ones show that the command runs."""

    # --- network
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768

    @property
    def sizes(self) -> dict[str, int]:
        return {"n_layer": self.n_layer, "n_head": self.n_head, "n_embd": self.n_embd}

    @property
    def size_name(self) -> str:
        if self.sizes == Shape().sizes:
            return "124M"
        return f"{self.n_layer} layers x {self.n_embd}"


def random_gpt2(shape: Shape, vocab_size: int = VOCAB_SIZE) -> "GPT":
    """The network in evaluation mode, on the CPU."""
    import torch

    from model import GPT, GPT2, GPTConfig

    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=vocab_size, **shape.sizes, **GPT2)).eval()
