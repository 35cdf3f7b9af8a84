"""Pixels: from the whole numbers of a file to the floats of the network, and back."""

import numpy as np
import torch
from torch import Tensor

_BGR_TO_Y = np.array([24.966, 128.553, 65.481])  # BT.601, for channels in 0..1


def to_float(image: Tensor) -> Tensor:
    """(N,H,W,3) uint8 or uint16 to (N,3,H,W) float32 in 0..1, channels_last without a shuffle."""
    return image.permute(0, 3, 1, 2).float().div_(torch.iinfo(image.dtype).max)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float image in 0..1 (clipped) as the 8-bit image that a file holds."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_levels(image: Tensor) -> Tensor:
    """to_uint8 of a tensor in 0..1 (not clipped), on its device."""
    return image.mul(255).round_().to(torch.uint8)


def luminance(image: np.ndarray) -> np.ndarray:
    """BT.601 luminance (H,W), float64 in 16..235, of the 8-bit version of a BGR image in 0..1."""
    return 16 + (to_uint8(image) / 255) @ _BGR_TO_Y
