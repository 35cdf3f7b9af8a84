"""PSNR and SSIM in the five protocols by scikit-image called plainly, on whole images at a time."""

import cv2
import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

WEIGHTS = (24.966, 128.553, 65.481)  # of blue, green and red in luminance


def plain(output: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """As report.metrics.measure gives them, for (H,W,3) uint8 BGR of at least 11 pixels a side."""
    true, test = (image.astype(np.float32) / 255 for image in (clean, output))
    found = {}
    for protocol, data_range in (("released", 2), ("rgb", 1)):
        found[f"{protocol}_psnr"] = peak_signal_noise_ratio(true, test, data_range=1)
        found[f"{protocol}_ssim"] = structural_similarity(
            true.astype(np.float64),
            test.astype(np.float64),
            win_size=7,
            channel_axis=-1,
            data_range=data_range,
        )
    for protocol in ("y", "y_down", "y_round"):
        planes = [16 + (image / 255) @ np.array(WEIGHTS) for image in (clean, output)]
        if protocol == "y_round":
            planes = [np.rint(plane) for plane in planes]
        found[f"{protocol}_psnr"] = peak_signal_noise_ratio(*planes, data_range=255)
        factor = max(1, int(min(clean.shape[:2]) / 256 + 0.5))
        if protocol == "y_down" and factor > 1:
            anchor = ((factor + 1) // 2 - 1,) * 2
            planes = [
                cv2.blur(plane, (factor, factor), anchor=anchor, borderType=cv2.BORDER_REFLECT)
                for plane in planes
            ]
            planes = [plane[::factor, ::factor] for plane in planes]
        found[f"{protocol}_ssim"] = structural_similarity(
            *planes, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
    return found
