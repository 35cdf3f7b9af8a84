"""The cases of bench.py, which runs each group of them in a process of its own:
python benchmarks/cases.py GROUP [--device cpu|cuda] prints a JSON list.

A group of times holds ours, the baseline and a matrix product, by turns; `share` is the share of
the machine's arithmetic (or of its rate of copying) that ours reaches. `memory` runs one case.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from functools import partial
from itertools import repeat
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from system import machine

# As main.py does; of the large pages the baseline has the good too.
machine.share_cores()
if "forward" in " ".join(sys.argv):
    machine.keep_blocks(machine.INFERENCE_BLOCKS)
elif "recomputed" in sys.argv:
    machine.keep_blocks(machine.LEAN_TRAINING_BLOCKS)

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import dataset
from actions import export
from benchmarks import irnn
from benchmarks.naive import NaiveSPANet, NaiveSSIM
from benchmarks.timing import SIDE, Call, agree, alternate, matrix_product, resident
from cal_ssim import SSIM
from engine import checkpoint, tiles
from engine.training_step import train_one_step
from media.lists import Pair
from model import STAGES, SPANet
from rain import backgrounds, streaks, synthetic_rain
from settings import Settings
from system.overlap import map_processes

WEIGHTS = ROOT / "model" / "demo"
LOSS_SHAPE = (16, 3, 256, 256)
LARGE = (1536, 2048)  # of an image cut into tiles


def products(net: nn.Module) -> int:
    """Multiply-adds a pixel of a forward pass, its convolutions alone, without attention."""
    count = 0
    for name, tensor in net.named_parameters():
        if tensor.dim() == 4 and "irnn" not in name and "attention_layer" not in name:
            count += tensor.numel() * (STAGES if name.startswith("SAM1") else 1)
    return count


def timed(
    case: str, calls: dict[str, Call], work: float, options: argparse.Namespace, before=None
) -> dict:
    """A row of the table; work is the multiply-adds of one call."""
    calls = calls | {"matrix": matrix_product(options.device)}
    taken = alternate(calls, options.seconds, options.device, before)
    rate = SIDE**3 / taken.pop("matrix")
    row = {"case": case, **taken, "matrix_gflops": 2 * rate / 1e9}
    if work:
        row |= {"share": work / taken["ours"] / rate, "of": "matrix"}
    return row


def network(kind: str, options: argparse.Namespace) -> nn.Module:
    nets = {
        "ours": SPANet,
        "baseline": NaiveSPANet,
        "tiled": SPANet,
        "recomputed": lambda: SPANet(checkpoint_activations=True),
    }
    net = nets[kind]()
    net.load_state_dict(checkpoint.load(options.weights)["net"])
    return net.to(options.device)


def images(side: tuple[int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """rainy, clean (1,3,H,W) and label (1,H,W) of a photograph in synthetic rain."""
    clean = cv2.resize(backgrounds.photograph("coffee"), side[::-1])
    rain = [streaks.Rain(1.5, 10, 25, 1, 110, 0.6)]
    rainy = streaks.add_rain(clean, rain, np.random.default_rng(0))
    return dataset.Batch(rainy[None], clean[None], []).to_device(torch.device(device)).tensors


def repeat_crop(crop: Tensor, count: int) -> Tensor:
    """The crop (1,3,H,W) that many times, in the layout of a training batch."""
    return crop.repeat(count, 1, 1, 1).contiguous(memory_format=torch.channels_last)


def forward(options: argparse.Namespace) -> list[dict]:
    # The baseline gets what glibc would settle at by itself, at best.
    before = {
        "ours": lambda: machine.keep_blocks(1 << 28),
        "baseline": lambda: machine.keep_blocks(1 << 25),
    }
    found = []
    for side in (256, 512):
        rainy, _, _ = images((side, side), options.device)
        nets = {kind: network(kind, options) for kind in ("ours", "baseline")}

        def call(net, rainy=rainy):
            with torch.inference_mode():
                return net(rainy)

        for ours, plain in zip(call(nets["ours"]), call(nets["baseline"]), strict=True):
            agree("forward", ours, plain)
        calls = {kind: lambda net=net, call=call: call(net) for kind, net in nets.items()}
        work = products(nets["ours"]) * side * side
        found.append(timed(f"forward 1x{side}x{side}", calls, work, options, before))
    return found


def stepper(
    kind: str, side: int, options: argparse.Namespace, count: int = 1, precision: str = "fp32"
) -> Call:
    """A training step on that many crops, over and over, as -a train takes it; returns the loss."""
    net, device = network(kind, options), options.device
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    optimiser = torch.optim.Adam(net.parameters(), fused=device == "cuda")
    ssim = (NaiveSSIM() if kind == "baseline" else SSIM()).to(device)
    settings = Settings("train", lr=1e-6, precision=precision)
    rainy, clean, label = images((side, side), device)
    batch = repeat_crop(rainy, count), repeat_crop(clean, count), label.repeat(count, 1, 1)
    return lambda: train_one_step(net, optimiser, ssim, settings, 0, batch)["loss"]


def step(options: argparse.Namespace) -> list[dict]:
    kinds = ("ours", "recomputed", "baseline")
    calls = {kind: stepper(kind, 256, options) for kind in kinds}
    losses = {kind: call().cpu() for kind, call in calls.items()}
    # The two sum in different orders, and cuDNN in yet another.
    agree("step", losses["ours"], losses["baseline"], 1e-4 if options.device == "cuda" else 1e-5)
    agree("step", losses["recomputed"], losses["ours"], 1e-6)
    # What glibc settles at by itself, but for the leaner way, which takes its own.
    before = dict.fromkeys(kinds, lambda: machine.keep_blocks(1 << 25))
    before["recomputed"] = lambda: machine.keep_blocks(1 << 22)
    row = timed("step 1x256x256", calls, 3 * products(SPANet()) * 256**2, options, before)
    again = row.pop("recomputed")
    share = row["share"] * row["ours"] / again  # of the step's work, without what is done again
    return [row, row | {"case": row["case"] + " recomputed", "ours": again, "share": share}]


def profile(options: argparse.Namespace) -> list[dict]:
    """Seconds of a training step: on the clock, and of the device's own work in it."""
    on_gpu, found = options.device == "cuda", []
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    activity = torch.profiler.ProfilerActivity
    for precision in ("fp32", "tf32", "bf16") if on_gpu else ("fp32", "bf16"):
        for kind in ("ours", "recomputed"):
            call = stepper(kind, options.side, options, options.count, precision)
            for _ in range(3):  # compiles, and lets cuDNN choose
                call()
            wait()
            start = time.perf_counter()
            for _ in range(options.steps):
                call()
            wait()
            wall = (time.perf_counter() - start) / options.steps
            # Apart from the clock, which it would slow down.
            activities = [activity.CUDA if on_gpu else activity.CPU]
            with torch.profiler.profile(activities=activities) as record:
                for _ in range(options.steps):
                    call()
                wait()
            name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
            busy = sum(getattr(event, name) for event in record.key_averages()) / 1e6
            row = {"case": f"{precision}, {kind}", "wall": wall, "busy": busy / options.steps}
            found.append(row)
    return found


def passes(options: argparse.Namespace) -> list[dict]:
    """For each line of the input, [seconds, page faults] of a pass by us or by ONNX Runtime."""
    net = network("ours", options).eval().requires_grad_(False)
    height, width = (int(word) for word in options.case.removeprefix("forward").split("x"))
    rainy, _, _ = images((height, width), "cpu")

    @torch.inference_mode()
    def call() -> tuple[Tensor, Tensor]:
        return net(rainy)

    if options.kind == "onnx":
        import onnxruntime

        expected, given = call(), {export.INPUT: rainy.numpy()}
        choices = onnxruntime.SessionOptions()
        choices.intra_op_num_threads = torch.get_num_threads()
        data = export.convert_network(net).SerializeToString()
        runtime = onnxruntime.InferenceSession(data, choices)

        def call() -> list[np.ndarray]:
            return runtime.run(export.OUTPUTS, given)

        for a, b in zip(expected, call(), strict=True):
            agree("onnx", a, torch.from_numpy(b))
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(json.dumps([seconds, faults]), flush=True)
    return []


def blended(options: argparse.Namespace) -> list[dict]:
    """PSNR (dB) of blended tiles against the whole image."""
    net = network("ours", options)
    rainy, _, _ = images(LARGE, options.device)
    with torch.inference_mode():
        sides = (512, 1024)
        return [{"tile": side, "psnr": tiles.tile_psnr(net, rainy, side)} for side in sides]


def loss(options: argparse.Namespace) -> list[dict]:
    torch.manual_seed(0)
    images = torch.rand(2, *LOSS_SHAPE, device=options.device)
    # In the layout of training.
    first, second = (image.contiguous(memory_format=torch.channels_last) for image in images)
    first.requires_grad_()
    calls = {}
    for kind, module in (("ours", SSIM()), ("baseline", NaiveSSIM())):
        ssim = module.to(options.device)
        calls[kind] = lambda ssim=ssim: torch.autograd.grad(ssim(first, second), first)[0]
    agree("SSIM loss", calls["ours"](), calls["baseline"]())
    shape = "x".join(map(str, LOSS_SHAPE))
    return [timed(f"SSIM loss forward + backward {shape}", calls, 0, options)]


def data(options: argparse.Namespace) -> list[dict]:
    """One core reads pairs of PNG files of 256x256, crops them at random and resizes the crops."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    settings = Settings(action="train", batch_size=1)
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for index, name in enumerate(("astronaut", "coffee", "chelsea")):
            clean = cv2.resize(backgrounds.photograph(name), (256, 256))
            rain = [streaks.Rain(1.5, 10, 25, 1, 110, 0.6)]
            rainy = streaks.add_rain(clean, rain, np.random.default_rng(index))
            synthetic_rain.write_pair(Path(folder), name, rainy, clean)
            files = (Path(folder) / kind / f"{name}.png" for kind in ("rain", "clean"))
            pairs.append(Pair(*files, location=name))
        branch = dataset.TRAINING
        count = iter(range(10**9))

        def with_pil() -> list[np.ndarray]:
            number = next(count)
            pair, rng = pairs[number % len(pairs)], np.random.default_rng(number)
            opened = [Image.open(path).convert("RGB") for path in (pair.rainy, pair.clean)]
            top, left, height, width = dataset.random_crop(rng, *opened[0].size[::-1], settings)
            box = (left, top, left + width, top + height)
            size = (settings.patch_size,) * 2
            return [np.asarray(i.crop(box).resize(size, Image.Resampling.BICUBIC)) for i in opened]

        calls = {
            "ours": lambda: dataset.read_crop(pairs, settings, branch, next(count), 0),
            "baseline": with_pil,
        }
        taken = alternate(calls, options.seconds, "cpu")
    found = [{"case": "read and augment a pair, one core", **taken}]
    batch, calls = np.zeros((2, 16, 256, 256, 3), np.uint8), {}
    with ExitStack() as stack:
        for kind, copy in (("ours", np.copy), ("baseline", np.ndarray.tobytes)):  # bytes: piped
            copies = map_processes(repeat("C"), partial(copy, batch), 1)
            calls[kind] = stack.enter_context(closing(copies)).__next__
        taken = alternate(calls, options.seconds, "cpu")
    found.append({"case": "receive a batch of 16 pairs (through a pipe)", **taken})
    return found


def start(options: argparse.Namespace) -> list[dict]:
    """CPU time of a program that derains one photograph; the baseline only imports torch."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    found = []
    for height, width in ((256, 256), (384, 512)):
        with tempfile.TemporaryDirectory() as folder:
            source, target = f"{folder}/rainy.png", f"{folder}/derained.png"
            cv2.imwrite(source, cv2.resize(backgrounds.photograph("coffee"), (width, height)))
            ours = [sys.executable, ROOT / "main.py", "-a", "derain", "-i", source, "-o", target]
            weights = Path(options.weights).resolve()
            ours += ["-m", weights.name, "--model-dir", weights.parent, "--device", options.device]
            baseline = [sys.executable, "-c", "import torch"]
            calls = {
                kind: partial(subprocess.run, words, check=True, capture_output=True)
                for kind, words in (("ours", ours), ("baseline", baseline))
            }
            taken = alternate(calls, options.seconds, "cpu", clock=used)
        case = f"CPU time: {width}x{height} from the start (import torch)"
        found.append({"case": case, **taken})
    return found


def memory(options: argparse.Namespace) -> list[dict]:
    """Peak of one call over the start, in MiB; the libraries are loaded before it."""
    case, kind, device = options.case, options.kind, options.device
    if case.startswith("forward"):
        height, width = (int(word) for word in case.removeprefix("forward").split("x"))
        net = network(kind, options)

        def call(size: tuple[int, int]) -> None:
            with torch.inference_mode():
                net(images(size, device)[0])

        call((16, 16))  # loads and compiles
        rainy, _, _ = images((height, width), device)
        start = begin(device)
        with torch.inference_mode():
            tiles.derain_batch(net, rainy, tile=1024 if kind == "tiled" else 0)
    else:
        stepper(kind, 16, options)()
        run = stepper(kind, 256, options)
        start = begin(device)
        run()
    return [{"case": case, "kind": kind, "mebibytes": peak(device) - start}]


def begin(device: str) -> float:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    return resident("VmRSS")


def peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident("VmHWM")


def main() -> int:
    groups = {"forward": forward, "step": step, "passes": passes, "tiles": blended, "loss": loss,
              "data": data, "start": start, "profile": profile}  # fmt: skip
    parser = argparse.ArgumentParser(description="A group of the cases of bench.py.")
    parser.add_argument("group", choices=[*groups, "irnn", "memory"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument(
        "--case", default="step", help="of memory: step or forwardHxW; of passes: forwardHxW"
    )
    parser.add_argument(
        "--kind",
        default="ours",
        help="of memory: ours, recomputed, tiled or baseline; of passes: ours or onnx",
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=16, help="of profile: crops in a step")
    parser.add_argument("--side", type=int, default=256, help="of profile: pixels of a crop")
    parser.add_argument("--steps", type=int, default=20, help="of profile")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # as in training: float32 is float32
    if options.group == "memory":
        found = memory(options)
    elif options.group == "irnn":
        found = irnn.rows(options.device, options.seconds)
    else:
        found = groups[options.group](options)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
