"""Where the windows lie that training and validation read.

A window is block_size + 1 tokens of a stream: block_size inputs, and for each the token after it as
its target. Running text is cut at equal distances, and two windows share one token: the last target
of one is the first input of the next. Datasets of prompts and completions are cut between
documents.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np


@dataclass
class Windows:
    """Some windows of a stream, each array int64 (n,).

    Window i reads block_size + 1 tokens from starts[i] on. Of its targets 0 .. block_size - 1 those
    from begins[i] to ends[i] - 1 are its own; the others are not scored.
    """

    starts: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def pick(self, index: slice | np.ndarray) -> "Windows":
        return Windows(self.starts[index], self.begins[index], self.ends[index])


@dataclass
class Spans:
    """Windows between documents: the inputs of window i are tokens begins[i] .. ends[i] - 1."""

    begins: np.ndarray  # int64 (n,)
    ends: np.ndarray  # int64 (n,)
    n_longer: int  # how many documents are longer than a window

    def __len__(self) -> int:
        return len(self.begins)


def count_windows(n_tokens: int, block_size: int, spans: Spans | None, stride: int = 0) -> int:
    """How many windows there are in `n_tokens` tokens; arguments as for `window_bounds`."""
    if spans is not None:
        return len(spans)
    return 1 + math.ceil(max(0, n_tokens - 1 - block_size) / (stride or block_size))


def window_bounds(
    index: np.ndarray,
    n_tokens: int,
    block_size: int,
    spans: Spans | None,
    stride: int = 0,
    lead: int | np.ndarray = 0,
) -> Windows:
    """The windows with these numbers.

    spans: None for running text. stride: there, windows begin so many tokens apart, and the targets
    that the one before has are not a window's own; 0 = block_size. lead: there, the first window
    begins so many tokens before the text.
    """
    if spans is not None:
        first_inputs = spans.begins[index]
        own_begins = first_inputs
        own_ends = spans.ends[index]
    else:
        stride = stride or block_size
        first_inputs = index * stride - lead
        own_begins = np.maximum(first_inputs, 0)
        if stride != block_size:
            own_begins = np.where(index > 0, first_inputs + block_size - stride, own_begins)
        own_ends = np.minimum(first_inputs + block_size, n_tokens - 1)
    # Windows that would read beyond the last token begin earlier.
    starts = np.maximum(np.minimum(first_inputs, n_tokens - 1 - block_size), 0)
    return Windows(starts, own_begins - starts, own_ends - starts)


def cut_between_documents(begins: list[int], block_size: int) -> Spans:
    """Windows that take the next documents as long as they fit, and cut in two only longer ones.

    begins: where each document begins, in order, and where one more would. A longer document is cut
    into blocks from its end, so that a completion that fits is in one window with the end of its
    prompt. With block_size 8, E for end-of-text, and p, c for prompts and completions:

        token     0     3       7                             18
                  E p c E p p c E p p p p p p p c c c E
        window 0  |------------>|
        window 1                |---->|
        window 2                      |-------------->|
    """
    window_begins = []
    window_ends = []
    n_longer = 0
    document = 0  # the first one that no window has yet
    while document < len(begins) - 1:
        begin = begins[document]
        following = bisect_right(begins, begin + block_size) - 1  # the first one that does not fit
        if following == document:
            n_longer += 1
            following += 1
        end = begins[following]
        n_blocks = math.ceil((end - begin) / block_size)  # 1 but for a longer document
        for block_end in range(end - (n_blocks - 1) * block_size, end + 1, block_size):
            window_begins.append(max(block_end - block_size, begin))
            window_ends.append(block_end)
        document = following
    return Spans(np.array(window_begins, np.int64), np.array(window_ends, np.int64), n_longer)
