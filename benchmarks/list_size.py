"""Lists of the published size: seconds and memory, ours and in the former way.

python benchmarks/list_size.py [--lines N ...] [--folder DIR] makes sets of so many pairs under the
published names, all hard links to a few images, and removes them at the end. Of each it prints
what it takes to read its list for training in a process of its own, in the former way
(former_lists.py) and in ours, both of which must come to the same fingerprint; then how long
`main.py -a train` takes to its first step, and the memory of its processes after --steps steps.
The first lines are few, to tell what belongs to the program from what belongs to the list.
"""

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from system import machine

machine.share_cores()

import cv2
import numpy as np

from benchmarks import former_lists
from benchmarks.timing import resident
from media import lists, pair_list

LINES = [200, 10_000, 100_000, 638_493]
PER_FRAME, PER_SCENE = 22, 3750  # patches: 29 500 frames and 170 scenes in the published set
LINKS = 10_000  # to one file; file systems have a limit
SIDE = 16  # of the images; the time of a step is not what is measured
HEADING = """\
         read the list      its memory     train: to the  peak of the   private to
         s, former  ours   MiB, former ours  first step, s   process, MiB  a worker, MiB
   lines"""


def names(count: int) -> Iterator[tuple[str, str]]:
    """rainy and clean of each line, as the published list has them."""
    for number in range(count):
        scene, within = divmod(number, PER_SCENE)
        frame, patch = divmod(within, PER_FRAME)
        x, y = patch % 8 * 32, patch // 8 * 32
        yield (
            f"real_world/{scene:03d}/{scene:03d}-{frame}/{scene:03d}-{frame}_{x}_{y}.png",
            f"real_world_gt/{scene:03d}/{scene:03d}_{x}_{y}.png",
        )


def make(folder: Path, count: int) -> Path:
    """A set of so many pairs in folder; returns its list."""
    folder.mkdir(exist_ok=True)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    made: set[Path] = set()
    file, lines = folder, []
    for number, pair in enumerate(names(count)):
        if number % LINKS == 0:
            file = folder / f"{number}.png"
            cv2.imwrite(str(file), image)
        for name in pair:
            path = folder / name
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            with contextlib.suppress(FileExistsError):  # a clean patch serves many frames
                path.hardlink_to(file)
        lines.append(f"./{pair[0]} ./{pair[1]}\n")
    path = folder / "real_world.txt"
    path.write_text("".join(lines))
    return path


def read(way: str, path: str) -> dict[str, float | str]:
    """Seconds and MiB that reading takes, as the start of a training run does it."""
    before, start = resident("VmRSS"), time.perf_counter()
    if way == "ours":
        kept = lists.read_list(path, need_clean=True)
        found = {pair_list.fingerprint(kept)}
    else:  # for training, and again for validation
        kept = [former_lists.read_list(path) for _ in range(2)]
        found = {former_lists.fingerprint(pairs, Path(path).parent) for pairs in kept}
    seconds = time.perf_counter() - start
    taken = {"seconds": seconds, "mebibytes": resident("VmHWM") - before}
    return taken | {"fingerprint": found.pop()}


def measured(way: str, path: Path) -> dict:
    command = [sys.executable, __file__, "--read", way, "--list", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def trained(path: Path, folder: Path, steps: int) -> dict[str, float]:
    """Seconds to the first step of a run, its peak in MiB and the private MiB of its workers."""
    options = {"--train-list": path, "--patch-size": SIDE, "--batch-size": 1, "--log-every": 1,
               "--num-steps": 10**9, "--latest-every": 10**9, "--model-dir": folder / "model",
               "--log-dir": folder / "logdir"}  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    command = [sys.executable, str(ROOT / "main.py"), "-a", "train", *words]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        first = None
        for line in process.stdout:
            done = re.match(r"(\d+)/\d+ steps ", line)
            if done and first is None:
                first = time.perf_counter() - start
            if done and int(done[1]) > steps:
                break
        found = {"first": first, "peak": resident("VmHWM", process.pid)}
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found["worker"] = max(_private(int(child)) for child in children)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    return found


def _private(process: int) -> float:
    """MiB that a process shares with no other."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"Private_\w+:\s*(\d+) kB", text))) / 2**10


def row(count: int, folder: Path, steps: int) -> dict:
    with tempfile.TemporaryDirectory(dir=folder) as home:
        path = make(Path(home), count)
        former, ours = measured("former", path), measured("ours", path)
        if former["fingerprint"] != ours["fingerprint"]:
            sys.exit("list_size.py: the two ways read different lists")
        return {"lines": count, "former": former, "ours": ours} | trained(path, Path(home), steps)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Seconds and memory that lists take.")
    parser.add_argument("--lines", type=int, nargs="+", default=LINES)
    parser.add_argument("--steps", type=int, default=200, help="after which memory is looked at")
    parser.add_argument("--folder", type=Path, help="where the sets are made for the time")
    parser.add_argument("--read", choices=("former", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--list", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.read:
        print(json.dumps(read(options.read, options.list)))
        return 0
    print(HEADING, flush=True)
    rows = []
    for count in options.lines:
        found = row(count, options.folder, options.steps)
        rows.append(found)
        former, ours = found["former"], found["ours"]
        print(
            f"{count:>8}{former['seconds']:>11.2f}{ours['seconds']:>6.2f}"
            f"{former['mebibytes']:>14.0f}{ours['mebibytes']:>5.0f}"
            f"{found['first']:>15.1f}{found['peak']:>15.0f}{found['worker']:>15.0f}",
            flush=True,
        )
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
