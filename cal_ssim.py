"""SSIM as a differentiable loss (the recipe's second term). Reported SSIM is in report/metrics.py.

Window, padding and constants are those of the published training, so that losses compare; the
Gaussian window is applied as a column and a row, 22 products a pixel instead of 121.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def gaussian_window(size: int = WINDOW, sigma: float = SIGMA) -> Tensor:
    """(size,) float64, sums to one."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    return weights / weights.sum()


class SSIM(nn.Module):
    """Mean structural similarity of two batches, each channel on its own, zeros beyond the edge."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", gaussian_window(), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean SSIM of first and second, (N,C,H,W) float in 0..1; a scalar tensor.

        Raises:
            ValueError: the shapes differ.
        """
        if first.shape != second.shape or first.dim() != 4:
            raise ValueError(
                f"SSIM: expected two (N,C,H,W) of one shape, got {tuple(first.shape)} "
                f"and {tuple(second.shape)}"
            )
        # On a CPU, image by image: the planes of one stay in the cache from step to step.
        size = 1 if first.device.type == "cpu" else len(first)
        parts = zip(first.split(size), second.split(size), strict=True)
        return torch.stack([self._mean(x, y) for x, y in parts]).mean()

    def _mean(self, x: Tensor, y: Tensor) -> Tensor:
        moments = self._blur(torch.cat([x, y, x * x + y * y, x * y], 1))
        mean_x, mean_y, square, product = moments.split(x.shape[1], 1)
        means = mean_x * mean_y
        squares = mean_x**2 + mean_y**2
        top = (2 * means + C1) * (2 * (product - means) + C2)
        return (top / ((squares + C1) * (square - squares + C2))).mean()

    def _blur(self, planes: Tensor) -> Tensor:
        """Gaussian mean round each pixel of planes (N,C,H,W)."""
        channels = planes.shape[1]
        column = self.window.to(planes.dtype).view(-1, 1).expand(channels, 1, -1, -1)
        planes = F.conv2d(planes, column, padding=(WINDOW // 2, 0), groups=channels)
        return F.conv2d(planes, column.mT, padding=(0, WINDOW // 2), groups=channels)
