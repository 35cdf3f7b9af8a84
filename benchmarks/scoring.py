"""Pairs a second that are scored: python benchmarks/scoring.py [--pairs N] [--side N]

First `measure` by turns with scikit-image called plainly (plain_scores.py), on one pair in one
thread; both must agree to 1e-9. Then `main.py -a score` as a user runs it: one method on a list of
pairs with rainy images, so two measurements a pair, and the page.
"""

import argparse
import json
import math
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

from benchmarks.plain_scores import plain
from benchmarks.timing import alternate
from report.metrics import measure

BOUND = 1e-9
SECONDS = 20


def images(side: int, seed: int) -> list[np.ndarray]:
    """A clean image, one with streaks, and one between: as smooth as photographs are."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (side // 16 + 1,) * 2 + (3,), np.uint8)
    clean = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    clean = np.clip(clean + rng.normal(0, 4, clean.shape), 0, 255).astype(np.uint8)
    streaks = cv2.blur((rng.random((side, side, 1)) > 0.99) * 120.0, (1, 15))[..., None]
    rainy = np.clip(clean + streaks * 4, 0, 255).astype(np.uint8)
    return [clean, rainy, cv2.addWeighted(clean, 0.8, rainy, 0.2, 0)]


def compared(side: int) -> dict[str, float]:
    """Seconds that a pair takes in one thread, ours and plainly."""
    cv2.setNumThreads(1)
    clean, _, result = images(side, 0)
    found, expected = measure(result, clean, order="BGR"), plain(result, clean)
    for name, value in expected.items():
        if not math.isclose(found[name], value, abs_tol=BOUND):
            sys.exit(f"scoring.py: {name}: {found[name]!r}, plainly {value!r}")
    return alternate(
        {
            "ours": lambda: measure(result, clean, order="BGR"),
            "plain": lambda: plain(result, clean),
        },
        SECONDS,
        "cpu",
    )


def whole(pairs: int, side: int) -> float:
    """Seconds of the action on a list of that many pairs."""
    with tempfile.TemporaryDirectory() as folder:
        for place in range(pairs):
            for name, image in zip(("clean", "rain", "results"), images(side, place), strict=True):
                Path(folder, name).mkdir(exist_ok=True)
                cv2.imwrite(f"{folder}/{name}/{place}.png", image)
        command = [sys.executable, str(ROOT / "main.py"), "-a", "score", "-i", f"{folder}/results"]
        command += ["--test-list", folder, "-o", f"{folder}/out", "--layout", "rain:clean:name"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"scoring.py: the action failed: {done.stderr}")
        return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description="Pairs a second that are scored.")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--side", type=int, default=512)
    options = parser.parse_args()
    taken = compared(options.side)
    rate, plainly = (1 / taken[name] for name in ("ours", "plain"))
    print(
        f"measure, one thread, {options.side}x{options.side}: {rate:.2f} pairs a second, "
        f"scikit-image called plainly {plainly:.2f}: ratio {rate / plainly:.2f}",
        flush=True,
    )
    seconds = whole(options.pairs, options.side)
    print(
        f"-a score, {machine.count_cores()} cores: {options.pairs} pairs in {seconds:.1f} s, "
        f"{options.pairs / seconds:.1f} a second"
    )
    row = {"ours": taken["ours"], "plain": taken["plain"], "pairs": options.pairs, "whole": seconds}
    print(json.dumps([row]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
