"""The IRNN operator against a baseline: on a CPU loops of PyTorch operations with autograd going
through them, on a GPU the published scheme (rescan.cu), where every pixel walks its lines again.

The share is that of the device's own rate of copying memory, with the traffic counted in
irnn_cuda/README.md. Tensors that fit into a cache can exceed it; times include the launch from
Python.
"""

import torch

from benchmarks import rescan
from benchmarks.naive import NaiveIRNN
from benchmarks.timing import Call, agree, alternate, copy_rate
from irnn_cuda import irnn, op

# Elements read and written a pixel and channel: see irnn_cuda/README.md.
TRAFFIC = {"forward": 8, "backward": 15, "forward + backward": 23}
SHAPES = [(1, 32, 256, 256), (1, 32, 512, 512), (16, 32, 256, 256)]


def irnn_calls(shape: tuple[int, ...], device: str) -> dict[str, dict[str, Call]]:
    """The operator and its baseline, checked against each other, on the same random input."""
    torch.manual_seed(0)
    n, c, h, w = shape
    x, grad = torch.randn(shape, device=device), torch.randn(n, 4 * c, h, w, device=device)
    module = NaiveIRNN(c).to(device)
    for direction in ("left", "right", "up", "down"):
        torch.nn.init.constant_(getattr(module, f"{direction}_weight").weight, 0.2)
    holders = [module.up_weight, module.right_weight, module.down_weight, module.left_weight]
    weight = torch.stack([holder.weight.flatten() for holder in holders]).detach()
    bias = torch.stack([holder.bias for holder in holders]).detach()
    last = torch.channels_last
    ours, upper = x.contiguous(memory_format=last), grad.contiguous(memory_format=last)
    y = irnn(ours, weight, bias)
    forward: dict[str, Call] = {"ours": lambda: irnn(ours, weight, bias)}
    backward: dict[str, Call] = {"ours": lambda: op._irnn_backward(upper, y, weight)}
    if device == "cuda":
        y_rescan = rescan.forward(x, weight, bias)
        forward["baseline"] = lambda: rescan.forward(x, weight, bias)
        backward["baseline"] = lambda: rescan.backward(grad, y_rescan, weight)
        check_all(shape, y, y_rescan, backward["ours"](), backward["baseline"]())
        return {"forward": forward, "backward": backward}
    trained = [tensor.clone().requires_grad_() for tensor in (ours, weight, bias)]
    x_naive = x.clone().requires_grad_()
    parameters = [p for holder in holders for p in (holder.weight, holder.bias)]
    both: dict[str, Call] = {
        "ours": lambda: torch.autograd.grad(irnn(*trained), trained, upper),
        "baseline": lambda: torch.autograd.grad(module(x_naive), [x_naive, *parameters], grad),
    }
    grad_x, *rest = both["baseline"]()
    expected = (grad_x, torch.stack(rest[::2]).flatten(1), torch.stack(rest[1::2]))
    check_all(shape, y, module(x), both["ours"](), expected)
    forward["baseline"] = torch.no_grad()(lambda: module(x))
    return {"forward": forward, "forward + backward": both}


def check_all(shape, y, expected_y, gradients, expected_gradients) -> None:
    agree(f"IRNN {shape}", y, expected_y)
    for found, expected in zip(gradients, expected_gradients, strict=True):
        agree(f"IRNN {shape}", found, expected)


def rows(device: str, seconds: float) -> list[dict]:
    rate = copy_rate(device, seconds)
    found = []
    for shape in SHAPES if device == "cuda" else SHAPES[:2]:
        n, c, h, w = shape
        for kind, calls in irnn_calls(shape, device).items():
            taken = alternate(calls, seconds, device)
            share = 4 * c * TRAFFIC[kind] * n * h * w / taken["ours"] / rate
            case = f"IRNN {kind} {'x'.join(map(str, shape))}"
            found.append({"case": case, **taken, "share": share, "of": "copy"})
    return found
