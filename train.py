"""Training: train(session) runs the recipe (paper section 4) from where it stands."""

import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

import dataset
from cal_ssim import SSIM
from dataset import Batch
from evaluate import score
from files import lock, remove_scraps, require_writable
from lists import Pair, read_list
from metrics import to_uint8
from progress import Progress
from session import Session, is_out_of_memory, new_run
from settings import Settings, UserError
from training_step import (
    PATIENCE,
    DeadMask,
    NotFinite,
    learning_rate,
    losses_of,
    train_one_step,
)
from visualize import heat_map, strip

LATEST, BEST = "latest", "best"
EVENTS, VAL_EVENTS = "train_derain", "val_derain"
SHOWN = ["loss", "l1", "ssim", "mask", "lr"]


class Interrupt:
    """Within it, the first SIGINT or SIGTERM only sets `signal`; a second SIGINT acts at once.

    A second SIGTERM is none of a person's: torchrun passes on what its ranks received already.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number
        signal.signal(signal.SIGINT, self._former[signal.SIGINT])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


def train(session: Session) -> int:
    """Run the steps that are left, saving checkpoints and events. Returns the exit status.

    The run starts from checkpoint `-m NAME` and is saved to 'latest'. SIGINT or SIGTERM saves
    'latest' after the step in hand; the status is then 128 + the signal's number.

    Raises:
        UserError: bad input; a loss that is not finite; a checkpoint that cannot be saved.
    """
    settings = session.settings
    _check_batch(settings, session.ranks.world_size)
    pairs = read_list(settings.train_list, need_clean=True)
    val_pairs = read_list(settings.val_list or settings.train_list, need_clean=True)
    session.data = _fingerprint(pairs, Path(settings.train_list).parent)
    with _alone(session):
        _load_start(session)
        first, last = session.clock + 1, settings.num_steps - 1
        if first > last:
            start = session.path(settings.model)
            _say(session, f"nothing to do: {start} holds step {session.clock}, "
                 f"--num-steps ends at {last}")  # fmt: skip
            return 0
        _say(session, f"training on {_where(session)}: {len(pairs)} pairs, steps {first} to {last}")
        number = _run_steps(session, pairs, val_pairs, first, last)
    by = f" ({signal.Signals(number).name})" if number else ""
    _say(session, f"{session.path(LATEST)} holds step {session.clock} of 0 to {last}{by}")
    return 128 + number if number else 0


def _check_batch(settings: Settings, world_size: int) -> None:
    parts = world_size * settings.accumulate_steps
    if settings.batch_size % parts:
        raise UserError(
            f"--batch-size: {settings.batch_size} is no multiple of {parts} "
            f"(ranks: {world_size}, --accumulate-steps: {settings.accumulate_steps})"
        )


def _fingerprint(pairs: list[Pair], folder: Path) -> str:
    """What a list names, wherever its folder is and whatever its comments say."""
    names = (os.path.relpath(file, folder) for pair in pairs for file in (pair.rainy, pair.clean))
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def _alone(session: Session) -> Iterator[None]:
    """Be the only run that trains in the model folder, for as long as this process lives."""
    if not session.ranks.first:
        yield
        return
    folder = Path(session.settings.model_dir)
    require_writable(folder)
    with lock(folder / ".training"):
        for name in (LATEST, BEST, "step_*"):
            remove_scraps(folder, name)
        yield


def _run_steps(
    session: Session, pairs: list[Pair], val_pairs: list[Pair], first: int, last: int
) -> int:
    """Steps first to last, or to where a signal stops them; returns its number, 0 without one."""
    settings, ranks = session.settings, session.ranks
    steps = range(first, last + 1)
    every = settings.val_batch_every
    val_steps = range(first + -first % every, last + 1, every)
    place = (ranks.rank, ranks.world_size)
    workers = settings.num_workers
    stream = dataset.batches(pairs, settings, dataset.TRAINING, steps, workers, *place)
    val_stream = dataset.batches(
        val_pairs, settings, dataset.VALIDATION, val_steps, min(workers, 1), *place
    )
    val_data = _fingerprint(val_pairs, Path(settings.val_list).parent)
    scored = session.best["scored"] if session.best else -1
    if settings.val_list and session.best and session.best["list"] != val_data:
        session.best = None
    with (
        closing(stream),
        closing(val_stream),
        Interrupt() as interrupt,
        Progress(
            "step", first, last + 1, SHOWN, settings.log_every, silent=not ranks.first
        ) as progress,
    ):
        net, ssim = session.network(), SSIM().to(session.device)
        dead_mask = DeadMask()
        net.train()
        if _score_is_due(session) and scored < session.clock:
            _score(session, val_pairs, val_data)  # a signal had come before it
        for step, batch in zip(steps, stream, strict=True):
            values, number = _train_batch(session, net, ssim, step, batch, interrupt, dead_mask)
            if step % every == 0:
                _validate(session, ssim, next(val_stream))
            if (settings.val_list and step == last) or (_score_is_due(session) and not number):
                _score(session, val_pairs, val_data)
            # 'latest' comes last: all that is due up to its step is then there.
            if step > 0 and step % settings.checkpoint_every == 0:
                session.save(f"step_{step}")
            if number or step == last or step % settings.latest_every == 0:
                session.save(LATEST)
            progress.update(step, values)
            if number:
                break
        ranks.exchange(None)  # nobody leaves, and has the others ended, before the save is done
    return number


def _train_batch(
    session: Session,
    net: nn.Module,
    ssim: SSIM,
    step: int,
    batch: Batch,
    interrupt: Interrupt,
    dead_mask: DeadMask,
) -> tuple[dict[str, float], int]:
    """Train on a batch, advance the clock, write the events.

    Returns the values shown as progress, and the number of a signal that any rank has received.
    """
    settings, ranks = session.settings, session.ranks
    start = time.monotonic()
    lr = learning_rate(settings, step)
    tensors = batch.tensors(session.device, settings.mask_threshold)
    try:
        with ranks.watched():
            losses, mask, output = train_one_step(
                net, session.optimiser, ssim, tensors, lr, settings.accumulate_steps, session.bf16
            )
    except NotFinite as error:
        files = ", ".join(dict.fromkeys(batch.files))
        raise UserError(f"step {step}: {error}; the batch is of {files}") from None
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise UserError(
                f"step {step}: not enough memory on {session.device} for {len(batch.files)} crops "
                f"of {settings.patch_size}x{settings.patch_size} pixels in "
                f"{settings.accumulate_steps} part(s); expected more --accumulate-steps, or "
                "--checkpoint-activations"
            ) from None
        if "No working C++ compiler" in str(error):
            raise UserError(
                "--compile: torch finds no C++ compiler; expected g++ or clang++"
            ) from None
        raise
    norm = losses.pop("grad_norm")
    *sums, number = ranks.total([*losses.values(), interrupt.signal])
    losses = {name: value / ranks.world_size for name, value in zip(losses, sums, strict=True)}
    mean, square = losses.pop("mask_mean"), losses.pop("mask_square")
    deviation = math.sqrt(max(square - mean**2, 0.0))
    session.clock = step
    values = {**losses, "lr": lr}
    if ranks.first:
        speed = settings.batch_size / (time.monotonic() - start)
        watched = {"grad_norm": norm, "images_per_second": speed, "memory_MiB": session.memory()}
        watched |= {"mask/mean": mean, "mask/std": deviation}
        if dead_mask.found(deviation):
            _warn_of_dead_mask(step, settings)
        session.events(EVENTS).scalars(values | watched, session.clock)
        _write_picture_if_due(session, EVENTS, batch, mask, output)
    # Ranks may have received different signals, or one of them several.
    return values, 0 if not number else interrupt.signal or signal.SIGTERM


def _warn_of_dead_mask(step: int, settings: Settings) -> None:
    print(
        f"main.py: warning: step {step}: the attention map has had one value everywhere for "
        f"{PATIENCE} steps, and will hardly learn any more; start again with a lower --lr (now "
        f"{settings.lr:g}) or another --seed (now {settings.seed})",
        file=sys.stderr,
        flush=True,
    )


def _load_start(session: Session) -> None:
    """Load the checkpoint to go on from; a new run where `-m latest` is not there yet."""
    settings, name = session.settings, session.settings.model
    latest = session.path(LATEST)
    # The first rank may save while another still looks.
    there = session.ranks.exchange(latest.exists())[0]
    if settings.init_from and name != LATEST:
        raise UserError(f"--init-from and -m {name} both say where to start; expected one of them")
    if name != LATEST:
        session.load(name, resume=True)
        if there:
            raise UserError(
                f"{latest} is there and would be overwritten by a run from {name}; "
                "move it away, or give another --model-dir"
            )
        session.run = new_run()  # its own events, beside those of the run it comes from
    elif there:
        session.load(LATEST, resume=True)
        if settings.init_from:
            _say(session, f"{latest} is there: going on from it, not from {settings.init_from}")
        session.forget_later_events(EVENTS, VAL_EVENTS)
    elif settings.init_from:
        session.load_weights(Path(settings.init_from))
    if not there:
        session.save(LATEST)  # from here on a restart is a resume
    if session.ranks.first and (session.clock < 0 or not there):
        session.events(EVENTS).hparams(_record(settings))


def _record(settings: Settings) -> dict[str, float | str | bool]:
    """The settings of a run's hparams record: its recipe and its list."""
    recipe = {f.name: getattr(settings, f.name) for f in fields(settings) if f.metadata["recipe"]}
    return recipe | {"train_list": settings.train_list, "init_from": settings.init_from}


def _say(session: Session, line: str) -> None:
    if session.ranks.first:
        print(line, flush=True)


def _where(session: Session) -> str:
    ranks = session.ranks
    return (
        f"{ranks.world_size} ranks of {session.device.type}"
        if ranks.several
        else str(session.device)
    )


def _validate(session: Session, ssim: SSIM, batch: Batch) -> None:
    """Losses of a validation batch, in the parts of a training batch, without a gradient."""
    settings, ranks = session.settings, session.ranks
    parts = settings.accumulate_steps
    sums = dict.fromkeys(("loss", "l1", "ssim", "mask"), 0.0)
    shown = None
    with torch.no_grad():
        tensors = batch.tensors(session.device, settings.mask_threshold)
        for part in zip(*(tensor.chunk(parts) for tensor in tensors), strict=True):
            losses, mask, output = losses_of(session.net, ssim, *part, session.bf16)
            sums = {name: total + losses[name].item() for name, total in sums.items()}
            shown = shown or (mask, output)
    totals = ranks.total(list(sums.values()))
    if ranks.first:
        means = [value / parts / ranks.world_size for value in totals]
        session.events(VAL_EVENTS).scalars(dict(zip(sums, means, strict=True)), session.clock)
        _write_picture_if_due(session, VAL_EVENTS, batch, *shown)


def _score_is_due(session: Session) -> bool:
    settings = session.settings
    return bool(settings.val_list) and session.clock > 0 and session.clock % settings.val_every == 0


def _score(session: Session, pairs: list[Pair], data: str) -> None:
    """Score the whole images of --val-list; the best so far is kept as a checkpoint."""
    psnr, ssim = score(session, pairs)
    if session.ranks.first:
        session.events(VAL_EVENTS).scalars({"score/psnr": psnr, "score/ssim": ssim}, session.clock)
    best = session.best["psnr"] if session.best else math.nan
    if math.isnan(best) or psnr > best:
        session.best = {"psnr": psnr, "step": session.clock, "scored": session.clock, "list": data}
        session.save(BEST)
    session.best["scored"] = session.clock


def _write_picture_if_due(
    session: Session, events: str, batch: Batch, mask: Tensor, output: Tensor
) -> None:
    """Rainy, output, clean, mask and mask label of a batch's first crop, side by side."""
    if session.clock % session.settings.picture_every != 0:
        return
    _, _, label = batch.tensors(torch.device("cpu"), session.settings.mask_threshold)
    shown = [
        batch.rainy[0],
        to_uint8(output[0].permute(1, 2, 0).float().cpu().numpy()),
        batch.clean[0],
        heat_map(mask[0, 0].float().cpu().numpy()),
        heat_map(label[0].numpy()),
    ]
    session.events(events).image("rainy_output_clean_mask_label", strip(shown), session.clock)
