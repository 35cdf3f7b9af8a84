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


def contact_sheet(images: list[np.ndarray], captions: list[str], columns: int = 3) -> np.ndarray:
    """Images (H,W,3) uint8 BGR of one size in rows, each under a caption of one or more lines.

    Images wider than 480 pixels are scaled to that width.
    """
    scale = min(1.0, 480 / images[0].shape[1])
    cells = []
    for image, caption in zip(images, captions, strict=True):
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        lines = caption.split("\n")
        width = max(small.shape[1] + 8, 12 + max(9 * len(line) for line in lines))
        cell = np.full((small.shape[0] + 22 * len(lines) + 16, width, 3), 255, np.uint8)
        for number, line in enumerate(lines, 1):
            cv2.putText(cell, line, (6, 22 * number), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1,
                        cv2.LINE_AA)  # fmt: skip
        cell[-small.shape[0] - 4 : -4, 4 : 4 + small.shape[1]] = small
        cells.append(cell)
    height, width = (max(cell.shape[side] for cell in cells) for side in (0, 1))
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        top, left = row * height, column * width
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet


def encode_png(image: np.ndarray, name: str) -> bytes:
    """(H,W,3) uint8 BGR as the bytes of a PNG file. Raises UserError naming `name`."""
    is_encoded, data = cv2.imencode(".png", image)
    if not is_encoded:
        raise UserError(
            f"{name}: an image of {image.shape[1]}x{image.shape[0]} cannot be encoded as PNG"
        )
    return data.tobytes()
