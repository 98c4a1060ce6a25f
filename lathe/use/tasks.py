"""Scores in tasks: multiple choice, the last word, and exact match.

items.py says which tasks there are and how they are named; scoring.py does the work of the network.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence

from lathe.run import devices, ranks
from lathe.run.parallel import callable_by_method
from lathe.run.progress import with_bar
from lathe.terminal import print_note
from lathe.text.chat import chat_prompt
from lathe.text.tokenizer import Tokenizer
from lathe.use.items import FORMATS, Item, read_items
from lathe.use.scoring import (
    MORE_TOKENS,
    Score,
    answers,
    batches_by_length,
    cached_tokens,
    score,
)
from model import GPT


def open_tasks(
    specs: list[str],
    tokenizer: Tokenizer,
    begin: Sequence[int],
    block_size: int,
    limit: int = 0,
    template: str = "",
) -> dict[str, "Task"]:
    """{name: Task}, by its whole NAME:FILE where a name comes twice. The same one twice is one."""
    specs = list(dict.fromkeys(specs))
    names = [spec.partition(":")[0] for spec in specs]
    tasks = {}
    for name, spec in zip(names, specs, strict=True):
        key = name if names.count(name) == 1 else spec
        tasks[key] = Task(spec, tokenizer, begin, block_size, limit, template)
    return tasks


class Task:
    """A test set, encoded once: measure() may be called many times.

    Items longer than the context lose their beginning; `cut` counts them. A prompt to be answered
    comes after the ids `begin`, and in the chat template of that name, if any; texts to choose
    among stand alone, as in the harness. Raises ValueError for text that has no ids.
    """

    def __init__(
        self,
        spec: str,
        tokenizer: Tokenizer,
        begin: Sequence[int],
        block_size: int,
        limit: int = 0,
        template: str = "",
    ):
        self.name = spec.partition(":")[0]
        self.items = ranks.on_main(lambda: read_items(spec, limit))
        self.format = FORMATS[self.name]
        self.tokenizer = tokenizer
        self.begin = begin
        self.template = template
        self.pairs = []  # of each item, (context, continuation) ids of its choices
        self.cut = 0

        max_length = block_size
        if self.format.kind != "answer":  # of a given text nobody reads the last token
            max_length += 1
        for item in self.items:
            try:
                pairs = self.encode(item)
            except ValueError as error:
                raise ValueError(f"{item.where}: {error}") from None
            if any(len(context) + len(ids) > max_length for context, ids in pairs):
                self.cut += 1
            self.pairs.append([keep_end(context, ids, max_length) for context, ids in pairs])
        if self.cut:
            warning = (
                f"{spec}: {self.cut} of {len(self.items)} items exceed the context of "
                f"{block_size} tokens: their ends count"
            )
            ranks.on_main(lambda: print_note(warning))

    def encode(self, item: Item) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) ids of each choice."""
        encode = self.tokenizer.encode
        nothing = [self.tokenizer.eot_id]  # stands for an empty context
        if self.format.kind == "answer":
            message = {"role": "user", "content": item.context}
            text, _ = chat_prompt([message], self.template)
            prompt = [*self.begin, *encode(text)]
            return [(prompt or nothing, encode(item.choices[0]))]

        context = encode(item.context.rstrip())  # BPE joins a space with the word after it
        pairs = []
        for choice in item.choices:
            context_and_choice = encode(f"{item.context} {choice}")
            ids = context_and_choice[len(context) :]
            pairs.append((context or nothing, ids or encode(choice)))
        return pairs

    def measure(
        self,
        model: GPT,
        run: devices.Runtime,
        ends: tuple[int, ...] = (),
        sharded: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> dict | None:
        """{"format", "items", "cut", "acc", "acc_stderr", ...}; None if interrupted() became true
        on any rank.

        The ranks share the batches, or do all of them together where each holds a shard of the
        weights. ends: ids that end an answer.
        """
        began = time.perf_counter()
        was_training = model.training
        model.eval()
        batches = batches_by_length(self.cached_lengths(), cached_tokens(run.device))
        stride = 1 if sharded else run.world_size
        offset = 0 if sharded else run.rank
        rounds = range(0, len(batches), stride)  # as many on every rank
        results = {}  # item number: its answer, or the scores of its choices
        stopped = False
        with run.autocast(), callable_by_method(model, "features"):
            for first in with_bar(rounds, self.name, len(rounds), run.is_main):
                stopped = interrupted()
                if stopped:
                    break
                if first + offset < len(batches):
                    batch = batches[first + offset]
                    results.update(zip(batch, self.work(model, batch, ends), strict=True))
        model.train(was_training)
        if stopped:
            return None

        for results_of_rank in ranks.gather(results):
            results.update(results_of_rank)
        in_order = [results[i] for i in range(len(self.items))]
        seconds = time.perf_counter() - began
        return {
            "format": self.format.about,
            "items": len(self.items),
            "cut": self.cut,
            **self.figures(in_order),
            "items_per_second": round(len(self.items) / seconds, 2),
        }

    def cached_lengths(self) -> list[int]:
        """How many tokens of each item are in the cache while it is worked on."""
        lengths = []
        for pairs in self.pairs:
            if self.format.kind == "answer":
                ((prompt, ids),) = pairs
                lengths.append(len(prompt) + len(ids) + MORE_TOKENS)
            else:  # a context is read once; where it is cut, each choice has its own
                contexts = {tuple(context) for context, _ in pairs}
                lengths.append(sum(len(context) for context in contexts))
        return lengths

    def work(self, model: GPT, batch: list[int], ends: tuple[int, ...]) -> list:
        """Of each of these items, its answer, or the scores of its choices."""
        pairs = [pair for i in batch for pair in self.pairs[i]]
        if self.format.kind == "answer":
            prompts = [prompt for prompt, _ in pairs]
            limits = [len(ids) + MORE_TOKENS for _, ids in pairs]
            stops = [self.items[i].stop for i in batch]
            return answers(model, self.tokenizer, prompts, limits, stops, ends)

        scores = score(model, pairs)
        scores_of_items = []
        begin = 0
        for i in batch:
            end = begin + len(self.pairs[i])
            scores_of_items.append(scores[begin:end])
            begin = end
        return scores_of_items

    def figures(self, results: list) -> dict:
        """results: of each item, its answer, or the scores of its choices."""
        if self.format.kind == "answer":
            return answer_figures(self.items, results)
        if self.format.kind == "last_word":
            return last_word_figures([score for (score,) in results])
        return choice_figures(self.items, self.pairs, results, self.format.normalized_by)


def keep_end(context: list[int], ids: list[int], max_length: int) -> tuple[list[int], list[int]]:
    """Both without what exceeds max_length at their beginning; one token of context stays."""
    n_ids = min(len(ids), max_length - 1)
    kept = [*context, *ids][-max_length:]
    return kept[:-n_ids], kept[-n_ids:]


# -----------------------------------------------------------------------------
# Figures


def choice_figures(
    items: list[Item],
    pairs: list[list[tuple[list[int], list[int]]]],
    scores: list[list[Score]],
    normalized_by: str,
) -> dict[str, float]:
    """acc by the log-probabilities of the choices, acc_norm by these over their lengths. Of equally
    likely choices the first counts."""
    right = []
    right_norm = []
    for item, pairs_of_item, scores_of_item in zip(items, pairs, scores, strict=True):
        logprobs = [score.logprob for score in scores_of_item]
        if normalized_by == "tokens":
            lengths = [len(ids) for _, ids in pairs_of_item]
        else:
            lengths = [len(choice) for choice in item.choices]
        means = [logprob / n for logprob, n in zip(logprobs, lengths, strict=True)]
        right.append(logprobs.index(max(logprobs)) == item.answer)
        right_norm.append(means.index(max(means)) == item.answer)
    figures = accuracy("acc", right)
    if normalized_by:
        figures |= accuracy("acc_norm", right_norm)
    return figures


def last_word_figures(scores: list[Score]) -> dict[str, float]:
    """acc: whether every token is the likeliest one."""
    nats = [-score.logprob for score in scores]
    perplexity = math.exp(min(700.0, statistics.fmean(nats)))
    return {
        **accuracy("acc", [score.is_greedy for score in scores]),
        "perplexity": perplexity,
        "perplexity_stderr": perplexity * standard_error(nats),  # of the mean, carried through exp
    }


def answer_figures(items: list[Item], texts: list[str]) -> dict:
    """acc: whether it is the right text but for spaces around it. One wrong answer is enough to see
    a mistake that all share."""
    right = []
    first_wrong = None
    for item, text in zip(items, texts, strict=True):
        completion = item.choices[0]
        right.append(text.strip() == completion.strip())
        if not right[-1] and first_wrong is None:
            first_wrong = {"prompt": item.context, "completion": completion, "answer": text}
    figures = accuracy("acc", right)
    if first_wrong:
        figures["first_wrong"] = first_wrong
    return figures


def accuracy(name: str, right: list[bool]) -> dict[str, float]:
    values = [float(r) for r in right]
    return {name: statistics.fmean(values), f"{name}_stderr": standard_error(values)}


def standard_error(values: list[float]) -> float:
    """Of the mean of independent values; 0 for a single one, of which nothing is known."""
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / math.sqrt(len(values))
