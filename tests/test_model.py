"""The network: names, shapes, initial values, golden outputs, both kinds of attention."""

import numpy as np
import pytest
import torch
from conftest import golden

from model import CHANNELS, SPANet


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
    # As of nn.Conv2d(32, 32, 1, groups=32): uniform in -1..1.
    values = torch.cat(biases)
    assert values.abs().max() <= 1
    assert values.std() == pytest.approx(1 / 3**0.5, rel=0.15)


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
