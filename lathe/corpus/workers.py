"""A unit's documents to tokens, in processes of their own."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from lathe.corpus.read import document_hash, documents
from lathe.data.shards import SPLITS, token_dtype
from lathe.text.bpe import count_pieces

# ------------------------------------------------------------------------------------------------- workers


@dataclass(slots=True)
class Tokens:
    """A unit's tokens and, per document (or piece of one), what decides where they go."""

    tokens: np.ndarray
    lengths: np.ndarray  # tokens per document, end-of-text included
    hashes: np.ndarray  # uint64
    splits: np.ndarray  # 0 train, 1 val, -1 for the hash to decide
    continues: bool  # the first is the rest of a document that an earlier unit began
    characters: int
    counts: Counter
    sha256: str  # of the unit's input
    scored: np.ndarray | None  # of pairs: uint8 per token, 0 in a prompt


def tokenize_unit(unit, rules, tokenizer) -> Tokens:
    counts = Counter()
    arrays, scored, lengths, hashes, splits, continues, characters = [], [], [], [], [], False, 0
    eot = np.array([tokenizer.eot_id], token_dtype(tokenizer.vocab_size))
    for text, of_whole, begins, split, n_prompt in documents(unit, rules, counts):
        continues |= not begins
        key = document_hash(text) if of_whole is None else of_whole
        start, characters = characters, characters + len(text)
        pieces = [(text, SPLITS.index(split) if split else -1, begins)]
        if unit.cut is not None:
            at = min(max(unit.cut - start, 0), len(text))
            at = 0 if rules.template and at < len(text) else at  # a pair stays whole
            pieces = [(text[:at], 0, begins), (text[at:], 1, begins or start <= unit.cut)]
        for piece, side, has_eot in pieces:
            if piece:
                ids = [tokenizer.encode_numpy(piece[n_prompt:]).astype(eot.dtype, copy=False)]
                if rules.template:  # a prompt's ids do not depend on what follows: sampling has nothing there yet
                    ids.insert(0, tokenizer.encode_numpy(piece[:n_prompt]).astype(eot.dtype, copy=False))
                    scored.append(np.repeat(np.array([1, 0, 1], np.uint8), [1, *map(len, ids)]))
                arrays += [eot, *ids] if has_eot else ids
                lengths.append(sum(map(len, ids)) + has_eot)
                hashes.append(key)
                splits.append(side)
                key ^= 1  # what is behind the cut is no duplicate of what is before it
    return Tokens(
        np.concatenate(arrays) if arrays else eot[:0],
        np.array(lengths, np.int64),
        np.array(hashes, np.uint64),
        np.array(splits, np.int8),
        continues,
        characters,
        counts,
        unit.sha256(),
        np.concatenate(scored) if scored else None,
    )


def texts(unit, rules):
    return (text for text, *_ in documents(unit, rules, Counter()))


def measure_unit(unit, rules) -> int:
    return sum(map(len, texts(unit, rules)))


def characters_of_unit(unit, rules) -> set:
    return set().union(*texts(unit, rules))


def pieces_of_unit(unit, rules) -> Counter:
    return count_pieces(texts(unit, rules))


def in_order(task, items, workers):
    """(item, task(item)) for each item, in order, computed by `workers` processes a few items ahead."""
    if workers == 1:
        for item in items:
            yield item, task(item)
        return
    # Forked workers have the tokenizer at once; but fork is safe only where nothing else runs in this process.
    alone = sys.platform == "linux" and threading.active_count() == 1 and not {"pyarrow", "torch"} & set(sys.modules)
    context = multiprocessing.get_context("fork" if alone else "spawn")
    pool, ahead = ProcessPoolExecutor(workers, context, _begin_worker, (task,)), deque()
    try:
        for item in items:
            ahead.append((item, pool.submit(_work, item)))
            if len(ahead) > 2 * workers:
                item, future = ahead.popleft()
                yield item, future.result()
        for item, future in ahead:
            yield item, future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker was killed, perhaps for want of memory: run the same command again to continue, with "
            "fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(task):
    """Take the task, which comes once, not with every item; leave Ctrl-C to the parent, and do not outlive it."""
    global _task

    def follow(parent):
        parent.join()
        os._exit(1)

    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, args=(multiprocessing.parent_process(),), daemon=True).start()


def _work(item):
    return _task(item)
