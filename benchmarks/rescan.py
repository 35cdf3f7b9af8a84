"""The baseline of the GPU benchmark: the published scheme, written anew in rescan.cu."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from irnn_cuda.cuda import require_cupy

SOURCE = Path(__file__).with_name("rescan.cu")
THREADS = 128
Launch = Callable[..., None]


@functools.cache
def _load_module():
    return require_cupy().RawModule(code=SOURCE.read_text(), options=("-std=c++17",))


def launch_on_gpu(name: str, blocks: int, arguments: tuple) -> None:
    """Launch a kernel on torch's current stream of the current device."""
    stream = require_cupy().cuda.Stream.from_external(torch.cuda.current_stream())
    with stream:
        _load_module().get_function(name)((blocks,), (THREADS,), arguments)


def _launch_kernel(launch: Launch, name: str, size: torch.Size, *tensors: Tensor) -> None:
    n, c, h, w = size
    arguments = [np.uint64(tensor.data_ptr()) for tensor in tensors]
    arguments += [np.int32(number) for number in (n, h, w, c)]
    launch(name, -(-n * c * h * w // THREADS), tuple(arguments))


def forward(x: Tensor, weight: Tensor, bias: Tensor, launch: Launch = launch_on_gpu) -> Tensor:
    """The IRNN of x (N,C,H,W) float32, contiguous; weight, bias (4,C)."""
    n, c, h, w = x.shape
    y = x.new_empty(n, 4 * c, h, w)
    _launch_kernel(launch, "rescan_forward", x.shape, x, weight, bias, y)
    return y


def backward(
    grad: Tensor, y: Tensor, weight: Tensor, launch: Launch = launch_on_gpu
) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias from those of y (N,4C,H,W)."""
    n, c4, h, w = y.shape
    grad_x, terms = y.new_empty(n, c4 // 4, h, w), y.new_empty(2, *y.shape)  # weight's and bias's
    _launch_kernel(launch, "rescan_grad_x", grad_x.shape, grad, y, weight, grad_x)
    _launch_kernel(launch, "rescan_products", grad_x.shape, grad, y, weight, *terms)
    return grad_x, *(term.sum((0, 2, 3)).view_as(weight) for term in terms)
