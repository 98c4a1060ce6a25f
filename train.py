"""Train a GPT: `python train.py [PRESET.toml] [--name=value ...]`, or the same behind torchrun.

Read top to bottom: what must survive a restart, the set-up and the loop, then what the loop calls. Without a preset it
trains config/quickstart.toml on the source of the Python standard library, and prepares that if it is missing.
"""

import config
from config import Settings

PARSER = dict(prog="train.py", description="Train a GPT.", presets=True, default_preset="quickstart")
if __name__ == "__main__":
    config.parse(Settings, **PARSER)  # --help and mistakes are answered before torch is imported, which takes seconds

import gc
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

import checkpoint
import runtime
from data import Dataset, TrainBatches, open_dataset
from evaluate import validation
from metrics import MetricsLog, Mirrors, Progress, log_start
from model import GPT, GPTConfig
from optimizer import build_optimizers, load_optimizer_state, lr_factor, optimizer_state, set_schedule
from sample import generate

STARTED = time.time()


@dataclass
class TrainState:
    """Where a run is. With weights, optimizer state and random state, this is all that a restart needs."""

    step: int = 0  # updates done
    samples: int = 0  # sequences read: the place in the order of samples
    best_val_loss: float = math.inf
    skipped: int = 0  # steps left out because their gradient was not finite
    wandb_run_id: str = ""


def main(argv: list[str] | None = None) -> int:
    return train(config.parse(Settings, argv, **PARSER))


def train(s: Settings) -> int:
    """Train as the settings say; returns the exit code: 0, or 128 + signal after stopping early and saving.

    Raises ValueError or OSError, naming the setting or file, for what a user can put right.
    """
    run = runtime.start(s.device, s.dtype)
    say = Progress(s.max_steps, enabled=run.is_main)
    out = Path(s.out_dir)
    lock = checkpoint.RunLock(out) if run.is_main else None
    dataset = find_dataset(s, run)
    start = runtime.gather(find_start(s, say) if run.is_main else None)[0]  # rank 0 decides where all begin

    # Model, optimizer, order of samples
    runtime.seed_everything(s.seed)
    model = build_model(s, dataset, start)
    s.micro_batch_size = s.micro_batch_size or auto_micro_batch(s, model.config, run)
    batches = TrainBatches(
        dataset, s.block_size, s.batch_size, s.micro_batch_size, s.seed, run.device, run.rank, run.world_size
    )
    model.to(run.device).train()
    optimizers = build_optimizers(
        model.named_parameters(), s.optimizer, s.learning_rate, s.muon_learning_rate, s.weight_decay,
        (s.beta1, s.beta2), s.muon_momentum, model.fused_rows(),
    )  # fmt: skip
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    state = TrainState(wandb_run_id=os.urandom(4).hex())
    runtime.seed_everything(s.seed + 1 + run.rank)  # dropout differs between ranks
    resumed = start is not None and s.init_from in ("resume", "auto")
    if resumed:
        state = restore(start, s, dataset, optimizers, scaler, run, say)

    peak = runtime.peak_flops(run.device, run.dtype)
    tokens_per_step = s.batch_size * s.block_size
    flops_per_token = model.flops_per_token(s.block_size)
    planned_flops = (s.max_steps - state.step) * tokens_per_step * flops_per_token
    compiled = run.decide_compile(s.compile, planned_flops / (0.3 * peak * run.world_size) if peak else 0)
    if compiled:
        model.compile()
    network = model
    if run.world_size > 1:
        network = DistributedDataParallel(model, gradient_as_bucket_view=True)
    parameters = [p for p in model.parameters() if p.requires_grad]

    say.print(run.describe())
    say.print(
        f"{model.n_params():,} parameters, {dataset.train.n_tokens:,} training tokens; a step is {tokens_per_step:,} "
        f"tokens: {s.batch_size} sequences of {s.block_size} = {s.micro_batch_size} at a time x {batches.micro_steps} "
        f"accumulated x {run.world_size} device{'s' if run.world_size > 1 else ''}"
    )
    log = mirrors = None
    if run.is_main:
        resolved = replace(s, device=run.device.type, dtype=str(run.dtype).split(".")[1], compile=str(compiled).lower())
        (out / "settings.toml").write_text(config.to_toml(replace(resolved, overwrite=False)), encoding="utf-8")
        log = MetricsLog(out / "metrics.jsonl", state.step)
        mirrors = Mirrors(s, state.wandb_run_id, state.step, say.print)
        keep_samples(out / "samples.jsonl", state.step)
        device = torch.cuda.get_device_name() if run.device.type == "cuda" else run.device.type
        size = {"parameters": model.n_params(), "flops_per_token": flops_per_token}
        log_start(out / "starts.jsonl", state.step, device, run.world_size, {"torch": torch.__version__}, **size)

    saved_step = state.step if resumed else None
    val = {}
    with runtime.StopSignals() as stop, Progress(s.max_steps, state.step, run.is_main) as progress:

        def stopping() -> bool:
            return bool(runtime.sum_over_ranks(stop.received is not None)[0])

        def save():
            nonlocal saved_step
            if saved_step != state.step:
                write_checkpoint(s, state, model, optimizers, scaler, dataset, run, val)
                saved_step = state.step

        def evaluate_and_sample() -> bool:
            """False if a stop signal came in between."""
            found = validation(
                model, dataset, run, s.micro_batch_size, s.eval_tokens, interrupted=lambda: stop.received is not None
            )
            if found is None:
                return False
            better = found["loss"] < state.best_val_loss
            state.best_val_loss = min(state.best_val_loss, found["loss"])
            row = {"step": state.step, "val_loss": found["loss"], "val_bits_per_byte": found["bits_per_byte"]}
            report({**row, "elapsed": round(time.time() - STARTED, 3)}, progress.evaluation)
            val.update(row)
            if run.is_main and s.sample_tokens:
                write_samples(s, state.step, model, dataset, run, out / "samples.jsonl", progress)
            if better or not s.checkpoint_interval or state.step == s.max_steps:
                save()
            if better and run.is_main:
                checkpoint.mark_best(out, checkpoint.step_path(out, state.step))
            if run.is_main:
                checkpoint.prune(out, s.keep_checkpoints)
                write_page(out, progress)
            return True

        def report(row: dict, show):
            if run.is_main:
                log.log(row)
                mirrors.log(row)
                show(row)

        clock, rows_tokens = time.perf_counter(), 0  # since the last row, evaluations and saves left out
        skipped_in_a_row = 0
        while state.step < s.max_steps and not stopping():
            factor = lr_factor(
                state.step, s.max_steps, s.lr_schedule, s.warmup_steps, s.decay_fraction, s.min_lr_fraction
            )
            set_schedule(optimizers, factor, state.step, s.max_steps)
            # Each target weighs the same, whichever micro-batch or rank it is in; DDP averages over the ranks.
            scale = run.world_size / batches.targets(state.samples)
            loss = torch.zeros((), device=run.device)
            for micro in range(batches.micro_steps):
                x, y = batches.fetch(state.samples, micro)
                last = micro == batches.micro_steps - 1
                with nullcontext() if last or network is model else network.no_sync():
                    with run.autocast():
                        part = network(x, y, reduction="sum") * scale
                    scaler.scale(part).backward()
                loss += part.detach()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            grads = [p.grad for p in parameters if p.grad is not None]
            grad_norm = torch.nn.utils.get_total_norm(grads, foreach=True)
            finite = math.isfinite(grad_norm.item())  # after DDP's averaging the same on every rank
            if finite or scaler.is_enabled():
                if s.grad_clip and finite:
                    torch.nn.utils.clip_grads_with_norm_(parameters, s.grad_clip, grad_norm, foreach=True)
                for optimizer in optimizers:
                    scaler.step(optimizer)  # leaves weights alone if float16 overflowed
                scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.samples += s.batch_size
            rows_tokens += tokens_per_step
            progress.step(state.step)

            skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
            if not finite:
                state.skipped += 1
                progress.print(f"step {state.step}: gradient norm {grad_norm.item()}, weights left as they were")
                if skipped_in_a_row >= s.max_skipped_steps:
                    newest, _ = checkpoint.newest_checkpoint(out)
                    raise ValueError(
                        f"{skipped_in_a_row} steps in a row had no finite gradient (up to step {state.step}, sample "
                        f"{state.samples}): lower learning_rate; the last good checkpoint is {newest or 'none yet'}"
                    )
            at_eval = state.step % s.eval_interval == 0 or state.step == s.max_steps
            if state.step % s.log_interval == 0 or state.step == s.max_steps or state.step == 1:
                mean_loss = runtime.sum_over_ranks(loss.item())[0] / run.world_size
                now = time.perf_counter()
                speed = rows_tokens / (now - clock)
                row = {
                    "step": state.step, "tokens": state.samples * s.block_size, "loss": mean_loss,
                    "lr": factor * s.learning_rate, "grad_norm": grad_norm.item(), "tokens_per_second": round(speed, 1),
                    "elapsed": round(time.time() - STARTED, 3), "memory": runtime.peak_memory(run.device),
                }  # fmt: skip
                if state.skipped:
                    row["skipped"] = state.skipped
                if peak:
                    row["mfu"] = round(speed * flops_per_token / (peak * run.world_size), 4)
                report(row, progress.train)
                clock, rows_tokens = now, 0
            if state.step == 1:
                gc.collect()
                gc.freeze()  # what lives now lives to the end: the collector need not look at it again
            if at_eval or (s.checkpoint_interval and state.step % s.checkpoint_interval == 0):
                paused = time.perf_counter()
                if at_eval and not evaluate_and_sample():
                    break
                if s.checkpoint_interval and state.step % s.checkpoint_interval == 0:
                    save()
                    if run.is_main:
                        checkpoint.prune(out, s.keep_checkpoints)
                clock += time.perf_counter() - paused
        save()
        if state.step >= s.max_steps and not stopping() and not val:
            say.print(f"{out} is complete at step {state.step}; --max_steps=N with a larger N goes on")
            evaluate_and_sample()

    if run.is_main:
        log.close()
        mirrors.close()
        lock.release()
        if val.get("step") == state.step >= s.max_steps:
            say_farewell(s, state, val, say)
        else:
            write_page(out, say)
            say.print(f"stopped and saved at step {state.step}; --init_from=resume continues")
    runtime.stop()
    return stop.exit_code


def find_dataset(s: Settings, run: runtime.Runtime) -> Dataset:
    """Open the dataset. The one that every Python has on board, its own library's source, is prepared if missing."""
    script = Path(__file__).parent / "prepare" / "python_stdlib.py"
    if s.dataset == "data/python_stdlib" and not (Path(s.dataset) / "meta.json").exists() and run.is_main:
        print(f"dataset {s.dataset} is missing: running python prepare/{script.name}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, str(script), f"--out={s.dataset}"]).returncode:
            raise ValueError(f"{s.dataset} could not be prepared: run python prepare/{script.name} to see why")
    runtime.gather(None)  # the others wait
    return open_dataset(s.dataset)


def find_start(s: Settings, say: Progress) -> Path | None:
    """The checkpoint to begin from, None for scratch. Raises ValueError or OSError where init_from cannot be met."""
    out = Path(s.out_dir)
    if s.init_from in ("resume", "auto"):
        path, faults = checkpoint.newest_checkpoint(out)
        for fault in faults:
            say.print(f"skipped: {fault}")
        if path is None and (faults or s.init_from == "resume"):
            what = "no whole checkpoint" if faults else "no checkpoint"
            raise FileNotFoundError(f"init_from={s.init_from}, but {out} holds {what}: --init_from=scratch starts anew")
        return path
    if checkpoint.list_checkpoints(out):
        if not s.overwrite:
            raise ValueError(
                f"out_dir {out} already holds a run: --init_from=resume continues it, --overwrite=true starts over, "
                "another --out_dir keeps both"
            )
        shutil.rmtree(out / "checkpoints")
    return None if s.init_from == "scratch" else checkpoint.find_checkpoint(s.init_from)


def build_model(s: Settings, dataset: Dataset, start: Path | None) -> GPT:
    """A new network, or the one in a checkpoint, whose shape then replaces the settings' (fine-tuning)."""
    names = {f.name for f in fields(GPTConfig)} & {f.name for f in fields(Settings)}
    if start is None:
        return GPT(GPTConfig(vocab_size=dataset.vocab_size, **{name: getattr(s, name) for name in names}))
    state = checkpoint.read_state(start)
    if state["tokenizer"]["fingerprint"] != dataset.tokenizer_fingerprint:
        raise ValueError(
            f"dataset {s.dataset} has tokenizer {dataset.tokenizer_name}, the checkpoint {start} "
            f"{state['tokenizer']['name']} (or another version of it): prepare the data with --tokenizer={start}"
        )
    held = {name: state["model"][name] for name in names - {"dropout"}}
    asked = asdict(GPTConfig(vocab_size=dataset.vocab_size, **{name: getattr(s, name) for name in names}))
    differ = [f"{name} {held[name]} -> {asked[name]}" for name in sorted(held) if held[name] != asked[name]]
    if s.init_from in ("resume", "auto"):
        if differ:
            raise ValueError(f"cannot resume {s.out_dir} with another network: {', '.join(differ)}")
    else:
        for name, value in held.items():
            setattr(s, name, value)
    model = GPT(GPTConfig(**{**state["model"], "dropout": s.dropout}))
    model.load_state_dict(checkpoint.load_weights(start))
    return model


def auto_micro_batch(s: Settings, c: GPTConfig, run: runtime.Runtime) -> int:
    """The most sequences that a forward and backward pass should hold: within memory, and no more than helps speed."""
    share = max(1, s.batch_size // run.world_size)
    # What a layer keeps for its backward pass: about ten vectors of n_embd and three of the MLP's width, per token.
    per_token = 4 * c.n_layer * (10 * c.n_embd + 3 * c.n_hidden + 2 * c.n_kv_head * c.head_dim)
    free = torch.cuda.mem_get_info(run.device)[0] if run.device.type == "cuda" else 2 << 30
    most = max(1, min(int(0.6 * free / per_token), 65536) // s.block_size)
    fitting = max(m for m in range(1, share + 1) if share % m == 0 and m <= most)
    run.reasons.append(f"micro_batch_size {fitting} (automatic)")
    return fitting


def restore(start: Path, s: Settings, dataset: Dataset, optimizers, scaler, run: runtime.Runtime, say) -> TrainState:
    """Bring optimizer, loss scale and random state back and print which settings changed; returns where the run was."""
    held = checkpoint.read_state(start)
    for name, was, now in (
        ("dataset", held["dataset"]["fingerprint"], dataset.fingerprint),
        ("seed", held["settings"]["seed"], s.seed),
    ):
        if was != now and not s.new_data:
            raise ValueError(
                f"cannot resume {s.out_dir}: {name} was {was}, is now {now}, so other samples would follow; put it "
                "back, or accept a new order of samples with --new_data=true"
            )
    changed = [
        f"{name} {held['settings'][name]} -> {value}"
        for name, value in asdict(s).items()
        if held["settings"].get(name, value) != value and name not in ("init_from", "out_dir", "overwrite")
    ]
    saved = checkpoint.load_optimizer(start)
    load_optimizer_state(optimizers, saved["optimizer"])
    scaler.load_state_dict(saved["scaler"])
    if len(saved["random"]) == run.world_size:
        runtime.set_random_state(saved["random"][run.rank], run.device)
    say.print(f"resuming from {start}" + (f"; changed: {', '.join(changed)}" if changed else ""))
    return TrainState(**{f.name: held["train"][f.name] for f in fields(TrainState)})


def write_checkpoint(s: Settings, state: TrainState, model, optimizers, scaler, dataset: Dataset, run, val: dict):
    """Rank 0 writes; the others wait, so that nobody runs ahead of a save that fails."""
    random_states = runtime.gather(runtime.random_state(run.device))
    fault = None
    if run.is_main:
        about = {
            "step": state.step, "samples": state.samples, "train": asdict(state), "model": asdict(model.config),
            "settings": asdict(s), "val_loss": val.get("val_loss") if val.get("step") == state.step else None,
            "dataset": {"path": s.dataset, "fingerprint": dataset.fingerprint},
            "tokenizer": {"name": dataset.tokenizer_name, "fingerprint": dataset.tokenizer_fingerprint},
            "versions": {"torch": torch.__version__, "python": platform.python_version()}, "world_size": run.world_size,
        }  # fmt: skip
        rest = {"optimizer": optimizer_state(optimizers), "scaler": scaler.state_dict(), "random": random_states}
        try:
            checkpoint.save(s.out_dir, model.state_dict(), rest, about, dataset.tokenizer())
        except OSError as error:
            fault = str(error)
    if fault := runtime.gather(fault)[0]:
        raise OSError(fault)


def keep_samples(path: Path, step: int):
    """Drop the lines of steps that this run will reach again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() and step else []
    path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


def write_samples(s: Settings, step: int, model: GPT, dataset: Dataset, run, path: Path, progress: Progress):
    """Sample from the same prompt with the same seed each time: to samples.jsonl, and the first lines to the screen."""
    tokenizer = dataset.tokenizer()
    ids = [tokenizer.eot_id, *tokenizer.encode(s.sample_prompt)]
    model.eval()
    with run.autocast():
        steps = list(
            generate(model, ids, s.num_samples, s.sample_tokens, 0.8, 200, seed=s.seed, stop_ids=(tokenizer.eot_id,))
        )
    model.train()
    texts = [tokenizer.decode([t for t in row if t is not None]) for row in zip(*steps, strict=True)]
    with open(path, "a", encoding="utf-8") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"step": step, "sample": i, "prompt": s.sample_prompt, "text": text}) + "\n")
    if step < s.max_steps:  # a glimpse; the last ones are shown whole
        progress.print("\n".join("    " + line for line in (s.sample_prompt + texts[0]).strip().splitlines()[:4]))


def write_page(out: Path, progress: Progress):
    """Write or refresh report.html; that it cannot be written does not end a run."""
    from visualize import write_report  # imports what a run of seconds need not wait for before its first step

    if fault := write_report(out):
        progress.print(fault)


def say_farewell(s: Settings, state: TrainState, val: dict, say: Progress):
    """What came out, and what to type next."""
    path = Path(s.out_dir) / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in [row for row in rows if row["step"] == state.step]:
        say.print(f"--- sample {row['sample'] + 1} of {s.num_samples}\n{row['prompt']}{row['text']}".rstrip())
    bits = f", {val['val_bits_per_byte']:.4f} bits per byte" if val.get("val_bits_per_byte") is not None else ""
    where = shlex.quote(s.out_dir)
    say.print(
        f"---\ndone: validation loss {val['val_loss']:.4f}{bits} at step {state.step}, {time.time() - STARTED:.0f} s; "
        f"all of it is in {s.out_dir}\nnext:\n"
        f"  python sample.py --out_dir={where} --num_samples=3 --prompt={shlex.quote(s.sample_prompt or 'The ')}\n"
        f"  python evaluate.py --out_dir={where}\n"
        f"  python train.py {where}/settings.toml --init_from=resume --max_steps={2 * s.max_steps}"
    )


if __name__ == "__main__":
    config.run(main)
