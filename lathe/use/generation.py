"""Decoding many samples side by side."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lathe.run import ranks
from lathe.use.caches import RaggedCache, cache_dtype
from lathe.use.filters import choose, penalize
from lathe.use.sampling import Sampling
from model import GPT, KVCache


class Slots:
    """`size` places in which samples are decoded side by side: their cache and what their choices depend on.

    All that a step reads and writes stays on the device, at one address: `step` can be compiled, and captured as a CUDA
    graph.
    """

    def __init__(self, model: GPT, size: int, length: int, max_new_tokens: int, s: Sampling, compiled: bool = False):
        self.model, self.s, c = model, s, model.config
        self.device = device = model.transformer.wte.weight.device
        self.cache = RaggedCache(c, size, length, device, cache_dtype(model))
        self.new = torch.zeros(size, 1, dtype=torch.long, device=device)  # the last token drawn, not yet read
        self.u = torch.zeros(size, max_new_tokens, device=device)
        self.n_drawn = torch.zeros(size, dtype=torch.long, device=device)
        self.counts = self.seen = None
        if (s.repetition_penalty, s.frequency_penalty, s.presence_penalty) != (1, 0, 0):
            self.counts = torch.zeros(size, c.vocab_size, dtype=torch.int32, device=device)
            self.seen = torch.zeros(size, c.vocab_size, dtype=torch.bool, device=device)
        self.all = torch.arange(size, device=device)
        self.run = torch.compile(self.step, dynamic=False) if compiled else self.step
        self.graphs = {}  # view -> (graph, what it draws)

    def admit(self, slot: int, prompt: list[int], u: Tensor):
        self.u[slot] = u.to(self.device)
        self.n_drawn[slot] = 0
        if self.counts is not None:
            self.counts[slot] = 0
            self.seen[slot] = False
            self.seen[slot, torch.tensor(prompt, device=self.device)] = True

    def read(self, slots: list[int], contexts: list[list[int]]) -> Tensor:
        """Read contexts anew into these slots, equal ones once and those of equal length together; draw from each."""
        c, cache = self.model.config, self.cache
        logits = torch.empty(len(slots), c.vocab_size, device=self.device)
        by_length = {}  # {length: {context: its places in `contexts`}}
        for i, ids in enumerate(map(tuple, contexts)):
            by_length.setdefault(len(ids), {}).setdefault(ids, []).append(i)
        for length, group in by_length.items():
            at_once = max(1, 16384 // length)  # tokens in one pass: memory stays bounded
            for rows in (list(group)[i : i + at_once] for i in range(0, len(group), at_once)):
                filled = KVCache(c, len(rows), length, self.device, cache.k.dtype)
                features = self.model.features(torch.tensor(rows, device=self.device), filled)
                mine = [i for row in rows for i in group[row]]
                source = [n for n, row in enumerate(rows) for _ in group[row]]
                their = [slots[i] for i in mine]
                logits[mine] = self.model.logits(features[:, -1])[source]
                cache.k[:, their, :, :length] = filled.k[:, source]
                cache.v[:, their, :, :length] = filled.v[:, source]
                cache.filled[their], cache.last[their] = length, filled.last[source]
        if not logits.isfinite().all():
            raise ValueError("the model's scores are not finite numbers: its weights are damaged, or its training was")
        return self.draw(logits, torch.tensor(slots, device=self.device))

    def step(self) -> Tensor:
        """Read the token drawn last in every slot, and draw the next."""
        return self.draw(self.model.logits(self.model.features(self.new, self.cache)[:, -1]), self.all)

    def draw(self, logits: Tensor, slots: Tensor) -> Tensor:
        """The next token of these slots, as one tensor for one copy to the host: (B, 1) ids, or with logprobs N
        (B, 2 + 2 N): id, its log-probability, the N likeliest ids and theirs. float32 holds ids below 2^24 exactly."""
        scores, s = logits, self.s
        if self.counts is not None:
            scores = penalize(logits, self.seen[slots], self.counts[slots], s)
        u = self.u[slots, self.n_drawn[slots].clamp(max=self.u.shape[1] - 1)]
        ids = choose(scores, u, s)
        if self.counts is not None:
            self.counts[slots, ids] += 1
            self.seen[slots, ids] = True
        self.n_drawn[slots] += 1
        self.new[slots] = ids = ids.unsqueeze(1)
        if not s.logprobs:
            return ids.float()
        logprobs = logits.log_softmax(dim=-1)
        top = logprobs.topk(min(s.logprobs, logits.shape[-1]), dim=-1)
        return torch.cat((ids, logprobs.gather(1, ids), top.indices, top.values), dim=1)

    def decode(self, longest: int) -> Tensor:
        """step(), with attention over no more positions than `longest`, rounded up. On CUDA a step is captured once per
        view and then replayed: launching its kernels one by one takes longer than running them."""
        bucket = 256 if self.device.type == "cuda" else 64
        self.cache.view = min(-(-longest // bucket) * bucket, len(self.cache.places))
        if self.device.type != "cuda":
            return self.run()
        if self.cache.view not in self.graphs:
            self.graphs[self.cache.view] = self.capture()
        graph, drawn = self.graphs[self.cache.view]
        graph.replay()
        return drawn

    def capture(self):
        state = (self.cache.filled, self.cache.last, self.new, self.n_drawn, self.counts, self.seen)
        state = [t for t in state if t is not None]
        before = [t.clone() for t in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up, which compiles and allocates, is not to be captured
            for _ in range(2):
                self.run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            drawn = self.run()
        for tensor, value in zip(state, before, strict=True):  # the cache's next place is written again anyway
            tensor.copy_(value)
        return graph, drawn


class Token(NamedTuple):
    """A token of sample `row`; logprob and top, [(id, logprob)] likeliest first, only if asked for."""

    row: int
    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


@dataclass
class Row:
    """A sample while it is decoded."""

    number: int
    slot: int
    ids: list[int]  # the prompt's, and those drawn behind it
    asked: int = 0  # how many were drawn or are being drawn
    held: int = 0  # positions of its slot that are filled


@torch.inference_mode()
def generate(
    model: GPT, prompts: list[list[int]], num_samples: int = 1, max_new_tokens: int = 500,
    sampling: Sampling = Sampling(), stop_ids: tuple[int, ...] = (), batch_size: int = 32,  # noqa: B008 - frozen
    ended: set[int] | None = None, compiled: bool = False,
) -> Iterator[list[Token]]:  # fmt: skip
    """Yield the tokens of all samples as they come, some rows' next tokens at a time, until every sample has ended.

    prompts: ids, at least one each. Row p * num_samples + i is sample i of prompt p; at most batch_size rows run side
    by side, and one that ends makes place for the next. A row ends behind a stop id, which is yielded, behind
    max_new_tokens, or when the caller puts it into the set `ended`. When a row's context (block_size) is full, the last
    half of it is read anew and decoding goes on: positions never exceed those that were trained.
    """
    if not all(prompts):
        raise ValueError("a prompt has no tokens: begin with the end-of-text token")
    n_rows, block_size, ended = len(prompts) * num_samples, model.config.block_size, set() if ended is None else ended
    length = min(block_size, max(map(len, prompts)) + max_new_tokens)
    rows: list[Row | None] = [None] * min(batch_size, n_rows)  # one a slot
    slots = Slots(model, len(rows), length, max_new_tokens, sampling, compiled)
    waiting, pending = iter(range(n_rows)), None
    while True:
        for slot, row in enumerate(rows):
            if row is None and (number := next(waiting, None)) is not None:
                rows[slot] = Row(number, slot, list(prompts[number // num_samples]))
                generator = torch.Generator()
                generator.manual_seed((sampling.seed * 1_000_003 + number % num_samples) % 2**63)
                slots.admit(slot, rows[slot].ids, torch.rand(max_new_tokens, generator=generator))
        going = [row for row in rows if row is not None and row.asked < max_new_tokens]
        fresh = [row for row in going if row.held in (0, length)]  # to be read, or read anew
        launched = None
        if fresh and pending is None:  # whose last tokens are known
            contexts = [row.ids if len(row.ids) <= block_size else row.ids[-(block_size // 2) or -1 :] for row in fresh]
            drawn = slots.read([row.slot for row in fresh], contexts)
            launched = ranks.Later(drawn), list(enumerate(fresh))
            for row, context in zip(fresh, contexts, strict=True):
                row.held = len(context)
        elif going and not fresh:
            launched = ranks.Later(slots.decode(max(row.held for row in going) + 1)), [(r.slot, r) for r in going]
            for row in going:
                row.held += 1
        elif pending is None:
            return
        for _, row in launched[1] if launched else ():
            row.asked += 1
        if slots.device.type == "cuda":  # the device works on the next step while this one is looked at
            launched, pending = pending, launched
        if launched is None:
            continue
        values, tokens = launched[0].read(), []
        for i, row in launched[1]:
            if row.number in ended:
                continue
            token, *more = values[i]
            row.ids.append(int(token))
            n_drawn, n = len(row.ids) - len(prompts[row.number // num_samples]), len(more) // 2
            if token in stop_ids or n_drawn == max_new_tokens:
                ended.add(row.number)
            top = [(int(a), b) for a, b in zip(more[1 : n + 1], more[n + 1 :], strict=True)]
            tokens.append(Token(row.number, int(token), *((more[0], top) if more else ())))
        yield tokens
        rows = [None if row is None or row.number in ended else row for row in rows]
