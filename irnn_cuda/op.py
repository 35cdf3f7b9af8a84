"""The IRNN as one PyTorch operator, with the implementation chosen by device.

On an NVIDIA GPU the four types of cuda.ARITHMETIC run the kernels of cuda.py and nothing else; on a
CPU float32 and float64 run the Numba kernels of cpu.py, and 16-bit floats do as float32, rounded
when stored. All else runs the reference.
Both directions are custom operators, so torch.compile, torch.export and opcheck see them whole.
"""

import functools
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library

from . import cuda
from .reference import COARSE, check_shapes, irnn_backward_reference, irnn_reference


@functools.cache
def cpu_kernels() -> types.ModuleType | None:
    """The module cpu.py, or None (with one warning) where Numba cannot be loaded."""
    try:
        from . import cpu
    except Exception as error:  # a broken LLVM library raises OSError, a missing one ImportError
        warnings.warn(
            f"Numba cannot be loaded ({error}): the IRNN runs in plain PyTorch, several times "
            "slower. `pip install numba` mends it.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return cpu


def _kernels(x: Tensor) -> types.ModuleType | None:
    nvidia = x.device.type == "cuda" and torch.version.hip is None
    if nvidia and x.dtype in cuda.ARITHMETIC:
        return cuda  # without CuPy it raises: a silent turn to the reference would cost hours
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return cpu_kernels()
    return None


def _empty(like: Tensor, channels: int) -> Tensor:
    """An uninitialised channels_last tensor of like's N,H,W: one layout for every path."""
    n, _, h, w = like.shape
    return like.new_empty((n, h, w, channels)).permute(0, 3, 1, 2)


# hubconf.py imports this package under another name, beside a program's own copy.
_NAMESPACE = "spanet" if __package__ == "irnn_cuda" else str(__package__).replace(".", "_")


def _forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = _empty(x, 4 * x.shape[1])
    if x.device.type == "cpu" and x.dtype in COARSE:
        return y.copy_(_forward(x.float(), weight.float(), bias.float()))
    kernels = _kernels(x)
    if kernels is None:
        return y.copy_(irnn_reference(x, weight, bias))
    kernels.forward(x, weight, bias, y)
    return y


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _empty(x, 4 * x.shape[1])


def _backward(grad: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if (grad.shape, grad.dtype, grad.device) != (y.shape, y.dtype, y.device):
        raise ValueError(
            f"irnn_backward: grad is {tuple(grad.shape)} {grad.dtype} on {grad.device}, "
            f"y is {tuple(y.shape)} {y.dtype} on {y.device}; they must agree"
        )
    grad_x = _empty(y, weight.shape[1])
    if y.device.type == "cpu" and y.dtype in COARSE:
        values, total_w, total_b = _backward(grad.float(), y.float(), weight.float())
        return grad_x.copy_(values), total_w.to(weight.dtype), total_b.to(weight.dtype)
    kernels = _kernels(y)
    if kernels is None:
        values, grad_weight, grad_bias = irnn_backward_reference(grad, y, weight)
        return grad_x.copy_(values), grad_weight, grad_bias
    return grad_x, *kernels.backward(grad, y, weight, grad_x)


def _backward_fake(grad: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sums = weight.new_empty(weight.shape), weight.new_empty(weight.shape)
    return _empty(y, weight.shape[1]), *sums


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, weight, _ = inputs
    ctx.save_for_backward(output, weight)  # the gradients need the output, not the input


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, weight = ctx.saved_tensors
    return _irnn_backward(grad, y, weight)


def _define(
    name: str, kernel: Callable, fake: Callable, differentiate: Any = None, **options: Callable
) -> Callable:
    """Define an operator of which `kernel` computes the values, and `fake` only the layout.

    It is what library.custom_op defines. That one imports torch._dynamo at the first call, which
    takes as long as torch. But nothing is traced before something else has imported it.
    """
    untraced = None

    def compute(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        nonlocal untraced
        if "torch._dynamo" not in sys.modules:
            return kernel(*tensors)
        untraced = untraced or torch.compiler.disable(kernel)  # which calls Numba or CuPy
        return untraced(*tensors)

    full_name = f"{_NAMESPACE}::{name}"
    schema = library.infer_schema(kernel, mutates_args=())
    library.define(full_name, schema, tags=torch.Tag.pt2_compliant_tag)
    library.impl(full_name, "default", compute)
    library.register_fake(full_name, fake)
    library.register_autograd(full_name, differentiate, **options)
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


_irnn = _define("irnn", _forward, _forward_fake, _differentiate, setup_context=_setup_context)
_irnn_backward = _define("irnn_backward", _backward, _backward_fake)


def irnn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Four-directional IRNN (paper section 4); same contract as irnn_reference.

    Args:
        x: (N,C,H,W), H,W >= 1; channels_last memory is read without a copy.
        weight: (4,C), rows up, right, down, left; of x's dtype, or float32 where x is a 16-bit
            float, as under autocast.
        bias: (4,C), rows in the same order, of weight's dtype.

    Returns:
        (N,4C,H,W) in channels_last memory, of x's dtype: the four scans, in the same order.

    Raises:
        ValueError: the shapes, dtypes or devices do not fit.
        ImportError: x is on a GPU and CuPy is not installed.
    """
    check_shapes(x, weight, bias)
    return _irnn(x, weight, bias)
