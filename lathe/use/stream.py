"""Token ids to text as they come."""

import codecs
from collections.abc import Sequence

from lathe.text.tokenizer import Tokenizer


class TextStream:
    """Text of one token after the other, up to a stop text.

    Kept back are the bytes of a character that is not complete yet, and text that may still become
    a stop text. The stop text that is complete first is dropped with all after it, and so is the
    text `skip` at the beginning.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), skip: str = ""):
        self.tokenizer = tokenizer
        self.stop = stop
        self.skip = skip
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.kept = ""  # back
        self.stopped = False

    def add(self, token_id: int) -> str:
        """The text that this token sets free; none once `stopped`."""
        piece = self.tokenizer.pieces[token_id]
        return self._release(self.decoder.decode(piece), final=False)

    def end(self) -> str:
        """The text that was kept back when the last token has come."""
        return self._release(self.decoder.decode(b"", final=True), final=True)

    def _release(self, text: str, final: bool) -> str:
        self.kept += text
        if len(self.kept) >= len(self.skip):
            self.kept = self.kept.removeprefix(self.skip)
            self.skip = ""
        if self.stopped:
            return ""
        complete = []  # (end, begin) of stop texts
        for stop in self.stop:
            begin = self.kept.find(stop)
            if begin >= 0:
                complete.append((begin + len(stop), begin))
        if complete:
            self.stopped = True
            _, n_free = min(complete)
        elif final:
            n_free = len(self.kept)
        else:
            n_free = len(self.kept) - self._n_of_begun_stop()
        free, self.kept = self.kept[:n_free], self.kept[n_free:]
        return free

    def _n_of_begun_stop(self) -> int:
        """Characters at the end of the text that may become a stop text."""
        longest = 0
        for stop in self.stop:
            for n in range(1, len(stop)):
                if self.kept.endswith(stop[:n]):
                    longest = max(longest, n)
        return longest
