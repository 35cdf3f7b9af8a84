"""One training step: the losses of the recipe (paper section 4), their gradient, the optimiser."""

import math
import operator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cal_ssim import SSIM
from model import CONSTANT_MASK
from settings import Settings

PATIENCE = 20  # steps in a row with a constant mask after which it is told


def learning_rate(settings: Settings, step: int) -> float:
    """Learning rate of a step: a function of the step alone."""
    return settings.lr * (settings.lr_decay if step >= settings.lr_decay_step else 1)


@dataclass
class LossInputs:
    """What the network made of a batch, and what it should have: what a term of the loss looks at.

    Attributes:
        mask: (N,1,H,W) float32 in 0..1; label: (N,H,W) of 0 and 1.
        output, clean: (N,3,H,W) float32; clean in 0..1.
        ssim: the similarity of two batches, as a module (its window is on the device).
        off_mask: weight of what changes where no rain is labelled; 0 in the recipe.
    """

    mask: Tensor
    label: Tensor
    output: Tensor
    clean: Tensor
    ssim: SSIM
    off_mask: float = 0.0


def _l1(found: LossInputs) -> tuple[Tensor, Tensor]:
    error = F.l1_loss(found.output, found.clean)
    return error, error


def _ssim(found: LossInputs) -> tuple[Tensor, Tensor]:
    similarity = found.ssim(found.output, found.clean)
    return similarity, 1 - similarity


def _mask(found: LossInputs) -> tuple[Tensor, Tensor]:
    error = F.mse_loss(found.mask[:, 0], found.label)
    return error, error


def _off_mask(found: LossInputs) -> tuple[Tensor, Tensor]:
    # Without a weight it is only shown: nothing is kept for a gradient.
    with torch.set_grad_enabled(torch.is_grad_enabled() and found.off_mask > 0):
        error = ((found.output - found.clean).abs() * (1 - found.label[:, None])).mean()
    return error, found.off_mask * error if found.off_mask else torch.zeros_like(error)


# The terms of the recipe's loss (paper section 4), means throughout, and one that is ours and of no
# weight unless it is given one. Each gives the value that is shown under its name, and the value
# that is added to the loss. A term that is put in here is trained on, shown as progress, written to
# the events and validated.
TERMS = {"l1": _l1, "ssim": _ssim, "mask": _mask, "off_mask": _off_mask}


def loss_names() -> list[str]:
    """What is shown of a batch: the loss, then its terms."""
    return ["loss", *TERMS]


def loss_curves(values: dict[str, float]) -> dict[str, float]:
    """The losses among values by the names of their curves: `loss/total`, `loss/l1`, ..."""
    return {f"loss/{'total' if name == 'loss' else name}": values[name] for name in loss_names()}


def compute_losses(
    net: nn.Module,
    ssim: SSIM,
    rainy: Tensor,
    clean: Tensor,
    label: Tensor,
    bf16: bool = False,
    off_mask: float = 0.0,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The recipe's losses of a batch.

    Args:
        rainy, clean: (N,3,H,W) float in 0..1.
        label: mask label, (N,H,W) of 0 and 1.
        bf16: run the network under autocast. Losses are float32 all the same.
        off_mask: see LossInputs.

    Returns:
        A scalar tensor for each of loss_names(), then the network's mask and clean image.
    """
    with torch.autocast(rainy.device.type, torch.bfloat16, enabled=bf16):
        mask, output = net(rainy)
    found = LossInputs(mask.float(), label, output.float(), clean, ssim, off_mask)
    terms = {name: term(found) for name, term in TERMS.items()}
    loss = reduce(operator.add, (added for _, added in terms.values()))
    losses = {"loss": loss} | {name: shown for name, (shown, _) in terms.items()}
    return losses, found.mask, found.output


class StepMetrics:
    """What a training step came to. On a GPU, reading it waits for the step, but for none after it.

    Args:
        names: of the values.
        parts: of each part of the batch, (parts, names) float64.
        norm: the norm of the gradient, a scalar.

    Attributes:
        finite: whether loss and gradient are, as a scalar tensor on the device.
    """

    def __init__(self, names: list[str], parts: Tensor, norm: Tensor) -> None:
        self._names = names
        self.finite = parts[:, names.index("loss")].isfinite().all() & norm.isfinite()
        # On its way to the host at once: asked for later, it would queue behind the next step.
        self._parts, self._norm = (each.to("cpu", non_blocking=True) for each in (parts, norm))
        self._arrived = torch.cuda.Event() if norm.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def read(self) -> dict[str, float]:
        """The values as means over the parts, and "grad_norm", the norm of the gradient.

        Raises:
            NotFinite: the loss or its gradient is not.
        """
        if self._arrived:
            self._arrived.synchronize()
        rows = self._parts.tolist()
        values = dict.fromkeys(self._names, 0.0)
        for row in rows:
            for name, value in zip(self._names, row, strict=True):
                values[name] += value / len(rows)
        if not math.isfinite(values["loss"]):
            raise NotFinite(f"the loss is {values['loss']}")
        values["grad_norm"] = self._norm.item()
        if not math.isfinite(values["grad_norm"]):
            raise NotFinite(f"the norm of the gradient is {values['grad_norm']}")
        return values


def train_one_step(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    ssim: SSIM,
    tensors: tuple[Tensor, Tensor, Tensor],
    lr: float,
    parts: int = 1,
    bf16: bool = False,
    off_mask: float = 0.0,
) -> StepMetrics:
    """One step of the optimiser on (rainy, clean, label), in that many equal parts, one by one.

    Where the loss or its gradient is not finite, network and moments stay as they are. A fused
    optimiser (on a GPU) is not waited for: it takes no step any more from then on, and reading the
    values says why. With any other, this function raises.

    Returns:
        The losses, "mask_mean" and "mask_square" (means of the mask and of its square) and
        "grad_norm".

    Raises:
        NotFinite: the loss or its gradient is not; neither network nor optimiser has changed.
    """
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    rows = []
    for index, part in enumerate(zip(*(tensor.chunk(parts) for tensor in tensors), strict=True)):
        # Ranks average their gradients once, in the last part.
        wait = nullcontext() if index == parts - 1 else getattr(net, "no_sync", nullcontext)()
        with wait:
            losses, mask, _ = compute_losses(net, ssim, *part, bf16, off_mask)
            (losses["loss"] / parts).backward()
        exact = mask.detach().double()  # in single precision a small deviation would be rounding
        losses |= {"mask_mean": exact.mean(), "mask_square": exact.square().mean()}
        rows.append(torch.stack([value.detach().double() for value in losses.values()]))
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    measured = StepMetrics(list(losses), torch.stack(rows), norm)
    if optimiser.defaults.get("fused"):
        bad = (~measured.finite).float()
        # As torch's own gradient scaler tells it. Once bad, always bad: the next step may be under
        # way before this one has been read.
        optimiser.found_inf = torch.maximum(getattr(optimiser, "found_inf", bad), bad)
    else:
        measured.read()
    optimiser.step()
    return measured


class DeadMask:
    """Watches for an attention map that no longer learns, which no loss would show.

    It begins anew each time the program starts.
    """

    def __init__(self) -> None:
        self.steps = 0  # in a row whose mask was constant

    def found(self, deviation: float) -> bool:
        """Take note of a step's deviation of the mask; True once, when the map is dead."""
        if deviation < CONSTANT_MASK:
            self.steps += 1
        elif self.steps < PATIENCE:
            self.steps = 0
        return deviation < CONSTANT_MASK and self.steps == PATIENCE


class NotFinite(ArithmeticError):
    """A loss or a gradient that is infinite or no number."""
