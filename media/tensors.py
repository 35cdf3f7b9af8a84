"""Pixels as tensors. Apart from pixels.py, as most of what reads pictures does without PyTorch."""

import torch
from torch import Tensor


def to_float(image: Tensor) -> Tensor:
    """(N,H,W,3) uint8 or uint16 to (N,3,H,W) float32 in 0..1, channels_last without a shuffle."""
    return image.permute(0, 3, 1, 2).float().div_(torch.iinfo(image.dtype).max)


def to_levels(image: Tensor) -> Tensor:
    """What to_uint8 of pixels.py gives, of a tensor in 0..1 (not clipped), on its device."""
    return image.mul(255).round_().to(torch.uint8)
