"""Speed and memory against a plain port: python benchmarks/bench.py [--json FILE] [--device cuda]

The plain port is naive.py; on a GPU the IRNN is held against the published scheme instead
(rescan.cu). Ours and the baseline run by turns in one process, and so does a float32 matrix product
(or a copy of memory): `share` is a fraction of the machine's own rate in it. The products counted
are those of the convolutions, three times a forward pass for a step. In the group onnx, which is
for a CPU alone, ONNX Runtime takes the baseline's place, in a process of its own, by turns; tiles
holds blended tiles against the whole image, by the weights of --weights. The group start holds the
CPU time of whole programs that derain one picture against that of `import torch`. Memory is the
peak over the start, in a process for each case. cases.py does the work of the groups.
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

GROUPS = ("forward", "step", "irnn", "loss", "data", "onnx", "start")
MEMORY = [
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


def run(group: str, *options: str) -> list[dict]:
    command = [sys.executable, str(Path(__file__).with_name("cases.py")), group, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"bench.py: the case '{' '.join([group, *options])}' failed")
    return json.loads(done.stdout.splitlines()[-1])


def run_against_onnx(side: int, common: list[str]) -> dict:
    """A row of the table for images of that side; faults are the page faults of a pass of ours."""
    options = ["passes", *common, "--case", f"forward{side}x{side}"]
    workers = {}
    for kind in ("ours", "onnx"):  # one after the other, so that they warm up undisturbed
        command = [sys.executable, str(Path(__file__).with_name("cases.py")), *options]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers[kind] = subprocess.Popen([*command, "--kind", kind], **pipes)
        workers[kind].stdout.readline()
    found = {kind: [] for kind in workers}
    for _ in range(max(5, min(15, 15 * 512 // side))):
        for kind, worker in workers.items():
            print(file=worker.stdin, flush=True)
            found[kind].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    seconds = {kind: statistics.median(row[0] for row in rows) for kind, rows in found.items()}
    faults = statistics.median(row[1] for row in found["ours"])
    case = f"forward 1x{side}x{side} (ONNX Runtime; {faults:.0f} faults)"
    return {"case": case, "ours": seconds["ours"], "baseline": seconds["onnx"]}


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
        if row["case"].startswith("forward") and not whole:
            height, width = (int(side) for side in row["case"].removeprefix("forward").split("x"))
            share = f"{row['mebibytes'] / (height * width / 1e6):.0f} MiB a megapixel"
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
            if group == "onnx":
                rows = (run_against_onnx(side, common) for side in (256, 512, 1024, 2048))
            else:
                rows = run(group, *common, "--seconds", str(options.seconds))
            for row in rows:
                show_times([row], heading=not times)
                times.append(row)
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
