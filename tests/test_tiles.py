"""Whole images, blended tiles and the mean of mirrored views; what they need of memory."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from engine import checkpoint, tiles
from engine.derainer import SIZE_CHANGES, Derainer
from model import SPANet
from rain.backgrounds import photograph
from system import machine


def pointwise(image):
    """A network whose output at a pixel depends on that pixel alone."""
    return image[:, :1] * 0.5, image * 2 - 0.25


def lopsided(image):
    """One whose output depends on the direction."""
    return image[:, :1].cumsum(-1).tanh(), image.cumsum(-1) + image.cumsum(-2).square()


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("size", [(7, 11), (1, 1), (1, 9), (6, 6)])
def test_views_are_turned_back_and_averaged(views, size):
    x = torch.rand(2, 3, *size)
    dims = [[], [3], [2, 3], [2]][:views] if views != 2 else [[], [3]]
    for part, expected in enumerate(lopsided(x)):
        single = [lopsided(x.flip(d))[part].flip(d) for d in dims]
        expected = sum(single) / views
        found = tiles.derain_batch(lopsided, x, views)[part]
        assert torch.allclose(found, expected, atol=1e-6)
        if size[1] > 1 and views > 1:
            assert not torch.allclose(found, single[0], atol=1e-3)


def test_views_of_what_does_not_look_around_change_nothing():
    x = torch.rand(1, 3, 5, 8)
    for views in (1, 2, 4):
        mask, clean = tiles.derain_batch(pointwise, x, views)
        assert torch.allclose(mask, pointwise(x)[0], atol=1e-6)
        assert torch.allclose(clean, pointwise(x)[1], atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (127, 200), (1, 300), (131, 1), (64, 193)])
@pytest.mark.parametrize("tile", [64, 101])
def test_tiles_cover_every_pixel_once(size, tile):
    x = torch.rand(1, 3, *size)
    largest = []

    def net(image):
        largest.append(max(image.shape[2:]))
        return pointwise(image)

    for found, expected in zip(tiles.derain_batch(net, x, 1, tile), pointwise(x), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    assert max(largest) <= tile


def test_tiles_of_the_network_are_close_to_the_whole():
    net = SPANet()
    net.load_state_dict(checkpoint.load(ROOT / "model" / "demo")["net"])
    image = photograph("coffee")[40:150, 100:260]
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        whole, tiled = (tiles.derain_batch(net, x, 1, tile)[1].clamp(0, 1) for tile in (0, 96))
        psnr = -10 * math.log10((tiled - whole).square().mean().item())
        assert psnr > 45
        assert tiles.tile_psnr(net, x, 96) == pytest.approx(psnr, abs=0.1)
        assert tiles.tile_psnr(net, x, 64) > 40
        assert tiles.tile_psnr(net, x, 160) == math.inf


def test_memory_is_reckoned_about_right():
    """Against the peak of a process of its own; glibc keeps more or less of what is freed."""
    program = (
        "from system import machine; machine.keep_blocks(machine.INFERENCE_BLOCKS)\n"
        "import torch; from engine import tiles; from model import SPANet\n"
        "net = SPANet()\n"
        "with torch.inference_mode():\n"
        "    net(torch.rand(1, 3, 16, 16)); before = machine.peak_memory()\n"
        "    for _ in range(2):\n"
        "        tiles.derain_batch(net, torch.rand(1, 3, 256, 320))\n"
        "print(machine.peak_memory() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, timeout=240
    )
    taken = float(done.stdout) * 2**20
    assert 0.5 < tiles.estimate_memory(256, 320, in_bands=True) / taken < 1.5
    assert tiles.estimate_memory(9000, 12000) > 768 * 9000 * 12000
    assert tiles.estimate_memory(9000, 12000, in_bands=True) > 256 * 9000 * 12000
    # Two maps, the attention maps and the image: a photograph of 12 megapixels fits into 5 GiB.
    assert tiles.estimate_memory(3000, 4000, in_bands=True) < 5 * 2**30
    assert tiles.estimate_memory(9000, 12000, 1024) < tiles.estimate_memory(9000, 12000) / 10


def test_tiles_and_views_of_a_derainer():
    image = np.random.default_rng(0).integers(0, 256, (70, 150, 3), np.uint8)
    derainer = Derainer(SPANet(), torch.device("cpu"), views=2, tile=64)
    output = derainer.derain(image)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        expected_mask, expected = tiles.derain_batch(derainer.net, x, 2, 64)
    assert np.allclose(output.float_image, expected[0].permute(1, 2, 0).clamp(0, 1), atol=1e-6)
    assert np.allclose(output.mask, expected_mask[0, 0], atol=1e-6)
    deep = derainer.derain(image.astype(np.uint16) * 257)
    assert np.allclose(deep.float_image, output.float_image, atol=1e-6)


def test_memory_is_given_back_where_sizes_differ(monkeypatch):
    returned, derainer = [], Derainer(SPANet().eval(), torch.device("cpu"))
    monkeypatch.setattr(machine, "trim_memory", lambda: returned.append(True))
    for _ in range(40):
        derainer.derain(np.zeros((8, 9, 3), np.uint8))
    assert not returned
    for side in range(10, 10 + 2 * SIZE_CHANGES):
        derainer.derain(np.zeros((side, 8, 3), np.uint8))
    assert len(returned) == 2
