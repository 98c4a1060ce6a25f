"""What one client makes of exports, each as a JSON line; run by clients.py in the client's Python.

    python bench/client_runs.py CLIENT < requests.jsonl

A request names folder and file of an export, whether the code in the folder is to be run, texts
whose ids are wanted, prompts to continue and messages to answer greedily. This file imports nothing
but the client, so that any environment that has the client will do.
"""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any


class Transformers:
    """model.generate on what the tokenizer makes, as its documentation has it."""

    def __init__(self, folder: str, file: str, trust: bool):
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        self.model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def continued(self, prompt: str, n: int) -> str:
        inputs = self.tokenizer(self.tokenizer.eos_token + prompt, return_tensors="pt")
        return self.generated(inputs, n)

    def answer(self, messages: list[dict], n: int) -> str:
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return self.generated(inputs, n)

    def generated(self, inputs: dict, n: int) -> str:
        settings = dict(do_sample=False, top_k=None, temperature=None, eos_token_id=None)
        ids = self.model.generate(**inputs, max_new_tokens=n, **settings)
        return self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])


class LmEval:
    """Its generate_until, which tasks that ask for texts go through."""

    def __init__(self, folder: str, file: str, trust: bool):
        from lm_eval.models.huggingface import HFLM

        settings = dict(dtype="float32", device="cpu", trust_remote_code=trust)
        self.plain = HFLM(pretrained=folder, add_bos_token=True, **settings)
        self.chat = HFLM(pretrained=folder, **settings)

    def ids(self, text: str) -> list[int]:
        return self.chat.tok_encode(text)

    def continued(self, prompt: str, n: int) -> str:
        return self.generated(self.plain, prompt, n)

    def answer(self, messages: list[dict], n: int) -> str:
        return self.generated(self.chat, self.chat.apply_chat_template(messages), n)

    def generated(self, model: Any, prompt: str, n: int) -> str:
        from lm_eval.api.instance import Instance

        settings = {"until": [], "max_gen_toks": n, "do_sample": False}
        request = Instance("generate_until", {}, (prompt, settings), 0)
        return model.generate_until([request], disable_tqdm=True)[0]


class CTranslate2:
    """Its converter, and a generator on tokens."""

    def __init__(self, folder: str, file: str, trust: bool):
        import ctranslate2
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        target = Path(tempfile.mkdtemp(), "converted")
        ctranslate2.converters.TransformersConverter(folder).convert(str(target))
        self.generator = ctranslate2.Generator(str(target))

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def continued(self, prompt: str, n: int) -> str:
        return self.generated(self.tokenizer.tokenize(self.tokenizer.eos_token + prompt), n)

    def answer(self, messages: list[dict], n: int) -> str:
        settings = dict(add_generation_prompt=True, return_dict=False)
        ids = self.tokenizer.apply_chat_template(messages, **settings)
        return self.generated(self.tokenizer.convert_ids_to_tokens(ids), n)

    def generated(self, tokens: list[str], n: int) -> str:
        settings = dict(include_prompt_in_result=False, max_length=n, end_token=[])
        (result,) = self.generator.generate_batch([tokens], **settings)
        return self.tokenizer.decode(result.sequences_ids[0])


class Mlx:
    """mlx_lm.generate, on a CPU or a Mac."""

    def __init__(self, folder: str, file: str, trust: bool):
        import mlx_lm

        self.model, self.tokenizer = mlx_lm.load(folder)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def continued(self, prompt: str, n: int) -> str:
        return self.generated(self.tokenizer.encode(self.tokenizer.eos_token + prompt), n)

    def answer(self, messages: list[dict], n: int) -> str:
        settings = dict(add_generation_prompt=True, return_dict=False)
        return self.generated(self.tokenizer.apply_chat_template(messages, **settings), n)

    def generated(self, ids: list[int], n: int) -> str:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        steps = generate_step(mx.array(ids), self.model, max_tokens=n)
        return self.tokenizer.decode([int(token) for token, _ in steps])


class LlamaCpp:
    """Its server, which xllamacpp brings, through the routes that any client of it uses."""

    def __init__(self, folder: str, file: str, trust: bool):
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = file
        settings.n_ctx = 256
        settings.n_parallel = 1
        settings.warmup = False
        settings.cpuparams.n_threads = 1  # more spin where cores are shared
        settings.use_jinja = True
        # In f16, as by default, tokens that are equally likely to 0.003 change places.
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(settings)

    def post(self, route: str, body: dict) -> dict:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        address = self.server.listening_address + route
        with urllib.request.urlopen(urllib.request.Request(address, data, headers)) as reply:
            return json.load(reply)

    def ids(self, text: str) -> list[int]:
        return self.post("/tokenize", {"content": text, "parse_special": False})["tokens"]

    def continued(self, prompt: str, n: int) -> str:
        settings = {"n_predict": n, "temperature": 0, "top_k": 1, "ignore_eos": False}
        return self.post("/completion", {"prompt": prompt, **settings})["content"]

    def answer(self, messages: list[dict], n: int) -> str:
        settings = {"max_tokens": n, "temperature": 0, "top_k": 1}
        reply = self.post("/v1/chat/completions", {"messages": messages, **settings})
        return reply["choices"][0]["message"]["content"]


class Vllm:
    """LLM.generate and LLM.chat."""

    def __init__(self, folder: str, file: str, trust: bool):
        from vllm import LLM

        self.model = LLM(folder, dtype="float32", enforce_eager=True)
        self.tokenizer = self.model.get_tokenizer()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def continued(self, prompt: str, n: int) -> str:
        texts = [self.tokenizer.eos_token + prompt]
        return self.model.generate(texts, self.greedy(n))[0].outputs[0].text

    def answer(self, messages: list[dict], n: int) -> str:
        return self.model.chat(messages, self.greedy(n))[0].outputs[0].text

    def greedy(self, n: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=0, max_tokens=n, ignore_eos=True, skip_special_tokens=False
        )


CLIENTS = {  # {client: (its module, how it is run)}
    "transformers": ("transformers", Transformers),
    "lm-eval": ("lm_eval", LmEval),
    "ctranslate2": ("ctranslate2", CTranslate2),
    "mlx-lm": ("mlx_lm", Mlx),
    "llama.cpp": ("xllamacpp", LlamaCpp),
    "vllm": ("vllm", Vllm),
}


def made_of(client: type, request: dict) -> dict:
    """What clients.py compares, or {"error"}."""
    n = request["n_tokens"]
    try:
        opened = client(request["folder"], request["file"], request["trust_remote_code"])
        return {
            "ids": [opened.ids(text) for text in request["texts"]],
            "continued": [opened.continued(prompt, n) for prompt in request["prompts"]],
            "answers": [opened.answer(messages, n) for messages in request["dialogues"]],
        }
    except Exception as error:  # whatever a client raises is what it makes of the export
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"}


def main():
    name = sys.argv[1]
    _, client = CLIENTS[name]
    for line in sys.stdin:
        print("RESULT " + json.dumps(made_of(client, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
