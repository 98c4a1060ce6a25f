"""How chat messages become text."""

# How chat messages become text that every tokenizer can write: what stands around the words of each role.
TEMPLATES = {
    "chat": {"system": "{}\n\n", "user": "User: {}\n", "assistant": "Assistant: {}\n"},
    "instruction": {"system": "{}\n\n", "user": "### Instruction:\n{}\n\n", "assistant": "### Response:\n{}\n\n"},
}


def chat_prompt(messages: list[dict], template: str) -> tuple[str, str]:
    """(text, space): messages [{"role", "content"}] up to where the assistant's answer begins, and what precedes its
    words. The space is the answer's first token's, as byte-level BPE has it, and so no part of the prompt. With a
    template that is none of TEMPLATES, such as "plain", the last message as it is."""
    if template not in TEMPLATES:
        return messages[-1]["content"], ""
    form = TEMPLATES[template]
    begin = form["assistant"].partition("{}")[0]
    text = "".join(form[m["role"]].format(m["content"].strip()) for m in messages) + begin.rstrip(" ")
    return text, begin[len(begin.rstrip(" ")) :]
