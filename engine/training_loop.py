"""The loop of training: launch a step, collect what it measured, then do what is due after it."""

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from signal import SIGTERM
from typing import NamedTuple

import torch
from torch import nn

from dataset import (
    TRAINING,
    VALIDATION,
    Batch,
    DeviceBatch,
    load_batches,
    read_batch,
    upload_batches,
)
from engine.derainer import Derainer
from engine.device import is_out_of_memory, peak_memory
from engine.pairs import validate
from engine.training_run import TrainingRun
from engine.training_step import (
    NotFinite,
    StepMetrics,
    learning_rate,
    loss_curves,
    loss_names,
    measure_batch,
    train_one_step,
)
from media.lists import Mixture, Pairs
from model import is_dead_mask
from report.visualize import contact_sheet, heat_map
from settings import Settings, UserError
from system.interrupt import Interrupt
from system.progress import Progress

LATEST, BEST = "latest", "best"
EVENTS, VAL_EVENTS = "train_derain", "val_derain"
DEAD_MASK_STEPS = 20  # steps in a row with a dead attention map, after which a warning is printed
PREVIEW_CROPS = 4  # validation crops whose pictures show how a run gets on
CAPTIONS = ["rainy", "output", "clean", "mask", "label"]  # of the images in a preview
# The charts of TensorBoard with the curves of each step, beside that of its losses.
CHARTS = {
    "mask": ["mask/mean", "mask/std"],
    "optim": ["optim/lr", "optim/grad_norm"],
    "speed": ["speed/images_per_second", "speed/memory_MiB"],
}
# How Inductor on a CPU, and Triton on a GPU, report that there is no compiler, or none that runs.
NO_COMPILER = (
    "No working C++ compiler", "Failed to find C compiler", "Python.h", "[Errno 2]", "[Errno 8]",
    "[Errno 13]",
)  # fmt: skip


def run_steps(run: TrainingRun, pairs: Pairs, val_pairs: Pairs) -> int:
    """Train from where the run stands to the end, or until a signal. Returns its number, or 0.

    On a GPU a step is launched before the one before it is collected, so that the GPU need not wait
    for its next batch. Before anything that is due, no later step is launched and all are
    collected, so it sees the weights of its step. A validation batch needs no wait: it is queued
    behind its step. val_pairs is --val-list, or else the training pairs, which are never scored.
    """
    settings, ranks = run.settings, run.ranks
    steps, every = range(run.step + 1, settings.num_steps), settings.val_batch_every
    val_steps = steps[-steps.start % every :: every]  # the multiples of `every`
    names, silent = [*loss_names(), "lr"], not ranks.is_first
    dead_mask, signal_number = DeadMaskDetector(settings), 0
    pending: deque[PendingStep] = deque()
    with (
        # The outermost, as it takes a while until the loading processes have ended.
        Interrupt() as interrupt,
        _open_batches(run, pairs, TRAINING, steps) as batches,
        _open_batches(run, val_pairs, VALIDATION, val_steps) as val_batches,
        Progress(
            "step", steps.start, steps.stop, names, settings.log_every, silent, forecast=True
        ) as progress,
    ):
        training_net, derainer = run.wrap_net(), run.derainer()
        crops = range(min(PREVIEW_CROPS, len(val_pairs)))
        preview = read_batch(val_pairs, settings, VALIDATION, crops, 0)
        training_net.train()
        scored_step = run.best["scored"] if run.best else -1
        if find_due(settings, run.step).score and scored_step < run.step:
            # The program was stopped after this step, before its score: score it now.
            _score(run, derainer, val_pairs, progress)
        collected = time.monotonic()
        for step, batch in zip(steps, batches, strict=True):
            pending.append(launch_step(run, training_net, step, batch, interrupt))
            if step in val_steps:
                pending[-1].validation = launch_validation(run, step, next(val_batches))
            due = find_due(settings, step)
            # Once a step reports a signal, collect the rest too: the checkpoint below holds them.
            while len(pending) > (0 if any(due) or signal_number else run.max_pending_steps):
                values, signal_number = collect_step(run, pending.popleft(), interrupt, collected)
                collected = time.monotonic()
                warning = dead_mask.update(run.step, values["mask/mean"], values["mask/std"])
                if warning and ranks.is_first:
                    progress.say(warning, sys.stderr)
                progress.update(run.step, values | {"lr": values["optim/lr"]})
            if due.pictures and ranks.is_first:
                _write_pictures(run, derainer, preview)
            if due.score and (step == steps[-1] or not signal_number):
                _score(run, derainer, val_pairs, progress)
            if due.numbered:
                run.start_save(f"step_{step}")
            # 'latest' comes last: all that is due up to its step is then there.
            if due.latest or signal_number:
                run.start_save(LATEST)
            if signal_number:
                break
        run.finish_save()
        ranks.barrier()  # a repeated signal must end no rank before the save is done
    return signal_number


@contextmanager
def _open_batches(
    run: TrainingRun, pairs: Pairs, branch: int, steps: range
) -> Iterator[Iterator[DeviceBatch]]:
    """This rank's share of the batches of the steps; processes load them while this is open."""
    settings, ranks = run.settings, run.ranks
    batches = load_batches(pairs, settings, branch, steps, ranks.rank, ranks.world_size)
    device_batches = upload_batches(batches, run.device, settings.mask_threshold)
    with closing(batches), closing(device_batches):
        yield device_batches


class Due(NamedTuple):
    """What is to be done after a step, with the network as that step left it."""

    pictures: bool
    score: bool  # of the whole images of --val-list
    numbered: bool  # a checkpoint of its own
    latest: bool


def find_due(settings: Settings, step: int) -> Due:
    is_last = step == settings.num_steps - 1
    at_score = is_last or (step > 0 and step % settings.val_every == 0)
    return Due(
        pictures=step % settings.picture_every == 0,
        score=bool(settings.val_list) and at_score,
        numbered=step > 0 and step % settings.checkpoint_every == 0,
        latest=is_last or step % settings.latest_every == 0,
    )


@dataclass
class PendingStep:
    """A step that was launched; on a GPU it may still be computed."""

    step: int
    files: list[str]  # rainy files of its batch
    metrics: StepMetrics
    validation: StepMetrics | None = None  # of the validation batch after it


def launch_step(
    run: TrainingRun, training_net: nn.Module, step: int, batch: DeviceBatch, interrupt: Interrupt
) -> PendingStep:
    """Train on a batch; on a GPU this returns before the step is computed.

    With the metrics, all ranks learn of a signal that one of them has received.
    """
    tensors, files = batch
    with translate_step_errors(run, step, files):
        values = train_one_step(training_net, run.optimiser, run.ssim, run.settings, step, tensors)
        run.update_ema(step)
        values["stop"] = torch.full_like(values["loss"], interrupt.signal > 0)
        return PendingStep(step, files, StepMetrics(values, run.ranks))


def launch_validation(run: TrainingRun, step: int, batch: DeviceBatch) -> StepMetrics:
    """Measure a validation batch, as launch_step, with the weights in training, not their average.

    The network is the bare one: without gradients a compiled one would be compiled once more.
    """
    with translate_step_errors(run, step, batch.files):
        values = measure_batch(run.net, run.ssim, run.settings, batch.tensors, backward=False)
        return StepMetrics(values, run.ranks)


def collect_step(
    run: TrainingRun, pending: PendingStep, interrupt: Interrupt, start: float
) -> tuple[dict[str, float], int]:
    """Read what a step measured, and write its events; it is then done.

    Args:
        start: when the step before it was collected (time.monotonic), from which the speed counts.

    Returns:
        The values of loss_names() and CHARTS, and the number of a signal to stop for, or 0.
    """
    settings, step = run.settings, pending.step
    with translate_step_errors(run, step, pending.files):
        values = pending.metrics.read()
        val_values = pending.validation.read() if pending.validation else {}
    variance = values["mask/square"] - values["mask/mean"] ** 2
    values |= {
        "mask/std": math.sqrt(max(variance, 0.0)),
        "optim/lr": learning_rate(settings, step),
        "speed/images_per_second": settings.batch_size / (time.monotonic() - start),
        "speed/memory_MiB": peak_memory(run.device),
    }
    run.step = step
    if run.ranks.is_first:
        curves = loss_curves(values) | {name: values[name] for name in chain(*CHARTS.values())}
        run.events[EVENTS].scalars(curves, step)
        if val_values:
            run.events[VAL_EVENTS].scalars(loss_curves(val_values), step)
    if not run.ranks.is_distributed:
        return values, interrupt.signal
    # Ranks must stop after the same step. So several ranks heed only what was sent with this step;
    # a signal that came later counts with the next.
    if values["stop"]:
        return values, interrupt.signal or SIGTERM  # which one another rank got is not known
    return values, 0


class DeadMaskDetector:
    """Detects an attention map that no longer learns, which no loss would show.

    It counts anew each time the program starts.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.steps = 0  # in a row whose map was dead
        self.has_warned = False

    def update(self, step: int, mean: float, deviation: float) -> str:
        """Count a step by mean and deviation of its map; a warning, once, at DEAD_MASK_STEPS."""
        self.steps = self.steps + 1 if is_dead_mask(mean, deviation) else 0
        if self.steps < DEAD_MASK_STEPS or self.has_warned:
            return ""
        self.has_warned = True
        return (
            f"main.py: warning: step {step}: the attention map has had one value everywhere for "
            f"{DEAD_MASK_STEPS} steps, and will hardly learn any more; start again with a lower "
            f"--lr (now {self.settings.lr:g}) or another --seed (now {self.settings.seed})"
        )


@contextmanager
def translate_step_errors(run: TrainingRun, step: int, files: list[str]) -> Iterator[None]:
    """Raise what can go wrong in a step as a UserError that says how to mend it."""
    settings = run.settings
    try:
        with run.ranks.translate_dist_errors():
            yield
    except NotFinite as error:
        raise UserError(f"step {step}: {error}; the batch is of {', '.join(files)}") from None
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            size = f"{settings.patch_size}x{settings.patch_size} pixels"
            raise UserError(
                f"step {step}: not enough memory on {run.device} for {len(files)} crops of {size}; "
                "expected a larger --accumulate-steps, or --checkpoint-activations"
            ) from None
        if settings.compile and any(words in str(error) for words in NO_COMPILER):
            raise UserError(
                "--compile: torch finds no compiler, or not Python's headers; expected g++ or "
                "clang++ (or that in CXX), and Python.h (on Debian: apt install g++ python3-dev)"
            ) from None
        raise


def _score(run: TrainingRun, derainer: Derainer, pairs: Pairs, progress: Progress) -> None:
    """Score the whole images of --val-list; the best so far is kept as a checkpoint."""
    assert not isinstance(pairs, Mixture), "--val-list is one list"
    run.finish_save()  # processes that load images are not to be forked beside its thread
    protocol, workers = run.settings.val_protocol, run.settings.num_workers
    psnr, ssim = validate(derainer, run.ranks, pairs, workers, protocol, progress.say)
    best = run.best or {}
    if best.get("list") != run.val_data or best.get("protocol") != protocol:
        best = {}  # that score was of other images, or by another protocol
    is_best = not best or math.isnan(best["psnr"]) or psnr > best["psnr"]
    if is_best:
        best = {"psnr": psnr, "step": run.step, "list": run.val_data, "protocol": protocol}
    run.best = best | {"scored": run.step}
    if run.ranks.is_first:
        run.events[VAL_EVENTS].scalars({"score/psnr": psnr, "score/ssim": ssim}, run.step)
        line = f"step {run.step}: PSNR {psnr:.4f}  SSIM {ssim:.4f} over the whole images of "
        line += run.settings.val_list
        if protocol != "released":
            line += f" in the {protocol} protocol"
        if is_best:
            line += ", the best so far"
        progress.say(line)
    if is_best:
        run.start_save(BEST)


def _write_pictures(run: TrainingRun, derainer: Derainer, preview: Batch) -> None:
    """Write each crop of the preview as rainy, derained and clean image, mask and mask label."""
    (_, _, labels), _ = preview.to_device(torch.device("cpu"), run.settings.mask_threshold)
    for index, file in enumerate(preview.files):
        output = derainer.derain(preview.rainy[index], file)
        images = [preview.rainy[index], output.uint8_image, preview.clean[index]]
        images += [heat_map(output.mask), heat_map(labels[index].numpy())]
        sheet = contact_sheet(images, CAPTIONS, columns=len(images))
        run.events[VAL_EVENTS].image(f"pictures/{index + 1}", sheet, run.step)


def list_charts() -> dict[str, list[str]]:
    """The charts of a run as TensorBoard shows them: train and val in one chart."""
    losses = list(loss_curves(dict.fromkeys(loss_names(), 0.0)))
    return {"loss": losses, "score": ["score/psnr", "score/ssim"]} | CHARTS
