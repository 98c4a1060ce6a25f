"""Generate text with a trained model.

    python sample.py --out_dir=RUN --prompt="def main" --num_samples=3

stdout carries generated text only; what is said about it goes to stderr. All samples share one reading of the prompt
and are decoded as one batch. Sample i depends on the prompt, the seed and i alone, not on how many run beside it.
"""

from dataclasses import dataclass
from typing import Literal

import config


@dataclass
class Options:
    """What to generate, from what."""

    out_dir: str = "out/quickstart"  # a run's folder (its best checkpoint) or one checkpoint's folder
    prompt: str = ""  # text to continue; empty = the start of a document, `-` = read it from standard input
    prompt_file: str = ""  # file with the text to continue
    num_samples: int = 1  # samples, decoded together
    max_new_tokens: int = 500  # longest sample, in tokens
    temperature: float = 0.8  # below 1 safer, above 1 wilder; 0 = always the likeliest token
    top_k: int = 200  # choose among this many likeliest tokens; 0 = all
    top_p: float = 1.0  # choose among the likeliest tokens that together have this probability; 1 = all
    min_p: float = 0.0  # leave out tokens less likely than this share of the likeliest one; 0 = none
    seed: int = 1337  # of the random choices
    stream: bool = True  # print the first sample while it is being made
    format: Literal["text", "jsonl"] = "text"  # jsonl: one object per sample
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the forward pass

    def __post_init__(self):
        for name, wrong, rule in (
            ("num_samples", self.num_samples < 1, "1 or more"),
            ("max_new_tokens", self.max_new_tokens < 1, "1 or more"),
            ("temperature", not self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k < 0, "0 (off) or more"),
            ("top_p", not 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("min_p", not 0 <= self.min_p <= 1, "at least 0 (off) and at most 1"),
        ):
            if wrong:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {rule}")
        if self.prompt and self.prompt_file:
            raise ValueError("prompt and prompt_file are both given: choose one")


PARSER = dict(prog="sample.py", description="Generate text with a trained model.")
if __name__ == "__main__":
    config.parse(Options, **PARSER)  # --help and mistakes are answered before torch is imported, which takes seconds

import codecs
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import checkpoint
import runtime
from model import GPT, KVCache
from tokenizer import load_tokenizer


def choose(
    logits: Tensor, u: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """One token id per row, (B,), of logits (B, V), by the numbers u (B,) drawn uniformly from [0, 1).

    Filters act on the probabilities at `temperature`, in the order top_k, top_p (Holtzman et al., arXiv 1904.09751),
    min_p (arXiv 2407.01082). The choice inverts the cumulative distribution, so it is a function of (logits, u) alone.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    order = None
    if 0 < top_k < logits.shape[-1] or top_p < 1 or min_p > 0:
        logits, order = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]), dim=-1)  # likeliest first
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    p = (logits.to(wide) / temperature).softmax(dim=-1)
    if top_p < 1:
        p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0)
    if min_p > 0:
        p = p.masked_fill(p < min_p * p[:, :1], 0)
    cumulative = p.cumsum(dim=-1)
    wanted = u.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    last = (p > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)  # rounding must not reach behind it
    index = torch.searchsorted(cumulative, wanted, right=True).minimum(last)
    return (index if order is None else order.gather(1, index)).squeeze(1)


@torch.inference_mode()
def generate(
    model: GPT, prompt: list[int], num_samples: int = 1, max_new_tokens: int = 500, temperature: float = 0.8,
    top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, seed: int = 1337, stop_ids: tuple[int, ...] = (),
) -> Iterator[list[int | None]]:  # fmt: skip
    """Yield the next token of every sample, a list of num_samples ids, until all have stopped; None behind a stop.

    prompt: at least one id. A stop id ends its row and is itself yielded. When the context (block_size) is full, the
    last half of it is read anew and decoding goes on: positions never exceed those that were trained.
    """
    if not prompt:
        raise ValueError("the prompt has no tokens: begin with the end-of-text token")
    device, c = model.head_weight.device, model.config
    generators = [torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63) for i in range(num_samples)]
    u = torch.stack([torch.rand(max_new_tokens, generator=g) for g in generators], dim=1).to(device)  # (steps, B)
    ids = [list(prompt) for _ in range(num_samples)]
    done = [False] * num_samples
    length = min(c.block_size, len(prompt) + max_new_tokens)
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.head_weight.dtype
    cache, new = None, None
    for step in range(max_new_tokens):
        if cache is None or cache.pos == length:
            context = [row if len(row) <= c.block_size else row[-(c.block_size // 2) or -1 :] for row in ids]
            # The rows are equal at first, so one is read and the others take its keys and values.
            rows = context if step else context[:1]
            new = torch.tensor(rows, device=device)
            filled = KVCache(c, len(rows), length, device, dtype)
            features = model.features(new, filled)[:, -1]
            cache = filled
            if len(rows) < num_samples:
                cache = KVCache(c, num_samples, length, device, dtype)
                cache.k.copy_(filled.k)
                cache.v.copy_(filled.v)
                cache.pos = filled.pos
                features = features.expand(num_samples, -1)
        else:
            features = model.features(new, cache)[:, -1]
        tokens = choose(model.logits(features), u[step], temperature, top_k, top_p, min_p)
        new = tokens.unsqueeze(1)
        out: list[int | None] = tokens.tolist()
        for i, token in enumerate(out):
            if done[i]:
                out[i] = None
            else:
                done[i] = token in stop_ids
            ids[i].append(token)
        yield out
        if all(done):
            return


class TextStream:
    """Token ids to text as they come: bytes of a character that is not complete yet are held back."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoder = tokenizer, codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        return self.decoder.decode(self.tokenizer.decode_bytes([token]))

    def end(self) -> str:
        return self.decoder.decode(b"", final=True)


def read_prompt(options: Options) -> str:
    """The prompt from --prompt, --prompt_file or standard input. Raises ValueError for a file that is not UTF-8."""
    if not options.prompt_file and options.prompt != "-":
        return options.prompt
    raw = Path(options.prompt_file).read_bytes() if options.prompt_file else sys.stdin.buffer.read()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        where = options.prompt_file or "standard input"
        raise ValueError(f"the prompt in {where} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None


def main(argv: list[str] | None = None) -> int:
    options = config.parse(Options, argv, **PARSER)
    path = checkpoint.find_checkpoint(options.out_dir)
    tokenizer = load_tokenizer(path)
    prompt = read_prompt(options)
    ids = [tokenizer.eot_id, *tokenizer.encode(prompt)]  # documents begin with end-of-text, so do prompts
    run = runtime.start(options.device, options.dtype)
    model = checkpoint.load_model(path).to(run.device)
    print(f"{path}: {model.n_params():,} parameters, {run.describe()}", file=sys.stderr)
    if len(ids) + options.max_new_tokens > model.config.block_size:
        limit = model.config.block_size
        print(f"longer than the context of {limit} tokens: when full, its last half is kept", file=sys.stderr)
    as_text = options.format == "text"
    live = as_text and options.stream
    if as_text and sys.stdout.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    streams = [TextStream(tokenizer) for _ in range(options.num_samples)]
    texts, rows = [""] * options.num_samples, [[] for _ in range(options.num_samples)]
    began, first = time.perf_counter(), None
    with run.autocast():
        for tokens in generate(
            model, ids, options.num_samples, options.max_new_tokens, options.temperature, options.top_k, options.top_p,
            options.min_p, options.seed, (tokenizer.eot_id,),
        ):  # fmt: skip
            first = first or time.perf_counter() - began
            for i, token in enumerate(tokens):
                if token is None or token == tokenizer.eot_id:
                    continue
                rows[i].append(token)
                piece = streams[i].add(token)
                texts[i] += piece
                if live and i == 0:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
    seconds = time.perf_counter() - began
    made = sum(len(row) for row in rows)
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        rest = streams[i].end()
        if as_text:
            if i and sys.stdout.isatty():
                print(f"\n--- sample {i + 1} of {options.num_samples}\n{prompt}", end="", file=sys.stderr, flush=True)
            print((rest if live and i == 0 else text + rest), flush=True)
        else:
            reason = "length" if len(row) == options.max_new_tokens else "stop"
            about = {"prompt": prompt, "text": text + rest, "ids": row, "finish_reason": reason, "seed": options.seed}
            print(json.dumps({**about, "sample": i, "tokens_per_second": round(len(row) / seconds, 2)}), flush=True)
    print(f"{made:,} tokens, {made / seconds:,.0f} tokens/s, first after {1000 * first:.0f} ms", file=sys.stderr)
    return 0


if __name__ == "__main__":
    config.run(main)
