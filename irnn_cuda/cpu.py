"""The IRNN on a CPU: two Numba kernels, forward and backward, each linear in the pixels.

Memory is channels_last throughout, seen here as matrices: x (P,C) and y (P,4C) with one row a
pixel, P = N*H*W. A line of the image is then `length` rows of such a matrix, `stride` apart,
and one routine serves all four directions. Several columns are scanned
together, since neighbouring pixels of a row are neighbours in memory. Lines are shared among
threads; no two threads write the same element, and every sum has a fixed order.
"""

import os
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from system.compiled import compiled, limit_pool, use_threads

limit_pool(torch.get_num_threads())
import numba  # noqa: E402

_STRIP_COLUMNS = 8  # columns scanned together: 8 pixels x 4C floats stay in the first-level cache
# Rows of weight and bias, and blocks of output channels.
_UP, _RIGHT, _DOWN, _LEFT = 0, 1, 2, 3
_LAUNCH_LOCK = threading.Lock()  # two threads must not enter some of Numba's pools at once
_pool_process = 0  # the process that has started Numba's pool; one forked from it has none
Array = np.ndarray


@compiled()
def _scan(
    x: Array, weight: Array, bias: Array, y: Array, direction: int, first: int,
    stride: int, length: int, lines: int, shift: int, begun: bool,
) -> None:  # fmt: skip
    """Scan `lines` neighbouring lines, the first of which starts at pixel `first` of x.

    Pixel p of x is pixel p + shift of y. If the scan has begun, y holds what is before the first.
    """
    channels, zero = x.shape[1], x.dtype.type(0)  # a plain 0 would make float32 sums float64
    offset, w, b = direction * channels, weight[direction], bias[direction]
    for pixel in range(first, first if begun else first + lines):
        source, target = x[pixel], y[pixel + shift, offset : offset + channels]
        for c in range(channels):
            value = source[c]
            target[c] = zero if value <= zero else value  # NaN stays NaN, as in torch.relu
    for t in range(0 if begun else 1, length):
        start = first + t * stride
        for pixel in range(start, start + lines):
            source, target = x[pixel], y[pixel + shift, offset : offset + channels]
            before = y[pixel + shift - stride, offset : offset + channels]
            for c in range(channels):
                value = w[c] * before[c] + b[c] + source[c]
                target[c] = zero if value <= zero else value


@compiled(parallel=True)
def _forward(
    x: Array, weight: Array, bias: Array, y: Array, images: int, height: int, width: int,
    shift: int, from_above: bool, from_below: bool, down_alone: bool,
) -> None:  # fmt: skip
    for line in numba.prange(0 if down_alone else images * height):
        first = line * width
        last = first + width - 1
        _scan(x, weight, bias, y, _RIGHT, first, 1, width, 1, shift, False)
        _scan(x, weight, bias, y, _LEFT, last, -1, width, 1, shift, False)
    strips = (width + _STRIP_COLUMNS - 1) // _STRIP_COLUMNS
    for strip in numba.prange(images * strips):
        column = strip % strips * _STRIP_COLUMNS
        columns = min(_STRIP_COLUMNS, width - column)
        top = strip // strips * height * width + column
        low = top + (height - 1) * width
        _scan(x, weight, bias, y, _DOWN, top, width, height, columns, shift, from_above)
        if not down_alone:
            _scan(x, weight, bias, y, _UP, low, -width, height, columns, shift, from_below)


@compiled()
def _scan_back(
    grad: Array, y: Array, weight: Array, grad_x: Array, sums: Array, carry: Array,
    direction: int, line: int, first: int, stride: int, length: int, lines: int,
) -> None:  # fmt: skip
    """Gradient of _scan: sums[direction, line + lane] receives those of weight and bias.

    carry (lines,C) is scratch. RIGHT comes first and writes grad_x; the others add to it.
    """
    channels, zero = grad_x.shape[1], grad_x.dtype.type(0)
    offset, w = direction * channels, weight[direction]
    carry[:lines] = zero
    for t in range(length - 1, -1, -1):
        start = first + t * stride
        for lane in range(lines):
            pixel = start + lane
            g, value = grad[pixel, offset : offset + channels], y[pixel, offset : offset + channels]
            target, delta = grad_x[pixel], carry[lane]
            for c in range(channels):
                d = g[c] + w[c] * delta[c]
                delta[c] = zero if value[c] <= zero else d
            if direction == _RIGHT:
                for c in range(channels):
                    target[c] = delta[c]
            else:
                for c in range(channels):
                    target[c] += delta[c]
            if t > 0:
                before = y[pixel - stride, offset : offset + channels]
                sum_weight = sums[direction, line + lane, 0]
                sum_bias = sums[direction, line + lane, 1]
                for c in range(channels):
                    sum_weight[c] += delta[c] * before[c]
                    sum_bias[c] += delta[c]


@compiled(parallel=True)
def _backward(
    grad: Array, y: Array, weight: Array, grad_x: Array, sums: Array, images: int,
    height: int, width: int,
) -> None:  # fmt: skip
    channels = grad_x.shape[1]
    for line in numba.prange(images * height):
        carry = np.empty((1, channels), grad.dtype)
        first = line * width
        last = first + width - 1
        _scan_back(grad, y, weight, grad_x, sums, carry, _RIGHT, line, first, 1, width, 1)
        _scan_back(grad, y, weight, grad_x, sums, carry, _LEFT, line, last, -1, width, 1)
    strips = (width + _STRIP_COLUMNS - 1) // _STRIP_COLUMNS
    for strip in numba.prange(images * strips):
        carry = np.empty((_STRIP_COLUMNS, channels), grad.dtype)
        column = strip % strips * _STRIP_COLUMNS
        columns = min(_STRIP_COLUMNS, width - column)
        line = strip // strips * width + column
        top = strip // strips * height * width + column
        low = top + (height - 1) * width
        _scan_back(grad, y, weight, grad_x, sums, carry, _DOWN, line, top, width, height, columns)
        _scan_back(grad, y, weight, grad_x, sums, carry, _UP, line, low, -width, height, columns)


def _rows(tensor: Tensor) -> np.ndarray:
    """(N,C,H,W) as a (N*H*W, C) array, without a copy where the memory is channels_last; (4,C)."""
    return tensor.detach().movedim(1, -1).contiguous().flatten(0, -2).numpy()


def _launch(kernel: Callable[..., None], *arguments: np.ndarray | int) -> None:
    global _pool_process
    if _pool_process not in (0, os.getpid()):
        kernel.py_func(*arguments)  # type: ignore[attr-defined]  # its loops here, its scans compiled
        return
    with _LAUNCH_LOCK:
        _pool_process = os.getpid()
        num_threads = torch.get_num_threads()
        use_threads(num_threads)
        kernel(*arguments)
        # Starting Numba's pool sets OpenMP's number of threads, which is torch's too.
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)


def forward(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, *part: int) -> None:
    """Write irnn(x, weight, bias) into y. Both are channels_last, of float32 or float64.

    Args:
        part: if x (1,C,h,W) is some rows of an image: the row of y (1,4C,H,W) that belongs to the
            first of them; whether the scans down and up go on from the rows of y above and below;
            whether to scan down alone.
    """
    n, _, h, w = x.shape
    first_row, *flags = part or (0, False, False, False)
    _launch(_forward, *map(_rows, (x, weight, bias, y)), n, h, w, first_row * w, *flags)


def backward(grad: Tensor, y: Tensor, weight: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
    """Write the gradient of x into grad_x (channels_last); return those of weight and bias."""
    n, c, h, w = grad_x.shape
    sums = grad.new_zeros(4, n * max(h, w), 2, c)  # a line's own partial sums: no atomics
    _launch(_backward, *map(_rows, (grad, y, weight, grad_x)), sums.numpy(), n, h, w)
    total = sums.sum(1)
    return total[:, 0].contiguous(), total[:, 1].contiguous()
