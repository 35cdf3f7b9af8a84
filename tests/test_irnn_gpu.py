"""The IRNN's kernels on a real GPU; skipped where there is none."""

import threading

import pytest
import torch
from irnn_cases import SHAPES, assert_same, inputs, results
from torch import library

from benchmarks import irnn as benchmark
from irnn_cuda import cuda, irnn, irnn_reference, op
from irnn_cuda.cuda import ARITHMETIC
from irnn_cuda.reference import COARSE
from model import SPANet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on(device: str, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().to(device).requires_grad_(tensor.requires_grad) for tensor in arguments]


def on_cpu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().cpu() for tensor in tensors]


@pytest.mark.parametrize("dtype", list(ARITHMETIC))
@pytest.mark.parametrize("shape", [*SHAPES, (2, 32, 129, 257)])
def test_kernel_equals_reference(monkeypatch, shape, dtype):
    """Both ways of the backward pass, which have the same bits."""
    arguments, found = inputs(shape, dtype), []
    expected = results(irnn_reference, *arguments)
    for few in (0, 10**6):
        monkeypatch.setattr(cuda, "_SMALL_GRID_BLOCKS", few)
        found.append(on_cpu(results(irnn, *on("cuda", arguments))))
        assert_same(found[-1], expected, dtype)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradcheck_and_opcheck():
    x, weight, bias, grad = on("cuda", inputs((2, 3, 4, 5), torch.float64, seed=3))
    assert torch.autograd.gradcheck(irnn, (x, weight, bias))
    library.opcheck(op._irnn, (x, weight, bias))
    y = irnn(x, weight, bias).detach()
    library.opcheck(op._irnn_backward, (grad, y, weight.detach()))


def test_same_bits_every_time():
    arguments = on("cuda", inputs((4, 32, 65, 63), torch.float32))
    first, second = (results(irnn, *arguments) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", COARSE)
def test_float32_weights_beside_16_bits(dtype):
    x, weight, bias, grad = inputs((2, 5, 6, 9), dtype)
    arguments = [x, weight.detach().float().requires_grad_(), bias.detach().float(), grad]
    arguments[2].requires_grad_()
    found = on_cpu(results(irnn, *on("cuda", arguments)))
    assert_same(found, results(irnn_reference, *arguments), dtype)


def test_tensors_past_2_to_the_31_elements():
    shape = (1, 32, 4100, 4100)
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("less than 16 GiB of GPU memory free")
    assert 4 * shape[1] * shape[2] * shape[3] > 2**31
    x = torch.randn(shape, device="cuda", dtype=torch.float16).contiguous(
        memory_format=torch.channels_last
    )
    weight, bias = torch.rand(4, 32, device="cuda") * 0.5, torch.rand(4, 32, device="cuda") - 0.5
    x.requires_grad_()
    y = irnn(x, weight, bias)
    grad = torch.empty_like(y).normal_()
    (grad_x,) = torch.autograd.grad(y, x, grad)
    # 0.5 ** 100 is nothing: what lies 100 pixels away is not seen in the last 40 x 40.
    near, upper = (tensor[:, :, -140:, -140:].detach().float().cpu() for tensor in (x, grad))
    near.requires_grad_()
    expected = irnn_reference(near, weight.cpu(), bias.cpu())
    (expected_grad,) = torch.autograd.grad(expected, near, upper)
    for found, wanted in ((y, expected), (grad_x, expected_grad)):
        corner, wanted = (tensor.detach()[:, :, -40:, -40:] for tensor in (found, wanted))
        assert (corner.float().cpu() - wanted).abs().max() <= 1e-2 * wanted.abs().max()


def test_follows_the_current_stream():
    """The input arrives on a side stream, late: a kernel on any other would read the old one."""
    arguments = inputs((4, 32, 64, 64), torch.float32)
    expected = irnn_reference(*arguments[:3])
    source, weight, bias = (tensor.detach().cuda() for tensor in arguments[:3])
    x, busy = torch.full_like(source, float("nan")), torch.randn(4096, 4096, device="cuda")
    irnn(x, weight, bias)  # compiles
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(50):
            busy = busy @ busy / 64
        x.copy_(source)
        y = irnn(x, weight, bias)
    side.synchronize()
    assert (y.cpu() - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    arguments = inputs((2, 5, 9, 7), torch.float32)
    with torch.cuda.device(0):
        found = results(irnn, *on("cuda:1", arguments))
    assert all(tensor.device == torch.device("cuda:1") for tensor in found)
    assert_same(on_cpu(found), results(irnn_reference, *arguments), torch.float32)


def test_threads():
    arguments = inputs((2, 8, 33, 31), torch.float32)
    expected, failures = results(irnn_reference, *arguments), []

    def work() -> None:
        try:
            for _ in range(5):
                found = results(irnn, *on("cuda", arguments))
                assert_same(on_cpu(found), expected, torch.float32)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_network_is_that_of_the_cpu():
    torch.manual_seed(0)
    net, image = SPANet(), torch.rand(2, 3, 37, 41)
    outputs = []
    for device in ("cpu", "cuda"):
        net.to(device).zero_grad()
        mask, clean = net(image.to(device))
        (mask.square().mean() + clean.square().mean()).backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        outputs.append(on_cpu([mask, clean, *gradients]))
    for a, b in zip(*outputs, strict=True):
        assert a.any()
        assert (a - b).norm() <= 1e-3 * a.norm()


@pytest.mark.parametrize("dtype", COARSE)
def test_autocast(dtype):
    torch.manual_seed(0)
    net, image = SPANet().cuda(), torch.rand(2, 3, 33, 35, device="cuda")
    exact = net(image)[1].detach()
    with torch.autocast("cuda", dtype):
        mask, clean = net(image)
    (mask.float().mean() + clean.float().mean()).backward()
    assert (clean.float() - exact).abs().max() <= 0.05 * exact.abs().max()
    assert net.SAM1.irnn1.up_weight.weight.grad.isfinite().all()


def test_compile():
    arguments = on("cuda", inputs((1, 4, 5, 6), torch.float32))

    def function(x, weight, bias):
        return irnn(x * 2, weight, bias).tanh()

    expected = results(function, *arguments)
    found = results(torch.compile(function, fullgraph=True), *arguments)
    assert_same(found, expected, torch.float32)


def test_cuda_graph():
    x, weight, bias, grad = on("cuda", inputs((2, 8, 17, 19), torch.float32))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results(irnn, x, weight, bias, grad)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(irnn, x, weight, bias, grad)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, results(irnn, x, weight, bias, grad), strict=True):
        assert torch.equal(a, b)


def test_baseline_of_the_benchmark():
    for calls in benchmark.build_irnn_calls((2, 8, 33, 31), "cuda").values():
        assert set(calls) == {"ours", "baseline"}
