"""One training step: the losses of the recipe (paper section 4), their gradient, the optimiser."""

import math
import operator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cal_ssim import SSIM
from dataset import BatchTensors
from engine.ranks import Ranks
from settings import Settings, UserError, as_tuple


def train_one_step(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    ssim: SSIM,
    settings: Settings,
    step: int,
    tensors: BatchTensors,
) -> dict[str, Tensor]:
    """One step of the optimiser on a batch, see compute_losses.

    If the loss or the gradient is not finite, network and moments stay as they are. A fused
    optimiser (on a GPU) skips all later steps, too.

    Returns:
        What measure_batch returns, and "optim/grad_norm", the norm of the gradient before it is
        clipped.
    """
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(settings, step)
    optimiser.zero_grad(set_to_none=True)
    values = measure_batch(net, ssim, settings, tensors, backward=True)
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    grad_norm = nn.utils.get_total_norm(gradients)
    if settings.grad_clip:
        nn.utils.clip_grads_with_norm_(net.parameters(), settings.grad_clip, grad_norm)
    finite = values["loss"].isfinite() & grad_norm.isfinite()
    if optimiser.defaults.get("fused"):
        # Fused Adam skips its step where found_inf is 1, as torch's gradient scaler sets it. Once
        # set it stays set: the next step may be launched before this one is read.
        found_inf = (~finite).float()
        earlier = getattr(optimiser, "found_inf", found_inf)
        optimiser.found_inf = torch.maximum(earlier, found_inf)  # type: ignore[attr-defined]
        optimiser.step()
    elif finite:
        optimiser.step()
    return values | {"optim/grad_norm": grad_norm.double()}


def learning_rate(settings: Settings, step: int) -> float:
    """Learning rate of a step: a function of the step alone."""
    warmup = settings.warmup_steps
    if settings.schedule == "cosine":
        progress = min(1.0, max(0, step - warmup) / max(1, settings.num_steps - warmup))
        factor = 0.5 + 0.5 * math.cos(math.pi * progress)
    else:
        decay_steps = as_tuple(settings.lr_decay_step)
        factor = settings.lr_decay ** sum(step >= decay_step for decay_step in decay_steps)
    return settings.lr * factor * min(1.0, (step + 1) / max(1, warmup))


def ema_decay(settings: Settings, step: int) -> float:
    """Share of the averaged weights that stays in a step: less at first, to leave the start."""
    return min(settings.ema, (1 + step) / (10 + step))


def measure_batch(
    net: nn.Module, ssim: SSIM, settings: Settings, tensors: BatchTensors, backward: bool
) -> dict[str, Tensor]:
    """The losses of a batch, in --accumulate-steps micro-batches, and figures of its mask.

    Args:
        backward: add the gradient of the loss to that of the weights.

    Returns:
        For each of loss_names() the mean over the micro-batches, and "mask/mean" and "mask/square",
        the means of the mask and of its square: scalars, float64.
    """
    names, rows = [*loss_names(), "mask/mean", "mask/square"], []
    count = settings.accumulate_steps
    no_sync = net.no_sync if isinstance(net, DistributedDataParallel) else nullcontext
    micro_batches = zip(*(tensor.chunk(count) for tensor in tensors), strict=True)
    for number, micro_batch in enumerate(micro_batches, 1):
        # Ranks average their gradients once, with the last micro-batch.
        with torch.set_grad_enabled(backward), no_sync() if number < count else nullcontext():
            losses, mask, _ = compute_losses(net, ssim, settings, micro_batch)
            if backward:
                (losses["loss"] / count).backward()
        mask = mask.detach().double()  # in single precision a small deviation would be rounding
        row = [*losses.values(), mask.mean(), mask.square().mean()]
        rows.append(torch.stack([value.detach().double() for value in row]))
    return dict(zip(names, torch.stack(rows).mean(0), strict=True))


def compute_losses(
    net: nn.Module, ssim: SSIM, settings: Settings, tensors: BatchTensors
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The recipe's losses of a batch.

    With --precision bf16 the network runs under autocast; losses are float32 all the same.

    Args:
        tensors: rainy, clean (N,3,H,W) float in 0..1, and the mask label, (N,H,W) of 0 and 1.

    Returns:
        A scalar tensor for each of loss_names(), then the network's mask and clean image.
    """
    rainy, clean, label = tensors
    with torch.autocast(rainy.device.type, torch.bfloat16, settings.precision == "bf16"):
        mask, output = net(rainy)
    inputs = LossInputs(mask.float(), label, output.float(), clean, ssim)
    losses, addends = {}, []
    for name, term in TERMS.items():
        weight = getattr(settings, f"{name}_weight", 1.0)
        # Without a weight a term is only reported, and nothing is kept for a gradient.
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
            losses[name], addend = term(inputs)
        if weight:
            addends.append(weight * addend)
    losses = {"loss": reduce(operator.add, addends), **losses}
    return losses, inputs.mask, inputs.output


def loss_names() -> list[str]:
    """What is reported of a batch: the loss, then its terms."""
    return ["loss", *TERMS]


def loss_curves(values: dict[str, float]) -> dict[str, float]:
    """The losses among values by the names of their curves: `loss/total`, `loss/l1`, ..."""
    return {f"loss/{'total' if name == 'loss' else name}": values[name] for name in loss_names()}


@dataclass
class LossInputs:
    """What a term of the loss compares: the network's outputs for a batch, and their targets.

    Attributes:
        mask: (N,1,H,W) float32 in 0..1; label: (N,H,W) of 0 and 1.
        output, clean: (N,3,H,W) float32; clean in 0..1.
        ssim: the similarity of two batches, as a module (its window is on the device).
    """

    mask: Tensor
    label: Tensor
    output: Tensor
    clean: Tensor
    ssim: SSIM


def _l1(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    error = F.l1_loss(inputs.output, inputs.clean)
    return error, error


def _ssim(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    similarity = inputs.ssim(inputs.output, inputs.clean)
    return similarity, 1 - similarity


def _mask(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    error = F.mse_loss(inputs.mask[:, 0], inputs.label)
    return error, error


def _off_mask(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    error = ((inputs.output - inputs.clean).abs() * (1 - inputs.label[:, None])).mean()
    return error, error


# The three terms of the recipe's loss (paper section 4), and `off_mask`, which is ours and has no
# weight by default. All are means. Each returns the value to report under its name and the value
# that is added to the loss, times the setting NAME_weight. A new term is trained on, shown as
# progress, written to the events and validated; checkpoints hold the names of the terms and the
# weights, which a resume must not change.
TERMS = {"l1": _l1, "ssim": _ssim, "mask": _mask, "off_mask": _off_mask}


class StepMetrics:
    """What was measured on a batch, on its way to the host, with its mean over the ranks.

    On a GPU, `read` waits for the work on this batch, but for none after it.
    """

    def __init__(self, values: dict[str, Tensor], ranks: Ranks) -> None:
        self._names = list(values)
        own = torch.stack(list(values.values()))
        mean = ranks.all_reduce_mean(own)
        # Copied to the host at once: a later copy would queue behind the next step.
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in (own, mean)]
        self._copied = torch.cuda.current_stream().record_event() if own.is_cuda else None

    def read(self) -> dict[str, float]:
        """The values by name, means over the ranks.

        Raises:
            NotFinite: of a training step: the loss of this rank's batch, or the norm of the
                gradient, is not finite.
            UserError: the loss of another rank's batch is not finite.
        """
        if self._copied:
            self._copied.synchronize()
        own, means = (dict(zip(self._names, copy.tolist(), strict=True)) for copy in self._copies)
        if "optim/grad_norm" not in means:  # of a validation batch
            return means
        if math.isfinite(own["loss"]) and not math.isfinite(means["loss"]):
            raise UserError("stopped, the loss of another rank is not finite")
        for name, words in (("loss", "the loss"), ("optim/grad_norm", "the norm of the gradient")):
            if not math.isfinite(means[name]):
                raise NotFinite(f"{words} is {means[name]}")
        return means


class NotFinite(ArithmeticError):
    """A loss or a gradient that is infinite or not a number."""
