"""The SSIM loss and the reported PSNR and SSIM, against the released computation."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from skimage.metrics import structural_similarity

from cal_ssim import SSIM, gaussian_window
from engine.training_step import compute_losses, train_one_step
from media.pictures import to_uint8
from report.metrics import GAUSSIAN_OPTIONS, MEASURES, PROTOCOLS, luminance, measure
from settings import Settings, UserError


class Darker(torch.nn.Module):
    """In a network's place: a mask of 0, and all that is bright made darker by that much."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image[:, :1] * 0, torch.where(image > 0.5, image - self.by, image)


class Dimmer(torch.nn.Module):
    """In a network's place: mask and output are a share of the image, which can be learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(0.4))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image[:, :1] * self.by, image * self.by


def test_what_changes_off_the_rain_can_weigh_more():
    clean = torch.full((2, 3, 6, 8), 0.25)
    clean[:, :, 3:] = 0.75  # bright, and no rain
    rainy, label = clean.clone(), torch.zeros(2, 6, 8)
    rainy[:, :, :2, 0], label[:, :2, 0] = 1.0, 1.0

    def losses(weight):
        settings = Settings("train", off_mask_weight=weight)
        found, *_ = compute_losses(Darker(0.125), SSIM(), settings, (rainy, clean, label))
        return {name: value.item() for name, value in found.items()}

    plain, weighed = losses(0.0), losses(4.0)
    assert plain["loss"] == pytest.approx(plain["l1"] + 1 - plain["ssim"] + plain["mask"])
    assert weighed["off_mask"] == 0.125 / 2
    assert weighed["loss"] - plain["loss"] == pytest.approx(4 * 0.125 / 2, abs=1e-6)
    assert all(weighed[name] == plain[name] for name in ("l1", "ssim", "mask", "off_mask"))


def test_what_weighs_more_does_so_in_micro_batches_too():
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.rand(4, 3, 24, 24, generator=generator) for _ in range(2)]
    tensors.append((torch.rand(4, 24, 24, generator=generator) < 0.3).float())

    def step(**options):
        net = Dimmer()
        sgd = torch.optim.SGD(net.parameters())
        settings = Settings("train", lr=0.1, **options)
        values = train_one_step(net, sgd, SSIM(), settings, 0, tensors)
        return {name: value.item() for name, value in values.items()}, net.by.grad.item()

    (once, gradient), (twice, accumulated) = (
        step(off_mask_weight=3, accumulate_steps=count) for count in (1, 2)
    )
    assert twice == pytest.approx(once, rel=1e-5)
    assert accumulated == pytest.approx(gradient, rel=1e-4)
    assert step(accumulate_steps=2)[1] != pytest.approx(gradient, rel=0.1)


def test_each_term_of_the_loss_has_a_weight():
    generator = torch.Generator().manual_seed(1)
    rainy, clean = torch.rand(2, 2, 3, 12, 12, generator=generator)
    tensors = rainy, clean, torch.ones(2, 12, 12)

    def losses(**weights):
        settings = Settings("train", **weights)
        with torch.no_grad():
            found, *_ = compute_losses(Dimmer(), SSIM(), settings, tensors)
        return {name: value.item() for name, value in found.items()}

    plain = losses()
    changes = {"l1": plain["l1"], "ssim": 1 - plain["ssim"], "mask": plain["mask"]}
    for name, change in changes.items():
        for weight in (0, 3):
            found = losses(**{f"{name}_weight": weight})
            assert found["loss"] - plain["loss"] == pytest.approx((weight - 1) * change, abs=1e-6)
            assert all(found[term] == plain[term] for term in ("l1", "ssim", "mask", "off_mask"))
    with pytest.raises(UserError, match="--l1-weight and --ssim-weight are both 0"):
        Settings("train", l1_weight=0, ssim_weight=0, off_mask_weight=1)


def released_ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """SSIM of the released loss, with its dense 11x11 window."""
    one = gaussian_window()
    channels = first.shape[1]
    window = torch.outer(one, one).to(first.dtype).expand(channels, 1, 11, 11).contiguous()

    def blur(planes):
        return F.conv2d(planes, window, padding=5, groups=channels)

    mean1, mean2 = blur(first), blur(second)
    variance1, variance2 = blur(first * first) - mean1**2, blur(second * second) - mean2**2
    covariance = blur(first * second) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    return (top / ((mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2))).mean()


@pytest.mark.parametrize("shape", [(2, 3, 40, 33), (1, 3, 5, 4), (1, 1, 1, 1)])
def test_loss_equals_the_dense_window(shape):
    torch.manual_seed(0)
    first = torch.rand(shape, dtype=torch.float64).requires_grad_()
    second = (first.detach() + 0.1 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    found, expected = SSIM()(first, second), released_ssim(first, second)
    assert abs(found - expected) <= 1e-12
    gradients = torch.autograd.grad(found, (first, second))
    wanted = torch.autograd.grad(expected, (first, second))
    assert all((a - b).abs().max() <= 1e-12 for a, b in zip(gradients, wanted, strict=True))
    in_float = SSIM()(first.detach().float(), second.detach().float())
    assert abs(in_float - expected) <= 1e-6


def test_loss_of_equal_images_is_one():
    image = torch.rand(1, 3, 20, 20)
    assert SSIM()(image, image).item() == pytest.approx(1, abs=1e-6)


def test_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match="one shape"):
        SSIM()(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))


def test_golden_metrics():
    arrays = golden("metrics")
    found = measure(arrays["pred"], arrays["clean"], order="BGR")
    assert found["released_psnr"] == pytest.approx(float(arrays["psnr_measure_0_14"]), abs=1e-6)
    assert found["released_ssim"] == pytest.approx(float(arrays["ssim_measure_0_14"]), abs=1e-9)
    assert found["rgb_ssim"] == pytest.approx(float(arrays["ssim_data_range_1"]), abs=1e-9)
    assert found["rgb_psnr"] == found["released_psnr"]


def gaussian_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM with an 11x11 Gaussian window over the valid region, data range 255."""
    one = gaussian_window().numpy()

    def blur(plane):
        rows = np.lib.stride_tricks.sliding_window_view(plane, 11, 0) @ one
        return np.lib.stride_tricks.sliding_window_view(rows, 11, 1) @ one

    mean1, mean2 = blur(first), blur(second)
    variance1, variance2 = blur(first**2) - mean1**2, blur(second**2) - mean2**2
    covariance = blur(first * second) - mean1 * mean2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    return (top / ((mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2))).mean()


def test_y_protocol_is_psnr_and_gaussian_ssim_of_8_bit_luminance():
    arrays = golden("metrics")
    found = measure(arrays["pred"], arrays["clean"], order="BGR")
    images = np.stack([arrays["pred"], arrays["clean"]]).astype(np.float64)
    b, g, r = np.moveaxis(np.rint(np.clip(images, 0, 1) * 255), -1, 0)
    output, clean = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    assert found["y_psnr"] == pytest.approx(10 * np.log10(255**2 / np.mean((output - clean) ** 2)))
    assert found["y_ssim"] == pytest.approx(gaussian_ssim(clean, output), abs=1e-9)


@pytest.mark.parametrize(("height", "width", "factor"), [(384, 390, 2), (641, 660, 3)])
def test_y_down_averages_large_images_down(height, width, factor):
    rng = np.random.default_rng(0)
    clean, output = rng.random((2, height, width, 3)).astype(np.float32)
    found = measure(output, clean, order="BGR")
    middle = (factor + 1) // 2 - 1  # of a box, at whose place its mean stands
    edges = (middle, factor - 1 - middle)
    means = []
    for image in (clean, output):
        plane = np.pad(luminance(image), (edges, edges), "symmetric")
        boxes = np.lib.stride_tricks.sliding_window_view(plane, (factor, factor))
        means.append(boxes.mean((2, 3))[::factor, ::factor])
    assert found["y_down_ssim"] == pytest.approx(gaussian_ssim(*means), abs=1e-9)
    assert abs(found["y_down_ssim"] - found["y_ssim"]) > 1e-3
    assert found["y_down_psnr"] == found["y_psnr"]
    small = measure(output[:383], clean[:383], order="BGR")
    assert small["y_down_ssim"] == small["y_ssim"]


def test_y_round_takes_whole_numbers_of_luminance():
    arrays = golden("metrics")
    found = measure(arrays["pred"], arrays["clean"], order="BGR")
    clean, output = (np.rint(luminance(arrays[key])) for key in ("clean", "pred"))
    assert found["y_round_psnr"] == pytest.approx(
        10 * np.log10(255**2 / np.mean((output - clean) ** 2))
    )
    assert found["y_round_ssim"] == pytest.approx(gaussian_ssim(clean, output), abs=1e-9)


def test_scores_are_those_of_the_scripts_of_others(shared):
    """PReNet's script (y_down) and MPRNet's (y_round), run in GNU Octave on 56 pairs."""
    with (shared / "golden" / "score" / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 56
    columns = {
        "double_psnr": "y_down_psnr", "double_ssim_averaged_down": "y_down_ssim",
        "rounded_psnr": "y_round_psnr", "rounded_ssim": "y_round_ssim",
    }  # fmt: skip
    for row in rows:
        images = [cv2.imread(str(shared / row[key])) for key in ("result", "truth")]
        found = measure(
            *(image.astype(np.float32) / 255 for image in images),
            order="BGR",
            protocols=["y_down", "y_round"],
        )
        for column, name in columns.items():
            bound = 1e-4 if name.endswith("psnr") else 1e-5
            assert found[name] == pytest.approx(float(row[column]), abs=bound, nan_ok=True), row


def test_a_protocol_alone_is_what_it_is_among_all():
    rng = np.random.default_rng(0)
    clean, output = rng.random((2, 20, 30, 3)).astype(np.float32)
    every = measure(output, clean, order="BGR")
    assert list(every) == [f"{protocol}_{m}" for protocol in PROTOCOLS for m in MEASURES]
    for protocol in PROTOCOLS:
        alone = measure(output, clean, order="BGR", protocols=[protocol])
        assert alone == {f"{protocol}_{m}": every[f"{protocol}_{m}"] for m in MEASURES}


def test_luminance_spans_16_to_235():
    black_white_blue = np.array([[[0, 0, 0], [1, 1, 1], [1, 0, 0]]], np.float32)
    assert luminance(black_white_blue)[0] == pytest.approx([16, 235, 16 + 24.966])


def test_output_is_clipped_before_it_is_measured():
    clean = np.random.default_rng(0).random((20, 20, 3)).astype(np.float32)
    wild = clean.copy()
    wild[0, 0] = (-3, 5, 0.5)
    assert measure(wild, clean, order="BGR") == measure(np.clip(wild, 0, 1), clean, order="BGR")


def test_equal_images_have_infinite_psnr():
    image = np.random.default_rng(0).random((20, 20, 3)).astype(np.float32)
    found = measure(image, image, order="BGR")
    assert all(found[f"{p}_psnr"] == math.inf for p in PROTOCOLS)
    assert all(found[f"{p}_ssim"] == pytest.approx(1) for p in PROTOCOLS)


def test_images_smaller_than_a_window_have_no_ssim():
    rng = np.random.default_rng(0)
    clean, output = rng.random((2, 8, 30, 3)).astype(np.float32)
    found = measure(output, clean, order="BGR")
    assert found["released_ssim"] == found["released_ssim"]
    assert math.isnan(found["y_ssim"])
    assert math.isnan(measure(output[:5], clean[:5], order="BGR")["released_ssim"])
    assert found["y_psnr"] > 0


def test_measure_refuses_what_it_would_misjudge():
    image = np.zeros((8, 8, 3), np.float32)
    with_nan = image.copy()
    with_nan[3, 4, 1] = np.nan
    for output, clean, order, message in (
        (image.astype(np.uint16), image, "BGR", "output must be .* uint8 or .*; got uint16"),
        (image + 255, image, "RGB", "output must be .* in 0..1; got 255 to 255"),
        (image - 0.1, image, "RGB", "output must be .* in 0..1; got -0.1 to -0.1"),
        (with_nan, image, "RGB", "output must be .* in 0..1; got nan to nan"),
        (image, image[:, :7], "RGB", r"\(8, 7, 3\)"),
        (image[..., 0], image[..., 0], "RGB", r"\(8, 8\)"),
        (image, image + 255, "RGB", "clean must be .* in 0..1; got 255 to 255"),
        (image, with_nan, "RGB", "clean must be .* in 0..1; got nan to nan"),
        (image, image, "rgb", "order must be RGB or BGR, got 'rgb'"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(output, clean, order=order)
    for other in (torch.zeros(8, 8, 3), image.tolist(), None):
        for pair, name in (((other, image), "output"), ((image, other), "clean")):
            with pytest.raises(TypeError, match=f"{name} must be a NumPy array.*; got "):
                measure(*pair, order="RGB")


def test_measure_needs_no_torch():
    code = (
        "import numpy, sys; from report.metrics import measure\n"
        "image = numpy.zeros((16, 16, 3), 'uint8'); measure(image, image, order='RGB')\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


def test_measure_takes_what_libraries_read():
    rng = np.random.default_rng(0)
    clean, output = rng.integers(0, 256, (2, 40, 30, 3), np.uint8)
    expected = measure(output / np.float32(255), clean / np.float32(255), order="BGR")
    assert measure(output, clean, order="BGR") == expected
    swapped = measure(output[..., ::-1], clean[..., ::-1], order="RGB")
    assert swapped == pytest.approx(expected, rel=1e-12)
    assert abs(measure(output, clean, order="RGB")["y_psnr"] - expected["y_psnr"]) > 1e-3


@pytest.mark.parametrize("size", [(7, 11), (12, 9), (300, 512), (12, 50_000), (1100, 13)])
def test_ssim_in_bands_is_that_of_the_whole(size):
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (*size, 3), np.uint8)
    output = np.clip(clean + rng.normal(0, 9, clean.shape), 0, 255).astype(np.uint8)
    found = measure(output, clean, order="BGR")
    colours = [image / np.float32(255) for image in (clean, output)]
    exact = [image.astype(np.float64) for image in colours]
    options = {"win_size": 7, "channel_axis": -1}
    for protocol, peak in (("released", 2), ("rgb", 1)):
        whole = structural_similarity(*exact, data_range=peak, **options)
        assert found[f"{protocol}_ssim"] == pytest.approx(whole, abs=1e-12)
    if min(size) >= 11:
        whole = structural_similarity(*map(luminance, colours), **GAUSSIAN_OPTIONS)
        assert found["y_ssim"] == pytest.approx(whole, abs=1e-12)


def test_to_uint8_rounds_and_clips():
    values = np.array([-1, 0, 0.4 / 255, 0.6 / 255, 1, 2])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]
