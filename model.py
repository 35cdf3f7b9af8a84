"""SPANet and its parts (paper section 4), with the published checkpoint's names and order.

The image flows at full resolution from start to end, channels_last in memory:
conv_in -> blocks 1-3 -> four times (attention map, three blocks weighed by it) -> blocks 16, 17
-> conv_out.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irnn_cuda import irnn

CHANNELS = 32
STAGES = 4


def conv3x3(channels_in: int, channels_out: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)


class Bottleneck(nn.Module):
    """Residual branch: 1x1, dilated 3x3, 1x1 convolutions; the caller adds and rectifies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group1 = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, channels, 1, bias=False),
                relu1=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(channels, channels, 3, padding=2, dilation=2, bias=False),
                relu2=nn.ReLU(inplace=True),
                conv3=nn.Conv2d(channels, channels, 1, bias=False),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.group1(x)


class IRNN(nn.Module):
    """Four-directional identity RNN (section 4): (N,C,H,W) -> (N,4C,H,W)."""

    def __init__(self, channels: int, weight: float = 0.2) -> None:
        super().__init__()
        # Depthwise 1x1 convolutions hold the parameters only: published checkpoints name them so.
        for direction in ("left", "right", "up", "down"):
            holder = nn.Conv2d(channels, channels, 1, groups=channels)
            nn.init.constant_(holder.weight, weight)
            self.add_module(f"{direction}_weight", holder)

    def forward(self, x: Tensor) -> Tensor:
        holders = [self.up_weight, self.right_weight, self.down_weight, self.left_weight]
        weight = torch.stack([holder.weight.flatten() for holder in holders])
        bias = torch.stack([holder.bias for holder in holders])
        return irnn(x, weight, bias)


class DirectionAttention(nn.Module):
    """How much each direction counts at each pixel: (N,32,H,W) -> (N,4,H,W) in 0..1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = conv3x3(channels, hidden, bias=True)
        self.conv2 = conv3x3(hidden, hidden, bias=True)
        self.conv3 = nn.Conv2d(hidden, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x), inplace=True)
        x = F.relu(self.conv2(x), inplace=True)
        return torch.sigmoid(self.conv3(x))


class SAM(nn.Module):
    """Spatial attentive module (section 4): (N,32,H,W) -> mask (N,1,H,W) in 0..1."""

    def __init__(self, channels: int, direction_attention: bool) -> None:
        super().__init__()
        self.direction_attention = direction_attention
        self.irnn1 = IRNN(channels)
        self.irnn2 = IRNN(channels)
        self.conv_in = conv3x3(channels, channels)
        self.conv2 = conv3x3(4 * channels, channels)
        self.conv3 = conv3x3(4 * channels, channels)
        self.attention_layer = DirectionAttention(channels)
        self.conv_out = nn.Conv2d(channels, 1, 1, bias=False)
        # Kept for the published checkpoint's sake even where unused; it must then not be trained.
        self.attention_layer.requires_grad_(direction_attention)

    def forward(self, x: Tensor) -> Tensor:
        directions = self.attention_layer(x) if self.direction_attention else None
        y = self.conv_in(x)
        y = self.conv2(_weigh(self.irnn1(y), directions))
        y = F.relu(self.conv3(_weigh(self.irnn2(y), directions)), inplace=True)
        return torch.sigmoid(self.conv_out(y))


def _weigh(scans: Tensor, directions: Tensor | None) -> Tensor:
    """Multiply each direction's C channels of scans (N,4C,H,W) by its map in (N,4,H,W)."""
    if directions is None:
        return scans
    by_direction = scans.unflatten(1, (4, -1)) * directions.unsqueeze(2)
    return by_direction.flatten(1, 2)


class SPANet(nn.Module):
    """The deraining network: 17 residual blocks, 12 of them weighed by a shared SAM.

    Args:
        direction_attention: weigh the directions of the IRNN, as the paper describes. False is
            what the published weights were trained with.
    """

    def __init__(self, direction_attention: bool = False) -> None:
        super().__init__()
        self.conv_in = nn.Sequential(conv3x3(3, CHANNELS), nn.ReLU(inplace=True))
        self.SAM1 = SAM(CHANNELS, direction_attention)
        for index in range(1, 18):
            self.add_module(f"res_block{index}", Bottleneck(CHANNELS))
        self.conv_out = nn.Sequential(conv3x3(CHANNELS, 3))
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Derain a batch.

        Args:
            image: (N,3,H,W) float, BGR, 0..1; any H,W >= 1.

        Returns:
            mask (N,1,H,W) in 0..1, the first of the four attention maps, and the clean image
            (N,3,H,W), BGR, not clamped.

        Raises:
            ValueError: image is not (N,3,H,W).
        """
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(f"SPANet: image must be (N,3,H,W), got {tuple(image.shape)}")
        x = self.conv_in(image.contiguous(memory_format=torch.channels_last))
        for index in (1, 2, 3):
            x = F.relu(self._block(index)(x) + x)
        masks = []
        for stage in range(1, STAGES + 1):
            mask = self.SAM1(x)
            masks.append(mask)
            for index in range(3 * stage + 1, 3 * stage + 4):
                x = F.relu(self._block(index)(x) * mask + x)
        for index in (16, 17):
            x = F.relu(self._block(index)(x) + x)
        return masks[0], self.conv_out(x)

    def _block(self, index: int) -> nn.Module:
        return getattr(self, f"res_block{index}")
