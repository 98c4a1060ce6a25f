"""The matrix of exports and the programs that open them: ids, greedy text and chat as ours.

    python bench/clients.py                                  the clients installed in this Python
    python bench/clients.py --also .clients/457/bin/python   and in another one
    python bench/clients.py --only llama.cpp

bench/requirements-clients.txt lists the clients. Each kind of network and tokenizer is exported as
a folder and a GGUF file, with random weights, and opened by each client, in a process of its own. A
cell is "=" where ids of nasty texts, greedy continuations of prompts and answers to messages are
ours; "R" where the export refuses the client by the name of a setting; "x" otherwise, with what was
found below the table.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import client_runs
from bench.results import record
from huggingface import ClientName
from lathe import ROOT, cli
from lathe.fields import PathName
from lathe.terminal import print_note

if TYPE_CHECKING:  # main() imports what takes seconds
    from lathe.text.tokenizer import Tokenizer
    from model import GPT

N_TOKENS = 16  # of a continuation
CONTEXT = 128
MODERN = dict(position="rope", norm="rmsnorm")
STARCODER2 = dict(position="rope", norm="layernorm", norm_weight=True, qk_norm=False)
LEARNED = dict(position="learned", norm="layernorm", norm_weight=True, qk_norm=False)


@dataclass(frozen=True)
class Row:
    """A kind of model."""

    settings: dict  # of the network
    tokenizer: str = "bpe"
    template: str = ""


LLAMA = MODERN | dict(activation="swiglu", qk_norm=False)
ROWS = {
    "GPT-2": Row(LEARNED | dict(activation="gelu_tanh", bias=True, tie_weights=True)),
    "GPT-2, no biases": Row(LEARNED | dict(activation="gelu_tanh", tie_weights=True)),
    "GPT-2, gelu by erf": Row(LEARNED | dict(activation="gelu", bias=True, tie_weights=True)),
    "GPT-2, head of its own, n_hidden=96": Row(
        LEARNED | dict(activation="gelu_tanh", bias=True, n_hidden=96)
    ),
    "Llama": Row(LLAMA),
    "Llama, grouped, biases, tied": Row(
        LLAMA | dict(n_kv_head=2, bias=True, tie_weights=True, norm_weight=True)
    ),
    "Llama, head_dim=64": Row(LLAMA | dict(head_dim=64, rope_theta=500.0, norm_eps=1e-6)),
    "Llama, rope linear:2": Row(LLAMA | dict(rope_scaling="linear:2")),
    "Llama, rope llama3": Row(LLAMA | dict(rope_scaling="llama3:8:1:4:64")),
    "Qwen3": Row(MODERN | dict(activation="swiglu", qk_norm=True)),
    "Qwen3, grouped, head_dim=64, tied": Row(
        MODERN | dict(activation="swiglu", qk_norm=True, n_kv_head=2, head_dim=64, tie_weights=True)
    ),
    "Qwen3, rope linear:2": Row(
        MODERN | dict(activation="swiglu", qk_norm=True, rope_scaling="linear:2")
    ),
    "Arcee, relu2": Row(MODERN | dict(activation="relu2", qk_norm=False, n_kv_head=2)),
    "Arcee, gelu, biases": Row(MODERN | dict(activation="gelu", qk_norm=False, bias=True)),
    "Apertus, relu2": Row(MODERN | dict(activation="relu2", qk_norm=True, n_kv_head=2)),
    "Apertus, gelu": Row(MODERN | dict(activation="gelu", qk_norm=True)),
    "Starcoder2, gelu_tanh": Row(STARCODER2 | dict(activation="gelu_tanh", n_kv_head=2)),
    "Starcoder2, gelu": Row(STARCODER2 | dict(activation="gelu", bias=True, tie_weights=True)),
    "Starcoder2, relu2": Row(STARCODER2 | dict(activation="relu2")),
    "Qwen3, table by n-grams": Row(
        MODERN | dict(activation="swiglu", qk_norm=True, ngram_rows=512, ngram_order=3)
    ),
    "Llama, table by n-grams, chat": Row(LLAMA | dict(ngram_rows=512), "bpe", "turns"),
    "bytes, chat": Row(LLAMA, "byte", "chat"),
    "characters, chat": Row(LLAMA, "char", "chat"),
    "bpe, chat": Row(LLAMA, "bpe", "chat"),
    "bpe, instruction": Row(LLAMA, "bpe", "instruction"),
    "bpe, turns": Row(LLAMA, "bpe", "turns"),
    "bpe cut as cl100k_base": Row(LLAMA, "cl100k"),
    "bpe cut as Llama 3": Row(LLAMA, "llama3"),
    "gpt2": Row(LEARNED | dict(activation="gelu_tanh", bias=True, tie_weights=True), "gpt2"),
}


@dataclass
class Options:
    """Which clients, in which Pythons."""

    only: list[ClientName] = field(default_factory=list)  # clients; none = all that are installed
    also: list[PathName] = field(default_factory=list)  # Pythons that have others
    rows: list[str] = field(default_factory=list)  # beginnings of names of rows; none = all
    save: bool = False  # append to bench/RESULTS.md


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(Options, argv, prog="bench/clients.py", description=__doc__)
    columns = {}
    for python in (sys.executable, *options.also):
        for column in installed(python):
            if not options.only or column.client in options.only:
                columns.setdefault(column.title, column)  # the same in several counts once
    begins = tuple(options.rows) or ("",)
    rows = {name: row for name, row in ROWS.items() if name.startswith(begins)}
    with tempfile.TemporaryDirectory() as scratch:
        exports = make_exports(rows, Path(scratch))
        cells = {title: run_client(column, exports) for title, column in columns.items()}
    silent = 0
    for title, column in cells.items():
        for name, cell in column.items():
            silent += cell.mark == "x"
            if cell.why:
                print_note(f"{title}, {name}: {cell.mark} {cell.why}")
    table = [[name, *(cells[title][name].mark for title in cells)] for name in exports]
    notes = (
        "= ids of nasty texts, greedy text and answers are ours; R refused by name at export; "
        "x neither"
    )
    record("Exports in other programs", ["model", *cells], table, notes, options.save)
    return 1 if silent else 0


# -----------------------------------------------------------------------------
# Clients


@dataclass(frozen=True)
class Column:
    """A client in a Python."""

    client: str
    version: str
    python: str

    @property
    def title(self) -> str:
        return f"{self.client} {self.version}"


def installed(python: str) -> list[Column]:
    """The clients that a Python has."""
    modules = [module for module, _ in client_runs.CLIENTS.values()]
    code = (
        "import importlib.util as u, importlib.metadata as m, json, sys\n"
        "names = m.packages_distributions()\n"
        "print(json.dumps({n: m.version(names.get(n, [n])[0]) "
        "for n in sys.argv[1:] if u.find_spec(n)}))"
    )
    done = subprocess.run([python, "-c", code, *modules], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"also is {python}: it does not run: {done.stderr.strip()[-200:]}")
    versions = json.loads(done.stdout)
    clients = client_runs.CLIENTS.items()
    return [
        Column(name, versions[module], python)
        for name, (module, _) in clients
        if module in versions
    ]


@dataclass(frozen=True)
class Cell:
    mark: str  # =, R or x
    why: str = ""


def run_client(column: Column, exports: dict[str, "Export"]) -> dict[str, Cell]:
    """What the client makes of each export."""
    cells = {}
    held = {}
    for name, export in exports.items():
        faults = export.faults.get(column.client, [])
        if faults:
            cells[name] = Cell("R", ", ".join(faults))
        else:
            held[name] = export
    print_note(f"{column.title}: {len(held)} exports")
    for name, result in results_of(column, held).items():
        fault = result.get("error") or first_difference(held[name].ours, result)
        cells[name] = Cell("x", fault) if fault else Cell("=")
    return cells


def results_of(column: Column, exports: dict[str, "Export"]) -> dict[str, dict]:
    """{name: what client_runs.py prints of it}. An export at which the process breaks off is an
    error, and the next ones go to a new process."""
    results = {}
    command = [column.python, str(ROOT / "bench" / "client_runs.py"), column.client]
    while len(results) < len(exports):
        left = [name for name in exports if name not in results]
        requests = "".join(json.dumps(exports[name].request) + "\n" for name in left)
        done = subprocess.run(command, input=requests, capture_output=True, text=True, cwd="/")
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        for name, line in zip(left, lines, strict=False):
            results[name] = json.loads(line.removeprefix("RESULT "))
        if len(lines) < len(left):
            last = (done.stderr.strip().splitlines() or [""])[-1]
            error = f"ended with exit code {done.returncode}: {last[:200]}"
            results[left[len(lines)]] = {"error": error}
    return results


def first_difference(ours: dict, theirs: dict) -> str:
    """What is not equal, or "". A client may leave unsaid the end-of-text and what follows it, half
    a character at the end, and the white space around a text."""

    def shown(text: str) -> str:
        return text.partition(ours["end"])[0].rstrip("\ufffd").strip()

    for text, our_ids, their_ids in zip(ours["texts"], ours["ids"], theirs["ids"], strict=True):
        if our_ids != their_ids:
            return f"other ids for {text[:40]!r}"
    for kind in ("continued", "answers"):
        for our_text, their_text in zip(ours[kind], theirs[kind], strict=True):
            if shown(our_text) != shown(their_text):
                return f"{kind}: {their_text!r}, ours {our_text!r}"
    return ""


# -----------------------------------------------------------------------------
# Exports


@dataclass(frozen=True)
class Export:
    """A model as written, what is asked of it, and what we make of it."""

    request: dict
    ours: dict
    faults: dict[str, list[str]]  # {client: what it cannot hold}


def make_exports(rows: dict[str, Row], scratch: Path) -> dict[str, Export]:
    """Each row as a folder and, where llama.cpp can hold it, a file."""
    exports = {}
    for i, (name, row) in enumerate(rows.items()):
        try:
            tokenizer = make_tokenizer(row.tokenizer)
        except OSError as error:  # gpt2, where its files are not at hand
            print_note(f"{name} is left out: {error}")
            continue
        exports[name] = make_export(row, tokenizer, scratch / str(i))
    return exports


def make_export(row: Row, tokenizer: "Tokenizer", folder: Path) -> Export:
    from lathe.use.gguf_file import write_gguf
    from lathe.use.hf.check import nasty_texts
    from lathe.use.hf.clients import CLIENTS
    from lathe.use.hf.export import export

    model = random_model(row.settings, tokenizer)
    faults = {name: client.faults(model.config, tokenizer) for name, client in CLIENTS.items()}
    export(model, tokenizer, folder, state={"template": row.template})
    file = folder.with_suffix(".gguf")
    if not faults["llama.cpp"]:
        write_gguf(model, tokenizer, file, template=row.template)
    prompts = ["def main", "12345 + 6", " The quick brown"]
    dialogues = []
    if row.template:
        first = {"role": "user", "content": "Who are you?"}
        answer = {"role": "assistant", "content": "I am"}
        dialogues = [[first], [first, answer, {"role": "user", "content": "Why?"}]]
    texts = nasty_texts(tokenizer)
    request = {
        "trust_remote_code": model.config.ngram_rows > 0,  # as the export's last lines say
        "folder": str(folder),
        "file": str(file),
        "texts": texts,
        "prompts": prompts,
        "dialogues": dialogues,
        "n_tokens": N_TOKENS,
    }
    ours = {
        "texts": texts,
        "end": "<|endoftext|>",
        "ids": [tokenizer.encode(text) for text in texts],
        "continued": [greedy(model, tokenizer, prompt) for prompt in prompts],
        "answers": [answered(model, tokenizer, messages, row.template) for messages in dialogues],
    }
    return Export(request, ours, faults)


def make_tokenizer(kind: str) -> "Tokenizer":
    """Of bytes or characters, gpt2's, or a BPE learned from this file, cut as the kind says."""
    from lathe.text.bpe import count_pieces, train_bpe
    from lathe.text.gpt2 import GPT2_PATTERN
    from lathe.text.patterns import CL100K_PATTERN, LLAMA3_PATTERN
    from lathe.text.tokenizer import load_tokenizer, train_char

    if kind in ("byte", "gpt2"):
        return load_tokenizer(kind)
    text = Path(__file__).read_text(encoding="utf-8") + "é 日本語 🎉 0123456789 12345\n"
    if kind == "char":
        return train_char([text])
    pattern = {"bpe": GPT2_PATTERN, "cl100k": CL100K_PATTERN, "llama3": LLAMA3_PATTERN}[kind]
    return train_bpe(count_pieces([text], pattern), 600, pattern)


def random_model(settings: dict, tokenizer: "Tokenizer") -> "GPT":
    """Untrained, with no tensor all zeros or ones, and with an opinion on the next token."""
    import torch

    from model import GPT, GPTConfig

    torch.manual_seed(0)
    shape = dict(block_size=CONTEXT, n_layer=2, n_head=4, n_embd=128, zero_init=False)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **{**shape, **settings})).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.15 * torch.randn_like(parameter)
    return model


def greedy(model: "GPT", tokenizer: "Tokenizer", prompt: str) -> str:
    """The likeliest continuation, up to the end-of-text, as plainly as can be: without a cache."""
    import torch

    ids = [tokenizer.eot_id, *tokenizer.encode(prompt)]
    new = []
    with torch.inference_mode():
        for _ in range(N_TOKENS):
            logits = model(torch.tensor([ids + new]))[0, -1, : tokenizer.vocab_size]
            new.append(logits.argmax().item())
            if new[-1] == tokenizer.eot_id:
                new.pop()
                break
    return tokenizer.decode(new)


def answered(model: "GPT", tokenizer: "Tokenizer", messages: list[dict], template: str) -> str:
    """The answer as sample.py gives it, on the same prompt as the exported template makes."""
    from lathe.text.chat import chat_prompt
    from lathe.use.hf.tokenizers import answers_begin_with_a_space

    text, space = chat_prompt(messages, template)
    if not answers_begin_with_a_space(template, tokenizer):
        text += space
    return greedy(model, tokenizer, text)


if __name__ == "__main__":
    cli.run(main)
