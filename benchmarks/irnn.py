"""The IRNN operator against a baseline.

On a CPU the baseline is loops of PyTorch operations, with autograd going through them. On a GPU it
is the published scheme (rescan.cu), where every pixel walks its lines again. The share is that of
the device's own rate of copying memory; irnn_cuda/README.md counts the traffic. Tensors that fit
into a cache can exceed it. Times include the launch from Python.
"""

import argparse

import torch
from torch import Tensor

from benchmarks import rescan
from benchmarks.naive import NaiveIRNN
from benchmarks.timing import Call, check_close, measure_copy_rate, time_calls
from irnn_cuda import irnn, op

# Elements read and written a pixel and channel: see irnn_cuda/README.md.
TRAFFIC = {"forward": 8, "backward": 15, "forward + backward": 23}
SHAPES = [(1, 32, 256, 256), (1, 32, 512, 512), (16, 32, 256, 256)]


def build_irnn_calls(shape: tuple[int, ...], device: str) -> dict[str, dict[str, Call]]:
    """The operator and its baseline, checked against each other, on the same random input."""
    torch.manual_seed(0)
    n, c, h, w = shape
    x, grad = torch.randn(shape, device=device), torch.randn(n, 4 * c, h, w, device=device)
    module = NaiveIRNN(c).to(device)
    scans = [module.up_weight, module.right_weight, module.down_weight, module.left_weight]
    for scan in scans:
        torch.nn.init.constant_(scan.weight, 0.2)
    weight = torch.stack([scan.weight.flatten() for scan in scans]).detach()
    bias = torch.stack([scan.bias for scan in scans]).detach()
    # The operator takes channels_last, the baseline contiguous planes.
    x_last, grad_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    y = irnn(x_last, weight, bias)
    forward: dict[str, Call] = {"ours": lambda: irnn(x_last, weight, bias)}
    if device == "cuda":
        y_rescan = rescan.forward(x, weight, bias)
        forward["baseline"] = lambda: rescan.forward(x, weight, bias)
        backward: dict[str, Call] = {
            "ours": lambda: op._irnn_backward(grad_last, y, weight),
            "baseline": lambda: rescan.backward(grad, y_rescan, weight),
        }
        check_results(shape, (y, *backward["ours"]()), (y_rescan, *backward["baseline"]()))
        return {"forward": forward, "backward": backward}
    inputs = [tensor.clone().requires_grad_() for tensor in (x_last, weight, bias)]
    x_naive = x.clone().requires_grad_()
    parameters = [p for scan in scans for p in (scan.weight, scan.bias)]
    both: dict[str, Call] = {
        "ours": lambda: torch.autograd.grad(irnn(*inputs), inputs, grad_last),
        "baseline": lambda: torch.autograd.grad(module(x_naive), [x_naive, *parameters], grad),
    }
    grad_x, *rest = both["baseline"]()
    grad_weight, grad_bias = torch.stack(rest[::2]).flatten(1), torch.stack(rest[1::2])
    check_results(shape, (y, *both["ours"]()), (module(x), grad_x, grad_weight, grad_bias))
    forward["baseline"] = torch.no_grad()(lambda: module(x))
    return {"forward": forward, "forward + backward": both}


def check_results(
    shape: tuple[int, ...], results: tuple[Tensor, ...], expected: tuple[Tensor, ...]
) -> None:
    for result, reference in zip(results, expected, strict=True):
        check_close(f"IRNN {shape}", result, reference)


def measure_irnn(options: argparse.Namespace) -> list[dict]:
    device, duration = options.device, options.seconds
    rate = measure_copy_rate(device, duration)
    rows = []
    for shape in SHAPES if device == "cuda" else SHAPES[:2]:
        n, c, h, w = shape
        for kind, calls in build_irnn_calls(shape, device).items():
            times = time_calls(calls, duration, device)
            share = 4 * c * TRAFFIC[kind] * n * h * w / times["ours"] / rate
            case = f"IRNN {kind} {'x'.join(map(str, shape))}"
            rows.append({"case": case, **times, "share": share, "of": "copy"})
    return rows
