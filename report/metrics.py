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
from collections.abc import Collection, Sequence
from typing import Any, Literal

import cv2
import numpy as np

from media.pictures import to_uint8

PROTOCOLS = {  # by name, what tables say of them
    "released": "RGB, as in the published results of SPANet",
    "rgb": "RGB",
    "y": "luminance",
    "y_down": "luminance, SSIM of large images averaged down",
    "y_round": "rounded luminance",
}
DATA_RANGES = {"released": 2, "rgb": 1}  # of SSIM on the colours
MEASURES = {"psnr": 2, "ssim": 4}  # with the digits of tables
MAX_OVERSHOOT = 0.02  # of an output beyond 0..1, in the mean: more is another range
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
    protocols: Collection[str] = tuple(PROTOCOLS),
) -> dict[str, float]:
    """PSNR (dB) and SSIM of output against clean, by the protocols.

    Args:
        output: (H,W,3) uint8 in 0..255, or float in 0..1, to which a small overshoot is clipped.
        clean: likewise, of the same size, without overshoot.
        order: of the channels of both: "BGR" as OpenCV reads them, "RGB" as Pillow and scikit-image
            do. The protocols on luminance depend on it.

    Returns:
        {"released_psnr": ..., "released_ssim": ..., "rgb_psnr": ..., ...}. PSNR of equal images
        is inf; SSIM of an image smaller than its window is nan.

    Raises:
        TypeError: an image is no NumPy array.
        ValueError: not two (H,W,3) images of one shape, of another type, or out of range.
    """
    if order not in ("RGB", "BGR"):
        raise ValueError(f"measure: order must be RGB or BGR, got {order!r}")
    images = [_to_float("clean", clean, 0), _to_float("output", output, MAX_OVERSHOOT)]
    if output.shape != clean.shape or output.ndim != 3 or output.shape[2] != 3:
        raise ValueError(f"measure: expected two (H,W,3), got {output.shape} and {clean.shape}")
    if order == "RGB":
        images = [image[..., ::-1] for image in images]
    planes = [luminance(image) for image in images] if set(protocols) - set(DATA_RANGES) else []
    scores: dict[str, float] = {}
    for protocol in protocols:
        if protocol in DATA_RANGES:
            options = {"win_size": 7, "channel_axis": -1, "data_range": DATA_RANGES[protocol]}
            psnr, ssim = _psnr(images, 1), _ssim(images, 7, **options)
        elif protocol == "y_down" and "y_psnr" in scores and _downsampling_factor(clean.shape) == 1:
            psnr, ssim = scores["y_psnr"], scores["y_ssim"]
        else:
            pair = [np.rint(plane) for plane in planes] if protocol == "y_round" else planes
            psnr = _psnr(pair, 255)
            if protocol == "y_down":
                pair = [_average_down(plane) for plane in pair]
            ssim = _ssim(pair, 11, **GAUSSIAN_OPTIONS)
        scores |= {f"{protocol}_psnr": psnr, f"{protocol}_ssim": ssim}
    return scores


def _to_float(name: str, image: np.ndarray, max_overshoot: float) -> np.ndarray:
    """An image as float, clipped to 0..1 if it lies outside by that much at most, in the mean."""
    expected = f"measure: {name} must be a NumPy array, uint8 or float in 0..1"
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{expected}; got {type(image).__name__}")
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255  # as for the network
    if image.dtype.kind != "f":
        raise ValueError(f"{expected}; got {image.dtype}")
    clipped = np.clip(image, 0, 1)
    if not np.abs(image - clipped).mean() <= max_overshoot:  # nan is not either
        raise ValueError(f"{expected}; got {image.min():.6g} to {image.max():.6g}")
    return clipped


def luminance(image: np.ndarray) -> np.ndarray:
    """BT.601 luminance (H,W), float64 in 16..235, of the 8-bit version of a BGR image in 0..1."""
    return 16 + (to_uint8(image) / 255) @ BGR_TO_Y


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


def _psnr(pair: Sequence[np.ndarray], data_range: float) -> float:
    from skimage.metrics import peak_signal_noise_ratio  # which takes half a second to import

    if np.array_equal(pair[0], pair[1]):
        return math.inf  # what scikit-image gives too, after a warning of a division by zero
    return float(peak_signal_noise_ratio(*pair, data_range=data_range))


def _ssim(pair: Sequence[np.ndarray], side: int, **options: Any) -> float:
    """SSIM in float64 by a window of that side: the mean over all windows, a band at a time."""
    from skimage.metrics import structural_similarity  # as above

    height, width = pair[0].shape[:2]
    if min(height, width) < side:
        return math.nan
    rows, step = height - side + 1, max(1, BAND_PIXELS // width)  # of windows
    total = 0.0
    for first in range(0, rows, step):
        count = min(step, rows - first)
        band = slice(first, first + count + side - 1)
        exact = (image[band].astype(np.float64) for image in pair)
        total += count * float(structural_similarity(*exact, **options))
    return total / rows
