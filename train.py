"""Train a GPT: `python train.py [PRESET.toml] [--name=value ...]`, or the same after torchrun.

Read top to bottom: what must survive a restart, the set-up, the loop, and what the loop calls.
Without a preset it trains config/quickstart.toml on the source of the Python standard library, and
prepares that if it is missing.
"""

import gc
import time

if __name__ == "__main__":
    gc.disable()  # until all is imported and built, which lives to the end: see settle_collector

STARTED = time.monotonic()  # here: importing torch takes seconds, too

from lathe import cli, hints
from lathe.run.launch import seconds_since_launch
from lathe.settings import RESUMING, Settings, default_preset

ABOUT = "Train a GPT."
PARSER = dict(prog="train.py", description=ABOUT, presets=True, default_preset=default_preset)
if __name__ == "__main__":
    STARTED = time.monotonic() - seconds_since_launch()
    # Before torch is imported, which takes seconds: --help and mistakes need not wait for that.
    settings = cli.parse_before_imports(Settings, **PARSER)

import json
import math
import os
import statistics
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lathe.corpus.own import prepare_own
from lathe.data.batches import TrainBatches, val_windows
from lathe.data.dataset import Dataset, open_dataset
from lathe.data.order import refuse_too_few
from lathe.optim.average import TailAverage, pack, unpack
from lathe.optim.build import (
    build_optimizers,
    compile_updates,
    is_ngram_table,
    load_optimizer_state,
    optimizer_kinds,
    optimizer_state,
)
from lathe.optim.optimizer import Optimizer, TorchOptimizer
from lathe.optim.schedule import (
    Leg,
    is_near_end,
    lr_factor,
    position,
    read_pace,
    set_rates,
)
from lathe.output import never_wait
from lathe.reading import reading
from lathe.run import checkpoint, devices, dry_run, ranks, sharded_save
from lathe.run.background import BackgroundWriter
from lathe.run.clock import Clock
from lathe.run.dial import spaced
from lathe.run.farewell import farewell, resume_command
from lathe.run.files import LineLog, write_atomically
from lathe.run.gpus import peak_flops
from lathe.run.lock import HeldFolder, lock_folder
from lathe.run.metrics import MetricsLog, open_samples
from lathe.run.mirrors import Mirrors
from lathe.run.parallel import (
    callable_by_method,
    checkpoint_activations,
    dry_pass,
    parallelize,
    total_norm,
    use_sparse_gradients,
)
from lathe.run.passes import CapturedPasses, Passes, capture
from lathe.run.plan import SHAPE, Plan, refuse_what_no_memory_holds
from lathe.run.process import (
    StopSignals,
    Watchdog,
    memory_levers,
    peak_memory,
    random_state,
    seed_everything,
    set_random_state,
)
from lathe.run.progress import Progress, with_bar
from lathe.run.provenance import log_start
from lathe.run.soundness import Soundness
from lathe.run.standstill import Standstill
from lathe.run.tensor_file import host_copy
from lathe.terminal import print_result
from lathe.use import pace
from lathe.use.find_model import FoundModel
from lathe.use.generation import generate
from lathe.use.sampling import Sampling
from lathe.use.start import (
    build_model,
    fill_rows,
    find_start,
    is_filled_later,
    open_start,
    plan_run,
    which_run,
)
from lathe.use.tasks import Task, open_tasks
from lathe.use.validation import tokens_of_validation, tokens_to_compare, validation
from model import GPT
from pages.run_page import Report


@dataclass
class TrainState:
    """Where a run is. With weights, optimizer state and random state, all that a restart needs."""

    step: int = 0  # updates done
    samples: int = 0  # sequences read: the position in the order of samples
    best_val_loss: float = math.inf
    evaluation: dict = field(default_factory=dict)  # the last: step, val_loss, val_bits_per_byte
    skipped: int = 0  # steps left out because their gradient was not finite, or a spike
    grad_norms: list = field(default_factory=list)  # of the last 100 updates: what is usual
    spent: float = 0.0  # seconds of all processes, in a run by minutes
    averaged: bool = False  # whether averaged weights did better at the last evaluation
    wandb_run_id: str = ""


@dataclass
class Update:
    """An update whose numbers a device may still be computing."""

    step: int
    samples: int  # read so far, its own included
    lr: float
    numbers: ranks.LaterByName


@dataclass
class Logs:
    """What rows and texts go to, and the page that shows them."""

    metrics: MetricsLog
    samples: LineLog
    mirrors: Mirrors
    report: Report


@dataclass
class Run:
    """What set_up has built, and what the loop keeps in mind. It ends with the process."""

    plan: Plan
    runtime: devices.Runtime
    state: TrainState

    dataset: Dataset
    batches: TrainBatches
    tasks: dict[str, Task]
    model: GPT
    network: nn.Module  # what training calls: the model, or DDP around it
    passes: Passes | CapturedPasses  # of it, forward and backward
    parameters: list[nn.Parameter]  # those that are trained
    clipped: list[nn.Parameter]  # those whose gradients have one norm: all but a table by n-grams
    optimizers: list[Optimizer | TorchOptimizer]
    scaler: torch.amp.GradScaler

    held: HeldFolder | None  # out_dir; on rank 0
    logs: Logs | None  # on rank 0
    progress: Progress
    writer: BackgroundWriter
    watchdog: Watchdog
    signals: StopSignals
    standstill: Standstill
    soundness: Soundness
    clock: Clock | None  # of a run by minutes
    average: TailAverage | None  # of the weights, where that is asked for

    updates: deque[Update] = field(default_factory=deque)  # begun, and not looked at yet
    stopping: bool = False
    skipped_in_a_row: int = 0
    saved_step: int | None = None
    saving: bool = False  # a save was begun that nobody has waited for
    save_has_failed: bool = False  # the last one, which is made up for once
    row_tokens: int = 0  # since the last row of metrics
    row_began: float = 0.0
    step_ended: float = 0.0  # the last one
    step_seconds: float = 0.0  # how long it took

    @property
    def settings(self) -> Settings:
        return self.plan.settings

    @property
    def out(self) -> Path:
        return Path(self.settings.out_dir)

    def stop_asked(self) -> bool:
        """Whether a signal reached any rank; all ranks ask at the same time."""
        self.watchdog.alive(f"evaluating step {self.state.step}")
        (asked,) = ranks.sum_over_ranks(self.signals.asked)
        return asked > 0


# -----------------------------------------------------------------------------
# Set-up


def set_up(settings: Settings, contexts: ExitStack) -> Run:
    """Decide, build and open all that training needs; contexts gets what must be closed again.

    Long because it is a list: what comes later needs what came before, and each is made once.
    """
    if settings.parallel == "fsdp" and int(os.environ.get("WORLD_SIZE", 1)) < 2:
        raise ValueError(
            "parallel is fsdp, which shards over processes: "
            "torchrun --nproc-per-node=2 train.py ..., or on one --parallel=ddp, which takes "
            "any checkpoint"
        )
    if settings.deterministic:
        contexts.enter_context(devices.deterministic_algorithms())
    runtime = devices.start(settings.device, settings.dtype, settings.rank_timeout, training=True)
    say = Progress(settings.max_steps, enabled=runtime.is_main).print
    settings = ranks.on_main(lambda: which_run(settings, say))

    # Data, the weights to begin with, and a plan. Rank 0 holds the folder and decides for all.
    dataset = find_dataset(settings)
    held = []
    ranks.on_main(lambda: held.append(claim_folder(settings, contexts)))
    if settings.parallel == "fsdp":
        sharded_save.check_shared(settings.out_dir)
    start = open_start(find_start(settings, say), settings.block_size)
    plan = plan_run(settings, runtime, dataset, start, spent=elapsed())
    refuse_what_no_memory_holds(plan.settings, plan.shapes, plan.world_size)
    s = plan.settings
    state = TrainState(wandb_run_id=os.urandom(4).hex())
    if plan.resumed:
        state = read_position(start, settings, dataset)
    contexts.enter_context(memory_levers(s))

    # The network and what moves it
    seed_everything(s.seed)
    model = build_model(plan, start)
    tasks = find_tasks(plan, dataset)
    batches = make_batches(plan, dataset, runtime)
    blocks = model.transformer.h
    checkpoint_activations(blocks, s.activation_checkpointing)
    network = parallelize(model.train(), blocks, s.parallel, plan.compiled, runtime)
    if is_filled_later(plan, start):
        fill_rows(model, plan, start, runtime)
    use_sparse_gradients(model, runtime, plan.compiled)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    optimizers = make_optimizers(s, model)
    if plan.compiled and runtime.device.type == "cuda":
        compile_updates(optimizers)
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
    average = None
    if s.average_fraction:
        average = TailAverage(model)
    seed_everything(s.seed + 1 + runtime.rank)  # dropout differs between ranks
    if plan.resumed:
        changes = restore(start, plan, model, average, optimizers, scaler, runtime)
        changed = f"; changed: {', '.join(changes)}" if changes else ""
        say(f"resuming from {start.folder}{changed}")
    announce(plan, dataset, batches, say)
    say_what_to_expect(plan, dataset, runtime, state.step, say)

    # What is written to, and what watches
    logs = None
    if runtime.is_main:
        logs = open_logs(plan, state, runtime, contexts, say)
    return Run(
        plan=plan,
        runtime=runtime,
        state=state,
        dataset=dataset,
        batches=batches,
        tasks=tasks,
        model=model,
        network=network,
        passes=Passes(network, parameters, scaler, runtime, accumulates_in_buckets(plan)),
        parameters=parameters,
        clipped=[p for name, p in trained.items() if not is_ngram_table(name)],
        optimizers=optimizers,
        scaler=scaler,
        held=held[0] if held else None,
        logs=logs,
        progress=contexts.enter_context(
            Progress(s.max_steps, state.step, plan.tokens_per_step, runtime.is_main)
        ),
        writer=contexts.enter_context(BackgroundWriter()),
        watchdog=contexts.enter_context(Watchdog(s.rank_timeout, runtime)),
        signals=contexts.enter_context(StopSignals(say)),
        standstill=Standstill(plan.compiled),
        soundness=Soundness(batches, s.micro_batch_size * s.block_size, runtime.world_size),
        clock=make_clock(plan, state, dataset, "eval_interval" not in settings.given),
        average=average,
        saved_step=state.step if plan.resumed else None,
    )


def make_clock(
    plan: Plan, state: TrainState, dataset: Dataset, spaces_evaluations: bool
) -> Clock | None:
    """That of a run by minutes, of which earlier processes have spent a part. spaces_evaluations:
    where the user has not said when to evaluate."""
    minutes = plan.settings.minutes
    if not minutes or state.step >= plan.settings.max_steps:  # complete
        return None
    n_tokens = tokens_of_validation(plan.settings, dataset)
    n_tokens += tokens_to_compare(plan.settings, dataset)
    evaluation_steps = n_tokens / plan.tokens_per_step / 3  # a third: without gradients
    clock = Clock(60 * minutes, state.spent, STARTED, state.step, evaluation_steps)
    if plan.settings.average_fraction:  # the last evaluation is one more of the averaged weights
        clock.ending_steps = evaluation_steps
    clock.spaces_evaluations = spaces_evaluations
    return clock


def find_dataset(s: Settings) -> Dataset:
    """Open the dataset; one that any machine can make by itself is prepared if it is missing."""
    ranks.on_main(lambda: prepare_own(s.dataset))
    dataset = open_data(s)
    if s.init_from in ("scratch", *RESUMING):  # another model has a context of its own
        for stream, _ in dataset.parts:
            is_chosen = s.minutes and "block_size" not in s.given  # as fits the text
            block_size = 1 if is_chosen or stream.mask is not None else s.block_size
            refuse_too_few(stream.n_tokens, block_size)
    # What evaluations need is better missed now than then.
    dataset.tokenizer()
    next(val_windows(dataset.val, s.block_size, 1, 1))
    return dataset


def open_data(s: Settings) -> Dataset:
    path = Path(s.dataset)
    is_mixture = ":" in s.dataset or "," in s.dataset
    if s.document_mask and not path.exists() and not is_mixture:
        raise FileNotFoundError(hints.instead_of_dataset(path, of_pairs=True))
    return open_dataset(s.dataset)


def claim_folder(s: Settings, contexts: ExitStack) -> HeldFolder:
    """Hold out_dir while this process runs. Raises OSError or ValueError if it is another run's."""
    out = Path(s.out_dir)
    checkpoint.refuse_others_folder(out)
    held = contexts.enter_context(lock_folder("out_dir", out))
    checkpoint.sweep(out)
    if s.init_from not in RESUMING and checkpoint.list_checkpoints(out) and not s.overwrite:
        raise ValueError(
            f"out_dir {out} already holds a run: --init_from=resume continues it, "
            "--overwrite=true starts over, another --out_dir keeps both"
        )
    return held


def find_tasks(plan: Plan, dataset: Dataset) -> dict[str, Task]:
    """The tasks that are scored at evaluations; texts begin as the dataset's documents do."""
    tokenizer = dataset.tokenizer()
    return open_tasks(
        plan.settings.eval_tasks,
        tokenizer,
        begin=[tokenizer.eot_id],
        block_size=plan.config.block_size,
        template=dataset.template,
    )


def make_batches(plan: Plan, dataset: Dataset, runtime: devices.Runtime) -> TrainBatches:
    s = plan.settings
    return TrainBatches(
        dataset,
        s.block_size,
        s.batch_size,
        s.micro_batch_size,
        s.seed,
        runtime.device,
        runtime.rank,
        runtime.world_size,
        s.shift_windows,
    )


def make_optimizers(s: Settings, model: GPT) -> list[Optimizer | TorchOptimizer]:
    return build_optimizers(
        model.named_parameters(),
        s.optimizer,
        s.learning_rate,
        s.muon_learning_rate,
        s.weight_decay,
        (s.beta1, s.beta2),
        s.muon_momentum,
        model.fused_rows(),
        s.ngram_learning_rate,
    )


def accumulates_in_buckets(plan: Plan) -> bool:
    """Whether DDP exchanges the sum of several micro-batches' gradients."""
    s = plan.settings
    return s.parallel == "ddp" and plan.world_size > 1 and plan.micro_steps > 1


def announce(plan: Plan, dataset: Dataset, batches: TrainBatches, say: Callable[[str], None]):
    """Say what was decided, and why."""
    say("\n".join([plan.describe_choices(), *plan.rules, *plan.notes]))
    trained = ""
    if plan.settings.lora_rank:
        share = plan.n_trained / plan.n_params
        trained = f" ({plan.n_trained:,} of them trained, {share:.2%})"
    say(
        f"{plan.n_params:,} parameters{trained}, {dataset.train.n_tokens:,} training tokens; "
        f"a step is {plan.tokens_per_step:,} tokens: {plan.describe_step()}"
    )
    if batches.n_longer:
        say(
            f"{batches.n_longer:,} documents exceed block_size: "
            "the beginnings of their prompts are left out"
        )


def say_what_to_expect(
    plan: Plan, dataset: Dataset, runtime: devices.Runtime, step: int, say: Callable[[str], None]
):
    """How often the text is read, how long that takes, and where it can be looked at.

    All ranks measure, since they share the machine and wait for each other; rank 0 says it.
    """
    s = plan.settings
    say(f"epochs {dry_run.describe_epochs(plan, dataset)}")
    if step < s.max_steps:
        say(f"time {expected_time(plan, dataset, runtime, step, say)}")
    out = Path(s.out_dir)
    say(f"all figures go to {out / 'metrics.jsonl'}; {out / 'report.html'} shows them")


def expected_time(
    plan: Plan, dataset: Dataset, runtime: devices.Runtime, step: int, say: Callable[[str], None]
) -> str:
    if plan.settings.minutes:
        budget = pace.in_words(60 * plan.settings.minutes)
        return f"{budget} in all; the clock says how many steps that is"
    target = dry_run.own_target(plan.settings)
    if target.gpu is not None:
        return dict(dry_run.describe(plan, target, dataset))["time"]
    if pace.is_short(plan, step):
        return "a few seconds"
    measured = pace.measure_pace(plan, runtime)
    if measured is None:
        return "not measured, since even two blocks of this network are large here"
    advice = pace.slow_step_advice(plan, measured)
    if advice:
        say(advice)
    return pace.expectation(plan, measured, dataset, step)


def open_logs(
    plan: Plan,
    state: TrainState,
    runtime: devices.Runtime,
    contexts: ExitStack,
    say: Callable[[str], None],
) -> Logs:
    """Bring the run's folder to where the run is, and open what its rows go to."""
    s = plan.settings
    out = Path(s.out_dir)
    if not plan.resumed:  # with --overwrite, and only now that all else fits
        kept = checkpoint.remove_all(out)
        if kept:
            say(f"{out / 'checkpoints'} has what is not lathe's, which stays: {', '.join(kept)}")
    if state.step < s.max_steps:
        write_preset(s)
    metrics = contexts.enter_context(MetricsLog(out / "metrics.jsonl", state.step, say))
    mirrors = Mirrors(s, state.wandb_run_id, state.step, say)
    contexts.callback(mirrors.close)
    samples = open_samples(out / "samples.jsonl", state.step, say)
    contexts.callback(samples.close)
    log_start(
        out / "starts.jsonl",
        state.step,
        runtime.device_name,
        runtime.world_size,
        {"torch": torch.__version__},
        job=ranks.job_id(),
        parameters=plan.n_params,
        flops_per_token=plan.flops_per_token,
    )
    return Logs(metrics, samples, mirrors, Report(out))


def write_preset(s: Settings):
    """What repeats the run: by the steps that it took, where it went by minutes."""
    preset = cli.to_toml(replace(s, overwrite=False, minutes=0.0))
    write_atomically(Path(s.out_dir) / "settings.toml", preset)


# -----------------------------------------------------------------------------
# The loop


def train(settings: Settings) -> int:
    """Train as the settings say; returns the exit code: 0, or 128 + signal after stopping early.

    Raises ValueError or OSError, naming the setting or file, for what a user can put right.
    """
    with ExitStack() as contexts:  # closed however this ends: signals, writer, bar, logs, lock
        run = set_up(settings, contexts)
        state = run.state
        begin(run)
        while not run.stopping and (state.step < run.settings.max_steps or time_is_left(run)):
            follow_clock(run)
            lr = set_lr(run)
            numbers = ranks.LaterByName(train_step(run))
            average_weights(run)
            run.updates.append(Update(state.step, state.samples, lr, numbers))
            report(run, keep=run.runtime.lag)
            if evaluation_is_due(run):
                pause_for(evaluate, run)
            if save_is_due(run):
                pause_for(save, run)
        return finish(run)


def begin(run: Run):
    """Try one pass, and make up for an evaluation that a signal broke off."""
    state = run.state
    if run.plan.resumed and state.step >= run.settings.max_steps:
        longer = "--max_steps=N with a larger N goes on"
        run.progress.print(f"{run.out} is complete at step {state.step}; {longer}")
    else:
        run.watchdog.alive("trying one forward and backward pass")
        x, y = run.batches.fetch(state.samples, 0)
        dry_pass(run.network, x, y, run.runtime)
        if run.plan.captured:
            run.passes, fault = capture(run.passes, x, y)
            if fault:
                run.progress.print(fault)
    if evaluation_is_due(run):
        evaluate(run)
    run.row_began = time.perf_counter()
    run.step_ended = run.row_began
    if run.clock is not None:
        run.clock.begin(state.step)


def follow_clock(run: Run):
    """In a run by minutes, look now and then how many steps there is time for. Rank 0 decides."""
    clock = run.clock
    step = run.state.step
    if clock is None or step < clock.next_look:
        return
    report(run, keep=0)  # no step is under way
    s = run.settings
    legs = legs_of(s)
    (leg, *_) = ranks.gather(clock.look(step, s.eval_interval, legs[-1]))
    clock.set_next_look(step, leg.last_step)
    eval_interval = s.eval_interval
    if clock.spaces_evaluations and not run.state.evaluation:
        # Until the first one it is not too late to place them as the steps now come out.
        eval_interval = max(step + 1, spaced(leg.last_step, s.minutes))
    follow_leg(run, leg, eval_interval)


def time_is_left(run: Run) -> bool:
    """After the last evaluation of a run by minutes: whether there is time for many steps more,
    which are added then."""
    if run.clock is None:
        return False
    s = run.settings
    step = run.state.step
    leg_so_far = legs_of(s)[-1]
    (leg, *_) = ranks.gather(run.clock.go_on(step, leg_so_far))
    if leg == leg_so_far:
        return False
    settle_last_save(run)  # of weights that were not copied, since nothing was to change them
    seconds = run.clock.budget - run.clock.spent()
    run.progress.print(f"{seconds:.0f} s are left, more than expected: on to step {leg.last_step}")
    follow_leg(run, leg, s.eval_interval)
    return True


def legs_of(s: Settings) -> list[Leg]:
    return read_pace(s.pace) or [Leg(0, 0.0, s.max_steps)]


def follow_leg(run: Run, leg: Leg, eval_interval: int):
    """Go by this leg from here on."""
    legs = legs_of(run.settings)
    if leg != legs[-1]:
        legs.append(leg)
    pace = [str(each) for each in legs]
    settings = replace(
        run.settings, max_steps=leg.last_step, pace=pace, eval_interval=eval_interval
    )
    run.plan = replace(run.plan, settings=settings)
    run.progress.set_last_step(leg.last_step)


def set_lr(run: Run) -> float:
    """Give the optimizers their rates for the next update; returns the learning rate."""
    s = run.settings
    at = position(run.state.step, s.max_steps, s.pace)
    factor = lr_factor(
        at.step, at.max_steps, s.lr_schedule, s.warmup_steps, s.decay_fraction, s.min_lr_fraction
    )
    set_rates(run.optimizers, factor)
    return factor * s.learning_rate


def train_step(run: Run) -> dict[str, Tensor]:
    """One update, on the next batch_size samples. Returns what it measured: numbers on the device.

    One more key here is one more training metric: in metrics.jsonl, its mirrors and the line on the
    screen. What is to be summed over ranks goes through sum_by_name, all in one exchange.
    """
    s = run.settings
    state = run.state
    # Each target weighs the same, whichever micro-batch or rank it is in. The factor world_size is
    # there because DDP and FSDP average gradients over ranks.
    scale = run.runtime.world_size / run.batches.count_targets(state.samples)
    loss = torch.zeros((), device=run.runtime.device)
    # DDP exchanges gradients in the last micro-step alone. FSDP, which has no no_sync, does so in
    # each, since no rank has room for whole ones.
    no_sync = getattr(run.network, "no_sync", nullcontext)
    for micro in range(run.plan.micro_steps):
        run.watchdog.alive(f"training step {state.step + 1}")
        run.progress.within(state.step + 1, micro, run.plan.micro_steps)
        x, y = run.batches.fetch(state.samples, micro)
        run.soundness.use(state.step + 1, state.samples, micro, x, y)
        is_last = micro == run.plan.micro_steps - 1
        with nullcontext() if is_last else no_sync():
            loss += run.passes.add_gradients(x, y, scale)

    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    grad_norm = total_norm(run.clipped)
    shared = ranks.sum_by_name(
        {
            "loss": loss / run.runtime.world_size,
            "stops_asked": torch.full_like(loss, run.signals.asked),
            "saves_failed": torch.full_like(loss, run.writer.failed),
            "clocks_late": torch.full_like(loss, run.clock is not None and run.clock.is_overdue()),
        }
    )
    is_good = shared["loss"].isfinite() & grad_norm.isfinite() & (grad_norm <= largest_norm(run))
    skipped = ~is_good  # the same on every rank
    if s.grad_clip:
        nn.utils.clip_grads_with_norm_(run.clipped, s.grad_clip, grad_norm, foreach=True)
    for optimizer in run.optimizers:
        optimizer.step(skipped)
    run.passes.clear_gradients()
    run.scaler.update()  # by the infinities that unscale_ saw; its own step() is not used

    state.step += 1
    state.samples += s.batch_size
    if state.step == 1:
        settle_collector()
    return {
        **shared,
        "grad_norm": grad_norm,
        "skipped": skipped,
        "loss_of_rank": loss,
    }


def settle_collector():
    """What lives now lives to the end: the collector need not look at it again."""
    if gc.isenabled():  # in a process that has done other things before, and left rubbish
        gc.collect()
    gc.freeze()
    gc.enable()


def average_weights(run: Run):
    """After an update of the last part of the run, take its weights into the average."""
    if run.average is None:
        return
    s = run.settings
    at = position(run.state.step, s.max_steps, s.pace)
    if at.step / at.max_steps > 1 - s.average_fraction:
        run.average.add(run.model)
    else:  # also in a run that goes on with more steps
        run.average.reset()


def largest_norm(run: Run) -> float:
    """A larger gradient norm is a spike; infinite until there are norms to say what is usual."""
    norms = run.state.grad_norms
    if not run.settings.skip_spikes or len(norms) < 20:
        return math.inf
    return run.settings.skip_spikes * statistics.median(norms) or math.inf


def evaluation_is_due(run: Run) -> bool:
    s = run.settings
    step = run.state.step
    if step == 0 or step == run.state.evaluation.get("step"):
        return False
    if step >= s.max_steps:
        return True
    if step % s.eval_interval:
        return False
    return not is_near_end(step, s.eval_interval / 2, s.max_steps, s.pace)


def save_is_due(run: Run) -> bool:
    interval = run.settings.checkpoint_interval
    return interval > 0 and run.state.step % interval == 0


def pause_for(work: Callable[[Run], None], run: Run):
    """Do it once all numbers are known, and leave its time out of tokens_per_second."""
    report(run, keep=0)
    began = time.perf_counter()
    work(run)
    run.step_ended = time.perf_counter()
    paused = run.step_ended - began
    run.row_began += paused
    if run.clock is not None:
        run.clock.paused(paused, is_evaluation=work is evaluate)


# -----------------------------------------------------------------------------
# Looking at what was measured


def report(run: Run, keep: int):
    """Look at the numbers of the updates begun, all but the newest `keep`, and log what is due."""
    s = run.settings
    while len(run.updates) > keep:
        update = run.updates.popleft()
        numbers = update.numbers.read()
        if numbers.pop("stops_asked"):
            run.stopping = True
        if numbers.pop("saves_failed"):
            settle_last_save(run)
        is_late = numbers.pop("clocks_late")
        if run.clock is not None and is_late:
            run.clock.next_look = run.state.step
        run.standstill.look(update.step, update.lr, numbers)
        count_skipped(run, update, numbers)
        run.row_tokens += run.plan.tokens_per_step
        leave_out_pause(run)
        run.progress.step(update.step, numbers["loss"])
        if run.skipped_in_a_row >= s.max_skipped_steps:
            give_up(run, update)
        if update.step % s.log_interval == 0 or update.step in (1, s.max_steps):
            log_row(run, training_row(run, update, numbers), run.progress.train)


def leave_out_pause(run: Run):
    """A step in which the process was stopped (Ctrl-Z, SIGSTOP, a suspended job) counts in
    tokens_per_second as long as the one before it took."""
    now = time.perf_counter()
    seconds = now - run.step_ended
    run.step_ended = now
    if not run.signals.continued:
        run.step_seconds = seconds
        return
    run.signals.continued = False
    if run.step_seconds:
        run.row_began += max(0.0, seconds - run.step_seconds)


def count_skipped(run: Run, update: Update, numbers: dict[str, float]):
    """Where an update was skipped, say why; else its gradient's norm is one of the usual ones."""
    state = run.state
    skipped = numbers.pop("skipped")
    loss_of_rank = numbers.pop("loss_of_rank")
    loss = numbers["loss"]
    norm = numbers["grad_norm"]
    if not skipped:
        run.skipped_in_a_row = 0
        state.grad_norms = [*state.grad_norms[-99:], norm]
        return
    run.skipped_in_a_row += 1
    state.skipped += 1
    finite = ranks.gather(math.isfinite(loss_of_rank))  # of each rank
    if math.isfinite(loss + norm):
        why = f"{norm / statistics.median(state.grad_norms):.0f} times the usual"
    else:
        bad = [rank for rank, is_finite in enumerate(finite) if not is_finite]
        why = f"loss {loss:.4g} from ranks {bad or 'all'}"
    run.progress.print(
        f"step {update.step} skipped: gradient norm {norm:.4g}, {why}; weights are as before"
    )


def give_up(run: Run, update: Update):
    """Raises ValueError, with the samples to look at and the checkpoint to go back to."""
    first = update.samples - run.settings.batch_size
    raise ValueError(
        f"{run.skipped_in_a_row} steps in a row were skipped, up to step {update.step} "
        f"(samples {first} to {update.samples - 1}): lower learning_rate, or look at these; "
        f"the last good checkpoint is {last_good_checkpoint(run)}"
    )


def training_row(run: Run, update: Update, numbers: dict[str, float]) -> dict:
    """A row of metrics.jsonl; lathe/run/metrics.py says what stands in it."""
    plan = run.plan
    now = time.perf_counter()
    speed = run.row_tokens / (now - run.row_began)
    run.row_tokens = 0
    run.row_began = now
    row = {
        "step": update.step,
        "tokens": update.samples * run.settings.block_size,
        "loss": numbers.pop("loss"),
        "lr": update.lr,
        **numbers,
        "tokens_per_second": round(speed, 1),
        "epoch": round(run.batches.epochs(update.samples), 4),
        "elapsed": elapsed(),
        "memory": peak_memory(run.runtime.device),
    }
    if run.state.skipped:
        row["skipped"] = run.state.skipped
    peak = peak_flops(run.runtime.device, run.runtime.dtype)
    if peak:
        row["mfu"] = round(speed * plan.flops_per_token / (peak * plan.world_size), 4)
    return row


def log_row(run: Run, row: dict, show: Callable[[dict], None]):
    """Write a row to metrics.jsonl and its mirrors, and show it."""
    if run.runtime.is_main:
        run.logs.metrics.log(row)
        run.logs.mirrors.log(row)
        show(row)


def elapsed() -> float:
    """Seconds since the process began."""
    return round(time.monotonic() - STARTED, 3)


# -----------------------------------------------------------------------------
# Evaluating


def evaluate(run: Run):
    """Losses, scores, samples and the page; save if it is time. A signal breaks it off."""
    s = run.settings
    state = run.state
    check_soundness(run)
    scores = measure_the_better(run)
    if scores is None:
        run.stopping = True
        return
    is_best = scores["val_loss"] < state.best_val_loss
    warn_where_validation_turns(run, scores["val_loss"])
    if is_best:
        state.best_val_loss = scores["val_loss"]
    state.evaluation = {"step": state.step, **scores}
    log_row(run, {**state.evaluation, "elapsed": elapsed()}, run.progress.evaluation)
    if is_best or not s.checkpoint_interval or state.step == s.max_steps:
        run.saved_step = None  # a save from before this evaluation lacks it: save once more
        save(run, is_best)
    if s.sample_tokens and s.parallel == "fsdp":  # of whose ranks none has the whole network
        with the_better_weights(run):
            write_samples(run)
    what = f"samples and page of step {state.step}"
    ranks.while_main_works(what, partial(write_for_people, run), run.watchdog.alive)
    if run.stop_asked():
        run.stopping = True


def warn_where_validation_turns(run: Run, val_loss: float):
    """Once a text is read again: what is learned by heart no longer helps with another one."""
    state = run.state
    epochs = state.samples * run.settings.block_size / run.dataset.train.n_tokens
    if epochs > 1 and val_loss > 1.002 * state.best_val_loss:
        run.progress.print(
            f"validation loss turns: {val_loss:.4f}, it was {state.best_val_loss:.4f}; the text "
            f"was read {epochs:.1f} times. The best checkpoint stays, and sampling uses it; "
            "more text, --dropout or fewer steps help"
        )


def write_for_people(run: Run):
    """On rank 0, as long as it takes: samples and the page."""
    s = run.settings
    step = run.state.step
    if s.sample_tokens and s.parallel != "fsdp":
        with the_better_weights(run):
            write_samples(run)
    is_last = step >= s.max_steps
    refresh_report(run, now=is_last)
    if is_last:
        run.logs.mirrors.log({"step": step, "report": run.out / "report.html"})


def the_better_weights(run: Run) -> AbstractContextManager:
    """Inside, the model has averaged weights if these did better at the last evaluation."""
    return run.average.in_place(run.model) if run.state.averaged else nullcontext()


def check_soundness(run: Run):
    """Raises ValueError, on every rank, where numbers are not what they must be."""
    s = run.settings
    state = run.state
    run.watchdog.alive(f"checking step {state.step}")
    ranks.on_main(lambda: run.held.check())
    if run.soundness.checked_step == state.step:  # by the evaluation, which saves
        return
    tensors = dict(run.model.state_dict())
    for name, of_optimizer in optimizer_state(run.optimizers).items():
        for what, tensor in of_optimizer.items():
            if isinstance(tensor, Tensor):
                tensors[f"{what} of {name}"] = tensor
    if run.average is not None and run.average.n:
        for name, tensor in run.average.weights.items():
            tensors[f"average of {name}"] = tensor
    run.soundness.check(state.step, tensors, partial(last_good_checkpoint, run))
    is_repeatable = run.runtime.device.type == "cpu" or s.deterministic
    if not run.soundness.replay_is_due() or not is_repeatable or s.dropout or s.parallel == "fsdp":
        return
    seen = state.samples - s.batch_size
    n_differing = run.soundness.replay(run.model, run.runtime, seen, run.plan.micro_steps - 1)
    for rank, n in enumerate(ranks.gather(n_differing)):
        if n:
            run.progress.print(
                f"rank {rank} computed a batch of step {state.step} twice and got other gradients "
                f"in {n} tensors: its processor or memory is at fault"
            )


def last_good_checkpoint(run: Run) -> str:
    run.writer.wait_on_all()
    newest, _ = checkpoint.newest_checkpoint(run.out)
    return str(newest or "none yet")


def measure_the_better(run: Run) -> dict[str, float] | None:
    """The figures of the last weights, or of averaged ones where these do better; see measure."""
    state = run.state
    scores = measure(run)
    state.averaged = False
    if scores is None or run.average is None or not run.average.n:
        return scores
    with run.average.in_place(run.model):
        of_average = measure(run)
    if of_average is None:
        return None
    losses = f"{scores['val_loss']:.4f} with the last, {of_average['val_loss']:.4f} with averaged"
    run.progress.print(f"step {state.step}: val loss {losses} weights of {run.average.n} steps")
    state.averaged = of_average["val_loss"] < scores["val_loss"]
    return of_average if state.averaged else scores


def measure(run: Run) -> dict[str, float] | None:
    """Losses of both splits and the scores in tasks, by name; None if a signal came meanwhile.

    Both are taken with the same weights and without dropout (nanoGPT's estimate_loss): their
    difference is the gap by which a run overfits, which the loss of batches, means over steps whose
    weights were worse, would show too small.
    """
    s = run.settings

    def measure_split(split: str, n_tokens: int) -> dict | None:
        return validation(
            run.model,
            run.dataset,
            run.runtime,
            s.micro_batch_size,
            n_tokens,
            interrupted=run.stop_asked,
            split=split,
        )

    losses = measure_split("val", s.eval_tokens)
    if losses is None:
        return None
    scores = {"val_loss": losses["loss"], "val_bits_per_byte": losses["bits_per_byte"]}
    if sample := tokens_to_compare(s, run.dataset):
        of_training = measure_split("train", sample)
        if of_training is None:
            return None
        scores["train_loss"] = of_training["loss"]
    ends = (run.dataset.tokenizer().eot_id,)
    for name, task in run.tasks.items():
        figures = task.measure(run.model, run.runtime, ends, s.parallel == "fsdp", run.stop_asked)
        if figures is None:
            return None
        for key in ("acc", "acc_norm", "perplexity"):
            if key in figures:
                scores[f"{name}/{key}"] = figures[key]
    return scores


def write_samples(run: Run):
    """Sample from the same prompt with the same seed each time, unless a signal comes meanwhile.

    The texts go to samples.jsonl, the mirrors and, the first lines, to the screen.
    """
    s = run.settings
    step = run.state.step
    texts = draw_samples(run, together=s.parallel == "fsdp")
    if texts is None or not run.runtime.is_main:
        return
    named = {f"sample {i + 1}": s.sample_prompt + text for i, text in enumerate(texts)}
    run.logs.mirrors.log({"step": step, **named})
    for i, text in enumerate(texts):
        row = {"step": step, "sample": i, "prompt": s.sample_prompt, "text": text}
        run.logs.samples.write(json.dumps(row) + "\n")
    if step < s.max_steps:  # a glimpse; the last ones are shown whole
        lines = (s.sample_prompt + texts[0]).strip().splitlines()[:4]
        run.progress.print("\n".join("    " + line for line in lines))


def draw_samples(run: Run, together: bool) -> list[str] | None:
    """Texts that continue the prompt; None if a signal came. together: every rank calls this."""
    s = run.settings
    tokenizer = run.dataset.tokenizer()
    prompts = [run.dataset.prompt_ids(s.sample_prompt)]
    sampling = Sampling(top_k=200, seed=s.seed)
    ends = (tokenizer.eot_id,)
    rows: list[list[int]] = [[] for _ in range(s.num_samples)]
    run.model.eval()
    stopped = False
    is_late = False
    method = callable_by_method(run.model, "features")
    with run.runtime.autocast(), method, devices.in_any_order():
        drawn = generate(run.model, prompts, s.num_samples, s.sample_tokens, sampling, ends)
        for tokens in with_bar(drawn, "sampling", s.sample_tokens, run.runtime.is_main):
            for token in tokens:
                rows[token.row].append(token.id)
            run.watchdog.alive(f"sampling at step {run.state.step}")
            stopped = run.stop_asked() if together else run.signals.asked
            is_late = run.clock is not None and not together and run.clock.is_over()
            if stopped or is_late:
                break
    run.model.train()
    if stopped:
        return None
    if is_late:
        run.progress.print("the minutes are over: samples end early")
    return [tokenizer.decode(ids) for ids in rows]


def refresh_report(run: Run, now: bool):
    """Rewrite report.html if it is time; that it cannot be written does not end a run."""
    fault = run.logs.report.refresh(now)
    if fault:
        run.progress.print(fault)


# -----------------------------------------------------------------------------
# Saving, and going on from what was saved


def save(run: Run, best: bool = False):
    """Copy all that a restart needs to memory; it is written while training goes on.

    To rank 0's memory, or, of a sharded model, each rank's part to its own. Raises OSError, on
    every rank, if the two saves before this one failed.
    """
    state = run.state
    if run.saved_step == state.step:
        return
    check_soundness(run)
    run.saved_step = state.step
    run.watchdog.alive(f"saving step {state.step}")
    began = time.perf_counter()
    settle_last_save(run, again=False)  # this one makes up for it
    run.saving = True
    if run.clock is not None:
        state.spent = run.clock.spent()
        if run.runtime.is_main:
            write_preset(run.settings)
    # After the last update nothing changes any more, but for samples by averaged weights.
    copy = state.step < run.settings.max_steps or run.average is not None
    weights = run.model.state_dict()
    moments = optimizer_state(run.optimizers)
    packed = None
    if run.average is not None and run.average.n:
        is_better = state.averaged and state.evaluation.get("step") == state.step
        packed = pack(run.average, weights, is_better)
        if is_better:
            weights = weights | run.average.weights
    rest = {
        "kinds": optimizer_kinds(run.optimizers),
        "scaler": run.scaler.state_dict(),
        "random": ranks.gather(random_state(run.runtime.device)),
    }
    about = checkpoint.describe(
        run.settings, state, run.plan.config, run.dataset, run.runtime.world_size
    )
    tokenizer = run.dataset.tokenizer()
    if run.settings.parallel == "fsdp":
        if packed is not None:
            moments = moments | {checkpoint.AVERAGE: packed.pop("other")}
            rest["average"] = packed
        share = sharded_save.take_share(run.out, state.step, weights, moments, copy)
        if not run.runtime.is_main:
            run.writer.start(partial(sharded_save.write_share, share))
        write = partial(sharded_save.save, share, rest, about, tokenizer, run.writer.leaving)
    elif run.runtime.is_main:
        weights = host_copy(weights, copy)
        rest["optimizer"] = host_copy(moments, copy)
        if packed is not None:
            rest["average"] = host_copy(packed, copy)
        write = partial(checkpoint.save, run.out, weights, rest, about, tokenizer)
    if run.runtime.is_main:
        waited = time.perf_counter() - began
        run.writer.start(partial(write_checkpoint, run, write, best, waited))


def settle_last_save(run: Run, again: bool = True):
    """Wait for the save under way. If it failed, that is said and, with `again`, another is begun.

    Raises OSError, on every rank, if that was the second in a row.
    """
    was_saving = run.saving
    run.saving = False
    try:
        run.writer.wait_on_all()
    except OSError as error:
        if run.save_has_failed:
            raise
        run.save_has_failed = True
        run.progress.print(f"{error}; trying once more")
        if again:
            run.saved_step = None
            save(run)
        return
    if was_saving:
        run.save_has_failed = False


def write_checkpoint(run: Run, write: Callable[[], Path], best: bool, waited: float):
    """What rank 0's writer does in its thread with the copies."""
    began = time.perf_counter()
    line = checkpoint.publish(run.out, write, best, run.settings.keep_checkpoints)
    if run.clock is not None:
        run.clock.save = time.perf_counter() - began
    run.progress.print(f"{line}; training waited {waited:.2f} s")


def read_position(start: FoundModel, s: Settings, dataset: Dataset) -> TrainState:
    """Where the run in a checkpoint was.

    Raises ValueError if dataset or seed are others, so that a position has no meaning.
    """
    was = start.state["dataset"]
    seed = start.state["settings"]["seed"]
    change = ""
    if was["fingerprint"] != dataset.fingerprint:
        before = f"{was['path']} ({was['fingerprint'][:12]})"
        change = f"dataset was {before}, is now {s.dataset} ({dataset.fingerprint[:12]})"
    elif seed != s.seed:
        change = f"seed was {seed}, is now {s.seed}"
    if change and not s.new_data:
        raise ValueError(
            f"cannot resume {s.out_dir}: {change}, so other samples would follow; "
            "put it back, or accept a new order of samples with --new_data=true"
        )
    with reading(start.folder, "is damaged: state.json does not say where the run was"):
        state = TrainState(**start.state["train"])
    best_val_loss = checkpoint.best_val_loss(s.out_dir)  # may be of a later step
    state.best_val_loss = min(state.best_val_loss, best_val_loss)
    if was["fingerprint"] != dataset.fingerprint:
        state.best_val_loss = math.inf  # of other data
    was_in = Path(start.state["settings"]["out_dir"])
    is_copy = was_in.resolve() != Path(s.out_dir).resolve() and hints.is_run(was_in)
    if is_copy:
        state.wandb_run_id = os.urandom(4).hex()  # the other one's curves go on without this one's
    return state


def restore(
    start: FoundModel,
    plan: Plan,
    model: GPT,
    average: TailAverage | None,
    optimizers: list[Optimizer | TorchOptimizer],
    scaler: torch.amp.GradScaler,
    runtime: devices.Runtime,
) -> list[str]:
    """Bring optimizer, loss scale, random state and averaged weights back.

    Returns what has changed, in words.
    """
    saved = checkpoint.load_optimizer(start.folder)
    file = start.folder / "optimizer.pt"
    with reading(file, advises=True):
        load_optimizer_state(optimizers, saved["optimizer"], saved.get("kinds", {}))
        if saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
        n_ranks = len(saved["random"])
    changed = changed_settings(start.state["settings"], plan.settings)
    if "average" in saved:
        with reading(file, "holds no averaged weights"):
            unpack(average or TailAverage(model), model, saved["average"])
    if n_ranks == runtime.world_size:
        with reading(file, "holds no random state"):
            set_random_state(saved["random"][runtime.rank], runtime.device)
    else:
        why = "dropout by new random numbers"
        changed.append(f"processes {n_ranks} -> {runtime.world_size} ({why})")
    return changed


def changed_settings(was: dict, s: Settings) -> list[str]:
    """Settings that differ from a checkpoint's, but for those that say how to go on from it."""
    changed = []
    for name, value in asdict(s).items():
        if name in ("init_from", "out_dir", "overwrite", "new_data") or name in SHAPE:
            continue  # the network is the same: see refuse_another_network
        if name in was and was[name] != value:
            changed.append(f"{name} {was[name]} -> {value}")
    return changed


def finish(run: Run) -> int:
    """Save what is not saved, and say how it went and what to type next. Returns the exit code."""
    s = run.settings
    state = run.state
    report(run, keep=0)
    save(run)
    run.watchdog.off()
    settle_last_save(run)
    run.writer.wait_on_all()
    received = [signal for signal in ranks.gather(run.signals.received) if signal]
    run.signals.received = received[0] if received else None  # all ranks exit alike
    if run.runtime.is_main:
        is_complete = state.evaluation.get("step") == state.step >= s.max_steps
        if not is_complete:
            refresh_report(run, now=True)
        run.logs.mirrors.close()  # what trackers say at their end does not come last
        run.progress.close()
        if is_complete:
            run.progress.result(farewell(s, state.evaluation, time.monotonic() - STARTED))
        else:
            stopped = f"stopped and saved at step {state.step} in {run.out}; to continue:"
            run.progress.print(f"{stopped}\n  {resume_command(s)}")
    ranks.stop()
    return run.signals.exit_code


# -----------------------------------------------------------------------------
# The command


def print_plan(settings: Settings) -> int:
    """Print what the run would take, a line a figure; nothing is trained or written.

    Raises ValueError or OSError where the run would, as far as that shows before it starts.
    """
    target = dry_run.find_target(settings)
    is_main = int(os.environ.get("RANK", 0)) == 0
    say = Progress(settings.max_steps, enabled=is_main).print
    settings = which_run(settings, say)
    start = open_start(find_start(settings, say), settings.block_size)
    dataset = None
    try:
        dataset = open_data(settings)
    except FileNotFoundError:
        if start is not None:  # whose tokenizer it must share
            raise
    plan = plan_run(settings, target.runtime, dataset, start, target.absent_memory)
    in_minutes = []
    if plan.settings.minutes and not plan.resumed:
        for minutes in sorted({1.0, 5.0, 30.0, settings.minutes}):
            other = plan_run(settings.but(minutes=minutes), target.runtime, dataset, start)
            in_minutes.append(dry_run.in_minutes(other, dataset))
    if is_main:
        measured = None
        advice = ""
        if plan.settings.minutes:
            measured = f"{pace.in_words(60 * plan.settings.minutes)} in all, by the clock"
        elif target.gpu is None:
            its_pace = pace.measure_pace(plan, target.runtime)
            if its_pace is not None:
                measured = pace.expectation(plan, its_pace, dataset)
                advice = pace.slow_step_advice(plan, its_pace)
        lines = dry_run.describe(plan, target, dataset, measured)
        for name, figure in [*lines, *in_minutes]:
            print_result(f"{name:<16}{figure}")
        if advice:
            print_result(f"{'advice':<16}{advice}")
    return 0


def plan_or_train(settings: Settings) -> int:
    return print_plan(settings) if settings.dry_run else train(settings)


def main(argv: list[str] | None = None) -> int:
    return plan_or_train(cli.parse(Settings, argv, **PARSER))


if __name__ == "__main__":
    never_wait()
    cli.run(plan_or_train, settings)
