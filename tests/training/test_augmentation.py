"""What augmentation does to joint slices: geometry of all channels, colors of contrasts, labels that stay labels."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from torch_utils.ops import native, reference
from training.augment.augment import augment
from training.augment.bands import filter_bands
from training.augment.draws import Draws, draws
from training.augment.geometry import _SYM6, inverse_maps, move
from training.augment.pipes import PIPES, TRANSFORMATIONS

C, K, WIDTH = 4, 3, 24
CPU = torch.device("cpu")


def joint_slices(count: int = 6, dtype=torch.float32, width: int = WIDTH) -> torch.Tensor:
    """Network values [count, C + K, width, width]: contrasts from −1 to 1, and probabilities of labels, 2p − 1."""
    generator = torch.Generator().manual_seed(3)
    contrasts = torch.rand([count, C, width, width], generator=generator, dtype=torch.float64) * 2 - 1
    logits = torch.randn([count, K, width, width], generator=generator, dtype=torch.float64) * 3
    return torch.cat([contrasts, 2 * logits.softmax(dim=1) - 1], dim=1).to(dtype)


def drawn(p: float, pipe=TRANSFORMATIONS, count: int = 6, width: int = WIDTH) -> Draws:
    names = set(pipe) - {"lumaflip", "hue"}
    return draws([(0, 1, "Dmain", sample) for sample in range(count)], p, names, C, width, CPU)


def rows(**values: list) -> Draws:
    return Draws(**{name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})


@pytest.fixture(params=["native", "plain"])
def way(request) -> Iterator[None]:
    """With the native operator, if it is built, and in plain PyTorch."""
    with native.reference_only() if request.param == "plain" else contextlib.nullcontext():
        yield


# ---- all of it -------------------------------------------------------------------------------------------------------


def test_nothing_changes_at_p_0():
    images = joint_slices()
    assert torch.equal(augment(images, drawn(0), C), images)
    assert torch.equal(augment(images, Draws(), C), images)


@pytest.mark.parametrize("p", [0.3, 1])
def test_an_image_does_not_depend_on_the_others(p, way):
    images, seen = joint_slices(), drawn(p)
    together = augment(images, seen, C)
    noisy = (seen.noise > 0).cumsum(0) - 1  # index of an image's noise
    for i in range(len(images)):
        own = {field.name: getattr(seen, field.name) for field in dataclasses.fields(Draws)}
        own = {name: None if value is None else value[i : i + 1] for name, value in own.items()}
        own["noise_images"] = seen.noise_images[noisy[i : i + 1]] if seen.noise[i] > 0 else seen.noise_images[:0]
        alone = augment(images[i : i + 1], Draws(**own), C)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pipe", [["scale"], PIPES["bgcfnc"]], ids=["scale", "bgcfnc"])
def test_probabilities_of_labels_add_up_to_1_everywhere(pipe):
    seen = drawn(1, pipe)
    seen = dataclasses.replace(seen, scale=seen.scale / 5)  # far beyond the reflections
    p = (augment(joint_slices(), seen, C)[:, C:] + 1) / 2
    torch.testing.assert_close(p.sum(dim=1), torch.ones_like(p[:, 0]), rtol=0, atol=1e-5)


def test_beyond_the_reflections_lies_background():
    moved = augment(joint_slices(), rows(scale=[0.1] * 6), C)
    assert torch.equal(moved[:, :C, 0], torch.zeros(6, C, WIDTH))
    corner = moved[:, C:, 0, 0]
    torch.testing.assert_close(corner, torch.tensor([[1.0, -1, -1]]).expand(6, -1))


def test_labels_take_part_in_geometry_only():
    images = joint_slices()
    seen = drawn(1, {*PIPES["color"], *PIPES["filter"], *PIPES["noise"]})
    found = augment(images, seen, C)
    assert torch.equal(found[:, C:], images[:, C:])
    assert ((found - images)[:, :C].abs().amax(dim=[2, 3]) > 1e-3).all()


def test_labels_and_contrasts_move_alike():
    images = joint_slices(2)
    images[:, C + 1] = images[:, 0]  # a label map that looks like a contrast
    images[:, C] = -1 - images[:, C + 1 :].sum(dim=1)  # so that probabilities add up to 1
    seen = drawn(1, PIPES["bg"], 2)
    moved = augment(images, seen, C)
    # Within the reflections, where nothing is missing, both see the same. A difference from −1 is 1 more.
    ones = move(torch.ones_like(images[:, :1]), inverse_maps(seen, 2))
    inside = (ones - 1).abs() < 1e-4
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(moved[:, C + 1 : C + 2][inside], moved[:, :1][inside], rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_maps", [0, K])
def test_slices_of_any_schema(num_maps):
    """Without labels, and with one contrast."""
    images = joint_slices(6)[:, C - 1 : C + num_maps]
    found = augment(images, draws([(i,) for i in range(6)], 1, PIPES["bgcfnc"][:9], 1, WIDTH, CPU), 1)
    assert found.shape == images.shape and bool(found.isfinite().all())


def test_draws_of_another_minibatch_are_refused():
    with pytest.raises(ValueError, match="xflip is drawn for 6 images, and there are 4"):
        augment(joint_slices(4), drawn(1), C)


def test_a_penalty_of_gradients_goes_through_it():
    """As in R1: ∇w of ½‖∇x f(w, x)‖². Augmentation is affine in x, so with f = Σ w · A(x) it is A − A(0) of Aᵀw."""
    images, seen = joint_slices(2, torch.float64), drawn(1, count=2)
    x, w = images.requires_grad_(), torch.randn_like(images).requires_grad_()
    (slope,) = torch.autograd.grad((augment(x, seen, C) * w).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(slope.square().sum() / 2, w)
    expected = augment(slope, seen, C) - augment(torch.zeros_like(slope), seen, C)
    torch.testing.assert_close(found, expected)


# ---- geometry --------------------------------------------------------------------------------------------------------


def moved_at_length(images: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Move images without any window: all of the reflections, twice as large, on PyTorch's own sampler."""
    width = images.shape[-1]
    taps = torch.tensor(_SYM6, dtype=images.dtype) / math.sqrt(2)
    padded = F.pad(images, [width - 1] * 4, mode="reflect")
    large = reference.upfirdn2d(padded, taps, (2, 2), (1, 1), (6, 5, 6, 5), False, 4)
    edge = 2 * width + 10
    y, x = torch.meshgrid(*[(torch.arange(edge, dtype=images.dtype) - 5) / 2 - (width - 1) / 2] * 2, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ inverse[:, None].transpose(2, 3).to(images.dtype)
    index = 2 * (places[..., :2] + (width - 1) / 2 + width - 1)
    grid = (2 * index + 1) / large.shape[-1] - 1
    sampled = F.grid_sample(large, grid, align_corners=False)
    return reference.upfirdn2d(sampled, taps, (1, 1), (2, 2), (0, 0, 0, 0), True, 1)


@pytest.mark.parametrize("width", [8, 24])
@pytest.mark.parametrize("scale", [0.15, 0.5, 1, 3])
def test_windows_hold_all_that_is_seen(width, scale, way):
    images = joint_slices(12, torch.float64, width)
    seen = drawn(0.8, PIPES["bg"], 12, width)
    inverse = inverse_maps(dataclasses.replace(seen, scale=seen.scale * scale), 12)
    inverse[:3, :2, 2] *= 4  # far away
    expected = moved_at_length(images, inverse)
    torch.testing.assert_close(move(images, inverse), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "draws, expected",
    [
        (rows(xflip=[1.0]), lambda x: x.flip(3)),
        (rows(rotate90=[1.0]), lambda x: x.rot90(1, [2, 3])),
        (rows(rotate90=[2.0]), lambda x: x.rot90(2, [2, 3])),
        (rows(xint=[[3.0, 0.0]]), lambda x: F.pad(x, (3, 0, 0, 0), mode="reflect")[..., :WIDTH]),
        (rows(xint=[[0.0, -2.0]]), lambda x: F.pad(x, (0, 0, 0, 2), mode="reflect")[..., 2:, :]),
        (rows(xfrac=[[3.0, -2.0]]), lambda x: F.pad(x, (3, 0, 0, 2), mode="reflect")[..., 2:, :WIDTH]),
    ],
    ids=["xflip", "quarter turn", "half turn", "right", "up", "both"],
)
def test_whole_pixels(draws, expected):
    """On a smooth image. The wavelet isn't symmetric, so what is turned over is off by up to a sixth of a pixel."""
    noise = np.random.default_rng(0).standard_normal([1, 2, WIDTH, WIDTH])
    smooth = torch.from_numpy(scipy.ndimage.gaussian_filter(noise, (0, 0, 2, 2), mode="mirror"))
    smooth /= smooth.std()
    torch.testing.assert_close(move(smooth, inverse_maps(draws, 1)), expected(smooth), rtol=0, atol=0.2)


def test_a_larger_scale_enlarges():
    disc = torch.zeros(1, 1, 32, 32)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc[0, 0] = ((x - 15.5).square() + (y - 15.5).square() < 36).float()
    area = float(disc.sum())
    assert float(move(disc, inverse_maps(rows(scale=[1.5]), 1)).sum()) == pytest.approx(area * 2.25, rel=0.02)
    wide = move(disc, inverse_maps(rows(aniso=[1.5]), 1))[0, 0]
    assert float(wide.sum()) == pytest.approx(area, rel=0.02)
    assert float((wide > 0.5).any(dim=0).sum()) == pytest.approx(18, abs=1)  # columns
    assert float((wide > 0.5).any(dim=1).sum()) == pytest.approx(8, abs=1)  # rows


# ---- colors, bands, noise, cutout ------------------------------------------------------------------------------------


def test_colors_of_any_number_of_contrasts():
    images = joint_slices(1)
    x = images[:, :C]
    found = augment(images, rows(brightness=[0.3], contrast=[1.5], saturation=[2.0]), C)[:, :C]
    brighter = (x + 0.3) * 1.5
    mean = brighter.mean(dim=1, keepdim=True)
    torch.testing.assert_close(found, mean + 2 * (brighter - mean))


def test_saturation_of_one_contrast_changes_nothing():
    x = joint_slices(1)[:, :1]
    torch.testing.assert_close(augment(x, rows(saturation=[2.0]), 1), x)


def test_hue_and_luma_flip_need_three_contrasts():
    for changed in (rows(hue=[1.0]), rows(lumaflip=[1.0])):
        with pytest.raises(ValueError, match="3 contrasts; found 4"):
            augment(joint_slices(1), changed, C)
        x = joint_slices(1)[:, :3]
        found = augment(x, changed, 3)
        # The mean of the contrasts is turned over by one and kept by the other; both keep distances.
        sign = -1 if changed.hue is None else 1
        torch.testing.assert_close(found.mean(dim=1), sign * x.mean(dim=1))
        torch.testing.assert_close(found.square().sum(dim=1), x.square().sum(dim=1))


@pytest.mark.parametrize("width", [8, 24, 64])
def test_bands(width):
    """They add up to the identity, and each is a convolution of the image with its reflections."""
    x = joint_slices(2, torch.float64, width)
    torch.testing.assert_close(filter_bands(x, torch.ones(2, 4, dtype=torch.float64)), x)
    gains = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 0]], dtype=torch.float64)
    high = np.array([1, 0, -9, 16, -9, 0, 1]) / 32  # squared high-pass filter of sym2
    expected = x.clone().numpy()
    for kernel, image in zip((high, np.eye(7)[3] - high), expected, strict=True):
        for axis in (1, 2):
            image[:] = scipy.ndimage.convolve1d(image, kernel, axis=axis, mode="mirror")
    torch.testing.assert_close(filter_bands(x, gains), torch.from_numpy(expected))


def test_noise_comes_to_the_images_that_have_some():
    images = joint_slices(3)
    noise = torch.randn(2, C, WIDTH, WIDTH)
    seen = dataclasses.replace(rows(noise=[0.1, 0, 0.3]), noise_images=noise)
    found = (augment(images, seen, C) - images)[:, :C]
    torch.testing.assert_close(found, torch.stack([0.1 * noise[0], torch.zeros_like(noise[0]), 0.3 * noise[1]]))


def test_cutout():
    images = joint_slices(2)
    found = augment(images, rows(cutout=[[0.5, 0.25], [math.nan, math.nan]]), C)
    torch.testing.assert_close(found[1], images[1])
    expected = images[0].clone()
    hole = (slice(0, WIDTH // 2), slice(WIDTH // 4, 3 * WIDTH // 4))
    expected[(slice(None), *hole)] = torch.tensor([0, 0, 0, 0, 1, -1, -1.0])[:, None, None]
    torch.testing.assert_close(found[0], expected)
