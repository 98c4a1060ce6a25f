"""Generate text with a trained model.

    python sample.py --out_dir=RUN --prompt="def main" --num_samples=3
    python sample.py --model=hf:gpt2 --interactive

stdout carries generated text only; what is said about it goes to stderr. All samples of all prompts are decoded side by
side, each prompt is read once, and sample i depends on the prompt, the seed and i alone, not on what runs beside it.
"""

from dataclasses import dataclass, field
from typing import Literal

import config


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises ValueError, naming the setting, for values out of range."""

    # --- choice
    temperature: float = 0.8  # below 1 safer, above 1 wilder; 0 = always the likeliest token
    top_k: int = 0  # choose among this many likeliest tokens; 0 = all
    top_p: float = 1.0  # choose among the likeliest tokens that together have this probability; 1 = all
    min_p: float = 0.0  # leave out tokens less likely than this share of the likeliest one; 0 = none
    repetition_penalty: float = 1.0  # divides the scores of tokens that occurred, in the prompt too; 1 = off
    frequency_penalty: float = 0.0  # lowers a generated token's score by this for each time it occurred
    presence_penalty: float = 0.0  # lowers a generated token's score by this once it occurred
    seed: int = 1337  # of the random choices
    logprobs: int = 0  # jsonl: log-probabilities, by the model alone, of each token and of this many likeliest ones

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


@dataclass(frozen=True)
class Options(Sampling):
    """What to generate, from what."""

    top_k: int = 200  # choose among this many likeliest tokens; 0 = all

    # --- model
    out_dir: str = "out/quickstart"  # a run's folder (its best checkpoint) or one checkpoint's folder
    model: str = ""  # hf:NAME_OR_FOLDER samples from a Hugging Face model instead
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of the weights; int8: 8 bits each
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
    stop: list[str] = field(default_factory=list)  # texts that end a sample; never printed
    stop_ids: list[int] = field(default_factory=list)  # token ids that end a sample, beside end-of-text
    ignore_eot: bool = False  # go on behind end-of-text

    # --- output
    stream: bool = True  # print the first sample while it is being made
    format: Literal["text", "jsonl"] = "text"  # jsonl: one object per sample

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        given = [name for name in ("prompt", "prompt_file", "prompts") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{given[1]} and {given[0]} are both given: choose one")
        if "" in self.stop:
            raise ValueError("stop is an empty text, which would end every sample at once")
        if self.logprobs and self.format == "text":
            raise ValueError("logprobs are part of jsonl output: add --format=jsonl")
        if self.model and not self.model.startswith("hf:"):
            raise ValueError(f"model is {self.model!r}: write --model=hf:NAME_OR_FOLDER, or --out_dir=RUN for a run")


PARSER = dict(prog="sample.py", description="Generate text with a trained model.")
if __name__ == "__main__":
    config.check(Options, **PARSER)  # --help and mistakes are answered before torch is imported, which takes seconds

import codecs
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
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


def choose(logits: Tensor, u: Tensor, s: Sampling) -> Tensor:
    """One token id per row, (B,), of logits (B, V), by the numbers u (B,) drawn uniformly from [0, 1).

    The choice inverts the cumulative distribution, so it is a function of (logits, u) alone, and needs neither torch's
    generator nor a word with the device. temperature 0 takes the likeliest token.
    """
    if s.temperature == 0:
        return logits.argmax(dim=-1)
    p, order = distribution(logits, s)
    cumulative = p.cumsum(dim=-1)
    wanted = u.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    last = (p > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)  # rounding must not reach behind it
    index = torch.searchsorted(cumulative, wanted, right=True).minimum(last)
    return (index if order is None else order.gather(1, index)).squeeze(1)


def distribution(logits: Tensor, s: Sampling) -> tuple[Tensor, Tensor | None]:
    """Weights (B, n) of the tokens that may be chosen, not summing to one, and their ids (B, n), likeliest first; ids
    is None if no filter asked for an order: then n is V.

    Filters act on the probabilities at s.temperature, in the order top_k, top_p (Holtzman et al., arXiv 1904.09751),
    min_p (arXiv 2407.01082).
    """
    V, order = logits.shape[-1], None
    logits = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / s.temperature
    if 0 < s.top_k < V:
        logits, order = logits.topk(s.top_k, dim=-1)
    p = logits.softmax(dim=-1)
    if s.top_p < 1:
        if order is None:  # on a CPU sorting all is slow, and the likeliest 1,024 nearly always hold top_p
            few = p.is_cpu and V > 4096 and p.topk(1024, dim=-1).values.sum(dim=-1).min() >= s.top_p
            p, order = p.topk(1024 if few else V, dim=-1)
        p = p.masked_fill(p.cumsum(dim=-1) - p >= s.top_p, 0)
    if s.min_p > 0:
        p = p.masked_fill(p < s.min_p * p.amax(dim=-1, keepdim=True), 0)
    return p, order


def penalize(logits: Tensor, seen: Tensor, counts: Tensor, s: Sampling) -> Tensor:
    """logits (B, V) made smaller where a token occurred: `seen` (B, V) says whether, in prompt or answer, `counts`
    (B, V) how often in the answer. Repetition penalty: Keskar et al., arXiv 1909.05858; the others: OpenAI's API."""
    if s.repetition_penalty != 1:
        weaker = torch.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
        logits = torch.where(seen, weaker, logits)
    return logits - s.frequency_penalty * counts - s.presence_penalty * (counts > 0)


# Decoding a batch


def cache_dtype(model: GPT) -> torch.dtype:
    """Of the keys and values that the model computes: autocast's where that is on, else that of its embeddings."""
    weight = model.transformer.wte.weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


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
            launched = runtime.Later(drawn), list(enumerate(fresh))
            for row, context in zip(fresh, contexts, strict=True):
                row.held = len(context)
        elif going and not fresh:
            launched = runtime.Later(slots.decode(max(row.held for row in going) + 1)), [(r.slot, r) for r in going]
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


# Text


class TextStream:
    """Token ids to text as they come. Held back are the bytes of a character that is not complete yet and text that may
    still become a stop string; the stop string that ends first, and all behind it, is dropped, and so is the text
    `skip` at the beginning."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), skip: str = ""):
        self.tokenizer, self.stop, self.skip = tokenizer, stop, skip
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held, self.stopped = "", False

    def add(self, token: int) -> str:
        """The text that this token sets free. Once `stopped`, none."""
        return self.release(self.decoder.decode(self.tokenizer.pieces[token]), final=False)

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


def read_bytes(path: str) -> tuple[bytes, str]:
    """Content and name of a file, or of standard input for "-"."""
    return (sys.stdin.buffer.read(), "standard input") if path == "-" else (Path(path).read_bytes(), path)


def read_text(path: str) -> str:
    """A file's text. Raises ValueError if it is not UTF-8."""
    raw, name = read_bytes(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt in {name} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None


def read_json_lines(path: str) -> list[tuple[str, dict]]:
    """[(where, row)] of the JSON objects in a file that has one a line. Raises ValueError, naming file and line."""
    rows, (raw, name) = [], read_bytes(path)
    for n, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{name}, line {n} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{name}, line {n} is not a JSON object")
            rows.append((f"{name}, line {n}", row))
    return rows


def read_prompts(options: Options) -> list[dict]:
    """[{"prompt": text, ...}] as the options say. Raises ValueError, naming the line, for JSONL that is not such."""
    if options.prompts:
        rows = read_json_lines(options.prompts)
        for where, row in rows:
            if not isinstance(row.get("prompt"), str):
                raise ValueError(f'prompts: {where} is not {{"prompt": TEXT}}')
        if not rows:
            raise ValueError(f"prompts: {options.prompts} holds no prompt")
        return [row for _, row in rows]
    if options.prompt_file:
        return [{"prompt": read_text(options.prompt_file)}]
    return [{"prompt": read_text("-") if text == "-" else text} for text in options.prompt or [""]]


# The command


class Opened(NamedTuple):
    """A model to sample from: `begin` are the ids before a prompt, `ends` those that end a text, `template` names the
    form of the chats that it was trained on, "" if there were none."""

    name: str
    load: Callable[[], GPT]
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

    about: dict  # its prompt, and what else stands in the prompt's row
    number: int  # among the samples of this prompt
    stream: TextStream
    text: str = ""
    shown: int = 0  # characters of it that are printed
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = ""  # "stop" or "length", once finished
    seconds: float = 0.0

    def print_text(self, heading: str):
        """Print what is new, and before the first of it the heading, to stderr."""
        text = self.text[self.shown :] + "\n" * bool(self.finish_reason)
        if text and not self.shown:
            print(heading, end="", file=sys.stderr, flush=True)
        print(text, end="", flush=True)
        self.shown = len(self.text)

    def print_json(self, options: Options):
        ids = [token.id for token in self.tokens]
        row = {**self.about, "sample": self.number, "text": self.text, "ids": ids, "finish_reason": self.finish_reason}
        row |= {"seed": options.seed, "tokens_per_second": round(len(ids) / self.seconds, 2)}
        if options.logprobs:
            row["logprobs"] = [token.logprob for token in self.tokens]
            row["top_logprobs"] = [token.top for token in self.tokens]
        print(json.dumps(row), flush=True)


def produce(
    options: Options, opened: Opened, model: GPT, prompts: list[dict], ids: list[list[int]], compiled: bool, space: str
) -> list[Sample]:
    """Generate and print all samples of all prompts, in order, without `space` before them; returns them."""
    numbers, as_text = range(options.num_samples), options.format == "text"
    samples = [Sample(row, i, TextStream(opened.tokenizer, options.stop, space)) for row in prompts for i in numbers]
    ends = (*(() if options.ignore_eot else opened.ends), *options.stop_ids)
    headings = sys.stdout.isatty() and not options.interactive
    unprinted, ended, first = deque(enumerate(samples, 1)), set(), 0.0
    began = time.perf_counter()
    steps = generate(
        model, ids, len(numbers), options.max_new_tokens, options, ends, options.batch_size, ended, compiled
    )
    n_steps = options.max_new_tokens * -(-len(samples) // options.batch_size)
    try:
        for tokens in with_bar(steps, "sampling", n_steps, not sys.stdout.isatty()):  # a bar would break into the text
            first = first or time.perf_counter() - began
            for token in tokens:
                sample = samples[token.row]
                if token.id not in ends:
                    sample.tokens.append(token)
                    sample.text += sample.stream.add(token.id)
                if sample.stream.stopped:
                    ended.add(token.row)
                if token.row in ended:
                    sample.text += sample.stream.end()
                    sample.finish_reason = "stop" if sample.stream.stopped or token.id in ends else "length"
                sample.seconds = time.perf_counter() - began
            while unprinted:  # what is ready of the next in line
                n, sample = unprinted[0]
                if as_text and (options.stream or sample.finish_reason):
                    title = f"\n--- sample {n} of {len(samples)}\n" if len(samples) > 1 else ""
                    sample.print_text(title + sample.about["prompt"] if headings else "")
                if not sample.finish_reason:
                    break
                if not as_text:
                    sample.print_json(options)
                unprinted.popleft()
    except KeyboardInterrupt:  # a dialogue goes on with what there is
        if not options.interactive:
            raise
        print(file=sys.stderr)
    made, seconds = sum(len(sample.tokens) for sample in samples), time.perf_counter() - began
    print(f"{made:,} tokens, {made / seconds:,.1f} tokens/s, first after {1000 * first:.0f} ms", file=sys.stderr)
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
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401 - gives input() line editing and history
    settings = [f.name for f in fields(Sampling)] + ["max_new_tokens", "stop", "stop_ids", "ignore_eot"]
    chat, before, answer = system_message(options), "", ""  # before: what there was of the answer before it went on
    print(f"a {'message' if opened.template in TEMPLATES else 'text to continue'}, or /help", file=sys.stderr)
    while True:
        try:
            line = input("> ")
            while line.endswith("\\"):
                line = line[:-1] + "\n" + input(". ")
            command, _, rest = line.partition(" ")
            name, _, value = rest.strip().partition(" ")
            asked, so_far = chat, answer
            if command == "/quit":
                return
            elif command == "/set" and name:
                longer = [*argv, f"--{name}={value.strip()}"]
                options, argv = config.parse(Options, longer, **PARSER), longer
                continue
            elif command == "/set":
                print("  ".join(f"{name}={getattr(options, name)}" for name in settings), file=sys.stderr)
                continue
            elif command == "/new":
                chat, before, answer = system_message(options), "", ""
                continue
            elif command == "/again":
                so_far, options = before, replace(options, seed=options.seed + 1)
            elif line.startswith("/"):
                print(HELP, file=sys.stderr)
                continue
            elif line:
                answered = [{"role": "assistant", "content": answer}] if chat and chat[-1]["role"] == "user" else []
                asked, so_far = [*chat, *answered, {"role": "user", "content": line}], ""
            prompt, space = chat_prompt(asked, opened.template) if asked else ("", "")
            if so_far:
                prompt, space = prompt + space + so_far, ""
            ids = encode(opened, prompt)
            chat, before, answer = asked, so_far, so_far
            one = replace(options, num_samples=1, format="text", stream=True, logprobs=0)
            answer += produce(one, opened, model, [{"prompt": prompt}], [ids], False, space)[0].text
        except EOFError:
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except SystemExit:  # what is wrong with a /set has been printed
            continue
        except ValueError as error:  # an unknown character, say
            print(error, file=sys.stderr)


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
    compiled, why_compiled = False, "not compiled (decoding gains only on CUDA)"
    if device.type == "cuda":
        steps = options.max_new_tokens * -(-len(ids) * options.num_samples // options.batch_size)
        compiled, why_compiled = runtime.choose_compile(options.compile, device, 0.12 * steps)
    model = prepare_weights(opened.load().to(device), dtype)
    c, longest = model.config, max(map(len, ids), default=0)
    about = (f"{c.n_layer} layers, {c.n_embd} wide", why_device, why_dtype, why_compiled)
    print(f"{opened.name}: {', '.join(about)}", file=sys.stderr)
    size, kept = c.block_size, c.block_size // 2
    if longest > size:
        print(f"a prompt of {longest} tokens exceeds the context of {size}: its last {kept} count", file=sys.stderr)
    elif longest + options.max_new_tokens > size:
        print(f"longer than the context of {size} tokens: when full, its last half is kept", file=sys.stderr)
    if options.interactive:
        converse(argv, options, opened, model)
    else:
        produce(options, opened, model, prompts, ids, compiled, chat_prompt(chats[0], opened.template)[1])
    return 0


if __name__ == "__main__":
    config.run(main)
