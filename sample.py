"""Generate text with a trained model.

    python sample.py --out_dir=RUN --prompt="def main" --num_samples=3
    python sample.py --model=hf:gpt2 --interactive

stdout carries generated text only; what is said about it goes to stderr. All samples of all prompts
are decoded side by side, each prompt is read once, and sample i depends on the prompt, the seed and
i alone, not on what runs beside it.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from lathe import cli, hints
from lathe.fields import PathName
from lathe.use.sampling import Sampling

MOST_SAMPLES = 10**6
MOST_TOKENS = 5 * 10**7  # of samples side by side, for each of which there are random numbers


@dataclass(frozen=True)
class Options(Sampling):
    """What to generate, from what."""

    top_k: int = 200  # choose among this many likeliest tokens; 0 = all

    # --- model
    out_dir: PathName = "out/quickstart"  # a run's folder (its best checkpoint) or a checkpoint's
    model: PathName = ""  # instead of out_dir: hf:NAME_OR_FOLDER, a Hugging Face model
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    # of the weights; int8, for CPUs: 8 bits each
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    # torch.compile the decoding step; auto: for long jobs on a GPU
    compile: Literal["auto", "true", "false"] = "auto"

    # --- prompts
    # texts to continue; none = the start of a document, - = stdin
    prompt: list[str] = field(default_factory=list)
    prompt_file: PathName = ""  # file with one text to continue
    # JSONL file, {"prompt": TEXT} a line; - = stdin; other keys go on to jsonl output
    prompts: PathName = ""
    # ask for prompts, continue or retry them, change settings: /help there
    interactive: bool = False
    # a model trained on chats gets prompts in its chat template; false: as they are
    chat: bool = True
    system: str = ""  # of a chat: what the model is told before the first prompt

    # --- samples
    num_samples: int = 1  # samples of each prompt
    max_new_tokens: int = 500  # longest sample, in tokens
    batch_size: int = 32  # most samples decoded side by side; in float32 no text depends on it
    # texts that end a sample, never printed; \n is a line's end, \t a tab, \\ a backslash
    stop: list[str] = field(default_factory=list)
    # token ids that end a sample, beside end-of-text
    stop_ids: list[int] = field(default_factory=list)
    ignore_eot: bool = False  # go on after end-of-text

    # --- output
    stream: bool = True  # print the first sample while it is being made
    format: Literal["text", "jsonl"] = "text"  # jsonl: one object per sample

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be 1 or more")
        side_by_side = min(self.batch_size, self.num_samples)
        for name, value, most in (
            ("num_samples", self.num_samples, MOST_SAMPLES),
            ("max_new_tokens", side_by_side * self.max_new_tokens, MOST_TOKENS),
        ):
            if value > most:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: samples side by side have {most:,} tokens "
                    f"at most, and there are {MOST_SAMPLES:,} samples at most"
                )
        if min(self.stop_ids, default=0) < 0:
            raise ValueError(f"stop_ids has {min(self.stop_ids)}: ids are numbers from 0")
        if self.model and self.out_dir != Options.out_dir:
            raise ValueError(f"model is {self.model} and out_dir {self.out_dir}: choose one")
        if self.interactive and (self.format != "text" or self.num_samples != 1):
            raise ValueError("a dialogue has one answer, as text: leave out format and num_samples")
        if self.interactive and self.prompts:
            raise ValueError(
                "prompts are not for a dialogue: leave out --interactive, or give one --prompt"
            )
        given = [name for name in ("prompt", "prompt_file", "prompts") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{given[1]} and {given[0]} are both given: choose one")
        for text in self.prompt:
            if text.startswith("FILE:"):
                raise ValueError(
                    f"prompt is {text}: a file is named with --prompt_file={text[5:]} (and a text "
                    "that begins so is given with --prompts)"
                )
        if "" in self.stop:
            raise ValueError("stop is an empty text, which would end every sample at once")
        if self.logprobs and self.format == "text":
            raise ValueError("logprobs are part of jsonl output: add --format=jsonl")
        if self.model and not self.model.startswith("hf:"):
            raise ValueError(f"model is {self.model!r}: {hints.instead_of_hf(self.model)}")


ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", "\\\\": "\\"}


def unescape(text: str) -> str:
    r"""A text with \n, \t, \r and \\, which shells hand on as they are, as what they stand for."""
    return re.sub(r"\\[ntr\\]", lambda match: ESCAPES[match[0]], text)


PARSER = dict(prog="sample.py", description="Generate text with a trained model.")
if __name__ == "__main__":  # torch takes seconds; --help and mistakes need not wait
    options = cli.parse_before_imports(Options, **PARSER)

import json
import math
import sys
import time
from collections import deque
from dataclasses import fields, replace
from pathlib import Path

import torch

from lathe.json_text import NotJSON
from lathe.run import devices
from lathe.run.progress import with_bar
from lathe.terminal import edit_lines, print_note, print_result
from lathe.text.chat import TEMPLATES
from lathe.text.tokenizer import has_lone_surrogates
from lathe.use.decoder import Token
from lathe.use.dialogue import Dialogue
from lathe.use.find_model import FoundModel, find_model
from lathe.use.generation import generate
from lathe.use.inputs import read_json_lines, read_text
from lathe.use.quantize import choose_weights, prepare_weights
from lathe.use.sampling import Sampling
from lathe.use.stream import TextStream
from model import GPT, GPTConfig


def main(argv: list[str] | None = None) -> int:
    return generate_text(cli.parse(Options, argv, **PARSER))


def generate_text(options: Options) -> int:
    """What the options ask for."""
    source = find_model(options.model or options.out_dir)
    if not options.chat:
        source = replace(source, template="")
    refuse_ids_beyond(source.tokenizer.vocab_size, options)
    if options.system and source.template not in TEMPLATES:
        raise ValueError(
            f"--system is for chats; {source.name} is asked without a chat template: leave it out"
        )
    prompts = []
    for text in options.prompt:
        say_if_escaped("prompt", text)
    if not options.interactive:
        beginning = Dialogue.new(source.template, options.system)
        for row in read_prompts(options):
            prompts.append(as_prompt(row, beginning.ask(row["prompt"]), source))

    device, why_device = devices.choose_device(options.device)
    dtype, why_dtype = choose_weights(options.dtype, device)
    compiled, why_compiled = choose_compile(options, len(prompts), device)
    model = prepare_weights(source.load().to(device), dtype)
    shape = f"{model.config.n_layer} layers, {model.config.n_embd} wide"
    print_note(f"{source.name}: {shape}, {why_device}, {why_dtype}, {why_compiled}")
    warn_of_length(prompts, options.max_new_tokens, model.config)

    if options.interactive:
        converse(options, source, model)
    else:
        produce(options, source, model, prompts, compiled)
    return 0


def refuse_ids_beyond(vocab_size: int, options: Options):
    """ValueError for ids, or as many of them, as the tokenizer does not have."""
    largest = max(options.stop_ids, default=0)
    if largest >= vocab_size:
        raise ValueError(f"stop_ids has {largest}: the tokenizer has the ids 0 to {vocab_size - 1}")
    if options.logprobs > vocab_size:
        raise ValueError(f"logprobs is {options.logprobs}: the tokenizer has {vocab_size} ids")


# -----------------------------------------------------------------------------
# Prompts


@dataclass
class Prompt:
    """What samples continue."""

    row: dict  # {"prompt": text}, and what else stood in its line
    ids: list[int]  # that the model reads
    space: str  # what precedes the model's words, and is not printed


def say_if_escaped(name: str, text: str):
    """Prompts are taken as they stand; whoever types \\n for a line's end is to know that."""
    if r"\n" in text:
        print_note(
            rf"{name} has a backslash and an n, not a line's end: that is $'a\nb' in a shell"
        )


def as_prompt(row: dict, dialogue: Dialogue, source: FoundModel) -> Prompt:
    """A dialogue as the model reads it. Raises ValueError where it has no token for a character."""
    text, space = dialogue.prompt()
    if has_lone_surrogates(text):
        print_note("a prompt has half a surrogate pair, which no text has: it is read as U+FFFD")
    return Prompt(row, source.encode(text), space)


def read_prompts(options: Options) -> list[dict]:
    """[{"prompt": text, ...}] as the options say. ValueError, naming the line, for wrong JSONL."""
    if options.prompts:
        rows = []
        try:
            lines = read_json_lines(options.prompts)
        except NotJSON as error:
            raise ValueError(f'prompts: {error}; lines are {{"prompt": TEXT}}') from None
        for where, row in lines:
            if not isinstance(row.get("prompt"), str):
                raise ValueError(f'prompts: {where} is not {{"prompt": TEXT}}')
            if options.format == "jsonl":
                check_keys(where, row, options)
            rows.append(row)
        if not rows:
            raise ValueError(f"prompts: {options.prompts} holds no prompt")
        return rows
    if options.prompt_file:
        if options.prompt_file != "-" and not Path(options.prompt_file).is_file():
            raise FileNotFoundError(
                f"prompt_file is {options.prompt_file}: there is no such file; a text itself is "
                "given with --prompt"
            )
        return [{"prompt": read_text(options.prompt_file)}]
    texts = options.prompt or [""]
    return [{"prompt": read_text("-") if text == "-" else text} for text in texts]


# Of a sample in jsonl output.
OWN_KEYS = ("sample", "text", "ids", "finish_reason", "seed", "tokens_per_second")
LOGPROB_KEYS = ("logprobs", "top_logprobs")


def check_keys(where: str, row: dict, options: Options):
    """ValueError if a prompt's row has a key that is one of a sample's, too."""
    own_keys = OWN_KEYS + LOGPROB_KEYS if options.logprobs else OWN_KEYS
    taken = [key for key in own_keys if key in row]
    if taken:
        raise ValueError(
            f"prompts: {where} has the key {taken[0]!r}, which jsonl output has for the sample: "
            f"rename it"
        )


def warn_of_length(prompts: list[Prompt], max_new_tokens: int, config: GPTConfig):
    """Say what becomes of texts that are longer than the context."""
    size = config.block_size
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    if longest > size:
        print_note(
            f"a prompt of {longest} tokens exceeds the context of {size}: "
            f"its last {size // 2} count"
        )
    elif longest + max_new_tokens > size:
        print_note(f"longer than the context of {size} tokens: when full, its last half is kept")


# -----------------------------------------------------------------------------
# Samples


def most_steps(options: Options, n_prompts: int) -> int:
    """Decoding steps until all samples have ended, if each is as long as it may be."""
    batches = math.ceil(n_prompts * options.num_samples / options.batch_size)
    return options.max_new_tokens * batches


def choose_compile(options: Options, n_prompts: int, device: torch.device) -> tuple[bool, str]:
    """Whether to compile the decoding step, and why."""
    if device.type != "cuda":
        return False, "not compiled (decoding gains only on CUDA)"
    seconds = 0.12 * most_steps(options, n_prompts)  # so that auto compiles from 1,000 steps on
    return devices.choose_compile(options.compile, device, seconds)


@dataclass
class Sample:
    """One sample while it is made."""

    prompt: Prompt
    number: int  # among the samples of this prompt
    heading: str  # what is printed before it, to stderr
    stream: TextStream
    text: str = ""
    n_shown: int = 0  # characters of it that are printed
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = ""  # "stop" or "length", once finished
    seconds: float = 0.0  # until its last token

    def add(self, token: Token):
        self.tokens.append(token)
        self.text += self.stream.add(token.id)

    def finish(self, reason: str):
        self.text += self.stream.end()
        self.finish_reason = reason

    def print_text(self):
        """Print what is new of it."""
        new = self.text[self.n_shown :]
        if self.finish_reason:
            new += "\n"
        if new and self.n_shown == 0:
            print_note(self.heading, end="")
        print_result(new, end="")
        self.n_shown = len(self.text)

    def print_json(self, options: Options):
        row = {
            **self.prompt.row,
            "sample": self.number,
            "text": self.text,
            "ids": [token.id for token in self.tokens],
            "finish_reason": self.finish_reason,
            "seed": options.seed,
            "tokens_per_second": round(len(self.tokens) / self.seconds, 2),
        }
        if options.logprobs:
            row["logprobs"] = [token.logprob for token in self.tokens]
            row["top_logprobs"] = [token.top for token in self.tokens]
        print_result(json.dumps(row))


def produce(
    options: Options, source: FoundModel, model: GPT, prompts: list[Prompt], compiled: bool = False
) -> list[Sample]:
    """Generate and print all samples of all prompts, in order."""
    samples = begin_samples(options, source, prompts)
    unprinted = deque(samples)
    end_ids = tuple(options.stop_ids)
    if not options.ignore_eot:
        end_ids = (*source.ends, *end_ids)
    ended: set[int] = set()
    began = time.perf_counter()
    first = 0.0
    steps = generate(
        model,
        [prompt.ids for prompt in prompts],
        options.num_samples,
        options.max_new_tokens,
        sampling=options,
        stop_ids=end_ids,
        batch_size=options.batch_size,
        ended=ended,
        compiled=compiled,
    )
    show_bar = not sys.stdout.isatty()  # there, a bar would break into the text
    try:
        for tokens in with_bar(steps, "sampling", most_steps(options, len(prompts)), show_bar):
            seconds = time.perf_counter() - began
            first = first or seconds
            for token in tokens:
                sample = samples[token.row]
                sample.seconds = seconds
                if token.id not in end_ids:
                    sample.add(token)
                if sample.stream.stopped:
                    ended.add(token.row)
                if token.row in ended:
                    stopped = sample.stream.stopped or token.id in end_ids
                    sample.finish("stop" if stopped else "length")
            print_ready(unprinted, options)
    except KeyboardInterrupt:  # a dialogue goes on with what there is
        if not options.interactive:
            raise
        print_note()
    n_made = sum(len(sample.tokens) for sample in samples)
    speed = n_made / (time.perf_counter() - began)
    print_note(f"{n_made:,} tokens, {speed:,.1f} tokens/s, first after {1000 * first:.0f} ms")
    return samples


def begin_samples(options: Options, source: FoundModel, prompts: list[Prompt]) -> list[Sample]:
    """Samples without a token, in the order of generate's rows."""
    with_headings = sys.stdout.isatty() and not options.interactive
    n_samples = len(prompts) * options.num_samples
    samples = []
    stops = [unescape(text) for text in options.stop]
    for prompt in prompts:
        for number in range(options.num_samples):
            heading = ""
            if with_headings and n_samples > 1:
                heading = f"\n--- sample {len(samples) + 1} of {n_samples}\n"
            if with_headings:
                heading += prompt.row["prompt"]
            stream = TextStream(source.tokenizer, stops, prompt.space)
            samples.append(Sample(prompt, number, heading, stream))
    return samples


def print_ready(unprinted: deque[Sample], options: Options):
    """Print what is ready of the next in line, and let go of those that are finished."""
    while unprinted:
        sample = unprinted[0]
        if options.format == "text" and (options.stream or sample.finish_reason):
            sample.print_text()
        if not sample.finish_reason:
            return
        if options.format == "jsonl":
            sample.print_json(options)
        unprinted.popleft()


# -----------------------------------------------------------------------------
# A dialogue

HELP = """\
TEXT          continue this text, or answer it in a chat (end a line with \\ to go on in the next)
(empty line)  continue where the last answer stopped
/again        the last answer once more, with another seed
/new          begin a new chat
/set          show the settings; /set NAME VALUE changes one, as on the command line
/quit         or exit, quit or Ctrl-D; Ctrl-C stops an answer"""
LEAVING = ("/quit", "/exit", "/q", "quit", "exit", "quit()", "exit()", ":q")
# What /set changes: the rest was used as the dialogue began
CHANGEABLE = [f.name for f in fields(Sampling)] + [
    "max_new_tokens",
    "stop",
    "stop_ids",
    "ignore_eot",
]


def explain_commands(command: str):
    if command[1:] in CHANGEABLE:
        print_note(f"{command} is a setting: /set {command[1:]} VALUE")
        return
    if command != "/help":
        print_note(f"{command} is no command")
    print_note(HELP)


def converse(options: Options, source: FoundModel, model: GPT):
    """Ask for texts and continue them, or answer them in a chat that grows, until end of input.

    The prompts of the command line come first, as if they had been typed.
    """
    edit_lines()
    dialogue = Dialogue.new(source.template, options.system)
    kind = "message" if source.template in TEMPLATES else "text to continue"
    print_note(f"a {kind}, or /help")
    typed = deque()
    if options.prompt or options.prompt_file:
        typed.extend(row["prompt"] for row in read_prompts(options))
    while True:
        try:
            if typed:
                line = typed.popleft()
                print_note(f"> {line}")
                dialogue = answer(dialogue.ask(line), options, source, model)
                continue
            line = read_line()
            command, _, rest = line.partition(" ")
            if line.strip() in LEAVING:
                return
            if command == "/set":
                options = set_option(rest.strip(), options, source)
            elif command == "/new":
                dialogue = Dialogue.new(source.template, options.system)
            elif command == "/again":
                options = replace(options, seed=options.seed + 1)
                dialogue = answer(dialogue.again(), options, source, model)
            elif line.startswith("/"):
                explain_commands(command)
            elif line:
                dialogue = answer(dialogue.ask(line), options, source, model)
            else:
                dialogue = answer(dialogue.go_on(), options, source, model)
        except EOFError:
            return
        except KeyboardInterrupt:
            print_note()
        except SystemExit:  # what is wrong with a /set has been printed
            continue
        except ValueError as error:  # an unknown character, say
            print_note(error)


def set_option(change: str, options: Options, source: FoundModel) -> Options:
    """The options with one changed, as NAME VALUE or NAME=VALUE says; without a value they are
    shown. Raises ValueError for one that cannot change any more, SystemExit for a wrong value."""
    name, _, value = change.replace("=", " ", 1).partition(" ")
    name = name.removeprefix("--").replace("-", "_")
    value = value.strip()
    if not value and (not name or name in CHANGEABLE):
        print_note("  ".join(f"{n}={getattr(options, n)}" for n in CHANGEABLE if name in ("", n)))
        return options
    if name not in CHANGEABLE and name in {f.name for f in fields(Options)}:
        raise ValueError(
            f"{name} was decided as the dialogue began: /quit, and begin another with "
            f"--{name}={value}; /set changes {', '.join(CHANGEABLE)}"
        )
    if value in ("none", "[]") and name in ("stop", "stop_ids"):
        return replace(options, **{name: []})
    parsed = cli.parse(Options, [f"--{name}={value}"], **PARSER)
    options = replace(options, **{name: getattr(parsed, name)})
    refuse_ids_beyond(source.tokenizer.vocab_size, options)
    print_note(f"{name}={getattr(options, name)}")
    return options


def read_line() -> str:
    line = input("> ")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input(". ")
    return cli.must_be_text(line)


def answer(dialogue: Dialogue, options: Options, source: FoundModel, model: GPT) -> Dialogue:
    """The dialogue with the model's answer, which is printed."""
    prompt = as_prompt({}, dialogue, source)
    streamed = replace(options, num_samples=1, format="text", stream=True, logprobs=0)
    (sample,) = produce(streamed, source, model, [prompt])
    return dialogue.answered(sample.text)


if __name__ == "__main__":
    cli.run(generate_text, options)
