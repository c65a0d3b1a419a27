"""Properties of augmentation that hold for any pipe: derivatives, sums of probabilities, independence, exact cases."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from dnnlib.errors import UserError
from helpers.operator_faces import native_operators
from helpers.trainings import double
from torch_utils.ops import native
from torch_utils.ops.grid_sample import grid_sample
from training.augment.augment import augment
from training.augment.draws import draws
from training.augment.pipes import PIPES, TRANSFORMATIONS, parse_pipe
from training.config import DiscriminatorConfig
from training.loss import r1_gradients, r1_penalty
from training.networks.discriminator import Discriminator

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, params=["reference", "cpu"])
def face(request):
    """The tests run twice: with the operators in plain PyTorch, and with those compiled for this CPU."""
    with native.reference_only() if request.param == "reference" else native_operators("cpu"):
        yield request.param


OF_CONTRASTS = ("color", "filter", "noise")  # pipes that leave labels alone


def draw(pipe, keys, p=1.0, contrasts=3, resolution=16):
    """Draws for keys: a number of them, or the keys' own numbers."""
    numbers = range(keys) if isinstance(keys, int) else keys
    names = parse_pipe(pipe, contrasts).names
    return draws([(0, "test", number) for number in numbers], p, names, contrasts, resolution, CPU)


def with_values(drawn, **fields):
    """Draws with some of their values replaced."""
    return replace(drawn, **{name: torch.tensor(values, dtype=torch.float64) for name, values in fields.items()})


def joint(count, contrasts=3, maps=2, resolution=16, seed=0, dtype=torch.float32):
    """Images of random contrasts and random one-hot label maps, as network values [count, C + K, H, W]."""
    random = np.random.default_rng(seed)
    images = random.uniform(-1, 1, (count, contrasts + maps, resolution, resolution))
    if maps:
        indices = random.integers(0, maps, (count, 1, resolution, resolution))
        images[:, contrasts:] = np.where(indices == np.arange(maps)[:, None, None], 1, -1)
    return torch.tensor(images, dtype=dtype)


def blobs(count, contrasts=4, maps=4, resolution=64):
    """As `joint`, but classes lie in one another as in a lesion, in a background."""
    y, x = np.mgrid[:resolution, :resolution] / resolution - 0.5
    images = joint(count, contrasts, maps, resolution)
    for image in images:
        indices = (np.hypot(x - 0.1, y + 0.05)[None] < np.linspace(0.3, 0.1, maps - 1)[:, None, None]).sum(axis=0)
        image[contrasts:] = torch.from_numpy(np.where(indices == np.arange(maps)[:, None, None], 1.0, -1.0))
    return images


def probabilities(images, contrasts):
    return (images[:, contrasts:].double() + 1) / 2


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 5), (4, 9)])
def test_sampling_has_first_and_second_derivatives(size):
    """PyTorch's own has second ones since 2.7 or later only: not in 2.6, the oldest that is admitted."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    grid = torch.rand(2, *size, 2, dtype=torch.float64) * 2.6 - 1.3  # a part lies outside
    sample = functools.partial(grid_sample, grid=grid)
    wanted = torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(sample(x), wanted)
    assert gradcheck(sample, (x,)) and gradgradcheck(sample, (x,))


@pytest.mark.parametrize("pipe", PIPES)
def test_every_pipe_has_first_and_second_derivatives(pipe):
    x = joint(2, resolution=8, dtype=torch.float64).requires_grad_()
    drawn = draw(pipe, [3, 4], resolution=8)
    assert not torch.allclose(augment(x, drawn, 3), x, atol=1e-3), "something happens"
    function = functools.partial(augment, draws=drawn, num_contrasts=3)
    assert gradcheck(function, (x,), fast_mode=True) and gradgradcheck(function, (x,), fast_mode=True)


def test_r1_through_augmentation_is_that_of_finite_differences():
    """Both the gradient by the image, and that of the penalty by the weights, along a random direction."""
    with double():
        torch.manual_seed(0)
        config = DiscriminatorConfig(resolution=16, img_channels=5, channel_base=64, channel_max=8)
        discriminator, no_label = Discriminator(config), torch.zeros(2, 0)
        parameters = list(discriminator.parameters())
        images, drawn = joint(2, dtype=torch.float64).requires_grad_(), draw("bgcfnc", [3, 4])

        def logits(x):
            return discriminator(augment(x, drawn, 3), no_label)

        def penalty():
            return r1_penalty(r1_gradients(logits(images), images)).mean()

        gradients = r1_gradients(logits(images), images)
        direction, step = torch.randn_like(images), 1e-6
        with torch.no_grad():
            change = (logits(images + step * direction) - logits(images - step * direction)).sum() / (2 * step)
        assert float((gradients * direction).sum().detach()) == pytest.approx(float(change), rel=1e-5)
        # Not by all weights: a bias of the last layers does not change the penalty.
        found = torch.autograd.grad(penalty(), parameters, allow_unused=True)
        directions = [torch.randn_like(parameter) for parameter in parameters]
        values = []
        for sign in (1, -2, 1):  # one step ahead, one step behind, and back
            with torch.no_grad():
                for parameter, d in zip(parameters, directions, strict=True):
                    parameter += sign * step * d
            values.append(float(penalty().detach()))
        slope = sum(float((g * d).sum()) for g, d in zip(found, directions, strict=True) if g is not None)
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


# --- label maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maps", [2, 4])
@pytest.mark.parametrize("pipe", ["geom", "bg,cutout", "bgcfnc"])
def test_probabilities_sum_to_one_everywhere(pipe, maps):
    """Also where a label comes from outside the image, and in the square that is cut out."""
    images = joint(16, 4, maps, 32)
    p = probabilities(augment(images, draw(pipe, 16, contrasts=4, resolution=32), 4), 4)
    assert float((p.sum(dim=1) - 1).abs().max()) <= 1e-5


def test_probabilities_leave_their_range_by_the_ringing_of_the_wavelet_only():
    images = blobs(32)
    p = probabilities(augment(images, draw("bg", 32, contrasts=4, resolution=64), 4), 4)
    # Nested discs with sharp edges are the worst case: from −0.31 to 1.31 were seen.
    assert -0.35 < float(p.min()) < -0.05 and 1.05 < float(p.max()) < 1.35
    assert (p.argmax(dim=1) > 0).any(dim=(1, 2)).sum() > 24, "lesions are still there"


@pytest.mark.parametrize("pipe", OF_CONTRASTS)
@pytest.mark.parametrize("contrasts", [1, 3, 4])
def test_labels_are_left_alone_by_what_acts_on_contrasts(pipe, contrasts):
    images = joint(4, contrasts, 4)
    found = augment(images, draw(pipe, 4, contrasts=contrasts), contrasts)
    assert torch.equal(found[:, contrasts:], images[:, contrasts:])
    changed = (found - images)[:, :contrasts].abs().amax(dim=(2, 3)) > 1e-3
    assert changed.all()


def test_a_schema_without_classes_has_no_labels():
    images = joint(8, 2, 0)
    found = augment(images, draw("bgcfnc", 8, contrasts=2), 2)
    assert found.shape == images.shape and found.isfinite().all() and not torch.equal(found, images)


def test_cutout_leaves_background_inside_and_everything_outside():
    images, drawn = joint(6, 4, 4, 32), draw("cutout", 6, contrasts=4, resolution=32)
    found = augment(images, drawn, 4)
    centers = np.arange(32) / 32 + 1 / 64  # of pixels, in widths of the image
    for image, result, (x, y) in zip(images, found, drawn.cutout.tolist(), strict=True):
        inside = np.outer(abs(centers - y) < 0.25, abs(centers - x) < 0.25)
        assert 0 < inside.sum() < 1024
        background = torch.tensor([0.0, 0, 0, 0, 1, -1, -1, -1])
        assert (result[:, inside] == background[:, None]).all()
        torch.testing.assert_close(result[:, ~inside], image[:, ~inside], rtol=0, atol=1e-6)


# --- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipe", ["geom", "bgcfnc"])
def test_a_sample_does_not_depend_on_the_others(pipe):
    """Alone, together with others that move strongly, and in any order."""
    images, keys = joint(8, 4, 4, 32), list(range(8))
    together = augment(images, draw(pipe, keys, contrasts=4, resolution=32), 4)
    order = [5, 0, 7, 2, 6, 1, 4, 3]
    mixed = augment(images[order], draw(pipe, order, contrasts=4, resolution=32), 4)
    torch.testing.assert_close(mixed, together[order], rtol=0, atol=1e-5)
    for n in keys:
        alone = augment(images[n : n + 1], draw(pipe, [n], contrasts=4, resolution=32), 4)
        torch.testing.assert_close(alone, together[n : n + 1], rtol=0, atol=1e-5)


def test_a_large_move_of_another_sample_changes_nothing():
    """The strongest case for reflection: one sample stays, and its neighbor is scaled until it is cut off."""
    images = joint(2, 4, 4, 32)
    weak = draw("scale,xfrac", 2, contrasts=4, resolution=32)
    with_weak = augment(images, with_values(weak, scale=[1.1, 1.0], xfrac=[[0.3, -0.4], [0, 0]]), 4)
    with_strong = augment(images, with_values(weak, scale=[1.1, 0.2], xfrac=[[0.3, -0.4], [20, 31.5]]), 4)
    torch.testing.assert_close(with_weak[0], with_strong[0], rtol=0, atol=1e-5)
    assert not torch.allclose(with_weak[1], with_strong[1], atol=0.1)


@pytest.mark.parametrize("pipe", ["blit", "color", "filter", "bgcfnc"])
def test_nothing_happens_at_p_0_and_a_larger_p_changes_more(pipe):
    images = joint(12, 4, 4)
    changed = []
    for p in (0.0, 0.3, 0.6, 0.9):
        found = augment(images, draw(pipe, 12, p, contrasts=4), 4)
        changed.append(((found - images).abs().amax(dim=(1, 2, 3)) > 1e-4).tolist())
    assert not any(changed[0])
    for less, more in zip(changed, changed[1:], strict=False):
        assert all(m or not l for l, m in zip(less, more, strict=True)), "those changed before are changed now"
    assert sum(changed[3]) > 6


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_native_geometry_is_that_of_plain_pytorch(dtype, tolerance, face):
    """In float32, plain PyTorch has the places of samples to about 1e-5 pixels only, and these images are noise."""
    images, drawn = joint(12, 4, 4, 32, dtype=dtype).requires_grad_(), draw("bg", 12, contrasts=4, resolution=32)

    def value_and_gradient():
        y = augment(images, drawn, 4)
        return [y, *torch.autograd.grad(y.square().sum(), images)]

    found = value_and_gradient()
    with native.reference_only():
        wanted = value_and_gradient()
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# --- cases that numpy knows -------------------------------------------------------------------------------------------


TURNS = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]  # flipped or not, quarter turns


def turned(image, flip, turns):
    """Flip an image [C, H, W] left to right, or not, then turn it counterclockwise."""
    return np.rot90(image[:, :, ::-1] if flip else image, turns, axes=(1, 2))


def flips_and_turns(images):
    drawn = draw("xflip,rotate90", 8, resolution=images.shape[-1])
    return augment(images, with_values(drawn, xflip=[f for f, _ in TURNS], rotate90=[t for _, t in TURNS]), 3).numpy()


def test_flips_and_quarter_turns_are_numpys():
    """Closely for a smooth image. Fine structures change, as the published wavelet is not symmetric: by up to 0.3 in
    the golden numbers, whose images are noise. Exact is only what turns neither axis around: the transposition."""
    at = (np.arange(32) + 0.5) * np.pi / 32
    waves = np.cos(np.arange(4)[:, None] * at)  # [4, W], even at the edges, as reflections continue them
    smooth = np.random.default_rng(0).uniform(-0.2, 0.2, (5, 4, 4))
    smooth = torch.tensor(np.einsum("cij,ih,jw->chw", smooth, waves, waves), dtype=torch.float32).repeat(8, 1, 1, 1)
    noise = joint(1, resolution=32).repeat(8, 1, 1, 1)
    for result, (flip, turns) in zip(flips_and_turns(smooth), TURNS, strict=True):
        assert np.abs(result - turned(smooth[0].numpy(), flip, turns)).max() <= 2e-2, (flip, turns)
    for result, (flip, turns) in zip(flips_and_turns(noise), TURNS, strict=True):
        difference = np.abs(result - turned(noise[0].numpy(), flip, turns)).max()
        assert difference <= (1e-5 if (flip, turns) in ((0, 0), (1, 1)) else 1), (flip, turns)


def test_shifts_by_whole_pixels_are_those_of_the_reflected_image():
    images = joint(6, 4, 4, 32)
    drawn = draw("xint", 6, contrasts=4, resolution=32)
    shifts = [(0, 0), (4, 0), (0, -3), (-4, 4), (1, 2), (-2, -1)]
    found = augment(images, with_values(drawn, xint=shifts), 4).numpy()
    for image, result, (x, y) in zip(images.numpy(), found, shifts, strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        wanted = np.roll(padded, (y, x), axis=(1, 2))[:, 4:-4, 4:-4]
        assert np.abs(result - wanted).max() <= 1e-5


def test_saturation_scales_deviations_from_the_mean_of_the_contrasts():
    images = joint(6, 4, 4)
    drawn = draw("saturation", 6, contrasts=4)
    found = augment(images, drawn, 4).numpy()
    contrasts = images[:, :4].numpy()
    mean = contrasts.mean(axis=1, keepdims=True)
    wanted = mean + (contrasts - mean) * drawn.saturation.numpy()[:, None, None, None]
    assert np.abs(found[:, :4] - wanted).max() <= 1e-5
    assert np.abs(drawn.saturation.numpy() - 1).max() > 0.3


def test_brightness_and_contrast_are_a_factor_and_an_addend():
    images = joint(6, 4, 4)
    drawn = draw("brightness,contrast", 6, contrasts=4)
    found = augment(images, drawn, 4).numpy()
    factor, addend = (values.numpy()[:, None, None, None] for values in (drawn.contrast, drawn.brightness))
    assert np.abs(found[:, :4] - (images[:, :4].numpy() + addend) * factor).max() <= 1e-5


def test_hue_is_of_three_contrasts():
    with pytest.raises(UserError, match="hue.*3 contrasts"):
        parse_pipe("hue", 4)
    with pytest.raises(UserError, match="lumaflip.*3 contrasts"):
        parse_pipe("blit,lumaflip", 4)
    pipe = parse_pipe("bgc", 4)
    assert set(PIPES["bgc"]) - set(pipe.names) == {"hue", "lumaflip"}
    assert len(pipe.remarks) == 1 and "lumaflip and hue" in pipe.remarks[0]
    assert parse_pipe("bgcfnc", 3).names == TRANSFORMATIONS and not parse_pipe("bgcfnc", 3).remarks
