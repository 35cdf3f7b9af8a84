"""Session: what a run holds, whatever it does: device, network, optimiser, clock, events."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import checkpoint
import machine
from dataset import to_float
from events import EventFile
from irnn_cuda import require_cupy
from model import SPANet
from settings import Settings, UserError


class Session:
    """A run's state. `clock` is the index of the last completed step, -1 before the first.

    Raises:
        UserError: the device asked for is not there, or cannot run the IRNN for want of CuPy.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = _device(settings.device)
        # torch heeds OMP_NUM_THREADS, but not the quota of a container.
        threads = settings.num_threads or min(torch.get_num_threads(), machine.cores())
        torch.set_num_threads(threads)
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.allow_tf32 = False  # its 10-bit products would show in the metrics
        self.net = SPANet(settings.direction_attention, settings.checkpoint_activations)
        self.net.to(self.device)
        # Every parameter, in the network's order, used or not: as in a published checkpoint.
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=settings.lr)
        self.clock = -1
        self._events: dict[str, EventFile] = {}

    def path(self, name: str) -> Path:
        return Path(self.settings.model_dir) / name

    def save(self, name: str) -> None:
        """Save the run as it stands. Raises UserError; the file of that name is then untouched."""
        rng: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        content = {
            "net": self.net.state_dict(),
            "clock": self.clock,
            "opt": self.optimiser.state_dict(),
            "settings": dataclasses.asdict(self.settings),
            "rng": rng,
        }
        checkpoint.save(self.path(name), content)

    def load(self, name: str, resume: bool) -> None:
        """Load weights and clock; with resume, also what training needs to go on.

        Raises:
            UserError: the file is bad (see checkpoint.load), or is not of this network.
        """
        path = self.path(name)
        content = checkpoint.load(path)
        _check_attention(path, content, self.settings.direction_attention)
        _check_tensors(path, content["net"], self.net.state_dict())
        self.net.load_state_dict(content["net"])
        self.clock = content["clock"]
        if resume:
            self._load_optimiser(path, content.get("opt"))
            self._load_rng(path, content.get("rng", {}))

    def _load_optimiser(self, path: Path, state: Any) -> None:
        if state is None:
            raise UserError(f"{path}: holds weights alone, no optimiser to go on training with")
        try:
            self.optimiser.load_state_dict(_own_groups(state, self.optimiser.state_dict()))
            for parameter, moments in self.optimiser.state.items():
                for key in ("exp_avg", "exp_avg_sq"):
                    if moments[key].shape != parameter.shape or not moments[key].isfinite().all():
                        raise ValueError(f"{key} of {tuple(moments[key].shape)}, or not finite")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: its optimiser state is not that of this network: {error}"
            ) from None

    def _load_rng(self, path: Path, state: Any) -> None:
        try:
            if "torch" in state:
                torch.set_rng_state(state["torch"])
            if "cuda" in state and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], self.device)
        except (TypeError, RuntimeError) as error:
            raise UserError(f"{path}: its state of random numbers is damaged: {error}") from None

    @torch.inference_mode()
    def derain(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Derain one image of any size.

        Args:
            image: (H,W,3) uint8, BGR.

        Returns:
            The clean image (H,W,3) float32, BGR, clipped to 0..1, and the mask (H,W) in 0..1.

        Raises:
            UserError: the image does not fit into memory.
        """
        try:
            batch = to_float(torch.from_numpy(image)[None].to(self.device))
            mask, clean = self.net(batch)
            clean = clean[0].permute(1, 2, 0).clamp(0, 1)
            return clean.cpu().numpy(), mask[0, 0].cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            raise UserError(
                f"not enough memory on {self.device} for an image of "
                f"{image.shape[1]}x{image.shape[0]} pixels"
            ) from None

    def events(self, name: str) -> EventFile:
        """The event file of that name under the log folder, made when first asked for."""
        if name not in self._events:
            self._events[name] = EventFile(Path(self.settings.log_dir) / name)
        return self._events[name]

    def close(self) -> None:
        for file in self._events.values():
            file.close()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        build = torch.version.cuda
        reason = f"torch {torch.__version__} finds no GPU" if build else "torch is a CPU build"
        raise UserError(f"--device: cuda asked for, but {reason}; expected auto or cpu")
    if name == "cuda" and torch.version.hip is None:
        try:
            require_cupy()
        except ImportError as error:
            raise UserError(f"--device: {error}; or choose --device cpu") from None
    return torch.device(name)


def _own_groups(found: Any, own: dict[str, Any]) -> dict[str, Any]:
    """The moments of a saved optimiser with this one's own settings: those are of the run."""
    (saved,) = found["param_groups"]
    (group,) = own["param_groups"]
    pairs = zip(group["params"], saved["params"], strict=True)
    state = {ours: found["state"][theirs] for ours, theirs in pairs if theirs in found["state"]}
    return {"state": state, "param_groups": [group]}


def _is_out_of_memory(error: Exception) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def _check_attention(path: Path, content: dict[str, Any], wanted: bool) -> None:
    settings = content.get("settings")
    found = settings.get("direction_attention") if isinstance(settings, dict) else None
    if bool(found) != wanted:  # absent in a published checkpoint, which was trained without
        words = ("without", "with")
        option = "--direction-attention" if found else "--no-direction-attention"
        raise UserError(
            f"{path}: trained {words[bool(found)]} direction attention, this run is "
            f"{words[wanted]}; expected {option}"
        )


def _check_tensors(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    if missing or extra:
        parts = [_listed("lacks", missing), _listed("has unknown", extra)]
        raise UserError(f"{path}: not of this network: {'; '.join(part for part in parts if part)}")
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            raise UserError(
                f"{path}: {key} is {tuple(found[key].shape)}; expected {tuple(tensor.shape)}"
            )
        if not found[key].isfinite().all():
            raise UserError(f"{path}: {key} holds values that are not finite")


def _listed(word: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{word} {', '.join(keys[:3])}{more}"
