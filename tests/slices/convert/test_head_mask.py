"""Head masks of drawn heads with what scanners and registrations do: noisy air, frames of zeros, ghosts, crops."""

import numpy as np
import pytest
from scipy import ndimage

from dnnlib.errors import UserError
from helpers.drawn import draw_head
from slices.convert.head_mask import find_head, foreground, grow, otsu_threshold
from slices.schema import BRATS

SHAPE = (12, 100, 90)  # S, P, L


def ellipsoid(p, l, share=1.0):
    """An ellipsoid in the middle of the volume, with half axes p and l, shrunk by a share, and flat on top."""
    s, y, x = np.indices(SHAPE)
    return ((s - 4) / 14) ** 2 + ((y - 50) / (p * share)) ** 2 + ((x - 45) / (l * share)) ** 2 < 1


HEAD, SKULL, BRAIN = ellipsoid(38, 32), ellipsoid(38, 32, 0.93), ellipsoid(38, 32, 0.83)
LEVELS = ((900, 20, 420), (800, 25, 300), (350, 15, 600))  # of skin, bone and brain in three contrasts


def unstripped():
    """Three contrasts, float [S, P, L]: skin around bone, as dark as air, around brain with dark fluid and a sinus."""
    texture = np.random.default_rng(0).uniform(0.8, 1.2, SHAPE)
    contrasts = []
    for skin, bone, brain in LEVELS:
        volume = np.where(HEAD, float(skin), 0)
        volume[SKULL] = bone
        volume[BRAIN] = brain
        volume[:, 48:53, 30:60] *= 0.15
        volume[:6, 22:30, 40:50] *= 0.03  # air inside, open to the lowest slice
        contrasts.append(volume * texture)
    return contrasts


def noisy(contrasts, share=0.02, seed=1):
    """Add noise as in magnitude images. Its deviation is a share of the bright intensity."""
    rng = np.random.default_rng(seed)
    found = []
    for volume in contrasts:
        noise = share * np.percentile(volume, 99.5) * rng.normal(size=(2, *SHAPE))
        found.append(np.hypot(volume + noise[0], noise[1]))
    return found


def framed(contrasts, degrees=4.0):
    """Set a frame to zero, as after a rotation that differs between contrasts, and a slice at either end."""
    _, y, x = np.indices(SHAPE)
    for n, volume in enumerate(contrasts):
        turn = np.deg2rad(degrees * (n - 1))
        along, across = (
            (y - 50) * np.cos(turn) + (x - 45) * np.sin(turn),
            (x - 45) * np.cos(turn) - (y - 50) * np.sin(turn),
        )
        volume[(abs(along) > 46) | (abs(across) > 41)] = 0
        volume[-1] = 0
    return contrasts


def ghosted(contrasts, share=0.05):
    return [volume + share * np.roll(volume, 40, axis=1) for volume in contrasts]


def blank_ends(contrasts):
    contrasts[1][:2] = contrasts[1][-3:] = 0
    return contrasts


def dice(found, expected):
    return 2 * (found & expected).sum() / (found.sum() + expected.sum())


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize(
    "made",
    [
        lambda: noisy(unstripped()),
        lambda: noisy(unstripped(), 0.005),
        lambda: framed(noisy(unstripped())),
        lambda: framed(noisy(unstripped(), 0.03), 12.0),
        lambda: framed(noisy(ghosted(unstripped()), 0.01)),
        lambda: blank_ends(framed(noisy(unstripped()))),
        lambda: [volume - 1000 for volume in noisy(unstripped())],
        lambda: noisy(unstripped())[:1],
    ],
    ids=["noise", "faint noise", "frame", "much noise", "ghost", "blank slices", "air at -1000", "one contrast"],
)
def test_air_is_no_head(made, dtype):
    contrasts = made()
    if dtype == np.uint8:
        contrasts = [np.rint((v - v.min()) * (255 / np.ptp(v))).astype(dtype) for v in contrasts]
    found = find_head([v.astype(dtype) for v in contrasts])
    there = HEAD & np.any([v != 0 for v in contrasts], axis=0).any(axis=(1, 2))[:, None, None]
    assert dice(found, there) > 0.97
    assert not (BRAIN & there & ~found).any()


def test_a_clean_head_stays_whole_with_its_skin():
    found = find_head(unstripped())
    assert not (HEAD & ~found).any() and not (found & ~HEAD).any()


def test_where_there_is_no_background_all_is_head():
    whole = noisy(unstripped(), 0.01)
    crop = (slice(2, 9), slice(36, 66), slice(30, 60))  # of brain, and the dark fluid in it
    assert find_head([volume[crop] for volume in whole]).all()
    assert find_head([(volume[crop] / 4).astype(np.uint8) for volume in whole[1:2]]).all()
    padded = [np.pad(volume[crop], 4) for volume in whole]
    np.testing.assert_array_equal(find_head(padded), np.pad(np.ones(whole[0][crop].shape, bool), 4))


@pytest.mark.parametrize("p, l", [(60, 45), (100, 45), (60, 90)])
def test_a_crop_with_air_in_it_has_a_background(p, l):
    """Skin that is cut off is connected only through bone, which is as dark as air."""
    crop = (slice(None), slice(0, p), slice(0, l))
    assert dice(find_head([volume[crop] for volume in noisy(unstripped())]), HEAD[crop]) > 0.97


def test_a_stripped_brain_is_what_differs_from_the_background_however_dark():
    dim = [np.where(BRAIN, 4 + volume * (volume > 150), 0) for volume in unstripped()]  # the fluid at 4 of 600
    np.testing.assert_array_equal(find_head(dim), find_head([BRAIN.astype(np.float32)]))


def test_pictures_of_one_value_on_a_background():
    for value in (-1.0, 7.0):
        np.testing.assert_array_equal(find_head([np.where(BRAIN, value, 0)]), BRAIN)


# --- on the heads of drawn.py -----------------------------------------------------------------------------------------

DRAWN = np.stack([draw_head()[contrast].T for contrast in BRATS.contrasts]).astype(np.float32)
INSIDE = DRAWN[0] > 0  # [S, P, L]


def z_score(contrast, background=0.0):
    values = contrast[INSIDE]
    return np.where(INSIDE, (contrast - values.mean()) / values.std(), background)


@pytest.mark.parametrize(
    "contrasts",
    [
        DRAWN,
        np.where(INSIDE, DRAWN, -1000),
        np.where(INSIDE, -DRAWN, 0),
        np.where(INSIDE, DRAWN - 300, 0),
        np.stack([z_score(c) for c in DRAWN]),
        np.stack([z_score(c, z_score(c).min()) for c in DRAWN]),
        np.concatenate([np.zeros_like(DRAWN[:1]), DRAWN[1:]]),
        DRAWN + np.random.default_rng(0).uniform(-2, 2, DRAWN.shape),
    ],
    ids=[
        "as drawn",
        "-1000",
        "negative",
        "zeros inside",
        "z-scores",
        "background = min",
        "an empty contrast",
        "ripples",
    ],
)
def test_the_head_is_found_whatever_the_intensities(contrasts):
    np.testing.assert_array_equal(find_head(contrasts.astype(np.float32)), INSIDE)


def test_specks_and_ringing_do_not_count_and_holes_do():
    contrasts = DRAWN.copy()
    contrasts[:, 4:6, 20:24, 28:32] = 0  # a hole
    contrasts[2, 2, 55, 3] = 900  # a speck
    contrasts[1, :, 2, :] = 40  # one line of ringing through all slices, from face to face
    contrasts[0, 5, 56:59, 50:53] = 900  # a fragment
    contrasts[3, 0, 0, 0] = 30000  # an outlier
    np.testing.assert_array_equal(find_head(contrasts), INSIDE)


@pytest.mark.parametrize("corners", [False, True])
def test_growing_is_binary_dilation(corners):
    mask = np.random.default_rng(0).random((9, 7, 8)) < 0.03
    structure = ndimage.generate_binary_structure(3, 3 if corners else 1)
    np.testing.assert_array_equal(grow(mask, corners), ndimage.binary_dilation(mask, structure))


def test_foreground_of_integers_is_that_of_the_same_floats():
    rng = np.random.default_rng(0)
    for dtype, background in (("int16", -100), ("int16", 0), ("uint8", 0), ("uint16", 3), ("int32", -5)):
        volume = np.full((12, 12, 12), background, dtype)
        volume[2:10, 2:10, 2:10] = rng.integers(background, 120, (8, 8, 8)).astype(dtype)
        np.testing.assert_array_equal(foreground(volume), foreground(volume.astype(np.float64)))


def test_noise_in_the_background():
    rng = np.random.default_rng(0)
    noisy = np.abs(DRAWN + rng.normal(0, 15, DRAWN.shape) + 1j * rng.normal(0, 15, DRAWN.shape)).round()
    found = find_head(noisy.astype(np.float32))
    assert np.count_nonzero(found != INSIDE) < 0.01 * INSIDE.sum()


def test_a_head_cut_off_by_the_field_of_view():
    cropped = DRAWN[:, 3:7, 15:45, 15:]  # the head fills two faces and touches four
    np.testing.assert_array_equal(find_head(cropped), INSIDE[3:7, 15:45, 15:])
    one_slice = DRAWN[:, 4:5]
    np.testing.assert_array_equal(find_head(one_slice), INSIDE[4:5])


def test_nothing_to_find():
    with pytest.raises(UserError, match="no head found"):
        find_head(np.full((4, 5, 6, 7), 3, np.float32))


def test_otsu_lies_in_the_gap():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 2, 5000), rng.normal(100, 10, 800)])
    assert 25 < otsu_threshold(values) < 65
    assert foreground(np.float32([[[5, 5, 5, 9]]])).tolist() == [[[False, False, False, True]]]
