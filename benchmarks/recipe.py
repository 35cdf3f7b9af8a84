"""What keeps the attention map alive: python benchmarks/recipe.py --list LIST.txt -o FOLDER

Trains three times on the same batches: by the defaults; at the learning rate of the released
main.py, 5e-3; and from biases of the IRNN drawn from -1 to 1, as today's PyTorch would draw them.
Crops are small, so that a CPU gets through in some hours. For some steps of each run it prints
the loss, mean and deviation of the mask (over the batches of the last steps up to it) and the
correlation of the mask with its label (over every pixel of the list's whole images). A run goes on
where it was stopped: start the same command again.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from system import machine

machine.share_cores()

import numpy as np
import torch

from benchmarks.curves import read_scalars
from dataset import mask_label, to_float
from engine import checkpoint
from media.lists import Pair, read_list, read_pair
from model import CHANNELS, SPANet
from settings import Settings

WINDOW = 20  # steps that a figure of the batches is the mean of
RUNS = {
    "defaults": [],
    "lr 5e-3": ["--lr", "5e-3"],
    "biases from -1 to 1": ["--init-from"],  # and a file, which main makes
}


def wide_biases(path: Path) -> None:
    """Save the first weights of a run by the defaults, but for the biases of the IRNN."""
    torch.manual_seed(Settings("train").seed)
    net = SPANet()
    for key, value in net.state_dict().items():
        if "irnn" in key and key.endswith("bias"):
            value.mul_(CHANNELS**0.5)
    checkpoint.save(path, {"net": net.state_dict(), "clock": -1})


def train(folder: Path, options: list[str], own: list[str], steps: int) -> None:
    command = [sys.executable, str(ROOT / "main.py"), "-a", "train", *options, *own]
    command += ["--model-dir", str(folder / "model"), "--log-dir", str(folder / "logdir")]
    command += ["--num-steps", str(steps + 1), "--checkpoint-every", str(max(1, steps // 20))]
    command += ["--log-every", "100"]
    if subprocess.run(command).returncode:
        sys.exit(f"recipe.py: the run in {folder} stopped")


@torch.inference_mode()
def correlation(path: Path, pairs: Sequence[Pair]) -> float:
    """Of the mask with its label, over every pixel of the pairs; nan where the mask is constant."""
    net = SPANet()
    net.load_state_dict(checkpoint.load(path)["net"])
    masks, labels = [], []
    for pair in pairs:
        rainy, clean = (torch.from_numpy(image)[None] for image in read_pair(pair))
        masks.append(net(to_float(rainy))[0].flatten().double().numpy())
        labels.append(mask_label(rainy, clean).flatten().double().numpy())
    mask, label = np.concatenate(masks), np.concatenate(labels)
    return float(np.corrcoef(mask, label)[0, 1]) if np.ptp(mask) else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description="What keeps the attention map alive.")
    parser.add_argument("--list", required=True, help="list of training pairs")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--patch-size", type=int, default=96)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--num-threads", type=int, default=0)
    given = parser.parse_args()
    options = ["--train-list", given.list, "--batch-size", str(given.batch_size)]
    options += ["--patch-size", str(given.patch_size), "--precision", given.precision]
    options += ["--num-threads", str(given.num_threads), "--num-workers", "1"]
    pairs = read_list(given.list, need_clean=True)
    for name, own in RUNS.items():
        folder = given.output / name.replace(" ", "_")
        if own == ["--init-from"]:
            start = folder / "start"
            if not start.exists():
                wide_biases(start)
            own = [*own, str(start)]
        train(folder, options, own, given.steps)
    show(given, pairs)
    return 0


def show(given: argparse.Namespace, pairs: Sequence[Pair]) -> None:
    print(f"{given.batch_size} crops of {given.patch_size}x{given.patch_size}, {given.precision}")
    print(f"{'run':<22}{'step':>6}{'loss':>9}{'mask mean':>11}{'deviation':>11}{'correlation':>13}")
    for name in RUNS:
        folder = given.output / name.replace(" ", "_")
        curves = read_scalars(folder / "logdir" / "train_derain")
        for step in sorted({given.steps // part for part in (20, 10, 5, 2, 1)} - {0}):
            path = folder / "model" / f"step_{step}"
            if not path.exists():
                continue
            last = range(step - WINDOW + 1, step + 1)
            loss, mean, deviation = (
                np.mean([curves[tag][i] for i in last if i in curves[tag]])
                for tag in ("loss/total", "mask/mean", "mask/std")
            )
            found = correlation(path, pairs)
            print(f"{name:<22}{step:>6}{loss:>9.4f}{mean:>11.4f}{deviation:>11.2g}{found:>13.3f}")


if __name__ == "__main__":
    sys.exit(main())
