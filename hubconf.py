"""The way in from Python: torch.hub's entry points, or a plain import with this folder on the path.

import torch
derain = torch.hub.load("FOLDER", "derainer", source="local", weights="model/demo")
clean = derain(rainy)       # (H,W,3) uint8 RGB, as Pillow and matplotlib have it

Our modules have everyday names, such as `model` and `settings`, which a user's own may have too. So
they are imported as parts of a package of another name, and import each other from there.
"""

import builtins
import importlib
import os
import sys
import types
import warnings
import zlib
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent
PACKAGE = f"spanet_{zlib.crc32(os.fsencode(ROOT)):08x}"  # another copy of SPANet has another
NAMES = {path.stem for path in ROOT.glob("*.py")} | {
    path.parent.name for path in ROOT.glob("*/*.py")
}


def _import(
    name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
) -> types.ModuleType:
    """What an import statement within our modules calls: __import__, with our names as ours."""
    top = name.partition(".")[0]
    if level or top not in NAMES:
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f"{PACKAGE}.{name}", globals, locals, fromlist or ["*"], 0)
    return module if fromlist else sys.modules[f"{PACKAGE}.{top}"]


class _Loader(SourceFileLoader):
    """Runs a module with an __import__ of its own."""

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


class _Finder:
    """Finds the modules of the package."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name.startswith(f"{PACKAGE}.") else None
        if spec and spec.origin:
            spec.loader = _Loader(name, spec.origin)
        return spec


if PACKAGE not in sys.modules:
    sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
    sys.modules[PACKAGE].__path__ = [str(ROOT)]
    sys.meta_path.insert(0, _Finder)


def _load(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


_load("system.machine").share_cores()

import numpy as np
import torch

UserError = _load("settings").UserError
Derainer = _load("engine.derainer").Derainer
SPANet = _load("model").SPANet
measure = _load("report.metrics").measure  # the third entry point

dependencies = ["torch", "numpy", "numba"]

Image = np.ndarray


def spanet(weights: str | Path | None = None, direction_attention: bool = False) -> torch.nn.Module:
    """The network as a module of PyTorch, on the CPU. train() and eval() make no difference to it.

    It takes (N,3,H,W) float32 in 0..1, in **BGR** order, and returns the mask (N,1,H,W) in 0..1 and
    the clean image (N,3,H,W), BGR, not clamped.

    Args:
        weights: a checkpoint file, looked for in the working folder, then in this one. None leaves
            the initial values, drawn by torch's generator; with weights nothing is drawn.
        direction_attention: weigh the directions of the IRNN as the paper does. Where there are
            weights, what they were trained with decides.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of SPANet.
    """
    if weights is None:
        with torch.device("cpu"):
            return SPANet(direction_attention).float()
    return Derainer.load(_find_checkpoint(weights), torch.device("cpu")).net.train()


def derainer(
    weights: str | Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "tf32", "bf16"] = "fp32",
    self_ensemble: Literal[1, 2, 4] = 1,
    tile: int | Literal["auto"] = "auto",
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
        tile: side of blended tiles in pixels; 0: whole pictures alone; "auto": whole ones, or the
            largest tiles that fit into memory, with a warning that says how exact they are.

    Raises:
        UserError: an argument or the file is bad; from the function, the picture does not fit into
            memory.
        TypeError, ValueError: from the function, what it was given is not (H,W,3) uint8.
    """
    # Checks the values. Threads, ranks and the current GPU are the caller's, and left alone.
    _load("settings").Settings(
        "derain", device=device, precision=precision, self_ensemble=self_ensemble, tile=str(tile)
    )
    path, place = _find_checkpoint(weights), _load("engine.device").choose_device(device, precision)
    network = Derainer.load(path, place, precision=precision, views=self_ensemble, tile=tile)
    process = os.getpid()

    def derain(rainy: Image, return_mask: bool = False) -> Image | tuple[Image, Image]:
        if not isinstance(rainy, np.ndarray):
            raise TypeError(f"derain: expected a NumPy array, got {type(rainy).__name__}")
        if rainy.dtype != np.uint8 or rainy.ndim != 3 or rainy.shape[2] != 3 or not rainy.size:
            raise ValueError(
                f"derain: expected (H,W,3) uint8 in RGB order, got {rainy.shape} {rainy.dtype}"
            )
        if os.getpid() != process:  # forked: torch's threads are not there, and would be waited for
            torch.set_num_threads(1)
        image = np.ascontiguousarray(rainy[..., ::-1])
        output = network.derain(image)
        if tile == "auto" and (note := network.compare_tiles(image)):
            warnings.warn(note, stacklevel=2)
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
