"""The training loop: one epoch after another, one step after another, and what happens between them."""

import shlex
import signal

import torch
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from simclr_fast.config import Config
from simclr_fast.data import Dataset, build_loader
from simclr_fast.data.ignored import IGNORED_FILE
from simclr_fast.data.shrink import side_of
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.in_training import OnlineKnn, draw_pictures, draw_views, evaluate
from simclr_fast.losses import NTXentLoss
from simclr_fast.optim import lr_at, peak_lr
from simclr_fast.process import Process, StopSignals, autocast_dtype, compile_backend
from simclr_fast.run_files import RESULTS_FILE, VIEWS_FILE, chance_level
from simclr_fast.training.bound import Circumstances, verdict
from simclr_fast.training.embedding_spread import EmbeddingSpread
from simclr_fast.training.failure import FailureBundle
from simclr_fast.training.folder import RunFolder
from simclr_fast.training.metrics import MetricsLog, StepClock, log_interval_of, print_summary, step_metrics
from simclr_fast.training.profile import TABLE_FILE, TRACE_FILE, StepProfiler
from simclr_fast.training.state import CheckpointSaver, TrainState, data_identity, start_from
from simclr_fast.training.step import TrainStep
from simclr_fast.training.step_graph import graphed
from simclr_fast.training.views import Views, check_channels
from simclr_fast.training.warnings import EarlyWarnings


def train(config: Config, dataset: Dataset, process: Process, console: Console, folder: RunFolder) -> int:
    """Run the training that the options describe; returns the exit status."""
    device, options, run = process.device, config.optimization, config.run
    check_channels(config.augment, dataset.train.channels)
    ranks, shrink_to = (process.rank, process.world_size), side_of(config.augment)
    loader = build_loader(dataset.train, options.batch_size, run.seed, device, config.data, *ranks, shrink_to)
    steps_per_epoch = loader.sampler.steps_per_epoch
    total_steps = options.epochs * steps_per_epoch
    warmup_steps = round(options.warmup_epochs * steps_per_epoch)

    autocast = autocast_dtype(config.speed.amp_dtype, device)
    several = process.world_size > 1
    state = TrainState.create(config, dataset.train.channels, device, autocast=autocast, several=several)
    state.data = data_identity(dataset.train)
    resumed, profiler = start_from(state, config), None
    if run.profile:
        profiler = StepProfiler(config, device, options.batch_size // process.world_size, total_steps - state.step)
    folder.prepare(resumed, state.step)
    if process.is_main and run.profile == 0:
        dataset.list_ignored(run.output)
    views = Views(config.augment, run.seed, dtype=autocast, channels_last=config.speed.channels_last)
    step = graphed(build_step(state, views, config, process, autocast), config, process, loader)
    knn = OnlineKnn(dataset, config, device) if run.knn_epochs and dataset.labelled is not None else None
    say = console.print if process.is_main else lambda *_, **__: None

    def say_written(*pictures_and_results: str) -> None:
        """Name what lies in the run's folder."""
        ignored = [IGNORED_FILE] if (run.output / IGNORED_FILE).exists() else []
        files = ", ".join([VIEWS_FILE, *pictures_and_results, *log.files, "checkpoint-*.pt", *ignored])
        say(f"Written to {run.output}: {files}", markup=False, soft_wrap=True)

    parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
    say(
        f"{config.model.model} with its projection head: {parameters:.2f} M parameters. {len(dataset.train)} images, "
        f"{total_steps} steps of {options.batch_size} on {process.world_size} x {device}. "
        f"Chance level of the loss: ln(2N - 1) = {chance_level(options.batch_size):.3f}",
        soft_wrap=True,
    )
    records = process.is_main and profiler is None  # a profile leaves the run in the folder as it is
    if records:  # before the first step, so that views that teach nothing cost no training
        first_views = lambda images, indices: views.apply(images, views.draw(indices, step=0))
        picture = draw_views(config, dataset, first_views, device)
        say(f"What the encoder will see: {picture}", soft_wrap=True, markup=False)
    log = MetricsLog(config, enabled=records, step=state.step, total_steps=total_steps)
    saver = CheckpointSaver(config, state, enabled=records, settle=step.settle)
    spread = EmbeddingSpread(config, process, state.model)
    warnings = EarlyWarnings(config, step=state.step, warmup_steps=warmup_steps)
    clock = StepClock()
    log_interval = run.log_interval or log_interval_of(total_steps)
    failure = FailureBundle(config, state, process.rank)

    with StopSignals() as signals, log, failure:
        for epoch in range(state.step // steps_per_epoch, options.epochs):
            for batch in clock.waiting_for(loader.epoch(epoch, start=state.step % steps_per_epoch)):
                first = process.rank * len(batch.indices)
                draw = views.draw(batch.indices, state.step, first=first, batch_size=options.batch_size)
                lr = lr_at(state.step, peak_lr(options), total_steps, warmup_steps)
                at_log_step = (state.step + 1) % log_interval == 0 or state.step + 1 == total_steps
                at_log_step &= profiler is None  # nothing is written, and such steps are no usual ones
                result = step.take(batch, draw, lr, measure=at_log_step)
                failure.note(epoch, batch, draw)
                state.step += 1
                if at_log_step:
                    step.settle()
                    epochs_done = state.step / steps_per_epoch
                    values = step_metrics(result, options, epochs_done, lr, clock, loader, device)
                    values |= spread.measure(result.z)
                    log.write(state.step, values)
                    if (found := warnings.look(state.step, values)) is not None:
                        log.warn(state.step, found, console)
                log.advance()
                if profiler is not None and (profile := profiler.step(clock.waited)) is not None:
                    step.settle()
                    found = f"{profile.table()}\n{verdict(profile, Circumstances.here(config, device))}"
                    if process.is_main:
                        profiler.write(run.output, found)
                    say(found, soft_wrap=True)
                    say(f"Written to {run.output}: {TABLE_FILE}, {TRACE_FILE}", soft_wrap=True)
                    return 0
                # Several processes must agree on the step, and they meet on the host at log steps only: one that found
                # a failure elsewhere would leave the others in the middle of a sum over all.
                if at_log_step or not several:
                    if process.any(signals.received is not None):
                        saver.save()
                        how = " with a checkpoint; go on with --resume auto" * records
                        say(f"stopped after step {state.step}{how}")
                        if records:
                            say_written()
                        return 128 + (signals.received or signal.SIGTERM)
                    saver.save_if_due()
            saver.save()
            if knn is not None and process.is_main and (epoch + 1) % run.knn_epochs == 0:
                log.write(state.step, {"knn": knn.accuracy(state.evaluated)})
    if process.is_main:
        print_summary(config, state.step, state.seconds, console)
        written = []
        if run.eval:
            pictured = evaluate(
                config, dataset, state.evaluated, device, console, steps=state.step, seconds=state.seconds
            )
            pictures = draw_pictures(config, dataset, state.evaluated, device, pictured)
            written = [*(picture.name for picture in pictures), RESULTS_FILE]
        say_written(*written)
        next_command = f"simclr-fast report {shlex.quote(str(run.output))}"
        say(f"Next: {next_command}    (one page with everything measured so far)", soft_wrap=True, markup=False)
    process.barrier()
    return 0


def build_step(
    state: TrainState, views: Views, config: Config, process: Process, autocast: torch.dtype | None
) -> TrainStep:
    """The training step of this process, with gradients summed over all of them."""
    model, several = state.model, process.world_size > 1
    if several:
        device_ids = [process.device] if process.device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
    backend = compile_backend(config.speed.torchcompile, process.device)
    mode = config.speed.torchcompile_mode
    if mode != "default" and backend is None:
        raise ConfigError(f"--torchcompile-mode {mode}: nothing is compiled on the CPU; pass --torchcompile inductor")
    return TrainStep(
        model,
        views,
        NTXentLoss(config.optimization.temperature, gather_distributed=several),
        state.optimizer,
        scaler=state.scaler,
        ema=state.ema,
        autocast=autocast,
        micro_batch_size=config.optimization.micro_batch_size,
        clip_grad=config.optimization.clip_grad,
        compile_backend=backend,
        compile_mode=mode,
    )
