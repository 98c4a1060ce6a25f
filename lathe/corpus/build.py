"""Any text to a dataset: find, cut, read, tokenize, store, and continue after an interruption.

The same input and options give the same bytes on any number of workers: units are cut by the files
alone, and their tokens are stored in order. What is done is noted unit by unit; when the same
command is given again, it goes on after the last one.
"""

import errno
import os
import shutil
import sys
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from lathe.corpus.cut import cut_units
from lathe.corpus.duplicates import DUPLICATES_FILE, Duplicates, in_both_splits
from lathe.corpus.find import find_inputs, make_source
from lathe.corpus.journal import JOURNAL_FILE, NOTHING_DONE, Journal, UnitRecord, read_journal
from lathe.corpus.learn import make_tokenizer
from lathe.corpus.options import Options, Plan, make_plan, options_without_effect
from lathe.corpus.report import Progress, say, say_next, summarize
from lathe.corpus.room import check_room, estimate_text
from lathe.corpus.source import Source
from lathe.corpus.split import BY_HASH, VAL, is_val_by_hash, position_of_last
from lathe.corpus.tokens import Tokens, count_characters, hashes_of_unit, tokenize_unit
from lathe.corpus.unchanged import content_of, is_unchanged, note_inputs
from lathe.corpus.units import Unit
from lathe.corpus.workers import count_workers, in_order, results_of_units
from lathe.data.shards import SHARD_NAME, SPLITS, ShardWriter, write_meta
from lathe.json_text import read_json
from lathe.run.lock import lock_folder
from lathe.text.tokenizer import Tokenizer, load_tokenizer

STDIN_FILE = "stdin.tmp"
TEMPORARY = (JOURNAL_FILE, DUPLICATES_FILE)
IN_BOTH = "documents of training that validation has, too (--dedup leaves them out)"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(options: Options) -> dict:
    """Make the dataset that `options` describe and return its meta.

    ValueError and OSError with one line for people.
    """
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file; name a folder")
    files = [name for name in options.input if name != "-"]
    inputs = find_inputs(files, options.val_input, options.format, not_below=out)
    sources = inputs.sources
    inputs.then_stdin = "-" in options.input
    if inputs.left_out.counts or inputs.are_many:
        say(inputs.describe())
    refuse_to_replace(out)
    with lock_folder("out", out):
        try:
            if inputs.then_stdin:
                source = _spool_stdin(out, options.format)
                sources.append(replace(source, split="train" if options.val_input else ""))
            return _build(make_plan(options, out, inputs))
        except KeyboardInterrupt:
            say("stopped: run the same command again to continue")
            raise
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            needed = ""
            if sources:  # of standard input nobody knows
                needed = f", about {estimate_text(sources) / 1e9:.2f} GB are needed in all"
            raise OSError(
                f"out={out}: cannot write more ({os.strerror(error.errno)}){needed}; "
                f"make room and run the same command again to continue"
            ) from error
        finally:
            _remove(out, STDIN_FILE)


def refuse_to_replace(out: Path):
    """ValueError if the folder has files of others under the names that a dataset's have."""
    if (out / JOURNAL_FILE).is_file():
        return
    if (out / "meta.json").is_file():
        try:
            is_ours = "tokenizer" in read_json(out / "meta.json")
        except (ValueError, TypeError):  # a damaged one of ours, or not
            is_ours = (out / "tokenizer.json").is_file()
        if is_ours:
            return
    names = ["meta.json", "tokenizer.tiktoken", "tokenizer.json"]
    taken = [name for name in names if (out / name).is_file()]
    if out.is_dir():
        names = sorted(path.name for path in out.iterdir())
        # Unfinished ones are ours, of a preparation that was refused.
        taken += [n for n in names if SHARD_NAME.fullmatch(n) and not n.endswith(".tmp")]
    if taken and not _is_left_by_us(out):
        raise ValueError(
            f"out={out} has {taken[0]}, which is of no dataset of ours: name another folder"
        )


def _is_left_by_us(out: Path) -> bool:
    """Whether a tokenizer without a dataset was saved by a preparation that ended early."""
    try:
        return read_json(out / "tokenizer.json").get("format") == "lathe-tokenizer"
    except (OSError, ValueError, AttributeError):
        return False


def _spool_stdin(out: Path, format: str) -> Source:
    """Standard input as a file in `out`: it is read more than once."""
    path = out / STDIN_FILE
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 2**20)
    return make_source(str(path), format, label="<stdin>")


def _remove(folder: Path, *names: str):
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _build(plan: Plan) -> dict:
    began = time.monotonic()
    finished = _find_finished(plan)
    if finished is not None:
        say(f"{plan.out} is up to date: nothing to do")
        say_next(plan.out, finished, plan.tokenizer)
        return finished

    idle = options_without_effect(plan)
    if idle:
        say(f"without effect: {', '.join(idle)}")
    tokenizer, journal = _begin_or_continue(plan)
    writers = _tokenize(plan, tokenizer, journal)
    if _are_all_in_one_part(plan, journal, writers):
        say(
            f"all documents fell into one part: the last {plan.val_fraction:.1%} of the characters "
            f"become validation instead"
        )
        characters = [record.characters for record in journal.records]
        val_begins = position_of_last(plan.val_fraction, characters)
        journal = Journal(plan.out, plan.signature, val_begins)
        for writer in writers:
            writer.close()
        writers = _tokenize(plan, tokenizer, journal)

    counts = sum((Counter(record.counts) for record in journal.records), Counter())
    if not any(writer.n_tokens for writer in writers):
        _give_up(plan, counts)
    if plan.rules.template:
        _end_last_pairs(tokenizer, journal, writers)
    meta = _complete(plan, tokenizer, journal, writers, counts)
    summarize(plan.out, meta, plan.tokenizer, time.monotonic() - began)
    return meta


# -----------------------------------------------------------------------------
# What an earlier run has left


def _find_finished(plan: Plan) -> dict | None:
    """The meta of a dataset that this very command made, from files that have not changed since.

    ValueError if there is another dataset in the folder, unless the user wants to replace it.
    """
    path = plan.out / "meta.json"
    if not path.is_file():
        return None
    defaults = {option.name: option.default for option in fields(plan.options)}
    try:
        meta = read_json(path)
        options = defaults | meta["options"]  # an earlier version had fewer of them
        is_same = all(options.get(name) == value for name, value in plan.signature.items())
    except (ValueError, LookupError, TypeError):  # damaged, or of another program
        is_same = False
    if not plan.options.overwrite:
        if not is_same:
            raise ValueError(
                f"out={plan.out} holds a dataset of other input or options: name another folder, "
                f"or add --overwrite=true"
            )
        written = path.stat().st_mtime
        if "content" in meta:
            is_unchanged_since = is_unchanged(plan, meta["content"])
        else:  # of an earlier version, which went by time alone
            is_unchanged_since = all(source.is_older_than(written) for source in plan.sources)
        if is_unchanged_since:
            return meta
    path.unlink()
    return None


def _begin_or_continue(plan: Plan) -> tuple[Tokenizer, Journal]:
    """Tokenizer and journal of an interrupted run of the same plan, or new ones."""
    interrupted = read_journal(plan.out, plan.signature)
    if interrupted is not None:
        say(f"continuing in {plan.out}: {len(interrupted.records)} units of the input are done")
        return load_tokenizer(plan.out), interrupted
    _clear(plan.out)
    tokenizer = make_tokenizer(plan)
    check_room(plan, tokenizer)
    tokenizer.save(plan.out)
    val_begins = None
    if plan.by_position:
        characters = results_of_units(plan, count_characters, "measuring")
        val_begins = position_of_last(plan.val_fraction, characters)
    return tokenizer, Journal(plan.out, plan.signature, val_begins)


def _clear(out: Path):
    """Remove what an unfinished run leaves, beside shards, which their writer removes."""
    _remove(out, *TEMPORARY, "tokenizer.json", "tokenizer.tiktoken")


# -----------------------------------------------------------------------------
# Tokenizing


def _tokenize(plan: Plan, tokenizer: Tokenizer, journal: Journal) -> list[ShardWriter]:
    """Tokenize all units that are not done into shards; returns the writers, one per split.

    A unit is done once its record is in the journal, which is when its tokens are on the disk.
    """
    units = _all_units(plan, journal)
    todo, done = _skip_done(units, journal.records)
    journal.begin(done)
    last = done[-1] if done else NOTHING_DONE
    shard_tokens = plan.options.shard_tokens
    writers = [
        ShardWriter(plan.out, "train", tokenizer, shard_tokens, last.train),
        ShardWriter(plan.out, "val", tokenizer, shard_tokens, last.val),
    ]
    seen = None
    if plan.options.dedup:
        seen = Duplicates(plan.out, last.seen, last.kept)

    bar = Progress("tokenizing", plan.input_bytes)
    task = partial(tokenize_unit, rules=plan.rules, tokenizer=tokenizer)
    workers = count_workers(plan.options.workers, plan.input_bytes)
    validation = _hashes_of_validation(plan)
    for unit, tokens in in_order(task, todo, workers):
        keep = np.ones(len(tokens.lengths), bool)
        in_both = in_both_splits(tokens, validation)
        if seen is not None:
            keep = seen.kept(tokens, in_both)
        elif in_both.any():
            n_documents = np.count_nonzero(in_both[1 if tokens.continues else 0 :])
            tokens.counts[IN_BOTH] += int(n_documents)
        _store(tokens, keep, plan.val_fraction, writers)
        journal.append(
            UnitRecord(
                unit=f"{unit.blocks[0].label} at {unit.blocks[0].offset}",
                sha256=tokens.sha256,
                train=writers[0].n_tokens,
                val=writers[1].n_tokens,
                seen=seen.n_seen if seen else 0,
                kept=seen.last_kept if seen else True,
                characters=tokens.characters,
                counts=dict(tokens.counts),
            )
        )
        bar.show(unit.done_bytes, sum(writer.n_tokens for writer in writers))
    bar.close()
    return writers


def _all_units(plan: Plan, journal: Journal) -> Iterator[Unit]:
    """All units, told where validation begins if the split is by position."""
    for number, unit in enumerate(cut_units(plan.sources, plan.rules)):
        if journal.val_begins is not None:
            unit.val_begins = journal.val_begins.in_unit(number)
        yield unit


def _skip_done(
    units: Iterator[Unit], records: list[UnitRecord]
) -> tuple[Iterable[Unit], list[UnitRecord]]:
    """(units to do, records that hold): up to the first unit that is no longer what its record
    says, since its file has changed."""
    for n_done, record in enumerate(records):
        unit = next(units, None)
        if unit is None:
            return [], records[:n_done]
        if unit.sha256() != record.sha256:
            return chain([unit], units), records[:n_done]
    return units, records


def _hashes_of_validation(plan: Plan) -> np.ndarray:
    """Of the documents of --val_input, sorted: training may have them, too."""
    sources = [source for source in plan.sources if source.split == "val"]
    if not sources:
        return np.empty(0, np.uint64)
    of_val = replace(plan, sources=sources, input_bytes=sum(source.size for source in sources))
    hashes = list(results_of_units(of_val, hashes_of_unit, "comparing"))
    return np.unique(np.concatenate(hashes))


def _store(unit: Tokens, keep: np.ndarray, val_fraction: float, writers: list[ShardWriter]):
    """Store those of a unit's documents that are kept, each in its split, safely on the disk."""
    is_val = np.where(
        unit.splits == BY_HASH, is_val_by_hash(unit.hashes, val_fraction), unit.splits == VAL
    )
    for writer, chosen in zip(writers, (keep & ~is_val, keep & is_val), strict=True):
        tokens = unit.tokens
        scored = unit.scored
        if not chosen.all():
            is_chosen = np.repeat(chosen, unit.lengths)  # per token
            tokens = tokens[is_chosen]
            scored = None if scored is None else scored[is_chosen]
        writer.append(tokens, scored)
        writer.sync()


def _are_all_in_one_part(plan: Plan, journal: Journal, writers: list[ShardWriter]) -> bool:
    """Whether hashes put all documents into one part, though the user wants two."""
    if plan.val_fraction == 0 or plan.options.val_input or journal.val_begins is not None:
        return False
    n_tokens = [writer.n_tokens for writer in writers]
    return min(n_tokens) == 0 and max(n_tokens) > 0


# -----------------------------------------------------------------------------
# Completing the dataset


def _give_up(plan: Plan, counts: Counter):
    _clear(plan.out)
    where = plan.sources[0].label
    if len(plan.sources) > 1:
        where += " and others"
    n_files = len(plan.sources)
    files = "1 file" if n_files == 1 else f"{n_files:,} files"
    n_empty = counts["empty documents skipped"]
    documents = "1 document" if n_empty == 1 else f"{n_empty:,} documents"
    raise ValueError(f"--input: no documents found in {where} ({files}, {documents} empty)")


def _end_last_pairs(tokenizer: Tokenizer, journal: Journal, writers: list[ShardWriter]):
    """End each split's last pair with an end-of-text, as the next pair's ends all others."""
    for writer in writers:
        if writer.n_tokens:
            writer.append(np.array([tokenizer.eot_id]), np.ones(1, np.uint8))
            last = journal.records[-1]
            journal.records[-1] = replace(last, **{writer.split: writer.n_tokens})


def _complete(
    plan: Plan,
    tokenizer: Tokenizer,
    journal: Journal,
    writers: list[ShardWriter],
    counts: Counter,
) -> dict:
    """Name the shards, write meta.json, remove what was there for the case of an interruption."""
    shards = []
    for writer in writers:
        shards += writer.finish()
    _add_sources(shards, journal.records)
    options = plan.options
    if options.val_input:
        split = "given"
    elif journal.val_begins is not None:
        split = "position"
    else:
        split = "content hash"
    about = {
        "options": plan.signature
        | {"input": options.input[:10], "val_input": options.val_input[:10], "split": split},
        "files": len(plan.sources),
        "content": content_of(record.sha256 for record in journal.records),
        "left_out": dict(plan.left_out.most_common()),
        "counts": dict(sorted(counts.items())),
    }
    if plan.rules.template:
        about["template"] = plan.rules.template
    note_inputs(plan)
    meta = write_meta(plan.out, tokenizer, shards, **about)
    _remove(plan.out, *TEMPORARY)
    return meta


def _add_sources(shards: list[dict], records: list[UnitRecord]):
    """Note in each shard the first and the last unit of the input that it has tokens of."""
    for split in SPLITS:
        ends = [getattr(record, split) for record in records]
        position = 0
        for shard in shards:
            if shard["split"] != split:
                continue
            first = bisect_right(ends, position)
            position += shard["tokens"]
            last = bisect_left(ends, position)
            shard["source"] = [records[first].unit, records[last].unit]
