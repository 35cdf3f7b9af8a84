"""What to run first on a GPU, and may be sent to us: make gpu-check

Runs the tests of the GPU kernels, the benchmark's groups, profiles of a step, short trainings in
each precision, with and without --compile and with few and many loading processes, and the
deraining of a 1080p clip. A profile holds the time of a step against the work of the GPU in it,
with and without --checkpoint-activations ("recomputed"). Writes one table, gpu-check.md, a line as
each part ends. A part that fails is written down with its last words, and the next one goes on.
Where the benchmark has a GPU, its ratio is to the released scheme of the kernels (rescan.cu).
`--device cpu` with small numbers tries this program itself.
"""

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from system import machine

machine.share_cores()

import cv2
import numpy as np
import torch

from benchmarks.curves import read_scalars
from rain import backgrounds, streaks, synthetic_rain

GROUPS = ("irnn", "forward", "step", "loss")
PATIENCE = 1800  # seconds that a part may take
Lines = Iterator[tuple[str, str]]  # what was measured, and its figure


class Failed(Exception):
    """A part that did not end well; its text is the last line that it printed."""


def ended(*words: object) -> str:
    """What a program of this project printed. Raises Failed."""
    command = [sys.executable, *map(str, words)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {PATIENCE} s") from None
    if done.returncode:
        printed = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()
        raise Failed(f"status {done.returncode}: {printed[-1][:200]}")
    return done.stdout


def about(given: argparse.Namespace) -> Lines:
    if given.device == "cuda":
        yield "card", torch.cuda.get_device_name()
        yield "memory", f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(words, capture_output=True, text=True).stdout.split()
        yield "driver", driver[0] if driver else "unknown"
    yield "processor", f"{machine.processor_name()}, {machine.count_cores()} cores"
    versions = [f"Python {platform.python_version()}", f"CUDA {torch.version.cuda}"]
    for package in ("torch", "cupy-cuda13x", "numpy"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    yield "versions", ", ".join(versions)


def tests(given: argparse.Namespace) -> Lines:
    # One after the other: several processes would not fit into a small card's memory.
    for file in ("tests/test_irnn_gpu.py", "tests/test_gpu.py"):
        yield file, ended("-m", "pytest", "-n", 0, file).strip().splitlines()[-1]


def bench(given: argparse.Namespace, folder: Path) -> Lines:
    for group in given.groups:
        figures = folder / f"{group}.json"
        options = ["--device", given.device, "--seconds", given.seconds, "--json", figures]
        ended(ROOT / "benchmarks" / "bench.py", "--groups", group, *options)
        for row in json.loads(figures.read_text())["times"]:
            share = f", {row['share']:.0%} of {row['of']}" if "share" in row else ""
            ratio = row["baseline"] / row["ours"]
            yield row["case"], f"{row['ours'] * 1e3:.2f} ms, baseline {ratio:.1f} times{share}"


def training(given: argparse.Namespace, folder: Path) -> Lines:
    """Images a second over the second half of a run, with all that comes between two steps."""
    synthetic = ("-m", "rain.synthetic_rain", "train", "-o", folder, "-n", 64)
    ended(*synthetic, "--side", min(given.patch_size, 300))
    ways = [(p, c, 2) for p, c in product(("fp32", "tf32", "bf16"), (False, True))]
    if given.device == "cpu":
        ways = [("fp32", False, 2)]
    for number, (precision, compiled, workers) in enumerate([*ways, ("fp32", False, 8)]):
        own = folder / str(number)
        options = ["--train-list", folder / "train.txt", "--device", given.device]
        options += ["--model-dir", own, "--log-dir", own / "log", "--num-steps", given.steps]
        options += ["--batch-size", given.batch_size, "--patch-size", given.patch_size]
        options += ["--precision", precision, "--num-workers", workers]
        name = f"training, {precision}{', compiled' if compiled else ''}, {workers} workers"
        try:
            ended("main.py", "-a", "train", *options, *["--compile"] * compiled)
        except Failed as failure:  # of one way; the others may work
            yield name, f"failed: {failure}"
            continue
        curves = read_scalars(own / "log" / "train_derain")
        rates = list(curves["speed/images_per_second"].values())
        loss = list(curves["loss/total"].values())[-1]
        later = rates[len(rates) // 2 :]
        rate = len(later) / sum(1 / rate for rate in later)  # images by the time that they took
        yield name, f"{rate:.3g} images a second, last loss {loss:.4f}"


def profile(given: argparse.Namespace) -> Lines:
    """A step of training: its time, and how much of it the device works."""
    sizes = "--count", given.batch_size, "--side", given.patch_size, "--steps", given.profile_steps
    text = ended(ROOT / "benchmarks" / "cases.py", "profile", "--device", given.device, *sizes)
    for row in json.loads(text.splitlines()[-1]):
        busy, wall = row["busy"] * 1e3, row["wall"] * 1e3
        yield f"step, {row['case']}", f"{wall:.2f} ms, {busy:.2f} ms of work: {busy / wall:.0%}"


def deraining(given: argparse.Namespace, folder: Path) -> Lines:
    """Frames a second, from clips of two lengths, so that the start does not count."""
    width, height = given.clip
    clean = cv2.resize(backgrounds.photograph("coffee"), (width, height))
    rain = [streaks.Rain(1.5, 10, 25, 1, 110, 0.6)]
    seconds = []
    for count in (2, 2 + given.frames):
        clip = folder / f"{count}.mkv"
        frames = streaks.rain_frames(clean, rain, count, 1.0, np.random.default_rng(0))
        synthetic_rain.write_video(clip, frames, (width, height))
        words = ["main.py", "-a", "derain", "-m", ROOT / "model" / "demo", "-i", clip]
        start = time.monotonic()
        ended(*words, "-o", folder / f"{count}-clean.mkv", "--device", given.device)
        seconds.append(time.monotonic() - start)
    longer = seconds[1] - seconds[0]
    # Where a clip is too short, the starts of the two runs differ by more than its frames take.
    speed = f"{given.frames / longer:.3g} frames a second" if longer > 1 else "too short to tell"
    yield f"deraining a clip of {width}x{height}", speed


def main() -> int:
    parser = argparse.ArgumentParser(description="What to run first on a GPU.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-check.md"))
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--profile-steps", type=int, default=20, help="of each step's profile")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--patch-size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=60, help="of the clip")
    parser.add_argument("--clip", type=int, nargs=2, default=(1920, 1080), help="width, height")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--groups", nargs="*", default=GROUPS, help="of the benchmark")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check.py: torch finds no GPU on this machine; nothing was run", file=sys.stderr)
        return 2
    failed = 0
    with tempfile.TemporaryDirectory() as name, given.output.open("w", encoding="utf-8") as file:
        folder = Path(name)
        parts: dict[str, Callable[[], Lines]] = {
            "about": lambda: about(given),
            "tests": lambda: tests(given),
            "benchmark": lambda: bench(given, folder),
            "profile": lambda: profile(given),
            "training": lambda: training(given, folder / "training"),
            "deraining": lambda: deraining(given, folder),
        }
        print("| what | figure |\n|---|---|", file=file, flush=True)
        for part, lines in parts.items():
            try:
                for what, figure in lines():
                    print(f"{what}: {figure}", flush=True)
                    print(f"| {what} | {figure.replace('|', '/')} |", file=file, flush=True)
                    failed += figure.startswith("failed: ")
            except Failed as failure:
                print(f"{part} failed: {failure}", flush=True)
                print(
                    f"| {part} | failed: {str(failure).replace('|', '/')} |", file=file, flush=True
                )
                failed += 1
    print(f"{given.output}: written, {failed} of its parts failed" if failed else given.output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
