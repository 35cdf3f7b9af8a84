"""How fast we are beside other programs, by how long OpenMP's threads wait awake (GOMP_SPINCOUNT):
python benchmarks/neighbours.py [--counts own 20000 ...] [--seconds 75] [--beside busy ...]

A process for each count does a training step (4 crops of 64x64) and a forward pass (256x256) on
all cores, the processes by turns: alone; beside busy programs that wait for nothing; and beside a
program that computes as we do, whose threads wait awake as libgomp has it. "own" is libgomp's own
count. The neighbours are started here, and end with this program, or by themselves in the end.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from system import interrupt, machine

COUNTS = ("own", "100000", "20000", "10000", "5000", "2000", "1000")
CASES = ("step", "forward")
TURN = 0.3  # seconds, one call at least
LIMIT = 1200.0  # seconds after which a neighbour ends, whatever has become of this program


def calls() -> dict[str, Callable[[], object]]:
    """What is measured; torch is imported here, with the environment as it then is."""
    import torch

    from cal_ssim import SSIM
    from engine.training_step import train_one_step
    from model import SPANet

    torch.manual_seed(0)
    torch.set_num_threads(machine.count_cores())
    net, ssim = SPANet(), SSIM()
    optimiser = torch.optim.Adam(net.parameters())
    crops = (torch.rand(4, 3, 64, 64), torch.rand(4, 3, 64, 64), torch.ones(4, 64, 64))
    image = torch.rand(1, 3, 256, 256)

    def forward() -> None:
        with torch.inference_mode():
            net(image)

    return {"step": lambda: train_one_step(net, optimiser, ssim, crops, 1e-6), "forward": forward}


def work() -> None:
    """Answer each line "CASE SECONDS" with the seconds that each call took, until there is none."""
    ways = calls()
    for way in ways.values():
        way()  # compiles and warms up
    print("[]", flush=True)
    for line in sys.stdin:
        case, seconds = line.split()
        taken, end = [], time.perf_counter() + float(seconds)
        while not taken or time.perf_counter() < end:
            start = time.perf_counter()
            ways[case]()
            taken.append(time.perf_counter() - start)
        print(json.dumps(taken), flush=True)


class Worker:
    """A process that does `work` with that GOMP_SPINCOUNT."""

    def __init__(self, count: str) -> None:
        set_by_user = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        environment = {key: value for key, value in os.environ.items() if key not in set_by_user}
        if count != "own":
            environment["GOMP_SPINCOUNT"] = count
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, case: str, seconds: float) -> None:
        self.process.stdin.write(f"{case} {seconds}\n")
        self.process.stdin.flush()

    def answer(self) -> list[float]:
        line = self.process.stdout.readline()
        if not line:
            sys.exit("neighbours.py: a process that measures has failed")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def be_busy() -> None:
    interrupt.leave_signals_to_parent()
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        pass


@contextmanager
def busy(count: int) -> Iterator[None]:
    """That many processes that wait for nothing."""
    processes = [multiprocessing.Process(target=be_busy, daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextmanager
def awake(_: int) -> Iterator[None]:
    """A program like ours, with libgomp's own count."""
    with Worker("own") as worker:
        worker.answer()
        worker.ask("forward", LIMIT)
        time.sleep(1)
        yield


# What is told of the times: alone the best, as what else the machine does can only add to it.
SITUATIONS = {
    "nobody": ("alone, the best", lambda _: nullcontext(), min),
    "busy": ("beside {} busy programs, the median", busy, statistics.median),
    "awake": ("beside one that waits awake, median", awake, statistics.median),
}


def measure(workers: dict[str, Worker], seconds: float) -> dict[str, dict[str, list[float]]]:
    """Seconds of each call, of each case for each count: by short turns, for that long in all."""
    taken = {count: {case: [] for case in CASES} for count in workers}
    end, rounds = time.monotonic() + seconds, 0
    while rounds < 3 or time.monotonic() < end:
        for case in CASES:
            for count, worker in workers.items():
                worker.ask(case, TURN)
                taken[count][case] += worker.answer()
        rounds += 1
    return taken


def show(
    title: str, taken: dict[str, dict[str, list[float]]], told: Callable[[list[float]], float]
) -> None:
    found = {count: {c: told(calls) for c, calls in row.items()} for count, row in taken.items()}
    first = next(iter(found.values()))
    print(f"\n{title:<36}" + "".join(f"{case:>12}{'ratio':>8}" for case in CASES))
    for count, times in found.items():
        cells = (f"{times[c] * 1e3:>9.0f} ms{times[c] / first[c]:>8.2f}" for c in CASES)
        print(f"GOMP_SPINCOUNT {count:<21}" + "".join(cells), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Our speed beside other programs.")
    parser.add_argument("--counts", nargs="+", default=COUNTS, help="the first is the ratios' base")
    parser.add_argument("--seconds", type=float, default=75.0, help="of each of the situations")
    parser.add_argument("--busy", type=int, default=4, help="number of the busy programs")
    parser.add_argument("--beside", nargs="+", choices=SITUATIONS, default=list(SITUATIONS))
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return 0
    print(
        f"{machine.processor_name()}, {machine.count_cores()} cores; "
        f"load before: {os.getloadavg()[0]:.1f}"
    )
    with ExitStack() as stack:
        workers = {count: stack.enter_context(Worker(count)) for count in options.counts}
        for worker in workers.values():
            worker.answer()  # is ready
        for name in options.beside:
            title, neighbours, told = SITUATIONS[name]
            with neighbours(options.busy):
                show(title.format(options.busy), measure(workers, options.seconds), told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
