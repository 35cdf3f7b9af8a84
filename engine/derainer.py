"""Derainer: a network ready for inference. An image goes in, a derained one and a mask come out."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset import to_float
from engine import checkpoint, tiles
from engine.device import free_memory, is_out_of_memory, prepare_device
from engine.ranks import Ranks
from model import STAGES, SPANet
from settings import Settings, UserError
from system import machine

SIZE_CHANGES = 16  # after so many, freed memory goes back to the system
TILE_SIDES = tuple(2**n for n in range(6, 14))  # pixels, for images that do not fit into memory
SAMPLE_SIDE = 1024  # pixels at most, of the sample on which tiles are compared with the whole
OnProgress = Callable[[int, int], object]  # called with how many parts are done, and of how many


class DerainedImage:
    """A derained image on the device that computed it; its properties copy it to the CPU.

    Attributes:
        seconds: that it took, without reading and writing images, and converting the result.
    """

    def __init__(self, derained: Tensor, mask: Tensor, seconds: float) -> None:
        self._derained, self._mask, self.seconds = derained, mask, seconds

    @property
    def float_image(self) -> np.ndarray:
        """The derained image (H,W,3) float32, BGR, in 0..1."""
        return self._derained.cpu().numpy()

    @property
    def uint8_image(self) -> np.ndarray:
        """The derained image (H,W,3) uint8, BGR."""
        return self._derained.mul(255).round_().to(torch.uint8).cpu().numpy()

    @property
    def mask(self) -> np.ndarray:
        """The attention map (H,W) float32 in 0..1."""
        return self._mask.cpu().numpy()


@dataclass(eq=False)
class Derainer:
    """A network ready for inference: weights on a device, with precision, views and tiles.

    Attributes:
        net: the network.
        device: where it is, and computes.
        precision: of the network's arithmetic: "fp32", "tf32" (on a GPU) or "bf16".
        views: 1, or the mean over 2 (mirrored) or 4 (also half-turned) views of an image.
        tile: side of blended tiles, in pixels; 0 takes every image whole; "auto" only those that
            fit into memory, and the others in the largest tiles of TILE_SIDES that fit.
        sharing: processes of this machine that derain at the same time.
        path, step, digest: the checkpoint file, the step it was saved at, and its SHA-256. Weights
            in training have no file.
        direction_attention: whether the file's weights need the paper's direction attention.
        averaged: whether the weights are the moving average of a run.
    """

    net: SPANet
    device: torch.device
    precision: str = "fp32"
    views: int = 1
    tile: int | str = "auto"
    sharing: int = 1
    path: Path | None = None
    step: int | str = "unknown"
    digest: str = ""
    direction_attention: bool = False
    averaged: bool = False
    _tiles_compared: bool = field(default=False, init=False)
    _largest_need: int = field(default=0, init=False)  # bytes, of an image that was derained
    _last_size: tuple[int, int] = field(default=(0, 0), init=False)
    _last_tile: int = field(default=0, init=False)
    _size_changes: int = field(default=0, init=False)

    @classmethod
    def load(cls, path: Path, device: torch.device, ema: bool = True, **options: Any) -> "Derainer":
        """Load the weights of a checkpoint file, which says whether they use direction attention.

        Args:
            ema: load the moving average of the weights, if the checkpoint has one.
            options: precision, views, tile, sharing, as for the class itself.

        Raises:
            UserError: the file is bad (see checkpoint.load), or is not of this network.
        """
        content = checkpoint.load(path)
        attention = checkpoint.has_direction_attention(content)
        # float32 on the CPU whatever the process has set, without drawing from its generator.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            net = SPANet(attention).float()
        checkpoint.load_weights(net, path, content, ema)
        options |= {"path": path, "step": content.get("clock", "unknown")}
        options |= {"digest": content["digest"], "direction_attention": attention}
        return cls(net.to(device).eval(), device, averaged=ema and "ema" in content, **options)

    @classmethod
    def from_settings(cls, path: Path, settings: Settings, ranks: Ranks) -> "Derainer":
        """Load a checkpoint file onto the device, and with the options, of the settings.

        Raises:
            UserError: see load and prepare_device.
        """
        options: dict[str, Any] = {"precision": settings.precision, "views": settings.self_ensemble}
        options |= {"tile": settings.tile, "sharing": ranks.local_size, "ema": not settings.no_ema}
        return cls.load(path, prepare_device(settings, ranks), **options)

    def describe_weights(self) -> str:
        """Which weights these are, for people."""
        step = f"step {self.step}" + ", moving average" * self.averaged
        return f"{self.path}, {step}, SHA-256 {self.digest[:16]}"

    @torch.inference_mode()
    def derain(
        self, image: np.ndarray, name: str = "image", on_progress: OnProgress = lambda *_: None
    ) -> DerainedImage:
        """Derain one image of any size.

        Args:
            image: (H,W,3) uint8 or uint16, BGR.
            name: what a message calls it.
            on_progress: called after each of the parts that `count_parts` counts.

        Raises:
            UserError: the image does not fit into memory, or the output is not finite.
        """
        start = time.monotonic()
        height, width = image.shape[:2]
        tile = self.choose_tile(height, width, name=name)
        parts, total = itertools.count(1), self.count_parts(height, width, name=name)
        attention = getattr(self.net, "SAM1", self.net)  # every map of which is a part

        def show_progress(*_: object) -> None:
            on_progress(next(parts), total)

        try:
            batch = self._to_batch(image)
            with attention.register_forward_hook(show_progress), self._precision_context():
                mask, derained = tiles.derain_batch(self.net, batch, self.views, tile)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._memory_error(name, height, width, tile) from None
        if not (derained.isfinite().all() and mask.isfinite().all()):
            weights = self.path or "the weights in training"
            raise UserError(f"{name}: the output of {weights} is not finite; expected others")
        needed = self._estimate_memory(height, width, tile)
        self._largest_need = max(self._largest_need, needed)
        seconds = time.monotonic() - start
        return DerainedImage(derained[0].permute(1, 2, 0).clamp_(0, 1), mask[0, 0], seconds)

    def choose_tile(self, height: int, width: int, *, name: str = "image") -> int:
        """The side of the tiles for images of that size, 0 for whole ones.

        Raises:
            UserError: they do not fit into memory; it calls them by that name.
        """
        if (height, width) == self._last_size:
            return self._last_tile
        # The blocks that one size leaves free are a little too small for another: without this the
        # process would keep more and more memory.
        self._size_changes += 1
        if self._size_changes == SIZE_CHANGES:
            machine.trim_memory()
            self._size_changes = 0
        sides = [0, *(side for side in reversed(TILE_SIDES) if side < max(height, width))]
        if self.tile != "auto":
            sides = [int(self.tile)]
        needs = [self._estimate_memory(height, width, side) for side in sides]
        free = self._free_memory()
        if needs[0] > free:
            machine.trim_memory()  # what earlier images left with the process
            free = self._free_memory()
        fitting = [side for side, need in zip(sides, needs, strict=True) if need <= free]
        if not fitting:
            raise self._memory_error(name, height, width, sides[-1])
        self._last_size, self._last_tile = (height, width), fitting[0]
        return fitting[0]

    def count_parts(self, height: int, width: int, *, name: str = "image") -> int:
        """How often `derain` calls on_progress for an image of that size; raises as it does."""
        stages = STAGES if hasattr(self.net, "SAM1") else 1
        tile = self.choose_tile(height, width, name=name)
        return stages * self.views * tiles.count_tiles(height, width, tile)

    @torch.inference_mode()
    def compare_tiles(self, image: np.ndarray, name: str = "image") -> str:
        """How far tiles are from the whole, for the first image that is cut; otherwise empty.

        It is measured on a sample, in tiles of half its side, which takes no more memory than a
        tile. Raises as choose_tile.
        """
        tile = 0 if self._tiles_compared else self.choose_tile(*image.shape[:2], name=name)
        if not tile or max(image.shape[:2]) <= tile:
            return ""
        self._tiles_compared = True
        side = min(tile, SAMPLE_SIDE)
        top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
        sample = np.ascontiguousarray(image[top : top + side, left : left + side])
        with self._precision_context():
            psnr = tiles.tile_psnr(self.net, self._to_batch(sample), side // 2, self.views)
        height, width = sample.shape[:2]
        reason = f"too large for the memory, so in tiles of {tile}; " if self.tile == "auto" else ""
        return (
            f"{reason}tiles are an approximation: on a sample of {width}x{height} pixels, tiles of "
            f"{side // 2} come within {psnr:.1f} dB PSNR of the whole (more is closer)"
        )

    def _to_batch(self, image: np.ndarray) -> Tensor:
        return to_float(torch.from_numpy(image)[None].to(self.device))

    @contextmanager
    def _precision_context(self) -> Iterator[None]:
        """Within it, torch computes in this derainer's precision, whatever the process uses."""
        cudnn = torch.backends.cudnn
        before = cudnn.allow_tf32, cudnn.benchmark
        # Images differ in size: timing cuDNN's algorithms for each would take longer than the work.
        cudnn.allow_tf32, cudnn.benchmark = self.precision == "tf32", False
        try:
            with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16"):
                yield
        finally:
            cudnn.allow_tf32, cudnn.benchmark = before

    def _estimate_memory(self, height: int, width: int, tile: int) -> int:
        return tiles.estimate_memory(height, width, tile, in_bands=self.device.type == "cpu")

    def _free_memory(self) -> int:
        """Bytes that an image can take: those that are free, or that an earlier image took."""
        return max(free_memory(self.device, self.sharing), self._largest_need)

    def _memory_error(self, name: str, height: int, width: int, tile: int) -> UserError:
        needed = self._estimate_memory(height, width, tile)
        free = free_memory(self.device, self.sharing)
        sides = [side for side in TILE_SIDES if side < (tile or max(height, width))]
        fitting = [side for side in sides if self._estimate_memory(height, width, side) <= free]
        hint = f", or --tile {fitting[-1]}" if fitting else ""
        return UserError(
            f"{name}: {width}x{height} pixels need about {needed / 2**30:.3g} GiB of memory on "
            f"{self.device}, {free / 2**30:.3g} GiB are free; expected a smaller image{hint}"
        )
