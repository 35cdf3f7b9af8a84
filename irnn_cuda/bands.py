"""Inference on a CPU, a band of rows at a time, which lets maps be overwritten: two are enough.

A pixel is computed by the operations of whole maps, in the same order. A map has HALO rows of 0
above and below the image, so that a band and its neighbours are one piece of memory anywhere.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .op import cpu_kernels
from .reference import COARSE

BAND_PIXELS = 1 << 16  # fewer would have the threads wait for one another too often
MIN_ROWS = 8  # of a band, so that the rows beside it are few
HALO = 2  # rows
Place = tuple[slice, slice, slice]  # images, channels and rows of (N,C,H,W)


def takes_bands(image: Tensor) -> bool:
    """Whether an image is derained in bands: without gradients, on a CPU, by Numba, if large."""
    return (
        not torch.is_grad_enabled()
        and type(image) is Tensor
        and image.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and image.shape[2] * image.shape[3] > BAND_PIXELS
        and cpu_kernels() is not None
    )


def clear_halo(x: Tensor) -> Tensor:
    """Set the HALO rows above and below the image of x (N,C,H+2*HALO,W) to 0. Returns x."""
    x[:, :, :HALO] = x[:, :, -HALO:] = 0
    return x


def split_rows(height: int, width: int) -> list[slice]:
    """The bands of an image, from top to bottom."""
    rows = max(MIN_ROWS, BAND_PIXELS // width)
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def iterate_windows(x: Tensor, margin: int) -> Iterator[tuple[Place, Tensor]]:
    """For each band of an image its place, and its h rows with `margin` rows above and below.

    Until the next one, the place may be overwritten in x (N,C,H+2*HALO,W); these rows, a part of x,
    are still as they were at the beginning.
    """
    _, _, height, width = x.shape
    before = x[:, :, :margin].clone()
    for rows in split_rows(height - 2 * HALO, width):
        place = slice(None), slice(None), slice(rows.start + HALO, rows.stop + HALO)
        window = x[:, :, rows.start + HALO - margin : rows.stop + HALO + margin]
        above = window[:, :, :margin]
        overwritten = above.clone()
        above.copy_(before)
        before = window[:, :, -2 * margin : -margin].clone()
        yield place, window
        above.copy_(overwritten)


def scale_directions(scans: Tensor, directions: Tensor | None) -> Tensor:
    """Multiply each direction's C channels of scans (N,4C,H,W) by its map in (N,4,H,W), if any."""
    if directions is None:
        return scans
    return (scans.unflatten(1, (4, -1)) * directions.unsqueeze(2)).flatten(1, 2)


def convolve_scans(
    x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, directions: Tensor | None
) -> Iterator[tuple[Place, Tensor]]:
    """For each band of an image its place, which may be overwritten, and the convolved scans.

    Bands follow one another upwards, as one of the scans does. The scan downwards is run once
    before, to note how it enters each band.

    Args:
        x: (N,C,H+2*HALO,W), channels_last.
        weight, bias: those of irnn.
        kernel: of the convolution, (C_out,4C,3,3).
        directions: (N,4,H+2*HALO,W), see scale_directions.
    """
    kernels, exact = cpu_kernels(), torch.float32 if x.dtype in COARSE else x.dtype
    assert kernels is not None  # see takes_bands
    weight, bias = weight.to(exact), bias.to(exact)
    n, c, height, width = x.shape
    bands = split_rows(height - 2 * HALO, width)
    # In a band that begins at row `top` of the image, row r of x is row r - top of the scans. These
    # hold the band's rows, one above and below, and another one above from which the scan down goes
    # on; rows beyond the image are 0.
    scans = x.new_empty(1, bands[0].stop + 3, width, 4 * c, dtype=exact).permute(0, 3, 1, 2)
    down = scans[:, 2 * c : 3 * c]
    for image in (slice(i, i + 1) for i in range(n)):
        entries, start = [], HALO
        for top in (rows.start for rows in bands[1:]):
            part = x[image, :, start : top + 1].to(exact)
            kernels.forward(part, weight, bias, scans, 1, start > HALO, False, True)
            down[:, :, 0] = down[:, :, part.shape[2]]
            entries.append(down[:, :, 0].clone())
            start = top + 1
        for top, stop in ((rows.start, rows.stop) for rows in reversed(bands)):
            size, is_first, is_last = stop - top, not top, stop == height - 2 * HALO
            if is_last:
                scans[:, :, size + 2] = 0
            else:
                scans[:, :, size + 1 : size + 3] = scans[:, :, 1:3]
            if is_first:
                scans[:, :, 1] = 0
            else:
                down[:, :, 0] = entries.pop()
            part = x[image, :, top + 1 + is_first : stop + 1 + is_last].to(exact)
            flags = not is_first, not is_last, False
            kernels.forward(part, weight, bias, scans, 1 + is_first, *flags)
            window = scans[:, :, 1 : size + 3].to(x.dtype)
            if directions is not None:
                window = scale_directions(window, directions[image, :, top + 1 : stop + 3])
            place = image, slice(None), slice(top + HALO, stop + HALO)
            yield place, F.conv2d(window, kernel, padding=(0, 1))
