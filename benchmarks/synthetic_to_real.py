"""What carries over from synthetic to real rain:
python benchmarks/synthetic_to_real.py -o FOLDER LIST [LIST ...]

Each row of its table is a short training from the same weights, on a set that differs in one thing
from that of docs/train.md. It shows what the weights gain on the pairs of each list: mean PSNR in
the `released` protocol, in dB. To resume a run that was stopped, start the same
command again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from system import machine

machine.share_cores()

import numpy as np

from rain import synthetic_rain
from rain.streaks import Look, Rain
from rain.synthetic_rain import KINDS, SetSettings, draw_looks

BATCH_SIZE, SET_SEED = 4, 2019
RECIPE: dict[str, object] = {
    "--batch-size": BATCH_SIZE, "--crop": "native", "--precision": "bf16", "--lr": 3e-4,
    "--schedule": "cosine", "--warmup-steps": 20, "--grad-clip": 1, "--ema": 0.98,
    "--off-mask-weight": 2, "--num-workers": 0,
    "--picture-every": 10**6, "--checkpoint-every": 10**6,
}  # fmt: skip
SAMPLE_LOOK = Look.sample


def leave_out(*names: str) -> dict[str, Any]:
    """KINDS without looks of these names; "" is no rain. The others become more frequent."""
    kept = [(share, looks) for share, looks in KINDS if next(iter(looks), "") not in names]
    total = sum(share for share, _ in kept)
    kinds = [
        (share / total, {look: often for look, often in looks.items() if look not in names})
        for share, looks in kept
    ]
    return {"KINDS": kinds}


def draw_at_one_scale(rng: np.random.Generator) -> list[Rain]:
    with patch.object(Look, "sample", lambda look, rng, _: SAMPLE_LOOK(look, rng)):
        return draw_looks(rng)


# For each row: what replaces names of rain.synthetic_rain, and further options of train.
ROWS: dict[str, tuple[dict[str, Any], dict[str, object]]] = {
    "as in train.md": ({}, {}),
    "another seed": ({}, {"--seed": 1}),
    "no patch without rain": (leave_out(""), {}),
    "no near drops": (leave_out("near"), {}),
    "no faint rain": (leave_out("faint"), {}),
    "no dense, fine or thin rain": (leave_out("dense", "fine", "thin"), {}),
    "no arcs": (leave_out("arc"), {}),
    "no veils": (leave_out("veil"), {}),
    "rain at one scale": ({"draw_looks": draw_at_one_scale}, {}),
    "no traces of compression": ({"_compressed": lambda rainy, clean, _: (rainy, clean)}, {}),
    "--off-mask-weight 0": ({}, {"--off-mask-weight": 0}),
}


def run_main(*words: object) -> None:
    command = [sys.executable, str(ROOT / "main.py"), "--device", "cpu", "--num-threads", "1"]
    if subprocess.run([*command, *map(str, words)], stdout=subprocess.DEVNULL).returncode:
        sys.exit("synthetic_to_real.py: a run stopped")


def train_row(
    folder: Path,
    changes: dict[str, Any],
    row_options: dict[str, object],
    options: argparse.Namespace,
) -> Path:
    """Draw the set of a row and train on it, unless that is done. Returns the checkpoint."""
    train_list, side = folder / "train.txt", options.patch_size + 16
    if not train_list.exists():
        count = options.steps * BATCH_SIZE
        drawn = SetSettings("train", str(folder), SET_SEED, count, side, options.photographs, 0)
        with ExitStack() as stack:
            for name, value in changes.items():
                stack.enter_context(patch.object(synthetic_rain, name, value))
            synthetic_rain.write_set(drawn)
    recipe = (
        RECIPE | row_options | {"--num-steps": options.steps, "--patch-size": options.patch_size}
    )
    recipe |= {"--train-list": train_list, "--model-dir": folder, "--log-dir": folder}
    recipe |= {"-m": "latest", "--init-from": options.init_from.resolve()}
    run_main("-a", "train", "--flip", *chain.from_iterable(recipe.items()))
    return folder / "latest"


def measure_psnr(weights: Path, lists: list[str], folder: Path) -> list[float]:
    """The mean PSNR of weights on each list, in dB."""
    values = []
    for number, path in enumerate(lists):
        results = folder / f"results{number}"
        places = ["--test-list", path, "--result-dir", results, "--log-dir", folder]
        run_main("-a", "test", "-m", weights.resolve(), *places)
        summary = json.loads((results / "summary.json").read_text())
        values.append(summary["means"]["output_released_psnr"])
    return values


def print_row(name: str, cells: Iterable[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="What carries over from synthetic to real rain.")
    parser.add_argument("lists", nargs="+", metavar="LIST", help="pairs to test on")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--init-from", type=Path, default=ROOT / "model" / "demo")
    parser.add_argument("--photographs", default="", help="folder of pictures to draw rain on too")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--patch-size", type=int, default=128)
    options = parser.parse_args()
    folder, start = options.output / "start", options.init_from
    before = measure_psnr(start, options.lists, folder)
    print_row("change", [Path(path).stem for path in options.lists])
    print_row("---", ["---"] * len(before))
    print_row(f"none: {start.name}", [f"{psnr:.2f} dB" for psnr in before])
    for number, (name, (changes, row_options)) in enumerate(ROWS.items()):
        folder = options.output / f"row{number}"
        weights = train_row(folder, changes, row_options, options)
        after = measure_psnr(weights, options.lists, folder)
        print_row(name, [f"{b - a:+.2f}" for a, b in zip(before, after, strict=True)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
