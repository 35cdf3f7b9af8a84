"""The way in from Python: torch.hub's entry points, or a plain import with this folder on the path.

import torch
derain = torch.hub.load("FOLDER", "derainer", source="local", weights="model/demo")
clean = derain(rainy)       # (H,W,3) uint8 RGB, as Pillow and matplotlib have it
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent
MODULES = "settings model dataset cal_ssim irnn_cuda engine media system"
for _name in MODULES.split():
    _path = getattr(sys.modules.get(_name), "__file__", None)
    if _path and ROOT not in Path(_path).resolve().parents:
        raise ImportError(
            f"SPANet's module {_name!r} cannot be imported beside {_path}, of the same name; "
            "load SPANet in a process of its own, or rename that module"
        )

from system import machine

machine.share_cores()

import numpy as np
import torch

from engine.derainer import Derainer
from engine.device import choose_device
from model import SPANet
from settings import Settings, UserError

dependencies = ["torch", "numpy", "numba"]

Image = np.ndarray


def spanet(weights: str | Path | None = None, direction_attention: bool = False) -> SPANet:
    """The network as a module of PyTorch, on the CPU. train() and eval() make no difference to it.

    It takes (N,3,H,W) float32 in 0..1, in **BGR** order, and returns the mask (N,1,H,W) in 0..1 and
    the clean image (N,3,H,W), BGR, not clamped.

    Args:
        weights: a checkpoint file, looked for in the working folder, then in this one. None leaves
            the initial values, drawn by torch's generator.
        direction_attention: weigh the directions of the IRNN as the paper does. Where there are
            weights, what they were trained with decides.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of SPANet.
    """
    if weights is None:
        return SPANet(direction_attention)
    return Derainer.load(_find_checkpoint(weights), torch.device("cpu")).net.train()


def derainer(
    weights: str | Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "tf32", "bf16"] = "fp32",
    self_ensemble: Literal[1, 2, 4] = 1,
    tile: int = 0,
) -> Callable[..., Image | tuple[Image, Image]]:
    """A function that derains pictures.

    It takes a rainy picture, (H,W,3) uint8 in **RGB** order, of any size, and returns the clean
    one, of the same size, type and order. With return_mask=True it returns the attention map as
    well: (H,W) float32, 0 where the network sees no rain and 1 where it does.

    Args:
        weights: a checkpoint file, looked for in the working folder, then in this one.
        device: "auto" takes the GPU where there is one.
        precision: of the network's arithmetic; tf32 needs a GPU.
        self_ensemble: 1, or the mean over 2 (mirrored) or 4 (also half-turned) views.
        tile: side of blended tiles in pixels, for pictures that memory does not hold; 0: whole.

    Raises:
        UserError: an argument or the file is bad; from the function, the picture does not fit into
            memory.
        TypeError, ValueError: from the function, what it was given is not (H,W,3) uint8.
    """
    # Checks the values. Threads, ranks and the current GPU are the caller's, and left alone.
    Settings("derain", device=device, precision=precision, self_ensemble=self_ensemble, tile=tile)
    network = Derainer.load(
        _find_checkpoint(weights), choose_device(device, precision), precision=precision,
        views=self_ensemble, tile=tile,
    )  # fmt: skip

    def derain(rainy: Image, return_mask: bool = False) -> Image | tuple[Image, Image]:
        if not isinstance(rainy, np.ndarray):
            raise TypeError(f"derain: expected a NumPy array, got {type(rainy).__name__}")
        if rainy.dtype != np.uint8 or rainy.ndim != 3 or rainy.shape[2] != 3 or not rainy.size:
            raise ValueError(
                f"derain: expected (H,W,3) uint8 in RGB order, got {rainy.shape} {rainy.dtype}"
            )
        output = network.derain(np.ascontiguousarray(rainy[..., ::-1]))
        clean = np.ascontiguousarray(output.uint8_image[..., ::-1])
        return (clean, output.mask) if return_mask else clean

    return derain


def _find_checkpoint(weights: str | Path) -> Path:
    paths = [Path(weights), ROOT / weights]  # the same if weights is absolute
    for path in paths:
        if path.exists():
            return path
    names = " and ".join(dict.fromkeys(map(str, paths)))
    raise UserError(f"{weights}: no such checkpoint (looked for {names})")
