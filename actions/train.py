"""The action `train`: run the recipe (paper section 4) from where it stands."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from engine.checkpoint import checkpoint_path
from engine.device import describe_device
from engine.events import EVENTS as EVENT_FILE
from engine.pairs import check_headers
from engine.ranks import Ranks
from engine.training_loop import BEST, EVENTS, LATEST, VAL_EVENTS, list_charts, run_steps
from engine.training_run import TrainingRun
from media import inspection
from media.lists import Mixture, Pair, Pairs, fingerprint, load_images, read_list
from report.result_folder import open_result_folder
from settings import Settings, UserError, as_tuple, first_few
from system.config import FILE, VERSION, describe_code, write_config
from system.progress import SLOW_SECONDS, Progress, warn

HEADERS, PIXELS = 1000, 64  # pairs whose headers are checked before the first step, and pixels


def train(settings: Settings) -> int:
    """Run the steps that are left, saving checkpoints and events. Returns the exit status.

    The run starts from checkpoint `-m NAME` and is saved to 'latest'. SIGINT, SIGTERM or SIGHUP
    saves 'latest' after the step in hand; the status is then 128 + the signal's number.

    Raises:
        UserError: bad input; a loss that is not finite; a checkpoint that cannot be saved.
    """
    with Ranks() as ranks, closing(TrainingRun(settings, ranks)) as run:
        settings, say = run.settings, ranks.say
        _check_batch(settings, ranks.world_size)
        options = say, settings.layout, settings.side_by_side
        names = as_tuple(settings.train_list)
        all_names = filter(None, (*names, settings.val_list))
        lists = {name: read_list(name, True, *options) for name in dict.fromkeys(all_names)}
        own = [lists[name] for name in names]
        pairs: Pairs = Mixture(own, as_tuple(settings.train_weights)) if len(own) > 1 else own[0]
        val_pairs = lists[settings.val_list] if settings.val_list else pairs
        run.data = " ".join(map(fingerprint, own))
        run.val_data = fingerprint(lists[settings.val_list]) if settings.val_list else ""
        sizes = {name: check_sample(name, lists[name], settings.seed, ranks) for name in lists}
        folder = Path(settings.model_dir)
        inputs = [*map(Path, lists), _init_path(run)]
        outputs = [folder / LATEST, folder / BEST, folder / FILE, *folder.glob("step_*")]
        with open_result_folder(
            folder, "--model-dir", inputs=inputs, outputs=outputs, page=False, first=ranks.is_first
        ):
            is_new = _load_start(run)
            last = settings.num_steps - 1
            if run.step >= last:
                source = checkpoint_path(settings)
                say(f"nothing to do: {source} holds step {run.step}, --num-steps ends at {last}")
                return 0
            _write_settings(run)
            with _open_events(run, is_new):
                device = f"{describe_device(run.device, ranks)}, {settings.precision}"
                steps = f"steps {run.step + 1} to {last}, {last - run.step} left"
                say(f"training on {device}: {len(pairs)} pairs, {steps}")
                for name in names if ranks.is_first else ():
                    report_data(settings, lists[name], sizes[name])
                number = run_steps(run, pairs, val_pairs)
        reason = f" ({signal.Signals(number).name})" if number else ""
        count = f"{run.step + 1} of {settings.num_steps} steps are done"
        say(f"{run.path(LATEST)} holds step {run.step}: {count}{reason}")
        return 128 + number if number else 0


def check_sample(
    name: str, pairs: Sequence[Pair], seed: int, ranks: Ranks
) -> list[tuple[int, int]]:
    """(width, height) of each pair of a sample of a list, by its header.

    Raises:
        UserError: a pair cannot be used. Of several, each has been printed.
    """
    indices = inspection.sample_indices(len(pairs), HEADERS, seed)
    sizes = check_headers(pairs, indices, ranks, need_all=True)
    if bad := len(indices) - len(sizes):
        raise UserError(
            f"{name}: {bad} of the {len(indices)} pairs looked at cannot be used; expected none: "
            "-a check looks at all, and --fix writes a list of the others"
        )
    return list(sizes.values())


def report_data(settings: Settings, pairs: Sequence[Pair], sizes: list[tuple[int, int]]) -> None:
    """Print the share of mask pixels in a sample of the pairs, and warn of what looks wrong.

    Args:
        sizes: what check_sample returned.

    Raises:
        UserError: a pair of the sample cannot be read.
    """
    indices = inspection.sample_indices(len(pairs), PIXELS, settings.seed)
    sample, threshold = [pairs[index] for index in indices], settings.mask_threshold
    shares, swapped = [], []
    images = load_images(sample, settings.num_workers)
    with closing(images), Progress("pair", 0, len(sample), [], after=SLOW_SECONDS) as progress:
        for pair, image in zip(sample, images, strict=True):
            if isinstance(image, UserError):
                raise image
            rainy, clean = image
            pixels = inspection.inspect_pixels(rainy, clean, threshold)
            shares.append(pixels.mask)
            swapped += [pair.location] * pixels.swapped
            progress.advance(1)
    share = float(np.mean(shares))
    print(f"share of mask pixels: {share:.1%} over {len(sample)} pairs", flush=True)
    if share > inspection.HIGH_MASK_SHARE:
        warn(f"warning: {share:.0%} mask pixels: {inspection.mask_advice(threshold)}")
    if swapped:
        warn(
            f"warning: {len(swapped)} of {len(sample)} pairs look swapped, as clean is the "
            f"brighter: {first_few(swapped, 3)}; expected the rainy image first"
        )
    advice = inspection.shrink_advice(sizes, settings.patch_size)
    if advice and settings.crop == "recipe":
        warn(f"warning: {advice}")


def _check_batch(settings: Settings, world_size: int) -> None:
    divisor = world_size * settings.accumulate_steps
    if settings.batch_size % divisor:
        raise UserError(
            f"--batch-size: {settings.batch_size} is not a multiple of {divisor} "
            f"(ranks: {world_size}, --accumulate-steps: {settings.accumulate_steps})"
        )


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
            f"--init-from and -m {settings.model} both say where to start; expected no -m, for a "
            f"new run from these weights, or no --init-from, to go on with {settings.model}"
        )
    # The first rank decides: it may have saved one by the time that another one looks.
    has_latest = run.ranks.all_gather(latest.exists())[0]
    if from_other or has_latest:
        run.resume(start)
        if from_other and has_latest:
            raise UserError(
                f"{latest} is there and would be overwritten by a run from {settings.model}; "
                "move it away, or give another --run or --model-dir"
            )
        if settings.init_from:
            run.ranks.say(f"{latest} is there: going on from it, not from {settings.init_from}")
    elif settings.init_from:
        path = _init_path(run)
        run.load_weights(path)
        run.ranks.say(f"a new run from the weights of {path}")
    return not has_latest


def _write_settings(run: TrainingRun) -> None:
    """Write the settings beside the checkpoints, and what else decides what the run computes."""
    if run.ranks.is_first:
        file, digest = run.init
        record = {"version": VERSION, "code": describe_code(), "train-list": run.data}
        record |= {"val-list": run.val_data, "init-from": digest}
        write_config(run.path(FILE), replace(run.settings, init_from=file), record)


@contextmanager
def _open_events(run: TrainingRun, is_new: bool) -> Iterator[None]:
    """Begin the run's event files; remove them if it ends with an error before its first step."""
    settings, start = run.settings, run.step
    folder = Path(settings.log_dir) / EVENTS
    if run.ranks.is_first and is_new and any(folder.glob(f"{EVENT_FILE}*")):
        warn(
            f"warning: {folder} holds the events of another run, and TensorBoard shows both as one "
            "curve; --run NAME keeps runs apart"
        )
    try:
        run.open_events(EVENTS, VAL_EVENTS)
        if run.ranks.is_first:
            run.events[EVENTS].layout(list_charts(), start + 1)
        if run.ranks.is_first and is_new:
            recipe = [f.name for f in fields(settings) if f.metadata["recipe"]]
            names = [*recipe, "train_list", "init_from"]
            values = {name: getattr(settings, name) for name in names}
            record = {name: str(v) if isinstance(v, tuple) else v for name, v in values.items()}
            run.events[EVENTS].hparams(record, start + 1)
        yield
    except BaseException:
        run.close()
        for file in run.events.values() if run.step == start else ():
            with suppress(OSError):  # its folder may be a file by now
                file.path.unlink()
        raise
