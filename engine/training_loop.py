"""The loop of training: launch a step, collect what it measured, then do what is due after it."""

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from cal_ssim import SSIM
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
from engine.scoring import score
from engine.training_run import TrainingRun
from engine.training_step import (
    NotFinite,
    StepMetrics,
    learning_rate,
    loss_curves,
    loss_names,
    process_batch,
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
# How Inductor on a CPU, and Triton on a GPU, report that there is no compiler, or none that runs.
NO_COMPILER = (
    "No working C++ compiler", "Failed to find C compiler", "Python.h", "[Errno 2]", "[Errno 8]",
    "[Errno 13]",
)  # fmt: skip


def run_steps(run: TrainingRun, pairs: Pairs, val_pairs: Pairs, first: int, last: int) -> int:
    """Train from step `first` to `last`, or until a signal. Returns the signal's number, or 0.

    On a GPU a step is launched before the one before it is collected, so that the GPU need not wait
    for its next batch. If something is due after a step, all steps are collected first: the network
    is then as that step left it. So it is for a validation batch, launched right after its step.
    """
    settings, ranks = run.settings, run.ranks
    steps, every = range(first, last + 1), settings.val_batch_every
    val_steps = steps[-first % every :: every]  # the multiples of `every`
    names, silent = [*loss_names(), "lr"], not ranks.first
    dead_mask, signal_number = DeadMaskDetector(settings), 0
    pending: deque[PendingStep] = deque()
    with (
        # The outermost, as it takes a while until the loading processes have ended.
        Interrupt() as interrupt,
        _open_batches(run, pairs, TRAINING, steps) as batches,
        _open_batches(run, val_pairs, VALIDATION, val_steps) as val_batches,
        Progress(
            "step", first, last + 1, names, settings.log_every, silent, forecast=ranks.first
        ) as progress,
    ):
        net, ssim, derainer = run.network(), SSIM().to(run.device), run.derainer()
        crops = range(min(PREVIEW_CROPS, len(val_pairs)))
        preview = read_batch(val_pairs, settings, VALIDATION, crops, 0)
        net.train()
        last_score = run.best["scored"] if run.best else -1
        if find_due(settings, run.step, last).score and last_score < run.step:
            # A signal ended the last start after this step, but before its score.
            _score(run, derainer, val_pairs, progress)
        collected = time.monotonic()
        for step, batch in zip(steps, batches, strict=True):
            pending.append(launch_step(run, net, ssim, step, batch, interrupt))
            if step in val_steps:
                pending[-1].validation = launch_validation(run, ssim, step, next(val_batches))
            due = find_due(settings, step, last)
            # A signal that comes with a collected step has those after it collected, too.
            while len(pending) > (0 if any(due) or signal_number else run.max_pending_steps):
                values, signal_number = collect_step(run, pending.popleft(), interrupt, collected)
                collected = time.monotonic()
                warning = dead_mask.update(run.step, values["mask/mean"], values["mask/std"])
                if warning and ranks.first:
                    progress.say(warning, sys.stderr)
                progress.update(run.step, values)
            if due.pictures and ranks.first:
                _write_pictures(run, derainer, preview)
            if due.score and (step == last or not signal_number):
                _score(run, derainer, val_pairs, progress)
            if due.numbered:
                run.launch_save(f"step_{step}")
            # 'latest' comes last: all that is due up to its step is then there.
            if due.latest or signal_number:
                run.launch_save(LATEST)
            if signal_number:
                break
        run.finish_save()
        ranks.all_gather(None)  # no rank leaves, and so ends the others, before the save is done
    return signal_number


@contextmanager
def _open_batches(
    run: TrainingRun, pairs: Pairs, branch: int, steps: range
) -> Iterator[Iterator[DeviceBatch]]:
    """This rank's share of the batches of the steps; processes load them while this is open."""
    ranks, threshold = run.ranks, run.settings.mask_threshold
    place = ranks.rank, ranks.world_size
    with (
        closing(load_batches(pairs, run.settings, branch, steps, *place)) as batches,
        closing(upload_batches(batches, run.device, threshold)) as device_batches,
    ):
        yield device_batches


class Due(NamedTuple):
    """What is to be done after a step, with the network as that step left it."""

    pictures: bool
    score: bool  # of the whole images of --val-list
    numbered: bool  # a checkpoint of its own
    latest: bool


def find_due(settings: Settings, step: int, last: int) -> Due:
    at_score = step == last or (step > 0 and step % settings.val_every == 0)
    return Due(
        pictures=step % settings.picture_every == 0,
        score=bool(settings.val_list) and at_score,
        numbered=step > 0 and step % settings.checkpoint_every == 0,
        latest=step == last or step % settings.latest_every == 0,
    )


@dataclass
class PendingStep:
    """A step that was launched; on a GPU it may still be computed."""

    step: int
    files: list[str]  # rainy files of its batch
    metrics: StepMetrics
    validation: StepMetrics | None = None  # of the validation batch after it


def launch_step(
    run: TrainingRun,
    net: nn.Module,
    ssim: SSIM,
    step: int,
    batch: DeviceBatch,
    interrupt: Interrupt,
) -> PendingStep:
    """Train on a batch; on a GPU this returns before the step is computed.

    With the metrics, all ranks learn of a signal that one of them has received.
    """
    with translate_step_errors(run, step, batch.files):
        values = train_one_step(net, run.optimiser, ssim, run.settings, step, batch.tensors)
        run.update_ema(step)
        values["signal"] = torch.full_like(values["loss"], interrupt.signal)
        return PendingStep(step, batch.files, StepMetrics(values, run.ranks))


def launch_validation(run: TrainingRun, ssim: SSIM, step: int, batch: DeviceBatch) -> StepMetrics:
    """Compute the losses of a validation batch, as launch_step, by the network as it stands."""
    with torch.no_grad(), translate_step_errors(run, step, batch.files):
        values = process_batch(run.net, ssim, run.settings, batch.tensors)
        return StepMetrics(values, run.ranks)


def collect_step(
    run: TrainingRun, pending: PendingStep, interrupt: Interrupt, start: float
) -> tuple[dict[str, float], int]:
    """Read what a step measured, and write its events; it is then done.

    Args:
        start: when the step before it was collected (time.monotonic), from which the speed counts.

    Returns:
        The losses, "lr", "mask/mean" and "mask/std" (the mask's standard deviation), and the number
        of a signal that any rank has received, or 0.
    """
    settings, step = run.settings, pending.step
    with translate_step_errors(run, step, pending.files):
        values = pending.metrics.read()
        val_values = pending.validation.read() if pending.validation else {}
    mean, variance = values["mask_mean"], values["mask_square"] - values["mask_mean"] ** 2
    values |= {"lr": learning_rate(settings, step)}
    values |= {"mask/mean": mean, "mask/std": math.sqrt(max(variance, 0.0))}
    run.step = step
    if run.ranks.first:
        curves = loss_curves(values) | {
            "mask/mean": mean,
            "mask/std": values["mask/std"],
            "optim/lr": values["lr"],
            "optim/grad_norm": values["grad_norm"],
            "speed/images_per_second": settings.batch_size / (time.monotonic() - start),
            "speed/memory_MiB": peak_memory(run.device),
        }
        run.events[EVENTS].scalars(curves, step)
        if val_values:
            run.events[VAL_EVENTS].scalars(loss_curves(val_values), step)
    # All ranks must stop at one step, of which each had said what it had received.
    stops = values["signal"] if run.ranks.is_distributed else interrupt.signal
    return values, (interrupt.signal or signal.SIGTERM) if stops else 0


class DeadMaskDetector:
    """Detects an attention map that no longer learns, which no loss would show.

    It counts anew each time the program starts.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.steps = 0  # in a row whose map was dead

    def update(self, step: int, mean: float, deviation: float) -> str:
        """Count a step by mean and deviation of its map; a warning, once, at DEAD_MASK_STEPS."""
        dead = is_dead_mask(mean, deviation)
        if dead or self.steps < DEAD_MASK_STEPS:
            self.steps = self.steps + 1 if dead else 0
        if not dead or self.steps != DEAD_MASK_STEPS:
            return ""
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
    psnr, ssim = score(derainer, run.ranks, pairs, workers, protocol, progress.say)
    kind = {"list": run.val_data, "protocol": protocol}
    former = run.best["psnr"] if run.best and kind.items() <= run.best.items() else math.nan
    is_best = math.isnan(former) or psnr > former
    if run.ranks.first:
        run.events[VAL_EVENTS].scalars({"score/psnr": psnr, "score/ssim": ssim}, run.step)
        line = f"step {run.step}: PSNR {psnr:.4f}  SSIM {ssim:.4f} over the whole images of "
        line += run.settings.val_list + f" in the {protocol} protocol" * (protocol != "released")
        progress.say(line + ", the best so far" * is_best)
    if is_best or not run.best:
        run.best = {"psnr": psnr, "step": run.step, "scored": run.step, **kind}
        run.launch_save(BEST)
    else:
        run.best["scored"] = run.step


def _write_pictures(run: TrainingRun, derainer: Derainer, preview: Batch) -> None:
    """Write each crop of the preview as rainy, derained and clean image, mask and mask label."""
    (_, _, labels), _ = preview.to_device(torch.device("cpu"), run.settings.mask_threshold)
    for index, file in enumerate(preview.files):
        derained = derainer.derain(preview.rainy[index], file)
        images = [preview.rainy[index], derained.uint8_image, preview.clean[index]]
        images += [heat_map(derained.mask), heat_map(labels[index].numpy())]
        sheet = contact_sheet(images, CAPTIONS, columns=len(images))
        run.events[VAL_EVENTS].image(f"pictures/{index + 1}", sheet, run.step)


def list_charts() -> dict[str, list[str]]:
    """The curves of a run in groups, as TensorBoard shows them: train and val in one chart."""
    return {
        "loss": list(loss_curves(dict.fromkeys(loss_names(), 0.0))),
        "score": ["score/psnr", "score/ssim"],
        "mask": ["mask/mean", "mask/std"],
        "optim": ["optim/lr", "optim/grad_norm"],
        "speed": ["speed/images_per_second", "speed/memory_MiB"],
    }
