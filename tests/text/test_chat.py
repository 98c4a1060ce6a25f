from lathe.text.chat import chat_prompt

MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who are you?"},
]


def test_a_prompt_ends_before_the_space_of_the_answers_first_word():
    text, space = chat_prompt(MESSAGES, "chat")
    assert text == "Be short.\n\nUser: Hello\nAssistant: Hi.\nUser: Who are you?\nAssistant:"
    assert space == " "
    text, space = chat_prompt(MESSAGES, "turns")
    assert text == "Be short.\n\nUser: Hello\nAssistant:\nHi.\nUser: Who are you?\nAssistant:\n"
    assert space == ""
    text, space = chat_prompt(MESSAGES[1:2], "instruction")
    assert text == "### Instruction:\nHello\n\n### Response:\n"
    assert space == ""


def test_without_a_template_the_last_message_is_the_prompt_as_it_is():
    assert chat_prompt(MESSAGES[:2], "plain") == (" Hello ", "")
