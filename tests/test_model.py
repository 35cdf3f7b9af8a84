"""The network: names, shapes, initial values, golden outputs, both kinds of attention."""

import numpy as np
import pytest
import torch
from conftest import golden

import model
from benchmarks.naive import NaiveSPANet, NaiveSSIM
from cal_ssim import SSIM
from irnn_cuda import bands, convolution
from model import CHANNELS, Conv, SPANet


def recipe_weights(net: SPANet) -> SPANet:
    """Fill net with the weights that the golden arrays were computed with."""
    rng = np.random.default_rng(7)
    for key, tensor in net.state_dict().items():
        values = rng.standard_normal(tensor.shape).astype(np.float32)
        if "irnn" in key:
            values = values * np.float32(0.15)
            if key.endswith(".weight"):
                values = values + np.float32(0.2)
        elif tensor.dim() == 4:
            values = values * np.float32(np.sqrt(2 / np.prod(tensor.shape[1:])) * 0.7)
        else:
            values = values * np.float32(0.05)
        tensor.copy_(torch.from_numpy(values))
    return net


def irnn_keys(name: str) -> list[str]:
    return [
        f"SAM1.{name}.{direction}_weight.{kind}"
        for direction in ("left", "right", "up", "down")
        for kind in ("weight", "bias")
    ]


def test_keys_and_their_order_are_the_published_ones():
    expected = [
        "conv_in.0.weight",
        *irnn_keys("irnn1"),
        *irnn_keys("irnn2"),
        "SAM1.conv_in.weight",
        "SAM1.conv2.weight",
        "SAM1.conv3.weight",
        *(f"SAM1.attention_layer.conv{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")),
        "SAM1.conv_out.weight",
        *(f"res_block{k}.group1.conv{i}.weight" for k in range(1, 18) for i in (1, 2, 3)),
        "conv_out.0.weight",
    ]
    for attention in (False, True):
        net = SPANet(attention)
        assert list(net.state_dict()) == expected
        assert [name for name, _ in net.named_parameters()] == expected
        assert len(expected) == 79
        assert sum(p.numel() for p in net.parameters()) == 283_716


def test_initial_values_of_the_irnn():
    state = SPANet().state_dict()
    weights = [v for k, v in state.items() if "irnn" in k and k.endswith("weight")]
    biases = [v for k, v in state.items() if "irnn" in k and k.endswith("bias")]
    assert len(weights) == len(biases) == 8
    assert all((weight == 0.2).all() for weight in weights)
    # Uniform in -1/sqrt(32)..1/sqrt(32): as PyTorch 0.4.1 drew them, not in -1..1 as it does today.
    bound = 32**-0.5
    values = torch.cat(biases)
    assert 0.95 * bound <= values.abs().max() <= bound
    assert values.mean() == pytest.approx(0, abs=0.1 * bound)
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_golden_output():
    arrays = golden("network")
    with torch.inference_mode():
        mask, output = recipe_weights(SPANet())(torch.from_numpy(arrays["input"]))
    assert np.abs(output.numpy() - arrays["output"]).max() <= 1e-5
    assert np.abs(mask.numpy() - arrays["mask"]).max() <= 1e-5


def test_golden_output_of_the_released_weights(shared):
    arrays = np.load(shared / "golden" / "forward.npz")
    content = torch.load(shared / "released" / "latest", map_location="cpu", weights_only=True)
    net = SPANet()
    net.load_state_dict(content["net"])
    image = torch.from_numpy(arrays["rainy_bgr"]).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        mask, output = net(image)
    assert np.abs(output.numpy() - arrays["output"]).max() <= 1e-5
    assert np.abs(mask.numpy() - arrays["mask"]).max() <= 1e-5


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 1, 9), (1, 3, 7, 1), (1, 3, 11, 13)])
def test_any_size(shape, attention):
    mask, output = SPANet(attention)(torch.rand(shape))
    n, _, h, w = shape
    assert output.shape == shape
    assert mask.shape == (n, 1, h, w)
    assert ((mask > 0) & (mask < 1)).all()


def test_direction_attention_off_leaves_its_layer_alone():
    net = recipe_weights(SPANet())
    mask, output = net(torch.rand(1, 3, 8, 8))
    (mask.sum() + output.sum()).backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None]
    assert idle == [k for k in net.state_dict() if "attention_layer" in k]
    assert len(idle) == 6


def test_direction_attention_multiplies_each_direction_of_both_irnns():
    net = recipe_weights(SPANet(direction_attention=True)).SAM1
    x = torch.rand(2, CHANNELS, 6, 5)
    maps = net.attention_layer(x)
    assert maps.shape == (2, 4, 6, 5)
    expected = net.conv_in(x)
    for irnn, conv in ((net.irnn1, net.conv2), (net.irnn2, net.conv3)):
        scans = irnn(expected)
        parts = [scans[:, i * CHANNELS : (i + 1) * CHANNELS] * maps[:, i : i + 1] for i in range(4)]
        expected = conv(torch.cat(parts, 1))
    expected = torch.sigmoid(net.conv_out(torch.relu(expected)))
    found = net(x)
    assert torch.allclose(found, expected, atol=1e-6)
    net.direction_attention = False
    assert not torch.allclose(net(x), expected, atol=1e-3)
    net.direction_attention = True
    found.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8)])
def test_wrong_input_is_named(shape):
    with pytest.raises(ValueError, match=r"must be \(N,3,H,W\)"):
        SPANet()(torch.zeros(shape))


def gradients(net: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    image = image.clone().requires_grad_()
    mask, output = net(image)
    loss = mask.square().mean() + (output - 0.5).abs().mean()
    trained = [p for p in net.parameters() if p.requires_grad]
    return [mask, output, *torch.autograd.grad(loss, [image, *trained], allow_unused=True)]


def assert_close(found: list, expected: list, bound: float) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= bound * b.abs().max()


@pytest.mark.parametrize(("channels_in", "side", "dilation"), [(3, 3, 1), (5, 1, 1), (4, 3, 2)])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 3), (11, 13)])
def test_gradients_of_the_convolution_for_cpus(monkeypatch, size, channels_in, side, dilation):
    monkeypatch.setattr(convolution, "MIN_ROW_PIXELS", 1)
    torch.manual_seed(0)
    conv = Conv(channels_in, 6, side, dilation)
    plain = torch.nn.Conv2d(
        channels_in, 6, side, padding=dilation * (side // 2), dilation=dilation, bias=False
    )
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, channels_in, *size).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(2, 6, *size)

    def results(module, dtype):
        inputs = x.to(dtype).requires_grad_()
        y = module.to(dtype)(inputs)
        return y, torch.autograd.grad(y, [inputs, module.weight], grad.to(dtype))

    y, found = results(conv, torch.float32)
    assert type(y.grad_fn).__name__ == "CpuConvolutionBackward"
    expected_y, expected = results(plain, torch.float64)
    assert_close([y, *found], [expected_y, *expected], 1e-6)


def test_quick_convolution_only_where_it_pays():
    x = torch.rand(1, 4, 2, convolution.MIN_ROW_PIXELS)

    def kind(conv, x):
        return type(conv(x).grad_fn).__name__

    assert kind(Conv(4, 4, 3), x) == "CpuConvolutionBackward"
    assert kind(Conv(4, 4, 3), x[..., 1:]) == "ConvolutionBackward0"
    assert kind(Conv(4, 4, 3).double(), x.double()) == "ConvolutionBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert Conv(4, 4, 3)(x).dtype == torch.bfloat16


@pytest.mark.parametrize("attention", [False, True])
def test_checkpointed_activations_give_the_same_gradients(attention):
    image = torch.rand(2, 3, 12, 130)
    net, lean = recipe_weights(SPANet(attention)), SPANet(attention, checkpoint_activations=True)
    lean.load_state_dict(net.state_dict())
    expected = gradients(net, image)
    found = gradients(lean, image)
    assert all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_computes_nothing_again_and_comes_to_the_same_gradients(monkeypatch, bf16):
    image, net = torch.rand(2, 3, 12, 130), recipe_weights(SPANet())
    calls, results = [], []
    net.res_block1.group1.conv1.register_forward_hook(lambda *_: calls.append(1))
    for devices, times in (((), 2), (("cpu",), 1)):
        monkeypatch.setattr(model, "AMPLE_MEMORY", devices)
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            results.append(gradients(net, image))
        assert len(calls) == times
    assert any(a is not None and a.any() for a in results[0])
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    net.checkpoint_activations = True
    calls.clear()
    gradients(net, image)
    assert len(calls) == 2


def test_checkpointed_activations_keep_less():
    def kept(net: SPANet) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            net(torch.rand(1, 3, 32, 32))
        return sum(sizes)

    assert kept(SPANet(checkpoint_activations=True)) < 0.5 * kept(SPANet())


def test_baseline_of_the_benchmark_is_the_same_network():
    net, naive = recipe_weights(SPANet()), NaiveSPANet()
    assert list(naive.state_dict()) == list(net.state_dict())
    naive.load_state_dict(net.state_dict())
    naive.SAM1.attention_layer.requires_grad_(False)
    image = torch.rand(1, 3, 11, 13)
    assert_close(gradients(net, image), gradients(naive, image), 1e-4)
    first, second = torch.rand(2, 1, 3, 16, 16)
    assert abs(SSIM()(first, second) - NaiveSSIM()(first, second)) < 1e-6


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 9, 7), (1, 3, 16, 5), (2, 3, 33, 10)])
def test_bands_give_what_whole_maps_give(shape, attention, monkeypatch):
    net, image = recipe_weights(SPANet(attention)), torch.rand(shape)
    with torch.inference_mode():
        whole = net(image)
        monkeypatch.setattr(bands, "BAND_PIXELS", 0)  # so that a band has the fewest rows
        banded = net(image)
    for a, b in zip(banded, whole, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-6
    assert len(bands.split_rows(*shape[2:])) == -(-shape[2] // bands.MIN_ROWS)


def test_bands_of_16_bits_give_what_whole_maps_give(monkeypatch):
    net, image = recipe_weights(SPANet(True)), torch.rand(1, 3, 30, 20)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        whole = net(image)
        monkeypatch.setattr(bands, "BAND_PIXELS", 0)
        banded = net(image)
    for a, b in zip(banded, whole, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).abs().max() <= 0.05


def test_bands_are_for_inference_alone(monkeypatch):
    monkeypatch.setattr(bands, "BAND_PIXELS", 0)
    image = torch.rand(1, 3, 12, 10)
    assert not bands.takes_bands(image)  # gradients are on
    with torch.no_grad():
        assert bands.takes_bands(image)
        assert not bands.takes_bands(image.to("meta"))
        program = torch.export.export(SPANet(), (image,))
        traced = torch.jit.trace(SPANet(), image, check_trace=False)
    calls = [node for node in program.graph.nodes if node.target == torch.ops.spanet.irnn.default]
    assert len(calls) == 8
    assert "spanet::irnn" in str(traced.inlined_graph)
