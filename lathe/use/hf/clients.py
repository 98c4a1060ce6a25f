"""The programs that open an export: what each cannot hold, and how each continues a text.

bench/clients.py runs them and prints what became of every kind of model.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lathe.text.tokenizer import Tokenizer
from lathe.use.gguf_file import faults_for_llama_cpp, settings_to_train_with
from lathe.use.hf.families import GPT2, architecture_of
from lathe.use.hf.tokenizers import end_of_text
from model import GPTConfig

VLLM_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of its attention on CPUs


def faults_for_vllm(config: GPTConfig, tokenizer: Tokenizer) -> list[str]:
    """It computes xIELU for Apertus, whatever config.json says."""
    faults = faults_of_table(config) + faults_of_apertus(config)
    if config.head_dim not in VLLM_HEADS:
        faults.append(f"head_dim={config.head_dim}")
    return faults


def faults_for_ctranslate2(config: GPTConfig, tokenizer: Tokenizer) -> list[str]:
    """It has no converter for other families, and the usual numbers built in."""
    architecture = architecture_of(config)
    faults = faults_of_table(config)
    if config.rope_scaling.startswith("llama3"):  # which it computes in another way
        faults.append(f"rope_scaling={config.rope_scaling}")
    if architecture not in (GPT2, "LlamaForCausalLM", "Qwen3ForCausalLM"):
        faults.append(f"activation={config.activation} (its class is {architecture})")
    if architecture == GPT2 and config.norm_eps != 1e-5:
        faults.append(f"norm_eps={config.norm_eps}")
    if architecture == "LlamaForCausalLM" and not heads_fill_the_width(config):
        faults.append(f"head_dim={config.head_dim}")
    return faults


def faults_for_mlx_lm(config: GPTConfig, tokenizer: Tokenizer) -> list[str]:
    """GPT-2 as published alone, Starcoder2 with the gelu of its other models."""
    architecture = architecture_of(config)
    faults = faults_of_table(config) + faults_of_apertus(config)
    if architecture == "ArceeForCausalLM":
        faults.append(f"activation={config.activation} (its class is {architecture})")
    elif architecture == GPT2:
        if config.activation != "gelu_tanh":
            faults.append(f"activation={config.activation}")
        if config.n_hidden != 4 * config.n_embd:
            faults.append(f"n_hidden={config.n_hidden}")
        if not config.tie_weights:
            faults.append("tie_weights=False")
    elif architecture == "Starcoder2ForCausalLM":
        if config.activation != "gelu":
            faults.append(f"activation={config.activation}")
        if not heads_fill_the_width(config):
            faults.append(f"head_dim={config.head_dim}")
        if config.rope_scaling:
            faults.append(f"rope_scaling={config.rope_scaling}")
    return faults


def faults_of_table(config: GPTConfig) -> list[str]:
    """The code of a table by n-grams, in the folder, is for transformers."""
    return [f"ngram_rows={config.ngram_rows}"] if config.ngram_rows else []


def faults_of_apertus(config: GPTConfig) -> list[str]:
    if architecture_of(config) != "ApertusForCausalLM":
        return []
    return [f"activation={config.activation} with qk_norm=True (its Apertus has xIELU)"]


def heads_fill_the_width(config: GPTConfig) -> bool:
    return config.n_head * config.head_dim == config.n_embd


@dataclass(frozen=True)
class Client:
    """A program that opens an export."""

    faults: Callable[[GPTConfig, Tokenizer], list[str]]  # what it cannot hold, as SETTING=VALUE
    # how it continues "Once"; {folder}, {file}, {end}, {new}, {trust} stand for what they are here
    call: str
    chat: str = ""  # how it answers "Who are you?"
    reads_gguf: bool = False  # a file, and no folder


MESSAGES = '[{{"role": "user", "content": "Who are you?"}}]'
CLIENTS = {
    "transformers": Client(
        faults=lambda config, tokenizer: [],
        call='model.generate(**tokenizer("{end}Once", return_tensors="pt"), max_new_tokens={new})',
        chat=f"model.generate(**tokenizer.apply_chat_template({MESSAGES}, "
        'add_generation_prompt=True, return_tensors="pt", return_dict=True), max_new_tokens={new})',
    ),
    "vllm": Client(
        faults=faults_for_vllm,
        call='LLM("{folder}", dtype="float32").generate("{end}Once")',
        chat=f'LLM("{{folder}}", dtype="float32").chat({MESSAGES})',
    ),
    "lm-eval": Client(
        faults=lambda config, tokenizer: [],
        call="lm_eval --model hf --model_args "
        "pretrained={folder},dtype=float32,add_bos_token=True{trust} --tasks TASK",
        chat="lm_eval --model hf --model_args pretrained={folder},dtype=float32{trust} "
        "--apply_chat_template --tasks TASK",
    ),
    "ctranslate2": Client(
        faults=faults_for_ctranslate2,
        call='generator.generate_batch([tokenizer.tokenize("{end}Once")], max_length={new}, '
        "include_prompt_in_result=False)",
        chat="generator.generate_batch([tokenizer.convert_ids_to_tokens("
        f"tokenizer.apply_chat_template({MESSAGES}, add_generation_prompt=True, "
        "return_dict=False))], max_length={new}, include_prompt_in_result=False, "
        'end_token="{end}")',
    ),
    "mlx-lm": Client(
        faults=faults_for_mlx_lm,
        call="mlx_lm.generate --model {folder} --max-tokens {new} --ignore-chat-template "
        '--prompt "{end}Once"',
        chat='mlx_lm.generate --model {folder} --max-tokens {new} --prompt "Who are you?"',
    ),
    "llama.cpp": Client(
        faults=faults_for_llama_cpp,
        call='llama-completion -m {file} -no-cnv -p "Once"',
        chat="llama-cli -m {file} --jinja",
        reads_gguf=True,
    ),
}


def refuse_for(clients: list[str], config: GPTConfig, tokenizer: Tokenizer):
    """ValueError, naming client and settings, if one of them cannot hold this model."""
    for name in clients:
        faults = CLIENTS[name].faults(config, tokenizer)
        if faults:
            raise ValueError(
                f"{name} cannot hold {', '.join(faults)}: train with "
                f"{settings_to_train_with(config)}, or leave {name} out of --for"
            )


def new_tokens(config: GPTConfig) -> int:
    """How many tokens a call asks for: after the last of its positions a GPT-2 ends with an error,
    or in rubbish, and what a client asks for by itself may be more."""
    return min(100, config.block_size // 2)


def calls_of_export(
    config: GPTConfig, tokenizer: Tokenizer, folder: str, file: str, chat: bool
) -> dict[str, str]:
    """{client: how it continues a text, or answers a message of a chat}, for those that can hold
    the model. folder, file: what was written, "" if it was not."""
    places = {"folder": folder, "file": file, "end": end_of_text(tokenizer)}
    places["new"] = new_tokens(config)
    places["trust"] = ",trust_remote_code=True" if config.ngram_rows else ""
    calls = {}
    for name, client in CLIENTS.items():
        is_written = file if client.reads_gguf else folder
        if is_written and not client.faults(config, tokenizer):
            calls[name] = (client.chat if chat else client.call).format(**places)
    return calls
