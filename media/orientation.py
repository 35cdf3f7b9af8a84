"""Which way up a video is: its display matrix, as pixels are turned and mirrored by it."""

from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import Type

UNIT = 1 << 16  # the matrix holds fixed-point numbers
NEAR = 1e-3  # what rounding makes of a 0 or a 1


@dataclass(frozen=True)
class Orientation:
    """How decoded pixels become those that are shown: axes swapped first, then mirrored.

    Attributes:
        swapped: rows become columns.
        mirrored, flipped: left becomes right, top becomes bottom.
        odd: what the matrix asks for, where that is none of the eight orientations; it is not done.
    """

    swapped: bool = False
    mirrored: bool = False
    flipped: bool = False
    odd: str = ""

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        data = frame.side_data.get(Type.DISPLAYMATRIX)
        if data is None:
            return cls()
        matrix = np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2] / UNIT
        whole = np.rint(matrix)
        # Each axis goes to one axis: a single 1 or -1 in every row and column.
        lines = [*np.abs(whole).sum(0), *np.abs(whole).sum(1)]
        if np.abs(matrix - whole).max() > NEAR or lines != [1, 1, 1, 1]:
            return cls(odd=" ".join(f"{number:g}" for number in matrix.round(3).flat))
        # (x,y) of a decoded pixel is shown at (x,y) times the matrix.
        swapped = whole[0, 0] == 0
        along = whole[::-1].diagonal() if swapped else whole.diagonal()
        return cls(bool(swapped), bool(along[0] < 0), bool(along[1] < 0))

    def upright(self, image: np.ndarray) -> np.ndarray:
        """Decoded pixels (H,W,3) as they are shown: (H,W,3), or (W,H,3) where axes are swapped."""
        image = image.swapaxes(0, 1) if self.swapped else image
        image = image[:, ::-1] if self.mirrored else image
        image = image[::-1] if self.flipped else image
        return np.ascontiguousarray(image)
