"""Training: train(session) runs the published recipe (paper section 4) from where it stands."""

import math
import signal
from contextlib import closing
from pathlib import Path
from types import FrameType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dataset
from cal_ssim import SSIM
from dataset import Batch
from files import require_writable
from lists import read_list
from metrics import to_uint8
from progress import Progress
from session import Session
from settings import Settings, UserError
from visualize import heat_map, strip

LATEST = "latest"
SHOWN = ["loss", "l1", "ssim", "mask", "lr"]


class Interrupt:
    """Within it, the first SIGINT or SIGTERM only sets `signal`; a second one acts at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


def learning_rate(settings: Settings, step: int) -> float:
    """Learning rate of a step: a function of the step alone."""
    return settings.lr * (settings.lr_decay if step >= settings.lr_decay_step else 1)


def losses_of(
    net: nn.Module, ssim: SSIM, rainy: Tensor, clean: Tensor, label: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The recipe's losses of a batch: L1 + (1 - SSIM) + MSE of the mask, means throughout.

    Args:
        rainy, clean: (N,3,H,W) float in 0..1.
        label: mask label, (N,H,W) of 0 and 1.

    Returns:
        {"loss", "l1", "ssim", "mask"} as scalar tensors, then the network's mask and clean image.
    """
    mask, output = net(rainy)
    l1 = F.l1_loss(output, clean)
    similarity = ssim(output, clean)
    mask_error = F.mse_loss(mask[:, 0], label)
    loss = l1 + (1 - similarity) + mask_error
    return {"loss": loss, "l1": l1, "ssim": similarity, "mask": mask_error}, mask, output


def train_one_step(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    ssim: SSIM,
    tensors: tuple[Tensor, Tensor, Tensor],
    lr: float,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """One step of the optimiser on (rainy, clean, label). Returns as losses_of, losses as numbers.

    Raises:
        NotFinite: the loss or its gradient is not; neither network nor optimiser has changed.
    """
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    losses, mask, output = losses_of(net, ssim, *tensors)
    values = {name: value.item() for name, value in losses.items()}
    if not math.isfinite(values["loss"]):
        raise NotFinite(f"the loss is {values['loss']}")
    losses["loss"].backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients).item()
    if not math.isfinite(norm):
        raise NotFinite(f"the norm of the gradient is {norm}")
    optimiser.step()
    return values, mask.detach(), output.detach()


class NotFinite(ArithmeticError):
    """A loss or a gradient that is infinite or no number."""


def train(session: Session) -> int:
    """Run the steps that are left, saving checkpoints and events. Returns the exit status.

    The run starts from checkpoint `-m NAME` and is saved to 'latest'. SIGINT or SIGTERM saves
    'latest' after the step in hand; the status is then 128 + the signal's number.

    Raises:
        UserError: bad input; a loss that is not finite; a checkpoint that cannot be saved.
    """
    settings = session.settings
    pairs = read_list(settings.train_list, need_clean=True)
    val_pairs = read_list(settings.val_list or settings.train_list, need_clean=True)
    _load_start(session)
    first, last = session.clock + 1, settings.num_steps - 1
    if first > last:
        start = session.path(settings.model)
        print(f"nothing to do: {start} holds step {session.clock}, --num-steps ends at {last}")
        return 0
    require_writable(Path(settings.model_dir))
    steps = range(first, last + 1)
    every = settings.val_batch_every
    val_steps = range(first + -first % every, last + 1, every)
    ssim = SSIM().to(session.device)
    session.net.train()
    print(
        f"training on {session.device}: {len(pairs)} pairs, steps {first} to {last}",
        flush=True,
    )
    workers = settings.num_workers
    stream = dataset.batches(pairs, settings, dataset.TRAINING, steps, workers)
    val_stream = dataset.batches(
        val_pairs, settings, dataset.VALIDATION, val_steps, min(workers, 1)
    )
    with (
        closing(stream),
        closing(val_stream),
        Interrupt() as interrupt,
        Progress("step", first, last + 1, SHOWN, settings.log_every) as progress,
    ):
        for step, batch in zip(steps, stream, strict=True):
            values = _train_batch(session, ssim, step, batch)
            if step % every == 0:
                _validate(session, ssim, next(val_stream))
            stop = interrupt.signal or step == last
            if stop or step % settings.latest_every == 0:
                session.save(LATEST)
            if step > 0 and step % settings.checkpoint_every == 0:
                session.save(f"step_{step}")
            progress.update(step, values)
            if stop:
                break
    by = f" ({signal.Signals(interrupt.signal).name})" if interrupt.signal else ""
    print(f"{session.path(LATEST)} holds step {session.clock} of 0 to {last}{by}")
    return 128 + interrupt.signal if interrupt.signal else 0


def _train_batch(session: Session, ssim: SSIM, step: int, batch: Batch) -> dict[str, float]:
    """Train on a batch, advance the clock, write the events; the values shown as progress."""
    lr = learning_rate(session.settings, step)
    tensors = batch.tensors(session.device)
    try:
        losses, mask, output = train_one_step(session.net, session.optimiser, ssim, tensors, lr)
    except NotFinite as error:
        files = ", ".join(dict.fromkeys(batch.files))
        raise UserError(f"step {step}: {error}; the batch is of {files}") from None
    session.clock = step
    values = {**losses, "lr": lr}
    session.events("train_derain").scalars(values, session.clock)
    _write_picture_if_due(session, "train_derain", batch, mask, output)
    return values


def _load_start(session: Session) -> None:
    """Load the checkpoint to go on from; a new run where `-m latest` is not there yet."""
    name = session.settings.model
    if name == LATEST and not session.path(LATEST).exists():
        return
    session.load(name, resume=True)
    if name != LATEST and session.path(LATEST).exists():
        raise UserError(
            f"{session.path(LATEST)} is there and would be overwritten by a run from {name}; "
            "move it away, or give another --model-dir"
        )


def _validate(session: Session, ssim: SSIM, batch: Batch) -> None:
    with torch.no_grad():
        losses, mask, output = losses_of(session.net, ssim, *batch.tensors(session.device))
    values = {name: value.item() for name, value in losses.items()}
    session.events("val_derain").scalars(values, session.clock)
    _write_picture_if_due(session, "val_derain", batch, mask, output)


def _write_picture_if_due(
    session: Session, events: str, batch: Batch, mask: Tensor, output: Tensor
) -> None:
    """Rainy, output, clean, mask and mask label of a batch's first crop, side by side."""
    if session.clock % session.settings.picture_every != 0:
        return
    _, _, label = batch.tensors(torch.device("cpu"))
    shown = [
        batch.rainy[0],
        to_uint8(output[0].permute(1, 2, 0).float().cpu().numpy()),
        batch.clean[0],
        heat_map(mask[0, 0].float().cpu().numpy()),
        heat_map(label[0].numpy()),
    ]
    session.events(events).image("rainy_output_clean_mask_label", strip(shown), session.clock)
