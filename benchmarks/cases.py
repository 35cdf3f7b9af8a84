"""The cases of bench.py, which runs each group of them in a process of its own:
python benchmarks/cases.py GROUP [--device cpu|cuda] prints a JSON list of rows.

Most groups time ours, the baseline and a matrix product in alternation. `share` is the fraction of
the machine's rate of arithmetic (or of copying) that ours reaches. `memory` runs one case.
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
from itertools import count, repeat
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from system import machine

# As main.py does it. The baseline has large pages too.
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
from benchmarks.irnn import measure_irnn
from benchmarks.naive import NaiveSPANet, NaiveSSIM
from benchmarks.timing import SIDE, Call, build_matrix_product, check_close, parse_size, time_calls
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
TILED_SIZE = (1536, 2048)  # height, width
RAIN = [streaks.Rain(1.5, 10, 25, 1, 110, 0.6)]
DEFAULT_BLOCKS = 1 << 25  # the largest block that glibc keeps by itself, after some time


def count_multiply_adds(net: nn.Module) -> int:
    """Multiply-adds a pixel in the convolutions of a forward pass, without direction attention."""
    total = 0
    for name, tensor in net.named_parameters():
        if tensor.dim() == 4 and "irnn" not in name and "attention_layer" not in name:
            total += tensor.numel() * (STAGES if name.startswith("SAM1") else 1)
    return total


def measure_row(
    case: str,
    calls: dict[str, Call],
    multiply_adds: int,
    options: argparse.Namespace,
    preparations: dict[str, Call] | None = None,
) -> dict:
    """A row of the table. With 0 multiply-adds a call, it has no share."""
    calls = calls | {"matrix": build_matrix_product(options.device)}
    times = time_calls(calls, options.seconds, options.device, preparations)
    rate = SIDE**3 / times.pop("matrix")
    row = {"case": case, **times, "matrix_gflops": 2 * rate / 1e9}
    if multiply_adds:
        row |= {"share": multiply_adds / times["ours"] / rate, "of": "matrix"}
    return row


def build_network(kind: str, options: argparse.Namespace) -> nn.Module:
    if kind == "baseline":
        net = NaiveSPANet()
    else:
        net = SPANet(checkpoint_activations=kind == "recomputed")
    net.load_state_dict(checkpoint.load(options.weights)["net"])
    return net.to(options.device)


@torch.inference_mode()
def infer(net: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    return net(image)


def draw_images(size: tuple[int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """rainy, clean (1,3,H,W) and label (1,H,W) of a photograph in synthetic rain."""
    clean = cv2.resize(backgrounds.photograph("coffee"), size[::-1])
    rainy = streaks.add_rain(clean, RAIN, np.random.default_rng(0))
    return dataset.Batch(rainy[None], clean[None], []).to_device(torch.device(device)).tensors


def repeat_crop(crop: Tensor, times: int) -> Tensor:
    """The crop (1,3,H,W) that many times, in the layout of a training batch."""
    return crop.repeat(times, 1, 1, 1).contiguous(memory_format=torch.channels_last)


def measure_forward(options: argparse.Namespace) -> list[dict]:
    # The baseline has the best that glibc would settle at by itself.
    preparations = {
        "ours": partial(machine.keep_blocks, 1 << 28),
        "baseline": partial(machine.keep_blocks, DEFAULT_BLOCKS),
    }
    rows = []
    for side in (256, 512):
        rainy, _, _ = draw_images((side, side), options.device)
        nets = {kind: build_network(kind, options) for kind in ("ours", "baseline")}
        calls = {kind: partial(infer, net, rainy) for kind, net in nets.items()}
        for output, expected in zip(calls["ours"](), calls["baseline"](), strict=True):
            check_close("forward", output, expected)
        work = count_multiply_adds(nets["ours"]) * side * side
        rows.append(measure_row(f"forward 1x{side}x{side}", calls, work, options, preparations))
    return rows


def build_step(
    kind: str, side: int, options: argparse.Namespace, crops: int = 1, precision: str = "fp32"
) -> Call:
    """A training step on that many crops, as -a train takes it; it returns the loss."""
    net, device = build_network(kind, options), options.device
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    optimiser = torch.optim.Adam(net.parameters(), fused=device == "cuda")
    ssim = (NaiveSSIM() if kind == "baseline" else SSIM()).to(device)
    settings = Settings("train", lr=1e-6, precision=precision)
    rainy, clean, label = draw_images((side, side), device)
    batch = repeat_crop(rainy, crops), repeat_crop(clean, crops), label.repeat(crops, 1, 1)
    return lambda: train_one_step(net, optimiser, ssim, settings, 0, batch)["loss"]


def measure_step(options: argparse.Namespace) -> list[dict]:
    kinds = ("ours", "recomputed", "baseline")
    calls = {kind: build_step(kind, 256, options) for kind in kinds}
    losses = {kind: call().cpu() for kind, call in calls.items()}
    # The two sum in different orders, and cuDNN in yet another.
    tolerance = 1e-4 if options.device == "cuda" else 1e-5
    check_close("step", losses["ours"], losses["baseline"], tolerance)
    check_close("step", losses["recomputed"], losses["ours"], 1e-6)
    preparations = dict.fromkeys(kinds, partial(machine.keep_blocks, DEFAULT_BLOCKS))
    preparations["recomputed"] = partial(machine.keep_blocks, 1 << 22)
    work = 3 * count_multiply_adds(SPANet()) * 256**2
    row = measure_row("step 1x256x256", calls, work, options, preparations)
    seconds = row.pop("recomputed")
    share = row["share"] * row["ours"] / seconds  # what is computed again is no work of the step
    return [row, row | {"case": f"{row['case']} recomputed", "ours": seconds, "share": share}]


def profile_steps(options: argparse.Namespace) -> list[dict]:
    """Seconds of a training step (wall), and of the device's own work in it (busy)."""
    on_gpu, rows = options.device == "cuda", []
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    activities = [getattr(torch.profiler.ProfilerActivity, "CUDA" if on_gpu else "CPU")]
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"

    def run_steps(run_step: Call, steps: int) -> None:
        for _ in range(steps):
            run_step()
        synchronize()

    for precision in ("fp32", "tf32", "bf16") if on_gpu else ("fp32", "bf16"):
        for kind in ("ours", "recomputed"):
            run_step = build_step(kind, options.side, options, options.count, precision)
            run_steps(run_step, 3)  # compiles, and lets cuDNN choose
            start = time.perf_counter()
            run_steps(run_step, options.steps)
            wall = (time.perf_counter() - start) / options.steps
            # In steps of its own, since profiling slows them down.
            with torch.profiler.profile(activities=activities) as profiler:
                run_steps(run_step, options.steps)
            busy = sum(getattr(event, attribute) for event in profiler.key_averages()) / 1e6
            row = {"case": f"{precision}, {kind}", "wall": wall, "busy": busy / options.steps}
            rows.append(row)
    return rows


def serve_passes(options: argparse.Namespace) -> list[dict]:
    """Print [seconds, page faults] of a pass by us or by ONNX Runtime for each line of stdin."""
    net = build_network("ours", options).eval().requires_grad_(False)
    rainy, _, _ = draw_images(parse_size(options.case), "cpu")
    call = partial(infer, net, rainy)
    if options.kind == "onnx":
        import onnxruntime

        from actions import export

        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = torch.get_num_threads()
        model = export.convert_network(net).SerializeToString()
        session = onnxruntime.InferenceSession(model, session_options)
        expected = call()
        call = partial(session.run, export.OUTPUTS, {export.INPUT: rainy.numpy()})
        for a, b in zip(expected, call(), strict=True):
            check_close("onnx", a, torch.from_numpy(b))
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(json.dumps([seconds, faults]), flush=True)
    return []


@torch.inference_mode()
def compare_tiles(options: argparse.Namespace) -> list[dict]:
    """PSNR (dB) of blended tiles against the whole image."""
    net = build_network("ours", options)
    rainy, _, _ = draw_images(TILED_SIZE, options.device)
    return [{"tile": side, "psnr": tiles.tile_psnr(net, rainy, side)} for side in (512, 1024)]


def measure_loss(options: argparse.Namespace) -> list[dict]:
    torch.manual_seed(0)
    images = torch.rand(2, *LOSS_SHAPE, device=options.device)
    # In the layout of training.
    first, second = (image.contiguous(memory_format=torch.channels_last) for image in images)
    first.requires_grad_()
    calls = {}
    for kind, module in (("ours", SSIM()), ("baseline", NaiveSSIM())):
        ssim = module.to(options.device)
        calls[kind] = lambda ssim=ssim: torch.autograd.grad(ssim(first, second), first)[0]
    check_close("SSIM loss", calls["ours"](), calls["baseline"]())
    shape = "x".join(map(str, LOSS_SHAPE))
    return [measure_row(f"SSIM loss forward + backward {shape}", calls, 0, options)]


def measure_data(options: argparse.Namespace) -> list[dict]:
    """One core reads pairs of PNG files of 256x256, crops them at random and resizes the crops."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    settings = Settings(action="train", batch_size=1)
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for index, name in enumerate(("astronaut", "coffee", "chelsea")):
            clean = cv2.resize(backgrounds.photograph(name), (256, 256))
            rainy = streaks.add_rain(clean, RAIN, np.random.default_rng(index))
            synthetic_rain.write_pair(Path(folder), name, rainy, clean)
            files = (Path(folder) / kind / f"{name}.png" for kind in ("rain", "clean"))
            pairs.append(Pair(*files, location=name))
        numbers = count()

        def read_with_pil() -> list[np.ndarray]:
            number = next(numbers)
            pair, rng = pairs[number % len(pairs)], np.random.default_rng(number)
            images = [Image.open(path).convert("RGB") for path in (pair.rainy, pair.clean)]
            top, left, height, width = dataset.random_crop(rng, *images[0].size[::-1], settings)
            box = (left, top, left + width, top + height)
            size = (settings.patch_size,) * 2
            return [np.asarray(i.crop(box).resize(size, Image.Resampling.BICUBIC)) for i in images]

        calls = {
            "ours": lambda: dataset.read_crop(pairs, settings, dataset.TRAINING, next(numbers), 0),
            "baseline": read_with_pil,
        }
        times = time_calls(calls, options.seconds, "cpu")
    rows = [{"case": "read and augment a pair, one core", **times}]
    batch, calls = np.zeros((2, 16, 256, 256, 3), np.uint8), {}
    with ExitStack() as stack:
        # Bytes go through a pipe.
        for kind, copy in (("ours", np.copy), ("baseline", np.ndarray.tobytes)):
            copies = map_processes(repeat("C"), partial(copy, batch), 1)
            calls[kind] = stack.enter_context(closing(copies)).__next__
        times = time_calls(calls, options.seconds, "cpu")
    rows.append({"case": "receive a batch of 16 pairs (through a pipe)", **times})
    return rows


def read_child_cpu_seconds() -> float:
    """CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_start(options: argparse.Namespace) -> list[dict]:
    """CPU time of a program that derains one photograph; the baseline only imports torch."""
    rows = []
    for height, width in ((256, 256), (384, 512)):
        with tempfile.TemporaryDirectory() as folder:
            source, target = f"{folder}/rainy.png", f"{folder}/derained.png"
            cv2.imwrite(source, cv2.resize(backgrounds.photograph("coffee"), (width, height)))
            derain = [sys.executable, ROOT / "main.py", "-a", "derain", "-i", source, "-o", target]
            weights = options.weights.resolve()
            derain += ["-m", weights, "--device", options.device]
            commands = {"ours": derain, "baseline": [sys.executable, "-c", "import torch"]}
            calls = {
                kind: partial(subprocess.run, command, check=True, capture_output=True)
                for kind, command in commands.items()
            }
            times = time_calls(calls, options.seconds, "cpu", clock=read_child_cpu_seconds)
        case = f"CPU time: {width}x{height} from the start (import torch)"
        rows.append({"case": case, **times})
    return rows


def measure_memory(options: argparse.Namespace) -> list[dict]:
    """MiB that one call takes at most, without what the process holds before it."""
    case, kind, device = options.case, options.kind, options.device
    # A small call comes first: it loads libraries and compiles.
    if case.startswith("forward"):
        net = build_network(kind, options)
        infer(net, draw_images((16, 16), device)[0])
        rainy, _, _ = draw_images(parse_size(case), device)
        start = reset_peak_memory(device)
        with torch.inference_mode():
            tiles.derain_batch(net, rainy, tile=1024 if kind == "tiled" else 0)
    else:
        build_step(kind, 16, options)()
        run_step = build_step(kind, 256, options)
        start = reset_peak_memory(device)
        run_step()
    return [{"case": case, "kind": kind, "mebibytes": read_peak_memory(device) - start}]


def reset_peak_memory(device: str) -> float:
    """Forget the peak so far. Returns the memory in use, MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return read_peak_memory(device)


def read_peak_memory(device: str) -> float:
    """MiB of the device that this process has held at most since the peak was reset."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return machine.peak_memory()


GROUPS = {
    "forward": measure_forward,
    "step": measure_step,
    "irnn": measure_irnn,
    "passes": serve_passes,
    "tiles": compare_tiles,
    "loss": measure_loss,
    "data": measure_data,
    "start": measure_start,
    "profile": profile_steps,
    "memory": measure_memory,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="A group of the cases of bench.py.")
    parser.add_argument("group", choices=GROUPS)
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
    print(json.dumps(GROUPS[options.group](options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
