"""PSNR and SSIM as reported, by named protocol, all computed by scikit-image.

Published tables disagree about what "SSIM" is, so every figure here carries its protocol:

released  PSNR with data range 1; SSIM with a 7x7 uniform window and data range 2, which is what
          skimage.measure assumed for float images when the published figures were computed.
rgb       the same with data range 1: the value that the definition of SSIM gives.
y         on the luminance of the 8-bit images (BT.601, 16..235), PSNR with peak 255; SSIM with an
          11x11 Gaussian window: what most deraining tables report.
"""

import math

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from media.pixels import luminance

PROTOCOLS = ("released", "rgb", "y")
MEASURES = ("psnr", "ssim")


def measure(output: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """PSNR (dB) and SSIM of output against clean, by every protocol.

    Args:
        output: (H,W,3) float, BGR; clipped to 0..1 here.
        clean: (H,W,3) float, BGR, 0..1.

    Returns:
        {"released_psnr": ..., "released_ssim": ..., "rgb_psnr": ..., ...}. PSNR of equal images
        is inf; SSIM of an image smaller than its window is nan.

    Raises:
        ValueError: not two (H,W,3) float images of one shape.
    """
    if output.shape != clean.shape or output.ndim != 3 or output.shape[2] != 3:
        raise ValueError(f"measure: expected two (H,W,3), got {output.shape} and {clean.shape}")
    for name, image in (("output", output), ("clean", clean)):
        if image.dtype.kind != "f":
            raise ValueError(f"measure: {name} must be float in 0..1, got {image.dtype}")
    output = np.clip(output, 0, 1)
    psnr = _psnr(clean, output, data_range=1)
    first, second = clean.astype(np.float64), output.astype(np.float64)
    window = {"win_size": 7, "channel_axis": -1}
    y_first, y_second = luminance(clean), luminance(output)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return {
        "released_psnr": psnr,
        "released_ssim": _ssim(first, second, 7, data_range=2, **window),
        "rgb_psnr": psnr,
        "rgb_ssim": _ssim(first, second, 7, data_range=1, **window),
        "y_psnr": _psnr(y_first, y_second, data_range=255),
        "y_ssim": _ssim(y_first, y_second, 11, data_range=255, **gaussian),
    }


def _psnr(true: np.ndarray, test: np.ndarray, data_range: float) -> float:
    if np.array_equal(true, test):
        return math.inf  # what scikit-image gives too, after a warning of a division by zero
    return float(peak_signal_noise_ratio(true, test, data_range=data_range))


def _ssim(true: np.ndarray, test: np.ndarray, side: int, **options) -> float:
    if min(true.shape[:2]) < side:
        return math.nan
    return float(structural_similarity(true, test, **options))
