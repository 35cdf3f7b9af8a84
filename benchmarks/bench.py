"""Speed of the IRNN against a baseline: python benchmarks/bench.py --device cpu|cuda

On a CPU the baseline is the plain PyTorch reference, a loop over lines; on a GPU it is the
published scheme (rescan.cu), where every pixel walks its lines again. Calls alternate in one
process; the table shows the median of each, their ratio, and how much of the machine's own rate
of copying memory the IRNN reaches with the traffic that irnn_cuda/README.md counts for it. Tensors
that fit into a cache can exceed that rate; times include the launch from Python.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import rescan
from irnn_cuda import irnn, irnn_reference, op

# Elements read and written a pixel and channel, forward and backward: see irnn_cuda/README.md.
TRAFFIC = {"forward": 8, "backward": 15}
CASES = [(1, 32, 256, 256), (1, 32, 512, 512), (16, 32, 256, 256)]


def alternate(calls: dict[str, Callable[[], object]], seconds: float, device: str) -> dict:
    """Median seconds of each call, in turns: at least five of each, for about that long."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while min(map(len, taken.values())) < 5 or time.perf_counter() < end:
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def irnn_calls(shape: tuple[int, ...], device: str) -> dict[str, dict[str, Callable]]:
    """The operator and its baseline, forward and backward, on the same random input."""
    torch.manual_seed(0)
    n, c, h, w = shape
    x, grad = torch.randn(shape, device=device), torch.randn(n, 4 * c, h, w, device=device)
    weight, bias = torch.full((4, c), 0.2, device=device), torch.zeros(4, c, device=device)
    last = torch.channels_last
    ours, upper = x.contiguous(memory_format=last), grad.contiguous(memory_format=last)
    y = irnn(ours, weight, bias)
    forward = {"ours": lambda: irnn(ours, weight, bias)}
    backward = {"ours": lambda: op._irnn_backward(upper, y, weight)}
    if device == "cuda":
        y_rescan = rescan.forward(x, weight, bias)
        forward["baseline"] = lambda: rescan.forward(x, weight, bias)
        backward["baseline"] = lambda: rescan.backward(grad, y_rescan, weight)
    else:
        inputs = [tensor.clone().requires_grad_() for tensor in (ours, weight, bias)]
        y_loop = irnn_reference(*inputs)
        forward["baseline"] = lambda: irnn_reference(ours, weight, bias)
        backward["baseline"] = lambda: torch.autograd.grad(y_loop, inputs, upper, retain_graph=True)
    check(y, forward["baseline"](), shape)
    for a, b in zip(backward["ours"](), backward["baseline"](), strict=True):
        check(a, b, shape)
    return {"forward": forward, "backward": backward}


def check(found: Tensor, expected: Tensor, shape: tuple[int, ...]) -> None:
    error = (found - expected).abs().max() / expected.abs().max()
    if not error < 1e-3:
        sys.exit(f"bench.py: {shape}: ours and the baseline differ by {error:.1e}, relative")


def copy_rate(device: str, seconds: float) -> float:
    """Bytes a second that the device reads and writes when it copies 256 MiB."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    taken = alternate({"copy": lambda: target.copy_(source)}, seconds, device)
    return 2 * source.numel() * source.element_size() / taken["copy"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of the IRNN against a baseline.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.py: --device: cuda asked for, but torch finds no GPU", file=sys.stderr)
        return 2
    cuda = options.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    rate = copy_rate(options.device, options.seconds)
    print(f"{name}, torch {torch.__version__}, copies {rate / 1e9:.1f} GB/s, float32")
    print(f"{'IRNN':<28}{'ours':>10}{'baseline':>12}{'ratio':>9}{'bytes/pixel':>13}{'of copy':>9}")
    for shape in CASES if cuda else CASES[:2]:
        n, c, h, w = shape
        for kind, calls in irnn_calls(shape, options.device).items():
            taken = alternate(calls, options.seconds, options.device)
            traffic = 4 * c * TRAFFIC[kind]
            share = traffic * n * h * w / taken["ours"] / rate
            case = f"{kind} {'x'.join(map(str, shape))}"
            ratio = taken["baseline"] / taken["ours"]
            print(
                f"{case:<28}{taken['ours'] * 1e3:>7.2f} ms{taken['baseline'] * 1e3:>9.2f} ms"
                f"{ratio:>8.1f}x{traffic:>13}{share:>9.0%}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
