"""SPANet and its parts (paper section 4), with the published checkpoint's names and order.

The image flows at full resolution from start to end, channels_last in memory:
conv_in -> blocks 1-3 -> four times (attention map, three blocks weighed by it) -> blocks 16, 17
-> conv_out.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from irnn_cuda import bands, convolve, irnn
from irnn_cuda.reference import DIRECTIONS

CHANNELS = 32
STAGES = 4
AMPLE_MEMORY = ("cuda",)  # devices on which nothing is computed again unless asked for


class Conv(nn.Conv2d):
    """A convolution that keeps height and width, without bias."""

    def __init__(self, channels_in: int, channels_out: int, side: int, dilation: int = 1) -> None:
        super().__init__(channels_in, channels_out, side, dilation=dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.dilation[0])


class Bottleneck(nn.Module):
    """Residual branch: 1x1, dilated 3x3, 1x1 convolutions; the caller adds x and applies ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group1 = nn.Sequential(
            OrderedDict(
                conv1=Conv(channels, channels, 1),
                relu1=nn.ReLU(inplace=True),
                conv2=Conv(channels, channels, 3, dilation=2),
                relu2=nn.ReLU(inplace=True),
                conv3=Conv(channels, channels, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.group1(x)

    def multiply(self, y: Tensor, mask: Tensor) -> Tensor:
        """The last convolution of the branch, of y (N,C,H,W), times the mask (N,1,H,W)."""
        y = self.group1[-1](y)
        return y * mask if torch.is_grad_enabled() else y.mul_(mask)

    def update(self, x: Tensor, mask: Tensor | None) -> None:
        """Overwrite x with relu(x + branch * mask), a band at a time; see irnn_cuda/bands.py."""
        conv1, relu, conv2, _, conv3 = self.group1
        weight = conv2.get_parameter("weight")
        for place, window in bands.iterate_windows(x, 2):
            y = relu(conv1(window))
            y = relu(F.conv2d(y, weight, padding=(0, 2), dilation=2))
            y = conv3(y) if mask is None else conv3(y).mul_(mask[place])
            torch.relu_(x[place].add_(y))


class IRNN(nn.Module):
    """Four-directional identity RNN (section 4): (N,C,H,W) -> (N,4C,H,W)."""

    def __init__(self, channels: int, weight: float = 0.2) -> None:
        super().__init__()
        # Depthwise 1x1 convolutions hold the parameters only: published checkpoints name them so.
        # Their biases begin as PyTorch 0.4.1 drew them for the published weights: it counted the
        # layer's channels as fan-in, where later versions count 1 and draw from -1 to 1.
        bound = channels**-0.5
        for direction in ("left", "right", "up", "down"):
            name = f"{direction}_weight"
            self.add_module(name, nn.Conv2d(channels, channels, 1, groups=channels))
            nn.init.constant_(self.get_parameter(f"{name}.weight"), weight)
            nn.init.uniform_(self.get_parameter(f"{name}.bias"), -bound, bound)

    def stack_parameters(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, (4,C), as irnn takes them."""
        layers = [self.get_submodule(f"{direction}_weight") for direction in DIRECTIONS]
        weight = torch.stack([layer.get_parameter("weight").flatten() for layer in layers])
        bias = torch.stack([layer.get_parameter("bias") for layer in layers])
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return irnn(x, *self.stack_parameters())


class DirectionAttention(nn.Module):
    """How much each direction counts at each pixel: (N,32,H,W) -> (N,4,H,W) in 0..1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1)
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
        self.conv_in = Conv(channels, channels, 3)
        self.conv2 = Conv(4 * channels, channels, 3)
        self.conv3 = Conv(4 * channels, channels, 3)
        self.attention_layer = DirectionAttention(channels)
        self.conv_out = Conv(channels, 1, 1)
        # Kept for the published checkpoint's sake even where unused; it must then not be trained.
        self.attention_layer.requires_grad_(direction_attention)

    def forward(self, x: Tensor, spare: Tensor | None = None) -> Tensor:
        """The mask. With a spare map of x's shape, it works there, a band at a time."""
        if spare is not None:
            return self._forward_in_bands(x, spare)
        directions = self.attention_layer(x) if self.direction_attention else None
        y = self.conv_in(x)
        y = self.irnn1(y)  # one name, so that each feature map is freed as the next one is made
        y = bands.scale_directions(y, directions)
        y = self.conv2(y)
        y = self.irnn2(y)
        y = bands.scale_directions(y, directions)
        y = self.conv3(y).relu_()
        return torch.sigmoid(self.conv_out(y))

    def _forward_in_bands(self, x: Tensor, y: Tensor) -> Tensor:
        directions = None
        if self.direction_attention:
            directions = F.pad(
                self.attention_layer(x[:, :, bands.HALO : -bands.HALO]),
                (0, 0, bands.HALO, bands.HALO),
            )
        for place, window in bands.iterate_windows(x, 1):
            y[place] = F.conv2d(window, self.conv_in.weight, padding=(0, 1))
        scans = bands.convolve_scans(
            y, *self.irnn1.stack_parameters(), self.conv2.weight, directions
        )
        for place, values in scans:
            y[place] = values
        mask = y.new_empty(len(y), 1, *y.shape[2:])
        scans = bands.convolve_scans(
            y, *self.irnn2.stack_parameters(), self.conv3.weight, directions
        )
        for place, values in scans:
            mask[place] = torch.sigmoid(self.conv_out(values.relu_()))
        return mask


def is_dead_mask(mean: float, deviation: float) -> bool:
    """Whether an attention map, of that mean and standard deviation, can hardly learn any more.

    The sigmoid is then saturated, near 0 or 1 everywhere, or the ReLU before it is 0 everywhere,
    which makes a constant map; no gradient comes through.
    """
    return (min(mean, 1 - mean) < 1e-3 and deviation < 1e-3) or deviation < 1e-6


class SPANet(nn.Module):
    """The deraining network: 17 residual blocks, 12 of them weighed by a shared SAM.

    Args:
        direction_attention: weigh the directions of the IRNN, as the paper describes. The
            published weights need False: the released code computes the maps but does not use them.
        checkpoint_activations: keep one feature map a stage for backward and compute the others
            again there: the same gradients in less memory, for about a forward pass more.
    """

    def __init__(
        self, direction_attention: bool = False, checkpoint_activations: bool = False
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.conv_in = nn.Sequential(Conv(3, CHANNELS, 3), nn.ReLU(inplace=True))
        self.SAM1 = SAM(CHANNELS, direction_attention)
        for index in range(1, 18):
            self.add_module(f"res_block{index}", Bottleneck(CHANNELS))
        self.conv_out = nn.Sequential(Conv(CHANNELS, 3, 3))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

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
        if bands.takes_bands(image):
            return self._forward_in_bands(image)
        x = self.conv_in(image.contiguous(memory_format=torch.channels_last))
        x = self._run("early blocks", self._blocks, x, None, 1)
        masks = []
        for stage in range(1, STAGES + 1):
            masks.append(self._run("attention", self.SAM1, x))
            part = "early blocks" if stage <= 2 else "late blocks"
            x = self._run(part, self._blocks, x, masks[-1], 3 * stage + 1)
        x = self._run("late blocks", self._blocks, x, None, 16)
        return masks[0], self.conv_out(x)

    def _forward_in_bands(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The same in two feature maps, which hold the image's rows and HALO more on both sides."""
        image = F.pad(image, (0, 0, bands.HALO, bands.HALO)).contiguous(
            memory_format=torch.channels_last
        )
        x = bands.clear_halo(self.conv_in(image))
        spare = bands.clear_halo(torch.empty_like(x))
        masks: list[Tensor] = []
        for index in range(1, 18):
            if index in range(4, 4 + 3 * STAGES, 3):
                masks.append(self.SAM1(x, spare))
            block = getattr(self, f"res_block{index}")
            block.update(x, masks[-1] if masks and index < 4 + 3 * STAGES else None)
        mask, clean = masks[0], self.conv_out(x)
        return mask[:, :, bands.HALO : -bands.HALO], clean[:, :, bands.HALO : -bands.HALO]

    def _blocks(self, x: Tensor, mask: Tensor | None, first: int) -> Tensor:
        """Three residual blocks from number `first` on, or as many as there are."""
        for index in range(first, min(first + 3, 18)):
            block = getattr(self, f"res_block{index}")
            if mask is None:
                y = block(x)
            else:
                y = self._run("masked branch", block.multiply, block.group1[:-1](x), mask)
            x = y.add_(x).relu_()
        return x

    def _run(
        self, part: str, function: Callable[..., Tensor], x: Tensor, *others: object
    ) -> Tensor:
        """function(x, *others); what backward keeps of it or computes again is decided here alone.

        On a CPU blocks 1 to 9 are computed again: a quarter less memory for 6 % of a step's work.
        So is the masked branch, a cheap product of what is kept anyway, for the gradient of the
        mask. A GPU has that memory, and its steps wait for launches and memory traffic.
        """
        recompute = self.checkpoint_activations or (
            part in ("early blocks", "masked branch") and x.device.type not in AMPLE_MEMORY
        )
        if not recompute or not torch.is_grad_enabled():
            return function(x, *others)
        return checkpoint(function, x, *others, use_reentrant=False, preserve_rng_state=False)
