"""Generate text with a trained model.

    python sample.py --out_dir=RUN --prompt="def main" --num_samples=3
    python sample.py --model=hf:gpt2 --interactive

stdout carries generated text only; what is said about it goes to stderr. All samples of all prompts are decoded side by
side, each prompt is read once, and sample i depends on the prompt, the seed and i alone, not on what runs beside it.
"""

from dataclasses import dataclass, field
from typing import Literal

from lathe import cli
from lathe.use.sampling import Sampling


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
    options = cli.parse_before_imports(Options, **PARSER)  # torch takes seconds; --help and mistakes need not wait

import json
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import fields, replace

from lathe import cli
from lathe.run import devices
from lathe.run.progress import with_bar
from lathe.text.chat import TEMPLATES, chat_prompt
from lathe.use.decoder import Token
from lathe.use.find_model import FoundModel, find_model
from lathe.use.generation import generate
from lathe.use.prompts import read_json_lines, read_text
from lathe.use.quantize import choose_weights, prepare_weights
from lathe.use.sampling import Sampling
from lathe.use.stream import TextStream
from model import GPT


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
    options: Options, source: FoundModel, model: GPT, prompts: list[dict], ids: list[list[int]], compiled: bool, space: str
) -> list[Sample]:
    """Generate and print all samples of all prompts, in order, without `space` before them; returns them."""
    numbers, as_text = range(options.num_samples), options.format == "text"
    samples = [Sample(row, i, TextStream(source.tokenizer, options.stop, space)) for row in prompts for i in numbers]
    ends = (*(() if options.ignore_eot else source.ends), *options.stop_ids)
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


HELP = """\
TEXT          continue this text, or answer it in a chat (end a line with \\ to go on in the next)
(empty line)  continue where the last answer stopped
/again        the last answer once more, with another seed
/new          begin a new chat
/set          show the settings; /set NAME VALUE changes one, as on the command line
/quit         or Ctrl-D; Ctrl-C stops an answer"""


def system_message(options: Options) -> list[dict]:
    return [{"role": "system", "content": options.system}] if options.system else []


def converse(argv: list[str], options: Options, source: FoundModel, model: GPT):
    """Ask for prompts and continue them, or answer them in a chat that grows, until end of input."""
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401 - gives input() line editing and history
    settings = [f.name for f in fields(Sampling)] + ["max_new_tokens", "stop", "stop_ids", "ignore_eot"]
    chat, before, answer = system_message(options), "", ""  # before: what there was of the answer before it went on
    print(f"a {'message' if source.template in TEMPLATES else 'text to continue'}, or /help", file=sys.stderr)
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
                options, argv = cli.parse(Options, longer, **PARSER), longer
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
            prompt, space = chat_prompt(asked, source.template) if asked else ("", "")
            if so_far:
                prompt, space = prompt + space + so_far, ""
            ids = source.encode(prompt)
            chat, before, answer = asked, so_far, so_far
            one = replace(options, num_samples=1, format="text", stream=True, logprobs=0)
            answer += produce(one, source, model, [{"prompt": prompt}], [ids], False, space)[0].text
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
    return sample(cli.parse(Options, argv, **PARSER), argv)


def sample(options: Options, argv: list[str]) -> int:
    """What the options ask for; a dialogue adds its own settings to `argv`, from which they came."""
    source = find_model(options.model or options.out_dir)
    if not options.chat:
        source = replace(source, template="")
    if options.system and source.template not in TEMPLATES:
        raise ValueError(f"--system is for chats; {source.name} is asked without a chat template: leave it out")
    prompts = [] if options.interactive else read_prompts(options)
    chats = [[*system_message(options), {"role": "user", "content": row["prompt"]}] for row in prompts]
    ids = [source.encode(chat_prompt(chat, source.template)[0]) for chat in chats]
    device, why_device = devices.choose_device(options.device)
    dtype, why_dtype = choose_weights(options.dtype, device)
    compiled, why_compiled = False, "not compiled (decoding gains only on CUDA)"
    if device.type == "cuda":
        steps = options.max_new_tokens * -(-len(ids) * options.num_samples // options.batch_size)
        compiled, why_compiled = devices.choose_compile(options.compile, device, 0.12 * steps)
    model = prepare_weights(source.load().to(device), dtype)
    c, longest = model.config, max(map(len, ids), default=0)
    about = (f"{c.n_layer} layers, {c.n_embd} wide", why_device, why_dtype, why_compiled)
    print(f"{source.name}: {', '.join(about)}", file=sys.stderr)
    size, kept = c.block_size, c.block_size // 2
    if longest > size:
        print(f"a prompt of {longest} tokens exceeds the context of {size}: its last {kept} count", file=sys.stderr)
    elif longest + options.max_new_tokens > size:
        print(f"longer than the context of {size} tokens: when full, its last half is kept", file=sys.stderr)
    if options.interactive:
        converse(argv, options, source, model)
    else:
        produce(options, source, model, prompts, ids, compiled, chat_prompt(chats[0], source.template)[1])
    return 0


if __name__ == "__main__":
    cli.run(sample, options, sys.argv[1:])
