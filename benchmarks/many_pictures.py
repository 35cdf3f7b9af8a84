"""How `-a derain` scales with the number of pictures: time, memory and size of OUT.

    python benchmarks/many_pictures.py --counts 100 1000 10000

For each count it derains a folder of that many tiny pictures. It prints a row of a Markdown table
for each run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from system import machine

machine.share_cores()

import cv2
import numpy as np

RUNS = {  # in this order
    "with a page": [],
    "once more with `--skip-existing`": ["--skip-existing"],
    "with `--no-page`, into another folder": ["--no-page"],
}


def derain_folder(source: Path, target: Path, arguments: list[str]) -> tuple[float, float]:
    """Run the action on a folder. Returns its time in seconds and its peak memory in MiB."""
    command = [sys.executable, ROOT / "main.py", "-a", "derain", "-m", ROOT / "model" / "demo"]
    command += ["-i", source, "-o", target, *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"many_pictures.py: derain ended with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**10


def measure_folder(folder: Path) -> tuple[int, float]:
    """The number of files in a folder and below, and their bytes in MiB."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--side", type=int, default=16, help="of the pictures, in pixels")
    parser.add_argument("--runs", type=int, default=len(RUNS), help="only the first N of the runs")
    options = parser.parse_args()
    print("| pictures | run | time a picture | peak memory | files in OUT | size of OUT |")
    print("|---|---|---|---|---|---|")
    for count in options.counts:
        with tempfile.TemporaryDirectory() as name:
            source, target = Path(name, "in"), Path(name, "out")
            source.mkdir()
            rng = np.random.default_rng(0)
            for number in range(count):
                image = rng.integers(0, 256, (options.side, options.side, 3), np.uint8)
                cv2.imwrite(str(source / f"{number}.png"), image)
            for run, arguments in list(RUNS.items())[: options.runs]:
                output = Path(name, "bare") if "--no-page" in arguments else target
                seconds, memory = derain_folder(source, output, arguments)
                files, size = measure_folder(output)
                row = f"{1000 * seconds / count:.3g} ms", f"{memory:.0f} MiB", files
                print(f"| {count} | {run} | {' | '.join(map(str, row))} | {size:.3g} MiB |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
