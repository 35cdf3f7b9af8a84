"""TrainingRun: what training holds and a checkpoint keeps. The network at work is a Derainer."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine import checkpoint
from engine.derainer import Derainer
from engine.device import prepare_device
from engine.events import EventFile, forget_after, new_run
from engine.ranks import Ranks
from engine.resuming import best_score, optimiser_state, require_random_state, run_name
from model import SPANet
from settings import Settings, UserError, flag


class TrainingRun:
    """A run in training, the same on every rank: network, optimiser, clock, best score, events.

    Attributes:
        clock: index of the last completed step, -1 before the first.
        best: the best score of --val-list so far ("psnr" of "step"), the step of the last one
            ("scored") and a fingerprint of that list ("list"); or None.
        run: a name of this run, resumed or not, which its event files bear.
        data, val_data: fingerprints of the training list and of --val-list.

    Raises:
        UserError: see device.prepare.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ranks = Ranks()
        self.device = prepare_device(settings, self.ranks)
        torch.manual_seed(settings.seed)
        # Crops have one size: cuDNN may try its ways and keep the quickest. Some of them give the
        # gradient of a convolution's weights other last bits from run to run.
        torch.backends.cudnn.benchmark = not settings.deterministic
        torch.backends.cudnn.deterministic = settings.deterministic
        self.net = SPANet(settings.direction_attention, settings.checkpoint_activations)
        self.net.to(self.device)
        # Every parameter, in the network's order, used or not: as in a published checkpoint. The
        # fused kernels of a GPU need not be waited for.
        fused = self.device.type == "cuda"
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=settings.lr, fused=fused)
        self.step = -1
        self.best: dict[str, Any] | None = None
        self.run = new_run()
        self.data = self.val_data = ""
        self._events: dict[str, EventFile] = {}

    @property
    def max_pending_steps(self) -> int:
        """Steps that may be launched and not yet collected while nothing is due: 1 on one GPU.

        With several ranks it is 0: the sums over the ranks would queue behind the next step.
        """
        return int(self.optimiser.defaults["fused"] and not self.ranks.is_distributed)

    def path(self, name: str) -> Path:
        """Where the run saves the checkpoint of that name."""
        return Path(self.settings.model_dir) / name

    @property
    def bf16(self) -> bool:
        return self.settings.precision == "bf16"

    def network(self) -> nn.Module:
        """The network as training runs it: compiled if so set, gradients averaged over ranks."""
        net: nn.Module = self.net
        if self.settings.compile:
            net = torch.compile(net, fullgraph=True)
        if self.ranks.is_distributed:
            with self.ranks.translate_dist_errors():
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
            "clock": self.step,
            "opt": self.optimiser.state_dict(),
            "settings": dataclasses.asdict(self.settings),
            "rng": rng,
            "best": self.best,
            "data": self.data,
            "run": self.run,
        }
        checkpoint.save(self.path(name), content)

    def resume(self, path: Path) -> None:
        """Load all that training needs to go on where a checkpoint stands.

        Raises:
            UserError: the file is bad (see checkpoint.load), is not of this network, or was
                trained with another recipe or list.
        """
        content = self.load_weights(path)
        self.step = content["clock"]
        self._check_recipe(path, content)
        self.optimiser.load_state_dict(optimiser_state(path, content.get("opt"), self.optimiser))
        self._load_rng(path, content.get("rng", {}))
        self.best = best_score(path, content.get("best"))
        self.run = run_name(path, content.get("run"), self.run)

    def take_name_of_start(self, path: Path) -> bool:
        """Whether a checkpoint holds no step, but only the start of a run, whose name is taken.

        Raises UserError as checkpoint.load.
        """
        content = checkpoint.load(path)
        if content["clock"] >= 0:
            return False
        self.run = run_name(path, content.get("run"), self.run)
        return True

    def load_weights(self, path: Path) -> dict[str, Any]:
        """Load the weights of a checkpoint alone; returns its content. Raises as resume."""
        content = checkpoint.load(path)
        _check_attention(path, content, self.settings.direction_attention)
        checkpoint.check_tensors(path, content["net"], self.net.state_dict())
        self.net.load_state_dict(content["net"])
        return content

    def derainer(self) -> Derainer:
        """The network as it stands, at work."""
        settings = self.settings
        return Derainer(
            self.net,
            self.device,
            precision=settings.precision,
            views=settings.self_ensemble,
            tile=settings.tile,
            sharing=self.ranks.local_size,
        )

    def _check_recipe(self, path: Path, content: dict[str, Any]) -> None:
        found = changes(content.get("settings") or {}, self.settings)
        if content.get("data") not in (None, "", self.data):
            found.append("the training list names other pairs")
        if found and self.settings.allow_changed_settings:
            if self.ranks.first:
                print(f"{path}: going on with changes: {'; '.join(found)}")
        elif found:
            raise UserError(
                f"{path}: was trained with other settings: {'; '.join(found)}; expected the same, "
                "or --allow-changed-settings"
            )

    def _load_rng(self, path: Path, state: Any) -> None:
        require_random_state(path, state)
        try:
            if "torch" in state:
                torch.set_rng_state(state["torch"])
            if "cuda" in state and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], self.device)
        except (TypeError, RuntimeError) as error:
            raise UserError(f"{path}: its random state is damaged: {error}") from None

    def events(self, name: str) -> EventFile:
        """The event file of that name under the log folder, made when first asked for."""
        if name not in self._events:
            self._events[name] = EventFile(Path(self.settings.log_dir) / name, self.run)
        return self._events[name]

    def forget_later_events(self, *names: str) -> None:
        """Cut off this run's events of steps after the clock, which a resume writes anew."""
        if self.ranks.first:
            for name in names:
                forget_after(Path(self.settings.log_dir) / name, self.run, self.step)

    def discard(self, name: str) -> None:
        """Remove the checkpoint of that name and this process's events, on the first rank."""
        if self.ranks.first:
            self.path(name).unlink(missing_ok=True)
            for file in self._events.values():
                file.discard()

    def close(self) -> None:
        for file in self._events.values():
            file.close()
        self.ranks.leave()


def _check_attention(path: Path, content: dict[str, Any], wanted: bool) -> None:
    found = checkpoint.direction_attention(content)
    if found != wanted:
        words = ("without", "with")
        option = "--direction-attention" if found else "--no-direction-attention"
        raise UserError(
            f"{path}: trained {words[found]} direction attention, this run is {words[wanted]}; "
            f"expected {option}"
        )


def changes(saved: dict[str, Any], settings: Settings) -> list[str]:
    """What of the recipe differs from saved settings, as `--lr is 0.1, was 0.2`.

    A published checkpoint saved none: nothing differs. A setting that an older one lacks counts as
    today's default.
    """
    found = []
    for f in dataclasses.fields(Settings) if saved else ():
        value, former = getattr(settings, f.name), saved.get(f.name, f.default)
        if f.metadata["recipe"] and former != value:
            found.append(f"{flag(f.name)} is {value}, was {former}")
    return found
