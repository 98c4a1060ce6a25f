"""How chat messages become text that every tokenizer can write."""

# What stands around the words of each role. Answers of "turns" and "instruction" begin on a line of
# their own, and so are the same in every program: those of "chat" begin with a space, which other
# programs show where byte-level BPE has it in the first word's token.
TEMPLATES = {
    "turns": {
        "system": "{}\n\n",
        "user": "User: {}\n",
        "assistant": "Assistant:\n{}\n",
    },
    "chat": {
        "system": "{}\n\n",
        "user": "User: {}\n",
        "assistant": "Assistant: {}\n",
    },
    "instruction": {
        "system": "{}\n\n",
        "user": "### Instruction:\n{}\n\n",
        "assistant": "### Response:\n{}\n\n",
    },
}


def chat_prompt(messages: list[dict], template: str) -> tuple[str, str]:
    """(text, space): the messages up to where an answer begins, and what precedes its words.

    messages: [{"role", "content"}]. The space is the answer's first token's, as byte-level BPE has
    it, and so no part of the prompt. With a template that is none of TEMPLATES, such as "plain",
    the last message as it is.
    """
    if template not in TEMPLATES:
        return messages[-1]["content"], ""
    form = TEMPLATES[template]
    text = ""
    for message in messages:
        text += form[message["role"]].format(message["content"].strip())
    before_answer, _, _ = form["assistant"].partition("{}")
    begin = before_answer.rstrip(" ")
    space = before_answer[len(begin) :]
    return text + begin, space
