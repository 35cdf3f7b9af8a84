"""A convolution whose weight gradient is fast in channels_last on a CPU.

oneDNN computes that gradient at a fifth of the rate of a matrix product, and its other layout would
cost the forward pass as much. Yet in channels_last it is a matrix product: for each tap of the
window, the rows of the gradient's images, as W x C_out matrices, times those of the input, shifted
by the tap.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_ROW_PIXELS = 128  # pixels of an image row from which CpuConvolution is faster


def convolve(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """A convolution that keeps height and width, without bias.

    Args:
        x: (N,C_in,H,W), channels_last.
        weight: (C_out,C_in,K,K), K odd.

    Returns:
        (N,C_out,H,W).
    """
    if (
        torch.is_grad_enabled()
        and weight.requires_grad
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and x.shape[-1] >= MIN_ROW_PIXELS  # checked last: in an export the size may be unknown
    ):
        return CpuConvolution.apply(x, weight, dilation)
    return F.conv2d(x, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)


class CpuConvolution(torch.autograd.Function):
    """F.conv2d, with a weight gradient made of matrix products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return F.conv2d(x, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        side, step = weight.shape[-1], ctx.dilation
        padding = step * (side // 2)
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = None
        if ctx.needs_input_grad[0]:
            outputs = [True, False, False]
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], [padding] * 2, [step] * 2, False, [0, 0], 1, outputs
            )
        grad_weight = torch.zeros_like(weight)
        for image, image_grad in zip(x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1), strict=True):
            for row in range(side):
                for column in range(side):
                    a, b = _overlap_rows(image, image_grad, row * step - padding)
                    a, b = a.transpose(0, 1), b.transpose(0, 1)
                    a, b = _overlap_rows(a, b, column * step - padding)
                    products = torch.bmm(b.permute(1, 2, 0), a.transpose(0, 1))
                    grad_weight[:, :, row, column] += products.sum(0)
        return grad_x, grad_weight, None


def _overlap_rows(a: Tensor, b: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """The rows a[i + shift] and b[i] of every i for which both exist."""
    count = max(len(a) - abs(shift), 0)
    start_a, start_b = max(shift, 0), max(-shift, 0)
    return a[start_a : start_a + count], b[start_b : start_b + count]
