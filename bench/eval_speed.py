"""Measure multiple choice: items of HellaSwag's shape per second, in batches against one by one.

    python bench/eval_speed.py                GPT-2 124M with random weights, and a model of make run's size
    python bench/eval_speed.py --items=1000   on a GPU

Items are random ids with HellaSwag's lengths: a context of 20 to 100 tokens, four endings of 8 to 40. One by one is a
forward pass for every choice; item by item, one for the four choices of an item, padded, as build-nanogpt does it.
"""

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.results import record
from lathe import cli
from lathe.run import devices


@dataclass
class Options:
    items: int = 64  # how many are scored in batches; the slower ways get a quarter of them
    rounds: int = 3  # of which the fastest counts
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    save: bool = False  # append to bench/RESULTS.md


def in_batches(model, items) -> list[float]:
    """Log-probability of every ending, as the tasks computes it."""
    from lathe.use.scoring import batches_by_length, cached_tokens, score

    found, at_once = {}, cached_tokens(model.transformer.wte.weight.device)
    for batch in batches_by_length([len(context) for context, _ in items], at_once):
        scores = iter(score(model, [(items[i][0], ending) for i in batch for ending in items[i][1]]))
        found |= {i: [next(scores).logprob for _ in items[i][1]] for i in batch}
    return [logprob for i in range(len(items)) for logprob in found[i]]


def padded(model, items, at_once: int) -> list[float]:
    """The same by plain forward passes over `at_once` choices of an item."""
    import torch
    from torch.nn import functional as F

    found, device = [], model.transformer.wte.weight.device
    for context, endings in items:
        for part in (endings[i : i + at_once] for i in range(0, len(endings), at_once)):
            longest, begin = max(map(len, part)), len(context) - 1
            x = torch.tensor([[*context, *e, *[0] * (longest - len(e))] for e in part], device=device)
            y = torch.full_like(x[:, 1:], -1)
            for row, ending in zip(y, part, strict=True):
                row[begin : begin + len(ending)] = torch.tensor(ending, device=device)
            with torch.no_grad():
                losses = F.cross_entropy(model(x[:, :-1]).transpose(1, 2), y, ignore_index=-1, reduction="none")
            found += (-losses.sum(dim=1)).tolist()
    return found


def main(argv=None) -> int:
    options = cli.parse(Options, argv, prog="bench/eval_speed.py", description=__doc__)
    import torch

    from model import GPT, GPT2, GPTConfig

    run = devices.start(options.device, "float32")
    draw, rows = random.Random(0), []
    small = dict(vocab_size=1024, block_size=256, n_layer=4, n_head=4, n_embd=128, zero_init=False)
    for name, size in (("GPT-2 124M", GPT2), ("make run's", small)):
        torch.manual_seed(0)
        model = GPT(GPTConfig(**size)).to(run.device).eval()

        def ids(least, most, n=model.config.vocab_size):
            return [draw.randrange(n) for _ in range(draw.randint(least, most))]

        items = [(ids(20, 100), [ids(8, 40) for _ in range(4)]) for _ in range(options.items)]
        fewer, best, found = items[: max(1, len(items) // 4)], {}, {}
        ways = (
            ("one by one", padded, (fewer, 1)),
            ("item by item", padded, (fewer, 4)),
            ("in batches", in_batches, (items,)),
        )
        for _ in range(options.rounds):
            for way, action, arguments in ways:  # taking turns: all see the same weather
                began = time.perf_counter()
                found[way] = torch.tensor(action(model, *arguments)).view(-1, 4)
                best[way] = max(best.get(way, 0), len(found[way]) / (time.perf_counter() - began))
        alone, together = found["one by one"], found["in batches"][: len(fewer)]
        same = "yes" if (alone.argmax(1) == together.argmax(1)).all() else "no"
        figures = [f"{best[way]:,.1f}" for way, _, _ in ways] + [f"{best['in batches'] / best['one by one']:.2f} x"]
        rows.append([name, *figures, same, f"{(alone - together).abs().max():.1e}"])
    header = ["model", *(way for way, _, _ in ways), "batches / one by one", "same choices", "max difference, nats"]
    notes = f"Items/s, {torch.get_num_threads()} threads, float32, fastest of {options.rounds} rounds."
    record("Multiple choice, HellaSwag's shape", header, rows, notes, save=options.save)
    return 0


if __name__ == "__main__":
    cli.run(main)
