"""Derainer: a network at work. An image goes in, the clean image and the attention map come out."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from system.reading import read_bytes

CHANGES = 16  # of the size, after which freed memory goes back to the system
Tick = Callable[[int], None]  # told how many parts of the work are done since the last call


class Derained:
    """A derained image on the device that made it; what is asked of it is fetched from there."""

    def __init__(self, clean: Tensor, mask: Tensor) -> None:
        self._clean, self._mask = clean, mask

    @property
    def float_image(self) -> np.ndarray:
        """The clean image (H,W,3) float32, BGR, in 0..1."""
        return self._clean.cpu().numpy()

    @property
    def uint8_image(self) -> np.ndarray:
        """The clean image (H,W,3) uint8, BGR."""
        return self._clean.mul(255).round_().to(torch.uint8).cpu().numpy()

    @property
    def mask(self) -> np.ndarray:
        """The attention map (H,W) float32 in 0..1."""
        return self._mask.cpu().numpy()


class Derainer:
    """A network with its weights on a device, in a precision, by views and tiles.

    Attributes:
        net: the network.
        device: where it is, and computes.
        path, step, digest: the checkpoint file of its weights, the step that they are of, and the
            beginning of the file's SHA-256; empty where the network is one in training.
        direction_attention: whether those weights need the paper's.
    """

    path: Path | None = None
    step = -1
    digest = ""
    direction_attention = False

    def __init__(
        self,
        net: SPANet,
        device: torch.device,
        *,
        precision: str = "fp32",
        views: int = 1,
        tile: int = 0,
        sharing: int = 1,
    ) -> None:
        """
        Args:
            precision: of the network's arithmetic: "fp32", "tf32" (on a GPU) or "bf16".
            views: 1, or the mean over 2 (mirrored) or 4 (also half-turned) views of an image.
            tile: side of blended tiles, in pixels; 0 takes every image whole.
            sharing: processes of this machine that derain at the same time.
        """
        self.net, self.device, self.precision = net, device, precision
        self.views, self.tile, self.sharing = views, tile, sharing
        self._tiles_told = False
        self._fitted = 0  # bytes that the largest image so far was reckoned to take
        self._size, self._changes = (0, 0), 0  # of the last image; images of another than before

    @classmethod
    def load(cls, path: Path, device: torch.device, **ways: Any) -> "Derainer":
        """A derainer with the weights of a checkpoint file; whether they need the paper's direction
        attention is read from it.

        Args:
            ways: precision, views, tile, sharing, as for the class itself.

        Raises:
            UserError: the file is bad (see checkpoint.load), or is not of this network.
        """
        content = checkpoint.load(path)
        attention = checkpoint.has_direction_attention(content)
        net = SPANet(attention)
        checkpoint.load_weights(net, path, content)
        derainer = cls(net.to(device).eval(), device, **ways)
        derainer.path, derainer.step = path, content["clock"]
        derainer.direction_attention = attention
        derainer.digest = hashlib.sha256(read_bytes(path)).hexdigest()[:16]
        return derainer

    @classmethod
    def by_settings(cls, path: Path, settings: Settings, ranks: Ranks) -> "Derainer":
        """A derainer of a checkpoint file, on the device and in the ways that the settings choose.

        Raises:
            UserError: see load and device.prepare.
        """
        device = prepare_device(settings, ranks)
        checkpoint.require_checkpoint(path)
        return cls.load(
            path,
            device,
            precision=settings.precision,
            views=settings.self_ensemble,
            tile=settings.tile,
            sharing=ranks.local_size,
        )

    def about(self) -> str:
        """Which weights these are, for people."""
        return f"{self.path}, step {self.step}, SHA-256 {self.digest}"

    def __call__(
        self, image: np.ndarray, name: str = "image", tick: Tick | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Derain one image, as `derained` does.

        Returns:
            The clean image (H,W,3) float32, BGR, clipped to 0..1, and the mask (H,W) in 0..1.
        """
        found = self.derained(image, name, tick)
        return found.float_image, found.mask

    @torch.inference_mode()
    def derained(
        self, image: np.ndarray, name: str = "image", tick: Tick | None = None
    ) -> Derained:
        """Derain one image of any size.

        Args:
            image: (H,W,3) uint8 or uint16, BGR.
            name: how a message names it.
            tick: told of progress, in all as many parts as `parts` says.

        Raises:
            UserError: the image does not fit into memory.
        """
        self._return_holes(image.shape[:2])
        needed = tiles.estimate_memory(*image.shape[:2], self.tile)
        if needed > self._fitted and needed > free_memory(self.device, self.sharing):
            machine.trim_memory()  # what earlier images left with the process
            if needed > free_memory(self.device, self.sharing):
                raise self._too_large(image, name, needed)
        try:
            batch = to_float(torch.from_numpy(image)[None].to(self.device))
            with self._telling(tick), self._arithmetic():
                mask, clean = tiles.derain_tiled(self.net, batch, self.views, self.tile)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_large(image, name, needed) from None
        if not (clean.isfinite().all() and mask.isfinite().all()):
            weights = self.path or "the weights in training"
            raise UserError(
                f"{name}: what {weights} make of it is not finite, so that there is no picture; "
                "expected other weights"
            )
        self._fitted = max(self._fitted, needed)
        return Derained(clean[0].permute(1, 2, 0).clamp_(0, 1), mask[0, 0])

    def _return_holes(self, size: tuple[int, int]) -> None:
        """Give memory back now and then where images differ in size.

        What one size leaves free, another does not quite fit: by and by, what is kept would be
        mostly holes.
        """
        self._changes += size != self._size
        self._size = size
        if self._changes == CHANGES:
            machine.trim_memory()
            self._changes = 0

    def parts(self, height: int, width: int) -> int:
        """How many parts of the work an image of that size has, for a tick."""
        stages = STAGES if hasattr(self.net, "SAM1") else 1
        return stages * self.views * tiles.count_tiles(height, width, self.tile)

    @contextmanager
    def _telling(self, tick: Tick | None) -> Iterator[None]:
        """Within it, tick(1) at every attention map, a quarter of the network's way."""
        if tick is None:
            yield
            return
        marked = getattr(self.net, "SAM1", self.net)
        hook = marked.register_forward_hook(lambda *_: tick(1))
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Within it, the precision is this derainer's, whatever the process computes in."""
        cudnn = torch.backends.cudnn
        before = cudnn.allow_tf32, cudnn.benchmark
        # Images differ in size: trying cuDNN's ways for each would take longer than the work.
        cudnn.allow_tf32, cudnn.benchmark = self.precision == "tf32", False
        try:
            with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16"):
                yield
        finally:
            cudnn.allow_tf32, cudnn.benchmark = before

    @torch.inference_mode()
    def tile_note(self, image: np.ndarray) -> str:
        """How far tiles are from the whole, the first time that an image was cut; else nothing.

        Told of a sample, in tiles of half its side: memory need not hold more than before.
        """
        if self._tiles_told or not self.tile or max(image.shape[:2]) <= self.tile:
            return ""
        self._tiles_told = True
        side = min(self.tile, 1024)
        top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
        sample = np.ascontiguousarray(image[top : top + side, left : left + side])
        batch = to_float(torch.from_numpy(sample)[None].to(self.device))
        with self._arithmetic():
            psnr = tiles.tile_psnr(self.net, batch, side // 2, self.views)
        height, width = sample.shape[:2]
        return (
            f"tiles are an approximation: on a sample of {width}x{height} pixels, tiles of "
            f"{side // 2} come within {psnr:.1f} dB PSNR of the whole (more is closer)"
        )

    def _too_large(self, image: np.ndarray, name: str, needed: int) -> UserError:
        (height, width), free = image.shape[:2], free_memory(self.device, self.sharing)
        largest = self.tile or max(height, width)
        smaller = [side for side in (1024, 512, 256, 128, 64) if side < largest]
        fitting = [side for side in smaller if tiles.estimate_memory(height, width, side) <= free]
        hint = f", or --tile {fitting[0]}" if fitting else ""
        return UserError(
            f"{name}: {width}x{height} pixels need about {needed / 2**30:.3g} GiB of memory on "
            f"{self.device}, {free / 2**30:.3g} GiB are free; expected a smaller image{hint}"
        )
