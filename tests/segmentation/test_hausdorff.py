"""HD95 of two masks against its definition, and the stacks that it is measured in."""

import numpy as np
import pytest
import torch
from monai.metrics import HausdorffDistanceMetric, compute_hausdorff_distance
from scipy import ndimage

from dnnlib.errors import UserError
from rings import RING, SIZE, draw_ring, write_patients, write_volumes
from segmentation.hausdorff import Stack, hd95, refuse_gaps, stack_of
from slices.archive.format import Volume
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (0.7, 1.9, 1.3)]
SHAPE = (9, 20, 17)
EMPTY = np.zeros(SHAPE, bool)
WINDOWS = dict.fromkeys(RING.contrasts, (0.0, 1.0))


def by_hand(prediction, truth, spacing):
    """The definition: the larger one of the 95th percentiles of the distances from surface to surface."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    directed = [
        np.percentile(ndimage.distance_transform_edt(~other, sampling=spacing)[one], 95)
        for one, other in (surfaces, surfaces[::-1])
    ]
    return max(directed)


def draw_masks(count):
    """Pairs of masks, bool [S, H, W]: blobs that overlap more or less, some with specks, some cut off at the ends."""
    rng = np.random.default_rng(7)
    for i in range(count):
        smooth = ndimage.gaussian_filter(rng.standard_normal((3, *SHAPE)), (0, 1, 2, 2))
        truth = smooth[0] > np.quantile(smooth[0], rng.uniform(0.5, 0.99))
        mixed = smooth[0] + rng.uniform(0.1, 2) * smooth[1]
        prediction = mixed > np.quantile(mixed, rng.uniform(0.5, 0.99))
        if i % 2:
            prediction |= rng.random(SHAPE) < 0.003
        yield prediction, truth


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_fifty_pairs_by_hand(spacing):
    distances = []
    for prediction, truth in draw_masks(50):
        distances.append(hd95(prediction, truth, spacing))
        assert distances[-1] == pytest.approx(by_hand(prediction, truth, spacing), abs=1e-5)
        assert distances[-1] == hd95(truth, prediction, spacing), "the same both ways"
    assert len(set(distances)) > 25 and max(distances) > 8


def test_other_definitions_give_other_numbers():
    """Would the definition be pooled, as BraTS has it since 2023, or the plain maximum, the oracle would notice."""
    pooled, largest = [], []
    for prediction, truth in draw_masks(50):
        one, other = (mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth))
        away = [ndimage.distance_transform_edt(~b)[a] for a, b in ((one, other), (other, one))]
        found = hd95(prediction, truth, SPACINGS[0])
        pooled.append(np.percentile(np.concatenate(away), 95) - found)
        largest.append(max(map(np.max, away)) - found)
    assert max(pooled) <= 1e-5 and min(pooled) < -1, "the pooled percentile flatters"
    assert np.mean(np.array(largest) > 1) > 0.5


def test_cropping_changes_nothing():
    """Masks somewhere in a large volume, and masks that touch all of its ends."""
    for prediction, truth in draw_masks(10):
        large = [np.pad(mask, ((3, 8), (11, 2), (5, 30))) for mask in (prediction, truth)]
        for one, other in ((prediction, truth), large):
            whole = compute_hausdorff_distance(
                *(torch.from_numpy(mask)[None, None] for mask in (one, other)),
                include_background=True,
                percentile=95,
                spacing=list(SPACINGS[1]),
            )
            assert hd95(one, other, SPACINGS[1]) == float(whole)
    assert hd95(np.ones(SHAPE, bool), np.ones(SHAPE, bool), SPACINGS[1]) == 0


def test_the_distance_is_in_millimeters_along_each_axis():
    for axis, mm in enumerate((7.0, 2.0, 0.25)):
        one, other = EMPTY.copy(), EMPTY.copy()
        one[1, 1, 1] = True
        other[tuple(4 if a == axis else 1 for a in range(3))] = True
        assert hd95(one, other, (7.0, 2.0, 0.25)) == pytest.approx(3 * mm)
        assert hd95(one, other, (7, 2.0, np.float32(0.25))) == pytest.approx(3 * mm), "MONAI refuses mixed numbers"


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_what_is_empty_is_decided_before_monai_is_asked(spacing, monkeypatch, recwarn):
    some, diagonal = EMPTY.copy(), float(np.linalg.norm(np.array(SHAPE) * spacing))
    some[4, 5, 6] = True
    assert hd95(some, some, spacing) == 0.0
    monkeypatch.setattr("monai.metrics.compute_hausdorff_distance", lambda *_, **__: pytest.fail("MONAI was asked"))
    assert hd95(EMPTY, EMPTY, spacing) == 0.0
    assert hd95(EMPTY, some, spacing) == pytest.approx(diagonal)
    assert hd95(some, EMPTY, spacing) == pytest.approx(diagonal)
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:the prediction of class 0 is all 0")
def test_a_missed_lesion_is_never_dropped():
    """One patient perfect, one missed. MONAI's mean leaves the missed one out; ours has its diagonal."""
    lesion = EMPTY.copy()
    lesion[2:5, 3:9, 4:8] = True
    metric = HausdorffDistanceMetric(include_background=True, percentile=95, get_not_nans=True)
    for prediction in (lesion, EMPTY):
        metric(*(torch.from_numpy(mask)[None, None] for mask in (prediction, lesion)), spacing=[1.0, 1.0, 1.0])
    mean, counted = metric.aggregate()
    assert float(mean) == 0.0 and float(counted) == 1, "as if the network were perfect, and the patient not there"
    ours = [hd95(prediction, lesion, (1.0, 1.0, 1.0)) for prediction in (lesion, EMPTY)]
    assert ours == [0.0, pytest.approx(np.linalg.norm(SHAPE))]


# --- stacks -----------------------------------------------------------------------------------------------------------


def volume(affine, shape=(16, 20, 5), pixel=0.9):
    return Volume("p", shape, tuple(map(tuple, np.asarray(affine, float))), pixel, WINDOWS)


def test_slices_are_stacked_by_their_places():
    straight = volume(np.diag([-1, -1, 2.5, 1]))
    assert stack_of(straight, (0, 1, 2, 3, 4)) == Stack((0, 1, 2, 3, 4), 0, (2.5, 0.9, 0.9))
    assert stack_of(straight, (3, 1, 2)) == Stack((1, 2, 0), 0, (2.5, 0.9, 0.9)), "cut off at both ends is whole"
    assert stack_of(straight, (4, 0, 3)) == Stack((1, 2, 0), 2, (2.5, 0.9, 0.9)), "1 and 2 are missing"
    assert stack_of(straight, (2,)) == Stack((0,), 0, (2.5, 0.9, 0.9))
    for places in ((0, None, 1), (0, 1, 1), (0, 5)):
        assert stack_of(straight, places) is None
    assert stack_of(None, (None,)) is None


def test_the_distance_of_slices_is_that_of_the_volumes_voxels():
    # Slices along the first axis of the file, from the head to the feet.
    sagittal = np.array([(0, -0.5, 0, 3), (0, 0, 0.5, 4), (-4.0, 0, 0, 5), (0, 0, 0, 1)])
    assert stack_of(volume(sagittal, (5, 16, 20)), (1, 0)) == Stack((1, 0), 0, (4.0, 0.9, 0.9))
    turn = np.radians(20)
    oblique = np.eye(4)
    oblique[1:3, 1:3] = [(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))]
    found = stack_of(volume(oblique @ np.diag([-1, -1, 2.5, 1])), range(5))
    assert found.spacing == pytest.approx((2.5, 0.9, 0.9))
    for nonsense in (np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.full((4, 4), 1e300)):
        assert stack_of(volume(nonsense), (0, 1)) is None


def test_gaps_are_refused(tmp_path):
    """The middle of a volume is missing. Ends, fakes, slices of unknown volumes and of unknown places don't matter."""
    refuse_gaps(ArchiveReader(write_volumes(tmp_path / "ends.zip", {"v": "p", "w": "q"}, slices=(2, 3, 4), of=7)))
    refuse_gaps(ArchiveReader(write_patients(tmp_path / "unknown.zip", ["a", "b"])))
    gaps = write_volumes(tmp_path / "gaps.zip", {"v": "p", "w": "q"}, slices=(5, 0, 1), of=7)
    with pytest.raises(UserError) as caught:
        refuse_gaps(ArchiveReader(gaps))
    words = "gaps.zip: slices are missing in the middle of 2 volumes", "v (3 slices), w (3 slices)", "--test-slices all"
    assert all(word in str(caught.value) for word in words), caught.value
    with ArchiveWriter(tmp_path / "places.zip", RING, SIZE, {}) as writer:
        writer.volumes["v"] = volume(np.diag([-1, -1, 1, 1]))
        for _ in range(2):
            writer.add(draw_ring(np.random.RandomState(0)), patient="p", volume="v")
    refuse_gaps(ArchiveReader(tmp_path / "places.zip"))
