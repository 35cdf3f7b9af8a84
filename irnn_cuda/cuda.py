"""The IRNN on an NVIDIA GPU: launches the kernels of irnn.cu, compiled by CuPy when first needed.

CuPy only compiles and launches: memory and streams are torch's. A launch goes to the stream that
is current in torch for the tensor's device at that moment, so it is ordered with the operators
around it, whichever thread of autograd makes it, and is captured by CUDA graphs once compiled.
"""

import os
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("irnn.cu")
_THREADS = 128  # a block, as in irnn.cu
_UP, _RIGHT, _DOWN, _LEFT = 0, 1, 2, 3
# Type in memory -> type of the arithmetic, of weight, bias and sums.
ARITHMETIC = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}
_KERNEL_NAMES = {
    (way, dtype): f"irnn_{way}_{str(dtype).removeprefix('torch.')}"
    for way in ("forward", "write", "add", "split", "sum")
    for dtype in ARITHMETIC
}
_SMALL_GRID_BLOCKS = 128  # with as many or fewer in a direction, all four directions run at once
_Arguments = tuple[np.uint64 | np.int32, ...]
_Launches = list[tuple[str, tuple[int, ...], _Arguments]]  # kernel, grid and what it takes
_kernel_cache: dict[int | None, dict[str, Any]] = {}  # device index -> its kernels by name
_compile_lock = threading.Lock()


def require_cupy() -> ModuleType:
    """CuPy, imported after torch. Raises ImportError that says what it lacks, and how to get it."""
    if "cupy" not in sys.modules:  # it cannot be imported without a folder for compiled kernels
        try:
            folder = Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, RuntimeError):  # the latter: there is no home
            # For this process alone: a name that others can guess, they could fill beforehand.
            os.environ["CUPY_CACHE_DIR"] = tempfile.mkdtemp(prefix="spanet-cupy-")
    try:
        import cupy
    except ImportError as error:
        major = (torch.version.cuda or "13").split(".")[0]
        raise ImportError(
            f"the IRNN on a GPU needs CuPy ({error}); `pip install cupy-cuda{major}x` adds it"
        ) from None
    return cupy


def _kernels(cupy: ModuleType, index: int | None) -> dict[str, Any]:
    """The kernels by name on the current device, whose index that is. All are loaded when first
    asked for, since a stream that is being captured in a CUDA graph allows no loading.
    """
    with _compile_lock:
        if index not in _kernel_cache:
            module = cupy.RawModule(code=_SOURCE.read_text(), options=("-std=c++17",))
            module.compile()
            names = _KERNEL_NAMES.values()
            _kernel_cache[index] = {name: module.get_function(name) for name in names}
        return _kernel_cache[index]


def _launch(device: torch.device, launches: _Launches) -> None:
    """Launch kernels one after the other on the device, on its current stream."""
    cupy = require_cupy()
    # Both libraries keep a current device; the stream is made where it is already the right one.
    with torch.cuda.device(device), cupy.cuda.Device(device.index):
        kernels = _kernels(cupy, device.index)
        with cupy.cuda.Stream.from_external(torch.cuda.current_stream(device)):
            for name, grid, words in launches:
                kernels[name](grid, (_THREADS,), words)


def _pack_arguments(*arguments: Tensor | int) -> _Arguments:
    """What a kernel takes: the addresses of tensors, and int32 scalars."""
    return tuple(
        np.uint64(word.data_ptr()) if isinstance(word, Tensor) else np.int32(word)
        for word in arguments
    )


def _count_blocks(lines: int, channels: int) -> int:
    return -(-lines * channels // _THREADS)


def _to_pixels(tensor: Tensor) -> Tensor:
    """(N,C,H,W) as a dense (N,H,W,C), without a copy where the memory is channels_last."""
    return tensor.detach().permute(0, 2, 3, 1).contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """Write irnn(x, weight, bias) into y, which is channels_last.

    Raises:
        ImportError: CuPy is not installed.
    """
    if y.numel() == 0:
        return
    n, c, h, w = x.shape
    arithmetic = ARITHMETIC[x.dtype]
    weight, bias = (tensor.detach().to(arithmetic).contiguous() for tensor in (weight, bias))
    grid = (_count_blocks(n * max(h, w), c), 4)
    # Named, so that the memory of copies lasts until the kernel is on its stream.
    tensors = (_to_pixels(x), weight, bias, _to_pixels(y))
    name = _KERNEL_NAMES["forward", x.dtype]
    _launch(x.device, [(name, grid, _pack_arguments(*tensors, n, h, w, c))])


def backward(grad: Tensor, y: Tensor, weight: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
    """Write the gradient of x into grad_x (channels_last); return those of weight and bias.

    Raises:
        ImportError: CuPy is not installed.
    """
    n, c, h, w = grad_x.shape
    if grad_x.numel() == 0:
        return weight.new_zeros(weight.shape), weight.new_zeros(weight.shape)
    lines = n * max(h, w)
    arithmetic = ARITHMETIC[y.dtype]
    # A line's own partial sums, added up below: no atomics, the same bits every time.
    sums = torch.zeros(4, 2, lines, c, dtype=arithmetic, device=grad.device)
    read = _to_pixels(grad), _to_pixels(y), weight.detach().to(arithmetic).contiguous()
    target, sizes = _to_pixels(grad_x), (n, h, w, c, lines)
    launches: _Launches = []
    if _count_blocks(lines, c) <= _SMALL_GRID_BLOCKS:
        # Too few to fill a GPU one direction after another: all at once, and then their sum.
        parts = torch.empty(n, h, w, 4 * c, dtype=arithmetic, device=grad.device)
        words = _pack_arguments(*read, parts, sums, *sizes, 0)
        launches.append((_KERNEL_NAMES["split", y.dtype], (_count_blocks(lines, c), 4), words))
        words = _pack_arguments(parts, target, n * h * w, c)
        launches.append((_KERNEL_NAMES["sum", y.dtype], (_count_blocks(n * h * w, c),), words))
    else:
        # The first writes the gradient of x; each of the others adds to it.
        for direction in (_RIGHT, _LEFT, _DOWN, _UP):
            name = _KERNEL_NAMES["add" if launches else "write", y.dtype]
            grid = (_count_blocks(n * (h if direction in (_RIGHT, _LEFT) else w), c),)
            launches.append((name, grid, _pack_arguments(*read, target, sums, *sizes, direction)))
    _launch(grad.device, launches)
    total = sums.sum(2).to(weight.dtype)
    return total[:, 0].contiguous(), total[:, 1].contiguous()
