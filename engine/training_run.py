"""TrainingRun: what training holds and a checkpoint keeps. The network at work is a Derainer."""

import copy
import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cal_ssim import SSIM
from engine import checkpoint
from engine.derainer import Derainer
from engine.device import count_workers, prepare_device
from engine.events import EventFile
from engine.ranks import Ranks
from engine.training_step import TERMS, ema_decay
from model import SPANet
from settings import Settings, UserError, flag


class TrainingRun:
    """A run in training, the same on every rank: network, optimiser, step, best score, events.

    Attributes:
        net, ema: the network in training, and one with the moving average of its weights, or None.
        ssim: the similarity of images in the loss.
        step: index of the last completed step, -1 before the first ("clock" in checkpoints).
        best: the best score of --val-list so far ("psnr" of "step"), the step of the last one
            ("scored"), a fingerprint of that list ("list") and the protocol ("protocol"); or None.
        data, val_data: fingerprints of the training list and of --val-list.
        init: the file of --init-from that the run began with, and its SHA-256; empty if none.
        events: the event files by name, on the first rank; see open_events.

    Raises:
        UserError: see device.prepare_device.
    """

    def __init__(self, settings: Settings, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.device = prepare_device(settings, self.ranks)
        workers = count_workers(settings, self.device, self.ranks)
        self.settings = dataclasses.replace(settings, num_workers=workers)
        torch.manual_seed(settings.seed)
        # Crops have one size: cuDNN may time its algorithms and keep the fastest. Some of them
        # change the last bits of the gradient of a convolution's weights from run to run.
        torch.backends.cudnn.benchmark = not settings.deterministic
        torch.backends.cudnn.deterministic = settings.deterministic
        self.net = SPANet(settings.direction_attention, settings.checkpoint_activations)
        self.net.to(self.device)
        self.ema = copy.deepcopy(self.net).requires_grad_(False) if settings.ema else None
        self.ssim = SSIM().to(self.device)
        # All parameters in the network's order, used or not: as in a published checkpoint. The
        # fused kernels of a GPU need no synchronisation.
        fused = self.device.type == "cuda"
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=settings.lr, fused=fused)
        self.step = -1
        self.best: dict[str, Any] | None = None
        self.data = self.val_data = ""
        self.init = "", ""
        self.events: dict[str, EventFile] = {}
        self._pending_save: Future[None] | None = None

    @property
    def max_pending_steps(self) -> int:
        """Steps that may be launched and not yet collected while nothing is due.

        Only fused Adam, on a GPU, can skip a step that is not finite before anyone has read that.
        """
        return 1 if self.device.type == "cuda" else 0

    def path(self, name: str) -> Path:
        """Where the run saves the checkpoint of that name."""
        return Path(self.settings.model_dir) / name

    def wrap_net(self) -> nn.Module:
        """The network as training runs it: compiled if so set, gradients averaged over ranks."""
        net: Any = torch.compile(self.net, fullgraph=True) if self.settings.compile else self.net
        if self.ranks.is_distributed:
            with self.ranks.translate_dist_errors():
                return DistributedDataParallel(net, gradient_as_bucket_view=True)
        return net

    def update_ema(self, step: int) -> None:
        """Take the weights as this step left them into their moving average, if there is one."""
        if self.ema:
            average = get_ema_multi_avg_fn(ema_decay(self.settings, step))
            average(list(self.ema.parameters()), list(self.net.parameters()), step)

    def derainer(self) -> Derainer:
        """A derainer with the network as it stands, or with the moving average of its weights."""
        settings = self.settings
        options = settings.precision, settings.self_ensemble, settings.tile, self.ranks.local_size
        return Derainer(self.ema or self.net, self.device, *options)

    def start_save(self, name: str) -> None:
        """Save the run as it stands, on the first rank, in a thread beside the next steps.

        Saves end in the order in which they were started. An EventFile has written its events when
        its method returns, so none up to this step is missing on the disk beside this checkpoint.
        Raises UserError if the save before has failed; the file of its name is then untouched.
        """
        self.finish_save()
        if self.ranks.is_first:
            content: dict[str, Any] = {
                "net": self.net.state_dict(),
                "clock": self.step,
                "opt": self.optimiser.state_dict(),
                "settings": dataclasses.asdict(self.settings),
                "best": self.best,
                "data": self.data,
                "init": self.init,
                "loss": list(TERMS),
            }
            if self.ema:
                content["ema"] = self.ema.state_dict()
            # The next steps overwrite these tensors: the thread gets a copy.
            content, path = copy.deepcopy(content), self.path(name)
            is_cuda = self.device.type == "cuda"
            copied = torch.cuda.current_stream(self.device).record_event() if is_cuda else None
            # A pool for each save: its thread has ended when processes are forked to score.
            pool = ThreadPoolExecutor(1)
            self._pending_save = pool.submit(self._write, path, content, copied)
            pool.shutdown(wait=False)

    def _write(self, path: Path, content: dict[str, Any], copied: torch.cuda.Event | None) -> None:
        if not copied:
            checkpoint.save(path, content)
            return
        # On a stream of its own the way to the host does not queue behind the next steps.
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            stream.wait_event(copied)
            checkpoint.save(path, content)

    def finish_save(self) -> None:
        """Wait until the save in progress, if any, has ended. Raises UserError if it has failed."""
        save, self._pending_save = self._pending_save, None
        if save:
            save.result()

    def load_weights(self, path: Path) -> None:
        """Start from the weights of a checkpoint, as they derain. Raises as resume."""
        content = checkpoint.load(path)
        self._load_networks(path, content)
        self.init = str(path), content["digest"]

    def _load_networks(self, path: Path, content: dict[str, Any], averaged: bool = True) -> None:
        """Load weights into the network, see checkpoint.load_weights, and their moving average."""
        attention = checkpoint.has_direction_attention(content)
        if attention != self.settings.direction_attention:
            option = "--direction-attention" if attention else "--no-direction-attention"
            raise UserError(f"{path}: its direction attention is not this run's; expected {option}")
        checkpoint.load_weights(self.net, path, content, averaged)
        if self.ema:
            checkpoint.load_weights(self.ema, path, content)

    def resume(self, path: Path) -> None:
        """Load all that training needs to continue after the step of a checkpoint.

        Raises:
            UserError: the file is bad (see checkpoint.load), is not of this network, or was
                trained with another recipe or list.
        """
        content = checkpoint.load(path)
        self._load_networks(path, content, averaged=False)
        if "opt" not in content:
            raise UserError(
                f"{path}: holds only weights, and no optimiser state to resume training from"
            )
        changes = find_changes(content.get("settings") or {}, self.settings)
        if content.get("data") not in (None, "", self.data):
            changes.append("the training list names other pairs")
        former_terms = content.get("loss", TERMS)  # of older checkpoints by weight, or not there
        if set(former_terms) != set(TERMS):
            changes.append(f"the loss is {' + '.join(TERMS)}, was {' + '.join(former_terms)}")
        listed = "; ".join(changes)
        if changes and not self.settings.allow_changed_settings:
            raise UserError(
                f"{path}: was trained with other settings: {listed}; expected the same, --run NAME "
                "for a new run, or --allow-changed-settings to go on with this one"
            )
        if changes:
            self.ranks.say(f"{path}: going on with changes: {listed}")
        with checkpoint.translate_load_errors(path):
            best, self.step = content.get("best"), content["clock"]
            file, digest = content.get("init", self.init)
            self.init = str(file), str(digest)
            kinds = {"psnr": float, "step": int, "scored": int, "list": str, "protocol": str}
            if best:  # older checkpoints lack the protocol
                best = {"protocol": "released"} | best
                self.best = {key: kind(best[key]) for key, kind in kinds.items()}
            self._load_moments(content["opt"])

    def _load_moments(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a saved optimiser, but not its options, which are this run's."""
        (saved,) = state_dict["param_groups"]
        (group,) = self.optimiser.state_dict()["param_groups"]
        group["params"] = saved["params"]
        self.optimiser.load_state_dict({"state": state_dict["state"], "param_groups": [group]})
        for weight, state in self.optimiser.state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                moment = state[key]
                if moment.shape != weight.shape or not moment.isfinite().all():
                    raise ValueError(f"{key} of the optimiser is not finite or of another shape")
                # In the layout of the weight: that of a published checkpoint is another.
                state[key] = torch.empty_like(weight).copy_(moment)

    def open_events(self, *names: str) -> None:
        """Begin event files of those names under the log folder, on the first rank.

        A run that was killed has written events of steps that its last checkpoint does not hold:
        readers drop them.
        """
        for name in names if self.ranks.is_first else ():
            self.events[name] = EventFile(Path(self.settings.log_dir) / name, self.step + 1)

    def close(self) -> None:
        if self._pending_save:  # an error ended the run meanwhile, and is the one to report
            wait([self._pending_save])
        for file in self.events.values():
            file.close()


def find_changes(saved: dict[str, Any], settings: Settings) -> list[str]:
    """What of the recipe differs from saved settings, as `--lr is 0.1, was 0.2`.

    A published checkpoint saved none: nothing differs. A setting that an older one lacks counts as
    today's default.
    """
    changes = []
    # A cosine ends with the run.
    is_cosine = settings.schedule == saved.get("schedule") == "cosine"
    for field in dataclasses.fields(Settings) if saved else ():
        value, former = getattr(settings, field.name), saved.get(field.name, field.default)
        is_recipe = field.metadata["recipe"] or (is_cosine and field.name == "num_steps")
        if is_recipe and former != value:
            changes.append(f"{flag(field.name)} is {value}, was {former}")
    return changes
