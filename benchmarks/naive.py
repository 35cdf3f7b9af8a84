"""A plain port of the network and its SSIM loss, which bench.py compares ours with.

Images are in NCHW order. Each scan of the IRNN is a loop of PyTorch operations over the lines, with
autograd going back through it. The direction attention is computed and discarded. The window of
SSIM is a dense 11x11. The weights are those of model.SPANet; the results differ by rounding only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cal_ssim import C1, C2, WINDOW, gaussian_window


def scan_lines(x: Tensor, layer: nn.Conv2d, dim: int, reverse: bool) -> Tensor:
    """One direction of the IRNN over x (N,C,H,W), line after line."""
    lines = list(x.split(1, dim))
    if reverse:
        lines.reverse()
    outputs = [F.relu(lines[0])]
    for line in lines[1:]:
        outputs.append(F.relu(layer(outputs[-1]) + line))
    if reverse:
        outputs.reverse()
    return torch.cat(outputs, dim)


class NaiveIRNN(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        for direction in ("left", "right", "up", "down"):
            self.add_module(
                f"{direction}_weight", nn.Conv2d(channels, channels, 1, groups=channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        up = scan_lines(x, self.up_weight, 2, True)
        right = scan_lines(x, self.right_weight, 3, False)
        down = scan_lines(x, self.down_weight, 2, False)
        left = scan_lines(x, self.left_weight, 3, True)
        return torch.cat([up, right, down, left], 1)


class NaiveAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)
        self.conv3 = nn.Conv2d(channels // 2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return torch.sigmoid(self.conv3(x))


class NaiveSAM(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.irnn1 = NaiveIRNN(channels)
        self.irnn2 = NaiveIRNN(channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(4 * channels, channels, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(4 * channels, channels, 3, padding=1, bias=False)
        self.attention_layer = NaiveAttention(channels)
        self.conv_out = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.attention_layer(x)
        del maps  # the released code computes it in vain too
        y = self.conv_in(x)
        y = self.irnn1(y)
        y = self.conv2(y)
        y = self.irnn2(y)
        y = F.relu(self.conv3(y))
        return torch.sigmoid(self.conv_out(y))


class NaiveBottleneck(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group1 = nn.Sequential()
        self.group1.add_module("conv1", nn.Conv2d(channels, channels, 1, bias=False))
        self.group1.add_module("relu1", nn.ReLU())
        conv2 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, bias=False)
        self.group1.add_module("conv2", conv2)
        self.group1.add_module("relu2", nn.ReLU())
        self.group1.add_module("conv3", nn.Conv2d(channels, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.group1(x)


class NaiveSPANet(nn.Module):
    """model.SPANet without what saves time and memory in it; the state_dict is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.ReLU())
        self.SAM1 = NaiveSAM(32)
        for index in range(1, 18):
            self.add_module(f"res_block{index}", NaiveBottleneck(32))
        self.conv_out = nn.Sequential(nn.Conv2d(32, 3, 3, padding=1, bias=False))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv_in(image)
        masks = []
        for index in range(1, 18):
            branch = getattr(self, f"res_block{index}")(x)
            if 4 <= index <= 15:
                if index % 3 == 1:
                    masks.append(self.SAM1(x))
                branch = branch * masks[-1]
            x = F.relu(branch + x)
        return masks[0], self.conv_out(x)


class NaiveSSIM(nn.Module):
    """cal_ssim.SSIM with a dense window and a blur for each moment."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        profile = gaussian_window()
        window = torch.outer(profile, profile).float().expand(channels, 1, WINDOW, WINDOW)
        self.register_buffer("window", window.contiguous())

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        mean1, mean2 = self._blur(first), self._blur(second)
        variance1 = self._blur(first * first) - mean1 * mean1
        variance2 = self._blur(second * second) - mean2 * mean2
        covariance = self._blur(first * second) - mean1 * mean2
        numerator = (2 * mean1 * mean2 + C1) * (2 * covariance + C2)
        denominator = (mean1 * mean1 + mean2 * mean2 + C1) * (variance1 + variance2 + C2)
        return (numerator / denominator).mean()

    def _blur(self, planes: Tensor) -> Tensor:
        return F.conv2d(planes, self.window, padding=WINDOW // 2, groups=len(self.window))
