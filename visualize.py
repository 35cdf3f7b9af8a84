"""Pictures of results: heat maps of attention and strips that compare images."""

import cv2
import numpy as np

from settings import UserError


def heat_map(mask: np.ndarray) -> np.ndarray:
    """(H,W) float in 0..1 as (H,W,3) uint8 BGR: blue where 0, red where 1."""
    if mask.ndim != 2:
        raise ValueError(f"heat_map: expected (H,W), got {mask.shape}")
    grey = np.rint(np.clip(np.nan_to_num(mask), 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(grey, cv2.COLORMAP_JET)


def strip(images: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Images (H,W,3) uint8 of one height, side by side with a white gap, in pixels."""
    bar = np.full((images[0].shape[0], gap, 3), 255, np.uint8)
    parts = [images[0]]
    for image in images[1:]:
        parts += [bar, image]
    return np.hstack(parts)


def encode_png(image: np.ndarray, name: str) -> bytes:
    """(H,W,3) uint8 BGR as the bytes of a PNG file. Raises UserError naming `name`."""
    done, data = cv2.imencode(".png", image)
    if not done:
        raise UserError(f"{name}: an image of {image.shape[1]}x{image.shape[0]} makes no PNG")
    return data.tobytes()
