"""Settings: every value that steers a run, as one frozen dataclass.

The command line is generated from the dataclass (system/commandline.py): field ``batch_size`` is
option ``--batch-size`` of the actions named beside it, its help is the text after them, and its
range is checked whoever sets it.
Sections and equations are those of the paper (arXiv 1904.01538); "recipe" marks what the
released code or the published checkpoint shows where the paper says nothing.
"""

import difflib
import os
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin


def one_line(text: str, longest: int = 300) -> str:
    """Text in printable characters, as names of files hold any; a long one loses its middle."""
    ends = text[:longest] + text[longest:][-longest:]
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in ends)
    if len(line) <= longest:
        return line
    return f"{line[: longest * 2 // 3 - 5]} ... {line[-longest // 3 :]}"


def format_count(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it is not 1: "1 file", "3 files"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_few(names: Iterable[object], limit: int = 5) -> str:
    """The first names, and how many more there are: "a, b, and 7 more"."""
    texts = list(map(str, names))
    more = [f"and {len(texts) - limit} more"] if len(texts) > limit else []
    return ", ".join(texts[:limit] + more)


class UserError(Exception):
    """What a user can mend, in one line; main.py prints it and exits with status 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def option(
    default: Any,
    serves: tuple[str, ...],
    help: str | dict[str, str],
    *,
    low: float | None = None,
    high: float | None = None,
    recipe: bool = False,
    several: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with its actions, its help text and, for numbers, its inclusive range.

    help may differ by action: those that it does not name have the text of "".
    recipe marks what decides where a training run goes: a resume must not change it unnoticed.
    several names the actions that take several values, if others take one.
    """
    metadata = {"serves": serves, "help": help, "low": low, "high": high, "recipe": recipe}
    metadata["several"] = serves if several is None else several
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Action:
    """What the help says of an action."""

    purpose: str
    required: str  # options, in its usage line
    example: str


# fmt: off
# The values of -a: the function NAME of actions/NAME.py.
ACTIONS = {
    "train": Action("train a network, or resume an interrupted run",
        "", "--train-list own/real_world.txt"),
    "test": Action("derain a list of images, and measure PSNR and SSIM if it names clean images",
        "", "-m demo --test-list own/real_test.txt"),
    "score": Action("score results of other programs, and write the tables for a paper",
        "-i RESULTS -o FOLDER", "-i results --test-list Rain100L -o scores"),
    "derain": Action("remove the rain from a picture, a video or a folder of them",
        "-i INPUT -o OUTPUT", "-m published -i photo.jpg -o derained.jpg"),
    "web": Action("derain pictures and short videos on a page in the browser",
        "", "-m published"),
    "export": Action("write the network as an ONNX file, which runs without PyTorch",
        "-o FILE.onnx", "-m demo -o spanet.onnx"),
    "clean": Action("compute a clean image from a rain video of a static camera",
        "-i VIDEO -o FILE.png", "-i rain.mp4 -o clean.png"),
    "pairs": Action("make a training set of rainy and clean patches from rain videos",
        "-i VIDEO|FOLDER -o FOLDER", "-i videos -o own"),
    "check": Action("inspect every pair of a training list before training",
        "", "--train-list own/real_world.txt --fix own/good.txt"),
    "lists": Action("write the pairs of a folder as a list, and show three of them",
        "-i FOLDER -o LIST.txt", "-i Rain100L -o Rain100L.txt"),
}
# fmt: on

# The actions that an option serves.
TRAIN, TEST, SCORE, DERAIN, WEB = ("train",), ("test",), ("score",), ("derain",), ("web",)
EXPORT = ("export",)
CLEAN, PAIRS, CHECK, LISTS = ("clean",), ("pairs",), ("check",), ("lists",)
DERAINING = TRAIN + TEST + DERAIN + WEB  # train derains the images of --val-list
NETWORK = DERAINING + EXPORT
VIDEOS = CLEAN + PAIRS
FRAMES = DERAIN + VIDEOS
ON_CPUS = DERAINING + SCORE + VIDEOS
LISTED = TRAIN + TEST + SCORE + CHECK + LISTS
EVERY = NETWORK + SCORE + VIDEOS + CHECK + LISTS


@dataclass(frozen=True)
class Settings:
    """All settings of one run. Raises UserError for a value of the wrong type or range."""

    # fmt: off
    # What to do
    action: str = option(MISSING, EVERY, "action to run, one of those named below")
    config: str = option("", EVERY,
        "TOML file of options, such as the settings.toml of a run; the command line overrides it")
    run: str = option("", NETWORK,
        "name of the run: its files are in model/RUN, logdir/RUN and results/RUN")
    model: str = option("latest", NETWORK, {
        "": "checkpoint to use: a name in --model-dir, or a path; if not given: with --run 'best', "
            "if it exists, and for derain and web the only one, if 'latest' does not exist",
        "train": "checkpoint to resume from, if it exists: a name in --model-dir, or a path",
    })

    # Files and folders
    train_list: str | tuple[str, ...] = option("training/real_world.txt", TRAIN + CHECK,
        "list of training pairs, one on each line: rainy image, clean image; or a folder of pairs; "
        "train: or several of them", several=TRAIN)
    train_weights: int | tuple[int, ...] = option(1, TRAIN,
        "of several lists of --train-list, how many crops come from each in turn, such as 3 1; 1 "
        "means as many from each", low=1, high=1000, recipe=True)
    val_list: str = option("", TRAIN, "list or folder of validation pairs; else the training list")
    test_list: str | tuple[str, ...] = option("testing/real_test_1000.txt", TEST + SCORE,
        "list of test pairs, or of rainy images (score: clean images) alone; or a folder; or "
        "several of them, for a table by sets")
    layout: str = option("", LISTED,
        "layout of a dataset folder, if several layouts match it; a message then lists them")
    side_by_side: Literal["no", "rainy-left", "rainy-right"] = option("no", LISTED,
        "which half of a file is the rainy image, if each file holds both images", recipe=True)
    model_dir: str = option("model", NETWORK, "folder of the checkpoints")
    log_dir: str = option("logdir", TRAIN + TEST, "folder for the TensorBoard event files")
    result_dir: str = option("results", TEST, "folder for the results of the test")
    input: str | tuple[str, ...] = option("", SCORE + DERAIN + VIDEOS + LISTS, {
        "score": "folder of results to score, or of such folders, one for each method",
        "derain": "picture, video, or folder of them, to derain; or several of these",
        "clean": "rain video to read",
        "pairs": "rain video, or folder of rain videos, to read",
        "lists": "folder of pairs to list",
    }, several=DERAIN)
    output: str = option("", SCORE + DERAIN + EXPORT + VIDEOS + CHECK + LISTS, {
        "score": "folder to write the scores into",
        "derain": "file or folder to write",
        "export": ".onnx file to write",
        "clean": "PNG file to write",
        "pairs": "folder to write the new set into",
        "check": "table to write, or to continue; default: check.csv",
        "lists": "list to write, a .txt file",
    })
    protocol: Literal["all", "released", "rgb", "y", "y_down", "y_round"] = option("all", SCORE,
        "protocol of the tables for a paper")
    skip_existing: bool = option(False, DERAIN,
        "leave results as they are that are newer than their source and the weights")
    no_page: bool = option(False, DERAIN, "write no index.html into a folder of results")
    crop_to_common: bool = option(False, SCORE,
        "crop images of different sizes to their common part, at the top left")
    fix: str = option("", CHECK, "also write a list of the usable pairs to this file")
    host: str = option("127.0.0.1", WEB, "address to listen on; 0.0.0.0 lets other machines in")
    port: int = option(0, WEB, "port to listen on; 0: the first free one", low=0, high=65535)
    root_path: str = option("", WEB,
        "address of the page if a proxy serves it, as https://example.org/rain")
    max_upload: int = option(1024, WEB, "largest file that is taken, in MiB", low=1, high=2**20)

    # Machine
    device: Literal["auto", "cpu", "cuda"] = option("auto", DERAINING,
        "where to compute; auto means cuda if there is a GPU, else cpu")
    num_threads: int = option(0, ON_CPUS,
        "number of CPU threads; 0 means one for each core", low=0, high=1024)
    precision: Literal["fp32", "tf32", "bf16"] = option("fp32", DERAINING,
        "number format of the network; tf32 needs a GPU", recipe=True)
    deterministic: bool = option(False, TRAIN,
        "make training on a GPU reproducible bit by bit, but slower; on a CPU it always is")
    compile: bool = option(False, TRAIN, "compile the network by torch.compile")
    num_workers: int = option(-1, TRAIN + TEST,
        "processes that load images; results do not change; -1 means 2, or 2 to 4 for a GPU",
        low=-1, high=1024)

    # Inference on whole images
    self_ensemble: int = option(1, DERAINING, {
        "": "number of views of each image whose results are averaged: 1 (the image itself), 2 "
            "(also mirrored) or 4 (both also rotated by 180 degrees)",
        "train": "number of views of each image of --val-list: 1, 2 or 4, as in a test",
    })
    tile: str = option("auto", DERAINING, {
        "": "overlapping tiles of N x N pixels, which save memory; auto: the largest ones that fit "
            "into memory, for images that do not fit whole; 0: whole images alone",
        "train": "side of the tiles for the images of --val-list: auto, 0 (whole) or a number",
    })

    no_ema: bool = option(False, TEST + DERAIN + WEB + EXPORT,
        "use the last weights of a checkpoint, not their moving average (see train --ema)")

    # Start of training
    init_from: str = option("", TRAIN, "checkpoint file whose weights alone a new run starts from")
    allow_changed_settings: bool = option(False, TRAIN,
        "resume even if the training list or settings of the recipe have changed")

    # Network (section 4)
    direction_attention: bool = option(False, TRAIN,
        "weight the four directions of the IRNN by attention, as in the paper; the published "
        "weights do not", recipe=True)

    # Optimisation (section 4; figures of the recipe)
    num_steps: int = option(40001, TRAIN, "total steps, across resumes", low=1, high=10**12)
    batch_size: int = option(16, TRAIN, "crops in each step", low=1, high=65536, recipe=True)
    accumulate_steps: int = option(1, TRAIN,
        "process each batch in N micro-batches: less memory, same gradients", low=1, high=65536)
    checkpoint_activations: bool = option(False, TRAIN,
        "save memory by recomputing feature maps in the backward pass; slower")
    # 5e-4 is what the published checkpoint holds; at the 5e-3 of the released main.py the attention
    # map is 0 everywhere within ten steps.
    lr: float = option(5e-4, TRAIN,
        "initial learning rate of Adam", low=0.0, high=10.0, recipe=True)
    schedule: Literal["step", "cosine"] = option("step", TRAIN,
        "step: reduce the learning rate at --lr-decay-step; cosine: lower it from the first step "
        "to the last, to almost 0", recipe=True)
    # The released loop lowers the rate before it takes step 29 999, not after.
    lr_decay_step: int | tuple[int, ...] = option(29999, TRAIN,
        "first step with the reduced learning rate; several, such as 1000 2000, reduce it again",
        low=0, recipe=True)
    lr_decay: float = option(0.1, TRAIN,
        "factor that reduces the learning rate", low=0.0, high=1.0, recipe=True)
    warmup_steps: int = option(0, TRAIN,
        "steps over which the learning rate rises to its full value", low=0, recipe=True)
    grad_clip: float = option(0.0, TRAIN,
        "largest norm of the gradient, a longer one is scaled down; 0 means no limit",
        low=0.0, high=1e6, recipe=True)
    ema: float = option(0.0, TRAIN,
        "also keep a moving average of the weights, of which this share stays in a step, such as "
        "0.999; it is what --val-list scores and what derains; 0 means none",
        low=0.0, high=0.999999, recipe=True)
    seed: int = option(2019, TRAIN,
        "random seed of the initial weights and of the order and crops of images",
        low=0, high=2**63 - 1, recipe=True)

    # Augmentation (recipe): random resized crop, the same for rainy and clean
    crop: Literal["recipe", "native"] = option("recipe", TRAIN,
        "recipe: resize a crop of most of the image to the patch; native: cut the patch without "
        "resizing (recipe for images smaller than the patch)", recipe=True)
    flip: bool = option(False, TRAIN, "mirror half of the crops, left to right", recipe=True)
    patch_size: int = option(256, TRAIN + PAIRS + CHECK,
        "side in pixels of the training crops (train, check) or of the patches to cut (pairs)",
        low=1, high=16384, recipe=True)
    crop_area_min: float = option(0.8, TRAIN,
        "smallest crop, as a share of the image", low=0.01, high=1.0, recipe=True)
    crop_aspect_max: float = option(4 / 3, TRAIN,
        "largest ratio between the sides of a crop", low=1.0, high=100.0, recipe=True)

    # Clean images from rain videos (section 3)
    start: int = option(0, FRAMES, "first video frame to use, counted from 0", low=0, high=10**9)
    frames: int = option(0, FRAMES,
        "number of video frames to use; 0 means 100 (derain: all)", low=0, high=65535)
    percentile: float = option(-1.0, VIDEOS,
        "percentile over time of the clean image; -1: the one that most pixels vote for",
        low=-1, high=100)
    candidates: str = option("", CLEAN,
        "numbers of frames to compare, such as 20,50,100: a clean image of each, and a sheet")

    # Pairs from rain videos
    frame_step: int = option(1, PAIRS, "use only every N-th frame", low=1, high=65535)
    test_patch_size: int = option(512, PAIRS,
        "side in pixels of the test patches to cut", low=1, high=16384)
    test_share: float = option(0.1, PAIRS,
        "share of the videos that is kept for testing", low=0.0, high=1.0)
    rain_level: int = option(10, PAIRS,
        "rain is brighter than the clean image by more than N grey levels in every channel",
        low=0, high=254)
    rain_share: float = option(0.005, PAIRS,
        "smallest share of rain pixels in a patch", low=0.0, high=1.0)

    # Mask label (recipe): what the attention learns
    mask_threshold: int = option(0, TRAIN + CHECK,
        "label a pixel as rain if rainy and clean differ by more than N grey levels in a channel",
        low=0, high=254, recipe=True)

    # Weights of the terms of the loss (section 4), each the setting NAME_weight of a term NAME
    l1_weight: float = option(1.0, TRAIN, "weight of the L1 loss", low=0, high=1000, recipe=True)
    ssim_weight: float = option(1.0, TRAIN,
        "weight of the SSIM loss, 1 - SSIM", low=0, high=1000, recipe=True)
    mask_weight: float = option(1.0, TRAIN,
        "weight of the loss of the attention map, its squared distance from the mask label",
        low=0, high=1000, recipe=True)
    off_mask_weight: float = option(0.0, TRAIN,
        "weight of an L1 loss outside the mask label", low=0, high=1000, recipe=True)

    # Cadence, in steps (recipe)
    val_batch_every: int = option(4, TRAIN, "compute validation losses every N steps", low=1)
    val_every: int = option(400, TRAIN,
        "score the images of --val-list every N steps; save the best as 'best'", low=1)
    val_protocol: Literal["released", "rgb", "y", "y_down", "y_round"] = option("released", TRAIN,
        "protocol of the scores of --val-list, whose PSNR decides which checkpoint is 'best'")
    latest_every: int = option(25, TRAIN, "save the checkpoint 'latest' every N steps", low=1)
    picture_every: int = option(200, TRAIN, "write pictures to the events every N steps", low=1)
    checkpoint_every: int = option(400, TRAIN,
        "save a numbered checkpoint, such as 'step_400', every N steps", low=1)
    log_every: int = option(25, TRAIN + TEST,
        "print a line every N steps or images if this is not a terminal", low=1)
    # fmt: on

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            check_field(f, f.type, value)
            if isinstance(value, tuple) and self.action not in f.metadata["several"]:
                raise UserError(f"{flag(f.name)}: several; expected one for -a {self.action}")
        if self.self_ensemble not in (1, 2, 4):
            raise UserError(f"--self-ensemble: {self.self_ensemble}; expected 1, 2 or 4")
        counts = len(as_tuple(self.train_weights)), len(as_tuple(self.train_list))
        if counts[0] != counts[1] and self.train_weights != 1:
            raise UserError(
                f"--train-weights: {counts[0]} for {counts[1]} lists; expected one for each list"
            )
        side = int(self.tile[:9]) if self.tile.isdecimal() else -1
        if self.tile != "auto" and side != 0 and not 64 <= side <= 65536:
            raise UserError(f"--tile: {self.tile!r}; expected auto, 0, or from 64 to 65536 pixels")
        if -1 < self.percentile < 0:
            raise UserError(f"--percentile: {self.percentile} is neither -1 nor from 0 to 100")
        if self.l1_weight == self.ssim_weight == 0:
            raise UserError(
                "--l1-weight and --ssim-weight are both 0; expected one above 0, as nothing else "
                "trains the clean image"
            )
        if "\0" in self.run or os.path.basename(self.run) != self.run or self.run[:1] == ".":
            raise UserError(f"--run: {self.run!r} is not a name; expected one without slashes")
        if "\0" in self.model or os.path.basename(self.model) in ("", ".", ".."):
            raise UserError(f"--model: {self.model!r} is not the name or path of a checkpoint")

    @property
    def only_input(self) -> str:
        """What -i names, for an action that takes one input."""
        assert isinstance(self.input, str)
        return self.input


def as_tuple(value: Any) -> tuple[Any, ...]:
    """The values of an option that takes one or several."""
    return value if isinstance(value, tuple) else (value,)


def one_or_several(value: Any) -> Any:
    """The value of an option whose values are in a list: the sole one, or a tuple of them."""
    if isinstance(value, list):
        return value[0] if len(value) == 1 else tuple(value)
    return value


def flag(name: str) -> str:
    """The option of a setting."""
    return "--" + name.replace("_", "-")


def nearest(word: str, known: list[str]) -> str:
    """The end of a message: the known word that was probably meant, if there is one."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {match[0]}?" if match else ""


def check_field(f: Any, kind: Any, value: Any) -> None:
    """Raise UserError unless value is of the field's type and within its range."""
    name = flag(f.name)
    if get_origin(kind) is UnionType:  # of one value or several
        if value == ():
            raise UserError(f"{name}: expected one value or more")
        for each in as_tuple(value):
            check_field(f, get_args(kind)[0], each)
        return
    if f.name == "action" or get_origin(kind) is Literal:
        known = list(get_args(kind) or ACTIONS)
        if value not in known:
            hint = nearest(str(value), known)
            raise UserError(f"{name}: {value!r} is not one of {', '.join(known)}{hint}")
        return
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{name}: expected {kind.__name__}, got {value!r}")
    if isinstance(value, str) and value != value.encode(errors="replace").decode():
        raise UserError(f"{name}: {value!r} is not UTF-8 text")
    low, high = f.metadata["low"], f.metadata["high"]
    # Written so that NaN, which compares false with everything, is refused too.
    if low is not None and not low <= value <= (float("inf") if high is None else high):
        upper = "up" if high is None else f"to {high}"
        raise UserError(f"{name}: {value} is out of range; expected a number from {low} {upper}")
