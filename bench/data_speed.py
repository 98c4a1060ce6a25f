"""Measure the way of the data: prepare's speed, memory and disk, own BPE, fetching batches, the order of samples.

    python bench/data_speed.py                                   everything, some 10 minutes on 2 cores
    python bench/data_speed.py --only prepare fetch              some of it
    python bench/data_speed.py --nanogpt FOLDER                  nanoGPT's openwebtext preparation beside ours

Prints a line per figure as it is known, and a table at the end, which bench/RESULTS.md gets too. CPU seconds are of all
processes together, so they hold on a busy machine; wall-clock figures need an idle one. The corpus is this Python's
library, repeated to 75 MB, as JSON lines.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from bench.results import record_told, tell
from lathe import cli
from lathe.data.batches import TrainBatches
from lathe.data.dataset import Stream, open_dataset
from lathe.data.order import SampleOrder
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.tokenizer import load_tokenizer

PREPARE = [sys.executable, str(ROOT / "prepare" / "text.py")]
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "__pycache__"}


@dataclass
class Options:
    only: list[str] = field(default_factory=list)  # which parts, see below; all where empty
    work: str = ""  # folder for the corpora and datasets (5 GB); a temporary one by default
    nanogpt: str = ""  # a checkout of nanoGPT to compare with
    tokenizer: str = "gpt2"  # of the prepare parts; byte where tiktoken's files cannot be reached
    shakespeare: str = ""  # file of tiny Shakespeare; empty = left out
    repeats: int = 3  # of each timing; the best is shown
    save: bool = True  # append the table to bench/RESULTS.md


def main(argv=None):
    options = cli.parse(Options, argv, prog="bench/data_speed.py", description=__doc__)
    parts = {
        "prepare": measure_prepare,
        "workers": measure_workers,
        "memory": measure_memory,
        "disk": measure_disk,
        "kills": measure_kills,
        "bpe": measure_bpe,
        "shakespeare": measure_shakespeare,
        "fetch": measure_fetch,
        "order": measure_order,
    }
    if unknown := set(options.only) - set(parts):
        raise ValueError(f"only={' '.join(sorted(unknown))}: the parts are {' '.join(parts)}")
    work = Path(options.work or tempfile.mkdtemp(prefix="lathe-data-speed-"))
    work.mkdir(parents=True, exist_ok=True)
    load = " ".join(f"{load:.1f}" for load in os.getloadavg())
    for name in options.only or parts:
        parts[name](options, work)
    if not options.work:
        shutil.rmtree(work)
    record_told(f"The way of the data: {', '.join(options.only or parts)}", f"Load at the start: {load}.", options.save)


def library_documents():
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts[:-1]))
    return [text for p in paths if (text := p.read_bytes().decode(errors="replace"))]


def corpus(work):
    """The library, repeated to 75 MB, each copy marked so that no two documents are equal."""
    path = work / "corpus.jsonl"
    if not path.exists():
        documents = library_documents()
        copies = round(75.6e6 / sum(len(d.encode()) for d in documents))
        with open(path, "w", encoding="utf-8") as file:
            for copy in range(copies):
                for document in documents:
                    file.write(json.dumps({"text": f"# copy {copy}\n{document}"}) + "\n")
    return path


def run(command, **options):
    """(CPU seconds of the process and its children, wall-clock seconds, standard error) of a command that succeeds."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, cwd=ROOT, **options)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    if process.returncode:
        raise OSError(f"{' '.join(map(str, command))} failed: {text[-2000:]}")
    return usage.ru_utime + usage.ru_stime, wall, text


def prepare(out, source, *more, **options):
    shutil.rmtree(out, ignore_errors=True)
    return run([*PREPARE, f"--input={source}", f"--out={out}", *more], **options)


BARE = """
import json, sys, time
sys.path.insert(0, {root!r})
from lathe.text.tokenizer import load_tokenizer
texts = [json.loads(line)["text"] for line in open({path!r}, encoding="utf-8")]
tokenizer = load_tokenizer({tokenizer!r})
tokenizer.encode("warm")
began = time.process_time()
for text in texts:
    {encode}(text)
print(time.process_time() - began, file=sys.stderr)
"""

# nanoGPT's script on our corpus: one process, and the two documents that fall into its validation split do not fill
# the 1,024 batches that it writes; train is complete by then.
NANOGPT = """
import datasets, runpy
real = datasets.load_dataset
datasets.load_dataset = lambda *a, **k: real("json", data_files={corpus!r}, cache_dir={cache!r})
try:
    runpy.run_path({place!r}, run_name="__main__")
except IndexError:
    pass
"""


def measure_prepare(options, work):
    """Bar 1: one worker against the bare encoder and against nanoGPT."""
    source = corpus(work)
    size = sum(len(json.loads(line)["text"].encode()) for line in open(source, encoding="utf-8")) / 1e6
    bare, ours, walls, theirs, their_walls = [], [], [], [], []
    encode = "tokenizer.encoding.encode_ordinary" if options.tokenizer != "byte" else "tokenizer.encode"
    code = BARE.format(root=str(ROOT), path=str(source), tokenizer=options.tokenizer, encode=encode)
    for _ in range(options.repeats):  # alternately, so that a busy moment meets all of them
        bare.append(float(run([sys.executable, "-c", code])[2].split()[-1]))
        more = (f"--tokenizer={options.tokenizer}", "--workers=1")
        cpu, wall, _ = prepare(work / "one", source, *more)
        ours.append(cpu)
        walls.append(wall)
        if options.nanogpt:
            place, cache = work / "nanogpt" / "prepare.py", work / "nanogpt-cache"
            shutil.rmtree(cache, ignore_errors=True)
            place.parent.mkdir(exist_ok=True)
            script = (Path(options.nanogpt) / "data" / "openwebtext" / "prepare.py").read_text()
            place.write_text(script.replace("num_proc = 8", "num_proc = 1"))  # it writes beside itself
            code_nano = NANOGPT.format(corpus=str(source), cache=str(cache), place=str(place))
            cpu, wall, _ = run([sys.executable, "-c", code_nano])
            theirs.append(cpu)
            their_walls.append(wall)
    tell("corpus", f"{size:.1f} MB of text")
    tell(f"bare tiktoken ({options.tokenizer}), encode only", f"{size / min(bare):.1f} MB/s of CPU")
    tell(
        "prepare/text.py, whole process, 1 worker", f"{size / min(ours):.1f} MB/s of CPU, {min(walls):.1f} s wall-clock"
    )
    tell("prepare / bare", f"{min(bare) / min(ours):.1%}")
    if theirs:
        tell("nanoGPT, 1 process", f"{size / min(theirs):.1f} MB/s of CPU, {min(their_walls):.1f} s wall-clock")
        tell(
            "prepare / nanoGPT",
            f"{min(theirs) / min(ours):.2f} x CPU, {min(their_walls) / min(walls):.2f} x wall-clock",
        )


def measure_workers(options, work):
    """Bars 2 and 5: two workers against one, and the bytes they write."""
    walls, cpus, hashes, source = {}, {}, {}, work / "300MB"
    source.mkdir(exist_ok=True)
    for copy in range(4):
        shutil.copy(corpus(work), source / f"{copy}.jsonl")
    for _ in range(options.repeats):
        for workers in (1, 2):
            more = (f"--tokenizer={options.tokenizer}", f"--workers={workers}", "--shard_tokens=20000000")
            cpu, wall, _ = prepare(work / f"w{workers}", source, *more)
            walls[workers] = min(wall, walls.get(workers, 1e9))
            cpus[workers] = min(cpu, cpus.get(workers, 1e9))
    prepare(work / "w4", source, f"--tokenizer={options.tokenizer}", "--workers=4", "--shard_tokens=20000000")
    for workers in (1, 2, 4):
        hashes[workers] = shard_hashes(work / f"w{workers}")
    tell("2 workers / 1 worker, 300 MB", f"{walls[1] / walls[2]:.2f} x ({walls[1]:.1f} s, {walls[2]:.1f} s wall-clock)")
    tell("CPU seconds, 1 and 2 workers", f"{cpus[1]:.1f}, {cpus[2]:.1f}")
    same = "identical" if hashes[1] == hashes[2] == hashes[4] else "DIFFERENT"
    tell(f"sha256 of {len(hashes[1])} shards, workers 1, 2, 4", same)


def shard_hashes(folder):
    return [(s["name"], s["sha256"]) for s in open_dataset(folder, verify=True).meta["shards"]]


def measure_memory(options, work):
    """Bar 3: a document of 1 GB, and a million tiny ones."""
    large, tiny = work / "large.txt", work / "tiny.jsonl"
    if not large.exists():
        block = "\n\n".join(library_documents()).encode()
        with open(large, "wb") as file:
            while file.tell() < 1e9:
                file.write(block)
    if not tiny.exists():
        with open(tiny, "w") as file:
            file.writelines(json.dumps({"text": f"tiny document {i}"}) + "\n" for i in range(1_000_000))
    for name, source in (("one document of 1 GB", large), ("a million tiny documents", tiny)):
        for workers in (1, 2):
            peaks = {}
            stop = threading.Event()
            watcher = threading.Thread(target=watch_memory, args=(stop, peaks))
            watcher.start()
            tokenizer = "byte" if workers == 1 and source == large else options.tokenizer
            cpu, wall, _ = prepare(work / "memory", source, f"--tokenizer={tokenizer}", f"--workers={workers}")
            stop.set()
            watcher.join()
            figures = ", ".join(f"{peak / 1e6:.0f}" for peak in sorted(peaks.values(), reverse=True)[: workers + 1])
            tell(f"{name}, {workers} workers, {tokenizer}", f"peak MB per process: {figures} ({wall:.0f} s)")
        shutil.rmtree(work / "memory")
    large.unlink()


def watch_memory(stop, peaks):
    """Peak memory of every process that runs prepare/text.py below this one, read from /proc."""
    while not stop.wait(0.1):
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                command = status.with_name("cmdline").read_bytes()
                if b"prepare/text.py" in command or b"spawn_main" in command:
                    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
                    peaks[status.parent.name] = 1024 * int(lines["VmHWM"].split()[0])
            except (OSError, KeyError):
                continue  # it has just ended


def measure_disk(options, work):
    """Bar 4: the largest size of the folder while it is prepared, against what is left at the end."""
    out, stop, peak = work / "disk", threading.Event(), [0]

    def watch():
        while not stop.wait(0.02):
            try:
                peak[0] = max(peak[0], sum(p.stat().st_size for p in out.glob("*")))
            except OSError:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    prepare(out, corpus(work), f"--tokenizer={options.tokenizer}", "--workers=2", "--shard_tokens=5000000")
    stop.set()
    watcher.join()
    final = sum(p.stat().st_size for p in out.glob("*.bin"))
    tell("disk while preparing / final shards", f"{peak[0] / final:.3f} ({peak[0] / 1e6:.1f} of {final / 1e6:.1f} MB)")


def measure_kills(options, work, n_kills=20):
    """Bar 5: kill -9 at random moments and run again, twenty times."""
    source, out, rng, kills, runs = corpus(work), work / "killed", random.Random(0), 0, 0
    more = [f"--tokenizer={options.tokenizer}", "--shard_tokens=5000000"]
    cpu, wall, _ = prepare(work / "straight", source, *more, "--workers=2")
    shutil.rmtree(out, ignore_errors=True)
    while kills < n_kills:
        command = [*PREPARE, f"--input={source}", f"--out={out}", *more, f"--workers={rng.choice([1, 2])}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
        try:
            process.wait(timeout=rng.uniform(0.3, wall / 2))
            if shard_hashes(out) != shard_hashes(work / "straight"):
                break
            runs += 1
            shutil.rmtree(out)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    run([*PREPARE, f"--input={source}", f"--out={out}", *more])
    same = "identical" if shard_hashes(out) == shard_hashes(work / "straight") else "DIFFERENT"
    tell(f"sha256 after {kills} kill -9, {runs + 1} datasets finished", same)


def measure_bpe(options, work):
    """Bar 7: own BPE of 4,096 entries on the library."""
    documents = library_documents()
    size = sum(len(d.encode()) for d in documents)
    best = 1e9
    for _ in range(options.repeats):
        began = time.process_time()
        counts = count_pieces(documents)
        counted = time.process_time() - began
        tokenizer = train_bpe(counts, 4096)
        best = min(best, time.process_time() - began)
    tell(f"own BPE, 4,096 ids, {size / 1e6:.1f} MB", f"{best:.2f} CPU s ({counted:.2f} of it counting)")
    encoded = [tokenizer.encode_numpy(d) for d in documents]
    tell("bytes per token", f"{size / sum(map(len, encoded)):.3f}")
    tokenizer.save(work)
    again = load_tokenizer(work)
    same = all((again.encode_numpy(d) == e).all() for d, e in zip(documents, encoded, strict=True))
    back = all(again.decode(e) == d for d, e in zip(documents, encoded, strict=True))
    tell("ids equal after save and load; decode(encode(x)) = x", f"{same}; {back}")


def measure_shakespeare(options, work):
    """Bar 8: tiny Shakespeare from file to shards, the whole process."""
    if options.shakespeare:
        script, text = ROOT / "prepare" / "shakespeare_char.py", Path(options.shakespeare).resolve()
        best = (1e9, 1e9)
        for _ in range(options.repeats):
            shutil.rmtree(work / "shakespeare", ignore_errors=True)
            best = min(best, run([sys.executable, str(script), f"--input={text}", f"--out={work / 'shakespeare'}"])[:2])
        tell("tiny Shakespeare, file to shards", f"{best[0]:.2f} CPU s, {best[1]:.2f} s wall-clock")
    shutil.rmtree(work / "stdlib", ignore_errors=True)
    cpu, wall, _ = run([sys.executable, str(ROOT / "prepare" / "python_stdlib.py"), f"--out={work / 'stdlib'}"])
    tell("the Python library, files to shards", f"{cpu:.2f} CPU s, {wall:.2f} s wall-clock")


def measure_fetch(options, work):
    """Batches from a memory map to int64 buffers, one core."""

    class Dataset:
        train = Stream([np.random.default_rng(0).integers(0, 50257, 50_000_000).astype("<u2")])
        parts = [(train, 1.0)]

    for rows in (12, 32, 64):
        batches, best = TrainBatches(Dataset, 1024, rows, rows, 0, "cpu"), 1e9
        for _ in range(5 * options.repeats):
            began = time.process_time()
            for step in range(200):
                batches.fetch(step * rows, 0)
            best = min(best, (time.process_time() - began) / 200)
        tell(f"fetch B={rows}, T=1024", f"{best * 1e6:.0f} us, {rows * 1024 / best / 1e6:.0f} million tokens/s")


def measure_order(options, work):
    """The order of an epoch of 10 billion tokens."""
    best = 1e9
    for _ in range(options.repeats):
        began = time.process_time()
        order = SampleOrder(10**10, 1024, 0)
        permutation = order.epoch_order(0)
        best = min(best, time.process_time() - began)
    kept = permutation.nbytes / 1e6
    digest = hashlib.sha256(permutation.tobytes()).hexdigest()[:12]
    tell("order of 10B tokens, T=1024", f"{best:.2f} CPU s, {kept:.1f} MB kept (sha256 {digest})")


if __name__ == "__main__":
    cli.run(main)
