"""The IRNN operator: kernel against reference and golden arrays, outputs and every gradient."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba.core.caching
import pytest
import torch
from conftest import ROOT, golden
from irnn_cases import SHAPES, TOLERANCE, assert_same, golden_case, inputs, results
from torch import library

from irnn_cuda import irnn, irnn_reference, op
from irnn_cuda.reference import irnn_backward_reference
from system.compiled import compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_reference(shape, dtype):
    assert op.cpu_kernels() is not None
    arguments = inputs(shape, dtype)
    assert_same(results(irnn, *arguments), results(irnn_reference, *arguments), dtype)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_kernel_takes_any_layout(layout):
    x, weight, bias, grad = inputs((2, 6, 9, 7), torch.float64)
    with torch.no_grad():
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
            grad = grad.contiguous(memory_format=torch.channels_last)
        elif layout == "sliced":
            x, grad = x[:, ::2, 1:, ::3], grad[:, ::2, 1:, ::3]
            weight, bias = weight[:, ::2], bias[:, ::2]
        else:
            x, grad = x.transpose(2, 3), grad.transpose(2, 3)
    arguments = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), grad]
    assert_same(results(irnn, *arguments), results(irnn_reference, *arguments), torch.float64)


def test_output_is_channels_last():
    x, weight, bias, _ = inputs((2, 5, 4, 3), torch.float32)
    assert irnn(x, weight, bias).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("function", [irnn, irnn_reference])
def test_golden(function):
    arguments, expected = golden_case(golden("irnn"))
    for found, wanted in zip(results(function, *arguments), expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("function", [irnn, irnn_reference])
def test_gradcheck(function):
    x, weight, bias, _ = inputs((2, 3, 4, 5), torch.float64, seed=3)
    assert torch.autograd.gradcheck(function, (x, weight, bias))


def test_backward_reference_is_autograds_gradient():
    x, weight, bias, grad = inputs((2, 3, 4, 5), torch.float64)
    y, *expected = results(irnn_reference, x, weight, bias, grad)
    found = irnn_backward_reference(grad, y, weight.detach())
    assert_same([y, *found], [y, *expected], torch.float64)


def test_gradient_at_zero_is_zero():
    x = torch.zeros(1, 1, 3, 3, requires_grad=True)
    zero = torch.zeros(4, 1, requires_grad=True)
    gradients = torch.autograd.grad(irnn(x, zero, zero).sum(), (x, zero))
    assert all((gradient == 0).all() for gradient in gradients)


def test_nan_is_not_hidden():
    x, weight, bias, grad = inputs((1, 2, 3, 4), torch.float32)
    with torch.no_grad():
        x[0, 0, 1, 1] = float("nan")
    found, expected = (
        results(irnn, x, weight, bias, grad),
        results(irnn_reference, x, weight, bias, grad),
    )
    assert found[0].isnan().any()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


def test_opcheck():
    x, weight, bias, grad = inputs((2, 3, 4, 5), torch.float64)
    library.opcheck(op._irnn, (x, weight, bias))
    y = irnn(x, weight, bias).detach()
    library.opcheck(op._irnn_backward, (grad, y, weight.detach()))
    transposed = weight.detach().t().contiguous().t()
    library.opcheck(op._irnn_backward, (grad, y, transposed))


def test_gradient_of_another_shape_or_type_is_named():
    x, weight, bias, grad = (tensor.detach() for tensor in inputs((1, 2, 3, 4), torch.float32))
    y = irnn(x, weight, bias)
    for wrong in (grad[:, :4], grad.double()):
        with pytest.raises(ValueError, match=r"irnn_backward: grad is .*; they must agree"):
            op._irnn_backward(wrong, y, weight)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_without_graph_breaks():
    arguments = inputs((1, 4, 5, 6), torch.float32)
    compiled = torch.compile(lambda x, w, b: irnn(x * 2, w, b).tanh(), fullgraph=True)
    plain = results(lambda x, w, b: irnn(x * 2, w, b).tanh(), *arguments)
    assert_same(results(compiled, *arguments), plain, torch.float32)


def test_kernels_are_never_traced():
    x, weight, bias, _ = (tensor.detach() for tensor in inputs((1, 4, 5, 6), torch.float32))
    graphs = []

    class Broken:
        """What torch.compile leaves to Python, with all that is called within."""

        def __enter__(self):
            torch._dynamo.graph_break()

        def __exit__(self, *_):
            torch._dynamo.graph_break()

    def function():
        with Broken():
            try:
                raise ValueError
            except ValueError:
                torch._dynamo.graph_break()
                y = op._irnn(x, weight, bias)
        return y

    compiled = torch.compile(function, backend=lambda graph, _: graphs.append(graph) or graph)
    assert torch.equal(compiled(), irnn(x, weight, bias))
    assert not any("new_empty" in str(graph.graph) for graph in graphs)


def test_a_second_derivative_is_refused():
    x, weight, bias, _ = inputs((1, 2, 3, 4), torch.float32)
    (first,) = torch.autograd.grad(irnn(x, weight, bias).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        first.sum().backward()


def test_export_keeps_the_operator():
    class Module(torch.nn.Module):
        def forward(self, x, weight, bias):
            return irnn(x, weight, bias)

    x, weight, bias, _ = (tensor.detach() for tensor in inputs((1, 2, 3, 4), torch.float32))
    program = torch.export.export(Module(), (x, weight, bias))
    assert "spanet.irnn" in str(program.graph)
    assert torch.equal(program.module()(x, weight, bias), irnn(x, weight, bias))


def test_same_bits_whatever_the_number_of_threads():
    arguments = inputs((2, 8, 33, 29), torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(irnn, *arguments)
        torch.set_num_threads(2)
        shared_out = results(irnn, *arguments)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared_out, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_floats_are_computed_in_float32(dtype):
    x, weight, bias, grad = inputs((1, 3, 4, 5), dtype)
    found, expected = (results(f, x, weight, bias, grad) for f in (irnn, irnn_reference))
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours - plain).abs().max() <= TOLERANCE[dtype] * plain.abs().max()


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(4, 3), torch.zeros(4, 3), r"\(2, 3, 4\)"),
        (torch.zeros(1, 3, 0, 4), torch.zeros(4, 3), torch.zeros(4, 3), r"H,W >= 1"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(3, 3), torch.zeros(4, 3), r"weight .* \(3, 3\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(4, 3), torch.zeros(4, 2), r"bias .* \(4, 2\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(4, 3).double(), torch.zeros(4, 3), "float64"),
    ],
)
@pytest.mark.parametrize("function", [irnn, irnn_reference])
def test_wrong_shapes_are_named(function, x, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        function(x, weight, bias)


def test_compiled_kernels_are_kept_on_disk():
    results(irnn, *inputs((1, 2, 3, 4), torch.float32))
    for kernel in (op.cpu_kernels()._forward, op.cpu_kernels()._backward):
        folder = Path(kernel.stats.cache_path)
        assert list(folder.glob(f"cpu.irnn_cuda.cpu.{kernel.__name__}-*.nbc"))


def add_one(number: int) -> int:
    return number + 1


def test_compiled_code_runs_where_the_disk_is_too_full_to_keep_it(monkeypatch):
    refused = []

    def refuse(*_: object) -> None:
        refused.append(True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", refuse)
    assert compiled()(add_one)(1) == 2
    assert refused


def test_without_numba_the_reference_serves_with_one_warning():
    program = """
import sys, warnings
sys.modules["numba"] = None
import torch
from irnn_cuda import irnn, irnn_reference
x, w, b = torch.randn(1, 3, 4, 5).requires_grad_(), torch.rand(4, 3), torch.rand(4, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = irnn(x, w, b)
    y.sum().backward()
    irnn(x, w, b)
assert torch.equal(y, irnn_reference(x, w, b)) and x.grad.abs().sum() > 0
print([str(warning.message) for warning in caught if "Numba" in str(warning.message)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Numba cannot be loaded") == 1


def test_the_first_call_in_a_process():
    """It leaves torch's threads alone, and imports neither torch.compile nor CuPy."""
    program = (
        "import sys, numba, torch; from irnn_cuda import irnn; torch.set_num_threads(1)\n"
        "irnn(torch.rand(1, 2, 3, 4), torch.rand(4, 2), torch.rand(4, 2))\n"
        "print(torch.get_num_threads(), 'torch._dynamo' in sys.modules, 'cupy' in sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "2"}
    environment.pop("OMP_NUM_THREADS", None)
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "1 False False\n", done.stderr
