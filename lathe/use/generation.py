"""Decoding many samples side by side: admit, prefill, decode, collect.

This is the host's side, which says whose turn it is; decoder.py has what the device does. Sample i
of a prompt depends on the prompt, the seed and i alone, not on what runs beside it.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lathe.run import ranks
from lathe.use.decoder import Decoder, Token, bucket_of, round_up, unpack
from lathe.use.sampling import Sampling
from model import GPT


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: list[list[int]],
    num_samples: int = 1,
    max_new_tokens: int = 500,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    stop_ids: tuple[int, ...] = (),
    batch_size: int = 32,
    ended: set[int] | None = None,
    compiled: bool = False,
) -> Iterator[list[Token]]:
    """Yield tokens as they come, the next ones of some rows at a time, until all samples ended.

    prompts: ids, at least one each. Row p * num_samples + i is sample i of prompt p; at most
    batch_size rows run side by side, and one that ends makes room for the next. A row ends with a
    stop id, which is yielded, after max_new_tokens, or when the caller puts it into the set
    `ended`. When a row's context (block_size) is full, the last half of it is read anew and
    decoding goes on: positions never exceed those that were trained.
    """
    if not all(prompts):
        raise ValueError("a prompt has no tokens: begin with the end-of-text token")
    n_rows = len(prompts) * num_samples
    n_slots = min(batch_size, n_rows)
    longest = max(len(prompt) for prompt in prompts)
    length = longest + max_new_tokens
    if compiled:  # so that prompts of other lengths need not be compiled anew
        length = round_up(length, bucket_of(model.transformer.wte.weight.device))
    length = min(model.config.block_size, length)
    batch = Batch(
        decoder=Decoder(model, n_slots, length, max_new_tokens, sampling, compiled),
        prompts=prompts,
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        ended=set() if ended is None else ended,
        waiting=deque(range(n_rows)),
        slots=[None] * n_slots,
    )
    one_ahead = batch.decoder.device.type == "cuda"
    pending = None  # the step that the device is at while the host looks at the one before
    while True:
        batch.admit()
        rows = batch.unfinished()
        # New rows, and rows whose context is full
        to_prefill = [row for row in rows if row.n_cached in (0, length)]
        step = None
        if to_prefill and pending is None:  # with a step pending their last tokens are not known
            step = batch.prefill(to_prefill)
        elif rows and not to_prefill:
            step = batch.decode(rows)
        elif pending is None:
            return
        if one_ahead:
            step, pending = pending, step
        if step is not None:
            yield batch.collect(step)


@dataclass
class Row:
    """A sample while it is decoded."""

    number: int
    slot: int
    ids: list[int]  # the prompt's, and those drawn after it
    n_prompt: int
    n_launched: int = 0  # tokens drawn after the prompt, or being drawn
    n_cached: int = 0  # positions of its slot that are filled


@dataclass
class Step:
    """A pass of the network under way: the tokens that it draws, and which row gets each."""

    drawn: ranks.Later
    rows: dict[int, Row]  # {row of `drawn`: sample}


@dataclass
class Batch:
    """The samples of one call: those that wait, and those that run, each in a slot."""

    decoder: Decoder
    prompts: list[list[int]]
    num_samples: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    ended: set[int]  # numbers of the rows that are complete, or that the caller has ended
    waiting: deque[int]  # numbers of the rows that have not begun
    slots: list[Row | None]  # what runs in each

    def admit(self):
        """Free the slots of rows that have ended, and begin waiting rows in them."""
        for slot, row in enumerate(self.slots):
            if row is not None and row.number in self.ended:
                self.slots[slot] = None
            if self.slots[slot] is None and self.waiting:
                number = self.waiting.popleft()
                prompt = self.prompts[number // self.num_samples]
                self.slots[slot] = Row(number, slot, list(prompt), len(prompt))
                self.decoder.admit(slot, prompt, self.uniform(number % self.num_samples))

    def uniform(self, sample: int) -> Tensor:
        """Numbers (max_new_tokens,) from [0, 1) that choose the tokens of a prompt's sample."""
        generator = torch.Generator()
        # A number of its own for each seed and sample (of the first 1,000,003)
        generator.manual_seed((self.decoder.sampling.seed * 1_000_003 + sample) % 2**63)
        return torch.rand(self.max_new_tokens, generator=generator)

    def unfinished(self) -> list[Row]:
        """Running rows for which another token is to be drawn."""
        running = [row for row in self.slots if row is not None]
        return [row for row in running if row.n_launched < self.max_new_tokens]

    def prefill(self, rows: list[Row]) -> Step:
        """Read the contexts of these rows, and draw a token of each."""
        block_size = self.decoder.model.config.block_size
        n_kept = max(1, block_size // 2)
        contexts = []
        for row in rows:
            context = row.ids if len(row.ids) <= block_size else row.ids[-n_kept:]
            contexts.append(context)
            row.n_cached = len(context)
            row.n_launched += 1
        drawn = self.decoder.prefill([row.slot for row in rows], contexts)
        return Step(ranks.Later(drawn), dict(enumerate(rows)))

    def decode(self, rows: list[Row]) -> Step:
        """Read the last token of these rows, and draw the next of each."""
        for row in rows:
            row.n_cached += 1
            row.n_launched += 1
        drawn = self.decoder.decode(longest=max(row.n_cached for row in rows))
        return Step(ranks.Later(drawn), {row.slot: row for row in rows})

    def collect(self, step: Step) -> list[Token]:
        """The tokens of a step, once they are there, without those of rows that ended before."""
        numbers = step.drawn.read()
        tokens = []
        for i, row in step.rows.items():
            if row.number in self.ended:
                continue
            token = unpack(row.number, numbers[i])
            tokens.append(token)
            row.ids.append(token.id)
            n_drawn = len(row.ids) - row.n_prompt
            if token.id in self.stop_ids or n_drawn == self.max_new_tokens:
                self.ended.add(row.number)
        return tokens
