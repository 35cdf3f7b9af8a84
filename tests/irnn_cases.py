"""Inputs of the IRNN's tests, shared by all its implementations."""

import numpy as np
import torch

from irnn_cuda.reference import DIRECTIONS

# (N,C,H,W): lines of one element, primes, an empty batch, channel counts round a vector's width.
SHAPES = [
    (1, 1, 1, 1), (2, 5, 1, 7), (2, 5, 7, 1), (1, 32, 13, 17), (3, 33, 11, 5), (0, 5, 3, 4),
    (1, 1, 19, 23), (2, 32, 8, 9), (1, 5, 41, 2),
]  # fmt: skip
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """x, weight (below 1 in size) and bias, of both signs, and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    sizes = [(n, c, h, w), (4, c), (4, c), (n, 4 * c, h, w)]
    x, weight, bias, grad = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes
    )
    return [
        x.requires_grad_(),
        (weight.tanh() * 0.95).requires_grad_(),
        bias.requires_grad_(),
        grad,
    ]


def results(function, x, weight, bias, grad) -> list[torch.Tensor]:
    """Output and the gradients of x, weight and bias."""
    y = function(x, weight, bias)
    # An image of one element uses neither weight nor bias: their gradients are then zero.
    gradients = torch.autograd.grad(y, (x, weight, bias), grad, materialize_grads=True)
    return [y.detach(), *gradients]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], dtype: torch.dtype):
    for name, a, b in zip(("y", "x", "weight", "bias"), found, expected, strict=True):
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        assert torch.allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * scale), name


def golden_case(arrays: dict[str, np.ndarray]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Arguments and expected results of tests/data/irnn.npz, from the released computation."""
    names = list(DIRECTIONS)

    def stacked(kind: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([arrays[f"{kind}_{name}"].ravel() for name in names]))

    def joined(kind: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([arrays[f"{kind}_{name}"] for name in names], 1))

    x = torch.from_numpy(arrays["input"]).requires_grad_()
    weight, bias = stacked("weight").requires_grad_(), stacked("bias").requires_grad_()
    gradients = [stacked("grad_weight"), stacked("grad_bias")]
    expected = [joined("output"), torch.from_numpy(arrays["grad_input"]), *gradients]
    return [x, weight, bias, joined("grad_output")], expected
