"""The wrapper of the CUDA kernels: what it launches, where and when, as a fake CuPy sees it."""

import re
import sys
import threading

import pytest
import torch
from fake_cupy import BASELINE, SOURCE, FakeCupy, signatures
from irnn_cases import inputs, results

from benchmarks import rescan
from irnn_cuda import cuda, irnn, op

DTYPES = list(cuda.ARITHMETIC)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    return FakeCupy().install(monkeypatch)


class OnSecondGpu(torch.Tensor):
    """A CPU tensor that says it is on cuda:1."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 1)


def second_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype).as_subclass(OnSecondGpu)


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_launch(recorder, dtype):
    x = second_gpu(2, 11, 3, 32, dtype=dtype).permute(0, 3, 1, 2)
    y = second_gpu(2, 11, 3, 128, dtype=dtype).permute(0, 3, 1, 2)
    weight, bias = (second_gpu(4, 32, dtype=cuda.ARITHMETIC[dtype]) for _ in range(2))
    cuda.forward(x, weight, bias, y)
    (launch,) = recorder.launches
    assert launch.name == f"irnn_forward_{str(dtype).removeprefix('torch.')}"
    pointers = [tensor.data_ptr() for tensor in (x, weight, bias, y)]
    assert list(launch.words) == [*pointers, 2, 11, 3, 32]
    assert launch.grid == (-(-2 * 11 * 32 // 128), 4)  # rows are the more numerous lines here
    assert launch.block == (128,)
    assert (launch.device, launch.torch_device) == (1, torch.device("cuda:1"))
    assert launch.stream == "stream of cuda:1"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[torch.Tensor, torch.device]]:
    """What the wrapper makes on the device, by the function that makes it."""
    found = {}
    for function in (torch.zeros, torch.empty):

        def on_device(*shape, device, function=function, **options):
            found[function.__name__] = (function(*shape, **options), device)
            return found[function.__name__][0]

        monkeypatch.setattr(torch, function.__name__, on_device)
    return found


def backward(height: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Launches a backward pass; the gradient of y, y, weight and the gradient of x."""
    size = (2, height, width)
    grad, y = (second_gpu(*size, 128, dtype=dtype).permute(0, 3, 1, 2) for _ in range(2))
    grad_x = second_gpu(*size, 32, dtype=dtype).permute(0, 3, 1, 2)
    weight = second_gpu(4, 32, dtype=cuda.ARITHMETIC[dtype])
    sums = cuda.backward(grad, y, weight, grad_x)
    assert [tuple(total.shape) for total in sums] == [(4, 32), (4, 32)]
    return [grad, y, weight, grad_x]


def assert_placed(launch, grid: tuple[int, ...]) -> None:
    assert (launch.grid, launch.block) == (grid, (128,))
    assert (launch.device, launch.torch_device) == (1, torch.device("cuda:1"))
    assert launch.stream == "stream of cuda:1"


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_launches_of_a_large_image(recorder, made, monkeypatch, dtype):
    monkeypatch.setattr(cuda, "_SMALL_GRID_BLOCKS", 5)
    *read, grad_x = backward(11, 3, dtype)
    partial, device = made.pop("zeros")
    assert (partial.shape, partial.dtype) == ((4, 2, 2 * 11, 32), cuda.ARITHMETIC[dtype])
    assert device == torch.device("cuda:1")
    assert not made
    pointers = [tensor.data_ptr() for tensor in (*read, grad_x, partial)]
    rows, columns = -(-2 * 11 * 32 // 128), -(-2 * 3 * 32 // 128)
    assert rows == 6
    for launch, direction, way, blocks in zip(
        recorder.launches,
        (1, 3, 2, 0),
        ("write", "add", "add", "add"),
        (rows, rows, columns, columns),
        strict=True,
    ):
        assert launch.name == f"irnn_{way}_{str(dtype).removeprefix('torch.')}"
        assert list(launch.words) == [*pointers, 2, 11, 3, 32, 22, direction]
        assert_placed(launch, (blocks,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_launches_of_a_small_image(recorder, made, monkeypatch, dtype):
    monkeypatch.setattr(cuda, "_SMALL_GRID_BLOCKS", 6)
    *read, grad_x = backward(11, 3, dtype)
    partial, _ = made["zeros"]
    parts, device = made["empty"]
    assert (parts.shape, parts.dtype) == ((2, 11, 3, 128), cuda.ARITHMETIC[dtype])
    assert device == torch.device("cuda:1")
    split, together = recorder.launches
    name = str(dtype).removeprefix("torch.")
    assert (split.name, together.name) == (f"irnn_split_{name}", f"irnn_sum_{name}")
    pointers = [tensor.data_ptr() for tensor in (*read, parts, partial)]
    assert list(split.words) == [*pointers, 2, 11, 3, 32, 22, 0]
    assert_placed(split, (6, 4))
    assert list(together.words) == [parts.data_ptr(), grad_x.data_ptr(), 2 * 11 * 3, 32]
    assert_placed(together, (-(-2 * 11 * 3 * 32 // 128),))


def test_stream_is_asked_for_at_each_launch(recorder, monkeypatch):
    streams = iter(["first", "second"])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: next(streams))
    for _ in range(2):
        irnn(torch.ones(1, 2, 3, 3), torch.ones(4, 2), torch.ones(4, 2))
    assert [launch.stream for launch in recorder.launches] == ["first", "second"]


def test_compiled_once_a_device_by_however_many_threads(recorder):
    def forward(x):
        cuda.forward(x, second_gpu(4, 2), second_gpu(4, 2), second_gpu(1, 8, 3, 3))

    threads = [threading.Thread(target=forward, args=[second_gpu(1, 2, 3, 3)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.compiled == [1]
    irnn(torch.ones(1, 2, 3, 3), torch.ones(4, 2), torch.ones(4, 2))
    assert recorder.compiled == [1, None]  # a CPU tensor has no device index


def test_kernels_are_all_loaded_before_the_first_launch(recorder):
    """Loading one later could fall into the capture of a CUDA graph."""
    irnn(torch.ones(1, 2, 3, 3), torch.ones(4, 2), torch.ones(4, 2))
    assert recorder.fetched == set(signatures())


def test_threads_of_a_block_are_those_of_the_source():
    for constant, source in ((cuda._THREADS, SOURCE), (rescan.THREADS, BASELINE)):
        assert re.search(rf"(THREADS = |blockIdx.x}} \* ){constant}\b", source.read_text())


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)])
def test_empty_tensors_launch_nothing(recorder, shape):
    n, c, h, w = shape
    arguments = inputs(shape, torch.float32)
    assert irnn(*arguments[:3]).shape == (n, 4 * c, h, w)
    _, grad_x, grad_weight, grad_bias = results(irnn, *arguments)
    assert grad_x.shape == shape
    assert grad_weight.shape == grad_bias.shape == (4, c)
    assert not grad_weight.any()
    assert not recorder.launches


def test_without_cupy_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(op, "_kernels", lambda x: cuda)
    with pytest.raises(ImportError, match=r"pip install cupy-cuda1\dx"):
        irnn(torch.ones(1, 2, 3, 3), torch.ones(4, 2), torch.ones(4, 2))


def test_cuda_tensors_take_the_kernel_and_nothing_else():
    for dtype in DTYPES:
        assert op._kernels(second_gpu(1, dtype=dtype)) is cuda
    assert op._kernels(torch.ones(1, device="meta")) is None
