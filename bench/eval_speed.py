"""Measure multiple choice: items of HellaSwag's shape per second, in batches against one by one.

    python bench/eval_speed.py                GPT-2 124M with random weights, and make run's size
    python bench/eval_speed.py --items=1000   on a GPU

Items are random ids with HellaSwag's lengths: a context of 20 to 100 tokens, four endings of 8 to
40. One by one is a forward pass for every choice; item by item, one for the four choices of an
item, padded, as build-nanogpt does it.
"""

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.gpt2 import Shape, random_gpt2
from bench.results import record
from bench.turns import in_turn
from lathe import cli

if TYPE_CHECKING:  # main() imports what takes seconds
    from torch import Tensor

    from model import GPT

Network = Literal["gpt2", "small"]
WAYS = ("one by one", "item by item", "in batches")


@dataclass
class Options:
    """What to score."""

    only: list[Network] = field(default_factory=list)  # gpt2: 124M; small: make run's; empty = both
    items: int = 64  # how many are scored in batches; the slower ways get a quarter of them
    rounds: int = 3  # of which the fastest counts
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    save: bool = False  # append to bench/RESULTS.md

    def __post_init__(self):
        for name in ("items", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(Options, argv, prog="bench/eval_speed.py", description=__doc__)

    import torch

    from lathe.run import devices

    run = devices.start(options.device, "float32")
    draw = random.Random(0)
    rows = []
    for network in options.only or get_args(Network):
        model = build(network).to(run.device)
        items = draw_items(draw, options.items, model.config.vocab_size)
        rows.append(row_of(NAMES[network], measure(model, items, options.rounds)))
    record(
        "Multiple choice, HellaSwag's shape",
        ["model", *WAYS, "batches / one by one", "same choices", "max difference, nats"],
        rows,
        f"Items/s, {torch.get_num_threads()} threads, float32, fastest of {options.rounds} rounds.",
        options.save,
    )
    return 0


# -----------------------------------------------------------------------------
# Networks and items

NAMES = {"gpt2": "GPT-2 124M", "small": "make run's"}


def build(network: str) -> "GPT":
    """The network with random weights, in evaluation mode, on the CPU."""
    import torch

    from model import GPT, GPTConfig

    if network == "gpt2":
        return random_gpt2(Shape())
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=1024, block_size=256, n_layer=4, n_head=4, n_embd=128, zero_init=False
    )
    return GPT(config).eval()


@dataclass
class Item:
    """A context and its endings, as ids."""

    context: list[int]
    endings: list[list[int]]


def draw_items(draw: random.Random, n_items: int, vocab_size: int) -> list[Item]:
    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(vocab_size) for _ in range(draw.randint(least, most))]

    return [Item(ids(20, 100), [ids(8, 40) for _ in range(4)]) for _ in range(n_items)]


# -----------------------------------------------------------------------------
# Three ways to score them


@dataclass
class Scored:
    logprobs: "Tensor"  # (items, 4), of the endings after their contexts, in nats
    items_per_second: float


def measure(model: "GPT", items: list[Item], rounds: int) -> dict[str, list[Scored]]:
    """{way: one for each round}; they take turns."""
    fewer = items[: max(1, len(items) // 4)]
    arms = {
        "one by one": lambda: timed(score_padded, model, fewer, 1),
        "item by item": lambda: timed(score_padded, model, fewer, 4),
        "in batches": lambda: timed(score_in_batches, model, items),
    }
    return in_turn(rounds, arms)


def timed(
    way: Callable[..., list[float]], model: "GPT", items: list[Item], *arguments: int
) -> Scored:
    import torch

    began = time.perf_counter()
    logprobs = torch.tensor(way(model, items, *arguments)).view(-1, 4)
    return Scored(logprobs, len(items) / (time.perf_counter() - began))


def score_in_batches(model: "GPT", items: list[Item]) -> list[float]:
    """Log-probability of every ending, as the tasks compute it."""
    from lathe.use.scoring import batches_by_length, cached_tokens, score

    device = model.transformer.wte.weight.device
    lengths = [len(item.context) for item in items]
    of_item = {}
    for batch in batches_by_length(lengths, cached_tokens(device)):
        pairs = [(items[i].context, ending) for i in batch for ending in items[i].endings]
        scores = iter(score(model, pairs))
        for i in batch:
            of_item[i] = [next(scores).logprob for _ in items[i].endings]
    return [logprob for i in range(len(items)) for logprob in of_item[i]]


def score_padded(model: "GPT", items: list[Item], at_once: int) -> list[float]:
    """The same by plain forward passes over `at_once` endings of an item."""
    logprobs = []
    for item in items:
        for first in range(0, len(item.endings), at_once):
            endings = item.endings[first : first + at_once]
            logprobs += forward_logprobs(model, item.context, endings)
    return logprobs


def forward_logprobs(model: "GPT", context: list[int], endings: list[list[int]]) -> list[float]:
    import torch
    from torch.nn import functional as F

    device = model.transformer.wte.weight.device
    longest = max(len(ending) for ending in endings)
    rows = [[*context, *ending, *[0] * (longest - len(ending))] for ending in endings]
    ids = torch.tensor(rows, device=device)
    targets = torch.full_like(ids[:, 1:], -1)
    begin = len(context) - 1  # where an ending's first token is predicted
    for row, ending in zip(targets, endings, strict=True):
        row[begin : begin + len(ending)] = torch.tensor(ending, device=device)
    with torch.no_grad():
        logits = model(ids[:, :-1]).transpose(1, 2)  # (R, V, T)
        losses = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
    return (-losses.sum(dim=1)).tolist()


# -----------------------------------------------------------------------------
# The table


def row_of(name: str, scored: dict[str, list[Scored]]) -> list[str]:
    speeds = {way: max(round.items_per_second for round in scored[way]) for way in WAYS}
    alone = scored["one by one"][-1].logprobs
    together = scored["in batches"][-1].logprobs[: len(alone)]
    same_choices = (alone.argmax(dim=1) == together.argmax(dim=1)).all()
    return [
        name,
        *(f"{speeds[way]:,.1f}" for way in WAYS),
        f"{speeds['in batches'] / speeds['one by one']:.2f} x",
        "yes" if same_choices else "no",
        f"{(alone - together).abs().max():.1e}",
    ]


if __name__ == "__main__":
    cli.run(main)
