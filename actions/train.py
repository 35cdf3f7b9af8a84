"""The action `train`: run the recipe (paper section 4) from where it stands."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path

from engine.checkpoint import checkpoint_path
from engine.device import describe_device
from engine.events import has_layout, new_run
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
        return _train(run)


def _train(run: TrainingRun) -> int:
    settings = run.settings
    _check_batch(settings, run.ranks.world_size)
    how = run.ranks.say, settings.layout, settings.side_by_side
    pairs = read_list(settings.train_list, True, *how)
    apart = settings.val_list not in ("", settings.train_list)
    val_pairs = read_list(settings.val_list, True, *how) if apart else pairs
    run.data = fingerprint(pairs)
    run.val_data = fingerprint(val_pairs) if settings.val_list else ""
    sizes = require_usable(settings.train_list, pairs, settings.seed, run.ranks)
    if apart:
        require_usable(settings.val_list, val_pairs, settings.seed, run.ranks)
    with _alone(run):
        new = _load_start(run)
        first, last = run.step + 1, settings.num_steps - 1
        if first > last:
            _say(run, f"nothing to do: {checkpoint_path(settings)} holds step {run.step}, "
                 f"--num-steps ends at {last}")  # fmt: skip
            return 0
        with _begun(run, new):
            where = f"{describe_device(run.device, run.ranks)}, {settings.precision}"
            steps = f"steps {first} to {last}, {last + 1 - first} left"
            _say(run, f"training on {where}: {len(pairs)} pairs, {steps}")
            if run.ranks.first:
                report_data(settings, pairs, sizes)
            number = run_steps(run, pairs, val_pairs, first, last)
    by = f" ({signal.Signals(number).name})" if number else ""
    done, count = run.step + 1, settings.num_steps
    _say(run, f"{run.path(LATEST)} holds step {run.step}: {done} of {count} steps are done{by}")
    return 128 + number if number else 0


def _check_batch(settings: Settings, world_size: int) -> None:
    parts = world_size * settings.accumulate_steps
    if settings.batch_size % parts:
        raise UserError(
            f"--batch-size: {settings.batch_size} is not a multiple of {parts} "
            f"(ranks: {world_size}, --accumulate-steps: {settings.accumulate_steps})"
        )


@contextmanager
def _alone(run: TrainingRun) -> Iterator[None]:
    """Be the only run that trains in the model folder, for as long as this process lives."""
    if not run.ranks.first:
        yield
        return
    folder = Path(run.settings.model_dir)
    require_writable(folder)
    _require_apart(run)
    place = folder / ".training"
    with lock_file(place, f"{place}: another run is training here"):
        for name in (LATEST, BEST, "step_*"):
            remove_unfinished(folder, name)
        yield


def _require_apart(run: TrainingRun) -> None:
    """What a run reads must not be among the checkpoints that it writes."""
    settings = run.settings
    read = [Path(name) for name in (settings.train_list, settings.val_list) if name]
    read += [_init_path(run)] if settings.init_from else []
    folder = Path(settings.model_dir)
    written = [folder / LATEST, folder / BEST, *folder.glob("step_*")]
    check_no_overlap(read, written, "--model-dir")


def _init_path(run: TrainingRun) -> Path:
    """The file of --init-from: its path, or a name in the model folder, as -m takes it."""
    path = Path(run.settings.init_from)
    return path if path.exists() else run.path(run.settings.init_from)


def _load_start(run: TrainingRun) -> bool:
    """Load the checkpoint to go on from. Returns whether a new `latest` is to begin, not go on."""
    settings, start, latest = run.settings, checkpoint_path(run.settings), run.path(LATEST)
    other = start.resolve() != latest.resolve()
    if settings.init_from and other:
        raise UserError(
            f"--init-from and -m {settings.model} both say where to start; expected one of them"
        )
    mere_start = latest.exists() and run.take_name_of_start(latest)
    # The first rank may save while another still looks.
    there = run.ranks.all_gather(latest.exists() and not mere_start)[0]
    if mere_start:
        _say(run, f"{latest} holds no step: beginning anew")
        run.forget_later_events(EVENTS, VAL_EVENTS)
    if other:
        run.resume(start)
        if there:
            raise UserError(
                f"{latest} is there and would be overwritten by a run from {settings.model}; "
                "move it away, or give another --model-dir"
            )
        run.run = new_run()  # its own events, beside those of the run it comes from
    elif there:
        run.resume(latest)
        if settings.init_from:
            _say(run, f"{latest} is there: going on from it, not from {settings.init_from}")
        run.forget_later_events(EVENTS, VAL_EVENTS)
    elif settings.init_from:
        path = _init_path(run)
        run.load_weights(path)
        _say(run, f"a new run from the weights of {path}")
    return not there


@contextmanager
def _begun(run: TrainingRun, new: bool) -> Iterator[None]:
    """Save `latest` before the first step of a new run; take it back if none could be done.

    From its start on a run has a name: whoever restarts it after a kill cuts off the events of the
    steps that were not saved. A start that was refused binds nobody to its settings.
    """
    start = run.step
    try:
        if new:
            run.save(LATEST)
            if run.ranks.first:
                run.events(EVENTS).hparams(_record(run.settings))
        # A run begun before there were groups of curves gets them too.
        if run.ranks.first and not has_layout(Path(run.settings.log_dir) / EVENTS, run.run):
            run.events(EVENTS).layout(list_charts())
        yield
    except BaseException:
        if new and run.step == start:
            run.discard(LATEST)
        raise


def _record(settings: Settings) -> dict[str, float | str | bool]:
    """The settings of a run's hparams record: its recipe and its list."""
    recipe = {f.name: getattr(settings, f.name) for f in fields(settings) if f.metadata["recipe"]}
    return recipe | {"train_list": settings.train_list, "init_from": settings.init_from}


def _say(run: TrainingRun, line: str) -> None:
    run.ranks.say(line)
