"""What keeps the attention map alive: python benchmarks/recipe.py --list LIST.txt -o FOLDER

It trains three times on the same batches: with the defaults; with the learning rate of the released
main.py, 5e-3; and with first biases of the IRNN between -1 and 1, as current PyTorch would draw
them. Crops are small, so that a CPU needs only hours. For several steps of each run it prints the
loss, the mean and deviation of the mask, and the correlation of the mask with its label. The first
three are means over the batches of the last steps, the correlation is over every pixel of the
list's whole images. To resume a run that was stopped, start the same command again.
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

AVERAGED_STEPS = 20
RUNS = {  # name: options of its own
    "defaults": [],
    "lr 5e-3": ["--lr", "5e-3"],
    "biases from -1 to 1": ["--init-from"],  # main adds the file
}


def save_wide_biases(path: Path) -> None:
    """Save the first weights of a run with the defaults, but with biases of the IRNN in -1..1."""
    torch.manual_seed(Settings("train").seed)
    net = SPANet()
    for key, value in net.state_dict().items():
        if "irnn" in key and key.endswith("bias"):
            value.mul_(CHANNELS**0.5)
    checkpoint.save(path, {"net": net.state_dict(), "clock": -1})


def run_training(folder: Path, arguments: list[str], steps: int) -> None:
    command = [sys.executable, str(ROOT / "main.py"), "-a", "train", *arguments]
    command += ["--model-dir", str(folder / "model"), "--log-dir", str(folder / "logdir")]
    command += ["--num-steps", str(steps + 1), "--checkpoint-every", str(max(1, steps // 20))]
    command += ["--log-every", "100"]
    if subprocess.run(command).returncode:
        sys.exit(f"recipe.py: the run in {folder} stopped")


@torch.inference_mode()
def correlate_masks(path: Path, pairs: Sequence[Pair]) -> float:
    """Correlation of masks with labels over every pixel of the pairs; nan if masks are constant."""
    net = SPANet()
    net.load_state_dict(checkpoint.load(path)["net"])
    masks, labels = [], []
    for pair in pairs:
        rainy, clean = (torch.from_numpy(image)[None] for image in read_pair(pair))
        masks.append(net(to_float(rainy))[0].flatten().double().numpy())
        labels.append(mask_label(rainy, clean).flatten().double().numpy())
    mask, label = np.concatenate(masks), np.concatenate(labels)
    return float(np.corrcoef(mask, label)[0, 1]) if np.ptp(mask) else float("nan")


def print_table(options: argparse.Namespace, pairs: Sequence[Pair]) -> None:
    size = f"{options.patch_size}x{options.patch_size}"
    print(f"{options.batch_size} crops of {size}, {options.precision}")
    print(f"{'run':<22}{'step':>6}{'loss':>9}{'mask mean':>11}{'deviation':>11}{'correlation':>13}")
    for name in RUNS:
        folder = options.output / name.replace(" ", "_")
        curves = read_scalars(folder / "logdir" / "train_derain")
        for step in sorted({options.steps // part for part in (20, 10, 5, 2, 1)} - {0}):
            path = folder / "model" / f"step_{step}"
            if not path.exists():
                continue
            steps = range(step - AVERAGED_STEPS + 1, step + 1)
            loss, mean, deviation = (
                np.mean([curves[tag][i] for i in steps if i in curves[tag]])
                for tag in ("loss/total", "mask/mean", "mask/std")
            )
            batch_figures = f"{loss:>9.4f}{mean:>11.4f}{deviation:>11.2g}"
            print(f"{name:<22}{step:>6}{batch_figures}{correlate_masks(path, pairs):>13.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description="What keeps the attention map alive.")
    parser.add_argument("--list", required=True, help="list of training pairs")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--patch-size", type=int, default=96)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--num-threads", type=int, default=0)
    options = parser.parse_args()
    arguments = ["--train-list", options.list, "--batch-size", str(options.batch_size)]
    arguments += ["--patch-size", str(options.patch_size), "--precision", options.precision]
    arguments += ["--num-threads", str(options.num_threads), "--num-workers", "1"]
    pairs = read_list(options.list, need_clean=True)
    for name, run_arguments in RUNS.items():
        folder = options.output / name.replace(" ", "_")
        if run_arguments == ["--init-from"]:
            start = folder / "start"
            if not start.exists():
                save_wide_biases(start)
            run_arguments = [*run_arguments, str(start)]
        run_training(folder, [*arguments, *run_arguments], options.steps)
    print_table(options, pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
