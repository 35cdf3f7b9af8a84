"""Speed and memory against a plain port: python benchmarks/bench.py [--json FILE] [--device cuda]

The plain port is naive.py; on a GPU the IRNN is held against the published scheme instead
(rescan.cu). Ours and the baseline run by turns in one process, and so does a float32 matrix product
(or a copy of memory): `share` is a fraction of the machine's own rate in it. The products counted
are those of the convolutions, three times a forward pass for a step. In the group onnx, which is
for a CPU alone, ONNX Runtime takes the baseline's place; tiles holds blended tiles against the
whole image, by the weights of --weights. The group start holds the CPU time of whole programs that
derain one picture against that of `import torch`. Memory is the peak over the start, in a process
for each case. cases.py does the work of the groups.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from system import machine

machine.share_cores()

import torch

GROUPS = ("forward", "step", "irnn", "loss", "data", "onnx", "start")
MEMORY = [
    ("forward256x256", "ours"),
    ("forward256x256", "baseline"),
    ("forward512x512", "ours"),
    ("forward512x512", "baseline"),
    ("forward2160x3840", "ours"),
    ("forward1536x2048", "ours"),
    ("forward1536x2048", "tiled"),
    ("step", "ours"),
    ("step", "recomputed"),
    ("step", "baseline"),
]


def run(group: str, *options: str) -> list[dict]:
    command = [sys.executable, str(Path(__file__).with_name("cases.py")), group, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"bench.py: the case '{' '.join([group, *options])}' failed")
    return json.loads(done.stdout.splitlines()[-1])


def describe(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{machine.processor_name()}, {machine.count_cores()} cores"


def show_times(rows: list[dict], heading: bool) -> None:
    if heading:
        print(f"{'case':<48}{'ours':>11}{'plain port':>12}{'ratio':>8}  share")
    for row in rows:
        share = f"{row['share']:.0%} of {row['of']}" if "share" in row else ""
        if row.get("of") == "matrix":
            share += f" ({row['matrix_gflops']:.0f} GFLOP/s)"
        ours, baseline = row["ours"] * 1e3, row["baseline"] * 1e3
        ratio = f"{baseline / ours:.1f}x"
        line = f"{row['case']:<48}{ours:>8.1f} ms{baseline:>9.1f} ms{ratio:>8}  {share}"
        print(line, flush=True)  # each group as it ends: a later one may fail


def show_memory(rows: list[dict]) -> None:
    baselines = {row["case"]: row["mebibytes"] for row in rows if row["kind"] == "baseline"}
    print(f"\n{'peak memory over the start':<48}{'MiB':>8}  of plain port")
    for row in rows:
        whole = baselines.get(row["case"])
        share = f"{row['mebibytes'] / whole:.0%}" if whole else ""
        print(f"{row['case'] + ', ' + row['kind']:<48}{row['mebibytes']:>8.0f}  {share}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed and memory against a plain port.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--weights", help="checkpoint of the cases; model/demo if not given")
    parser.add_argument("--json", help="write the figures to this file too")
    parser.add_argument("--groups", nargs="+", choices=[*GROUPS, "tiles", "memory"])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.py: --device: cuda asked for, but torch finds no GPU", file=sys.stderr)
        return 2
    chosen = options.groups or [*GROUPS, "tiles", "memory"]
    common = ["--device", options.device]
    common += ["--weights", options.weights] if options.weights else []
    name = describe(options.device)
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    times, blended, peaks = [], [], []
    for group in GROUPS:
        if group in chosen and not (group == "onnx" and options.device == "cuda"):
            found = run(group, *common, "--seconds", str(options.seconds))
            show_times(found, heading=not times)
            times += found
    if "tiles" in chosen:
        blended = run("tiles", *common)
        for row in blended:
            print(f"\nin tiles of {row['tile']}: {row['psnr']:.1f} dB from the whole image")
    if "memory" in chosen:
        for case, kind in MEMORY:
            peaks += run("memory", *common, "--case", case, "--kind", kind)
        show_memory(peaks)
    if options.json:
        figures = {
            "device": name,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "times": times,
            "tiles": blended,
            "memory": peaks,
        }
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
