"""From an image to its derained version: whole or in blended tiles, once or averaged over flips."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor], tuple[Tensor, Tensor]]

OVERLAP = 64  # pixels that neighbouring tiles share at least, or half a tile where that is less
# Dimensions of (N,C,H,W) that an image is mirrored along before it is derained, its output after.
VIEWS = {1: [()], 2: [(), (3,)], 4: [(), (3,), (2, 3), (2,)]}

BYTES_A_PIXEL = 4 * (128 + 32 + 32)  # where most is held: the scans, what they read, what follows
BYTES_A_PIXEL_AROUND = 4 * 12  # the image, its outputs and their sums
KEPT_A_PIXEL, KEPT = 1100, 2**30  # freed blocks that stay with the process: a pixel, and at most


def estimate_memory(height: int, width: int, tile: int = 0) -> int:
    """Bytes that derain takes for an image in float32, about."""
    pixels = height * width
    at_once = min(height, tile) * min(width, tile) if tile else pixels
    kept = min(KEPT_A_PIXEL * at_once, KEPT)
    return BYTES_A_PIXEL * at_once + kept + BYTES_A_PIXEL_AROUND * pixels


def derain_tiled(
    net: Network, image: Tensor, views: int = 1, tile: int = 0
) -> tuple[Tensor, Tensor]:
    """Derain images of any size.

    Args:
        net: SPANet, or what has its contract.
        image: (N,3,H,W) float, BGR, 0..1.
        views: 1, or the mean of the outputs for 2 (the image, and mirrored left to right) or 4
            views (these two turned by half a turn as well), each turned back.
        tile: side of the squares that larger images are cut into; 0 takes them whole. The scans of
            the network see a whole line, so tiles are an approximation: see OVERLAP.

    Returns:
        mask (N,1,H,W) in 0..1 and the clean image (N,3,H,W), float32, not clamped.
    """
    height, width = image.shape[2:]
    if not tile or max(height, width) <= tile:
        return _mean_of_views(net, image, views)
    mask, clean = (torch.zeros(len(image), c, height, width, device=image.device) for c in (1, 3))
    for top, rows in _ramps(height, tile, image.device):
        for left, columns in _ramps(width, tile, image.device):
            where = (..., slice(top, top + len(rows)), slice(left, left + len(columns)))
            weight = rows[:, None] * columns
            for whole, part in zip(
                (mask, clean), _mean_of_views(net, image[where], views), strict=True
            ):
                whole[where] += part * weight
    return mask, clean


def tile_psnr(net: Network, image: Tensor, tile: int, views: int = 1) -> float:
    """PSNR (dB) of images (as for derain) in tiles against the same whole, both clipped to 0..1."""
    whole, tiled = (derain_tiled(net, image, views, side)[1].clamp_(0, 1) for side in (0, tile))
    error = tiled.sub_(whole).square_().mean().item()
    return -10 * math.log10(error) if error else math.inf


def _mean_of_views(net: Network, image: Tensor, views: int) -> tuple[Tensor, Tensor]:
    sums = None
    for dims in VIEWS[views]:
        found = [part.float().flip(dims) for part in net(image.flip(dims))]
        sums = found if sums is None else [a.add_(b) for a, b in zip(sums, found, strict=True)]
    mask, clean = (total.div_(views) for total in sums)
    return mask, clean


def count_tiles(height: int, width: int, tile: int) -> int:
    """Tiles that an image of that size is cut into."""
    if not tile or max(height, width) <= tile:
        return 1
    return len(_starts(height, tile)) * len(_starts(width, tile))


def _starts(length: int, tile: int) -> list[int]:
    overlap = min(OVERLAP, tile // 2)
    count = 1 if length <= tile else -(-(length - overlap) // (tile - overlap))
    last = length - min(tile, length)
    return [round(index * last / max(count - 1, 1)) for index in range(count)]


def _ramps(length: int, tile: int, device: torch.device) -> list[tuple[int, Tensor]]:
    """(start, weights) of each tile along a side: at every pixel the weights add up to 1.

    Near its cut edges a tile knows least, so its weight there is 0, and rises in the middle half
    of what it shares with its neighbour.
    """
    side = min(tile, length)
    overlap = min(OVERLAP, tile // 2)
    starts = _starts(length, tile)
    edge = (torch.arange(side, device=device) + 0.5 - overlap / 4) / max(overlap / 2, 1)
    ramps = []
    for start in starts:
        up = edge if start > 0 else torch.ones_like(edge)
        down = edge.flip(0) if start + side < length else torch.ones_like(edge)
        ramps.append(torch.minimum(up, down).clamp(0, 1))
    total = torch.zeros(length, device=device)
    for start, ramp in zip(starts, ramps, strict=True):
        total[start : start + side] += ramp
    return [(s, ramp / total[s : s + side]) for s, ramp in zip(starts, ramps, strict=True)]
