"""Pictures of results: heat maps of attention and strips that compare images."""

import cv2
import numpy as np

from settings import UserError

MASK_COLOUR = (147, 20, 255)  # BGR
GAP = 4  # pixels between the images of a strip
FONT = cv2.FONT_HERSHEY_SIMPLEX


def heat_map(mask: np.ndarray) -> np.ndarray:
    """(H,W) float in 0..1 as (H,W,3) uint8 BGR: blue where 0, red where 1."""
    grey = np.rint(np.clip(np.nan_to_num(mask), 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(grey, cv2.COLORMAP_JET)


def overlay_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image, (H,W,3) uint8 BGR, under a mask, (H,W) float in 0..1, as the page shows it."""
    alpha = 0.65 * np.nan_to_num(mask).clip(0, 1)[..., None]  # as in page.css
    return np.rint(image * (1 - alpha) + np.array(MASK_COLOUR) * alpha).astype(np.uint8)


def strip(images: list[np.ndarray]) -> np.ndarray:
    """Images (H,W,3) uint8 of one height, side by side with a white gap."""
    bar = np.full((images[0].shape[0], GAP, 3), 255, np.uint8)
    return np.hstack([part for image in images for part in (bar, image)][1:])


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """An image whose longer side has at most that many pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def contact_sheet(images: list[np.ndarray], captions: list[str], columns: int = 3) -> np.ndarray:
    """Images (H,W,3) uint8 BGR of one size in rows, each under a caption of one or more lines.

    Images wider than 480 pixels are scaled to that width.
    """
    scale = min(1.0, 480 / images[0].shape[1])
    images = [
        cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for image in images
    ]
    height, width = images[0].shape[:2]
    lines = [caption.split("\n") for caption in captions]
    top = 22 * max(map(len, lines)) + 12  # of an image in its cell
    cell_height = top + height + 4
    cell_width = max(width + 8, 12 + 9 * max(len(line) for own in lines for line in own))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * cell_height, columns * cell_width, 3), 255, np.uint8)
    for number, (image, own) in enumerate(zip(images, lines, strict=True)):
        y, x = number // columns * cell_height, number % columns * cell_width
        sheet[y + top : y + top + height, x + 4 : x + 4 + width] = image
        for row, line in enumerate(own, 1):
            place = x + 6, y + 22 * row
            cv2.putText(sheet, line, place, FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet


def encode_png(image: np.ndarray, name: str) -> bytes:
    """(H,W,3) uint8 BGR as the bytes of a PNG file. Raises UserError naming `name`."""
    is_encoded, data = cv2.imencode(".png", image)
    if not is_encoded:
        raise UserError(f"{name}: {image.shape[1]}x{image.shape[0]} is too large for PNG")
    return data.tobytes()
