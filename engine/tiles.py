"""From an image to its derained version: whole or in blended tiles, once or averaged over flips."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from irnn_cuda.bands import BAND_PIXELS

Network = Callable[[Tensor], tuple[Tensor, Tensor]]

OVERLAP = 64  # pixels that neighbouring tiles share at least, or half a tile where that is less
# Dimensions of (N,C,H,W) along which an image is flipped before it is derained, its output after.
FLIPS: dict[int, list[tuple[int, ...]]] = {1: [()], 2: [(), (3,)], 4: [(), (3,), (2, 3), (2,)]}
# At the peak: the scans, their input, their successor. In bands: two maps, the attention maps.
BYTES_PER_TILE_PIXEL, BYTES_PER_BAND_PIXEL = 4 * (128 + 32 + 32), 4 * (32 + 32 + 4)
BYTES_PER_IMAGE_PIXEL = 4 * 12  # the image, its outputs and their sums
# Freed blocks that the process keeps: for each pixel of a tile, and at most.
CACHED_BYTES_PER_PIXEL, MAX_CACHED_BYTES = 600, 2**29


def estimate_memory(height: int, width: int, tile: int = 0, in_bands: bool = False) -> int:
    """Bytes that `derain_batch` takes for an image in float32, about.

    Args:
        in_bands: whether large images and tiles are derained in bands, see irnn_cuda/bands.py.
    """
    pixels = height * width
    tile_pixels = min(height, tile) * min(width, tile) if tile else pixels
    whole_pixels = min(tile_pixels, BAND_PIXELS) if in_bands else tile_pixels
    cached = min(CACHED_BYTES_PER_PIXEL * tile_pixels, MAX_CACHED_BYTES)
    maps = BYTES_PER_TILE_PIXEL * whole_pixels + BYTES_PER_BAND_PIXEL * (tile_pixels - whole_pixels)
    return maps + cached + BYTES_PER_IMAGE_PIXEL * pixels


def derain_batch(
    net: Network, image: Tensor, views: int = 1, tile: int = 0
) -> tuple[Tensor, Tensor]:
    """Derain images of any size.

    Args:
        net: SPANet, or another network with the same input and outputs.
        image: (N,3,H,W) float, BGR, 0..1.
        views: 1, or the mean of the outputs for 2 (the image, and mirrored left to right) or 4
            views (these two turned by half a turn as well), each turned back.
        tile: side of the squares that larger images are cut into; 0 takes them whole. The scans of
            the network see a whole line, so tiles are an approximation.

    Returns:
        mask (N,1,H,W) in 0..1 and the derained image (N,3,H,W), float32, not clamped.
    """
    height, width = image.shape[2:]
    if not tile or max(height, width) <= tile:
        return _average_views(net, image, views)
    mask, derained = (image.new_zeros(len(image), c, height, width) for c in (1, 3))
    for top, row_weights in _blending_weights(height, tile, image):
        for left, column_weights in _blending_weights(width, tile, image):
            rows = slice(top, top + len(row_weights))
            columns = slice(left, left + len(column_weights))
            weights = row_weights[:, None] * column_weights
            tile_mask, tile_derained = _average_views(net, image[..., rows, columns], views)
            mask[..., rows, columns] += tile_mask * weights
            derained[..., rows, columns] += tile_derained * weights
    return mask, derained


def tile_psnr(net: Network, image: Tensor, tile: int, views: int = 1) -> float:
    """PSNR (dB) of images derained in tiles against the same whole, both clipped to 0..1.

    Its arguments are those of `derain_batch`.
    """
    whole, tiled = (derain_batch(net, image, views, side)[1].clamp_(0, 1) for side in (0, tile))
    error = tiled.sub_(whole).square_().mean().item()
    return -10 * math.log10(error) if error else math.inf


def _average_views(net: Network, image: Tensor, views: int) -> tuple[Tensor, Tensor]:
    sums: list[Tensor] = []
    for dims in FLIPS[views]:
        outputs = [output.float().flip(dims) for output in net(image.flip(dims))]
        sums = [a.add_(b) for a, b in zip(sums, outputs, strict=True)] if sums else outputs
    mask, derained = (total.div_(views) for total in sums)
    return mask, derained


def count_tiles(height: int, width: int, tile: int) -> int:
    """Tiles that an image of that size is cut into."""
    return len(_tile_starts(height, tile)) * len(_tile_starts(width, tile)) if tile else 1


def _tile_starts(length: int, tile: int) -> list[int]:
    overlap = min(OVERLAP, tile // 2)
    count = 1 if length <= tile else -(-(length - overlap) // (tile - overlap))
    last = length - min(tile, length)
    return [round(index * last / max(count - 1, 1)) for index in range(count)]


def _blending_weights(length: int, tile: int, image: Tensor) -> list[tuple[int, Tensor]]:
    """(start, weights) of each tile along a side: at every pixel the weights add up to 1.

    They are of the image's type, on its device.

    At a cut edge a tile is least exact, so its weight there is 0. It rises in the middle half of
    what the tile shares with its neighbour.
    """
    side = min(tile, length)
    overlap = min(OVERLAP, tile // 2)
    starts = _tile_starts(length, tile)
    ramp = torch.arange(side, dtype=image.dtype, device=image.device)
    ramp = (ramp + 0.5 - overlap / 4) / max(overlap / 2, 1)
    total = image.new_zeros(length)
    weights = []
    for start in starts:
        rising = ramp if start > 0 else torch.ones_like(ramp)
        falling = ramp.flip(0) if start + side < length else torch.ones_like(ramp)
        weights.append(torch.minimum(rising, falling).clamp(0, 1))
        total[start : start + side] += weights[-1]
    return [(s, w / total[s : s + side]) for s, w in zip(starts, weights, strict=True)]
