"""Token ids to text as they come."""

import codecs
from collections.abc import Sequence

from lathe.text.tokenizer import Tokenizer

# Text


class TextStream:
    """Token ids to text as they come. Held back are the bytes of a character that is not complete yet and text that may
    still become a stop string; the stop string that ends first, and all behind it, is dropped, and so is the text
    `skip` at the beginning."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), skip: str = ""):
        self.tokenizer, self.stop, self.skip = tokenizer, stop, skip
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held, self.stopped = "", False

    def add(self, token: int) -> str:
        """The text that this token sets free. Once `stopped`, none."""
        return self.release(self.decoder.decode(self.tokenizer.pieces[token]), final=False)

    def end(self) -> str:
        return self.release(self.decoder.decode(b"", final=True), final=True)

    def release(self, more: str, final: bool) -> str:
        self.held += more
        if len(self.held) >= len(self.skip):
            self.held, self.skip = self.held.removeprefix(self.skip), ""
        if self.stopped:
            return ""
        found = [(at + len(stop), at) for stop in self.stop if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped, end = True, min(found)[1]
        else:
            starts = (n for s in self.stop for n in range(len(s) - 1, 0, -1) if self.held.endswith(s[:n]))
            end = len(self.held) - (0 if final else max(starts, default=0))
        text, self.held = self.held[:end], self.held[end:]
        return text
