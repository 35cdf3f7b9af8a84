"""Pixels: floats in 0..1 as the whole numbers of a file, and their luminance."""

import numpy as np

_BGR_TO_Y = np.array([24.966, 128.553, 65.481])  # BT.601, for channels in 0..1


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float image in 0..1 (clipped) as the 8-bit image that a file holds."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def luminance(image: np.ndarray) -> np.ndarray:
    """BT.601 luminance (H,W), float64 in 16..235, of the 8-bit version of a BGR image in 0..1."""
    return 16 + (to_uint8(image) / 255) @ _BGR_TO_Y
