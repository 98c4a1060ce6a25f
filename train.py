"""Train a GPT: `python train.py [PRESET.toml] [--name=value ...]`, or the same behind torchrun.

Read top to bottom: what must survive a restart, the set-up and the loop, then what the loop calls. Without a preset it
trains config/quickstart.toml on the source of the Python standard library, and prepares that if it is missing.
"""

import time

STARTED = time.time()  # here: importing torch takes seconds, too

from lathe import cli
from lathe.settings import Settings

PARSER = dict(prog="train.py", description="Train a GPT.", presets=True, default_preset="quickstart")
if __name__ == "__main__":
    settings = cli.parse_before_imports(Settings, **PARSER)  # torch takes seconds; --help and mistakes need not wait

import gc
import json
import math
import os
import shutil
import statistics
from collections import deque
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from lathe import cli
from lathe.corpus.own import prepare_own
from lathe.data.batches import TrainBatches, val_windows
from lathe.data.dataset import Dataset, open_dataset
from lathe.optim.build import build_optimizers, load_optimizer_state, optimizer_state
from lathe.optim.schedule import lr_factor, set_rates
from lathe.run import checkpoint, devices, plan, ranks
from lathe.run.background import BackgroundWriter
from lathe.run.farewell import farewell, resume_command
from lathe.run.gpus import peak_flops
from lathe.run.lock import lock_folder
from lathe.run.metrics import MetricsLog, keep_samples
from lathe.run.mirrors import Mirrors
from lathe.run.parallel import (
    callable_by_method,
    checkpoint_activations,
    dry_pass,
    parallelize,
    total_norm,
)
from lathe.run.process import (
    StopSignals,
    Watchdog,
    memory_levers,
    peak_memory,
    random_state,
    seed_everything,
    set_random_state,
)
from lathe.run.progress import Progress
from lathe.run.provenance import log_start
from lathe.use import lora
from lathe.use.generation import generate
from lathe.use.hf import find as hf_find
from lathe.use.hf import weights as hf_weights
from lathe.use.network import load_weights, model_config
from lathe.use.sampling import Sampling
from lathe.use.tasks import open_tasks
from lathe.use.validation import validation
from model import GPT, GPTConfig


@dataclass
class TrainState:
    """Where a run is. With weights, optimizer state and random state, this is all that a restart needs."""

    step: int = 0  # updates done
    samples: int = 0  # sequences read: the place in the order of samples
    best_val_loss: float = math.inf
    evaluation: dict = field(default_factory=dict)  # the last one: step, val_loss, val_bits_per_byte
    skipped: int = 0  # steps left out because their gradient was not finite, or a spike
    grad_norms: list = field(default_factory=list)  # of the last 100 updates: what is usual
    wandb_run_id: str = ""


def main(argv: list[str] | None = None) -> int:
    return plan_or_train(cli.parse(Settings, argv, **PARSER))


def plan_or_train(s: Settings) -> int:
    return plan.dry_run(s, build_model) if s.dry_run else train(s)


def train(s: Settings) -> int:
    """Train as the settings say; returns the exit code: 0, or 128 + signal after stopping early and saving. Raises
    ValueError or OSError, naming the setting or file, for what a user can put right."""
    with ExitStack() as held:  # what is let go in order however this ends: bar, signals, writer, lock
        return train_holding(held, s)


def train_holding(held: ExitStack, s: Settings) -> int:
    if s.parallel == "fsdp" and int(os.environ.get("WORLD_SIZE", 1)) < 2:
        raise ValueError("parallel is fsdp, which shards over processes: torchrun --nproc-per-node=2 train.py ...")
    run = devices.start(s.device, s.dtype, s.rank_timeout, training=True)
    s = replace(s, device=run.device.type, dtype=str(run.dtype).split(".")[1])
    say, out = Progress(s.max_steps, enabled=run.is_main), Path(s.out_dir)
    dataset = find_dataset(s)
    # Rank 0 holds the folder and decides where all begin.
    start = ranks.on_main(lambda: held.enter_context(lock_folder("out_dir", out)) and find_start(s, say))
    resumed = start is not None and s.init_from in ("resume", "auto")
    state = read_position(start, s, dataset) if resumed else TrainState(wandb_run_id=os.urandom(4).hex())
    held.enter_context(memory_levers(s))

    # Model, optimizer, order of samples
    seed_everything(s.seed)
    model, eot = build_model(s, dataset, start), dataset.tokenizer().eot_id
    tasks = open_tasks(s.eval_tasks, dataset.tokenizer(), [eot], model.config.block_size, 0, dataset.template)
    rules = plan.derive(s, model)
    s.micro_batch_size = s.micro_batch_size or plan.auto_micro_batch(s, model, run)
    place = run.device, run.rank, run.world_size
    batches = TrainBatches(dataset, s.block_size, s.batch_size, s.micro_batch_size, s.seed, *place)
    peak, tokens_per_step = peak_flops(run.device, run.dtype), s.batch_size * s.block_size
    flops_per_token = model.flops_per_token(s.block_size, training=False) * (2 if s.lora_rank else 3)
    compiled = run.decide_compile(s.compile, (s.max_steps - state.step) * tokens_per_step * flops_per_token)
    s.compile = str(compiled).lower()
    checkpoint_activations(model.transformer.h, s.activation_checkpointing)
    network = parallelize(model.train(), model.transformer.h, s.parallel, compiled, run)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizers = build_optimizers(
        model.named_parameters(), s.optimizer, s.learning_rate, s.muon_learning_rate, s.weight_decay,
        (s.beta1, s.beta2), s.muon_momentum, model.fused_rows(),
    )  # fmt: skip
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    seed_everything(s.seed + 1 + run.rank)  # dropout differs between ranks
    if resumed:
        restore(start, s, optimizers, scaler, run, say)

    say.print("\n".join([run.describe(), *rules]))
    n_params, trained = model.n_params(), sum(p.numel() for p in parameters)
    share = f" ({trained:,} of them trained, {trained / n_params:.2%})" if s.lora_rank else ""
    say.print(
        f"{n_params:,} parameters{share}, {dataset.train.n_tokens:,} training tokens; a step is "
        f"{tokens_per_step:,} tokens: {s.batch_size} sequences of {s.block_size} = {s.micro_batch_size} at a time x "
        f"{batches.micro_steps} accumulated x {run.world_size} device{'s' if run.world_size > 1 else ''}"
    )
    if batches.n_longer:
        say.print(f"{batches.n_longer:,} documents exceed block_size: the beginnings of their prompts are left out")
    log = mirrors = None
    if run.is_main:
        if not resumed:
            shutil.rmtree(out / "checkpoints", ignore_errors=True)  # with --overwrite, and only now that all else fits
        if state.step < s.max_steps:
            (out / "settings.toml").write_text(cli.to_toml(replace(s, overwrite=False)), encoding="utf-8")
        log = held.enter_context(MetricsLog(out / "metrics.jsonl", state.step))
        mirrors = Mirrors(s, state.wandb_run_id, state.step, say.print)
        held.callback(mirrors.close)
        keep_samples(out / "samples.jsonl", state.step)
        log_start(out / "starts.jsonl", state.step, run.device_name, run.world_size, {"torch": torch.__version__},
                  parameters=n_params, flops_per_token=flops_per_token)  # fmt: skip
    progress = held.enter_context(Progress(s.max_steps, state.step, run.is_main))
    writer = held.enter_context(BackgroundWriter())
    watchdog = held.enter_context(Watchdog(s.rank_timeout, run))
    stop = held.enter_context(StopSignals(say.print))
    saved_step = state.step if resumed else None

    def stop_asked() -> bool:
        """Whether a signal reached any rank; all ranks ask at the same time."""
        watchdog.alive(f"evaluating step {state.step}")
        return bool(ranks.sum_over_ranks(stop.asked)[0])

    def save(best: bool = False):
        """Copy all that a restart needs to rank 0's memory; from there it is written while training goes on. Raises
        OSError, on every rank, if the save before this one failed."""
        nonlocal saved_step
        if saved_step == state.step:
            return
        watchdog.alive(f"saving step {state.step}")
        began, saved_step = time.perf_counter(), state.step
        ranks.on_main(writer.wait)
        kept = run.is_main, state.step < s.max_steps  # after the last update nothing changes: no copy is needed
        weights = ranks.full_copy(model.state_dict(), *kept)
        rest = {"optimizer": ranks.full_copy(optimizer_state(optimizers), *kept), "scaler": scaler.state_dict()}
        rest["random"] = ranks.gather(random_state(run.device))
        about = checkpoint.describe(s, state, model.config, dataset, run.world_size)
        copied = time.perf_counter()

        def write():
            said = checkpoint.publish(out, weights, rest, about, dataset.tokenizer(), best, s.keep_checkpoints)
            progress.print(f"{said}; training waited {copied - began:.2f} s")

        if run.is_main:
            writer.start(write)

    def evaluate_and_sample() -> bool:
        """False if a signal asked to stop; if it came during the evaluation itself, that is left undone."""
        nonlocal saved_step
        found = validation(model, dataset, run, s.micro_batch_size, s.eval_tokens, interrupted=stop_asked)
        if found is None:
            return False
        row = {"step": state.step, "val_loss": found["loss"], "val_bits_per_byte": found["bits_per_byte"]}
        for name, task in tasks.items():
            scores = task.measure(model, run, (eot,), s.parallel == "fsdp", stop_asked)
            if scores is None:
                return False
            row |= {f"{name}/{key}": scores[key] for key in ("acc", "acc_norm", "perplexity") if key in scores}
        better = found["loss"] < state.best_val_loss
        state.best_val_loss, state.evaluation = min(state.best_val_loss, found["loss"]), row
        report({**row, "elapsed": round(time.time() - STARTED, 3)}, progress.evaluation)
        if better or not s.checkpoint_interval or state.step == s.max_steps:
            saved_step = None  # also where this step was saved before it was evaluated
            save(better)
        if s.sample_tokens and (run.is_main or s.parallel == "fsdp"):  # of whose ranks none has the whole network
            ask = stop_asked if s.parallel == "fsdp" else lambda: stop.asked
            write_samples(s, state.step, model, dataset, run, out, progress, mirrors, interrupted=ask)
        if run.is_main:
            write_page(out, progress)
            if state.step >= s.max_steps:
                mirrors.log({"step": state.step, "report": out / "report.html"})
        return not stop_asked()

    def report(row: dict, show):
        if run.is_main:
            log.log(row)
            mirrors.log(row)
            show(row)

    def settle(keep: int):
        """Read the results of the updates begun, of all but the newest `keep`: was it skipped, is it time to stop?"""
        nonlocal stopping, skipped_in_a_row, row_tokens, clock
        while len(begun) > keep:
            step, samples, factor, results = begun.popleft()
            mean_loss, stops, failures, norm, skipped, own_loss = results.read()
            stopping |= stops > 0
            if failures:
                ranks.on_main(writer.wait)  # raises what went wrong
            skipped_in_a_row = skipped_in_a_row + 1 if skipped else 0
            if skipped:
                state.skipped += 1
                bad = [r for r, ok in enumerate(ranks.gather(math.isfinite(own_loss))) if not ok]
                why = f"loss {mean_loss:.4g} from ranks {bad or 'all'}"
                if math.isfinite(mean_loss + norm):
                    why = f"{norm / statistics.median(state.grad_norms):.0f} times the usual"
                progress.print(f"step {step} skipped: gradient norm {norm:.4g}, {why}; weights are as before")
            else:
                state.grad_norms = [*state.grad_norms[-99:], norm]
            row_tokens += tokens_per_step
            progress.step(step)
            if skipped_in_a_row >= s.max_skipped_steps:
                newest = ranks.on_main(lambda: [writer.wait(), checkpoint.newest_checkpoint(out)[0]])[1] or "none yet"
                raise ValueError(
                    f"{skipped_in_a_row} steps in a row were skipped, up to step {step} (samples "
                    f"{samples - s.batch_size} to {samples - 1}): lower learning_rate, or look at these; "
                    f"the last good checkpoint is {newest}"
                )
            if step % s.log_interval == 0 or step == s.max_steps or step == 1:
                now = time.perf_counter()
                speed = row_tokens / (now - clock)
                row = {
                    "step": step, "tokens": samples * s.block_size, "loss": mean_loss, "lr": factor * s.learning_rate,
                    "grad_norm": norm, "tokens_per_second": round(speed, 1),
                    "elapsed": round(time.time() - STARTED, 3), "memory": peak_memory(run.device),
                }  # fmt: skip
                if state.skipped:
                    row["skipped"] = state.skipped
                if peak:
                    row["mfu"] = round(speed * flops_per_token / (peak * run.world_size), 4)
                report(row, progress.train)
                clock, row_tokens = now, 0

    # The loop: evaluate and save where it is time, then one update
    if resumed and state.step >= s.max_steps:
        say.print(f"{out} is complete at step {state.step}; --max_steps=N with a larger N goes on")
    else:
        watchdog.alive("trying one forward and backward pass")
        dry_pass(network, *batches.fetch(state.samples, 0), run)
    begun, stopping, skipped_in_a_row = deque(), False, 0
    row_tokens, clock = 0, time.perf_counter()  # since the last row
    while True:
        at_end = state.step >= s.max_steps
        at_eval = at_end or state.step > 0 and state.step % s.eval_interval == 0
        at_save = s.checkpoint_interval and state.step > 0 and state.step % s.checkpoint_interval == 0
        settle(0 if at_eval or at_save else run.lag)
        paused = time.perf_counter()
        stopping |= at_eval and state.evaluation.get("step") != state.step and not evaluate_and_sample()
        if at_save:
            save()
        clock += time.perf_counter() - paused
        if at_end or stopping:
            break

        factor = lr_factor(state.step, s.max_steps, s.lr_schedule, s.warmup_steps, s.decay_fraction, s.min_lr_fraction)
        set_rates(optimizers, factor)
        # Each target weighs the same, whichever micro-batch or rank it is in; DDP and FSDP average over the ranks.
        scale = run.world_size / batches.targets(state.samples)
        loss = torch.zeros((), device=run.device)
        for micro in range(batches.micro_steps):
            watchdog.alive(f"training step {state.step + 1}")
            x, y = batches.fetch(state.samples, micro)
            # DDP adds up over ranks once a step; FSDP each time, since no rank has room for a whole gradient.
            last = micro == batches.micro_steps - 1 or not hasattr(network, "no_sync")
            with nullcontext() if last else network.no_sync():
                with run.autocast():
                    part = network(x, y, reduction="sum") * scale
                scaler.scale(part).backward()
            loss += part.detach()
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = total_norm(parameters)
        # The only exchange between ranks beside gradients: the loss, is it time to stop, did a save fail?
        asked = (torch.full_like(loss, flag) for flag in (stop.asked, writer.failed))
        told = ranks.add_ranks(torch.stack((loss / run.world_size, *asked)))
        usual = statistics.median(state.grad_norms) if len(state.grad_norms) >= 20 else 0.0
        limit = s.skip_spikes * usual or math.inf
        skip = ~(told[0].isfinite() & norm.isfinite() & (norm <= limit))  # the same on every rank
        if s.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, s.grad_clip, norm, foreach=True)
        for optimizer in optimizers:
            optimizer.step(skip)
            optimizer.zero_grad()
        scaler.update()
        state.step += 1
        state.samples += s.batch_size
        results = ranks.Later(torch.cat((told, torch.stack((norm, skip, loss)))))
        begun.append((state.step, state.samples, factor, results))
        if state.step == 1:
            gc.collect()
            gc.freeze()  # what lives now lives to the end: the collector need not look at it again
    settle(0)
    save()
    watchdog.off()
    ranks.on_main(writer.wait)
    stop.received = next(filter(None, ranks.gather(stop.received)), None)  # all ranks exit alike

    if run.is_main:
        if state.evaluation.get("step") == state.step >= s.max_steps:
            say.print(farewell(s, state.evaluation, time.time() - STARTED))
        else:
            write_page(out, say)
            say.print(f"stopped and saved at step {state.step}; to continue: {resume_command(s)}")
    ranks.stop()
    return stop.exit_code


def find_dataset(s: Settings) -> Dataset:
    """Open the dataset; one that any machine can make by itself is prepared if it is missing."""
    ranks.on_main(lambda: prepare_own(s.dataset))
    dataset = open_dataset(s.dataset)
    dataset.tokenizer()  # what evaluations need is better missed now than then
    next(val_windows(dataset.val, s.block_size, 1, 1))
    return dataset


def find_start(s: Settings, say: Progress) -> Path | None:
    """The checkpoint to begin from, None for scratch. Raises ValueError or OSError where init_from cannot be met."""
    out = Path(s.out_dir)
    checkpoint.sweep(out)
    if s.init_from in ("resume", "auto"):
        path, faults = checkpoint.newest_checkpoint(out)
        for fault in faults:
            say.print(f"skipped: {fault}")
        if path is None and (faults or s.init_from == "resume"):
            what = "no whole checkpoint" if faults else "no checkpoint"
            raise FileNotFoundError(f"init_from={s.init_from}, but {out} holds {what}: --init_from=scratch starts anew")
        return path
    if checkpoint.list_checkpoints(out) and not s.overwrite:
        raise ValueError(
            f"out_dir {out} already holds a run: --init_from=resume continues it, --overwrite=true starts over, "
            "another --out_dir keeps both"
        )
    if s.init_from.startswith("hf:") or s.init_from == "scratch":
        return hf_find.find(s.init_from) if s.init_from != "scratch" else None
    start = checkpoint.find_checkpoint(s.init_from)
    if out.resolve() in start.resolve().parents:
        raise ValueError(f"init_from {start} lies in out_dir {out}, which is written over: choose another --out_dir")
    return start


def build_model(s: Settings, dataset: Dataset, start: Path | None) -> GPT:
    """A new network, or the one in a checkpoint, whose shape then replaces the settings' (fine-tuning)."""
    names = {f.name for f in fields(GPTConfig)} & {f.name for f in fields(Settings)}
    token = dataset.tokenizer().eot_id if s.document_mask else -1
    if start is None and s.lora_rank:
        raise ValueError(f"lora_rank is {s.lora_rank} without a model to adapt: add --init_from=RUN or hf:NAME")
    if start is None:
        return GPT(GPTConfig(dataset.vocab_size, document_token=token, **{name: getattr(s, name) for name in names}))
    resumed = s.init_from in ("resume", "auto")
    if s.init_from.startswith("hf:"):
        state, weights = hf_weights.as_checkpoint(start, s.block_size)
    else:
        state, weights = checkpoint.read_state(start), load_weights(start, merged=not resumed)
    if state["tokenizer"]["fingerprint"] != dataset.tokenizer_fingerprint:
        raise ValueError(
            f"dataset {s.dataset} has tokenizer {dataset.tokenizer_name}, the checkpoint {start} "
            f"{state['tokenizer']['name']} (or another version of it): prepare the data with --tokenizer={start}"
        )
    was = asdict(model_config(state, start))
    held = {name: was[name] for name in names - {"dropout"}}
    asked = asdict(GPTConfig(vocab_size=dataset.vocab_size, **{name: getattr(s, name) for name in names}))
    for name in ("lora_rank", "lora_alpha") if resumed else ():
        held[name], asked[name] = state["settings"].get(name, getattr(Settings, name)), getattr(s, name)
    differ = [f"{name} {held[name]} -> {asked[name]}" for name in sorted(held) if held[name] != asked[name]]
    if differ and resumed:
        raise ValueError(f"cannot resume {s.out_dir} with another network: {', '.join(differ)}")
    vars(s).update(held)
    model = GPT(GPTConfig(**{**was, "dropout": s.dropout, "document_token": token}))
    if s.lora_rank:
        s.optimizer = "adamw"  # Muon is for whole matrices
        weights = lora.adapt(model, s.lora_rank, s.lora_alpha) | weights
    model.load_state_dict(weights)
    return model


def read_position(start: Path, s: Settings, dataset: Dataset) -> TrainState:
    """Where the run in a checkpoint was. Raises ValueError if dataset or seed are others, so that it has no meaning."""
    about = checkpoint.read_state(start)
    of = about["dataset"]
    for name, was, now in (
        ("dataset", f"{of['path']} ({of['fingerprint'][:12]})", f"{s.dataset} ({dataset.fingerprint[:12]})"),
        ("seed", about["settings"]["seed"], s.seed),
    ):
        if was != now and not s.new_data and (name == "seed" or of["fingerprint"] != dataset.fingerprint):
            raise ValueError(
                f"cannot resume {s.out_dir}: {name} was {was}, is now {now}, so other samples would follow; put it "
                "back, or accept a new order of samples with --new_data=true"
            )
    state = TrainState(**about["train"])
    state.best_val_loss = min(state.best_val_loss, checkpoint.best_val_loss(s.out_dir))  # may be of a later step
    return state


def restore(start: Path, s: Settings, optimizers, scaler, run: devices.Runtime, say: Progress):
    """Bring optimizer, loss scale, random state and how the run began back, and print which settings changed."""
    saved, was = checkpoint.load_optimizer(start), checkpoint.read_state(start)["settings"]
    load_optimizer_state(optimizers, saved["optimizer"])
    if saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    now = {k: v for k, v in asdict(s).items() if k not in ("init_from", "out_dir", "overwrite", "new_data")}
    changed = [f"{name} {was[name]} -> {value}" for name, value in now.items() if was.get(name, value) != value]
    if len(saved["random"]) == run.world_size:
        set_random_state(saved["random"][run.rank], run.device)
    else:
        changed.append(f"processes {len(saved['random'])} -> {run.world_size} (dropout by new random numbers)")
    s.init_from = was["init_from"]
    say.print(f"resuming from {start}" + (f"; changed: {', '.join(changed)}" if changed else ""))


def write_samples(s: Settings, step: int, model: GPT, dataset, run, out: Path, progress, mirrors, interrupted):
    """Sample from the same prompt with the same seed each time: to samples.jsonl, the mirrors and, the first lines, to
    the screen. Nothing is written if interrupted() becomes true."""
    tokenizer, ids = dataset.tokenizer(), dataset.prompt_ids(s.sample_prompt)
    model.eval()
    steps = []
    with run.autocast(), callable_by_method(model, "features"):
        for tokens in generate(
            model, [ids], s.num_samples, s.sample_tokens, Sampling(top_k=200, seed=s.seed), (tokenizer.eot_id,)
        ):
            steps += tokens
            if interrupted():
                break
    model.train()
    if interrupted() or not run.is_main:
        return
    texts = [tokenizer.decode([token.id for token in steps if token.row == i]) for i in range(s.num_samples)]
    mirrors.log({"step": step} | {f"sample {i + 1}": s.sample_prompt + text for i, text in enumerate(texts)})
    with open(out / "samples.jsonl", "a", encoding="utf-8") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"step": step, "sample": i, "prompt": s.sample_prompt, "text": text}) + "\n")
    if step < s.max_steps:  # a glimpse; the last ones are shown whole
        progress.print("\n".join("    " + line for line in (s.sample_prompt + texts[0]).strip().splitlines()[:4]))


def write_page(out: Path, progress: Progress):
    """Write or refresh report.html; that it cannot be written does not end a run."""
    from pages.run_page import (
        write_report,  # imports what a run of seconds need not wait for before its first step
    )

    if fault := write_report(out):
        progress.print(fault)


if __name__ == "__main__":
    cli.run(plan_or_train, settings)
