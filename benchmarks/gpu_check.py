"""Tests and measurements for a GPU that was not tried before: make gpu-check

Writes one table, gpu-check.md, row by row; please send it to us. The parts are: the machine, the
tests of the GPU, the benchmark, profiles of a training step, short trainings, and the deraining of
a 1080p clip. A profile compares the time of a step with the work of the GPU in it, with and without
--checkpoint-activations ("recomputed"). The trainings differ in precision, --compile and the number
of loading processes. If a part fails, its row holds the last line that it printed, and the next
part runs. On a GPU the baseline of the IRNN is the released scheme (rescan.cu). Use `--device cpu`
with small numbers to try this program itself.
"""

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
TIME_LIMIT = 1800  # seconds, of one program
Rows = Iterator[tuple[str, str]]  # of the table: name and figure


class PartFailed(Exception):
    """A program failed or took too long; the text says how."""


def run_program(*arguments: object) -> str:
    """Run a program of this project. Returns what it printed.

    Raises:
        PartFailed: it ended with another status than 0, or took longer than TIME_LIMIT.
    """
    command = [sys.executable, *map(str, arguments)]
    try:
        process = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        raise PartFailed(f"not done after {TIME_LIMIT} s") from None
    if process.returncode:
        output = process.stderr.strip() or process.stdout.strip() or "no output"
        raise PartFailed(f"status {process.returncode}: {output.splitlines()[-1][:200]}")
    return process.stdout


def describe_machine(options: argparse.Namespace) -> Rows:
    if options.device == "cuda":
        yield "card", torch.cuda.get_device_name()
        yield "memory", f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True).stdout.split()
        yield "driver", driver[0] if driver else "unknown"
    yield "processor", f"{machine.processor_name()}, {machine.count_cores()} cores"
    versions = [f"Python {platform.python_version()}", f"CUDA {torch.version.cuda}"]
    for package in ("torch", "cupy-cuda13x", "numpy"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    yield "versions", ", ".join(versions)


def run_tests() -> Rows:
    # In one process: several would not fit into the memory of a small card.
    files = "tests/test_irnn_gpu.py", "tests/test_gpu.py"
    output = run_program("-m", "pytest", "-n", 0, *files)
    yield "tests of the GPU", output.strip().splitlines()[-1]


def run_benchmark(options: argparse.Namespace, folder: Path) -> Rows:
    for group in options.groups:
        path = folder / f"{group}.json"
        arguments = ["--device", options.device, "--seconds", options.seconds, "--json", path]
        run_program(ROOT / "benchmarks" / "bench.py", "--groups", group, *arguments)
        for row in json.loads(path.read_text())["times"]:
            share = f", {row['share']:.0%} of {row['of']}" if "share" in row else ""
            ratio = row["baseline"] / row["ours"]
            yield row["case"], f"{row['ours'] * 1e3:.2f} ms, baseline {ratio:.1f} times{share}"


def profile_steps(options: argparse.Namespace) -> Rows:
    """The time of a training step, and of the device's work in it."""
    arguments = ["--device", options.device, "--steps", options.profile_steps]
    arguments += ["--count", options.batch_size, "--side", options.patch_size]
    output = run_program(ROOT / "benchmarks" / "cases.py", "profile", *arguments)
    for row in json.loads(output.splitlines()[-1]):
        busy, wall = row["busy"] * 1e3, row["wall"] * 1e3
        yield f"step, {row['case']}", f"{wall:.2f} ms, {busy:.2f} ms of work: {busy / wall:.0%}"


def time_training(options: argparse.Namespace, folder: Path) -> Rows:
    """Images a second over the second half of each run, with all that lies between its steps."""
    synthetic_set = ["-m", "rain.synthetic_rain", "train", "-o", folder, "-n", 64]
    run_program(*synthetic_set, "--side", min(options.patch_size, 300))
    variants = list(product(("fp32", "tf32", "bf16"), ([], ["--compile"]), (2,)))
    if options.device == "cpu":
        variants = variants[:1]
    for number, (precision, compilation, workers) in enumerate([*variants, ("fp32", [], 8)]):
        run_folder = folder / str(number)
        arguments = ["--train-list", folder / "train.txt", "--device", options.device]
        arguments += ["--model-dir", run_folder, "--log-dir", run_folder / "log"]
        arguments += ["--num-steps", options.steps, "--batch-size", options.batch_size]
        arguments += ["--patch-size", options.patch_size, "--precision", precision]
        arguments += ["--num-workers", workers, *compilation]
        name = f"training, {precision}{', compiled' if compilation else ''}, {workers} workers"
        try:
            run_program("main.py", "-a", "train", *arguments)
        except PartFailed as failure:  # the other variants may work
            yield name, f"failed: {failure}"
            continue
        curves = read_scalars(run_folder / "log" / "train_derain")
        rates = list(curves["speed/images_per_second"].values())
        loss = list(curves["loss/total"].values())[-1]
        second_half = rates[len(rates) // 2 :]
        rate = len(second_half) / sum(1 / rate for rate in second_half)  # images by their time
        yield name, f"{rate:.3g} images a second, last loss {loss:.4f}"


def time_deraining(options: argparse.Namespace, folder: Path) -> Rows:
    """Frames a second, from clips of two lengths: the start of the program does not count."""
    width, height = options.clip
    clean = cv2.resize(backgrounds.photograph("coffee"), (width, height))
    rain = [streaks.Rain(1.5, 10, 25, 1, 110, 0.6)]
    seconds = []
    for count in (2, 2 + options.frames):
        clip = folder / f"{count}.mkv"
        frames = streaks.rain_frames(clean, rain, count, 1.0, np.random.default_rng(0))
        synthetic_rain.write_video(clip, frames, (width, height))
        arguments = ["-m", ROOT / "model" / "demo", "-i", clip, "-o", folder / f"{count}-clean.mkv"]
        start = time.monotonic()
        run_program("main.py", "-a", "derain", *arguments, "--device", options.device)
        seconds.append(time.monotonic() - start)
    difference = seconds[1] - seconds[0]
    # Below a second, it may come from the starts of the two runs rather than from the frames.
    speed = f"{options.frames / difference:.3g} frames a second"
    yield f"deraining a clip of {width}x{height}", speed if difference > 1 else "too short to tell"


def run_parts(parts: dict[str, Rows]) -> Rows:
    """The rows of all parts, and one for each part that fails."""
    for name, rows in parts.items():
        try:
            yield from rows
        except PartFailed as failure:
            yield name, f"failed: {failure}"


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
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check.py: torch finds no GPU on this machine; nothing was run", file=sys.stderr)
        return 2
    failures = 0
    with tempfile.TemporaryDirectory() as name, options.output.open("w", encoding="utf-8") as file:
        folder = Path(name)
        parts = {
            "machine": describe_machine(options),
            "tests": run_tests(),
            "benchmark": run_benchmark(options, folder),
            "profile": profile_steps(options),
            "training": time_training(options, folder / "training"),
            "deraining": time_deraining(options, folder),
        }
        print("| what | figure |\n|---|---|", file=file, flush=True)
        for what, figure in run_parts(parts):
            print(f"{what}: {figure}", flush=True)
            print(f"| {what} | {figure.replace('|', '/')} |", file=file, flush=True)
            failures += figure.startswith("failed: ")
    if failures:
        print(f"{options.output}: written, {failures} of its parts failed")
        return 1
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
