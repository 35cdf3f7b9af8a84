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
from torch import Tensor, nn

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
    Measured,
    NotFinite,
    learning_rate,
    loss_names,
    losses_of,
    train_one_step,
)
from media.pair_list import PairList, fingerprint
from media.pixels import to_uint8
from report.visualize import heat_map, strip
from settings import Settings, UserError
from system.interrupt import Interrupt
from system.progress import Progress

LATEST, BEST = "latest", "best"
EVENTS, VAL_EVENTS = "train_derain", "val_derain"
# Of Inductor on a CPU, and of Triton on a GPU.
NO_COMPILER = ("No working C++ compiler", "Failed to find C compiler", "Python.h")
WARM = 5  # steps until all is compiled and in place, and steps whose rate is then told


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
            dataset.batches(pairs, settings, dataset.TRAINING, steps, workers, *place)
        ) as stream,
        closing(
            dataset.batches(
                val_pairs, settings, dataset.VALIDATION, val_steps, min(workers, 1), *place
            )
        ) as val_stream,
        Progress(
            "step", first, last + 1, shown, settings.log_every, silent=not ranks.first
        ) as progress,
    ):
        net, ssim = run.network(), SSIM().to(run.device)
        derainer, dead_mask, start = run.derainer(), DeadMask(), math.nan
        net.train()
        if _score_is_due(settings, run.clock) and scored < run.clock:  # a signal had come before it
            _score(run, derainer, val_pairs, val_data, progress)
        batches = zip(steps, stream, strict=True)
        for step, values, number in _trained(run, net, ssim, batches, last, interrupt):
            if dead_mask.found(values["mask/std"]) and ranks.first:
                progress.say(_told_of_dead_mask(step, settings), sys.stderr)
            due = _due(settings, step, last)
            if due.validation:
                _validate(run, ssim, next(val_stream))
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
        ranks.exchange(None)  # nobody leaves, and has the others ended, before the save is done
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
    measured: Measured
    mask: Tensor
    output: Tensor


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
        results = train_one_step(
            net, run.optimiser, ssim, tensors, lr, settings.accumulate_steps, run.bf16
        )
    return _Started(step, batch, lr, began, *results)


def _finish(
    run: TrainingRun, started: _Started, ended: float, interrupt: Interrupt
) -> tuple[dict[str, float], int]:
    """Read what a step came to, advance the clock, write the events.

    Args:
        ended: when the step before it had been read; 0 where there was none. The speed is that of
            all since then, with the wait for the batch and whatever was due in between.

    Returns:
        The losses, "lr", "mask/mean" and "mask/std" (mean and deviation of the mask), and the
        number of a signal that any rank has received.
    """
    settings, ranks, step = run.settings, run.ranks, started.step
    with _explained(run, step, started.batch):
        losses = started.measured.read()
    norm = losses.pop("grad_norm")
    *sums, number = ranks.total([*losses.values(), interrupt.signal])
    losses = {name: value / ranks.world_size for name, value in zip(losses, sums, strict=True)}
    mean, square = losses.pop("mask_mean"), losses.pop("mask_square")
    deviation = math.sqrt(max(square - mean**2, 0.0))
    run.clock = step
    values = {**losses, "lr": started.lr, "mask/mean": mean, "mask/std": deviation}
    if ranks.first:
        speed = settings.batch_size / (time.monotonic() - (ended or started.began))
        watched = {"grad_norm": norm, "images_per_second": speed}
        watched |= {"memory_MiB": peak_memory(run.device)}
        run.events(EVENTS).scalars(values | watched, run.clock)
        _write_picture_if_due(run, EVENTS, started.batch, started.mask, started.output)
    # Ranks may have received different signals, or one of them several.
    return values, 0 if not number else interrupt.signal or signal.SIGTERM


@contextmanager
def _explained(run: TrainingRun, step: int, batch: Batch) -> Iterator[None]:
    """Within it, what can go wrong in a step is told as a user can mend it. Raises UserError."""
    settings = run.settings
    try:
        with run.ranks.watched():
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
    shown = None
    with torch.no_grad(), _explained(run, run.clock, batch):
        tensors = batch.tensors(run.device, settings.mask_threshold)
        for part in zip(*(tensor.chunk(parts) for tensor in tensors), strict=True):
            losses, mask, output = losses_of(run.net, ssim, *part, run.bf16)
            sums = {name: total + losses[name].item() for name, total in sums.items()}
            shown = shown or (mask, output)
    totals = ranks.total(list(sums.values()))
    if ranks.first:
        means = [value / parts / ranks.world_size for value in totals]
        run.events(VAL_EVENTS).scalars(dict(zip(sums, means, strict=True)), run.clock)
        _write_picture_if_due(run, VAL_EVENTS, batch, *shown)


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
        run.events(VAL_EVENTS).scalars({"score/psnr": psnr, "score/ssim": ssim}, run.clock)
        kept = ", the best so far" if better else ""
        progress.say(
            f"step {run.clock}: PSNR {psnr:.4f}  SSIM {ssim:.4f} over the whole images of "
            f"{run.settings.val_list}{kept}"
        )
    if better:
        run.best = {"psnr": psnr, "step": run.clock, "scored": run.clock, "list": data}
        run.save(BEST)
    run.best["scored"] = run.clock


def _write_picture_if_due(
    run: TrainingRun, events: str, batch: Batch, mask: Tensor, output: Tensor
) -> None:
    """Rainy, output, clean, mask and mask label of a batch's first crop, side by side."""
    if not _due(run.settings, run.clock, run.clock).picture:
        return
    _, _, label = batch.tensors(torch.device("cpu"), run.settings.mask_threshold)
    shown = [
        batch.rainy[0],
        to_uint8(output[0].permute(1, 2, 0).float().cpu().numpy()),
        batch.clean[0],
        heat_map(mask[0, 0].float().cpu().numpy()),
        heat_map(label[0].numpy()),
    ]
    run.events(events).image("rainy_output_clean_mask_label", strip(shown), run.clock)
