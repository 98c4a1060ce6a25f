"""Generate text with a trained model.

    python sample.py --out_dir=RUN --prompt="def main" --num_samples=3
    python sample.py --model=hf:gpt2 --interactive

stdout carries generated text only; what is said about it goes to stderr. All samples of all prompts are decoded side by
side, each prompt is read once, and sample i depends on the prompt, the seed and i alone, not on what runs beside it.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

import config


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises ValueError, naming the setting, for values out of range."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 1337
    logprobs: int = 0

    def __post_init__(self):
        for name, right, rule in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "at least 0 (off) and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0 (1 = off)"),
            ("frequency_penalty", abs(self.frequency_penalty) < float("inf"), "a finite number (0 = off)"),
            ("presence_penalty", abs(self.presence_penalty) < float("inf"), "a finite number (0 = off)"),
            ("logprobs", self.logprobs >= 0, "0 (off) or more"),
        ):
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {rule}")


@dataclass
class Options:
    """What to generate, from what."""

    # --- model
    out_dir: str = "out/quickstart"  # a run's folder (its best checkpoint) or one checkpoint's folder
    model: str = ""  # hf:NAME_OR_FOLDER samples from a Hugging Face model instead
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = (
        "auto"  # of the weights; int8: 8 bits and a scale
    )
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile the decoding step; auto: for long jobs on a GPU

    # --- prompts
    prompt: list[str] = field(default_factory=list)  # texts to continue; none = the start of a document, - = stdin
    prompt_file: str = ""  # file with one text to continue
    prompts: str = ""  # JSONL file, {"prompt": TEXT} a line; - = stdin; other keys are handed through to jsonl output
    interactive: bool = False  # ask for prompts, continue or retry them, change settings: /help there
    chat: bool = True  # a model trained on chats gets prompts in its chat template; false: as they are
    system: str = ""  # of a chat: what the model is told before the first prompt

    # --- samples
    num_samples: int = 1  # samples of each prompt
    max_new_tokens: int = 500  # longest sample, in tokens
    batch_size: int = 32  # most samples decoded side by side; in float32 no text depends on it
    temperature: float = 0.8  # below 1 safer, above 1 wilder; 0 = always the likeliest token
    top_k: int = 200  # choose among this many likeliest tokens; 0 = all
    top_p: float = 1.0  # choose among the likeliest tokens that together have this probability; 1 = all
    min_p: float = 0.0  # leave out tokens less likely than this share of the likeliest one; 0 = none
    repetition_penalty: float = 1.0  # divides the scores of tokens that occurred, in the prompt too; 1 = off
    frequency_penalty: float = 0.0  # lowers a generated token's score by this for each time it occurred
    presence_penalty: float = 0.0  # lowers a generated token's score by this once it occurred
    seed: int = 1337  # of the random choices
    stop: list[str] = field(default_factory=list)  # texts that end a sample; never printed
    stop_ids: list[int] = field(default_factory=list)  # token ids that end a sample, beside end-of-text
    ignore_eot: bool = False  # go on behind end-of-text

    # --- output
    stream: bool = True  # print the first sample while it is being made
    format: Literal["text", "jsonl"] = "text"  # jsonl: one object per sample
    logprobs: int = 0  # jsonl: log-probabilities, by the model alone, of each token and of this many likeliest ones

    def __post_init__(self):
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        self.sampling()
        given = [name for name in ("prompt", "prompt_file", "prompts") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{given[1]} and {given[0]} are both given: choose one")
        if "" in self.stop:
            raise ValueError("stop is an empty text, which would end every sample at once")
        if self.logprobs and self.format == "text":
            raise ValueError("logprobs are part of jsonl output: add --format=jsonl")
        if self.model and not self.model.startswith("hf:"):
            raise ValueError(f"model is {self.model!r}: write --model=hf:NAME_OR_FOLDER, or --out_dir=RUN for a run")

    def sampling(self) -> Sampling:
        return Sampling(**{f.name: getattr(self, f.name) for f in fields(Sampling)})


PARSER = dict(prog="sample.py", description="Generate text with a trained model.")
if __name__ == "__main__":
    config.check(Options, **PARSER)  # --help and mistakes are answered before torch is imported, which takes seconds

import codecs
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import checkpoint
import runtime
from metrics import with_bar
from model import GPT, KVCache
from quantize import choose_weights, prepare_weights
from tokenizer import TEMPLATES, Tokenizer, chat_prompt, load_tokenizer

# Choosing a token


def choose(
    logits: Tensor, u: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """One token id per row, (B,), of logits (B, V), by the numbers u (B,) drawn uniformly from [0, 1).

    The choice inverts the cumulative distribution, so it is a function of (logits, u) alone, and needs neither torch's
    generator nor a word with the device. temperature 0 takes the likeliest token.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    p, order = distribution(logits, temperature, top_k, top_p, min_p)
    cumulative = p.cumsum(dim=-1)
    wanted = u.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    last = (p > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)  # rounding must not reach behind it
    index = torch.searchsorted(cumulative, wanted, right=True).minimum(last)
    return (index if order is None else order.gather(1, index)).squeeze(1)


def distribution(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """Weights (B, n) of the tokens that may be chosen, not summing to one, and their ids (B, n), likeliest first; ids
    is None if no filter asked for an order: then n is V.

    Filters act on the probabilities at `temperature`, in the order top_k, top_p (Holtzman et al., arXiv 1904.09751),
    min_p (arXiv 2407.01082).
    """
    V = logits.shape[-1]
    logits = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if not 0 < top_k < V:
        total = logits.logsumexp(dim=-1, keepdim=True)
        if top_p == 1:  # a threshold needs no order
            p = (logits - total).exp()
            return (p if min_p == 0 else p.masked_fill(p < min_p * p.amax(dim=-1, keepdim=True), 0)), None
        first = V
        if logits.is_cpu and V > 4096:  # the likeliest 1,024 nearly always hold top_p, and sorting all is slow
            first = 1024 if (logits.topk(1024).values - total).exp().sum(dim=-1).min() >= top_p else V
        logits, order = logits.topk(first, dim=-1)
        p = (logits - total).exp()
    else:
        logits, order = logits.topk(top_k, dim=-1)
        p = logits.softmax(dim=-1)
    if top_p < 1:
        p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0)
    if min_p > 0:
        p = p.masked_fill(p < min_p * p[:, :1], 0)
    return p, order


def penalize(logits: Tensor, seen: Tensor, counts: Tensor, s: Sampling) -> Tensor:
    """logits (B, V) made smaller where a token occurred: `seen` (B, V) says whether, in prompt or answer, `counts`
    (B, V) how often in the answer. Repetition penalty: Keskar et al., arXiv 1909.05858; the others: OpenAI's API."""
    if s.repetition_penalty != 1:
        weaker = torch.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
        logits = torch.where(seen, weaker, logits)
    return logits - s.frequency_penalty * counts - s.presence_penalty * (counts > 0)


# Decoding a batch


class RaggedCache(KVCache):
    """Rows of different lengths: row b has filled[b] positions, and a new token comes behind its own row's.

    Attention looks at the first `view` positions of every row, masked. Shapes and addresses stay the same from step to
    step, so one compiled graph serves as many steps as fit into `view`.
    """

    def __init__(self, config, batch_size: int, length: int, device=None, dtype=None):
        super().__init__(config, batch_size, length, device, dtype)
        self.filled = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.places = torch.arange(length, device=device)
        self.view = length

    def advance(self, T: int) -> Tensor:
        where = self.filled.unsqueeze(1) + self.places[:T]  # (B, T)
        where = where.clamp(max=len(self.places) - 1)  # rows that nobody reads any more go on in their last place
        self.index = where[:, None, :, None]
        self.mask = (self.places[: self.view] <= where.unsqueeze(2)).unsqueeze(1)  # (B, 1, T, view)
        self.filled += T
        return where

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        index = self.index.expand(k.shape)
        self.k[layer].scatter_(2, index, k.to(self.k.dtype))
        self.v[layer].scatter_(2, index, v.to(self.v.dtype))
        return self.k[layer, :, :, : self.view], self.v[layer, :, :, : self.view]


class Slots:
    """`size` places in which samples are decoded side by side: their cache and what their choices depend on.

    All that a step reads and writes stays on the device, at one address: `step` can be compiled, and captured as a CUDA
    graph.
    """

    def __init__(self, model: GPT, size: int, length: int, max_new_tokens: int, s: Sampling, compiled: bool = False):
        self.model, self.s, c = model, s, model.config
        self.device = device = model.transformer.wte.weight.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else model.transformer.wte.weight.dtype
        self.cache = RaggedCache(c, size, length, device, dtype)
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
        by_length = {}
        for context in dict.fromkeys(map(tuple, contexts)):
            by_length.setdefault(len(context), []).append(context)
        for length, group in by_length.items():
            at_once = max(1, 16384 // length)  # tokens in one pass: memory stays bounded
            for rows in (group[i : i + at_once] for i in range(0, len(group), at_once)):
                filled = KVCache(c, len(rows), length, self.device, cache.k.dtype)
                features = self.model.features(torch.tensor(rows, device=self.device), filled)
                found = self.model.logits(features[:, -1])
                places = [(i, rows.index(tuple(ids))) for i, ids in enumerate(contexts) if tuple(ids) in rows]
                mine, source = (torch.tensor(x, device=self.device) for x in zip(*places, strict=True))
                their = torch.tensor([slots[i] for i, _ in places], device=self.device)
                logits[mine] = found[source]
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
        u = self.u[slots].gather(1, self.n_drawn[slots].clamp(max=self.u.shape[1] - 1).unsqueeze(1)).squeeze(1)
        ids = choose(scores, u, s.temperature, s.top_k, s.top_p, s.min_p)
        self.new[slots] = ids.unsqueeze(1)
        self.n_drawn[slots] += 1
        if self.counts is not None:
            self.counts[slots, ids] += 1
            self.seen[slots, ids] = True
        ids = ids.unsqueeze(1)
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
    c, n_rows, ended = model.config, len(prompts) * num_samples, set() if ended is None else ended
    size = min(batch_size, n_rows)
    length = min(c.block_size, max(map(len, prompts)) + max_new_tokens)
    slots = Slots(model, size, length, max_new_tokens, sampling, compiled)
    waiting = deque(range(n_rows))
    row_in: list[int | None] = [None] * size
    ids, held, made = {}, [0] * size, {}  # per row: its ids; per slot: places filled; per row: tokens asked for
    pending = None
    while True:
        fresh = []
        for slot, row in enumerate(row_in):
            if row is None and waiting:
                row_in[slot] = row = waiting.popleft()
                prompt, sample = prompts[row // num_samples], row % num_samples
                ids[row], made[row] = list(prompt), 0
                generator = torch.Generator().manual_seed((sampling.seed * 1_000_003 + sample) % 2**63)
                slots.admit(slot, prompt, torch.rand(max_new_tokens, generator=generator))
                fresh.append(slot)
            elif row is not None and made[row] < max_new_tokens and (made[row] == 0 or held[slot] == length):
                fresh.append(slot)
        going = [slot for slot, row in enumerate(row_in) if row is not None and made[row] < max_new_tokens]
        launched = None
        if fresh and pending is None:
            contexts = [ids[row_in[slot]] for slot in fresh]
            contexts = [x if len(x) <= c.block_size else x[-(c.block_size // 2) or -1 :] for x in contexts]
            launched = runtime.Later(slots.read(fresh, contexts)), [(i, row_in[slot]) for i, slot in enumerate(fresh)]
            for slot, context in zip(fresh, contexts, strict=True):
                held[slot] = len(context)
                made[row_in[slot]] += 1
        elif going and not fresh:
            drawn = slots.decode(max(held[slot] for slot in going) + 1)
            launched = runtime.Later(drawn), [(slot, row_in[slot]) for slot in going]
            for slot in going:
                held[slot] += 1
                made[row_in[slot]] += 1
        elif pending is None:
            return
        if slots.device.type == "cuda":  # the device works on the next step while this one is looked at
            launched, pending = pending, launched
        if launched is None:
            continue
        drawn, places = launched
        values, tokens = drawn.read(), []
        for i, row in places:
            if row in ended:
                continue
            token, *more = values[i]
            ids[row].append(int(token))
            if int(token) in stop_ids or len(ids[row]) - len(prompts[row // num_samples]) == max_new_tokens:
                ended.add(row)
            n = (len(more) - 1) // 2
            top = [(int(a), b) for a, b in zip(more[1 : n + 1], more[n + 1 :], strict=True)]
            tokens.append(Token(row, int(token), more[0], top) if more else Token(row, int(token)))
        yield tokens
        for slot, row in enumerate(row_in):
            if row in ended:
                row_in[slot] = None
                ids.pop(row)


# Text


class TextStream:
    """Token ids to text as they come. Held back are the bytes of a character that is not complete yet and text that may
    still become a stop string; the stop string that ends first, and all behind it, is dropped, and so is the text
    `skip` at the beginning."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] | list[str] = (), skip: str = ""):
        self.tokenizer, self.stop, self.skip = tokenizer, tuple(stop), skip
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held, self.stopped = "", False

    def add(self, token: int) -> str:
        """The text that this token sets free. Once `stopped`, none."""
        return self.release(self.decoder.decode(self.tokenizer.token_bytes(token)), final=False)

    def end(self) -> str:
        return self.release(self.decoder.decode(b"", final=True), final=True)

    def release(self, more: str, final: bool) -> str:
        self.held += more
        if len(self.held) >= len(self.skip):
            self.held, self.skip = self.held.removeprefix(self.skip), ""
        if self.stopped:
            return ""
        found = [(at + len(stop), at) for stop in self.stop if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped, end = True, min(found)[1]
        else:
            starts = (n for s in self.stop for n in range(len(s) - 1, 0, -1) if self.held.endswith(s[:n]))
            end = len(self.held) - (0 if final else max(starts, default=0))
        text, self.held = self.held[:end], self.held[end:]
        return text


def read_text(path: str) -> str:
    """A file's text, or that of standard input for "-". Raises ValueError if it is not UTF-8."""
    raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        where = "standard input" if path == "-" else path
        raise ValueError(f"the prompt in {where} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None


def read_prompts(options: Options) -> list[dict]:
    """[{"prompt": text, ...}] as the options say. Raises ValueError, naming the line, for JSONL that is not such."""
    if options.prompts:
        rows = []
        for n, line in enumerate(read_text(options.prompts).removeprefix("\ufeff").split("\n"), 1):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise ValueError(f"prompts: line {n} of {options.prompts} is not JSON: {error}") from None
            if row is not None:
                if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
                    raise ValueError(f'prompts: line {n} of {options.prompts} is not {{"prompt": TEXT}}')
                rows.append(row)
        if not rows:
            raise ValueError(f"prompts: {options.prompts} holds no prompt")
        return rows
    if options.prompt_file:
        return [{"prompt": read_text(options.prompt_file)}]
    return [{"prompt": read_text("-") if text == "-" else text} for text in options.prompt or [""]]


# The command


class Opened(NamedTuple):
    """A model to sample from: `begin` are the ids before a prompt, `ends` those that end a text, `template` names the
    form of the chats that it was trained on, "" if there were none."""

    name: str
    load: callable
    tokenizer: Tokenizer
    begin: list[int]
    ends: tuple[int, ...]
    template: str = ""


def open_model(options: Options) -> Opened:
    """Find the model and its tokenizer; load() reads the weights."""
    if options.model:
        import huggingface

        folder = huggingface.find(options.model)
        tokenizer, begin, ends = huggingface.load_tokenizer(folder)
        return Opened(options.model, lambda: huggingface.load_model(folder, dtype=None), tokenizer, begin, ends)
    path = checkpoint.find_checkpoint(options.out_dir)
    tokenizer = load_tokenizer(path)
    eot = tokenizer.eot_id  # documents begin with end-of-text, so do prompts
    template = checkpoint.read_state(path).get("template", "")
    return Opened(str(path), lambda: checkpoint.load_model(path), tokenizer, [eot], (eot,), template)


@dataclass
class Sample:
    """One sample while it is made."""

    stream: TextStream
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: str = ""  # "stop" or "length", once finished
    seconds: float = 0.0

    def add(self, token: Token, ends: tuple[int, ...]):
        if token.id in ends:
            self.finish("stop")
            return
        self.ids.append(token.id)
        if token.top is not None:
            self.logprobs.append(token.logprob)
            self.top_logprobs.append(token.top)
        self.text += self.stream.add(token.id)
        if self.stream.stopped:
            self.finish_reason = "stop"

    def finish(self, reason: str):
        self.text += self.stream.end()
        self.finish_reason = "stop" if self.stream.stopped else reason


def produce(
    options: Options, opened: Opened, model: GPT, prompts: list[dict], ids: list[list[int]], compiled: bool, space: str
):  # fmt: skip
    """Generate and print all samples of all prompts, in order, without `space` before them; returns them."""
    N, as_text = options.num_samples, options.format == "text"
    samples = [Sample(TextStream(opened.tokenizer, options.stop, space)) for _ in range(len(prompts) * N)]
    ends = (*(() if options.ignore_eot else opened.ends), *options.stop_ids)
    headings = as_text and sys.stdout.isatty() and not options.interactive
    printed, shown, ended, first = 0, 0, set(), None  # shown: characters of the sample that is being printed
    began = time.perf_counter()

    def show():
        """Print what is ready of the next sample in line."""
        nonlocal printed, shown
        while printed < len(samples):
            sample = samples[printed]
            if not sample.finish_reason and not (as_text and options.stream):
                return
            if as_text:
                if headings and shown == 0 and (sample.text or sample.finish_reason):
                    title = f"\n--- sample {printed + 1} of {len(samples)}\n" if len(samples) > 1 else ""
                    print(title + prompts[printed // N]["prompt"], end="", file=sys.stderr, flush=True)
                if len(sample.text) > shown or sample.finish_reason:
                    sys.stdout.write(sample.text[shown:] + ("\n" if sample.finish_reason else ""))
                    sys.stdout.flush()
                    shown = len(sample.text)
            if not sample.finish_reason:
                return
            if not as_text:
                row = {**prompts[printed // N], "sample": printed % N, "text": sample.text, "ids": sample.ids}
                row |= {"finish_reason": sample.finish_reason, "seed": options.seed}
                row["tokens_per_second"] = round(len(sample.ids) / sample.seconds, 2)
                if options.logprobs:
                    row |= {"logprobs": sample.logprobs, "top_logprobs": sample.top_logprobs}
                print(json.dumps(row), flush=True)
            printed, shown = printed + 1, 0

    steps = generate(
        model, ids, N, options.max_new_tokens, options.sampling(), ends, options.batch_size, ended, compiled
    )  # fmt: skip
    n_steps = options.max_new_tokens * -(-len(samples) // options.batch_size)
    try:
        for tokens in with_bar(steps, "sampling", n_steps, not sys.stdout.isatty()):  # a bar would break into the text
            first = first or time.perf_counter() - began
            for token in tokens:
                sample = samples[token.row]
                sample.add(token, ends)
                if sample.finish_reason:
                    ended.add(token.row)
                elif token.row in ended:
                    sample.finish("length")
                sample.seconds = time.perf_counter() - began
            show()
    except KeyboardInterrupt:  # a dialogue goes on with what there is
        if not options.interactive:
            raise
        print(file=sys.stderr)
    made, seconds = sum(len(sample.ids) for sample in samples), time.perf_counter() - began
    print(f"{made:,} tokens, {made / seconds:,.1f} tokens/s, first after {1000 * (first or 0):.0f} ms", file=sys.stderr)
    return samples


def encode(opened: Opened, text: str) -> list[int]:
    """Ids of a prompt with what comes before it. Raises ValueError where there is nothing to begin with."""
    ids = [*opened.begin, *opened.tokenizer.encode(text)]
    if not ids:
        raise ValueError("the prompt is empty and this model has no token that begins a text: give a --prompt")
    return ids


HELP = """\
TEXT          continue this text, or answer it in a chat (end a line with \\ to go on in the next)
(empty line)  continue where the last answer stopped
/again        the last answer once more, with another seed
/new          begin a new chat
/set          show the settings; /set NAME VALUE changes one, as on the command line
/quit         or Ctrl-D; Ctrl-C stops an answer"""


def system_message(options: Options) -> list[dict]:
    return [{"role": "system", "content": options.system}] if options.system else []


def converse(argv: list[str], options: Options, opened: Opened, model: GPT):
    """Ask for prompts and continue them, or answer them in a chat that grows, until end of input."""
    try:
        import readline  # noqa: F401 - gives input() line editing and history; not on Windows
    except ImportError:
        pass
    settings = [f.name for f in fields(Sampling)] + ["max_new_tokens", "stop", "stop_ids", "ignore_eot"]
    chat, before, text, start, argv = system_message(options), "", "", 0, list(argv)  # text[start:] is the answer
    print(f"a {'message' if opened.template in TEMPLATES else 'text to continue'}, or /help", file=sys.stderr)
    while True:
        try:
            line = input("> ")
            while line.endswith("\\"):
                line = line[:-1] + "\n" + input(". ")
        except EOFError:
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        command, _, rest = line.partition(" ")
        asked, new = chat, text
        if command == "/quit":
            return
        elif command == "/set" and rest.strip():
            name, _, value = rest.strip().partition(" ")
            try:
                options = config.parse(Options, [*argv, f"--{name}={value.strip()}"], **PARSER)
                argv.append(f"--{name}={value.strip()}")
            except SystemExit:  # what is wrong has been printed
                pass
            continue
        elif command == "/set":
            print("  ".join(f"{name}={getattr(options, name)}" for name in settings), file=sys.stderr)
            continue
        elif command == "/again":
            new, options = before, replace(options, seed=options.seed + 1)
        elif command == "/new":
            chat, before, text, start = system_message(options), "", "", 0
            continue
        elif line.startswith("/"):
            print(HELP, file=sys.stderr)
            continue
        elif line:
            answer = {"role": "assistant", "content": text[start:]}
            asked = [*chat, *([answer] if start else ()), {"role": "user", "content": line}]
            new = chat_prompt(asked, opened.template)[0]
        one = replace(options, num_samples=1, format="text", stream=True, logprobs=0)
        try:
            ids = encode(opened, new)
            start = start if asked is chat else len(new)
            chat, before, text = asked, new, new
            space = chat_prompt(chat, opened.template)[1] if chat and len(text) == start else ""
            text += space + produce(one, opened, model, [{"prompt": text}], [ids], False, space)[0].text
        except ValueError as error:  # an unknown character, say
            print(error, file=sys.stderr)
        except KeyboardInterrupt:
            print(file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = config.parse(Options, argv, **PARSER)
    opened = open_model(options)
    opened = opened if options.chat else opened._replace(template="")
    if options.system and opened.template not in TEMPLATES:
        raise ValueError(f"--system is for chats; {opened.name} is asked without a chat template: leave it out")
    prompts = [] if options.interactive else read_prompts(options)
    chats = [[*system_message(options), {"role": "user", "content": row["prompt"]}] for row in prompts]
    ids = [encode(opened, chat_prompt(chat, opened.template)[0]) for chat in chats]
    device, why_device = runtime.choose_device(options.device)
    dtype, why_dtype = choose_weights(options.dtype, device)
    steps = options.max_new_tokens * -(-len(ids) * options.num_samples // options.batch_size)
    compiled, why_compiled = runtime.choose_compile(options.compile, device, 0.12 * steps)
    if device.type != "cuda":
        compiled, why_compiled = False, "not compiled (decoding gains only on CUDA)"
    model = prepare_weights(opened.load().to(device), dtype)
    c, longest = model.config, max(map(len, ids), default=0)
    about = (f"{c.n_layer} layers, {c.n_embd} wide", why_device, why_dtype, why_compiled)
    print(f"{opened.name}: {', '.join(about)}", file=sys.stderr)
    if longest > c.block_size:
        kept = c.block_size // 2
        print(
            f"a prompt of {longest} tokens exceeds the context of {c.block_size}: its last {kept} count",
            file=sys.stderr,
        )
    elif longest + options.max_new_tokens > c.block_size:
        print(f"longer than the context of {c.block_size} tokens: when full, its last half is kept", file=sys.stderr)
    if options.interactive:
        converse(argv, options, opened, model)
    else:
        produce(options, opened, model, prompts, ids, compiled, chat_prompt(chats[0], opened.template)[1])
    return 0


if __name__ == "__main__":
    config.run(main)
