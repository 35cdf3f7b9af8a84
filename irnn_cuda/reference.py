"""The IRNN in plain PyTorch: the definition that every kernel is tested against.

Four scans over an image, each a recurrence with the identity-initialised ReLU of the paper
(section 4), one weight and one bias a channel and direction. See README.md in this folder.
"""

import torch
from torch import Tensor

# Direction -> (dimension that the scan runs along, whether it runs from the last element).
# The order is that of the rows of weight and bias and of the blocks of output channels.
DIRECTIONS = {"up": (2, True), "right": (3, False), "down": (2, False), "left": (3, True)}
# Types that are too coarse to carry a value along a line: computed in float32, rounded at the end.
COARSE = (torch.float16, torch.bfloat16)


def check_shapes(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raise ValueError unless x is (N,C,H,W) with H,W >= 1 and weight, bias are (4,C) beside it."""
    if not x.is_floating_point():
        raise ValueError(f"irnn: x must be of a floating dtype, got {x.dtype}")
    if x.dim() != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"irnn: x must be (N,C,H,W) with H,W >= 1, got {tuple(x.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tuple(tensor.shape) != (4, x.shape[1]):
            raise ValueError(
                f"irnn: {name} must be (4,C) = (4,{x.shape[1]}), got {tuple(tensor.shape)}"
            )
        wide = x.dtype in COARSE and weight.dtype == torch.float32
        if tensor.dtype != (torch.float32 if wide else x.dtype) or tensor.device != x.device:
            raise ValueError(
                f"irnn: {name} is {tensor.dtype} on {tensor.device}, "
                f"x is {x.dtype} on {x.device}; they must agree"
            )


def irnn_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Four-directional IRNN, differentiable by autograd.

    Args:
        x: (N,C,H,W), any floating dtype, H,W >= 1.
        weight: (4,C), rows up, right, down, left; of x's dtype, or float32 where x is of 16 bits.
        bias: (4,C), rows in the same order, of weight's dtype.

    Returns:
        (N,4C,H,W): the scans concatenated on channels, in the same order. Along a line
        y[0] = relu(x[0]) and y[t] = relu(weight * y[t-1] + bias + x[t]).

    Raises:
        ValueError: the shapes, dtypes or devices do not fit.
    """
    check_shapes(x, weight, bias)
    if x.dtype in COARSE:
        return irnn_reference(x.float(), weight.float(), bias.float()).to(x.dtype)
    scans = []
    for row, (dim, backwards) in enumerate(DIRECTIONS.values()):
        w, b = weight[row].unsqueeze(-1), bias[row].unsqueeze(-1)
        lines = x.unbind(dim)
        if backwards:
            lines = lines[::-1]
        outputs = [torch.relu(lines[0])]
        for line in lines[1:]:
            outputs.append(torch.relu(w * outputs[-1] + b + line))
        scans.append(torch.stack(outputs[::-1] if backwards else outputs, dim))
    return torch.cat(scans, 1)


def irnn_backward_reference(grad: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the IRNN from its output alone: what a kernel's backward computes.

    Args:
        grad: (N,4C,H,W), the loss's gradient with respect to y.
        y: (N,4C,H,W), the output of irnn.
        weight: (4,C).

    Returns:
        Gradients of x (N,C,H,W), weight (4,C) and bias (4,C).
    """
    if y.dtype in COARSE:
        grad_x, *sums = irnn_backward_reference(grad.float(), y.float(), weight.float())
        return grad_x.to(y.dtype), *(total.to(weight.dtype) for total in sums)
    channels = weight.shape[1]
    grad_x = torch.zeros_like(y[:, :channels])
    grad_weight, grad_bias = (weight.new_zeros(weight.shape) for _ in range(2))
    for row, (dim, backwards) in enumerate(DIRECTIONS.values()):
        block = slice(row * channels, (row + 1) * channels)
        step = 1 if backwards else -1  # against the scan
        lines = [tensor.unbind(dim)[::step] for tensor in (grad[:, block], y[:, block], grad_x)]
        w = weight[row].unsqueeze(-1)
        delta = torch.zeros_like(lines[0][0])
        for t, (grad_line, value, grad_x_line) in enumerate(zip(*lines, strict=True)):
            delta = grad_line + w * delta
            # The condition of torch.relu's own gradient, which lets a NaN through.
            delta = torch.where(value <= 0, torch.zeros_like(delta), delta)
            grad_x_line.add_(delta)
            if t + 1 < len(lines[1]):
                grad_weight[row] += (delta * lines[1][t + 1]).sum((0, 2))
                grad_bias[row] += delta.sum((0, 2))
    return grad_x, grad_weight, grad_bias
