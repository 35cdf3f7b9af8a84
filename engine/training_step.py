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

BatchTensors = tuple[Tensor, Tensor, Tensor]  # rainy, clean and label, as compute_losses takes them
DEAD_MASK_STEPS = 20  # steps in a row with a constant mask, after which a warning is printed


def learning_rate(settings: Settings, step: int) -> float:
    """Learning rate of a step: a function of the step alone."""
    return settings.lr * (settings.lr_decay if step >= settings.lr_decay_step else 1)


@dataclass
class LossInputs:
    """What a term of the loss compares: the network's outputs for a batch, and their targets.

    Attributes:
        mask: (N,1,H,W) float32 in 0..1; label: (N,H,W) of 0 and 1.
        output, clean: (N,3,H,W) float32; clean in 0..1.
        ssim: the similarity of two batches, as a module (its window is on the device).
        off_mask: weight of the changes outside the labelled rain; 0 in the recipe.
    """

    mask: Tensor
    label: Tensor
    output: Tensor
    clean: Tensor
    ssim: SSIM
    off_mask: float = 0.0


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
    # Without a weight it is only reported, and nothing is kept for a gradient.
    with torch.set_grad_enabled(torch.is_grad_enabled() and inputs.off_mask > 0):
        error = ((inputs.output - inputs.clean).abs() * (1 - inputs.label[:, None])).mean()
    return error, inputs.off_mask * error if inputs.off_mask else torch.zeros_like(error)


# The three terms of the recipe's loss (paper section 4), and `off_mask`, which is ours and has no
# weight by default. All are means. Each returns the value to report under its name and the value
# that is added to the loss, times the weight. A new term is trained on, shown as progress, written
# to the events and validated; checkpoints hold names and weights, which a resume must not change.
TERMS = {"l1": (_l1, 1.0), "ssim": (_ssim, 1.0), "mask": (_mask, 1.0), "off_mask": (_off_mask, 1.0)}


def loss_names() -> list[str]:
    """What is reported of a batch: the loss, then its terms."""
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
    inputs = LossInputs(mask.float(), label, output.float(), clean, ssim, off_mask)
    losses, addends = {}, []
    for name, (term, weight) in TERMS.items():
        losses[name], addend = term(inputs)
        addends.append(weight * addend)
    losses = {"loss": reduce(operator.add, addends), **losses}
    return losses, inputs.mask, inputs.output


class StepMetrics:
    """What a training step measured. On a GPU, `read` waits for this step, but for none after it.

    Args:
        names: of the values.
        rows: the values of each micro-batch, (micro-batches, names) float64.
        grad_norm: the norm of the gradient, a scalar.

    Attributes:
        finite: whether loss and gradient are, as a scalar tensor on the device.
    """

    def __init__(self, names: list[str], rows: Tensor, grad_norm: Tensor) -> None:
        self._names = names
        self.finite = rows[:, names.index("loss")].isfinite().all() & grad_norm.isfinite()
        # Copied to the host at once: a later copy would queue behind the next step.
        self._rows, self._grad_norm = (
            tensor.to("cpu", non_blocking=True) for tensor in (rows, grad_norm)
        )
        self._copied = torch.cuda.Event() if grad_norm.is_cuda else None
        if self._copied:
            self._copied.record()

    def read(self) -> dict[str, float]:
        """The values as means over the micro-batches, and "grad_norm", the norm of the gradient.

        Raises:
            NotFinite: the loss or its gradient is not finite.
        """
        if self._copied:
            self._copied.synchronize()
        rows = self._rows.tolist()
        columns = zip(*rows, strict=True)
        means = [sum(value / len(rows) for value in column) for column in columns]
        values = dict(zip(self._names, means, strict=True))
        values["grad_norm"] = self._grad_norm.item()
        for name, words in (("loss", "the loss"), ("grad_norm", "the norm of the gradient")):
            if not math.isfinite(values[name]):
                raise NotFinite(f"{words} is {values[name]}")
        return values


def split_batch(tensors: BatchTensors, micro_batches: int) -> list[BatchTensors]:
    """A batch in that many equal micro-batches."""
    rainy, clean, label = (tensor.chunk(micro_batches) for tensor in tensors)
    return list(zip(rainy, clean, label, strict=True))


def train_one_step(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    ssim: SSIM,
    tensors: BatchTensors,
    lr: float,
    micro_batches: int = 1,
    bf16: bool = False,
    off_mask: float = 0.0,
) -> StepMetrics:
    """One step of the optimiser on a batch: (rainy, clean, label), see compute_losses.

    The gradient is accumulated over equal micro-batches. If the loss or the gradient is not finite,
    network and moments stay as they are. A fused optimiser (on a GPU) then skips this step and all
    later ones, and reading the metrics raises; with any other, this function raises.

    Returns:
        The losses, "mask_mean" and "mask_square" (means of the mask and of its square) and
        "grad_norm".

    Raises:
        NotFinite: the loss or its gradient is not finite.
    """
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    rows = []
    for index, micro_batch in enumerate(split_batch(tensors, micro_batches)):
        # Ranks average their gradients once, in the last micro-batch.
        is_last = index == micro_batches - 1
        with nullcontext() if is_last else getattr(net, "no_sync", nullcontext)():
            losses, mask, _ = compute_losses(net, ssim, *micro_batch, bf16, off_mask)
            (losses["loss"] / micro_batches).backward()
        mask = mask.detach().double()  # in single precision a small deviation would be rounding
        losses |= {"mask_mean": mask.mean(), "mask_square": mask.square().mean()}
        rows.append(torch.stack([value.detach().double() for value in losses.values()]))
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    grad_norm = nn.utils.get_total_norm(gradients)
    metrics = StepMetrics(list(losses), torch.stack(rows), grad_norm)
    if optimiser.defaults.get("fused"):
        # As torch's gradient scaler does it. Once set it stays set: the next step may be launched
        # before this one is read.
        skip = (~metrics.finite).float()
        skip = torch.maximum(getattr(optimiser, "found_inf", skip), skip)
        optimiser.found_inf = skip  # type: ignore[attr-defined]
    else:
        metrics.read()
    optimiser.step()
    return metrics


class DeadMaskDetector:
    """Detects an attention map that no longer learns, which no loss would show.

    It counts anew each time the program starts.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.steps = 0  # in a row whose mask was constant

    def update(self, step: int, deviation: float) -> str:
        """Count a step's standard deviation of the mask; a warning, once, when the map is dead."""
        if deviation < CONSTANT_MASK:
            self.steps += 1
        elif self.steps < DEAD_MASK_STEPS:
            self.steps = 0
        if self.steps != DEAD_MASK_STEPS or deviation >= CONSTANT_MASK:
            return ""
        return (
            f"main.py: warning: step {step}: the attention map has had one value everywhere for "
            f"{DEAD_MASK_STEPS} steps, and will hardly learn any more; start again with a lower "
            f"--lr (now {self.settings.lr:g}) or another --seed (now {self.settings.seed})"
        )


class NotFinite(ArithmeticError):
    """A loss or a gradient that is infinite or not a number."""
