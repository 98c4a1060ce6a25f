"""What was said in a dialogue: questions, answers that go on, and answers taken back."""

from lathe.use.dialogue import Dialogue

CHAT = "chat"


def test_a_text_without_a_template_is_continued_where_it_stopped():
    dialogue = Dialogue.new(template="").ask("Once ")
    assert dialogue.prompt() == ("Once ", "")
    dialogue = dialogue.answered("upon ").go_on()
    assert dialogue.prompt() == ("Once upon ", "")
    assert dialogue.answered("a time").answer == "upon a time"
    assert dialogue.ask("Twice ").prompt() == ("Twice ", "")


def test_an_answer_goes_on_even_where_nothing_was_asked():
    dialogue = Dialogue.new(template="").go_on()
    assert dialogue.prompt() == ("", "")
    assert dialogue.answered("def f").go_on().prompt() == ("def f", "")


def test_again_takes_back_what_came_last():
    dialogue = Dialogue.new(template="").ask("a").answered("b").go_on().answered("c")
    assert dialogue.again().prompt() == ("ab", "")
    assert dialogue.again().answered("d").again().prompt() == ("ab", "")
    assert Dialogue.new(template="").ask("a").answered("b").again().prompt() == ("a", "")


def test_a_chat_holds_the_system_message_and_all_that_was_said():
    dialogue = Dialogue.new(CHAT, system="Be brief.").ask("red").answered(" apple").ask("again")
    text = "Be brief.\n\nUser: red\nAssistant: apple\nUser: again\nAssistant:"
    assert dialogue.prompt() == (text, " ")
    assert dialogue.answered("plum").go_on().prompt() == (text + " plum", "")


def test_a_question_that_came_to_nothing_leaves_no_trace():
    dialogue = Dialogue.new(CHAT).ask("red").answered("apple")
    dialogue.ask("é")
    assert "é" not in dialogue.ask("blue").prompt()[0]


def test_a_new_chat_forgets_all_but_the_system_message():
    begun = Dialogue.new(CHAT, system="Be brief.")
    assert begun.ask("red").prompt() == ("Be brief.\n\nUser: red\nAssistant:", " ")
    assert begun.messages == ({"role": "system", "content": "Be brief."},)
