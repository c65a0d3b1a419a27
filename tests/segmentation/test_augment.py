"""Augmentation while training: flips, and MONAI's transforms in the manner of nnU-Net."""

import pickle

import numpy as np
import pytest
import torch
from monai.data import get_track_meta
from scipy import ndimage

from rings import RING, draw_ring
from segmentation.augment import Full, augmentation
from segmentation.config import TrainUNetConfig

SIZE = 48
LEVELS = np.array([40, 120, 220], np.uint8)  # gray levels of tissue, core and rim in a painted slice


def painted():
    """Contrasts [2, H, W] that show the classes and nothing else, and class indices [H, W]. Nothing is symmetric."""
    y, x = np.mgrid[:SIZE, :SIZE]
    head = ((x - 22) / 17) ** 2 + ((y - 25) / 20) ** 2 < 1
    indices = np.where(np.hypot(x - 16, y - 20) < 9, 2, 0) + np.where(np.hypot(x - 28, y - 31) < 6, 1, 0)
    indices = np.where(head, indices, 0).astype(np.uint8)
    return np.stack([np.where(head, LEVELS[indices], 0).astype(np.uint8)] * 2), indices


def only_geometry(seed=0):
    """`full` without its changes of intensity."""
    full = Full(seed)
    full._intensity = ()
    return full


def test_flips_are_left_to_right_by_chance_and_move_image_and_labels_together():
    contrasts, indices = painted()
    flip = augmentation(TrainUNetConfig(steps=1, seed=4, augment="flip"))
    flipped = 0
    for number in range(1000):
        new, classes = flip(contrasts, indices, number)
        step = -1 if (classes != indices).any() else 1
        assert (new == contrasts[:, :, ::step]).all() and (classes == indices[:, ::step]).all()
        flipped += step < 0
    assert 440 < flipped < 560


@pytest.mark.parametrize("augment", ["flip", "full"])
def test_every_seed_of_a_training_augments_in_its_own_way(augment):
    contrasts, indices = painted()

    def labels(seed):
        make = augmentation(TrainUNetConfig(steps=1, seed=seed, augment=augment))
        return tuple(make(contrasts, indices, number)[1].tobytes() for number in range(16))

    assert len({labels(seed) for seed in range(4)}) == 4 and labels(1) == labels(1)


def test_none_gives_the_very_same_arrays():
    contrasts, indices = painted()
    same = augmentation(TrainUNetConfig(steps=1))(contrasts, indices, 5)
    assert same[0] is contrasts and same[1] is indices


def test_labels_follow_the_geometry_of_the_image():
    contrasts, indices = painted()
    full, moved, seen = only_geometry(), 0, 0
    for number in range(60):
        new, classes = full(contrasts, indices, number)
        assert (
            new.dtype == classes.dtype == np.uint8 and new.shape == contrasts.shape and classes.shape == indices.shape
        )
        assert set(np.unique(classes)) <= {0, 1, 2}
        moved += (np.sort(classes.ravel()) != np.sort(indices.ravel())).any()
        for k in range(3):
            # Away from edges, where gray levels are interpolated and labels are not.
            inner = ndimage.binary_erosion((classes == k) & (new[0] > 0), np.ones((5, 5)))
            assert (new[:, inner] == LEVELS[k]).all(), (number, k)
            seen += inner.sum()
    assert moved > 10 and seen > 60 * 200


def test_labels_lie_where_the_image_shows_them_to_a_fraction_of_a_pixel():
    _, indices = painted()
    disc = (indices == 2).astype(np.uint8)
    contrasts = np.where(disc, 201, 1).astype(np.uint8)[None]
    full, offsets = only_geometry(), []
    for number in range(200):
        new, classes = full(contrasts, disc, number)
        if classes.sum() > 100:
            image, label = ndimage.center_of_mass(new[0] > 100), ndimage.center_of_mass(classes)
            offsets.append(np.subtract(image, label))
    assert len(offsets) > 150 and np.abs(offsets).max() < 0.4 and np.abs(np.mean(offsets, axis=0)).max() < 0.02


def test_rotation_and_zoom_come_in_a_fifth_of_the_draws_each_and_mirroring_in_half():
    contrasts, indices = painted()
    full, kept, mirrored = only_geometry(1), 0, np.zeros(2)
    for number in range(500):
        _, classes = full(contrasts, indices, number)
        for axes in [(), (0,), (1,), (0, 1)]:
            if (classes == np.flip(indices, axes)).all():
                kept += 1
                mirrored += [0 in axes, 1 in axes]
    assert 0.57 < kept / 500 < 0.71, "0.8 · 0.8 of them are neither rotated nor zoomed"
    assert (np.abs(mirrored / kept - 0.5) < 0.08).all()


def test_the_background_stays_background_and_tissue_stays_tissue():
    rng = np.random.default_rng(0)
    contrasts, _ = painted()
    contrasts = np.where(contrasts > 0, rng.integers(1, 256, contrasts.shape), 0).astype(np.uint8)
    full = Full(2)
    for number in range(200):
        # The label map is the tissue itself.
        new, tissue = full(contrasts, (contrasts[0] > 0).astype(np.uint8), number)
        assert ((new > 0) == tissue).all()
    dark = np.zeros_like(contrasts)
    assert not any(full(dark, dark[0], number)[0].any() for number in range(100))


def test_intensity_changes_contrasts_and_never_labels():
    contrasts, indices = RING.split(draw_ring(np.random.RandomState(0), size=SIZE))
    full, geometry = Full(6), only_geometry(6)
    changed = darker = brighter = 0
    for number in range(200):
        new, classes = full(contrasts, indices, number)
        moved, expected = geometry(contrasts, indices, number)
        assert (classes == expected).all()
        changed += (new != moved).any()
        darker += new.mean() < 0.9 * moved.mean()
        brighter += new.mean() > 1.1 * moved.mean()
    assert 0.65 < changed / 200 < 0.9, "1 − .9 · .8 · .85 · .85 · .75 · .9 · .7 are 75 %"
    assert darker and brighter


def test_what_happens_to_a_slice_depends_on_seed_and_draw_alone():
    contrasts, indices = painted()
    state, torch_state, meta = np.random.get_state()[1].copy(), torch.get_rng_state(), get_track_meta()
    full = Full(3)
    forward = [full(contrasts, indices, number) for number in range(20)]
    again = pickle.loads(pickle.dumps(full))
    backward = [again(contrasts, indices, number) for number in reversed(range(20))][::-1]
    other = [Full(4)(contrasts, indices, number) for number in range(20)]
    for (image, classes), (image_again, classes_again) in zip(forward, backward, strict=True):
        assert (image == image_again).all() and (classes == classes_again).all()
    assert sum((a[0] == b[0]).all() for a, b in zip(forward, other, strict=True)) < 8
    assert (np.random.get_state()[1] == state).all() and torch.equal(torch.get_rng_state(), torch_state)
    assert get_track_meta() == meta


@pytest.mark.parametrize("contrasts", [1, 4])
def test_any_number_of_contrasts_and_of_classes(contrasts):
    image, indices = painted()
    image = np.repeat(image[:1], contrasts, axis=0)
    many = np.where(indices > 0, indices * 7, 0).astype(np.uint8)  # up to 14 of 15 classes
    for number in range(30):
        new, classes = Full(1)(image, many, number)
        assert new.shape == image.shape and set(np.unique(classes)) <= {0, 7, 14}
