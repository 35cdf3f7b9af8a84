"""Speed and memory against a plain port: python benchmarks/bench.py [--json FILE] [--device cuda]

The plain port is naive.py. For the IRNN on a GPU, the baseline is the published scheme (rescan.cu).
Ours, the baseline, and a float32 matrix product (or a copy of memory) run in alternation in one
process: `share` is the fraction of the machine's own rate that ours reaches. It counts the
multiply-adds of the convolutions, three times those of a forward pass for a step.

The group onnx, for a CPU only, compares with ONNX Runtime, which runs in a process of its own. The
group start compares the CPU time of a program that derains one picture with that of `import torch`.
The group tiles compares blended tiles with the whole image, with the weights of --weights. The
group memory prints the peak of each case over its start. cases.py does the work of the groups.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from system import machine

machine.share_cores()

import torch

from benchmarks.timing import parse_size

TIME_GROUPS = ("forward", "step", "irnn", "loss", "data", "onnx", "start")
GROUPS = (*TIME_GROUPS, "tiles", "memory")
CASES = Path(__file__).with_name("cases.py")
MEMORY_CASES = [
    ("forward256x256", "ours"),
    ("forward256x256", "baseline"),
    ("forward512x512", "ours"),
    ("forward512x512", "baseline"),
    ("forward2160x3840", "ours"),
    ("forward1536x2048", "ours"),
    ("forward1536x2048", "tiled"),
    ("forward3000x4000", "ours"),
    ("step", "ours"),
    ("step", "recomputed"),
    ("step", "baseline"),
]


def run_group(group: str, *arguments: str) -> list[dict]:
    """The rows that cases.py prints for a group."""
    command = [sys.executable, str(CASES), group, *arguments]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(f"bench.py: the case '{' '.join([group, *arguments])}' failed")
    return json.loads(process.stdout.splitlines()[-1])


def compare_with_onnx(side: int, arguments: list[str]) -> dict:
    """A row of the table for images of that side; faults are the page faults of a pass of ours."""
    command = [sys.executable, str(CASES), "passes", *arguments, "--case", f"forward{side}x{side}"]
    workers = {}
    for kind in ("ours", "onnx"):  # one after the other, so that they warm up undisturbed
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers[kind] = subprocess.Popen([*command, "--kind", kind], **pipes)
        workers[kind].stdout.readline()
    passes = {kind: [] for kind in workers}
    for _ in range(max(5, min(15, 15 * 512 // side))):
        for kind, worker in workers.items():
            print(file=worker.stdin, flush=True)
            passes[kind].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    seconds = {kind: statistics.median(row[0] for row in rows) for kind, rows in passes.items()}
    faults = statistics.median(row[1] for row in passes["ours"])
    case = f"forward 1x{side}x{side} (ONNX Runtime; {faults:.0f} faults)"
    return {"case": case, "ours": seconds["ours"], "baseline": seconds["onnx"]}


def describe_device(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{machine.processor_name()}, {machine.count_cores()} cores"


def print_times(row: dict, heading: bool) -> None:
    if heading:
        print(f"{'case':<48}{'ours':>11}{'plain port':>12}{'ratio':>8}  share")
    share = f"{row['share']:.0%} of {row['of']}" if "share" in row else ""
    if row.get("of") == "matrix":
        share += f" ({row['matrix_gflops']:.0f} GFLOP/s)"
    ratio = f"{row['baseline'] / row['ours']:.1f}x"
    times = f"{row['ours'] * 1e3:>8.1f} ms{row['baseline'] * 1e3:>9.1f} ms{ratio:>8}"
    print(f"{row['case']:<48}{times}  {share}", flush=True)  # at once: a later group may fail


def print_memory(rows: list[dict]) -> None:
    baselines = {row["case"]: row["mebibytes"] for row in rows if row["kind"] == "baseline"}
    print(f"\n{'peak memory over the start':<48}{'MiB':>8}  of plain port")
    for row in rows:
        baseline = baselines.get(row["case"])
        share = f"{row['mebibytes'] / baseline:.0%}" if baseline else ""
        if row["case"].startswith("forward") and not baseline:
            height, width = parse_size(row["case"])
            share = f"{row['mebibytes'] / (height * width / 1e6):.0f} MiB a megapixel"
        print(f"{row['case'] + ', ' + row['kind']:<48}{row['mebibytes']:>8.0f}  {share}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed and memory against a plain port.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--weights", help="checkpoint of the cases; model/demo if not given")
    parser.add_argument("--json", help="write the figures to this file too")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.py: --device: cuda asked for, but torch finds no GPU", file=sys.stderr)
        return 2
    arguments = ["--device", options.device]
    arguments += ["--weights", options.weights] if options.weights else []
    name = describe_device(options.device)
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    time_rows, tile_rows, memory_rows = [], [], []
    for group in TIME_GROUPS:
        if group not in options.groups or (group == "onnx" and options.device == "cuda"):
            continue
        if group == "onnx":
            rows = (compare_with_onnx(side, arguments) for side in (256, 512, 1024, 2048))
        else:
            rows = run_group(group, *arguments, "--seconds", str(options.seconds))
        for row in rows:
            print_times(row, heading=not time_rows)
            time_rows.append(row)
    if "tiles" in options.groups:
        tile_rows = run_group("tiles", *arguments)
        for row in tile_rows:
            print(f"\nin tiles of {row['tile']}: {row['psnr']:.1f} dB from the whole image")
    if "memory" in options.groups:
        for case, kind in MEMORY_CASES:
            memory_rows += run_group("memory", *arguments, "--case", case, "--kind", kind)
        print_memory(memory_rows)
    if options.json:
        figures = {
            "device": name,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "times": time_rows,
            "tiles": tile_rows,
            "memory": memory_rows,
        }
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
