"""A pass over the input: what is done with each unit, by several processes, results in order."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from multiprocessing.process import BaseProcess
from typing import Any

from lathe.corpus.cut import cut_units
from lathe.corpus.options import Plan
from lathe.corpus.report import Progress

SMALL_INPUT = 16_000_000  # bytes: one process is done with them before others have started


def results_of_units(
    plan: Plan, task: Callable[..., Any], what: str, every: int = 1
) -> Iterator[Any]:
    """task(unit, rules=...) of each unit, or of one in `every`, in order, with progress shown."""
    progress = Progress(what, plan.input_bytes)
    chosen = islice(cut_units(plan.sources, plan.rules), 0, None, every)
    workers = count_workers(plan.options.workers, plan.input_bytes)
    for unit, result in in_order(partial(task, rules=plan.rules), chosen, workers):
        yield result
        progress.show(unit.done_bytes)
    progress.close()


def count_workers(wanted: int, input_bytes: int) -> int:
    """Processes to use: `wanted`, or where that is 0 one per core, or one for a small input."""
    if wanted:
        return wanted
    if input_bytes < SMALL_INPUT:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    task: Callable[[Any], Any], items: Iterable, workers: int
) -> Iterator[tuple[Any, Any]]:
    """(item, task(item)) for each item, in order; `workers` processes work a few items ahead.

    OSError if a worker was killed.
    """
    if workers == 1:
        for item in items:
            yield item, task(item)
        return
    items = iter(items)
    first = list(islice(items, 1))  # cutting it may load libraries that have threads, as Arrow has
    context = multiprocessing.get_context(_start_method())
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (task,))
    ahead = deque()
    try:
        for item in chain(first, items):
            ahead.append((item, pool.submit(_work, item)))
            if len(ahead) > 2 * workers:
                item, future = ahead.popleft()
                yield item, future.result()
        for item, future in ahead:
            yield item, future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker was killed, perhaps for want of memory: run the same command again to "
            "continue, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_method() -> str:
    """Forked workers have the tokenizer at once; but fork is safe only where nothing else runs in
    this process: no thread of ours, nor of libraries that start their own."""
    has_threads = threading.active_count() > 1 or {"pyarrow", "torch"} & set(sys.modules)
    return "fork" if sys.platform == "linux" and not has_threads else "spawn"


# -----------------------------------------------------------------------------
# Inside a worker

_task: Callable[[Any], Any]  # comes once, not with every item: it holds the tokenizer


def _begin_worker(task: Callable[[Any], Any]):
    """Take the task; leave Ctrl-C to the parent, and do not outlive it."""
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess):
    parent.join()
    os._exit(1)


def _work(item: Any) -> Any:
    return _task(item)
