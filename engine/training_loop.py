"""The loop of training: a batch, a step, and what is due after it."""

import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import nn

import dataset
from cal_ssim import SSIM
from dataset import Batch
from engine.derainer import Derainer
from engine.device import is_out_of_memory, peak_memory
from engine.scoring import score
from engine.training_run import TrainingRun
from engine.training_step import (
    PATIENCE,
    DeadMask,
    NotFinite,
    StepMetrics,
    compute_losses,
    learning_rate,
    loss_curves,
    loss_names,
    train_one_step,
)
from media.pair_list import PairList, fingerprint
from report.visualize import contact_sheet, heat_map
from settings import Settings, UserError
from system.interrupt import Interrupt
from system.progress import Progress

LATEST, BEST = "latest", "best"
EVENTS, VAL_EVENTS = "train_derain", "val_derain"
FOLLOWED = 4  # validation crops whose pictures show how a run gets on
CAPTIONS = ["rainy", "output", "clean", "mask", "label"]  # of a picture's parts
# Of Inductor on a CPU, and of Triton on a GPU.
NO_COMPILER = ("No working C++ compiler", "Failed to find C compiler", "Python.h")
WARM = 5  # steps until all is compiled and in place, and steps whose rate is then told


def charts() -> dict[str, list[str]]:
    """The curves of a run in groups, as TensorBoard is to show them: train and val in one chart."""
    return {
        "loss": list(loss_curves(dict.fromkeys(loss_names(), 0.0))),
        "score": ["score/psnr", "score/ssim"],
        "mask": ["mask/mean", "mask/std"],
        "optim": ["optim/lr", "optim/grad_norm"],
        "speed": ["speed/images_per_second", "speed/memory_MiB"],
    }


def run_steps(run: TrainingRun, pairs: PairList, val_pairs: PairList, first: int, last: int) -> int:
    """Steps first to last, or to where a signal stops them; returns its number, 0 without one."""
    settings, ranks = run.settings, run.ranks
    steps = range(first, last + 1)
    every = settings.val_batch_every
    val_steps = range(first + -first % every, last + 1, every)
    place = (ranks.rank, ranks.world_size)
    workers = settings.num_workers
    shown = [*loss_names(), "lr"]
    val_data = fingerprint(val_pairs) if settings.val_list else ""
    scored = run.best["scored"] if run.best else -1
    if settings.val_list and run.best and run.best["list"] != val_data:
        run.best = None
    with (
        Interrupt() as interrupt,  # to the end of the processes that load, which takes its time
        closing(
            dataset.load_batches(pairs, settings, dataset.TRAINING, steps, workers, *place)
        ) as stream,
        closing(
            dataset.load_batches(
                val_pairs, settings, dataset.VALIDATION, val_steps, min(workers, 1), *place
            )
        ) as val_stream,
        Progress(
            "step", first, last + 1, shown, settings.log_every, silent=not ranks.first
        ) as progress,
    ):
        net, ssim = run.network(), SSIM().to(run.device)
        derainer, dead_mask, start = run.derainer(), DeadMask(), math.nan
        followed = dataset.load_first_crops(val_pairs, settings, dataset.VALIDATION, FOLLOWED)
        net.train()
        if _score_is_due(settings, run.step) and scored < run.step:  # a signal had come before it
            _score(run, derainer, val_pairs, val_data, progress)
        batches = zip(steps, stream, strict=True)
        for step, values, number in _trained(run, net, ssim, batches, last, interrupt):
            if dead_mask.found(values["mask/std"]) and ranks.first:
                progress.say(_told_of_dead_mask(step, settings), sys.stderr)
            due = _due(settings, step, last)
            if due.validation:
                _validate(run, ssim, next(val_stream))
            if due.picture and ranks.first:
                _write_pictures(run, derainer, followed)
            if due.score and (step == last or not number):
                _score(run, derainer, val_pairs, val_data, progress)
            # 'latest' comes last: all that is due up to its step is then there.
            if due.numbered:
                run.save(f"step_{step}")
            if number or due.latest:
                run.save(LATEST)
            progress.update(step, values)
            if step == first + WARM:
                start = time.monotonic()
            elif step == first + 2 * WARM < last and ranks.first:
                progress.say(_hours_left(time.monotonic() - start, WARM, last - step))
            if number:
                break
        ranks.all_gather(None)  # nobody leaves, and has the others ended, before the save is done
    return number


def _hours_left(seconds: float, steps: int, left: int) -> str:
    """What a user wants to know before going home: how long the steps that are left will take."""
    rate = steps / seconds
    return f"{rate:.3g} steps a second: about {timedelta(seconds=round(left / rate))} left"


@dataclass
class _Started:
    """A step under way: what it was made from and what came of it, and when it began."""

    step: int
    batch: Batch
    lr: float
    began: float
    measured: StepMetrics


def _trained(
    run: TrainingRun,
    net: nn.Module,
    ssim: SSIM,
    batches: Iterable[tuple[int, Batch]],
    last: int,
    interrupt: Interrupt,
) -> Iterator[tuple[int, dict[str, float], int]]:
    """Train on the batches: each step's number and what _finish returns of it, in order.

    A GPU is given a step before the last one is read, so that it need not wait for its next batch;
    not so where something is due after a step, or a signal ends the run with it: the network must
    then be as that step left it.
    """
    before: _Started | None = None
    ended = 0.0
    for step, batch in batches:
        started = _start(run, net, ssim, step, batch)
        number = 0
        if before:
            values, number = _finish(run, before, ended, interrupt)
            ended = time.monotonic()
            yield before.step, values, 0
        before = started
        if number or not run.runs_ahead or any(_due(run.settings, step, last)):
            values, number = _finish(run, started, ended, interrupt)
            ended, before = time.monotonic(), None
            yield step, values, number


class _Due(NamedTuple):
    """What follows a step: each needs the network as that step left it."""

    validation: bool
    score: bool
    numbered: bool  # a checkpoint of its own
    latest: bool
    picture: bool


def _due(settings: Settings, step: int, last: int) -> _Due:
    scored = step == last or _score_is_due(settings, step)
    return _Due(
        validation=step % settings.val_batch_every == 0,
        score=bool(settings.val_list) and scored,
        numbered=step > 0 and step % settings.checkpoint_every == 0,
        latest=step == last or step % settings.latest_every == 0,
        picture=step % settings.picture_every == 0,
    )


def _start(run: TrainingRun, net: nn.Module, ssim: SSIM, step: int, batch: Batch) -> _Started:
    """Train on a batch; on a GPU the step is then still under way."""
    settings, began = run.settings, time.monotonic()
    lr = learning_rate(settings, step)
    with _explained(run, step, batch):
        tensors = batch.tensors(run.device, settings.mask_threshold)
        measured = train_one_step(
            net,
            run.optimiser,
            ssim,
            tensors,
            lr,
            parts=settings.accumulate_steps,
            bf16=run.bf16,
            off_mask=settings.off_mask_weight,
        )
    return _Started(step, batch, lr, began, measured)


def _finish(
    run: TrainingRun, started: _Started, ended: float, interrupt: Interrupt
) -> tuple[dict[str, float], int]:
    """Read what a step came to, advance the clock, write the events.

    Args:
        ended: when the step before it had been read; 0 where there was none. The speed is that of
            all since then, with the wait for the batch and whatever was due in between.

    Returns:
        The losses, "lr" and "mask/std" (the deviation of the mask), and the number of a signal that
        any rank has received.
    """
    settings, ranks, step = run.settings, run.ranks, started.step
    with _explained(run, step, started.batch):
        losses = started.measured.read()
    norm = losses.pop("grad_norm")
    *sums, number = ranks.all_reduce_sum([*losses.values(), interrupt.signal])
    losses = {name: value / ranks.world_size for name, value in zip(losses, sums, strict=True)}
    mean, square = losses.pop("mask_mean"), losses.pop("mask_square")
    deviation = math.sqrt(max(square - mean**2, 0.0))
    run.step = step
    values = {**losses, "lr": started.lr, "mask/std": deviation}
    if ranks.first:
        speed = settings.batch_size / (time.monotonic() - (ended or started.began))
        curves = loss_curves(losses) | {"mask/mean": mean, "mask/std": deviation}
        curves |= {"optim/lr": started.lr, "optim/grad_norm": norm}
        curves |= {"speed/images_per_second": speed, "speed/memory_MiB": peak_memory(run.device)}
        run.events(EVENTS).scalars(curves, run.step)
    # Ranks may have received different signals, or one of them several.
    return values, 0 if not number else interrupt.signal or signal.SIGTERM


@contextmanager
def _explained(run: TrainingRun, step: int, batch: Batch) -> Iterator[None]:
    """Within it, what can go wrong in a step is told as a user can mend it. Raises UserError."""
    settings = run.settings
    try:
        with run.ranks.translate_dist_errors():
            yield
    except NotFinite as error:
        files = ", ".join(dict.fromkeys(batch.files))
        raise UserError(f"step {step}: {error}; the batch is of {files}") from None
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(
                f"step {step}: not enough memory on {run.device} for {len(batch.files)} crops "
                f"of {settings.patch_size}x{settings.patch_size} pixels in "
                f"{settings.accumulate_steps} part(s); expected more --accumulate-steps, or "
                "--checkpoint-activations"
            ) from None
        if any(words in str(error) for words in NO_COMPILER):
            raise UserError(
                "--compile: torch finds no compiler, or not Python's headers; expected g++ or "
                "clang++, and Python.h (on Debian and Ubuntu: apt install g++ python3-dev)"
            ) from None
        raise


def _told_of_dead_mask(step: int, settings: Settings) -> str:
    return (
        f"main.py: warning: step {step}: the attention map has had one value everywhere for "
        f"{PATIENCE} steps, and will hardly learn any more; start again with a lower --lr (now "
        f"{settings.lr:g}) or another --seed (now {settings.seed})"
    )


def _validate(run: TrainingRun, ssim: SSIM, batch: Batch) -> None:
    """Losses of a validation batch, in the parts of a training batch, without a gradient."""
    settings, ranks = run.settings, run.ranks
    parts = settings.accumulate_steps
    sums = dict.fromkeys(loss_names(), 0.0)
    with torch.no_grad(), _explained(run, run.step, batch):
        tensors = batch.tensors(run.device, settings.mask_threshold)
        for part in zip(*(tensor.chunk(parts) for tensor in tensors), strict=True):
            losses, *_ = compute_losses(
                run.net, ssim, *part, bf16=run.bf16, off_mask=settings.off_mask_weight
            )
            sums = {name: total + losses[name].item() for name, total in sums.items()}
    totals = ranks.all_reduce_sum(list(sums.values()))
    if ranks.first:
        means = [value / parts / ranks.world_size for value in totals]
        losses = dict(zip(sums, means, strict=True))
        run.events(VAL_EVENTS).scalars(loss_curves(losses), run.step)


def _score_is_due(settings: Settings, step: int) -> bool:
    return bool(settings.val_list) and step > 0 and step % settings.val_every == 0


def _score(
    run: TrainingRun, derainer: Derainer, pairs: PairList, data: str, progress: Progress
) -> None:
    """Score the whole images of --val-list; the best so far is kept as a checkpoint."""
    psnr, ssim = score(derainer, run.ranks, pairs, run.settings.num_workers, progress.say)
    best = run.best["psnr"] if run.best else math.nan
    better = math.isnan(best) or psnr > best
    if run.ranks.first:
        run.events(VAL_EVENTS).scalars({"score/psnr": psnr, "score/ssim": ssim}, run.step)
        kept = ", the best so far" if better else ""
        progress.say(
            f"step {run.step}: PSNR {psnr:.4f}  SSIM {ssim:.4f} over the whole images of "
            f"{run.settings.val_list}{kept}"
        )
    if better:
        run.best = {"psnr": psnr, "step": run.step, "scored": run.step, "list": data}
        run.save(BEST)
    run.best["scored"] = run.step


def _write_pictures(run: TrainingRun, derainer: Derainer, followed: Batch) -> None:
    """What the network makes of each crop that is followed, beside what it should make of it."""
    _, _, labels = followed.tensors(torch.device("cpu"), run.settings.mask_threshold)
    for index, file in enumerate(followed.files):
        found = derainer.derained(followed.rainy[index], file)
        parts = [followed.rainy[index], found.uint8_image, followed.clean[index]]
        parts += [heat_map(found.mask), heat_map(labels[index].numpy())]
        sheet = contact_sheet(parts, CAPTIONS, columns=len(parts))
        run.events(VAL_EVENTS).image(f"pictures/{index + 1}", sheet, run.step)
