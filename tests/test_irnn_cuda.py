"""The CUDA kernels without a GPU: irnn.cu compiled as C++, run and compared with the definition.

test_irnn_launch.py checks what is launched where, test_irnn_compilers.py what CUDA's own compilers
say of it, test_irnn_gpu.py runs it on a GPU.
"""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, golden
from fake_cupy import FakeCupy, build
from irnn_cases import SHAPES, assert_same, golden_case, inputs, results

from benchmarks import rescan
from irnn_cuda import cuda, irnn, irnn_reference
from irnn_cuda.reference import COARSE, DIRECTIONS

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile irnn.cu with")
DTYPES = list(cuda.ARITHMETIC)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("irnn"))


@pytest.fixture
def gpu(library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    """CuPy's stand-in, running irnn.cu; the operator takes the CUDA way on CPU tensors."""
    return FakeCupy(library).install(monkeypatch)


def in_float32(x, weight, bias):
    """The definition, free of the rounding of a 16-bit output."""
    return irnn_reference(x.float(), weight.float(), bias.float())


@needs_gxx
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_reference(gpu, monkeypatch, shape, dtype):
    """Both ways of the backward pass, which have the same bits."""
    arguments = inputs(shape, dtype)
    expected, found = results(irnn_reference, *arguments), {}
    for few, count in ((cuda._SMALL_GRID_BLOCKS, 3), (0, 5)):
        gpu.launches.clear()
        monkeypatch.setattr(cuda, "_SMALL_GRID_BLOCKS", few)
        found[few] = results(irnn, *arguments)
        assert_same(found[few], expected, dtype)
        assert len(gpu.launches) == (count if shape[0] else 0)
    assert all(torch.equal(a, b) for a, b in zip(*found.values(), strict=True))


@needs_gxx
@pytest.mark.parametrize("dtype", COARSE)
def test_carry_of_16_bits_is_float32(gpu, dtype):
    """Along 400 elements a carry rounded at each step would be off by many roundings."""
    x = torch.full((1, 1, 1, 400), 1e-3, dtype=dtype)
    weight, bias = torch.full((4, 1), 0.999), torch.zeros(4, 1)
    y = irnn(x, weight, bias)
    assert y.dtype == dtype
    assert torch.equal(y, in_float32(x, weight, bias).to(dtype))


@needs_gxx
@pytest.mark.parametrize("dtype", COARSE)
def test_float32_weights_beside_16_bits(gpu, dtype):
    x, weight, bias, grad = inputs((2, 5, 6, 9), dtype)
    weight, bias = (tensor.detach().float().requires_grad_() for tensor in (weight, bias))
    found = results(irnn, x, weight, bias, grad)
    assert [tensor.dtype for tensor in found] == [dtype, dtype, torch.float32, torch.float32]
    assert_same(found, results(irnn_reference, x, weight, bias, grad), dtype)


@needs_gxx
def test_golden(gpu):
    arguments, expected = golden_case(golden("irnn"))
    for found, wanted in zip(results(irnn, *arguments), expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-5
    assert len(gpu.launches) == 3


@needs_gxx
def test_gradcheck(gpu):
    x, weight, bias, _ = inputs((2, 3, 4, 5), torch.float64, seed=3)
    assert torch.autograd.gradcheck(irnn, (x, weight, bias))
    assert gpu.launches


@needs_gxx
@pytest.mark.parametrize("few", [0, cuda._SMALL_GRID_BLOCKS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_whatever_the_order_of_threads(gpu, monkeypatch, shape, dtype, few):
    monkeypatch.setattr(cuda, "_SMALL_GRID_BLOCKS", few)
    arguments = inputs(shape, dtype)
    forwards = results(irnn, *arguments)
    gpu.reversed = True
    backwards = results(irnn, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


@needs_gxx
def test_nan_is_not_hidden_and_gradient_at_zero_is_zero(gpu):
    x, weight, bias, grad = inputs((1, 2, 11, 12), torch.float32)
    with torch.no_grad():
        x[0, 0, 4, 5] = float("nan")
    both = [results(function, x, weight, bias, grad) for function in (irnn, irnn_reference)]
    assert both[0][0].isnan().any()
    for a, b in zip(*both, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
    zeros = [torch.zeros(size, requires_grad=True) for size in ((1, 2, 3, 3), (4, 2), (4, 2))]
    for gradient in torch.autograd.grad(irnn(*zeros).sum(), zeros):
        assert (gradient == 0).all()


@needs_gxx
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed"])
def test_kernel_takes_any_layout(gpu, layout):
    x, weight, bias, grad = inputs((2, 6, 9, 7), torch.float64)
    with torch.no_grad():
        if layout == "sliced":
            x, grad = x[:, ::2, 1:, ::3], grad[:, ::2, 1:, ::3]
            weight, bias = weight[:, ::2], bias[:, ::2]
        elif layout == "transposed":
            x, grad = x.transpose(2, 3), grad.transpose(2, 3)
    arguments = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), grad]
    assert_same(results(irnn, *arguments), results(irnn_reference, *arguments), torch.float64)
    assert gpu.launches


def guarded(shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> tuple[torch.Tensor, ...]:
    """A channels_last tensor in the middle of a buffer, and the zones before and after it."""
    n, c, h, w = shape
    size, zone = n * c * h * w, 4096
    buffer = torch.full((size + 2 * zone,), fill, dtype=dtype)
    inner = buffer[zone : zone + size].view(n, h, w, c).permute(0, 3, 1, 2)
    return inner, buffer[:zone], buffer[zone + size :]


@needs_gxx
@pytest.mark.parametrize("few", [0, cuda._SMALL_GRID_BLOCKS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_read_or_written_outside(gpu, monkeypatch, shape, dtype, few):
    """Inputs lie among NaNs, which would show in the results; outputs lie among sentinels."""
    monkeypatch.setattr(cuda, "_SMALL_GRID_BLOCKS", few)
    n, c, h, w = shape
    arguments = [tensor.detach() for tensor in inputs(shape, dtype)]
    arguments[1:3] = [tensor.to(cuda.ARITHMETIC[dtype]) for tensor in arguments[1:3]]
    inner = []
    for tensor in arguments:
        by_pixel = tensor if tensor.dim() == 4 else tensor[None, None].permute(0, 3, 1, 2)
        place, *_ = guarded(tuple(by_pixel.shape), tensor.dtype, float("nan"))
        place.copy_(by_pixel)
        inner.append(place if tensor.dim() == 4 else place.permute(0, 2, 3, 1)[0, 0])
    x, weight, bias, grad = inner
    y, *zones = guarded((n, 4 * c, h, w), dtype, 77)
    cuda.forward(x, weight, bias, y)
    y_in, *_ = guarded((n, 4 * c, h, w), dtype, float("nan"))
    y_in.copy_(y)
    grad_x, *more = guarded(shape, dtype, 77)
    sums = cuda.backward(grad, y_in, weight, grad_x)
    assert all((zone == 77).all() for zone in zones + more)
    assert all(tensor.isfinite().all() for tensor in (y, grad_x, *sums))
    expected = results(irnn_reference, *[t.requires_grad_() for t in arguments[:3]], arguments[3])
    assert_same([y, grad_x, *sums], expected, dtype)


@needs_gxx
def test_sanitizers_find_nothing(tmp_path):
    """All shapes and types again under AddressSanitizer and UndefinedBehaviorSanitizer."""
    # The C++ library too: torch throws exceptions, and the sanitizer must find who catches them.
    runtime = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not os.path.isabs(runtime[0]):
        pytest.skip("g++ has no AddressSanitizer")
    sanitize = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    library = build(tmp_path, *sanitize)
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import ctypes, pytest, torch
from fake_cupy import FakeCupy
from irnn_cases import SHAPES, inputs, results
from irnn_cuda import cuda, irnn
gpu = FakeCupy({str(library)!r}).install(pytest.MonkeyPatch())
for cuda._SMALL_GRID_BLOCKS in (0, cuda._SMALL_GRID_BLOCKS):
    for shape in SHAPES:
        for dtype in cuda.ARITHMETIC:
            results(irnn, *inputs(shape, dtype))
print(len(gpu.launches), "launches", flush=True)
x, weight, bias, _ = inputs((1, 32, 8, 8), torch.float32)
cuda.forward(x, weight, bias, torch.zeros(1, 1, 1, 1))  # which they must find
"""
    environment = os.environ | {
        "LD_PRELOAD": ":".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert "256 launches" in done.stdout, done.stderr[:2000]  # any finding would end it sooner
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@needs_gxx
@pytest.mark.parametrize("dtype", COARSE)
def test_16_bit_types_round_as_torch_does(gpu, dtype):
    name = "half" if dtype == torch.float16 else "bfloat"
    pack, unpack = (
        getattr(gpu.binary, f"as_{name}"),
        getattr(gpu.binary, f"from_{name}"),
    )
    pack.argtypes, pack.restype = [ctypes.c_float], ctypes.c_ushort
    unpack.argtypes, unpack.restype = [ctypes.c_ushort], ctypes.c_float
    bits = torch.arange(65536).to(torch.uint16)
    exact = bits.view(dtype).float()
    unpacked = torch.tensor([unpack(pattern) for pattern in range(65536)])
    halfway = (exact[1:] + exact[:-1]) / 2  # neighbouring patterns are neighbouring numbers
    near = torch.cat([exact, halfway, halfway.nextafter(exact[1:]), halfway.nextafter(exact[:-1])])
    packed = torch.tensor([pack(value) for value in near.tolist()]).to(torch.uint16).view(dtype)
    for found, expected in ((unpacked, exact), (packed, near.to(dtype))):
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])


def sparse(*shape: int) -> torch.Tensor:
    """Zeros that take memory only where they are written."""
    try:
        memory = mmap.mmap(-1, 4 * int(np.prod(shape)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        pytest.skip(f"no address space for {shape}: {error}")
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


@needs_gxx
def test_tensors_past_2_to_the_31_elements(gpu):
    """The last row and column of an image so large, of which only these take memory."""
    c, h, w = 128, 520, 8192
    assert 4 * c * h * w > 2**31
    x, y, grad_x, grad = (sparse(h, w, k * c) for k in (1, 4, 1, 4))
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(4, c, generator=generator)
    bias, sums = torch.rand(4, c, generator=generator) - 0.5, torch.zeros(4, 2, max(h, w), c)
    sizes = [np.int32(size) for size in (1, h, w, c)]
    for direction, name in enumerate(DIRECTIONS):
        vertical = name in ("up", "down")
        lines, length = (w, h) if vertical else (h, w)
        last = (slice(None), -1) if vertical else -1
        block = slice(direction * c, (direction + 1) * c)
        line = torch.randn(length, c, generator=generator)
        upper = torch.randn(length, c, generator=generator)
        x[last], grad[last][:, block] = line, upper
        # A block has a thread a channel here, so that block k is line k of its direction.
        tensors = [np.uint64(tensor.data_ptr()) for tensor in (x, weight, bias, y)]
        gpu.run("irnn_forward_float32", (lines - 1, lines, 4), c, tensors + sizes)
        tensors = [np.uint64(tensor.data_ptr()) for tensor in (grad, y, weight, grad_x, sums)]
        rest = [np.int32(number) for number in (max(h, w), direction)]
        gpu.run("irnn_write_float32", (lines - 1, lines, 1), c, tensors + sizes + rest)

        shape = (1, length, 1, c) if vertical else (1, 1, length, c)
        image = line.view(shape).permute(0, 3, 1, 2).requires_grad_()
        output = irnn_reference(image, weight, bias)[:, block]
        (gradient,) = torch.autograd.grad(output, image, upper.view(shape).permute(0, 3, 1, 2))
        for found, expected in ((y[last][:, block], output), (grad_x[last], gradient)):
            assert torch.allclose(found, expected[0].flatten(1).T, rtol=1e-4, atol=1e-4), name
        assert sums[direction, 0, lines - 1].any()


@needs_gxx
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0]])
def test_baseline_of_the_benchmark_is_the_same_operator(gpu, shape):
    x, weight, bias, grad = inputs(shape, torch.float32)
    expected = results(irnn_reference, x, weight, bias, grad)

    def launch(name: str, blocks: int, words: tuple) -> None:
        gpu.run(name, (0, blocks, 1), rescan.THREADS, words)

    y = rescan.forward(x, weight, bias, launch)
    assert_same([y, *rescan.backward(grad, y, weight, launch)], expected, torch.float32)
