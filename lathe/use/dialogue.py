"""What was said in a dialogue with a model, and what the model is to go on from."""

from dataclasses import dataclass, replace

from lathe.text.chat import chat_prompt


@dataclass(frozen=True)
class Dialogue:
    """Messages up to the last question, and the answer to it as far as it goes.

    Each method returns the dialogue as it is then: one that comes to nothing is simply dropped.
    With a template that is none of chat.py's, a message is a text to continue.
    """

    template: str
    messages: tuple[dict, ...] = ()  # {"role", "content"}; the last one is the user's
    answer: str = ""
    answer_before: str = ""  # what there was of the answer before it went on

    @classmethod
    def new(cls, template: str, system: str = "") -> "Dialogue":
        """Nothing said but the system message, if there is one."""
        messages = ({"role": "system", "content": system},) if system else ()
        return cls(template, messages)

    def ask(self, text: str) -> "Dialogue":
        """A new question, after the answer to the last."""
        messages = list(self.messages)
        if messages and messages[-1]["role"] == "user":
            messages.append({"role": "assistant", "content": self.answer})
        messages.append({"role": "user", "content": text})
        return Dialogue(self.template, tuple(messages))

    def go_on(self) -> "Dialogue":
        """The answer continues where it stopped."""
        return replace(self, answer_before=self.answer)

    def again(self) -> "Dialogue":
        """What came last of the answer is taken back."""
        return replace(self, answer=self.answer_before)

    def answered(self, text: str) -> "Dialogue":
        """The answer goes on with this text."""
        return replace(self, answer=self.answer + text)

    def prompt(self) -> tuple[str, str]:
        """(text, space): what the model reads, and the space before its words, see chat_prompt."""
        text, space = "", ""
        if self.messages:
            text, space = chat_prompt(list(self.messages), self.template)
        if self.answer:
            text, space = text + space + self.answer, ""
        return text, space
