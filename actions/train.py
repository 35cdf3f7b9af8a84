"""The action `train`: run the recipe (paper section 4) from where it stands."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path

from engine.checkpoint import checkpoint_path
from engine.device import describe_device
from engine.precheck import report_data, require_usable
from engine.training_loop import BEST, EVENTS, LATEST, VAL_EVENTS, list_charts, run_steps
from engine.training_run import TrainingRun
from media.lists import fingerprint, read_list
from settings import Settings, UserError
from system.files import check_no_overlap, lock_file, remove_unfinished, require_writable


def train(settings: Settings) -> int:
    """Run the steps that are left, saving checkpoints and events. Returns the exit status.

    The run starts from checkpoint `-m NAME` and is saved to 'latest'. SIGINT, SIGTERM or SIGHUP
    saves 'latest' after the step in hand; the status is then 128 + the signal's number.

    Raises:
        UserError: bad input; a loss that is not finite; a checkpoint that cannot be saved.
    """
    with closing(TrainingRun(settings)) as run:
        ranks, say = run.ranks, run.ranks.say
        _check_batch(settings, ranks.world_size)
        options = say, settings.layout, settings.side_by_side
        pairs = val_pairs = read_list(settings.train_list, True, *options)
        has_val_list = settings.val_list not in ("", settings.train_list)
        if has_val_list:
            val_pairs = read_list(settings.val_list, True, *options)
        run.data = fingerprint(pairs)
        run.val_data = fingerprint(val_pairs) if settings.val_list else ""
        sizes = require_usable(settings.train_list, pairs, settings.seed, ranks)
        if has_val_list:
            require_usable(settings.val_list, val_pairs, settings.seed, ranks)
        with _lock_model_dir(run):
            is_new = _load_start(run)
            first, last = run.step + 1, settings.num_steps - 1
            if first > last:
                source = checkpoint_path(settings)
                say(f"nothing to do: {source} holds step {run.step}, --num-steps ends at {last}")
                return 0
            with _open_events(run, is_new):
                device = f"{describe_device(run.device, ranks)}, {settings.precision}"
                steps = f"steps {first} to {last}, {last + 1 - first} left"
                say(f"training on {device}: {len(pairs)} pairs, {steps}")
                if ranks.first:
                    report_data(settings, pairs, sizes)
                number = run_steps(run, pairs, val_pairs, first, last)
        reason = f" ({signal.Signals(number).name})" if number else ""
        count = f"{run.step + 1} of {settings.num_steps} steps are done"
        say(f"{run.path(LATEST)} holds step {run.step}: {count}{reason}")
        return 128 + number if number else 0


def _check_batch(settings: Settings, world_size: int) -> None:
    divisor = world_size * settings.accumulate_steps
    if settings.batch_size % divisor:
        raise UserError(
            f"--batch-size: {settings.batch_size} is not a multiple of {divisor} "
            f"(ranks: {world_size}, --accumulate-steps: {settings.accumulate_steps})"
        )


@contextmanager
def _lock_model_dir(run: TrainingRun) -> Iterator[None]:
    """Be the only run that trains in the model folder, and remove what a killed one left there."""
    if not run.ranks.first:
        yield
        return
    settings, folder = run.settings, Path(run.settings.model_dir)
    require_writable(folder)
    inputs = [Path(name) for name in (settings.train_list, settings.val_list) if name]
    if settings.init_from:
        inputs.append(_init_path(run))
    outputs = [folder / LATEST, folder / BEST, *folder.glob("step_*")]
    check_no_overlap(inputs, outputs, "--model-dir")
    lock = folder / ".training"
    with lock_file(lock, f"{lock}: another run is training here"):
        for name in (LATEST, BEST, "step_*"):
            remove_unfinished(folder, name)
        yield


def _init_path(run: TrainingRun) -> Path:
    """The file of --init-from: its path, or a name in the model folder, as -m takes it."""
    path = Path(run.settings.init_from)
    return path if path.exists() else run.path(run.settings.init_from)


def _load_start(run: TrainingRun) -> bool:
    """Load the checkpoint to continue from. Returns whether the run is new: without `latest`."""
    settings, start, latest = run.settings, checkpoint_path(run.settings), run.path(LATEST)
    from_other = start.resolve() != latest.resolve()
    if settings.init_from and from_other:
        raise UserError(
            f"--init-from and -m {settings.model} both say where to start; expected one of them"
        )
    # The first rank decides: it may have saved one by the time that another one looks.
    has_latest = run.ranks.all_gather(latest.exists())[0]
    if from_other:
        run.resume(start)
        if has_latest:
            raise UserError(
                f"{latest} is there and would be overwritten by a run from {settings.model}; "
                "move it away, or give another --model-dir"
            )
    elif has_latest:
        run.resume(latest)
        if settings.init_from:
            run.ranks.say(f"{latest} is there: going on from it, not from {settings.init_from}")
    elif settings.init_from:
        path = _init_path(run)
        run.load_weights(path)
        run.ranks.say(f"a new run from the weights of {path}")
    return not has_latest


@contextmanager
def _open_events(run: TrainingRun, is_new: bool) -> Iterator[None]:
    """Begin the run's event files; remove them if it ends with an error before its first step."""
    settings, start = run.settings, run.step
    try:
        run.open_events(EVENTS, VAL_EVENTS)
        if run.ranks.first:
            run.events[EVENTS].layout(list_charts(), start + 1)
        if run.ranks.first and is_new:
            recipe = [f.name for f in fields(settings) if f.metadata["recipe"]]
            names = [*recipe, "train_list", "init_from"]
            record = {name: getattr(settings, name) for name in names}
            run.events[EVENTS].hparams(record, start + 1)
        yield
    except BaseException:
        if run.step == start:
            run.discard_events()
        raise
