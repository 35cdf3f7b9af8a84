"""PSNR and SSIM as reported, by named protocol, all computed by scikit-image.

Published tables disagree about what "SSIM" is, so every figure here carries its protocol:

released  PSNR with data range 1; SSIM with a 7x7 uniform window and data range 2, which is what
          skimage.measure assumed for float images when the published figures were computed.
rgb       the same with data range 1: the value that the definition of SSIM gives.
y         on the luminance of the 8-bit images (BT.601, 16..235), PSNR with peak 255; SSIM with an
          11x11 Gaussian window: what BasicSR computes.
y_down    the same, but for SSIM both images are averaged down where their shorter side is 384 or
          more: PReNet's scripts.
y_round   as y, with the luminance rounded to whole numbers: the scripts of MPRNet and Restormer.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np

from media.pictures import to_uint8

PROTOCOLS = ("released", "rgb", "y", "y_down", "y_round")
DATA_RANGES = {"released": 2, "rgb": 1}  # of SSIM on the colours
MEASURES = ("psnr", "ssim")
GAUSSIAN_OPTIONS = {
    "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255
}  # fmt: skip
BGR_TO_Y = np.array([24.966, 128.553, 65.481])  # BT.601, for channels in 0..1
MEASURE_BYTES_PER_PIXEL = 56  # at the peak of `measure`, without the images
BAND_PIXELS = 48 << 10  # whose SSIM is computed at a time, so that it fits into the cache


def measure(
    output: np.ndarray,
    clean: np.ndarray,
    *,
    order: Literal["RGB", "BGR"],
    protocols: Sequence[str] = PROTOCOLS,
) -> dict[str, float]:
    """PSNR (dB) and SSIM of output against clean, by the protocols.

    Args:
        output: (H,W,3) uint8 in 0..255, or float in 0..1; a float is clipped to 0..1 here.
        clean: likewise, of the same size; a float must be in 0..1.
        order: of the channels of both: "BGR" as OpenCV reads them, "RGB" as Pillow and scikit-image
            do. The protocols on luminance depend on it.

    Returns:
        {"released_psnr": ..., "released_ssim": ..., "rgb_psnr": ..., ...}. PSNR of equal images
        is inf; SSIM of an image smaller than its window is nan.

    Raises:
        ValueError: not two (H,W,3) images of one shape, of another type, or out of range.
    """
    if order not in ("RGB", "BGR"):
        raise ValueError(f"measure: order must be RGB or BGR, got {order!r}")
    if output.shape != clean.shape or output.ndim != 3 or output.shape[2] != 3:
        raise ValueError(f"measure: expected two (H,W,3), got {output.shape} and {clean.shape}")
    output, clean = _as_float("output", output), _as_float("clean", clean)
    if not (clean.min() >= 0 and clean.max() <= 1):
        raise ValueError(
            f"measure: clean must be in 0..1, got {clean.min():.6g} to {clean.max():.6g}"
        )
    images = [clean, np.clip(output, 0, 1)]
    if order == "RGB":
        images = [image[..., ::-1] for image in images]
    planes = [luminance(image) for image in images] if set(protocols) - set(DATA_RANGES) else []
    scores: dict[str, float] = {}
    for protocol in protocols:
        if protocol in DATA_RANGES:
            psnr, ssim = _score_rgb(protocol, *images)
        elif protocol == "y_down" and "y_psnr" in scores and _downsampling_factor(clean.shape) == 1:
            psnr, ssim = scores["y_psnr"], scores["y_ssim"]
        else:
            psnr, ssim = _score_luminance(protocol, *planes)
        scores |= {f"{protocol}_psnr": psnr, f"{protocol}_ssim": ssim}
    return scores


def _as_float(name: str, image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255  # as for the network
    if image.dtype.kind == "f":
        return image
    raise ValueError(f"measure: {name} must be uint8, or float in 0..1, got {image.dtype}")


def _score_rgb(protocol: str, clean: np.ndarray, output: np.ndarray) -> tuple[float, float]:
    psnr = _psnr(clean, output, data_range=1)
    options = {"win_size": 7, "channel_axis": -1, "data_range": DATA_RANGES[protocol]}
    return psnr, _ssim(clean, output, 7, **options)


def luminance(image: np.ndarray) -> np.ndarray:
    """BT.601 luminance (H,W), float64 in 16..235, of the 8-bit version of a BGR image in 0..1."""
    return 16 + (to_uint8(image) / 255) @ BGR_TO_Y


def _score_luminance(protocol: str, clean: np.ndarray, output: np.ndarray) -> tuple[float, float]:
    if protocol == "y_round":
        clean, output = np.rint(clean), np.rint(output)
    psnr = _psnr(clean, output, data_range=255)
    if protocol == "y_down":
        clean, output = _average_down(clean), _average_down(output)
    return psnr, _ssim(clean, output, 11, **GAUSSIAN_OPTIONS)


def _average_down(image: np.ndarray) -> np.ndarray:
    """An image (H,W) whose shorter side is near 256: means of f x f pixels, one every f pixels.

    Beyond the edges the image is mirrored, its outermost pixels repeated.
    """
    factor = _downsampling_factor(image.shape)
    if factor == 1:
        return image
    middle = ((factor + 1) // 2 - 1,) * 2
    means = cv2.blur(image, (factor, factor), anchor=middle, borderType=cv2.BORDER_REFLECT)
    return means[::factor, ::factor]


def _downsampling_factor(shape: tuple[int, ...]) -> int:
    return max(1, (2 * min(shape[:2]) + 256) // 512)  # rounded, halves up


def _psnr(true: np.ndarray, test: np.ndarray, data_range: float) -> float:
    from skimage.metrics import peak_signal_noise_ratio  # which takes half a second to import

    if np.array_equal(true, test):
        return math.inf  # what scikit-image gives too, after a warning of a division by zero
    return float(peak_signal_noise_ratio(true, test, data_range=data_range))


def _ssim(true: np.ndarray, test: np.ndarray, side: int, **options: Any) -> float:
    """SSIM in float64 by a window of that side: the mean over all windows, a band at a time."""
    from skimage.metrics import structural_similarity  # as above

    height, width = true.shape[:2]
    if min(height, width) < side:
        return math.nan
    rows, step = height - side + 1, max(1, BAND_PIXELS // width)  # of windows
    total = 0.0
    for first in range(0, rows, step):
        count = min(step, rows - first)
        band = slice(first, first + count + side - 1)
        exact = (image[band].astype(np.float64) for image in (true, test))
        total += count * float(structural_similarity(*exact, **options))
    return total / rows
