"""Session: what a run holds, whatever it does: device, ranks, network, optimiser, clock, events."""

import dataclasses
import hashlib
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import checkpoint
import inference
import machine
import report
from dataset import to_float
from events import EventFile, forget_after
from irnn_cuda import require_cupy
from model import SPANet
from ranks import Ranks
from settings import Settings, UserError, changes


class Session:
    """A run's state, the same on every rank.

    Attributes:
        clock: index of the last completed step, -1 before the first.
        best: the best score of --val-list so far ("psnr" of "step"), the step of the last one
            ("scored") and a fingerprint of that list ("list"); or None.
        run: a name of this run, resumed or not, which its event files bear.
        data: a fingerprint of the training list, kept with the checkpoint.

    Raises:
        UserError: the device asked for is not there, or cannot run the IRNN for want of CuPy.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ranks = Ranks()
        self.device = _device(settings.device, self.ranks)
        torch.set_num_threads(settings.num_threads or _threads(self.ranks))
        torch.manual_seed(settings.seed)
        if settings.precision == "tf32" and self.device.type != "cuda":
            raise UserError("--precision: tf32 is arithmetic of a GPU; expected fp32 or bf16")
        # By default off: its 10-bit products would show in the metrics.
        torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
        self.ranks.join(self.device)
        self.net = SPANet(settings.direction_attention, settings.checkpoint_activations)
        self.net.to(self.device)
        # Every parameter, in the network's order, used or not: as in a published checkpoint.
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=settings.lr)
        self.clock = -1
        self.best: dict[str, Any] | None = None
        self.run = new_run()
        self.data = ""
        self._tiles_told = False
        self._digest = ""  # of the weights that were loaded
        self._fitted = 0  # bytes that the largest image so far was reckoned to take
        self._events: dict[str, EventFile] = {}

    def path(self, name: str) -> Path:
        return Path(self.settings.model_dir) / name

    @property
    def bf16(self) -> bool:
        return self.settings.precision == "bf16"

    def network(self) -> nn.Module:
        """The network as training runs it: compiled if so set, gradients averaged over ranks."""
        net: nn.Module = self.net
        if self.settings.compile:
            net = torch.compile(net, fullgraph=True)
        if self.ranks.several:
            with self.ranks.watched():
                net = DistributedDataParallel(net)
        return net

    def save(self, name: str) -> None:
        """Save the run as it stands, on the first rank.

        Events written before outlast a power failure as the file does. Raises UserError; the file
        of that name is then untouched.
        """
        if not self.ranks.first:
            return
        for file in self._events.values():
            file.sync()
        rng: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        content = {
            "net": self.net.state_dict(),
            "clock": self.clock,
            "opt": self.optimiser.state_dict(),
            "settings": dataclasses.asdict(self.settings),
            "rng": rng,
            "best": self.best,
            "data": self.data,
            "run": self.run,
        }
        checkpoint.save(self.path(name), content)

    def load(self, name: str, resume: bool) -> None:
        """Load weights and clock; with resume, also what training needs to go on.

        Raises:
            UserError: the file is bad (see checkpoint.load), or is not of this network; with
                resume, it was trained with another recipe or list.
        """
        path = self.path(name)
        content = self.load_weights(path)
        self.clock = content["clock"]
        if resume:
            self._check_recipe(path, content)
            self._load_optimiser(path, content.get("opt"))
            self._load_rng(path, content.get("rng", {}))
            self._load_best(path, content.get("best"))
            run = content.get("run", self.run)
            if not isinstance(run, str) or not run.isalnum():
                raise UserError(f"{path}: 'run' is {run!r}; expected letters and digits")
            self.run = run

    def load_weights(self, path: Path) -> dict[str, Any]:
        """Load the weights of a checkpoint alone; returns its content. Raises as load."""
        content = checkpoint.load(path)
        _check_attention(path, content, self.settings.direction_attention)
        checkpoint.check_tensors(path, content["net"], self.net.state_dict())
        self.net.load_state_dict(content["net"])
        self._digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return content

    def _check_recipe(self, path: Path, content: dict[str, Any]) -> None:
        saved = content.get("settings")
        found = changes(saved if isinstance(saved, dict) else {}, self.settings)
        if content.get("data") not in (None, "", self.data):
            found.append("the training list names other pairs")
        if found and self.settings.allow_changed_settings:
            if self.ranks.first:
                print(f"{path}: going on with changes: {'; '.join(found)}")
        elif found:
            raise UserError(
                f"{path}: trained otherwise: {'; '.join(found)}; expected the same, "
                "or --allow-changed-settings"
            )

    def _load_best(self, path: Path, best: Any) -> None:
        kinds = {"psnr": float, "step": int, "scored": int, "list": str}
        if best is not None and not (
            isinstance(best, dict)
            and all(isinstance(best.get(key), kind) for key, kind in kinds.items())
        ):
            raise UserError(f"{path}: 'best' is {best!r}; expected a score of --val-list")
        self.best = best

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
    def derain(self, image: np.ndarray, name: str = "image") -> tuple[np.ndarray, np.ndarray]:
        """Derain one image of any size, by --self-ensemble and --tile.

        Args:
            image: (H,W,3) uint8 or uint16, BGR.
            name: how a message names it.

        Returns:
            The clean image (H,W,3) float32, BGR, clipped to 0..1, and the mask (H,W) in 0..1.

        Raises:
            UserError: the image does not fit into memory.
        """
        settings = self.settings
        needed = inference.memory(*image.shape[:2], settings.tile)
        if needed > self._fitted and needed > self._free():
            machine.return_memory()  # what earlier images left with the process
            if needed > self._free():
                raise self._too_large(image, name, needed)
        try:
            batch = to_float(torch.from_numpy(image)[None].to(self.device))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                mask, clean = inference.derain(
                    self.net, batch, settings.self_ensemble, settings.tile
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_large(image, name, needed) from None
        self._fitted = max(self._fitted, needed)
        clean = clean[0].permute(1, 2, 0).clamp_(0, 1)
        return clean.cpu().numpy(), mask[0, 0].cpu().numpy()

    @torch.inference_mode()
    def tile_note(self, image: np.ndarray) -> str:
        """How far tiles are from the whole, the first time that an image was cut; else nothing.

        Told of a sample, in tiles of half its side: memory need not hold more than before.
        """
        tile = self.settings.tile
        if self._tiles_told or not tile or max(image.shape[:2]) <= tile:
            return ""
        self._tiles_told = True
        side = min(tile, 1024)
        top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
        sample = np.ascontiguousarray(image[top : top + side, left : left + side])
        batch = to_float(torch.from_numpy(sample)[None].to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            psnr = inference.tile_psnr(self.net, batch, side // 2, self.settings.self_ensemble)
        height, width = sample.shape[:2]
        return (
            f"tiles are an approximation: a sample of {width}x{height} pixels in tiles of "
            f"{side // 2} is {psnr:.1f} dB from the same whole"
        )

    def _free(self) -> int:
        if self.device.type == "cuda":
            kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return torch.cuda.mem_get_info()[0] + kept
        return machine.free_memory() // self.ranks.local_size  # which go on at the same time

    def _too_large(self, image: np.ndarray, name: str, needed: int) -> UserError:
        (height, width), free = image.shape[:2], self._free()
        largest = self.settings.tile or max(height, width)
        tiles = [side for side in (1024, 512, 256, 128, 64) if side < largest]
        fitting = [side for side in tiles if inference.memory(height, width, side) <= free]
        hint = f", or --tile {fitting[0]}" if fitting else ""
        return UserError(
            f"{name}: {width}x{height} pixels need about {needed / 2**30:.3g} GiB of memory on "
            f"{self.device}, {free / 2**30:.3g} GiB are free; expected a smaller image{hint}"
        )

    def about(self, seconds: float) -> list[tuple[str, str]]:
        """What was run, for a report."""
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        else:
            device = f"{machine.processor()}, {torch.get_num_threads()} threads"
        if self.ranks.several:
            device = f"{self.ranks.world_size} ranks, each on {device}"
        path = self.path(self.settings.model)
        model = f"{path}, step {self.clock}, SHA-256 {self._digest}"
        return report.about(model, device, seconds)

    def memory(self) -> float:
        """MiB that this process has taken at most, of the GPU where it computes on one."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return machine.peak_memory()

    def events(self, name: str) -> EventFile:
        """The event file of that name under the log folder, made when first asked for."""
        if name not in self._events:
            self._events[name] = EventFile(Path(self.settings.log_dir) / name, self.run)
        return self._events[name]

    def forget_later_events(self, *names: str) -> None:
        """Cut off this run's events of steps after the clock, which a resume writes anew."""
        if self.ranks.first:
            for name in names:
                forget_after(Path(self.settings.log_dir) / name, self.run, self.clock)

    def close(self) -> None:
        for file in self._events.values():
            file.close()
        self.ranks.leave()


def new_run() -> str:
    return secrets.token_hex(4)


def _threads(ranks: Ranks) -> int:
    if ranks.several:  # torchrun sets OMP_NUM_THREADS to 1 where it is not set
        return max(1, machine.cores() // ranks.local_size)
    # torch heeds OMP_NUM_THREADS, but not the quota of a container.
    return min(torch.get_num_threads(), machine.cores())


def _device(name: str, ranks: Ranks) -> torch.device:
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
        if ranks.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {ranks.rank}: no GPU {ranks.local_rank} on this machine, which has "
                f"{torch.cuda.device_count()}; expected --nproc-per-node of at most as many"
            )
        torch.cuda.set_device(ranks.local_rank)
        return torch.device("cuda", ranks.local_rank)
    return torch.device(name)


def _own_groups(found: Any, own: dict[str, Any]) -> dict[str, Any]:
    """The moments of a saved optimiser with this one's own settings: those are of the run."""
    (saved,) = found["param_groups"]
    (group,) = own["param_groups"]
    pairs = zip(group["params"], saved["params"], strict=True)
    state = {ours: found["state"][theirs] for ours, theirs in pairs if theirs in found["state"]}
    return {"state": state, "param_groups": [group]}


def is_out_of_memory(error: Exception) -> bool:
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
