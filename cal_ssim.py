"""SSIM as a differentiable loss (the recipe's second term). Reported SSIM is in metrics.py.

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
        moments = torch.stack([first, second, first**2, second**2, first * second])
        mean1, mean2, square1, square2, product = self._blur(moments)
        variance1, variance2 = square1 - mean1**2, square2 - mean2**2
        covariance = product - mean1 * mean2
        luminance = (2 * mean1 * mean2 + C1) / (mean1**2 + mean2**2 + C1)
        structure = (2 * covariance + C2) / (variance1 + variance2 + C2)
        return (luminance * structure).mean()

    def _blur(self, planes: Tensor) -> Tensor:
        """Gaussian mean round each pixel of planes (...,H,W)."""
        window = self.window.to(planes.dtype)
        height, width = planes.shape[-2:]
        flat = planes.reshape(-1, 1, height, width)
        flat = F.conv2d(flat, window.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))
        flat = F.conv2d(flat, window.view(1, 1, 1, -1), padding=(0, WINDOW // 2))
        return flat.view(planes.shape)
