"""Settings: every value that steers a run, as one frozen dataclass.

The command line is generated from the dataclass: field ``batch_size`` is option
``--batch-size``, its help is the text beside it, and its range is checked whoever sets it.
Sections and equations are those of the paper (arXiv 1904.01538); "recipe" marks what the
released code or the published checkpoint shows where the paper says nothing.
"""

import argparse
import difflib
import sys
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


class UserError(Exception):
    """What a user can mend, told in one line; main.py prints it and exits with status 2."""


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    recipe: bool = False,
) -> Any:
    """A dataclass field with its help text and, for numbers, its inclusive range.

    recipe marks what decides where a training run goes: a resume must not change it unnoticed.
    """
    metadata = {"help": help, "low": low, "high": high, "recipe": recipe}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings of one run. Raises UserError for a value of the wrong type or range."""

    # What to do
    action: Literal["train", "test", "derain", "export", "clean", "pairs"] = option(
        MISSING, "what to do"
    )
    model: str = option("latest", "name of a checkpoint in the model folder; train resumes from it")

    # Where things are
    train_list: str = option("training/real_world.txt", "list of training pairs")
    val_list: str = option("", "list of validation pairs; empty: the training list (recipe)")
    test_list: str = option("testing/real_test_1000.txt", "list of test pairs, or of rainy images")
    model_dir: str = option("model", "folder of checkpoints")
    log_dir: str = option("logdir", "folder of TensorBoardX events")
    result_dir: str = option("results", "folder of test results")
    input: str = option(
        "", "picture, video or folder (derain), rain video (clean), or a folder of them too (pairs)"
    )
    output: str = option(
        "",
        "file or folder (derain), .onnx file (export), PNG file (clean) or folder of a set (pairs)",
    )

    # Machine
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: cuda where there is one")
    num_threads: int = option(
        0, "threads that compute on the CPU; 0: one for each core at hand", low=0, high=1024
    )
    precision: Literal["fp32", "tf32", "bf16"] = option(
        "fp32", "of the network's arithmetic; tf32 needs a GPU", recipe=True
    )
    compile: bool = option(False, "run the network through torch.compile when training")
    num_workers: int = option(
        2, "processes that load data; never changes a result", low=0, high=1024
    )

    # Deraining (test, derain)
    self_ensemble: int = option(
        1, "1, or the mean over 2 (mirrored) or 4 (also half-turned) views of each image"
    )
    tile: int = option(
        0, "side of blended tiles for images that memory does not hold; 0: whole", low=0, high=65536
    )

    # Where training starts
    init_from: str = option(
        "", "checkpoint file whose weights a new run starts from, without its clock and optimiser"
    )
    allow_changed_settings: bool = option(
        False, "resume with another recipe or list than the checkpoint was trained with"
    )

    # Network (section 4)
    direction_attention: bool = option(
        False,
        "weigh the four directions of the IRNN as the paper does; published weights do not",
        recipe=True,
    )

    # Optimisation (section 4; figures of the recipe)
    num_steps: int = option(
        40001, "steps of the whole run, resumed ones included", low=1, high=10**12
    )
    batch_size: int = option(16, "crops a step", low=1, high=65536, recipe=True)
    accumulate_steps: int = option(
        1, "parts that a batch is run in, one after another: the same gradients", low=1, high=65536
    )
    checkpoint_activations: bool = option(
        False, "keep fewer feature maps for the backward pass: the same steps, leaner and slower"
    )
    # 5e-4 is what the published checkpoint holds; at the 5e-3 of the released main.py the attention
    # map is 0 everywhere within ten steps.
    lr: float = option(5e-4, "learning rate of Adam at the start", low=0.0, high=10.0, recipe=True)
    # The released loop lowers the rate before it takes step 29 999, not after.
    lr_decay_step: int = option(
        29999, "step from which the learning rate is reduced", low=0, recipe=True
    )
    lr_decay: float = option(0.1, "factor of that reduction", low=0.0, high=1.0, recipe=True)
    seed: int = option(
        2019,
        "seed of initial weights and of the sample stream",
        low=0,
        high=2**63 - 1,
        recipe=True,
    )

    # Augmentation (recipe): random resized crop, the same for rainy and clean
    patch_size: int = option(256, "side of a training crop, pixels", low=1, high=16384, recipe=True)
    crop_area_min: float = option(
        0.8,
        "least share of the image's area in a crop",
        low=0.01,
        high=1.0,
        recipe=True,
    )
    crop_aspect_max: float = option(
        4 / 3, "largest ratio of a crop's sides", low=1.0, high=100.0, recipe=True
    )

    # Clean images from rain videos (section 3)
    start: int = option(0, "first frame of the video that is used", low=0, high=10**9)
    frames: int = option(100, "frames of the video that are used", low=1, high=65535)
    percentile: float = option(
        -1.0,
        "percentile over time to take; -1: the one that most pixels vote for",
        low=-1,
        high=100,
    )
    candidates: str = option(
        "", "numbers of frames to try, as 20,50,100: a clean image for each, and a sheet of them"
    )

    # Pairs from rain videos
    frame_step: int = option(1, "take every n-th frame", low=1, high=65535)
    test_patch_size: int = option(512, "side of a held-out patch, pixels", low=1, high=16384)
    test_share: float = option(0.1, "share of the videos that is held out", low=0.0, high=1.0)
    rain_level: int = option(
        10, "grey levels above the clean image, in every channel, that make rain", low=0, high=254
    )
    rain_share: float = option(
        0.005, "share of rain in a patch below which it is dropped", low=0.0, high=1.0
    )

    # Mask label (recipe): what the attention learns
    mask_threshold: int = option(
        0,
        "the mask label is 1 where some channel of rainy and clean differs by more grey levels",
        low=0,
        high=254,
        recipe=True,
    )

    # Cadence, in steps (recipe)
    val_batch_every: int = option(4, "steps between validation batches", low=1)
    val_every: int = option(
        400, "steps between scores of the whole images of --val-list; the best is kept", low=1
    )
    latest_every: int = option(25, "steps between saves of 'latest'", low=1)
    picture_every: int = option(200, "steps between pictures in the event files", low=1)
    checkpoint_every: int = option(400, "steps between saves of 'step_N'", low=1)
    log_every: int = option(25, "steps between log lines where the output is no terminal", low=1)

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for f in fields(self):
            _check(f, kinds[f.name], getattr(self, f.name))
        if self.self_ensemble not in (1, 2, 4):
            raise UserError(f"--self-ensemble: {self.self_ensemble}; expected 1, 2 or 4")
        if 0 < self.tile < 64:
            raise UserError(f"--tile: {self.tile} is too small; expected 64 pixels or more, or 0")
        if -1 < self.percentile < 0:
            raise UserError(f"--percentile: {self.percentile} is neither -1 nor from 0 to 100")
        if self.model in ("", ".", "..") or set("/\\\0") & set(self.model):
            raise UserError(
                f"--model: {self.model!r} is not a name; expected the name of a checkpoint "
                "in the folder --model-dir"
            )


def changes(saved: dict[str, Any], settings: Settings) -> list[str]:
    """What of the recipe differs from saved settings, as `--lr is 0.1, was 0.2`.

    A published checkpoint saved none: nothing differs. A setting that an older one lacks counts as
    today's default.
    """
    found = []
    for f in fields(Settings) if saved else ():
        value, former = getattr(settings, f.name), saved.get(f.name, f.default)
        if f.metadata["recipe"] and former != value:
            found.append(f"{_flag(f.name)} is {value}, was {former}")
    return found


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _nearest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {match[0]}?" if match else ""


def _check(f: Any, kind: Any, value: Any) -> None:
    """Raise UserError unless value is of the field's type and within its range."""
    flag = _flag(f.name)
    if get_origin(kind) is Literal:
        known = list(get_args(kind))
        if value not in known:
            hint = _nearest(str(value), known)
            raise UserError(f"{flag}: {value!r} is not one of {', '.join(known)}{hint}")
        return
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{flag}: expected {kind.__name__}, got {value!r}")
    if isinstance(value, str) and value != value.encode(errors="replace").decode():
        raise UserError(f"{flag}: {value!r} is not UTF-8 text")
    low, high = f.metadata["low"], f.metadata["high"]
    # Written so that NaN, which compares false with everything, is refused too.
    if low is not None and not low <= value <= (float("inf") if high is None else high):
        upper = "up" if high is None else f"to {high}"
        raise UserError(f"{flag}: {value} is out of range; expected a number from {low} {upper}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(message.removeprefix("argument "))


def _number(kind: type) -> Any:
    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None

    return convert


def parse(argv: list[str] | None = None) -> Settings:
    """Settings of a command line (default: the process's own).

    Raises UserError for an unknown option or a bad value, naming the nearest right one.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(
        prog="main.py",
        description="SPANet: single-image deraining. Train it, test a trained one, derain pictures "
        "and videos, export to ONNX, or make clean images and pairs from rain videos.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    kinds = get_type_hints(Settings)
    short = {"action": ["-a"], "model": ["-m"], "input": ["-i"], "output": ["-o"]}
    for f in fields(Settings):
        kind = kinds[f.name]
        names = [*short.get(f.name, []), _flag(f.name)]
        spec: dict[str, Any] = {"dest": f.name, "help": f.metadata["help"]}
        required = f.default is MISSING
        spec |= {"required": required, "default": argparse.SUPPRESS if required else f.default}
        if kind is bool:
            spec["action"] = argparse.BooleanOptionalAction
        elif kind in (int, float):
            spec |= {"type": _number(kind), "metavar": "N" if kind is int else "X"}
        elif get_origin(kind) is Literal:
            spec["metavar"] = "|".join(get_args(kind))
        else:
            kinds_of_text = {
                "list": "FILE",
                "from": "FILE",
                "dir": "DIR",
                "model": "NAME",
                "candidates": "N,N,...",
            }
            spec["metavar"] = kinds_of_text.get(f.name.split("_")[-1], "PATH")
        parser.add_argument(*names, **spec)
    known = [name for action in parser._actions for name in action.option_strings]
    # Asked first, so that a misspelt -a is named rather than a missing one.
    for word in argv:
        name = word.split("=", 1)[0]
        if name.startswith("--") and name != "--" and name not in known:
            raise UserError(f"unknown option {name}{_nearest(name, known)}")
    values, extra = parser.parse_known_args(argv)
    if extra:
        raise UserError(f"unknown argument {extra[0]!r}{_nearest(extra[0], known)}")
    return Settings(**vars(values))
