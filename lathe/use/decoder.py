"""The device's side of decoding: samples side by side, each in a slot.

`prefill` reads contexts into slots, `decode` reads the last token of every slot, and either draws
one token more. What decode reads and writes stays on the device at one address, so that it can be
compiled, and captured as a CUDA graph.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lathe.run.devices import without_plans
from lathe.use.caches import RaggedCache, cache_dtype, columns_alike
from lathe.use.filters import choose, penalize
from lathe.use.sampling import Sampling
from model import GPT, KVCache

MOST_VIEWS = 8  # of a cache: each is compiled, and on CUDA captured, by itself
PREFILL_TOKENS = 16384  # read in one pass: memory stays bounded


class Token(NamedTuple):
    """A token of sample `row`."""

    row: int
    id: int
    logprob: float | None = None  # by the model alone, before any filter; only if asked for
    top: list[tuple[int, float]] | None = None  # (id, logprob), likeliest first; only if asked for


def pack(ids: Tensor, logits: Tensor, n_top: int) -> Tensor:
    """Tokens ids (B,) drawn by logits (B, V), as one tensor for one copy to the host.

    (B, 1) ids, or with n_top likeliest tokens (B, 2 + 2 n_top): id, its log-probability, the
    likeliest ids, and their log-probabilities. float32 holds ids below 2^24 exactly.
    """
    ids = ids.unsqueeze(1)
    if n_top == 0:
        return ids.float()
    logprobs = logits.log_softmax(dim=-1)
    top = logprobs.topk(min(n_top, logits.shape[-1]), dim=-1)
    return torch.cat((ids, logprobs.gather(1, ids), top.indices, top.values), dim=1)


def unpack(row: int, numbers: list[float]) -> Token:
    """One row of what `pack` made, as a token of sample `row`."""
    if len(numbers) == 1:
        return Token(row, int(numbers[0]))
    token_id, logprob, *likeliest = numbers
    n_top = len(likeliest) // 2
    ids = map(int, likeliest[:n_top])
    return Token(row, int(token_id), logprob, list(zip(ids, likeliest[n_top:], strict=True)))


def round_up(n: int, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple


def bucket_of(device: torch.device) -> int:
    """Attention looks at a multiple of so many positions."""
    return 256 if device.type == "cuda" else 64


def view_of(longest: int, length: int, device: torch.device) -> int:
    """`longest` positions of `length`, rounded up to one of at most MOST_VIEWS numbers."""
    bucket = round_up(math.ceil(length / MOST_VIEWS), bucket_of(device))
    return min(round_up(longest, bucket), length)


def compiled_step(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """step, compiled for each view and length of a cache by itself.

    The compiler gives up after 8 of them, for the rest of the process: not even the first are used
    any more.
    """
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(step, dynamic=False)


def is_captured(model: GPT, device: torch.device) -> bool:
    """Whether a step is replayed as a CUDA graph: not of a sharded model, whose weights lie at
    other addresses each time they are put together."""
    return device.type == "cuda" and not hasattr(model, "unshard")


def make_room(device: torch.device):
    """Hand memory that nobody uses back to the GPU, if it has little else for a graph.

    torch.cuda.graph does that always; in training the next step would ask for it all again.
    """
    free, total = torch.cuda.mem_get_info(device)
    if free < total / 20:
        torch.cuda.empty_cache()


class Decoder:
    """`n_slots` samples of at most `length` positions, and what their tokens depend on."""

    def __init__(
        self,
        model: GPT,
        n_slots: int,
        length: int,
        max_new_tokens: int,
        sampling: Sampling,
        compiled: bool = False,
    ):
        self.model = model
        self.sampling = sampling
        self.length = length
        self.device = model.transformer.wte.weight.device
        self.cache = RaggedCache(model.config, n_slots, length, self.device, cache_dtype(model))
        self.last = self._zeros(n_slots, 1)  # the token drawn last, not yet read
        self.n_drawn = self._zeros(n_slots)
        # Random numbers from [0, 1): token n of a sample is chosen by number n of its slot.
        self.uniform = self._zeros(n_slots, max_new_tokens, dtype=torch.float32)
        self.seen = None
        self.counts = None
        if sampling.penalizes:
            vocab_size = model.config.vocab_size
            self.seen = self._zeros(n_slots, vocab_size, dtype=torch.bool)
            self.counts = self._zeros(n_slots, vocab_size, dtype=torch.int32)
        self.every_slot = torch.arange(n_slots, device=self.device)
        self.compiled = compiled
        self.step = compiled_step(self._step) if compiled else self._step
        # {view of the cache: a step as a graph, and the tensor that its replays write to}
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def admit(self, slot: int, prompt: list[int], uniform: Tensor):
        """Begin a sample, by the numbers (max_new_tokens,) from [0, 1) that choose its tokens."""
        self.uniform[slot] = uniform.to(self.device)
        self.n_drawn[slot] = 0
        if self.sampling.penalizes:
            self.counts[slot] = 0
            self.seen[slot] = False
            self.seen[slot, torch.tensor(prompt, device=self.device)] = True

    def prefill(self, slots: list[int], contexts: list[list[int]]) -> Tensor:
        """Read a context into each of these slots, and draw its next token: (slots, ...) of `pack`.

        Equal contexts are read once, and those of equal length together.
        """
        readers = defaultdict(list)  # {context: indices of those who read it}
        for i, context in enumerate(contexts):
            readers[tuple(context)].append(i)
        by_length = defaultdict(list)
        for context in readers:
            by_length[len(context)].append(context)

        logits = torch.empty(len(slots), self.model.config.vocab_size, device=self.device)
        for length, distinct in by_length.items():
            at_once = max(1, PREFILL_TOKENS // length)
            for begin in range(0, len(distinct), at_once):
                group = distinct[begin : begin + at_once]
                # Number reader[j] of `slots` reads number source[j] of the group.
                reader = []
                source = []
                for n, context in enumerate(group):
                    reader += readers[context]
                    source += [n] * len(readers[context])
                group_logits = self._read(group, source, [slots[i] for i in reader])
                logits[reader] = group_logits[source]
        if not logits.isfinite().all():
            raise ValueError(
                "the model's scores are not finite numbers: its weights are damaged, "
                "or its training was"
            )
        return self._draw(logits, torch.tensor(slots, device=self.device))

    @without_plans()
    def _read(self, contexts: list[tuple], source: list[int], slots: list[int]) -> Tensor:
        """Read contexts of one length, and put context source[i] into slots[i].

        Returns the logits (contexts, V) after their last tokens.
        """
        length = len(contexts[0])
        cache = self.cache  # k and v are (n_layer, n_slots, n_kv_head, length, head_dim)
        filled = KVCache(self.model.config, len(contexts), length, self.device, cache.k.dtype)
        features = self.model.features(torch.tensor(contexts, device=self.device), filled)
        cache.k[:, slots, :, :length] = filled.k[:, source]
        cache.v[:, slots, :, :length] = filled.v[:, source]
        cache.last[slots] = filled.last[source]
        cache.filled[slots] = length
        return self.model.logits(features[:, -1])

    @without_plans()
    def decode(self, longest: int) -> Tensor:
        """Read the token drawn last in every slot, and draw the next: (n_slots, ...) of `pack`.

        Attention looks at `longest` positions, rounded up. On CUDA a step is captured once for
        each such view and then replayed: launching its kernels one by one takes longer than
        running them.
        """
        self.cache.view = self._view(longest)
        if not is_captured(self.model, self.device):
            return self.step()
        if self.cache.view not in self.graphs:
            self.graphs[self.cache.view] = self._capture()
        graph, drawn = self.graphs[self.cache.view]
        graph.replay()
        return drawn

    def _view(self, longest: int) -> int:
        """How many positions attention looks at: few numbers where each is compiled or captured."""
        if self.compiled or self.device.type != "cpu":
            return view_of(longest, self.cache.capacity, self.device)
        return round_up(longest, columns_alike(self.model.config.head_dim))

    def _step(self) -> Tensor:
        features = self.model.features(self.last, self.cache)  # (n_slots, 1, C)
        return self._draw(self.model.logits(features[:, -1]), self.every_slot)

    def _draw(self, logits: Tensor, slots: Tensor) -> Tensor:
        """Choose the next token of these slots by their logits (slots, V), and remember it."""
        scores = logits
        if self.sampling.penalizes:
            scores = penalize(logits, self.seen[slots], self.counts[slots], self.sampling)
        # Slots that no sample is in are stepped, too, and count beyond the end.
        n_drawn = self.n_drawn[slots].clamp(max=self.uniform.shape[1] - 1)
        ids = choose(scores, self.uniform[slots, n_drawn], self.sampling)
        if self.sampling.penalizes:
            self.counts[slots, ids] += 1
            # A number would be copied from the host, which a CUDA graph cannot hold.
            self.seen[slots, ids] = torch.ones_like(ids, dtype=torch.bool)
        self.n_drawn[slots] += 1
        self.last[slots] = ids.unsqueeze(1)
        return pack(ids, logits, self.sampling.logprobs)

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph of one step, and the tensor that replays write to; no sample moves on by it."""
        state = [self.cache.filled, self.cache.last, self.last, self.n_drawn]
        if self.sampling.penalizes:
            state += [self.counts, self.seen]
        before = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        make_room(self.device)
        with torch.cuda.stream(side):
            for _ in range(2):  # warm-up, which compiles and allocates, is not to be captured
                self.step()
            torch.cuda.synchronize()
            graph.capture_begin()
            try:
                drawn = self.step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(side)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)  # keys and values are not restored: the next step writes them again
        return graph, drawn
