"""A stranger's chat template, run in a process of its own to see what it writes.

It is a program in Jinja: in the sandbox it reaches nothing, but it may loop for ever or fill the
memory. So it gets a second of processor time and some memory, as a stranger's tokenizer does.
"""

import json
import re
import sys
from typing import Any

from lathe.terminal import print_result
from lathe.text.trial import bound, run_apart


def render(source: str, dialogues: list[list[dict]], tokens: dict[str, str]) -> list[str] | None:
    """What a template makes of each dialogue, [{"role", "content"}], up to where an answer begins;
    None where it does not make something of all soon. tokens: bos_token and eos_token."""
    job = {"source": source, "dialogues": dialogues, "tokens": tokens}
    done = run_apart("chat_trial", job)
    if done is None or done.returncode != 0:
        return None
    return json.loads(done.stdout)


# -----------------------------------------------------------------------------
# In the other process


def main():
    """Write what the template on stdin makes of the dialogues. Exit code 0, or another."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: Any):
        raise TemplateError(str(message))

    job = json.load(sys.stdin)
    # The marks of transformers around what the model says are no part of Jinja.
    source = re.sub(r"(\{%[-+]?\s*)endgeneration\b", r"\1endif", job["source"])
    source = re.sub(r"(\{%[-+]?\s*)generation\b", r"\1if true", source)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    bound()
    template = environment.from_string(source)
    texts = []
    for messages in job["dialogues"]:
        texts.append(
            template.render(messages=messages, add_generation_prompt=True, **job["tokens"])
        )
    print_result(json.dumps(texts))
